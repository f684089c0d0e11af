"""Figures of two checkpoints: what changed in the weights, module by module, and what changed in a measurement, cell by
cell.

Overlaps are always drawn with what chance gives: a cell that random subspaces reach too is crossed out, and so is a
difference whose interval holds 0.
"""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench.core.result import Result

from . import theme

SIDES = {"right": "input side", "left": "output side"}
QUANTITIES = {
    "relative": "Relative change |B - A| / |A|",
    "change": "Norm of the change |B - A|",
    "cosine_changes": "Cosine of the two changes",
    "weights": "Overlap of the change with the weights it changed",
    "other change": "Overlap of the two changes",
}
UNITS = {"relative": "share of |A|", "change": "Frobenius norm", "cosine_changes": "cosine"}
CROSS = "×"


# ---- the weights ----


def quantities(result: Result) -> dict[str, str]:
    """{key: title} of what can colour the map of this Result."""
    has = [
        *(name for name in ("relative", "change", "cosine_changes") if name in result.data),
        *result.data["against"].values.tolist(),
    ]
    return {name: QUANTITIES[name] for name in has}


def is_overlap(quantity: str) -> bool:
    """Whether it has a side and a chance level."""
    return quantity not in UNITS


def unit(quantity: str) -> str:
    """Unit of a key of QUANTITIES."""
    return UNITS.get(quantity, "mean cos²")


def cells(result: Result, quantity: str, side: str = "right") -> xr.DataArray:
    """[layer, module] what colours the map; for overlaps, of matrices alone."""
    data = result.data
    if not is_overlap(quantity):
        return data[quantity]
    return (
        data["overlap"]
        .sel(against=quantity, side=side, drop=True)
        .isel(module=np.flatnonzero(data["rank"].notnull().any("layer")))
    )


def within_chance(result: Result, quantity: str, side: str = "right") -> list[tuple[int, int]]:
    """(row, column) in `cells` of overlaps that are not above the upper end of chance; for two low-rank changes, not
    above k / r either.
    """
    if not is_overlap(quantity):
        return []
    shown = cells(result, quantity, side)
    high = result.data["chance_overlap_high"].sel(side=side, module=shown["module"])
    if quantity == "other change":
        high = np.maximum(high, result.data["same_space_floor"].sel(module=shown["module"]).fillna(0))
    return [(int(r), int(c)) for r, c in np.argwhere((shown <= high).values)]


def map_alt(result: Result, quantity: str, side: str = "right") -> str:
    """What the map shows, in words."""
    shown = cells(result, quantity, side)
    if not np.isfinite(shown.values).any():
        return f"{QUANTITIES[quantity]} by layer and module: no cell has a value."
    row, col = np.unravel_index(int(np.nanargmax(np.abs(shown.values))), shown.shape)
    largest = (
        f"the largest, {float(shown.values[row, col]):.3g}, is in layer {int(shown.layer[row])},"
        f" {shown.module.values[col]}"
    )
    crossed = (
        f" {len(within_chance(result, quantity, side))} of {int(np.isfinite(shown.values).sum())} cells are crossed"
        " out: no more than chance."
        if is_overlap(quantity)
        else ""
    )
    return (
        f"{QUANTITIES[quantity]}{', ' + SIDES[side] if is_overlap(quantity) else ''}, by layer and module;"
        f" {largest}.{crossed}"
    )


def change_map(result: Result, quantity: str = "relative", side: str = "right") -> go.Figure:
    """Layers down, modules across; overlaps not above chance are crossed."""
    shown = cells(result, quantity, side)
    texts = np.full(shown.shape, "", object)
    for row, col in within_chance(result, quantity, side):
        texts[row, col] = CROSS
    signed = quantity == "cosine_changes"
    scale = (
        {"colorscale": theme.SIGNED, "reversescale": True, "zmin": -1, "zmax": 1, "zmid": 0}
        if signed
        else {"colorscale": theme.UNSIGNED, "zmin": 0}
    )
    heat = go.Heatmap(
        z=shown.values,
        x=[theme.label(name) for name in shown.module.values],
        y=[str(n) for n in shown.layer.values],
        text=texts,
        texttemplate="%{text}",
        textfont={"size": 20},
        colorbar={"title": unit(quantity)},
        hovertemplate="layer %{y}, %{x}: %{z:.4g}<extra></extra>",
        **scale,
    )
    figure = go.Figure(heat)
    figure.update_xaxes(title="Module (name in the checkpoint)", type="category", showgrid=False)
    figure.update_yaxes(title="Layer", type="category", showgrid=False, autorange="reversed")
    title = QUANTITIES[quantity] + (
        f", {SIDES[side]}, k = {result.data.attrs['k']} ({CROSS}: chance)" if is_overlap(quantity) else ""
    )
    return _below_names(
        theme.finish(figure, title, map_alt(result, quantity, side), result.provenance),
        [str(n) for n in shown.module.values],
    )


