// A heat map to click: cells by mouse or arrow keys, text in cells where it fits, the colour bar beside it.

function render({ model, el }) {
  const { root, canvas, tip, live } = easel(el, "heatmap");
  let box = null, cursor = null;

  const get = (name) => model.get(name);
  const lines = (list) => list.map(String);

  function describe(row, col) {
    const { values, cols } = box, texts = get("texts"), unit = get("unit");
    const at = row * cols + col;
    const number = `${say(values[at])}${unit ? " " + unit : ""}`;
    return `${get("y_title")} ${lines(get("row_labels"))[row]}, ${get("x_title")} ${lines(get("col_labels"))[col]}${texts.length ? `: ${texts[at]}` : ""}\n${number}`;
  }

  function draw() {
    const [rows, cols] = get("shape"), look = theme(root), signed = get("signed");
    root.setAttribute("aria-label", `${get("alt")} Arrow keys move, Enter selects.`);
    if (!rows || !cols) { sized(canvas, 10, 10); box = null; return; }
    const values = floats(get("values")), low = get("low"), high = get("high");
    const rowLabels = lines(get("row_labels")), colLabels = lines(get("col_labels")), texts = get("texts");
    const width = Math.max(320, root.clientWidth || 700), bar = 84, font = "12px sans-serif";
    const probe = canvas.getContext("2d");
    probe.font = font;
    const longest = (list) => Math.min(150, Math.max(...list.map((t) => probe.measureText(t).width)));
    const left = longest(rowLabels) + 34, cellWidth = Math.max(3, Math.min(texts.length ? 90 : 60, (width - left - bar) / cols));
    const upright = longest(colLabels) + 6 > cellWidth;
    const below = (upright ? longest(colLabels) : 14) + 30, top = 6;
    const cellHeight = Math.max(texts.length ? 20 : 5, Math.min(30, get("height") / rows));
    const unitLines = get("unit").split(" ").length, barHeight = Math.max(60, Math.min(160, rows * cellHeight));
    const height = Math.max(top + rows * cellHeight + below, top + barHeight + 20 + 12 * unitLines, probe.measureText(get("y_title")).width + 12);
    const pen = sized(canvas, width, height);
    box = { values, rows, cols, left, top, cellWidth, cellHeight };
    pen.clearRect(0, 0, width, height);
    const span = high - low || 1;
    pen.textBaseline = "middle";
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < cols; c++) {
        const value = values[r * cols + c], x = left + c * cellWidth, y = top + r * cellHeight;
        const gap = cellWidth > 8 && cellHeight > 8 ? 1 : 0;
        const filled = Number.isFinite(value) ? colour((value - low) / span, signed) : null;
        pen.fillStyle = filled ? css(filled) : "rgba(128,128,128,.15)";
        pen.fillRect(x, y, cellWidth - gap, cellHeight - gap);
        if (texts.length && cellWidth > 18) {
          pen.save();
          pen.beginPath(); pen.rect(x, y, cellWidth - 2, cellHeight); pen.clip();
          pen.fillStyle = filled ? ink(filled) : look.ink;
          pen.font = "12px monospace"; pen.textAlign = "left";
          pen.fillText(texts[r * cols + c], x + 3, y + cellHeight / 2);
          pen.restore();
        }
      }
    }
    pen.font = font; pen.fillStyle = look.ink; pen.textAlign = "right";
    const skipRows = Math.ceil(13 / cellHeight), skipCols = Math.ceil((upright ? 13 : longest(colLabels) + 6) / cellWidth);
    rowLabels.forEach((t, r) => { if (r % skipRows === 0) pen.fillText(cut(pen, t), left - 5, top + (r + 0.5) * cellHeight); });
    const floor = top + rows * cellHeight;
    colLabels.forEach((t, c) => {
      if (c % skipCols) return;
      pen.save();
      pen.translate(left + (c + 0.5) * cellWidth, floor + (upright ? 4 : 10));
      if (upright) pen.rotate(-Math.PI / 2);
      pen.textAlign = upright ? "right" : "center";
      pen.fillText(cut(pen, t), 0, 0);
      pen.restore();
    });
    pen.fillStyle = look.soft; pen.textAlign = "center";
    pen.fillText(get("x_title"), left + (cols * cellWidth) / 2, floor + below - 9);
    pen.save(); pen.translate(9, Math.max(top + (rows * cellHeight) / 2, probe.measureText(get("y_title")).width / 2 + 6)); pen.rotate(-Math.PI / 2); pen.fillText(get("y_title"), 0, 0); pen.restore();
    drawBar(pen, left + cols * cellWidth + 14, top, barHeight, low, high, signed, look);
    for (const [r, c] of get("marked")) cross(pen, r, c, look.ink);
    const chosen = get("selected");
    if (chosen.length === 2) outline(pen, ...chosen, look.accent, 3);
    if (cursor) outline(pen, ...cursor, look.ink, 1.5);
  }

  function drawBar(pen, x, y, height, low, high, signed, look) {
    for (let i = 0; i < height; i++) { pen.fillStyle = css(colour(1 - i / height, signed)); pen.fillRect(x, y + i, 12, 1.5); }
    pen.fillStyle = look.ink; pen.font = "11px sans-serif"; pen.textAlign = "left"; pen.textBaseline = "middle";
    pen.fillText(say(high), x + 16, y + 4);
    pen.fillText(say((low + high) / 2), x + 16, y + height / 2);
    pen.fillText(say(low), x + 16, y + height - 4);
    const words = get("unit").split(" ");
    pen.fillStyle = look.soft;
    words.forEach((w, i) => pen.fillText(w, x, y + height + 12 + 12 * i));
  }

  function outline(pen, r, c, stroke, weight) {
    const { left, top, cellWidth, cellHeight } = box;
    pen.strokeStyle = stroke; pen.lineWidth = weight;
    pen.strokeRect(left + c * cellWidth, top + r * cellHeight, cellWidth - 1, cellHeight - 1);
  }

  function cross(pen, r, c, stroke) {
    const { left, top, cellWidth, cellHeight } = box, x = left + c * cellWidth, y = top + r * cellHeight;
    pen.strokeStyle = "#fff"; pen.lineWidth = 4;
    for (const pass of [0, 1]) {
      if (pass) { pen.strokeStyle = "#111"; pen.lineWidth = 1.5; }
      pen.beginPath(); pen.moveTo(x + 2, y + 2); pen.lineTo(x + cellWidth - 3, y + cellHeight - 3);
      pen.moveTo(x + cellWidth - 3, y + 2); pen.lineTo(x + 2, y + cellHeight - 3); pen.stroke();
    }
  }

  function cellAt(event) {
    if (!box) return null;
    const frame = canvas.getBoundingClientRect();
    const c = Math.floor((event.clientX - frame.left - box.left) / box.cellWidth), r = Math.floor((event.clientY - frame.top - box.top) / box.cellHeight);
    return r >= 0 && c >= 0 && r < box.rows && c < box.cols ? [r, c] : null;
  }

  canvas.addEventListener("mousemove", (event) => {
    const cell = cellAt(event), frame = canvas.getBoundingClientRect();
    canvas.style.cursor = cell ? "pointer" : "default";
    if (cell) tip.show(describe(...cell), event.clientX - frame.left, event.clientY - frame.top);
    else tip.hide();
  });
  canvas.addEventListener("mouseleave", () => tip.hide());
  canvas.addEventListener("click", (event) => { const cell = cellAt(event); if (cell) { cursor = cell; pick(model, cell); } });
  root.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!box || (!step && event.key !== "Enter" && event.key !== " ")) return;
    event.preventDefault(); event.stopPropagation();
    if (!step) { if (cursor) pick(model, cursor); return; }
    const [r, c] = cursor || [0, 0];
    cursor = cursor ? [Math.min(Math.max(r + step[0], 0), box.rows - 1), Math.min(Math.max(c + step[1], 0), box.cols - 1)] : [0, 0];
    live.textContent = describe(...cursor);
    draw();
    tip.show(describe(...cursor), box.left + (cursor[1] + 1) * box.cellWidth, box.top + cursor[0] * box.cellHeight);
  });
  root.addEventListener("blur", () => { tip.hide(); cursor = null; draw(); });

  function cut(pen, text) {
    let shown = text;
    while (shown.length > 1 && pen.measureText(shown).width > 146) shown = shown.slice(0, -1);
    return shown === text ? text : shown.slice(0, -1) + "…";
  }

  const redraw = () => { cursor = null; tip.hide(); draw(); }; // a tooltip of the old map would show a wrong number
  model.on("change:version", redraw);
  model.on("change:selected", draw);
  model.on("change:marked", draw);
  const stop = watch(root, draw);
  draw();
  return () => { stop(); model.off("change:version", redraw); model.off("change:selected", draw); model.off("change:marked", draw); };
}

export default { render };
