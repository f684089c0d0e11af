"""The numbers a figure draws, read back from the figure itself, so that what is exported is what is seen.

One row per drawn mark: a point of a line or bar, a cell of a heat map, a link of a Sankey diagram.
"""

import base64
import html
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

_PER_MARK = ("text", "customdata")


def drawn_data(figure: go.Figure) -> pd.DataFrame:
    """Every mark of every trace.

    Returns:
        Columns trace (its name, or its number), type, x, y and, where drawn, z, error_plus, error_minus, text, lower,
        upper, source, target, value; nan and None where a trace has no such number.
    """
    frames = [_trace(number, trace) for number, trace in enumerate(figure.to_plotly_json().get("data", []))]
    frames = [f for f in frames if len(f)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["trace", "type"])


def _trace(number: int, trace: dict[str, Any]) -> pd.DataFrame:
    kind = trace.get("type", "scatter")
    columns: dict[str, Any]
    if kind in ("heatmap", "contour"):
        z = _array(trace.get("z"))
        z = z.reshape(len(z), -1) if z.size else np.empty((0, 0))
        rows, cols = (
            np.arange(z.shape[i]) if trace.get(k) is None else _array(trace[k]) for i, k in ((0, "y"), (1, "x"))
        )
        columns = {"x": np.tile(cols, len(rows)), "y": np.repeat(rows, len(cols)), "z": z.ravel()}
        if trace.get("text") is not None and np.size(_array(trace["text"])) == z.size:
            columns["text"] = _array(trace["text"]).ravel()
    elif kind == "sankey":
        link, labels = trace.get("link", {}), list(trace.get("node", {}).get("label") or [])
        named = lambda ids: [labels[int(i)] if int(i) < len(labels) else int(i) for i in _array(ids)]  # noqa: E731
        columns = {
            "source": named(link.get("source")),
            "target": named(link.get("target")),
            "value": _array(link.get("value")),
        }
    elif kind in ("histogram", "box", "violin"):
        columns = {key: _array(trace[key]) for key in ("x", "y") if trace.get(key) is not None}
    else:
        columns = {key: _array(trace[key]) for key in ("x", "y", "z", "values", "labels") if trace.get(key) is not None}
        n = max((len(v) for v in columns.values()), default=0)
        for key in ("x", "y"):
            if key not in columns and columns:
                columns[key] = np.arange(n)
        error = trace.get("error_y") or {}
        for key, name in (("array", "error_plus"), ("arrayminus", "error_minus")):
            if error.get(key) is not None:
                columns[name] = _array(error[key])
        if trace.get("text") is not None and not isinstance(trace["text"], str) and len(trace["text"]) == n:
            columns["text"] = _array(trace["text"])
    lengths = {len(v) for v in columns.values()}
    if len(lengths) > 1:
        least = min(lengths)
        columns = {key: value[:least] for key, value in columns.items()}
    frame = pd.DataFrame(columns)
    frame.insert(0, "trace", html.unescape(trace.get("name") or str(number)))
    frame.insert(1, "type", kind)
    return frame


def _array(values: Any) -> np.ndarray:
    """A list, an array or plotly's base64 form as a numpy array."""
    if values is None:
        return np.empty(0)
    if isinstance(values, dict) and "bdata" in values:
        flat = np.frombuffer(base64.b64decode(values["bdata"]), np.dtype(values["dtype"]))
        return flat.reshape([int(n) for n in str(values["shape"]).split(",")]) if "shape" in values else flat
    found = np.asarray(values)
    if found.dtype.kind in "OU":  # labels are HTML: what is seen is what it stands for
        seen = [html.unescape(value) if isinstance(value, str) else value for value in found.ravel()]
        found = np.array(seen, dtype=object).reshape(found.shape)
    return found if found.ndim else found[None]
