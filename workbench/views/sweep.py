"""Figures and tables of sweeps: what replacing each place did, as a signed map centred at 0, and estimates beside it.

One reading throughout: 0 means that replacing a place did nothing, 1 that the metric went all the way from the base run
to the source run. Where these two hardly differ there is no such share, and the change itself is shown.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from workbench.core.result import Result

from . import theme

SMALL_GAP = 1e-2  # of the larger of the two values: below it a share divides by what rounding and chance leave
ROUNDING = 1e-5  # of the larger of the two values: what float32 may leave of a zero
AXIS = {
    "pos": "Position",
    "head": "Head",
    "kv_head": "Key/value head",
    "neuron": "Neuron",
    "part": "Part",
    "layer": "Layer",
}


# ---- numbers ----


@dataclass(frozen=True)
class Baseline:
    """Means over examples of the metric in the unpatched base run and in the source run, in `unit`."""

    metric: str
    unit: str
    base: float
    source: float

    @property
    def gap(self) -> float:
        return self.source - self.base

    @property
    def is_degenerate(self) -> bool:
        """Whether the gap is too small to divide by."""
        return not abs(self.gap) > SMALL_GAP * max(abs(self.base), abs(self.source)) + 1e-9

    def text(self, source: str = "clean") -> str:
        """One line; `source` says which of the clean and the corrupted run was the source."""
        clean, corrupted = (self.source, self.base) if source == "clean" else (self.base, self.source)
        numbers = (
            f"{self.metric}: clean {clean:.4g} {self.unit}, corrupted {corrupted:.4g} {self.unit}, gap"
            f" {clean - corrupted:.4g} {self.unit}"
        )
        if not self.is_degenerate:
            return numbers
        return (
            f"{numbers}. The two runs agree within {SMALL_GAP:.0%}, so no share of the gap can be formed: the map shows"
            " the change itself"
        )


def baseline(result: Result) -> Baseline | None:
    """The two ends of a sweep; None where nothing was a source run (zero, mean)."""
    data = result.data
    if "source_value" not in data:
        return None
    return Baseline(
        data.attrs["metric"],
        data["base_value"].attrs.get("unit", ""),
        float(data["base_value"].mean()),
        float(data["source_value"].mean()),
    )


def change(result: Result) -> xr.DataArray:
    """What is drawn: mean over examples of the metric's change, as a share of source minus base where there is a gap to
    share.

    The share is a ratio of means, so one example with a small gap cannot dominate it.
    """
    data = result.data
    return _shown(result, (data["value"] - data["base_value"]).mean("example"), data["value"].attrs["unit"])


def attributed_change(result: Result, attributed: Result) -> xr.DataArray:
    """The estimates of the cells of `result` on its scale, dims in its order."""
    exact = change(result)
    score = attributed.data["score"].mean("example")
    return (
        _shown(result, score, attributed.data["score"].attrs["unit"])
        .transpose(*exact.dims)
        .assign_attrs(long_name=f"Attributed: {exact.attrs['long_name'].lower()}")
    )


def _shown(result: Result, moved: xr.DataArray, unit: str) -> xr.DataArray:
    ends, metric = baseline(result), result.data.attrs["metric"]
    if ends is None or ends.is_degenerate:
        return moved.assign_attrs(unit=unit, long_name=f"Change of {metric}")
    return (moved / ends.gap + 0.0).assign_attrs(
        unit="share of source - base", long_name=f"Share of the {metric} gap closed"
    )


# ---- as a grid ----


@dataclass(frozen=True)
class Grid:
    """A sweep as rows and columns. values: [row, col], nan for no value. cells: what each is, {dim: label}, None
    outside.
    """

    values: np.ndarray
    rows: list[str]
    cols: list[str]
    x_title: str
    y_title: str
    cells: list[list[dict[str, Any] | None]]


def grid(result: Result, shown: xr.DataArray | None = None) -> Grid:
    """Rows and columns of `shown` (what `change` gives, if not given).

    Positions go across where there are several, otherwise the last axis; what is left goes down. The neurons of one
    place are a long line, which is folded.
    """
    shown = change(result) if shown is None else shown
    long = [dim for dim in shown.dims if shown.sizes[dim] > 1]
    if long == ["neuron"]:
        return _folded(shown)
    across = (
        "pos"
        if "pos" in long or ("pos" in shown.dims and len(long) < 2 and shown.dims[-1] == "pos")
        else str(shown.dims[-1])
    )
    down = [str(dim) for dim in shown.dims if dim != across]
    named = [dim for dim in down if shown.sizes[dim] > 1] or down
    flat = shown.stack(row=down).transpose("row", across)
    cells = [
        [dict(zip(down, _tuple(label), strict=True)) | {across: col} for col in flat[across].values.tolist()]
        for label in flat["row"].values
    ]
    rows = [".".join(str(row[0][dim]) for dim in named) for row in cells]
    has_tokens = across == "pos" and "token" in result.data.coords
    cols = [str(v) for v in flat[across].values]
    if has_tokens:
        cols = [f"{n} {token}" for n, token in zip(cols, np.atleast_1d(result.data["token"].values), strict=True)]
    return Grid(
        flat.values,
        rows,
        cols,
        "Position (token of the base run)" if has_tokens else AXIS.get(across, across),
        ".".join(AXIS.get(d, d) for d in named),
        cells,
    )


def _tuple(label: Any) -> tuple[Any, ...]:
    return (
        tuple(v.item() if hasattr(v, "item") else v for v in label)
        if isinstance(label, tuple)
        else (label.item() if hasattr(label, "item") else label,)
    )


def _folded(shown: xr.DataArray) -> Grid:
    n = shown.sizes["neuron"]
    width = max(16, 2 ** int(np.ceil(np.log2(np.sqrt(2 * n)))))
    fixed = {str(dim): shown[dim].values[0].item() for dim in shown.dims if dim != "neuron"}
    numbers = shown["neuron"].values.tolist()
    values = np.full(-(-n // width) * width, np.nan)
    values[:n] = shown.values.ravel()
    cells: list[dict[str, Any] | None] = [fixed | {"neuron": number} for number in numbers]
    cells += [None] * (len(values) - n)
    rows = [cells[i : i + width] for i in range(0, len(values), width)]
    return Grid(
        values.reshape(-1, width),
        [str(row[0]["neuron"]) for row in rows],
        [f"+{i}" for i in range(width)],
        "Neuron, counted from the row's first",
        "First neuron of the row",
        rows,
    )  # type: ignore[index]


def where(result: Result) -> str:
    """The one layer and position that a sweep was confined to, in words; empty where it was not."""
    value = result.data["value"]
    if value.sizes.get("layer", 0) != 1:
        return ""
    found = f"layer {value['layer'].values[0]}"
    if value.sizes.get("pos", 0) == 1:
        token = f" ({np.atleast_1d(value['token'].values)[0]})" if "token" in value.coords else ""
        found += f", position {value['pos'].values[0]}{token}"
    return found


# ---- figures ----


def patch_grid(result: Result) -> go.Figure:
    """Layer (and head) down, position across, or layer by head where all positions were replaced at once."""
    return _heat(result, change(result))


def attributed_grid(result: Result, attributed: Result) -> go.Figure:
    """The estimates of the same cells, in the colours of the exact map; what is beyond them is as dark as its ends."""
    return _heat(result, attributed_change(result, attributed))


def _heat(result: Result, shown: xr.DataArray) -> go.Figure:
    found, place = grid(result, shown), where(result)
    site, what = result.data.attrs["site"], shown.attrs["long_name"]
    title = f"{what}, {site}" if what.startswith("Attributed") else f"{what} when {site} is replaced"
    title = theme.label(f"{title}, {place}" if place else title)
    figure = go.Figure(
        go.Heatmap(
            z=found.values,
            x=[theme.label(c) for c in found.cols],
            y=[theme.label(r) for r in found.rows],
            colorscale=theme.SIGNED,
            reversescale=True,
            colorbar={"title": shown.attrs["unit"]},
            hovertemplate=f"{found.y_title} %{{y}}, {found.x_title} %{{x}}: %{{z:.3f}}<extra></extra>",
            zmin=-limit(result),
            zmax=limit(result),
            zmid=0.0,
        )
    )
    figure.update_xaxes(title=found.x_title, showgrid=False, type="category")
    figure.update_yaxes(title=found.y_title, autorange="reversed", showgrid=False, type="category")
    theme.finish(figure, title, alt(result, shown), result.provenance)
    figure.update_layout(title={"font": {"size": 20 if len(title) < 80 else 20 * 80 // len(title)}})
    return theme.below_tokens(figure) if "token" in found.x_title else figure


def cell_bars(result: Result) -> go.Figure:
    """A list of cells as bars in the order they were asked for, with one standard error over examples."""
    data, shown = result.data, change(result)
    moved, ends = data["value"] - data["base_value"], baseline(result)
    n = moved.notnull().sum("example").values
    spread = moved.std("example", ddof=1).values / np.sqrt(n) if n.max(initial=0) > 1 else np.full(len(n), np.nan)
    scale = 1.0 if ends is None or ends.is_degenerate else abs(ends.gap)
    places = [AXIS[str(name)].lower() for name in shown.coords if name in AXIS]
    title = f"{shown.attrs['long_name']} when {data.attrs['site']} is replaced"
    figure = go.Figure(
        go.Bar(
            x=[theme.label(c) for c in shown["cell"].values],
            y=shown.values,
            error_y={"array": spread / scale, "color": "#444444"},
            marker={"color": theme.BLUE},
        )
    )
    figure.update_xaxes(title=f"Cell ({'.'.join(places)})", type="category")
    figure.update_yaxes(title=shown.attrs["unit"][:1].upper() + shown.attrs["unit"][1:])
    about = f"Bars of {shown.sizes['cell']} cells, mean of {data.sizes['example']} examples with one standard error."
    return theme.finish(
        figure,
        title
        + (
            f"<br><sup>mean of {data.sizes['example']} examples, one standard error</sup>"
            if np.isfinite(spread).any()
            else ""
        ),
        about,
        result.provenance,
    )


def limit(result: Result) -> float:
    """The end of the colour scale of a sweep and of the estimates beside it: the largest exact change, or 1 where that
    is rounding, so that noise is not painted as an effect."""
    top = float(np.nanmax(np.abs(change(result).values), initial=0.0))
    return top if top > rounding(result) else 1.0


def rounding(result: Result) -> float:
    """How large a change, on the map's scale, rounding alone can make: what the sweep's own check found, or a part
    in 100,000.
    """
    data, ends = result.data, baseline(result)
    size = (
        float(np.nanmax(np.abs(data["base_value"].values))) if ends is None else max(abs(ends.base), abs(ends.source))
    )
    check = float(data.attrs.get("check_max_abs_diff", 0.0))
    noise = max(check if np.isfinite(check) else 0.0, ROUNDING * size)
    return noise if ends is None or ends.is_degenerate else noise / abs(ends.gap)


def warnings(result: Result) -> list[str]:
    """What a reader of the map must be told: the result's own warnings, and that nothing moved where nothing did."""
    found = list(result.warnings)
    if (
        not found
        and not result.partial
        and float(np.nanmax(np.abs(change(result).values), initial=0.0)) <= rounding(result)
    ):
        found.append(
            f"replacing {result.data.attrs['site']} moved the metric in no cell beyond rounding: these places carry"
            " nothing of the difference, or nothing reads it"
        )
    return found


