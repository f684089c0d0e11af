"""What is held, and what is in a held site: tables, bars of bytes, a heat map of one slice."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from workbench.core.provenance import Provenance

from . import theme

KINDS = {"model": theme.BLUE, "capture": theme.ORANGE, "store": theme.GREEN}
MOST_BARS = 25


def plane(values: xr.DataArray, axis: str = "", index: int = 0) -> xr.DataArray:
    """Two axes of a site of one to three: the slice `index` of `axis`, or of the axis of heads if none is named.

    One axis becomes one row. More than three are the last two at the first place of the others.
    """
    if values.ndim == 1:
        return values.expand_dims("row")
    if values.ndim == 2:
        return values
    chosen = axis if axis in values.dims else slice_axis(values.dims)
    values = values.isel({chosen: min(index, values.sizes[chosen] - 1)})
    return values.isel(dict.fromkeys(values.dims[:-2], 0))


def slice_axis(dims: Sequence[str]) -> str:
    """The axis that is cut by default: heads, else the first; "" where nothing has to be cut."""
    return "" if len(dims) < 3 else next((d for d in dims if "head" in d and d != "d_head"), dims[0])


def labels(values: xr.DataArray, dim: str) -> list[str]:
    """What stands along an axis: numbers, with tokens beside positions where they are known."""
    numbers = values[dim].values if dim in values.coords else np.arange(values.sizes[dim])
    if "token" in values.coords and values["token"].dims == (dim,):
        return [f"{n} {token}" for n, token in zip(numbers, values["token"].values, strict=True)]
    return [str(n) for n in numbers]


def row_table(values: xr.DataArray) -> pd.DataFrame:
    """One line per row of a plane: norm, mean, standard deviation, smallest and largest value and where the largest
    is.
    """
    down, across = (str(d) for d in values.dims)
    numbers, columns = values.values, labels(values, across)
    some = np.where(np.isfinite(numbers), numbers, -np.inf)
    return pd.DataFrame(
        {
            down: labels(values, down),
            "norm": np.sqrt(np.nansum(numbers.astype(np.float64) ** 2, 1)),
            "mean": np.nanmean(numbers, 1),
            "sd": np.nanstd(numbers, 1),
            "smallest": np.nanmin(numbers, 1),
            "largest": np.nanmax(numbers, 1),
            f"largest_{across}": [columns[i] for i in some.argmax(1)],
            "not_finite": (~np.isfinite(numbers)).sum(1),
        }
    )


def site_map(cells: pd.DataFrame, title: str, unit: str, provenance: Provenance) -> go.Figure:
    """A heat map of cells as they are drawn; signed values are centred at 0.

    Args:
        cells: [row, col] values; its index and columns, with their names, label the axes.
    """
    values = cells.to_numpy(float)
    signed = bool((values[np.isfinite(values)] < 0).any())
    limits = theme.signed_limits(values) if signed else {"zmin": 0.0, "zmax": theme.signed_limits(values)["zmax"]}
    look = {"colorscale": theme.SIGNED, "reversescale": True} if signed else {"colorscale": theme.UNSIGNED}
    rows, columns = ([str(v) for v in axis] for axis in (cells.index, cells.columns))
    hover = f"{cells.index.name} %{{y}}, {cells.columns.name} %{{x}}: %{{z:.4g}}<extra></extra>"
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=[theme.label(c) for c in columns],
            y=[theme.label(r) for r in rows],
            colorbar={"title": unit},
            hovertemplate=hover,
            **look,
            **limits,
        )
    )
    figure.update_xaxes(title=str(cells.columns.name), type="category", showgrid=False, nticks=24)
    figure.update_yaxes(title=str(cells.index.name), type="category", showgrid=False, autorange="reversed", nticks=30)
    alt, top = f"Heat map of {title}, {len(rows)} x {len(columns)} cells", theme.largest_at(values)
    if top is not None:
        place = f"{cells.index.name} {rows[top[0]]}, {cells.columns.name} {columns[top[1]]}"
        alt += f"; the largest in size is {values[top]:.3g} at {place}"
    return theme.finish(figure, theme.label(title), f"{alt}.", provenance)


def held_bars(held: pd.DataFrame, provenance: Provenance) -> go.Figure:
    """Megabytes of everything held, the largest first.

    Args:
        held: columns name, kind, where, MB; one line per holding.
    """
    shown, figure = held.sort_values("MB", ascending=False).head(MOST_BARS), go.Figure()
    for kind, colour in KINDS.items():
        some = shown[shown["kind"] == kind]
        if len(some):
            figure.add_bar(
                x=some["MB"],
                y=[_short(n) for n in some["name"]],
                orientation="h",
                name=kind,
                marker={"color": colour},
                customdata=[theme.label(place) for place in some["where"]],
                hovertemplate="%{y}: %{x:,.1f} MB on %{customdata}<extra></extra>",
            )
    figure.update_xaxes(title="Memory or disk (MB)", rangemode="tozero")
    figure.update_yaxes(
        title="Held",
        autorange="reversed",
        categoryorder="array",
        categoryarray=[_short(n) for n in shown["name"]],
        tickfont={"size": 13},
    )
    more = f" (the {MOST_BARS} largest of {len(held)})" if len(held) > MOST_BARS else ""
    alt = f"Bars of megabytes held by {len(held)} models, captures and stores, {held['MB'].sum():,.1f} MB together."
    return theme.finish(figure, f"What is held: {held['MB'].sum():,.1f} MB{more}", alt, provenance)


def _short(name: str) -> str:
    return theme.label(name if len(name) <= 42 else f"{name[:39]}...")