def _below_names(figure: go.Figure, names: list[str]) -> go.Figure:
    """Room under the horizontal axis for upright names as long as these, then its title, then the line of
    provenance.
    """
    room = round(7.2 * max(map(len, names))) + 20
    figure.layout.annotations[-1].update(yshift=-room - 42)
    figure.update_xaxes(tickangle=-90, tickfont={"size": 13}, title_standoff=8, automargin=False)
    return figure.update_layout(height=theme.HEIGHT + room - 40, margin={"b": room + 70})


def change_table(result: Result) -> pd.DataFrame:
    """Every parameter: layer (-1 outside the blocks), module, norm of the change, relative; ranks and overlaps for
    matrices.
    """
    table, data = result.tables["parameters"], result.data
    for side in data["side"].values.tolist():
        for against in data["against"].values.tolist():
            found = (
                data[["overlap", "chance_overlap_high"]]
                .sel(side=side)
                .sel(against=against)
                .to_dataframe()[["overlap", "chance_overlap_high"]]
            )
            name = f"overlap with {against}, {SIDES[side]}"
            found.columns = [name, f"chance ({SIDES[side]})"]
            table = table.merge(found.reset_index(), on=["layer", "module"], how="left", suffixes=("", " again"))
    return table.drop(columns=[c for c in table.columns if str(c).endswith(" again")]).merge(
        data["rank"].to_dataframe().reset_index(), on=["layer", "module"], how="left"
    )


def outside(result: Result) -> pd.DataFrame:
    """Parameters of no block (embeddings, last norm, unembedding), which the map cannot hold."""
    table = result.tables["parameters"]
    return table[table["layer"] < 0][["parameter", "shape", "change", "relative"]]


# ---- one module ----


def angle_table(result: Result, layer: int, module: str, side: str = "right") -> pd.DataFrame:
    """Principal angles of one module, smallest first, beside the chance band: against, index, angle, chance_low,
    chance_high.
    """
    found = (
        result.data[["angle", "chance_angle_low", "chance_angle_high"]]
        .sel(layer=layer, module=module, side=side, drop=True)
        .to_dataframe()
        .reset_index()
    )
    found = found[["against", "index", "angle", "chance_angle_low", "chance_angle_high"]].dropna(subset=["angle"])
    return found.rename(columns={"chance_angle_low": "chance_low", "chance_angle_high": "chance_high"})


def spectrum_table(result: Result, layer: int, module: str) -> pd.DataFrame:
    """Singular values of one module, largest first: index, change, weights, other_change. Empty for vectors."""
    table = result.tables["spectrum"]
    return table[(table["layer"] == layer) & (table["module"] == module)].drop(columns=["layer", "module"])


def module_table(result: Result, layer: int, module: str, side: str = "right") -> pd.DataFrame:
    """One module by index: singular values of change and weights, principal angles and their chance band."""
    found, angles = spectrum_table(result, layer, module), angle_table(result, layer, module, side)
    for against, own in angles.groupby("against"):
        found = found.merge(
            own[["index", "angle"]].rename(columns={"angle": f"angle to {against}"}), on="index", how="left"
        )
    return (
        found.merge(angles[["index", "chance_low", "chance_high"]].drop_duplicates("index"), on="index", how="left")
        if len(angles)
        else found
    )