def alt(result: Result, shown: xr.DataArray) -> str:
    """A map in one sentence."""
    site, what = result.data.attrs["site"], shown.attrs["long_name"]
    start = f"Heat map of {what[0].lower()}{what[1:]} when {site} is replaced"
    if not np.isfinite(shown.values).any():
        return f"{start}; no cell has been measured yet."
    found = grid(result, shown)
    row, col = np.unravel_index(int(np.nanargmax(np.abs(found.values))), found.values.shape)
    return f"{start}; the largest change is at row {found.rows[row]}, {found.cols[col]}."


def agreement(result: Result, attributed: Result) -> tuple[float, int]:
    """Spearman's rank correlation of estimates and exact changes, and over how many cells.

    Cells in which both did nothing are left out: they are many, they tie, and they would flatter any estimate. nan
    below 3 cells, or where one side is constant.
    """
    exact, estimate = change(result).values.ravel(), attributed_change(result, attributed).values.ravel()
    noise = rounding(result)
    used = np.isfinite(exact) & ((np.abs(exact) > noise) | (np.abs(estimate) > noise))
    exact, estimate = exact[used], estimate[used]
    if len(exact) < 3 or np.ptp(exact) == 0 or np.ptp(estimate) == 0:
        return float("nan"), len(exact)
    return float(np.corrcoef(pd.Series(exact).rank(), pd.Series(estimate).rank())[0, 1]), len(exact)


