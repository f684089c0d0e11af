"""Figures of sweeps: what replacing each place did, as a signed map centred at 0."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from workbench.core.result import Result

from . import theme


def change(result: Result) -> xr.DataArray:
    """What is drawn: mean over examples of the metric's change, as a share of source minus base where there is a source run.

    The share is a ratio of means, so one example with a small gap cannot dominate it.
    """
    data = result.data
    moved = (data["value"] - data["base_value"]).mean("example")
    if "source_value" not in data:
        return moved.assign_attrs(unit=data["value"].attrs["unit"], long_name=f"Change of {data.attrs['metric']}")
    gap = float((data["source_value"] - data["base_value"]).mean())
    return (moved / gap).assign_attrs(unit="share of source - base", long_name=f"Restored {data.attrs['metric']}")


def patch_grid(result: Result) -> go.Figure:
    """Layer (and head) down, position across, or layer by head where all positions were replaced at once."""
    shown = change(result)
    across = "pos" if "pos" in shown.dims else shown.dims[-1]
    down = [dim for dim in shown.dims if dim != across]
    flat = shown.stack(row=down).transpose("row", across)
    rows = [".".join(map(str, label)) if isinstance(label, tuple) else str(label) for label in flat["row"].values]
    labels = _labels(result, across, flat)
    figure = go.Figure(
        go.Heatmap(
            z=flat.values, x=labels, y=rows, colorscale=theme.SIGNED, reversescale=True, colorbar={"title": shown.attrs["unit"]},
            hovertemplate=f"{'.'.join(down)} %{{y}}, {across} %{{x}}: %{{z:.3f}}<extra></extra>", **theme.signed_limits(flat.values),
        )
    )  # fmt: skip
    has_tokens = across == "pos" and "token" in result.data.coords
    figure.update_xaxes(title={"pos": "Position (token of the base run)" if has_tokens else "Position", "head": "Head", "kv_head": "Key/value head", "neuron": "Neuron"}[across], showgrid=False, type="category")
    figure.update_yaxes(title=".".join(d.capitalize() for d in down), autorange="reversed", showgrid=False, type="category")
    site = result.data.attrs["site"]
    best = np.unravel_index(int(np.nanargmax(np.abs(flat.values))), flat.shape)
    alt = f"Heat map of {shown.attrs['long_name'].lower()} when {site} is replaced; the largest change is at row {rows[best[0]]}, {labels[best[1]]}."
    theme.finish(figure, f"{shown.attrs['long_name']} when {site} is replaced", alt, result.provenance)
    return theme.below_tokens(figure) if has_tokens else figure


def _labels(result: Result, across: str, flat: xr.DataArray) -> list[str]:
    """Position numbers with their token where all rows are one prompt; numbers alone otherwise."""
    numbers = [str(v) for v in flat[across].values]
    if across == "pos" and "token" in result.data.coords:
        return [f"{n} {token}" for n, token in zip(numbers, result.data["token"].values, strict=True)]
    return numbers


def figures(result: Result) -> dict[str, go.Figure]:
    """All figures of a sweep."""
    return {"patch_grid": patch_grid(result)}
