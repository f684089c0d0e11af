"""Charts that any Result can be drawn with: bars, lines and maps, titled by the names and units that its variables
carry.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from workbench.core.provenance import Provenance

from . import theme

COLOURS = (theme.BLUE, theme.ORANGE, theme.GREEN, theme.RED, theme.PURPLE, theme.SKY)


def named(values: xr.DataArray) -> str:
    """Axis title of a variable: its name, and its unit if it has one."""
    name, unit = values.attrs.get("long_name", str(values.name)), values.attrs.get("unit", "")
    return f"{name} ({unit})" if unit and unit != name.lower() else str(name)


def grid(values: xr.DataArray, provenance: Provenance, *, x_title: str, y_title: str, title: str = "") -> go.Figure:
    """A map of [row, column]; values of both signs are centred at 0, others start at their own zero.

    Args:
        values: two-dimensional, with `long_name` and `unit`; its coordinates name rows and columns.
    """
    rows, columns = ([str(v) for v in values[dim].values] for dim in values.dims)
    numbers = values.values.astype(float)
    is_signed = bool((numbers[np.isfinite(numbers)] < 0).any())
    scale = (
        {"colorscale": theme.SIGNED, "reversescale": True, **theme.signed_limits(numbers)} if is_signed else {"zmin": 0}
    )
    unit = str(values.attrs.get("unit", ""))
    figure = go.Figure(
        go.Heatmap(
            z=numbers,
            x=[theme.label(c) for c in columns],
            y=[theme.label(r) for r in rows],
            colorbar={"title": unit},
            hovertemplate=f"%{{y}}, %{{x}}: %{{z:.4g}} {unit}<extra></extra>",
            **{"colorscale": theme.UNSIGNED} | scale,
        )
    )
    figure.update_xaxes(title={"text": x_title, "standoff": 14}, type="category", showgrid=False)
    figure.update_yaxes(title={"text": y_title, "standoff": 14}, type="category", showgrid=False, autorange="reversed")
    head = title or str(values.attrs.get("long_name", values.name))
    where = theme.largest_at(numbers)
    largest = (
        ""
        if where is None
        else f"; the largest is {numbers[where]:.3g} {unit} at {rows[where[0]]}, {columns[where[1]]}"
    )
    done = theme.finish(
        figure, head, f"Map of {head.lower()} by {y_title.lower()} and {x_title.lower()}{largest}.", provenance
    )
    return theme.below_tokens(done) if max(map(len, columns), default=0) > 6 or len(columns) > 40 else done


def bars(
    values: pd.Series,
    provenance: Provenance,
    *,
    x_title: str,
    y_title: str,
    title: str,
    controls: Sequence[str] = (),
) -> go.Figure:
    """A bar for each entry of a series, signed ones from 0; entries named in `controls` are hatched.

    Args:
        values: numbers by label, in the order they are drawn.
    """
    labels = [str(label) for label in values.index]
    colours = [theme.RED if value >= 0 else theme.BLUE for value in values]
    hatched = ["/" if label in controls else "" for label in labels]
    figure = go.Figure(
        go.Bar(
            x=[theme.label(name) for name in labels],
            y=values.to_numpy(float),
            marker={"color": colours, "pattern": {"shape": hatched}},
            hovertemplate="%{x}: %{y:.4g}<extra></extra>",
        )
    )
    figure.add_hline(y=0, line_color="#777777", line_width=1)
    figure.update_xaxes(title={"text": x_title, "standoff": 14}, type="category", showgrid=False)
    figure.update_yaxes(title={"text": y_title, "standoff": 14})
    best = labels[int(np.abs(values.to_numpy(float)).argmax())] if len(values) else "none"
    alt = f"{len(values)} bars of {y_title} by {x_title.lower()}; the largest in size is {best}."
    done = theme.finish(figure, title, alt, provenance)
    return theme.below_tokens(done) if max(map(len, labels), default=0) > 6 else done


def lines(
    values: Sequence[xr.DataArray], provenance: Provenance, *, x_title: str, y_title: str, title: str
) -> go.Figure:
    """One line a variable over their one common dimension, named by `long_name`."""
    figure, ends = go.Figure(), []
    for array, colour in zip(values, COLOURS, strict=False):
        name = str(array.attrs.get("long_name", array.name))
        x = array[array.dims[0]].values
        figure.add_scatter(x=x, y=array.values, mode="lines+markers", name=name, line={"color": colour, "width": 2.5})
        ends.append(f"{name} ends at {float(array.values[-1]):.3g}")
    figure.update_xaxes(title={"text": x_title, "standoff": 14})
    figure.update_yaxes(title={"text": y_title, "standoff": 14})
    figure.update_layout(legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"})
    return theme.finish(figure, title, f"Lines of {y_title} over {x_title.lower()}: {'; '.join(ends)}.", provenance)