def attribution_scatter(result: Result, attributed: Result) -> go.Figure:
    """Estimated against exact change, a point a cell; on the line the estimate is exact. The five largest are named."""
    table = cells_table(result, attributed).dropna(subset=["shown"])
    unit, (rho, n) = change(result).attrs["unit"], agreement(result, attributed)
    exact, estimate, names = (table[column].to_numpy() for column in ("shown", "attributed", "cell"))
    words = f"rank correlation {f'{rho:.2f}' if rho == rho else 'not defined'} over {n} cells in which anything happens"
    if n:  # a rank says nothing of size
        words += f"; largest exact change {exact[0]:.3g}, attributed there {estimate[0]:.3g}"
    ends = [float(f([0.0, *exact, *estimate])) for f in (np.nanmin, np.nanmax)]
    is_named = [i < 5 and abs(y) > 0.05 * limit(result) for i, y in enumerate(exact)]
    beside = [
        ("middle right", "top right", "bottom right", "top left", "bottom left")[i % 5] for i in range(len(exact))
    ]
    figure = go.Figure(
        [
            go.Scatter(x=ends, y=ends, mode="lines", line={"color": theme.GREY, "dash": "dot"}, hoverinfo="skip"),
            go.Scatter(
                x=estimate,
                y=exact,
                mode="markers+text",
                text=[theme.label(name) if named else "" for name, named in zip(names, is_named, strict=True)],
                textposition=beside,
                customdata=[theme.label(name) for name in names],
                cliponaxis=False,
                marker={"color": theme.BLUE, "size": 9, "opacity": 0.75},
                hovertemplate="%{customdata}<br>attributed %{x:.3f}, exact %{y:.3f}<extra></extra>",
                textfont={"size": 12},
            ),
        ]
    )
    low, high = ends  # of both, so that an estimate that misses is seen to miss
    room = 0.2 * ((high - low) or 1.0)  # for the names
    figure.update_layout(
        xaxis_title=f"Attributed ({unit})",
        yaxis_title=f"Exact ({unit})",
        xaxis_range=[low - room, high + room],
        showlegend=False,
    )
    theme.finish(
        figure,
        f"Attribution beside exact<br><sup>{words}</sup>",
        f"Scatter of attributed against exact change of {len(table)} cells, {words}.",
        result.provenance,
    )
    return figure