def module_figure(result: Result, layer: int, module: str, side: str = "right") -> go.Figure:
    """One module: singular values of change and weights on the left, principal angles with their chance band on the
    right.
    """
    values, angles = spectrum_table(result, layer, module), angle_table(result, layer, module, side)
    figure = make_subplots(1, 2, horizontal_spacing=0.12, column_widths=[0.55, 0.45])
    looks = {
        "change": ("change B - A", theme.BLUE, "solid"),
        "weights": ("weights of A", theme.GREY, "dot"),
        "other_change": ("change C - A", theme.ORANGE, "dash"),
    }
    for name in (n for n in looks if n in values):
        words, colour, dash = looks[name]
        figure.add_scatter(
            x=values["index"],
            y=values[name].where(values[name] > 0),
            name=words,
            mode="lines",
            line={"color": colour, "dash": dash, "width": 2.5},
            row=1,
            col=1,
        )
    cell = result.data.sel(layer=layer, module=module)
    if float(cell["rounding"]) > 0:
        dotted = {"color": theme.RED, "dash": "longdash", "width": 1.5}
        figure.add_scatter(
            x=[1, len(values)],
            y=[float(cell["rounding"])] * 2,
            name="rounding alone",
            mode="lines",
            line=dotted,
            row=1,
            col=1,
        )
    first = (
        angles[angles["against"] == "weights"]
        if "weights" in set(angles["against"])
        else angles[angles["against"] == "other change"]
    )
    if len(first):
        ring = {"x": [*first["index"], *first["index"][::-1]], "y": [*first["chance_high"], *first["chance_low"][::-1]]}
        figure.add_scatter(
            **ring,
            fill="toself",
            fillcolor="rgba(128,128,128,.3)",
            line={"width": 0},
            mode="lines",
            name="angles by chance",
            hoverinfo="skip",
            row=1,
            col=2,
        )
    for against, words, colour, mark in (
        ("weights", "change to weights", theme.GREEN, "circle"),
        ("other change", "change to change", theme.PURPLE, "diamond"),
    ):
        own = angles[angles["against"] == against]
        if len(own):
            figure.add_scatter(
                x=own["index"],
                y=own["angle"],
                name=words,
                mode="lines+markers",
                line={"color": colour},
                marker={"symbol": mark, "size": 9},
                row=1,
                col=2,
            )
    figure.update_xaxes(title="Singular value, by size", row=1, col=1).update_yaxes(
        title="Singular value", type="log", dtick=1, exponentformat="power", tickfont={"size": 13}, row=1, col=1
    )
    figure.update_xaxes(
        title="Principal angle, by size", dtick=1 if len(first) < 12 else None, row=1, col=2
    ).update_yaxes(title="Angle (degrees)", range=[0, 92], row=1, col=2)
    smallest = "; ".join(
        f"smallest angle to {a}: {g['angle'].min():.0f} degrees, chance {g['chance_low'].iloc[0]:.0f} to"
        f" {g['chance_high'].iloc[0]:.0f}"
        for a, g in angles.groupby("against")
    )
    alt = (
        f"Layer {layer}, {module}: spectrum of the change ({int(cell['rank'])} directions above rounding) and of the"
        f" weights; {smallest or 'no angle, too few directions'}."
    )
    theme.finish(figure, theme.label(f"Layer {layer}, {module}, {SIDES[side]}"), alt, result.provenance)
    return figure.update_layout(
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        margin={"t": 130},
        title_y=0.96,
        height=theme.HEIGHT + 30,
    )


# ---- the same measurement on both ----


def difference_axes(result: Result) -> tuple[str, str]:
    """(down, across) of a difference over two dims."""
    down, across = result.data["mean"].dims
    return str(down), str(across)


def difference_labels(result: Result) -> list[str]:
    """Labels across: position and token, or the number of the head or neuron."""
    _, across = difference_axes(result)
    numbers = [str(v) for v in result.data[across].values]
    return (
        [f"{n} {t}" for n, t in zip(numbers, result.data["token"].values, strict=True)]
        if across == "pos" and "token" in result.data.coords
        else numbers
    )


def not_told_apart(result: Result) -> list[tuple[int, int]]:
    """(row, column) of cells whose interval holds 0."""
    data = result.data
    return [(int(r), int(c)) for r, c in np.argwhere(((data["low"] <= 0) & (data["high"] >= 0)).values)]


def difference_table(result: Result) -> pd.DataFrame:
    """One row a cell: layer, head or position, mean in A and in B where known, mean difference B - A, standard
    error, low, high.
    """
    return (
        result.data[
            [name for name in ("mean_a", "mean_b", "mean", "standard_error", "low", "high") if name in result.data]
        ]
        .to_dataframe()
        .reset_index()
    )


