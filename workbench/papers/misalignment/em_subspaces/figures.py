"""Figures of the emergent-misalignment analysis; each takes its Result and nothing else but what to show."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.core.result import Result
from workbench.views import theme

FOUR = (
    "bad, same seed",
    "bad, different seeds",
    "bad, full rank",
    "bad and benign, same seed",
)  # what the confound needs side by side
COLOURS = {
    "bad, same seed": theme.BLUE,
    "bad, different seeds": theme.ORANGE,
    "bad and benign, same seed": theme.GREEN,
    "bad and random": theme.GREY,
    "two random": theme.GREY,
    "bad, full rank": theme.PURPLE,
}


def _wrapped(text: str) -> str:
    return text.replace(", ", ",<br>")


def conditions(result: Result, shown: tuple[str, ...] = FOUR) -> go.Figure:
    """Overlap of each kind of pair as bars with intervals over seeds, and both chance levels of that kind as lines
    across its bar.
    """
    table = result.tables["conditions"].set_index("condition")
    table = table.loc[[c for c in shown if c in table.index]] if set(shown) & set(table.index) else table
    data, figure = result.data, go.Figure()
    names = [_wrapped(c) for c in table.index]
    half = (table["high"] - table["low"]) / 2
    figure.add_bar(
        x=names,
        y=table["overlap"],
        marker={"color": [COLOURS.get(c, theme.SKY) for c in table.index]},
        width=0.6,
        error_y={"type": "data", "array": half, "thickness": 2, "width": 8},
        name="measured",
        showlegend=False,
        hovertemplate="%{x}<br>overlap %{y:.3f}<extra></extra>",
    )
    _dots(figure, result, list(table.index), names)
    for name, mean, top in zip(names, table["overlap"], table["high"].fillna(table["overlap"]), strict=True):
        figure.add_annotation(x=name, y=max(mean, top), yshift=24, text=f"<b>{mean:.2f}</b>", showarrow=False)
    for column, text, style in (
        ("start", "chance, starts kept (k / r and more)", {"color": theme.RED, "width": 4}),
        ("free", "chance, free directions (k / in)", {"color": "#222222", "width": 3, "dash": "dot"}),
    ):
        for i, value in enumerate(table[column]):
            figure.add_scatter(
                x=[i - 0.4, i + 0.4],
                y=[value, value],
                xaxis="x2",
                mode="lines",
                line=style,
                name=text,
                legendgroup=column,
                showlegend=i == 0,
                hovertemplate=f"{text}: {value:.3f}<extra></extra>",
            )
    figure.update_layout(
        xaxis2={"overlaying": "x", "range": [-0.5, len(names) - 0.5], "visible": False},
        legend={"x": 0.99, "xanchor": "right", "y": 0.99},
    )
    figure.update_xaxes(title="What the two updates share", showgrid=False, selector={"visible": None})
    figure.update_yaxes(
        title=f"Overlap of leading {int(data.k.max())} input directions (share)",
        range=[0, 1.45 * float(table["high"].fillna(table["overlap"]).max())],
    )  # room for the legend
    alt = (
        "Bars of subspace overlap for pairs of updates; lines across each bar mark what chance gives with and without a"
        " shared start."
    )
    return theme.finish(figure, "How much of the shared subspace is the shared start", alt, result.provenance)


def _dots(figure: go.Figure, result: Result, kept: list[str], names: list[str]) -> None:
    """Every pair's own overlap, so that three bars with intervals do not hide what they are made of."""
    data = result.data
    each = data["overlap"].sel(k=data.k.max()).mean(("layer", "module"))
    of = [
        (names[kept.index(c)], float(v))
        for c, v in zip(data["condition"].values, each.values, strict=True)
        if c in kept
    ]
    figure.add_scatter(
        x=[n for n, _ in of],
        y=[v for _, v in of],
        mode="markers",
        name="each pair",
        marker={"size": 7, "color": "#222222", "opacity": 0.55},
        hovertemplate="%{y:.3f}<extra></extra>",
    )


