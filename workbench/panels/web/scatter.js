// A scatter to click: points coloured by group, one marker a kind; the arrow keys walk through the points from left to right.

function render({ model, el }) {
  const { root, canvas, tip, live } = easel(el, "scatter");
  let box = null, cursor = -1;

  const get = (name) => model.get(name);
  const integers = (view) => new Int32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));

  function read() {
    const x = floats(get("x")), y = floats(get("y")), places = integers(get("places"));
    const at = (bytes) => Array.from(new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength));
    const groups = at(get("groups")), kinds = at(get("kinds"));
    const byX = Array.from(x.keys()).sort((a, b) => x[a] - x[b] || a - b);
    return { x, y, places, groups, kinds, byX };
  }

  function shown(value) { return get("log") ? say(10 ** value) : say(value); }

  function describe(i) {
    const { x, y, places, groups, kinds } = box;
    return `layer ${places[2 * i]}, ${get("kind_names")[kinds[i]]} ${places[2 * i + 1]}: ${get("group_names")[groups[i]]}\n${get("x_short")} ${shown(x[i])}, ${get("y_short")} ${shown(y[i])}`;
  }

  function ticks(low, high) {
    if (get("log")) {
      const step = Math.max(1, Math.ceil((high - low) / 8)), found = [];
      for (let v = Math.ceil(low); v <= high; v += step) found.push(v);
      return found;
    }
    const rough = (high - low) / 6, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((m) => m * power >= rough), found = [];
    for (let v = Math.ceil(low / step) * step; v <= high + 1e-9; v += step) found.push(Math.abs(v) < step / 1e6 ? 0 : v);
    return found;
  }

  function mark(pen, kind, px, py, size) {
    pen.beginPath();
    if (kind === 0) pen.arc(px, py, size, 0, 2 * Math.PI);
    else { pen.moveTo(px, py - 1.8 * size); pen.lineTo(px + 1.8 * size, py); pen.lineTo(px, py + 1.8 * size); pen.lineTo(px - 1.8 * size, py); pen.closePath(); }
  }

  function draw() {
    const look = theme(root);
    root.setAttribute("aria-label", `${get("alt")} Arrow keys walk through the points, Enter selects.`);
    const data = read();
    if (!data.x.length) { sized(canvas, 10, 10); box = null; return; }
    const width = Math.max(320, Math.min(860, root.clientWidth || 700)), height = get("height");
    const left = 74, right = 12, top = 8, below = 48;
    const [xLow, xHigh] = get("x_limits"), [yLow, yHigh] = get("y_limits");
    const toX = (v) => left + ((v - xLow) / (xHigh - xLow)) * (width - left - right), toY = (v) => height - below - ((v - yLow) / (yHigh - yLow)) * (height - below - top);
    const pen = sized(canvas, width, height);
    box = { ...data, px: Float32Array.from(data.x, toX), py: Float32Array.from(data.y, toY) };
    pen.clearRect(0, 0, width, height);
    pen.font = "12px sans-serif"; pen.lineWidth = 1; pen.textBaseline = "middle";
    for (const v of ticks(xLow, xHigh)) {
      pen.strokeStyle = look.line; pen.beginPath(); pen.moveTo(toX(v), top); pen.lineTo(toX(v), height - below); pen.stroke();
      pen.fillStyle = look.ink; pen.textAlign = "center"; label(pen, v, toX(v), height - below + 12);
    }
    for (const v of ticks(yLow, yHigh)) {
      pen.strokeStyle = look.line; pen.beginPath(); pen.moveTo(left, toY(v)); pen.lineTo(width - right, toY(v)); pen.stroke();
      pen.fillStyle = look.ink; pen.textAlign = "right"; label(pen, v, left - 6, toY(v));
    }
    pen.fillStyle = look.soft; pen.textAlign = "center";
    pen.fillText(get("x_title"), left + (width - left - right) / 2, height - 10);
    pen.save(); pen.translate(10, top + (height - below - top) / 2); pen.rotate(-Math.PI / 2); pen.fillText(get("y_title"), 0, 0); pen.restore();
    pen.save();
    pen.beginPath(); pen.rect(left, top, width - left - right, height - below - top); pen.clip();
    pen.strokeStyle = look.soft; pen.setLineDash([4, 4]);
    const from = Math.max(xLow, yLow), to = Math.min(xHigh, yHigh);
    pen.beginPath(); pen.moveTo(toX(from), toY(from)); pen.lineTo(toX(to), toY(to)); pen.stroke(); pen.setLineDash([]);
    const colours = get("colours");
    pen.strokeStyle = "rgba(40,40,40,.6)"; pen.lineWidth = 0.5;
    for (const group of get("order")) {
      pen.fillStyle = colours[group];
      for (let i = 0; i < box.x.length; i++) {
        if (box.groups[i] !== group) continue;
        mark(pen, box.kinds[i], box.px[i], box.py[i], 3.2);
        pen.fill(); pen.stroke();
      }
    }
    const chosen = get("selected"); // paper under ink, so that the ring stands out on any colour
    for (const [i, stroke, weight] of [[chosen, look.paper, 6], [chosen, look.ink, 3], [cursor, look.accent, 2]]) {
      if (i < 0 || i >= box.x.length) continue;
      pen.strokeStyle = stroke; pen.lineWidth = weight;
      mark(pen, box.kinds[i], box.px[i], box.py[i], 8); pen.stroke();
    }
    pen.restore();
  }

  function label(pen, v, x, y) {
    const text = get("log") ? `1e${v}` : String(+v.toPrecision(3));
    pen.fillText(text, x, y);
  }

  function nearest(event) {
    if (!box) return -1;
    const frame = canvas.getBoundingClientRect(), ex = event.clientX - frame.left, ey = event.clientY - frame.top;
    let best = -1, least = 12 ** 2;
    for (let i = 0; i < box.x.length; i++) {
      const far = (box.px[i] - ex) ** 2 + (box.py[i] - ey) ** 2;
      if (far < least) { least = far; best = i; }
    }
    return best;
  }

  canvas.addEventListener("mousemove", (event) => {
    const i = nearest(event), frame = canvas.getBoundingClientRect();
    canvas.style.cursor = i >= 0 ? "pointer" : "default";
    if (i >= 0) tip.show(describe(i), event.clientX - frame.left, event.clientY - frame.top);
    else tip.hide();
  });
  canvas.addEventListener("mouseleave", () => tip.hide());
  canvas.addEventListener("click", (event) => { const i = nearest(event); if (i >= 0) { cursor = i; pick(model, i); } });
  root.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -50, PageUp: 50 }[event.key];
    if (!box || (!step && event.key !== "Enter" && event.key !== " ")) return;
    event.preventDefault(); event.stopPropagation();
    if (!step) { if (cursor >= 0) pick(model, cursor); return; }
    const at = cursor >= 0 ? cursor : get("selected");
    const rank = at >= 0 ? Math.min(Math.max(box.byX.indexOf(at) + step, 0), box.byX.length - 1) : box.byX.length - 1;
    cursor = box.byX[rank];
    live.textContent = describe(cursor);
    draw();
    tip.show(describe(cursor), box.px[cursor], box.py[cursor]);
  });
  root.addEventListener("blur", () => { tip.hide(); cursor = -1; draw(); });

  const redraw = () => { cursor = -1; tip.hide(); draw(); };
  model.on("change:version", redraw);
  model.on("change:selected", draw);
  const stop = watch(root, draw);
  draw();
  return () => { stop(); model.off("change:version", redraw); model.off("change:selected", draw); };
}

export default { render };
