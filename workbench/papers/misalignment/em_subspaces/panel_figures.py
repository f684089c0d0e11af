"""Figures and tables of the subspaces panel: overlaps of one pair of updates with the chance of every cell, one
cell, models between.
"""

import html

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.views import theme

QUANTITIES = {
    "overlap": "Overlap of input directions",
    "above": "Overlap above chance",
    "overlap_left": "Overlap of output directions",
    "cosine": "Cosine of the updates",
}
UNITS = {"overlap": "share", "above": "share above chance", "overlap_left": "share", "cosine": "cosine"}
SIGNED = ("above", "cosine")
CROSS = "×"
MOST_NUMBERS = 150  # cells in which numbers are written


def cells(result: Result, quantity: str = "overlap") -> xr.DataArray:
    """[layer, module] what colours the map, a key of QUANTITIES."""
    data = result.data
    return data["overlap"] - data["chance"] if quantity == "above" else data[quantity]


def within_chance(result: Result, quantity: str = "overlap") -> list[tuple[int, int]]:
    """(row, column) of cells whose overlap of input directions is not above the upper end of chance; none for other
    quantities.
    """
    if quantity not in ("overlap", "above"):
        return []
    return [(int(r), int(c)) for r, c in np.argwhere((result.data["overlap"] <= result.data["chance_high"]).values)]


def texts(result: Result, quantity: str = "overlap") -> list[str]:
    """What is written in the cells, row after row: the number where there is room for it, and a cross where it is
    not above chance.
    """
    shown, crossed = cells(result, quantity), set(within_chance(result, quantity))
    written = []
    for place in np.ndindex(shown.shape):
        value = float(shown.values[place])
        number = f"{value:.2f}" if np.isfinite(value) and shown.size <= MOST_NUMBERS else ""
        written.append(f"{number} {CROSS if place in crossed else ''}".strip())
    return written


def limits(result: Result, quantity: str) -> tuple[float, float]:
    """Ends of the colour scale: overlaps from 0 to 1, cosines from -1 to 1, differences by the largest."""
    if quantity != "above":
        return (-1.0, 1.0) if quantity == "cosine" else (0.0, 1.0)
    top = float(np.nanmax(np.abs(cells(result, quantity).values), initial=0.01))
    return -top, top


def map_alt(result: Result, quantity: str = "overlap") -> str:
    """What the map shows, in words."""
    data, shown = result.data, cells(result, quantity)
    n = int(np.isfinite(shown.values).sum())
    crossed = (
        f" {len(within_chance(result, quantity))} of {n} cells are marked ×: not above chance."
        if quantity in ("overlap", "above")
        else ""
    )
    return (
        f"{QUANTITIES[quantity]} by layer and module, {data.attrs['one']} and {data.attrs['other']}"
        f" ({data.attrs['condition']}), k = {data.attrs['k']}; mean {float(shown.mean()):.2f}.{crossed}"
    )


def summary(result: Result) -> pd.DataFrame:
    """One row: mean overlap, both floors, the chance of this pair with its band, mean over modules; cells above
    chance; what the starts share.
    """
    data = result.data
    row = {
        name: float(data[name].mean())
        for name in (
            "overlap",
            "chance",
            "chance_low",
            "chance_high",
            "floor",
            "free",
            "overlap_left",
            "cosine",
            "mean_angle",
            "row_space",
        )
    }
    n = int(data["overlap"].notnull().sum())
    return pd.DataFrame(
        [
            {"pair": f"{data.attrs['one']} | {data.attrs['other']}", "k": data.attrs["k"]}
            | row
            | {"cells": n, "above_chance": n - len(within_chance(result))}
        ]
    )


def summary_html(result: Result) -> str:
    """How to read the map: measured overlap beside its floors."""
    one = summary(result).iloc[0]
    if result.data.attrs["has_start"]:
        chance = (
            f"these two starts alone give <b>{one['chance']:.2f}</b> (in a cell {one['chance_low']:.2f} to"
            f" {one['chance_high']:.2f}); one shared start would give about k / r = {one['floor']:.2f}"
        )
        told = (
            f" The row spaces of their A overlap by {one['row_space']:.2f}:"
            f" {'they started from one A' if one['row_space'] > 0.5 else 'they started apart'}."
        )
    else:
        chance = (
            f"free directions give <b>{one['chance']:.3f}</b> (in a cell {one['chance_low']:.3f} to"
            f" {one['chance_high']:.3f})"
        )
        told = " There is no drawn A here, so no k / r."
    return (
        f"<p>k = {int(one['k'])}: mean overlap <b>{one['overlap']:.2f}</b>; {chance}; k / in = {one['free']:.3f}."
        f" <b>{int(one['above_chance'])} of {int(one['cells'])} cells are above their chance</b> (by chance alone about"
        f" {one['cells'] * (1 - result.data.attrs['level']) / 2:.0f}), the others are marked ×.{told} Click a cell for"
        " its spectra and angles.</p>"
    )


