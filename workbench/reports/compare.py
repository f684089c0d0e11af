"""Two Results of one analysis side by side: claims, the numbers behind them with intervals, and figures laid over
each other.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from markupsafe import Markup

from workbench.core.claims import Claim, check
from workbench.core.errors import BadData
from workbench.core.result import Result
from workbench.primitives.score.statistics import bootstrap_interval
from workbench.views import theme

from .render import figure_html
from .sections import Block, Section

SAMPLED = (
    "example",
    "input",
    "seed",
    "prompt",
    "draw",
)  # dimensions along which numbers are drawn, so that a mean has an interval
N_DRAWS, LEVEL = 2000, 0.95


@dataclass(frozen=True)
class Comparison:
    """claims: one row a claim with both numbers and verdicts. numbers: one row per measured array, B - A with its
    interval.
    figures: {name: A and B in one figure}. notes: what differs between the two runs besides the numbers."""

    stem: str
    claims: pd.DataFrame
    numbers: pd.DataFrame
    figures: dict[str, go.Figure]
    notes: tuple[str, ...]


def compare(
    a: Result, b: Result, claims: Sequence[Claim], figures_a: dict[str, go.Figure], figures_b: dict[str, go.Figure]
) -> Comparison:
    """Compare two Results of one stem.

    Raises:
        BadData: if they are of different analyses.
    """
    if a.stem != b.stem:
        raise BadData(f"A is a result of {a.stem} and B of {b.stem}; two runs of one analysis can be compared")
    rows = []
    for one, other in zip(check(a, claims).lines, check(b, claims).lines, strict=True):
        rows.append(
            {
                "kind": one.claim.kind,
                "statement": one.claim.text,
                "A": one.measured,
                "B": other.measured,
                "B - A": other.measured - one.measured,
                "expected": one.expected,
                "verdict A": one.words,
                "verdict B": other.words,
                "agree": one.verdict == other.verdict,
            }
        )
    shared = [name for name in figures_a if name in figures_b]
    overlaid = {name: overlay(figures_a[name], figures_b[name], a, b) for name in shared}
    return Comparison(a.stem, pd.DataFrame(rows), numbers(a.data, b.data), overlaid, tuple(_differences(a, b)))


def numbers(a: xr.Dataset, b: xr.Dataset) -> pd.DataFrame:
    """Means of every numeric array that both have with the same places, and the interval of their difference.

    Returns:
        One row per array: variable, unit, n (draws of A and B), A, B, difference (B - A), low, high (95 % bootstrap),
        paired. Where the draws are the same ones (equal labels), their differences are resampled together; low and high
        are nan where an array has no dimension of draws.
    """
    rows = []
    for name, left in a.data_vars.items():
        if name not in b.data_vars or left.dtype.kind not in "fiu" or b[name].dims != left.dims:
            continue
        right = b[name]
        along = next((dim for dim in left.dims if dim in SAMPLED), None)
        others = [dim for dim in left.dims if dim != along]
        if any(not np.array_equal(left[dim].values, right[dim].values) for dim in others):
            continue
        x, y = (v.mean(others) if others else v for v in (left.astype(float), right.astype(float)))
        paired = along is not None and np.array_equal(x[along].values, y[along].values)
        low, high = _interval(x.values, y.values, paired) if along is not None else (float("nan"), float("nan"))
        n = f"{x.size} and {y.size}"
        rows.append(
            {
                "variable": name,
                "unit": left.attrs.get("unit", ""),
                "n": n,
                "A": float(x.mean()),
                "B": float(y.mean()),
                "difference": float(y.mean() - x.mean()),
                "low": low,
                "high": high,
                "paired": paired,
            }
        )
    return pd.DataFrame(rows)


def _interval(x: np.ndarray, y: np.ndarray, paired: bool) -> tuple[float, float]:
    if paired:
        gaps = (y - x)[np.isfinite(y - x)]
        return (
            bootstrap_interval(gaps, level=LEVEL, n_draws=N_DRAWS, seed=0)
            if len(gaps) > 1
            else (float("nan"), float("nan"))
        )
    x, y = x[np.isfinite(x)], y[np.isfinite(y)]
    if min(len(x), len(y)) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(0)
    drawn = rng.choice(y, (N_DRAWS, len(y))).mean(1) - rng.choice(x, (N_DRAWS, len(x))).mean(1)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def overlay(a: go.Figure, b: go.Figure, of_a: Result, of_b: Result) -> go.Figure:
    """Lines and bars of both in one figure, B's dashed and paler; heat maps as B - A where their places agree."""
    if len(a.data) == len(b.data) == 1 and a.data[0].type == b.data[0].type == "heatmap":
        return _heat_difference(a, b, of_a, of_b)
    both = go.Figure(layout=a.layout)
    for trace in a.data:
        both.add_trace(type(trace)(trace.to_plotly_json() | {"name": f"A: {trace.name or ''}"}))
    for trace in b.data:
        copy = type(trace)(trace.to_plotly_json() | {"name": f"B: {trace.name or ''}", "opacity": 0.65})
        if trace.type == "scatter":
            (
                copy.update(line={"dash": "dash"})
                if (trace.line.dash or "solid") == "solid"
                else copy.update(line={"dash": "dot"})
            )
        both.add_trace(copy)
    both.update_layout(
        showlegend=True,
        title=f"{a.layout.title.text or ''} - A solid, B dashed",
        meta={"alt": f"Two runs in one figure. A: {_alt(a)} B: {_alt(b)}"},
    )
    return _captioned(both, of_a, of_b)