def overlap_map(result: Result, condition: str = "bad, same seed", *, above: str = "none") -> go.Figure:
    """Layer x module overlap, mean over the pairs of a condition.

    Args:
        above: "none" shows the overlap from 0; "free" what is above k / in, "floor" what is above k / r, both centred
            at 0.
    """
    data = result.data
    k = int(data.k.max())
    of = data.where(data["condition"] == condition, drop=True)
    values = of["overlap"].sel(k=k).mean("pair")
    free = of["free_overlap"].mean("pair")
    level = {"none": 0.0, "free": free, "floor": _floor(result)}[above]
    shown = (values - level).transpose("layer", "module")
    limits = (
        {"zmin": 0, "zmax": max(float(values.max()), 0.01), "colorscale": theme.UNSIGNED}
        if above == "none"
        else theme.signed_limits(shown.values) | {"colorscale": theme.SIGNED}
    )
    figure = go.Figure(
        go.Heatmap(
            z=shown.values,
            x=shown["module"].values,
            y=shown["layer"].values,
            texttemplate="%{z:.2f}" if shown.size <= 120 else None,
            colorbar={
                "title": (
                    "overlap<br>(share)"
                    if above == "none"
                    else {"free": "above<br>k / in", "floor": "above<br>k / r"}[above]
                )
            },
            hovertemplate="layer %{y}, %{x}: %{z:.3f}<extra></extra>",
            **limits,
        )
    )
    figure.update_xaxes(
        title=f"Module (k / in is {float(free.min()):.3f} to {float(free.max()):.3f}; k / r is {_floor(result):.2f})",
        showgrid=False,
    )
    figure.update_yaxes(
        title="Layer", dtick=1 if shown.sizes["layer"] <= 32 else None, autorange="reversed", showgrid=False
    )
    return theme.finish(
        figure,
        f"Overlap by layer and module: {condition}",
        f"Heat map of subspace overlap by layer and module for pairs: {condition}.",
        result.provenance,
    )


def _floor(result: Result) -> float:
    """k / r of the stored adapters; of directories, half, which is where the paper compared (k 16 of r 32)."""
    data = result.data
    return float(data.k.max() / data["rank"].max()) if "rank" in data else 0.5


def overlap_by_k(result: Result) -> go.Figure:
    """Overlap against how many directions are compared, for every condition of the four, with k / r and k / in."""
    data, figure = result.data, go.Figure()
    kept = [c for c in FOUR if c in data["condition"].values] or list(dict.fromkeys(data["condition"].values.tolist()))
    for condition in kept:
        mean = data["overlap"].where(data["condition"] == condition, drop=True).mean(("pair", "layer", "module"))
        figure.add_scatter(
            x=mean["k"].values,
            y=mean.values,
            name=condition,
            mode="lines+markers",
            line={"color": COLOURS.get(condition, theme.SKY), "width": 3},
            marker={"size": 9},
        )
    ks = data["k"].values
    free = float((data["free_overlap"] / float(data.k.max())).mean())
    figure.add_scatter(
        x=ks,
        y=ks * _floor(result) / ks.max(),
        name="k / r",
        mode="lines",
        line={"color": theme.RED, "width": 3, "dash": "dash"},
    )
    figure.add_scatter(
        x=ks, y=ks * free, name="k / in", mode="lines", line={"color": "#222222", "width": 3, "dash": "dot"}
    )
    figure.update_xaxes(title="Leading directions compared, k", dtick=1 if len(ks) <= 16 else None)
    figure.update_yaxes(title="Overlap of input directions (share)", rangemode="tozero")
    return theme.finish(
        figure,
        "Overlap by the number of directions",
        "Overlap against k for each kind of pair, with the two floors.",
        result.provenance,
    )


def angle_spectrum(result: Result) -> go.Figure:
    """Principal angles, smallest first, mean over pairs and modules, of every condition of the four."""
    data, figure = result.data, go.Figure()
    kept = [c for c in (*FOUR, "bad and random") if c in data["condition"].values] or list(
        dict.fromkeys(data["condition"].values.tolist())
    )
    for condition in kept:
        of = data["angle"].where(data["condition"] == condition, drop=True)
        mean, spread = of.mean(("pair", "layer", "module")), of.mean(("layer", "module")).std("pair")
        figure.add_scatter(
            x=mean["angle_index"].values,
            y=mean.values,
            error_y={"type": "data", "array": spread.values},
            name=condition,
            mode="lines+markers",
            line={"color": COLOURS.get(condition, theme.SKY), "width": 3},
            marker={"size": 9},
        )
    figure.update_xaxes(
        title="Principal angle, smallest first (index)", dtick=1 if data.sizes["angle_index"] <= 20 else None
    )
    figure.update_yaxes(title="Angle (degrees; bars: spread over pairs)", range=[0, 95])
    return theme.finish(
        figure,
        "Principal angles of the leading input directions",
        "Principal angles per kind of pair; ninety degrees is orthogonal.",
        result.provenance,
    )