def map_table(result: Result) -> pd.DataFrame:
    """One row a cell: layer, module and every variable."""
    return result.data.to_dataframe().reset_index()


def overlap_map(result: Result, quantity: str = "overlap") -> go.Figure:
    """Layers down, modules across; cells not above chance are crossed."""
    shown, low_high = cells(result, quantity), limits(result, quantity)
    scale = (
        {"colorscale": theme.SIGNED, "reversescale": True, "zmid": 0}
        if quantity in SIGNED
        else {"colorscale": theme.UNSIGNED}
    )
    heat = go.Heatmap(
        z=shown.values,
        x=shown["module"].values,
        y=[str(n) for n in shown["layer"].values],
        text=np.reshape(texts(result, quantity), shown.shape),
        texttemplate="%{text}",
        zmin=low_high[0],
        zmax=low_high[1],
        colorbar={"title": UNITS[quantity].replace(" above", "<br>above")},
        hovertemplate="layer %{y}, %{x}: %{z:.3f}<extra></extra>",
        **scale,
    )
    figure = go.Figure(heat)
    figure.update_xaxes(title="Module", type="category", showgrid=False)
    figure.update_yaxes(title="Layer", type="category", showgrid=False, autorange="reversed")
    attrs = result.data.attrs
    title = (
        f"{QUANTITIES[quantity]}, k = {attrs['k']}: {attrs['one']} and"
        f" {attrs['other']}{f' ({CROSS}: chance)' if quantity in ('overlap', 'above') else ''}"
    )
    return theme.finish(figure, title, map_alt(result, quantity), result.provenance).update_layout(title_font_size=17)


def profile(result: Result) -> go.Figure:
    """Overlap of every cell, layer after layer, over the band of its chance, with the floors k / r and k / in as
    lines.
    """
    data = result.data.stack(cell=("layer", "module")).dropna("cell", subset=["overlap"])
    names = [f"{layer} {module}" for layer, module in zip(data["layer"].values, data["module"].values, strict=True)]
    figure = go.Figure()
    band = {"x": [*names, *names[::-1]], "y": [*data["chance_high"].values, *data["chance_low"].values[::-1]]}
    figure.add_scatter(
        **band,
        fill="toself",
        fillcolor="rgba(128,128,128,.35)",
        line={"width": 0},
        mode="lines",
        name=f"chance, {data.attrs['level']:.0%}",
        hoverinfo="skip",
    )
    if data.attrs["has_start"]:
        figure.add_scatter(
            x=names,
            y=data["floor"].values,
            mode="lines",
            name="k / r: one shared start",
            line={"color": theme.RED, "dash": "dash", "width": 2.5},
        )
    figure.add_scatter(
        x=names,
        y=data["free"].values,
        mode="lines",
        name="k / in: free directions",
        line={"color": theme.GREEN, "dash": "dot", "width": 2.5},
    )
    figure.add_scatter(
        x=names, y=data["overlap"].values, mode="markers", name="measured", marker={"color": theme.BLUE, "size": 9}
    )
    figure.update_xaxes(
        title="Layer and module", type="category", showgrid=False, tickangle=-90, tickfont={"size": 12}, nticks=56
    )
    top = float(
        max(data["overlap"].max(), data["chance_high"].max(), data["floor"].max() if data.attrs["has_start"] else 0)
    )
    figure.update_yaxes(title="Overlap (share)", range=[0, min(1.02, 1.3 * top + 0.02)])
    attrs = result.data.attrs
    figure = theme.finish(
        figure,
        f"{attrs['condition']}: {attrs['one']} and {attrs['other']}, k = {attrs['k']}",
        map_alt(result),
        result.provenance,
    )
    figure.update_layout(
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        title_y=0.96,
        title_font_size=17,
        margin={"t": 100},
    )
    theme.below_tokens(figure).layout.annotations[-1].update(yshift=-130)
    return figure.update_layout(height=theme.HEIGHT + 40, margin={"b": 150})


# ---- one cell ----