def _heat_difference(a: go.Figure, b: go.Figure, of_a: Result, of_b: Result) -> go.Figure:
    one, other = (np.asarray(f.data[0].z, float) for f in (a, b))
    same = one.shape == other.shape and all(
        list(p if p is not None else []) == list(q if q is not None else [])
        for p, q in ((a.data[0].x, b.data[0].x), (a.data[0].y, b.data[0].y))
    )
    if not same:
        figure = go.Figure(b)
        figure.update_layout(title=f"{b.layout.title.text or ''} - B alone: its places are not those of A")
        return _captioned(figure, of_a, of_b)
    figure = go.Figure(a)
    gap = other - one
    at = theme.largest_at(gap)
    largest = "no cell of which has a value in both" if at is None else f"largest size {abs(gap[at]):.3g}"
    figure.data[0].update(
        z=gap, colorscale=theme.SIGNED, reversescale=True, text=None, texttemplate=None, **theme.signed_limits(gap)
    )
    figure.update_layout(
        title=f"{a.layout.title.text or ''} - B minus A",
        meta={"alt": f"Difference of two maps, {largest}. A: {_alt(a)}"},
    )
    return _captioned(figure, of_a, of_b)


def _captioned(figure: go.Figure, a: Result, b: Result) -> go.Figure:
    of_a, of_b = (theme.label(result.provenance.short()) for result in (a, b))
    for note in figure.layout.annotations:
        if note.text in (of_a, of_b):
            note.update(text=f"A {of_a}<br>B {of_b}")
    return figure


def _alt(figure: go.Figure) -> str:
    meta = figure.layout.meta
    return meta.get("alt", "") if isinstance(meta, dict) else ""


def _differences(a: Result, b: Result) -> list[str]:
    found = [
        f"spec.{key}: {a.spec.get(key)!r} in A, {b.spec.get(key)!r} in B"
        for key in sorted(set(a.spec) | set(b.spec))
        if a.spec.get(key) != b.spec.get(key)
    ]
    for key in ("name", "weights", "dtype", "device", "processing"):
        one, other = a.provenance.model.get(key), b.provenance.model.get(key)
        if one != other:
            found.append(f"model {key}: {str(one)[:40]} in A, {str(other)[:40]} in B")
    commits = [str(r.provenance.git.get("commit") or "unknown")[:8] for r in (a, b)]
    return found + ([f"commit: {commits[0]} in A, {commits[1]} in B"] if commits[0] != commits[1] else [])


def comparison_section(found: Comparison) -> Section:
    """A comparison as a Section, for every kind of document."""

    def table(frame):
        return (
            frame.to_html(index=False, border=0, float_format=lambda v: f"{v:.3g}", na_rep="-")
            if len(frame)
            else "<p>none in common</p>"
        )

    line = Markup("<li>{}</li>")
    notes = Markup("").join(line.format(note) for note in found.notes or ["nothing but the numbers"])
    blocks = [
        Block("text", Markup("<h1>{}: two runs compared</h1>").format(found.stem), 1),
        Block("text", f"<h2>What differs</h2><ul>{notes}</ul>", 2),
        Block("text", "<h2>Claims and controls</h2>", 2),
        Block("output", f"<div class=out>{table(found.claims)}</div>"),
        Block("text", "<h2>Means and the 95 % interval of their difference</h2>", 2),
        Block("output", f"<div class=out>{table(found.numbers)}</div>"),
        *[Block("figure", figure_html(json.loads(figure.to_json()))) for figure in found.figures.values()],
    ]
    return Section(f"{found.stem}: two runs compared", found.stem, tuple(blocks))