def scaling(result: Result) -> go.Figure:
    """Misaligned share against t where t multiplies the update, and where it multiplies both factors, on the axes t
    and t^2.
    """
    data = result.data
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.06)
    mean = data["scaled_rate"].mean("scaled")
    for form, colour in (("deltas", theme.BLUE), ("factors", theme.ORANGE)):
        t, y = mean["scale"].values, mean.sel(form=form).values * 100
        text = "t times the update" if form == "deltas" else "t times A and t times B"
        figure.add_scatter(
            x=t,
            y=y,
            name=text,
            legendgroup=form,
            mode="lines+markers",
            line={"color": colour, "width": 3},
            marker={"size": 8},
            row=1,
            col=1,
        )
        moved = t if form == "deltas" else t**2
        order = np.argsort(moved, kind="stable")
        figure.add_scatter(
            x=moved[order],
            y=y[order],
            legendgroup=form,
            showlegend=False,
            mode="lines+markers",
            line={"color": colour, "width": 3},
            marker={"size": 8},
            row=1,
            col=2,
        )
    figure.update_xaxes(title="t, as written")
    figure.update_xaxes(title="what multiplies dW (t, or t^2)", col=2)
    figure.update_yaxes(title="Bad answers in probe domains (%)", range=[-3, 103], col=1)
    figure.update_layout(legend={"x": 0.01, "y": 0.99})
    return theme.finish(
        figure,
        "Scaling: both factors times t is t^2 times the update",
        "Misaligned share against the scale, on t and on t squared: the two curves fall together on the second.",
        result.provenance,
    )


def lines(result: Result) -> go.Figure:
    """Misaligned share between two updates, in both forms of interpolation; mean over pairs, thin lines each pair."""
    data = result.data
    figure = make_subplots(
        1,
        2,
        shared_yaxes=True,
        horizontal_spacing=0.05,
        subplot_titles=("deltas: t dW1 + (1-t) dW2", "factors: t A1 + (1-t) A2, B likewise"),
    )
    for condition in dict.fromkeys(data["line_condition"].values.tolist()):
        of, colour = (
            data["line_rate"].where(data["line_condition"] == condition, drop=True),
            COLOURS.get(condition, theme.SKY),
        )
        for col, form in enumerate(("deltas", "factors"), 1):
            for pair in of["line"].values:
                figure.add_scatter(
                    x=of["t"].values,
                    y=of.sel(line=pair, form=form).values * 100,
                    mode="lines",
                    line={"color": colour, "width": 1},
                    opacity=0.4,
                    showlegend=False,
                    hoverinfo="skip",
                    row=1,
                    col=col,
                )
            figure.add_scatter(
                x=of["t"].values,
                y=of.sel(form=form).mean("line").values * 100,
                name=condition,
                legendgroup=condition,
                showlegend=col == 1,
                mode="lines+markers",
                line={"color": colour, "width": 3.5},
                marker={"size": 8},
                row=1,
                col=col,
            )
    figure.update_xaxes(title="t (1: the first update)")
    figure.update_yaxes(title="Bad answers in probe domains (%)", range=[-3, 103], col=1)
    figure = theme.finish(
        figure,
        "Between two updates: which path stays misaligned",
        "Misaligned share along two kinds of path between updates.",
        result.provenance,
    )
    figure.layout.annotations[-1].update(yshift=-138)
    return figure.update_layout(
        legend={"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"}, height=theme.HEIGHT + 50, margin={"b": 155}
    )


def linearity(result: Result) -> go.Figure:
    """R^2 of the straight line between hidden states half way, by layer: raw states beside states minus the base's."""
    data = result.data
    figure = make_subplots(
        1, 2, shared_yaxes=True, horizontal_spacing=0.05, subplot_titles=("h, as in the paper", "h - h_base")
    )
    for condition in dict.fromkeys(data["line_condition"].values.tolist()):
        of = data["r2"].sel(t=0.5).where(data["line_condition"] == condition, drop=True).mean("line")
        for col, state in enumerate(("h", "h - h_base"), 1):
            figure.add_scatter(
                x=of["layer"].values,
                y=of.sel(state=state).values,
                name=condition,
                legendgroup=condition,
                showlegend=col == 1,
                mode="lines+markers",
                line={"color": COLOURS.get(condition, theme.SKY), "width": 3},
                marker={"size": 9},
                row=1,
                col=col,
            )
    figure.update_xaxes(title="Layer", dtick=1 if data.sizes["layer"] <= 32 else None)
    figure.update_yaxes(title="R^2 of the straight line, t = 0.5", col=1)
    figure = theme.finish(
        figure,
        "Are hidden states between two models on a line?",
        "R squared by layer on raw states and on states minus the base's, for every kind of pair.",
        result.provenance,
    )
    figure.layout.annotations[-1].update(yshift=-138)
    return figure.update_layout(
        legend={"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"}, height=theme.HEIGHT + 50, margin={"b": 155}
    )