def cell_figure(table: pd.DataFrame, result: Result, layer: int, module: str) -> go.Figure:
    """One module: singular values of both updates on the left, principal angles with their chance band on the right."""
    attrs, angles = result.data.attrs, table.dropna(subset=["angle"])
    figure = make_subplots(1, 2, horizontal_spacing=0.12)
    for name, text, colour, mark in (
        ("one", attrs["one"], theme.BLUE, "circle"),
        ("other", attrs["other"], theme.ORANGE, "diamond"),
    ):
        values = table[name].where(table[name] > 0)
        figure.add_scatter(
            x=table["index"],
            y=values,
            name=text,
            mode="lines+markers",
            line={"color": colour, "width": 2.5},
            marker={"symbol": mark, "size": 8},
            row=1,
            col=1,
        )
    ring = {"x": [*angles["index"], *angles["index"][::-1]], "y": [*angles["chance_high"], *angles["chance_low"][::-1]]}
    figure.add_scatter(
        **ring,
        fill="toself",
        fillcolor="rgba(128,128,128,.35)",
        line={"width": 0},
        mode="lines",
        name=f"chance, {attrs['level']:.0%}",
        hoverinfo="skip",
        row=1,
        col=2,
    )
    figure.add_scatter(
        x=angles["index"],
        y=angles["angle"],
        name="measured angle",
        mode="lines+markers",
        line={"color": theme.PURPLE, "width": 2.5},
        marker={"size": 9},
        row=1,
        col=2,
    )
    figure.update_xaxes(
        title="Singular value, by size", dtick=1 if len(table) < 13 else None, row=1, col=1
    ).update_yaxes(title="Singular value of dW", rangemode="tozero", row=1, col=1)
    figure.update_xaxes(
        title="Principal angle, by size", dtick=1 if len(angles) < 13 else None, row=1, col=2
    ).update_yaxes(title="Angle (degrees)", range=[0, 92], row=1, col=2)
    first = angles.iloc[0]
    alt = (
        f"Layer {layer}, {module}: singular values of both updates; smallest of {len(angles)} principal angles"
        f" {first['angle']:.0f} degrees, chance {first['chance_low']:.0f} to {first['chance_high']:.0f}."
    )
    theme.finish(figure, f"Layer {layer}, {module}, k = {attrs['k']}", alt, result.provenance)
    return figure.update_layout(
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}, margin={"t": 110}, title_y=0.96
    )


# ---- models between ----


def answers_html(asked: pd.DataFrame, prompt: str) -> str:
    """Answers of the models between two updates and of their ends, each with its share of bad answers in the probe
    domains.

    Args:
        asked: model, answer, verdict ("good", "bad" or ""), bad_share.
    """
    marks = {"good": ("#009E73", "the good answer"), "bad": ("#D55E00", "the bad answer")}
    lines = []
    for one in asked.itertuples():
        colour, word = marks.get(one.verdict, ("transparent", ""))
        answer = html.escape(one.answer) or "(nothing)"
        words = f"<span style='border-left:4px solid {colour};padding-left:.5em'>{answer}</span>"
        words += f" <i>{word}</i>" if word else ""
        lines.append(
            f"<tr><td style='text-align:left'>{html.escape(one.model)}</td><td style='text-align:right;padding:0"
            f" .9em'>{100 * one.bad_share:.0f} %</td><td style='text-align:left'>{words}</td></tr>"
        )
    head = (
        "<tr><th style='text-align:left'>model</th><th style='padding:0 .9em'>bad in probe domains</th><th"
        " style='text-align:left'>says</th></tr>"
    )
    return f"<p>Asked: <b>{html.escape(prompt)}</b></p><table>{head}{''.join(lines)}</table>"


def between_figure(visited: pd.DataFrame, one: str, other: str, provenance: Provenance) -> go.Figure:
    """Share of bad answers at every t that was visited, in both forms.

    Args:
        visited: t, form, bad_share; the ends t = 0 and t = 1 are of both forms.
    """
    figure = go.Figure()
    for form, text, colour, mark in (
        ("deltas", "deltas: t dW1 + (1-t) dW2", theme.BLUE, "circle"),
        ("factors", "factors: t A1 + (1-t) A2, B likewise", theme.ORANGE, "diamond"),
    ):
        of = visited[visited["form"] == form].drop_duplicates("t", keep="last").sort_values("t")
        if len(of):
            figure.add_scatter(
                x=of["t"],
                y=100 * of["bad_share"],
                name=text,
                mode="lines+markers",
                line={"color": colour, "width": 3},
                marker={"symbol": mark, "size": 10},
            )
    figure.update_xaxes(title=f"t (1: {one}; 0: {other})", range=[-0.04, 1.04]).update_yaxes(
        title="Bad answers in probe domains (%)", range=[-3, 103]
    )
    alt = (
        f"Share of bad answers at {visited['t'].nunique()} points between {other} and {one}, in both forms of"
        " interpolation."
    )
    theme.finish(figure, "Between the two updates, where t was set", alt, provenance)
    return figure.update_layout(
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0}, title_y=0.96, margin={"t": 100}
    )


def figures(result: Result) -> dict[str, go.Figure]:
    """Map and profile of a pair."""
    return {"overlap": overlap_map(result), "profile": profile(result)}
