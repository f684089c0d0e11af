"""The house look of figures: one plotly template, colour-blind-safe, readable on a slide and in print.

Colours are Okabe and Ito's (order fixed by use, not by appearance); signed maps are centred at 0 and use a diverging
scale, unsigned ones start at their own zero. `finish` puts title, alt text and the provenance line on a figure.
"""

import html
import re
from collections.abc import Callable, Mapping

import numpy as np
import plotly.graph_objects as go
from plotly.basedatatypes import BaseTraceType

from workbench.core.errors import BadData
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.core.text import readable

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
)
GREY = "#9a9a9a"
UNSIGNED, SIGNED = "Viridis", "RdBu"
WIDTH, HEIGHT = 960, 560

TEMPLATE = go.layout.Template(
    layout=go.Layout(
        colorway=[BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW],
        font={"family": "Inter, Helvetica, Arial, sans-serif", "size": 16, "color": "#222222"},
        title={"x": 0.01, "xanchor": "left", "font": {"size": 20}},
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        xaxis={
            "showgrid": True,
            "gridcolor": "#e6e6e6",
            "linecolor": "#444444",
            "ticks": "outside",
            "zeroline": False,
            "automargin": True,
        },
        yaxis={
            "showgrid": True,
            "gridcolor": "#e6e6e6",
            "linecolor": "#444444",
            "ticks": "outside",
            "zeroline": False,
            "automargin": True,
        },
        legend={"font": {"size": 14}, "bgcolor": "rgba(0,0,0,0)"},
        margin={"l": 80, "r": 30, "t": 70, "b": 105},
    )
)


NOTHING = "Nothing is drawn: no value is a finite number."


def label(text: object) -> str:
    """Words that are not ours, such as a token, for a figure: plotly reads labels, titles and notes as HTML, in which
    <s> and </s> vanish. Every character is shown, line feeds and tabs as ↵ and ⇥.
    """
    shown = readable(str(text)).replace("\n", "↵").replace("\t", "⇥")
    return html.escape(shown, quote=False)


def largest_at(values: object) -> tuple[int, ...] | None:
    """Index of the finite value of the largest size; None where there is none."""
    sizes = np.abs(np.asarray(values, float))
    if not np.isfinite(sizes).any():
        return None
    where = np.unravel_index(int(np.argmax(np.where(np.isfinite(sizes), sizes, -1.0))), sizes.shape)
    return tuple(int(i) for i in where)


def finish(figure: go.Figure, title: str, alt: str, provenance: Provenance) -> go.Figure:
    """Give a figure its template, size, title, alt text (in layout.meta) and, under it, where it came from. One whose
    values are all NaN says so.

    Args:
        title: as plotly reads it, with what is not ours through `label`. alt: plain text.
    """
    if _is_blank(figure):
        alt = f"{alt} {NOTHING}"
        middle = {"xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5, "showarrow": False, "bgcolor": "#ffffff"}
        figure.add_annotation(text=NOTHING, **middle)
    figure.update_layout(
        template=TEMPLATE, title=title, width=WIDTH, height=HEIGHT, meta={"alt": alt, "provenance": provenance.short()}
    )
    figure.add_annotation(
        text=label(provenance.short()),
        xref="paper",
        yref="paper",
        x=0,
        y=0,
        yshift=-88,
        xanchor="left",
        yanchor="top",
        showarrow=False,
        font={"size": 11, "color": "#777777"},
    )
    return figure


def _is_blank(figure: go.Figure) -> bool:
    """Whether there are values and none is a finite number: the colours of maps where there are some, else the lengths
    of bars and the heights of lines."""
    maps = [trace for trace in figure.data if "z" in trace]
    known = [values for values in map(_values, maps or figure.data) if values.size]
    return bool(known) and not any(np.isfinite(values).any() for values in known)


def _values(trace: BaseTraceType) -> np.ndarray:
    """The numbers that a trace draws; none for words."""
    name = "z" if "z" in trace else "x" if "orientation" in trace and trace.orientation == "h" else "y"
    given = np.asarray(trace[name] if name in trace and trace[name] is not None else [])
    return given.astype(float) if given.dtype.kind in "fiub" else np.empty(0)


def drawable(result: Result, figures: Mapping[str, Callable[[Result], go.Figure]]) -> dict[str, go.Figure]:
    """The figures that this Result has the data for; those whose data are missing (BadData) are skipped."""
    found = {}
    for name, draw in figures.items():
        try:
            found[name] = draw(result)
        except BadData:
            continue
    return found


def below_tokens(figure: go.Figure) -> go.Figure:
    """Room for words that stand upright under the horizontal axis: the line of provenance goes below them."""
    figure.layout.annotations[-1].update(yshift=-165)
    return figure.update_layout(height=HEIGHT + 80, margin={"b": 185}).update_xaxes(
        tickangle=-90, tickfont={"size": 13}
    )


def signed_limits(values: object) -> dict[str, float]:
    """Arguments for a heat map whose zero is the middle of the scale."""
    at = largest_at(values)
    top = (float(np.abs(np.asarray(values, float)[at])) if at is not None else 0.0) or 1.0
    return {"zmin": -top, "zmax": top, "zmid": 0.0}


def on_any_paper(figure: go.Figure) -> go.Figure:
    """A copy for a page whose background is not ours: transparent, as wide as its place, with a mid grey ink that reads
    on light (4.5 : 1) and dark (4.6 : 1)."""
    drawn, ink = figure.to_dict(), "#767676"
    layout, clear = drawn["layout"], "rgba(0,0,0,0)"
    layout.pop("width", None)
    layout |= {
        "paper_bgcolor": clear,
        "plot_bgcolor": clear,
        "font": layout.get("font", {}) | {"color": ink},
        "autosize": True,
    }
    lines = {"color": ink, "gridcolor": "rgba(128,128,128,.25)", "linecolor": ink}
    for name in ["xaxis", "yaxis", *(key for key in layout if re.fullmatch(r"[xy]axis\d+", key))]:
        layout[name] = layout.get(name, {}) | lines
    return go.Figure(drawn)