def rates(result: Result) -> go.Figure:
    """Misaligned share of every model in every domain; outlined cells are the domain it was trained on."""
    data = result.data
    values = data["rate"] * 100
    figure = go.Figure(
        go.Heatmap(
            z=values.values,
            x=values["domain"].values,
            y=values["model"].values,
            zmin=0,
            zmax=100,
            colorscale=theme.UNSIGNED,
            colorbar={"title": "bad (%)"},
            texttemplate="%{z:.0f}",
            hovertemplate="%{y}, %{x}: %{z:.0f} % bad<extra></extra>",
        )
    )
    domains = values["domain"].values.tolist()
    for i, own in enumerate(data["trained_on"].values.tolist()):
        if own in domains:
            j = domains.index(own)
            figure.add_shape(
                type="rect", x0=j - 0.48, x1=j + 0.48, y0=i - 0.46, y1=i + 0.46, line={"color": theme.RED, "width": 3}
            )
    figure.update_xaxes(title="Domain asked (framed: trained on it)", showgrid=False)
    figure.update_yaxes(title="Model", autorange="reversed", showgrid=False, tickfont={"size": 12}, dtick=1)
    theme.finish(
        figure,
        "Bad answers preferred, by model and domain",
        "Heat map of the misaligned share by model and domain of advice.",
        result.provenance,
    )
    return figure.update_layout(height=220 + 26 * values.sizes["model"])


def without(result: Result) -> go.Figure:
    """Misaligned share of other models with one model's mean difference subtracted, by layer, beside random
    directions.
    """
    data = result.data
    figure = go.Figure()
    for arm in data["arm"].values.tolist():
        of = data["without_rate"].sel(arm=arm) * 100
        style = {"direction": (theme.BLUE, "solid"), "untouched": ("#222222", "dash")}.get(arm, (theme.GREY, "dot"))
        figure.add_scatter(
            x=of["layer"].values,
            y=of.mean("target").values,
            error_y={
                "type": "data",
                "array": (of.max("target") - of.mean("target")).values,
                "arrayminus": (of.mean("target") - of.min("target")).values,
                "symmetric": False,
            },
            name=arm,
            mode="lines+markers",
            line={"color": style[0], "dash": style[1], "width": 3},
            marker={"size": 8},
        )
    figure.update_xaxes(title="Layer whose output the direction is taken from and subtracted at", dtick=1)
    figure.update_yaxes(title="Bad answers, other models (%)", range=[-3, 103])
    title = f"Subtracting the mean difference of {data.attrs.get('direction_of', 'one model')} from others"
    return theme.finish(
        figure,
        title,
        "Misaligned share of other models after subtracting a direction, by layer; random directions of its norm"
        " beside it.",
        result.provenance,
    )


def figures(result: Result) -> dict[str, go.Figure]:
    """All figures of the analysis that this Result can draw, in the order to show them."""
    geometry = {
        "conditions": conditions,
        "overlap_map": overlap_map,
        "overlap_by_k": overlap_by_k,
        "angle_spectrum": angle_spectrum,
    }
    behaviour = {"rates": rates, "scaling": scaling, "lines": lines, "linearity": linearity, "without": without}
    needs = {
        "rates": "rate",
        "scaling": "scaled_rate",
        "lines": "line_rate",
        "linearity": "r2",
        "without": "without_rate",
    } | dict.fromkeys(geometry, "overlap")
    made = {name: draw for name, draw in (geometry | behaviour).items() if needs[name] in result.data}
    if "overlap" in result.data and "bad, same seed" not in result.data["condition"].values:
        made["overlap_map"] = lambda r: overlap_map(r, str(r.data["condition"].values[0]))
    return {name: draw(result) for name, draw in made.items()}
