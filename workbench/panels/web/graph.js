// A graph to read, click and arrange: SVG, bottom to top, every node and edge by mouse or by keys, colours of the page's theme.

const SVG = "http://www.w3.org/2000/svg";
const TINT = { head: "#0072B2", kv: "#56B4E9", mlp: "#E69F00", group: "#009E73", embed: "#888888", logits: "#888888" };
const RAISES = "#D55E00", LOWERS = "#0072B2";
const PORT = { q: -1, k: 0, v: 1 };

function render({ model, el }) {
  const { root, tip, live } = stage(el, "graph", "box-sizing:border-box;user-select:none;border:1px solid var(--jp-border-color2,#ccc);border-radius:4px");
  const svg = make("svg");
  svg.style.cssText = "display:block;width:100%;touch-action:none";
  const legend = document.createElement("div");
  legend.style.cssText = "font:12px sans-serif;padding:0 8px 6px;color:var(--jp-ui-font-color2,#616161)";
  root.prepend(svg, legend);
  const get = (name) => model.get(name);
  let nodes = new Map(), edges = [], size = { width: 0, height: 0 }, cursor = null, stepped = -1, sending = null;

  function make(tag, attributes = {}, parent = null) {
    const made = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (parent) parent.appendChild(made);
    return made;
  }

  const px = (node) => 50 + node.x * (size.width - 100);
  const py = (node) => size.height - 34 - node.y * (size.height - 68);
  const pinned = (node) => (node.pinned ? ", pinned" : "");
  const signed = (value) => `${value > 0 ? "+" : ""}${say(value)}`;

  function aboutNode(node) {
    const name = node.label === node.id ? node.id : `${node.label} (${node.id})`;
    return `${name}${pinned(node)}\nin ${signed(node.in)} ${get("unit")} over ${node.n_in} shown edges, out ${signed(node.out)} over ${node.n_out}`;
  }

  function aboutEdge(edge) {
    const spread = edge.sem === null ? "" : ` ± ${say(edge.sem)}`;
    return `${edge.id}\n${signed(edge.score)}${spread} ${get("unit")}${edge.n > 1 ? `, sum of ${edge.n} edges` : ""}`;
  }

  function curve(source, target, port) {
    const x0 = px(source), y0 = py(source) - source.high / 2, x1 = px(target) + (PORT[port] ?? 0) * 13, y1 = py(target) + target.high / 2;
    const rise = y0 - y1, side = x0 + x1 >= size.width ? 1 : -1;
    const bow = side * Math.min(130, Math.max(0, Math.abs(rise) - 90) * 0.35), pull = Math.max(24, Math.abs(rise) * 0.42);
    return `M${x0},${y0} C${x0 + bow},${y0 - pull} ${x1 + bow},${y1 + pull} ${x1},${y1}`;
  }

  function draw() {
    size = { width: Math.max(320, root.clientWidth || 700), height: get("height") };
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
    svg.setAttribute("height", size.height);
    root.setAttribute("aria-label", `${get("alt")} Arrow keys go from node to node, Enter selects, E goes through a node's edges, Shift and arrows move it, P pins it.`);
    const lines = make("g", {}, svg), hits = make("g", {}, svg), boxes = make("g", {}, svg);
    nodes = new Map(get("nodes").map((n) => [n.id, { ...n }]));
    edges = [];
    for (const node of nodes.values()) {
      const named = node.label !== node.id, letters = Math.max(node.label.length, named ? node.id.length : 0);
      node.wide = Math.max(44, 7.1 * letters + 16);
      node.high = named ? 38 : 26;
      drawNode(node, boxes, named);
    }
    for (const pair of get("links")) {
      const [a, b] = pair.map((id) => nodes.get(id));
      if (a && b) {
        const link = { link: true, source: a.id, target: b.id, line: make("path", { fill: "none", "stroke-dasharray": "1 3", "stroke-width": 1.2 }, lines) };
        link.line.style.stroke = "var(--jp-ui-font-color2,#888)";
        edges.push(link);
      }
    }
    for (const edge of get("edges")) edges.push(drawEdge({ ...edge }, lines, hits));
    place();
    mark();
    const both = [...new Set(edges.filter((e) => !e.link).map((e) => e.score >= 0))];
    legend.textContent = both.length ? [both.includes(true) ? "orange, solid: restoring the edge raises the metric" : "", both.includes(false) ? "blue, dashed: lowers it" : "", "wider: larger |score|", edges.some((e) => e.port) ? "into a head, left to right: q, k, v" : "", "bottom: embedding, top: logits"].filter(Boolean).join(" · ") : "";
  }

  function drawNode(node, boxes, named) {
    const box = make("g", { tabindex: -1, role: "button" }, boxes);
    node.box = box;
    box.style.cursor = "grab";
    const shape = { x: -node.wide / 2, y: -node.high / 2, width: node.wide, height: node.high, rx: node.kind === "mlp" ? 2 : node.kind === "group" ? 14 : 8 };
    node.back = make("rect", shape, box);
    node.back.style.fill = "var(--jp-layout-color1,#fff)";
    node.rect = make("rect", { ...shape, "fill-opacity": 0.16, fill: TINT[node.kind], stroke: TINT[node.kind] }, box);
    const write = (text, y, small) => {
      const line = make("text", { x: 0, y, "text-anchor": "middle", "dominant-baseline": "central", "font-size": small ? 10 : 12, "font-family": "sans-serif" }, box);
      line.style.fill = small ? "var(--jp-ui-font-color2,#616161)" : "var(--jp-ui-font-color1,#212121)";
      line.textContent = text;
    };
    write(node.label, named ? -7 : 0, false);
    if (named) write(node.id, 9, true);
    if (node.pinned) make("circle", { cx: node.wide / 2 - 5, cy: -node.high / 2 + 5, r: 3, fill: TINT[node.kind] }, box);
    box.setAttribute("aria-label", aboutNode(node));
    box.addEventListener("pointerenter", (event) => point(event, aboutNode(node)));
    box.addEventListener("pointerleave", () => tip.hide());
    box.addEventListener("pointerdown", (event) => grab(event, node));
  }

  function drawEdge(edge, lines, hits) {
    const colour = edge.score >= 0 ? RAISES : LOWERS;
    edge.line = make("path", { fill: "none", stroke: colour, "stroke-width": 1 + 6 * edge.width, "stroke-linecap": "round" }, lines);
    if (edge.score < 0) edge.line.setAttribute("stroke-dasharray", `${6 + 6 * edge.width} ${5 + 6 * edge.width}`);
    edge.hit = make("path", { fill: "none", stroke: "transparent", "stroke-width": Math.max(10, 4 + 6 * edge.width) }, hits);
    edge.hit.style.cursor = "pointer";
    edge.hit.addEventListener("pointermove", (event) => point(event, aboutEdge(edge)));
    edge.hit.addEventListener("pointerleave", () => tip.hide());
    edge.hit.addEventListener("click", () => choose([], edge.id));
    return edge;
  }

  function place() {
    for (const node of nodes.values()) node.box.setAttribute("transform", `translate(${px(node)},${py(node)})`);
    for (const edge of edges) {
      const path = curve(nodes.get(edge.source), nodes.get(edge.target), edge.port);
      edge.line.setAttribute("d", path);
      if (edge.hit) edge.hit.setAttribute("d", path);
    }
  }

  // which nodes and edges are chosen: theirs stay bright
  function mark() {
    const chosen = new Set(get("selected")), one = get("edge"), any = chosen.size > 0 || one !== "";
    for (const node of nodes.values()) {
      const on = chosen.has(node.id);
      node.rect.style.strokeWidth = on ? 3.5 : node.id === cursor ? 2.5 : 1.4;
      node.rect.style.stroke = on || node.id === cursor ? "var(--jp-brand-color1,#1976d2)" : "";
      node.box.setAttribute("aria-pressed", on);
    }
    for (const edge of edges) {
      const on = edge.id === one || chosen.has(edge.source) || chosen.has(edge.target);
      edge.line.style.opacity = edge.link ? 0.8 : any ? (on ? 1 : 0.12) : 0.35 + 0.6 * edge.width;
    }
  }

  function choose(list, edge) {
    model.set("selected", list);
    model.set("edge", edge);
    model.save_changes();
    mark();
  }

  function pick(node, add) {
    cursor = node.id;
    const now = get("selected");
    choose(!add ? [node.id] : now.includes(node.id) ? now.filter((id) => id !== node.id) : [...now, node.id], "");
  }

  function tell(event) {
    model.set("event", { ...event, n: (get("event").n || 0) + 1 });
    model.save_changes();
  }

  function point(event, text) {
    const frame = root.getBoundingClientRect();
    tip.show(text, event.clientX - frame.left, event.clientY - frame.top);
  }

  const clamp = (value) => Math.round(Math.min(1, Math.max(0, value)) * 1e4) / 1e4;

  function grab(event, node) {
    event.preventDefault();
    root.focus({ preventScroll: true });
    const from = { x: event.clientX, y: event.clientY, nodeX: node.x, nodeY: node.y };
    let moved = false;
    node.box.setPointerCapture(event.pointerId);
    const move = (now) => {
      const dx = now.clientX - from.x, dy = now.clientY - from.y;
      if (!moved && Math.hypot(dx, dy) < 5) return;
      moved = true;
      tip.hide();
      node.x = clamp(from.nodeX + dx / (size.width - 100));
      node.y = clamp(from.nodeY - dy / (size.height - 68));
      place();
    };
    const drop = (now) => {
      node.box.removeEventListener("pointermove", move);
      node.box.removeEventListener("pointerup", drop);
      node.box.removeEventListener("pointercancel", drop);
      if (moved) tell({ type: "move", node: node.id, x: node.x, y: node.y });
      else pick(node, now.shiftKey || now.ctrlKey || now.metaKey);
    };
    node.box.addEventListener("pointermove", move);
    node.box.addEventListener("pointerup", drop);
    node.box.addEventListener("pointercancel", drop);
  }

  // the nearest node in a direction, sideways distance counting double
  function nearest(here, dx, dy) {
    let best = null, least = Infinity;
    for (const node of nodes.values()) {
      const along = (px(node) - px(here)) * dx + (py(node) - py(here)) * dy;
      const across = Math.abs((px(node) - px(here)) * dy) + Math.abs((py(node) - py(here)) * dx);
      const cost = along + 2 * across;
      if (node !== here && along > 4 && cost < least) { best = node; least = cost; }
    }
    return best;
  }

  const STEPS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
  root.addEventListener("keydown", (event) => {
    const step = STEPS[event.key], key = event.key.toLowerCase();
    if (!nodes.size || !(step || ["enter", " ", "e", "p", "escape"].includes(key))) return;
    event.preventDefault();
    event.stopPropagation();
    const here = nodes.get(cursor);
    if (key === "escape") { cursor = null; stepped = -1; tip.hide(); choose([], ""); return; }
    if (!here) { cursor = nodes.keys().next().value; say_(nodes.get(cursor)); mark(); return; }
    if (step && event.shiftKey) {
      here.x = clamp(here.x + 0.02 * step[0]);
      here.y = clamp(here.y - 0.02 * step[1]);
      place();
      clearTimeout(sending);
      sending = setTimeout(() => tell({ type: "move", node: here.id, x: here.x, y: here.y }), 400);
    } else if (step) {
      const next = nearest(here, ...step);
      if (next) { cursor = next.id; stepped = -1; say_(next); mark(); }
    } else if (key === "e") {
      const own = edges.filter((e) => !e.link && (e.source === here.id || e.target === here.id));
      if (own.length) { stepped = (stepped + 1) % own.length; choose([], own[stepped].id); live.textContent = aboutEdge(own[stepped]); tip.show(aboutEdge(own[stepped]), px(here), py(here)); }
    } else if (key === "p") tell({ type: "pin", node: here.id });
    else pick(here, event.shiftKey);
  });
  root.addEventListener("blur", () => { tip.hide(); });
  svg.addEventListener("click", (event) => { if (event.target === svg) choose([], ""); });

  function say_(node) {
    live.textContent = aboutNode(node);
    tip.show(aboutNode(node), px(node), py(node));
  }

  model.on("change:version", draw);
  model.on("change:selected", mark);
  model.on("change:edge", mark);
  const stop = watch(root, draw);
  draw();
  return () => { clearTimeout(sending); stop(); model.off("change:version", draw); model.off("change:selected", mark); model.off("change:edge", mark); };
}

export default { render };
