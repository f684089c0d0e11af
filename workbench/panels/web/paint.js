// What the drawn widgets share: colour scales, the theme of the page around them, the element they stand in, and the little tooltip.
// Scales are colour-blind-safe: viridis for unsigned numbers, blue - neutral - red for signed ones, 0 in the middle.

const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"];
const SIGNED = ["#053061", "#2166ac", "#4393c3", "#92c5de", "#f7f7f7", "#f4a582", "#d6604d", "#b2182b", "#67001f"];
const parse = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const STOPS = { unsigned: VIRIDIS.map(parse), signed: SIGNED.map(parse) };

// share in [0, 1] -> [r, g, b]
export function colour(share, signed) {
  const stops = signed ? STOPS.signed : STOPS.unsigned;
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  return stops[low].map((c, i) => Math.round(c + (stops[low + 1][i] - c) * (at - low)));
}

export const css = ([r, g, b]) => `rgb(${r},${g},${b})`;

// black or white, whichever reads better on a colour
export const ink = ([r, g, b]) => (0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#111" : "#fff");

// ink and paper of the page: JupyterLab's variables, then what the browser prefers
export function theme(el) {
  const style = getComputedStyle(el);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const read = (name, fallback) => style.getPropertyValue(name).trim() || fallback;
  return {
    ink: read("--jp-ui-font-color1", dark ? "#e0e0e0" : "#212121"),
    soft: read("--jp-ui-font-color2", dark ? "#a0a0a0" : "#616161"),
    paper: read("--jp-layout-color0", dark ? "#111" : "#fff"),
    line: read("--jp-border-color2", dark ? "#444" : "#ccc"),
    accent: read("--jp-brand-color1", "#1976d2"),
  };
}

// calls back when the lab changes its theme or the element its width; returns the function that stops it
export function watch(el, redraw) {
  let width = 0;
  const sized = new ResizeObserver(() => {
    if (Math.abs(el.clientWidth - width) > 4) { width = el.clientWidth; redraw(); }
  });
  sized.observe(el);
  const themed = new MutationObserver(redraw);
  themed.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-name", "data-jp-theme-light"] });
  return () => { sized.disconnect(); themed.disconnect(); };
}

export function tooltip(el) {
  const tip = document.createElement("div");
  tip.style.cssText = "position:absolute;pointer-events:none;display:none;z-index:5;padding:2px 8px;border-radius:4px;font:13px sans-serif;white-space:pre;background:#222;color:#fff";
  el.appendChild(tip);
  return {
    show(text, x, y) {
      tip.textContent = text;
      tip.style.display = "block";
      tip.style.left = `${Math.max(0, Math.min(x + 12, el.clientWidth - tip.offsetWidth - 4))}px`;
      tip.style.top = `${y + 14}px`;
    },
    hide() { tip.style.display = "none"; },
  };
}

// a line that screen readers speak when it changes
export function spoken(el) {
  const live = document.createElement("div");
  live.setAttribute("aria-live", "polite");
  live.style.cssText = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)";
  el.appendChild(live);
  return live;
}

// what a drawn widget stands in: an element that takes the keyboard, its tooltip and its spoken line
export function stage(el, name, style = "") {
  const root = document.createElement("div");
  root.className = `workbench-${name}`;
  root.tabIndex = 0;
  root.setAttribute("role", "application");
  root.style.cssText = `position:relative;width:100%;outline-offset:2px;${style}`;
  el.appendChild(root);
  return { root, tip: tooltip(root), live: spoken(root) };
}

// a stage with a canvas to draw on
export function easel(el, name) {
  const found = stage(el, name), canvas = document.createElement("canvas");
  found.root.prepend(canvas);
  return { ...found, canvas };
}

// tell the kernel what was chosen; the count lets it see a second click on the same place
export function pick(model, selected) {
  model.set("selected", selected);
  model.set("clicks", model.get("clicks") + 1);
  model.save_changes();
}

export function say(value) {
  if (!Number.isFinite(value)) return "no value";
  const size = Math.abs(value);
  return size !== 0 && (size < 0.001 || size >= 10000) ? value.toExponential(2) : value.toFixed(3);
}

export const floats = (view) => new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));

// a canvas as sharp as the screen
export function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  return pen;
}