# ---- words ----


def token_pair(prompts: dict[str, Sequence[str]]) -> str:
    """Prompts token by token, one above the other, as HTML; tokens that differ from the first prompt's are framed
    and bold.
    """
    cell = "padding:1px 5px;white-space:pre;border:1px solid var(--jp-border-color2,#ccc)"
    first, n = next(iter(prompts.values())), max(map(len, prompts.values()))
    lines = ["<tr><th></th>" + "".join(f"<th style='{cell};font-weight:normal'>{i}</th>" for i in range(n)) + "</tr>"]
    for name, tokens in prompts.items():
        differs = [i >= len(first) or token != first[i] for i, token in enumerate(tokens)]
        marks = [";border:2px solid #D55E00;font-weight:bold' title='differs" if d else "" for d in differs]
        cells = "".join(
            f"<td style='{cell}{mark}'>{html.escape(token)}</td>" for token, mark in zip(tokens, marks, strict=True)
        )
        lines.append(f"<tr><th style='text-align:left;padding-right:.6em'>{html.escape(name)}</th>{cells}</tr>")
    return (
        "<div style='overflow-x:auto'><table style='border-collapse:collapse;font-size:12px' aria-label='Tokens of the"
        f" prompts'>{''.join(lines)}</table></div>"
    )


# ---- table ----


def cells_table(result: Result, attributed: Result | None = None) -> pd.DataFrame:
    """Every cell, the largest change first.

    Returns:
        The sweep's axes, `cell` in words, `value` (mean of the metric), `change` (both in the metric's unit), `shown`
        (what the map shows), and `attributed` on the map's scale where it is given.
    """
    data, shown = result.data, change(result)
    moved = (data["value"] - data["base_value"]).mean("example")
    columns = {"value": data["value"].mean("example"), "change": moved, "shown": shown}
    if attributed is not None:
        columns["attributed"] = attributed_change(result, attributed)
    frame = (
        xr.Dataset({name: array.drop_vars("token", errors="ignore") for name, array in columns.items()})
        .to_dataframe(dim_order=list(shown.dims))
        .reset_index()
    )
    if "cell" not in frame:  # which a list of cells has already
        tokens = (
            dict(zip(data["pos"].values.tolist(), np.atleast_1d(data["token"].values).tolist(), strict=True))
            if "token" in data.coords
            else {}
        )
        axes = [str(dim) for dim in shown.dims]
        named = [dim for dim in axes if shown.sizes[dim] > 1] or axes
        words = [
            " ".join(f"{dim} {row[dim]}{f' {tokens[row[dim]]}' if dim == 'pos' and tokens else ''}" for dim in named)
            for row in frame[axes].to_dict("records")
        ]
        frame.insert(len(axes), "cell", words)
    return frame.sort_values("change", key=lambda c: -c.abs(), kind="stable", na_position="last").reset_index(drop=True)


def figures(result: Result) -> dict[str, go.Figure]:
    """All figures of a sweep: its map, or the bars of its list of cells."""
    return {"cells": cell_bars(result)} if "cell" in result.data.dims else {"patch_grid": patch_grid(result)}
