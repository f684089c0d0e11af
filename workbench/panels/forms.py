"""Forms made from a Spec: one control per field, from its type, help, unit, bounds and choices. Nobody writes one by
hand.
"""

import html
import typing
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import ipywidgets as widgets

from workbench.core.spec import Spec


class SpecForm(widgets.VBox):
    """Controls for every field of a Spec; `spec()` reads them back, with the Spec's own checks.

    Numbers, flags and choices get their own control; lists and nested specs are edited as text, dotted names and all.
    Beneath them, folded away, is what each field means.

    Args:
        only: these fields; all if not given. without: no field whose name, or the part before its dot, is here.
    """

    def __init__(self, spec: Spec, only: Sequence[str] | None = None, without: Sequence[str] = ()):
        self._start = spec
        self.controls: dict[str, widgets.Widget] = {}
        about = []
        for name, (value, hint, meta) in _flat(spec).items():
            if (only is None or name in only) and not {name, name.partition(".")[0]} & set(without):
                self.controls[name] = _control(name, value, hint, meta)
                about.append(f"<tr><td><b>{html.escape(name)}</b></td><td>{html.escape(_meaning(meta))}</td></tr>")
        self.meaning = widgets.Accordion(
            [widgets.HTML(f"<table style='line-height:1.35'>{''.join(about)}</table>")],
            titles=("What the fields mean",),
            selected_index=None,
        )
        columns = widgets.Layout(grid_template_columns="repeat(auto-fill, 420px)", width="100%")
        super().__init__([widgets.GridBox(list(self.controls.values()), layout=columns), self.meaning])

    def spec(self) -> Spec:
        """The Spec the controls show now.

        Raises:
            WorkbenchError: if a control holds a value the Spec refuses.
        """
        shown = {name: _shown(value) for name, (value, _, _) in _flat(self._start).items()}
        now = {
            name: control.value if isinstance(control.value, str) else _shown(control.value)
            for name, control in self.controls.items()
        }
        return self._start.with_strings({name: text for name, text in now.items() if text != shown[name]})


def _flat(spec: Spec, before: str = "") -> dict[str, tuple[Any, Any, dict]]:
    found: dict[str, tuple[Any, Any, dict]] = {}
    hints = typing.get_type_hints(type(spec))
    for field in fields(spec):
        value = getattr(spec, field.name)
        if isinstance(value, Spec):
            found |= _flat(value, f"{before}{field.name}.")
        else:
            found[before + field.name] = (value, hints[field.name], dict(field.metadata))
    return found


def _shown(value: Any) -> str:
    """A value as the text `Spec.with_strings` reads."""
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ",".join(_shown(v) for v in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _meaning(meta: dict) -> str:
    """Help, bounds and choices of a field in words."""
    bounds = " and ".join(
        f"{word} {meta[key]:g}" for key, word in (("ge", "at least"), ("le", "at most")) if meta.get(key) is not None
    )
    parts = [
        meta.get("help", ""),
        f"in {meta['unit']}" if meta.get("unit") else "",
        bounds,
        f"one of {', '.join(meta['choices'])}" if meta.get("choices") else "",
    ]
    return "; ".join(part for part in parts if part)


def _control(name: str, value: Any, hint: Any, meta: dict) -> widgets.Widget:
    label = f"{name} ({meta['unit']})" if meta.get("unit") else name
    look = {
        "description": label,
        "tooltip": _meaning(meta) or label,
        "style": {"description_width": "190px"},
        "layout": widgets.Layout(width="410px"),
    }
    if meta.get("choices") and not isinstance(value, tuple):
        return widgets.Dropdown(options=list(meta["choices"]), value=value, **look)
    if hint is bool:
        return widgets.Checkbox(value=value, **look | {"indent": True})
    low, high = meta.get("ge"), meta.get("le")
    if hint in (int, float) and low is not None and high is not None:
        kind = widgets.BoundedIntText if hint is int else widgets.BoundedFloatText
        return kind(value=value, min=low, max=high, **look)
    if hint in (int, float):
        return (widgets.IntText if hint is int else widgets.FloatText)(value=value, **look)
    return widgets.Text(value=_shown(value), continuous_update=False, **look)