def difference_alt(result: Result) -> str:
    """What the map of differences shows, in words."""
    mean, (down, across) = result.data["mean"].values, difference_axes(result)
    if not np.isfinite(mean).any():
        return "Difference of the two checkpoints: no cell has a value."
    row, col = np.unravel_index(int(np.nanargmax(np.abs(mean))), mean.shape)
    n = len(not_told_apart(result))
    return (
        f"Difference B - A of the same sweep by {down} and {across}; the largest, {mean[row, col]:.3g}, is at {down}"
        f" {result.data[down].values[row]}, {across} {result.data[across].values[col]}. {n} of {mean.size} cells are"
        " crossed out: their interval holds 0."
    )


def difference_map(result: Result) -> go.Figure:
    """Mean over examples of B - A in every cell, 0 in the middle; crossed where the interval holds 0."""
    data, (down, across) = result.data, difference_axes(result)
    texts = np.full(data["mean"].shape, "", object)
    for row, col in not_told_apart(result):
        texts[row, col] = CROSS
    ends = np.stack([data["low"].values, data["high"].values], -1)
    unit = data["mean"].attrs.get("unit", "")
    heat = go.Heatmap(
        z=data["mean"].values,
        x=[theme.label(name) for name in difference_labels(result)],
        y=[str(v) for v in data[down].values],
        text=texts,
        texttemplate="%{text}",
        textfont={"size": 18},
        customdata=ends,
        colorscale=theme.SIGNED,
        reversescale=True,
        colorbar={"title": f"B - A ({unit})"},
        hovertemplate=(
            f"{down} %{{y}}, {across} %{{x}}: %{{z:.3g}} (%{{customdata[0]:.3g}} to"
            " %{customdata[1]:.3g})<extra></extra>"
        ),
        **theme.signed_limits(data["mean"].values),
    )
    figure = go.Figure(heat)
    figure.update_xaxes(
        title={
            "pos": "Position (token of the prompt)",
            "head": "Head",
            "kv_head": "Key/value head",
            "neuron": "Neuron",
        }.get(across, across),
        type="category",
        showgrid=False,
    )
    figure.update_yaxes(title=down.capitalize(), type="category", showgrid=False, autorange="reversed")
    title = f"{data['mean'].attrs['long_name'].removesuffix(', mean change')}: B - A ({CROSS}: interval holds 0)"
    theme.finish(figure, title, difference_alt(result), result.provenance)
    return theme.below_tokens(figure) if across == "pos" else figure


def example_table(result: Result, row: int, col: int) -> pd.DataFrame:
    """B - A of every example in one cell: example, difference."""
    down, across = difference_axes(result)
    return (
        result.data["difference"].isel({down: row, across: col}).to_dataframe().reset_index()[["example", "difference"]]
    )


def example_figure(result: Result, row: int, col: int) -> go.Figure:
    """One cell: B - A of every example, their mean and its interval."""
    data, (down, across), table = result.data, difference_axes(result), example_table(result, row, col)
    cell, unit = data.isel({down: row, across: col}), data["mean"].attrs.get("unit", "")
    mean, low, high = (float(cell[name]) for name in ("mean", "low", "high"))
    figure = go.Figure(
        go.Bar(x=table["example"].astype(str), y=table["difference"], name="example", marker={"color": theme.SKY})
    )
    figure.add_hrect(y0=low, y1=high, fillcolor=theme.ORANGE, opacity=0.3, line_width=0)
    figure.add_hline(y=mean, line={"color": theme.ORANGE, "width": 2.5})
    figure.update_xaxes(title="Example (prompt)", type="category", showgrid=False).update_yaxes(
        title=f"B - A ({unit})", zeroline=True, zerolinecolor="#888888"
    )
    where = f"{down.capitalize()} {data[down].values[row]}, {across} {data[across].values[col]}"
    alt = f"{where}: difference of every example; mean {mean:.3g}, interval {low:.3g} to {high:.3g} {unit}."
    return theme.finish(figure, f"{where}: mean {mean:.3g} ({low:.3g} to {high:.3g}) {unit}", alt, result.provenance)


def figures(result: Result) -> dict[str, go.Figure]:
    """All figures of a comparison: of weights, or of a measurement."""
    if "mean" in result.data:
        return {"difference": difference_map(result)}
    return {f"change_{name.replace(' ', '_')}": change_map(result, name) for name in quantities(result)}
