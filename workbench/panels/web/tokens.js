// A line of tokens as buttons, coloured by a number each; pointing at one can colour the others by a row of a matrix.

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "workbench-tokens";
  root.style.cssText = "position:relative;line-height:2;font:14px/2 monospace";
  el.appendChild(root);
  const tip = tooltip(root);
  const get = (name) => model.get(name);

  function paint(buttons, values) {
    const low = get("low"), span = get("high") - low || 1, signed = get("signed"), look = theme(root);
    buttons.forEach((button, i) => {
      const value = values[i], filled = Number.isFinite(value) ? colour((value - low) / span, signed) : null;
      button.style.background = filled ? css(filled) : "transparent";
      button.style.color = filled ? ink(filled) : look.ink;
      button.style.outline = i === get("selected") ? `3px solid ${look.accent}` : `1px solid ${look.line}`;
    });
  }

  function draw() {
    root.querySelectorAll("button").forEach((b) => b.remove());
    const tokens = get("tokens"), ids = get("ids"), own = floats(get("values")), matrix = floats(get("matrix")), unit = get("unit");
    const n = tokens.length;
    const row = (i) => (matrix.length === n * n ? matrix.slice(i * n, (i + 1) * n) : own);
    root.setAttribute("aria-label", get("alt"));
    root.setAttribute("role", "group");
    const buttons = tokens.map((token, i) => {
      const button = document.createElement("button");
      button.textContent = token.replace(/ /g, "·").replace(/\n/g, "↵") || "∅";
      button.style.cssText = "font:inherit;line-height:1.4;border:0;border-radius:3px;margin:0 3px 0 0;padding:1px 4px;cursor:pointer";
      const about = `position ${i}, id ${ids[i] ?? "?"}${Number.isFinite(own[i]) ? `, ${say(own[i])} ${unit}` : ""}`;
      button.setAttribute("aria-label", `${token}, ${about}`);
      const enter = () => { tip.show(`${token}\n${about}`, button.offsetLeft, button.offsetTop + 14); if (matrix.length) paint(buttons, row(i)); };
      const leave = () => { tip.hide(); paint(buttons, shown()); };
      button.addEventListener("mouseenter", enter); button.addEventListener("focus", enter);
      button.addEventListener("mouseleave", leave); button.addEventListener("blur", leave);
      button.addEventListener("click", () => { model.set("selected", i); model.save_changes(); });
      root.appendChild(button);
      return button;
    });
    const shown = () => (matrix.length && get("selected") >= 0 ? row(get("selected")) : own);
    root.repaint = () => paint(buttons, shown());
    root.repaint();
  }

  const repaint = () => root.repaint();
  model.on("change:version", draw);
  model.on("change:selected", repaint);
  const stop = watch(root, repaint);
  draw();
  return () => { stop(); model.off("change:version", draw); model.off("change:selected", repaint); };
}

export default { render };
