// Every head's pattern as a thumbnail on one canvas, its score in the band beneath; heads by mouse or arrow keys.
// Patterns come as bytes: 254 times the square root of the weight, 255 where a causal model cannot look.

function render({ model, el }) {
  const { root, canvas, tip, live } = easel(el, "headgrid");
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // or the lab takes "o" for its own
  const sheet = document.createElement("canvas"), get = (name) => model.get(name);
  let box = null, cursor = null, pointed = null;

  // bytes -> one sheet with a pixel a cell, once per set of patterns
  function develop() {
    const [layers, heads, side] = get("shape"), view = get("patterns");
    sheet.width = Math.max(1, heads * side); sheet.height = Math.max(1, layers * side);
    if (!layers) return;
    const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength), pen = sheet.getContext("2d");
    const picture = pen.createImageData(sheet.width, sheet.height), pixels = new Uint32Array(picture.data.buffer);
    const code = Uint32Array.from({ length: 256 }, (_, i) => { const [r, g, b] = colour(i / 254, false); return (i === 255 ? 0 : 0xff000000 | (b << 16) | (g << 8) | r) >>> 0; });
    let at = 0;
    for (let l = 0; l < layers; l++)
      for (let h = 0; h < heads; h++)
        for (let q = 0; q < side; q++) {
          const start = (l * side + q) * sheet.width + h * side;
          for (let k = 0; k < side; k++) pixels[start + k] = code[bytes[at++]];
        }
    pen.putImageData(picture, 0, 0);
  }

  const isOff = (l, h) => get("off").some(([a, b]) => a === l && b === h);
  const share = (value) => (value - get("low")) / (get("high") - get("low") || 1);
  const warm = (value) => colour(0.5 + 0.5 * share(value), true); // white to red: not mistaken for a pattern

  function describe(l, h) {
    return `layer ${l}, head ${h}${isOff(l, h) ? " (switched off)" : ""}\n${get("title")}: ${say(box.scores[l * box.heads + h])} ${get("unit")}`;
  }

  function draw() {
    const [layers, heads, side] = get("shape"), look = theme(root);
    root.setAttribute("aria-label", `${get("alt")} Arrow keys move, Enter selects, o switches a head off or on.`);
    if (!layers) { sized(canvas, 10, 10); box = null; return; }
    const left = 40, bar = 92, top = 4, width = Math.max(320, root.clientWidth || 560), gap = 3;
    const size = Math.max(8, Math.min(110, Math.floor((width - left - bar) / heads) - gap)), band = size >= 26 ? 14 : 4;
    const across = size + gap, down = size + band + gap + 1, height = top + layers * down + 54;
    const pen = sized(canvas, left + heads * across + bar, height), scores = floats(get("scores"));
    box = { layers, heads, left, top, across, down, size, band, scores };
    pen.imageSmoothingEnabled = size < side;
    pen.imageSmoothingQuality = "high";
    pen.textBaseline = "middle";
    for (let l = 0; l < layers; l++) {
      for (let h = 0; h < heads; h++) {
        const x = left + h * across, y = top + l * down, value = scores[l * heads + h], off = isOff(l, h);
        pen.fillStyle = "rgba(128,128,128,.15)";
        pen.fillRect(x, y, size, size);
        pen.globalAlpha = off ? 0.25 : 1;
        pen.drawImage(sheet, h * side, l * side, side, side, x, y, size, size);
        pen.globalAlpha = 1;
        const filled = Number.isFinite(value) ? warm(value) : null;
        pen.fillStyle = filled ? css(filled) : "rgba(128,128,128,.25)";
        pen.fillRect(x, y + size, size, band);
        if (band > 8) {
          pen.fillStyle = filled ? ink(filled) : look.ink; pen.font = "10px sans-serif"; pen.textAlign = "center";
          pen.fillText(filled ? value.toFixed(2) : "-", x + size / 2, y + size + band / 2 + 0.5);
        }
        if (off) cross(pen, x, y, size);
      }
    }
    labels(pen, look, height);
    const bottom = Math.max(60, Math.min(130, layers * down - 150));
    scale(pen, left + heads * across + 12, top, bottom, (i) => colour(i, false), ["1", "0.25", "0"], ["attention", "weight", "(root scale)"], look);
    if (layers * down > 250) scale(pen, left + heads * across + 12, top + bottom + 62, bottom, (i) => colour(0.5 + 0.5 * i, true), [get("high"), (get("low") + get("high")) / 2, get("low")].map(short), words(), look);
    const chosen = get("selected");
    if (chosen.length === 2) outline(pen, ...chosen, look.accent, 3);
    for (const cell of [pointed, cursor]) if (cell) outline(pen, ...cell, look.ink, 1.5);
  }

  const short = (value) => (Math.abs(value) >= 10 ? value.toFixed(0) : value.toFixed(2));
  const words = () => ["score", "beneath:", get("unit").startsWith("share") ? "share" : get("unit")];

  function labels(pen, look, height) {
    const { layers, heads, left, top, across, down, size } = box;
    pen.font = "12px sans-serif"; pen.fillStyle = look.ink; pen.textAlign = "right";
    const skipRows = Math.ceil(13 / down), skipCols = Math.ceil(20 / across);
    for (let l = 0; l < layers; l += skipRows) pen.fillText(String(l), left - 6, top + l * down + size / 2);
    pen.textAlign = "center";
    for (let h = 0; h < heads; h += skipCols) pen.fillText(String(h), left + h * across + size / 2, top + layers * down + 8);
    pen.fillStyle = look.soft;
    pen.fillText("head", left + (heads * across) / 2, top + layers * down + 26);
    pen.textAlign = "left";
    pen.fillText(`beneath each: ${get("title").toLowerCase()} (${get("unit")})`, left, height - 10);
    pen.save(); pen.translate(9, top + (layers * down) / 2); pen.rotate(-Math.PI / 2); pen.textAlign = "center"; pen.fillText("layer", 0, 0); pen.restore();
  }

  function scale(pen, x, y, height, tint, ticks, said, look) {
    for (let i = 0; i < height; i++) { pen.fillStyle = css(tint(1 - i / height)); pen.fillRect(x, y + i, 12, 1.5); }
    pen.font = "11px sans-serif"; pen.fillStyle = look.ink; pen.textAlign = "left";
    ticks.forEach((t, i) => pen.fillText(t, x + 16, y + 4 + (i * (height - 8)) / 2));
    pen.fillStyle = look.soft;
    said.forEach((t, i) => pen.fillText(t, x, y + height + 12 + 12 * i));
  }

  function outline(pen, l, h, stroke, weight) {
    const { left, top, across, down, size, band } = box;
    pen.strokeStyle = stroke; pen.lineWidth = weight;
    pen.strokeRect(left + h * across - 1, top + l * down - 1, size + 2, size + band + 2);
  }

  function cross(pen, x, y, size) {
    for (const [stroke, weight] of [["#fff", 5], ["#111", 2]]) {
      pen.strokeStyle = stroke; pen.lineWidth = weight;
      pen.beginPath(); pen.moveTo(x + 3, y + 3); pen.lineTo(x + size - 3, y + size - 3); pen.moveTo(x + size - 3, y + 3); pen.lineTo(x + 3, y + size - 3); pen.stroke();
    }
  }

  function headAt(event) {
    if (!box) return null;
    const frame = canvas.getBoundingClientRect();
    const h = Math.floor((event.clientX - frame.left - box.left) / box.across), l = Math.floor((event.clientY - frame.top - box.top) / box.down);
    return l >= 0 && h >= 0 && l < box.layers && h < box.heads ? [l, h] : null;
  }

  function toggle([l, h]) {
    const rest = get("off").filter(([a, b]) => a !== l || b !== h);
    const now = isOff(l, h) ? rest : [...rest, [l, h]].sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    model.set("off", now);
    model.save_changes();
  }

  canvas.addEventListener("mousemove", (event) => {
    const cell = headAt(event), frame = canvas.getBoundingClientRect();
    canvas.style.cursor = cell ? "pointer" : "default";
    if (String(cell) !== String(pointed)) { pointed = cell; draw(); }
    if (cell) tip.show(describe(...cell), event.clientX - frame.left, event.clientY - frame.top);
    else tip.hide();
  });
  canvas.addEventListener("mouseleave", () => { tip.hide(); pointed = null; draw(); });
  canvas.addEventListener("click", (event) => {
    const cell = headAt(event);
    if (!cell) return;
    cursor = cell;
    if (event.shiftKey) toggle(cell); else pick(model, cell);
  });
  root.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!box || (!step && !["Enter", " ", "o"].includes(event.key)) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault(); event.stopPropagation();
    if (!step && cursor) { if (event.key === "o") toggle(cursor); else pick(model, cursor); }
    if (step) {
      const [l, h] = cursor || [0, 0];
      cursor = cursor ? [Math.min(Math.max(l + step[0], 0), box.layers - 1), Math.min(Math.max(h + step[1], 0), box.heads - 1)] : [0, 0];
    }
    if (!cursor) return;
    draw();
    live.textContent = describe(...cursor);
    tip.show(describe(...cursor), box.left + (cursor[1] + 1) * box.across, box.top + cursor[0] * box.down);
  });
  root.addEventListener("blur", () => { tip.hide(); cursor = null; draw(); });

  const renew = () => { cursor = pointed = null; develop(); draw(); };
  model.on("change:version", renew);
  for (const name of ["selected", "off"]) model.on(`change:${name}`, draw);
  const stop = watch(root, draw);
  renew();
  return () => { stop(); model.off("change:version", renew); for (const name of ["selected", "off"]) model.off(`change:${name}`, draw); };
}

export default { render };
