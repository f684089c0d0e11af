"""Figures of the LayerNorm analysis; each takes its Result and says whether the runs it shows are stored or its own."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.core.result import Result
from workbench.papers.memorization.layernorm_memorization.arms import ARMS
from workbench.papers.memorization.layernorm_memorization.scores import after, last_gradients, runs_of
from workbench.runs.lines import gap
from workbench.runs.stored import HERE, STORED
from workbench.views import theme

PARTS = {"memorisation": theme.RED, "recovery": theme.GREEN, "random": theme.GREY}
PLACES = {"post": "Post-LN", "pre": "Pre-LN"}
SHORT = {name: arm.title for name, arm in ARMS.items()}
GROUPS = {
    "test": (theme.BLUE, "test samples (learn-norm)"),
    "noisy": (theme.RED, "noisy training samples (mem-norm)"),
    "clean train": (theme.GREEN, "clean training samples (the confound)"),
}


def origins(result: Result, data: str) -> list[str]:
    """Where the runs of a data set came from; "stored" in front."""
    found = set(runs_of(result.data, data=data)["origin"].values.tolist())
    return [origin for origin in (STORED, HERE) if origin in found]


def data_sets(result: Result) -> list[str]:
    """Names of the data sets in a Result."""
    return sorted({str(d) for d in result.data["data"].values})


def arms_of(result: Result, data: str, origin: str) -> list[str]:
    """Arms that a data set has runs of, in their order."""
    present = set(runs_of(result.data, data=data, origin=origin)["arm"].values.tolist())
    return [arm for arm in SHORT if arm in present]


def said(origin: str) -> str:
    """How a title names an origin."""
    return "stored runs" if origin == STORED else HERE


def outcome(result: Result, data: str, origin: str | None = None) -> go.Figure:
    """What became of the noisy labels, arm by arm: stacked memorisation, recovery and random, with test accuracy on
    top.
    """
    origin = origin or origins(result, data)[0]
    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=[PLACES[p] for p in PLACES], horizontal_spacing=0.03)
    for column, placement in enumerate(PLACES, 1):
        arms = [a for a in arms_of(result, data, origin) if a != "clean"]
        found = {arm: runs_of(result.data, data=data, origin=origin, placement=placement, arm=arm) for arm in arms}
        labels = [SHORT[arm] for arm in arms]
        for part, colour in PARTS.items():
            figure.add_bar(
                x=labels,
                y=[after(found[arm], part).mean() if found[arm].sizes["run"] else np.nan for arm in arms],
                name=part,
                legendgroup=part,
                showlegend=column == 1,
                marker={"color": colour},
                hovertemplate=f"%{{x}}<br>{part}: %{{y:.1f}} % of noisy samples<extra></extra>",
                row=1,
                col=column,
            )
        for index, (score, symbol, text) in enumerate(
            [
                ("memorisation", "circle-open", "memorisation, each seed"),
                ("learning", "diamond", "test accuracy, each seed"),
            ]
        ):
            x = [SHORT[arm] for arm in arms for _ in range(found[arm].sizes["run"])]
            y = [value for arm in arms for value in after(found[arm], score)]
            figure.add_scatter(
                x=x,
                y=y,
                mode="markers",
                name=text,
                legendgroup=text,
                showlegend=column == 1,
                marker={"symbol": symbol, "size": 8, "color": ["#000000", theme.BLUE][index], "line": {"width": 1.5}},
                hovertemplate="%{x}<br>%{y:.1f} %<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_layout(barmode="stack", legend={"orientation": "h", "y": 1.22, "x": 0}, bargap=0.25)
    figure.update_xaxes(title={"text": "Arm", "standoff": 12}, tickangle=-40, showgrid=False)
    figure.update_yaxes(range=[0, 103])
    figure.update_yaxes(title="Noisy samples, test samples (%)", col=1)
    alt = (
        f"Stacked bars of memorised, recovered and random noisy labels for every arm, Post-LN and Pre-LN, on {data};"
        " test accuracy as diamonds."
    )
    theme.finish(figure, f"What became of the noisy labels: {data} ({said(origin)})", alt, result.provenance)
    figure.layout.annotations[-1].update(yshift=-165)  # below the slanted names of the arms
    return room(figure, 110, 660).update_layout(margin={"b": 190})


def epochs(
    result: Result,
    data: str,
    placement: str = "post",
    arms: tuple[str, str] = ("kept", "removed"),
    origin: str | None = None,
) -> go.Figure:
    """Stacked memorisation, recovery and random after every epoch with the learning curve, two arms side by side;
    means over seeds.
    """
    origin = origin or origins(result, data)[0]
    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=[SHORT[a] for a in arms], horizontal_spacing=0.03)
    for column, arm in enumerate(arms, 1):
        found = runs_of(result.data, data=data, origin=origin, placement=placement, arm=arm)
        shown = int(found["n_epochs"].min()) + 1 if found.sizes["run"] else 0
        for part, colour in PARTS.items():
            figure.add_bar(
                x=np.arange(shown),
                y=found[part].values[:, :shown].mean(0) if shown else [],
                name=part,
                legendgroup=part,
                showlegend=column == 1,
                marker={"color": colour, "line": {"width": 0}},
                hovertemplate=f"after epoch %{{x}}<br>{part}: %{{y:.1f}} %<extra></extra>",
                row=1,
                col=column,
            )
        for score, colour, text in (
            ("learning", theme.BLUE, "test accuracy"),
            ("train_accuracy", "#000000", "training accuracy"),
        ):
            figure.add_scatter(
                x=np.arange(shown),
                y=found[score].values[:, :shown].mean(0) if shown else [],
                name=text,
                legendgroup=text,
                showlegend=column == 1,
                mode="lines",
                line={"color": colour, "width": 3, "dash": "solid" if score == "learning" else "dot"},
                hovertemplate=f"after epoch %{{x}}<br>{text}: %{{y:.1f}} %<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_layout(barmode="stack", bargap=0, legend={"orientation": "h", "y": 1.22, "x": 0})
    figure.update_xaxes(title="Epochs trained", showgrid=False)
    figure.update_yaxes(range=[0, 103])
    figure.update_yaxes(title="Noisy samples, test samples (%)", col=1)
    alt = (
        f"Stacked shares of memorised, recovered and random noisy labels by epoch, {arms[0]} and {arms[1]},"
        f" {PLACES[placement]} on {data}."
    )
    return room(
        theme.finish(
            figure,
            f"Epoch by epoch: {PLACES[placement]}, {data} ({said(origin)}, mean of seeds)",
            alt,
            result.provenance,
        ),
        110,
    )


def thirds(result: Result, data: str, origin: str | None = None) -> go.Figure:
    """Change against the kept run of the same seed when gain and bias go in one third only, in all layers, or
    elsewhere (placebo).
    """
    origin = origin or origins(result, data)[0]
    shown = [a for a in ("early", "middle", "late", "removed", "placebo") if a in arms_of(result, data, origin)]
    names = {"memorisation": "Memorisation", "recovery": "Recovery", "learning": "Test accuracy"}
    figure = make_subplots(1, 3, shared_yaxes=True, subplot_titles=list(names.values()), horizontal_spacing=0.03)
    for column, score in enumerate(names, 1):
        for placement, colour in (("post", theme.BLUE), ("pre", theme.ORANGE)):
            where = {"data": data, "origin": origin, "placement": placement}
            each = {a: gap("runs", score, {"arm": a}, {"arm": "kept"}, **where)(result).values for a in shown}
            labels = ["all" if a == "removed" else SHORT[a].removesuffix(" third") for a in shown]
            figure.add_bar(
                x=labels,
                y=[v.mean() if len(v) else np.nan for v in each.values()],
                name=PLACES[placement],
                legendgroup=placement,
                showlegend=column == 1,
                marker={"color": colour},
                hovertemplate=f"{PLACES[placement]}, %{{x}}: %{{y:+.1f}} points<extra></extra>",
                offsetgroup=placement,
                row=1,
                col=column,
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [v.max() - v.mean() if len(v) else 0 for v in each.values()],
                    "arrayminus": [v.mean() - v.min() if len(v) else 0 for v in each.values()],
                    "color": "#222222",
                    "thickness": 1.5,
                },
            )
    figure.add_hline(y=0, line={"color": "#444444", "width": 1})
    figure.update_layout(barmode="group", legend={"orientation": "h", "y": 1.2, "x": 0})
    figure.update_xaxes(title="Removed in", showgrid=False)
    figure.update_yaxes(title="Change against kept (points)", col=1)
    alt = (
        "Bars of the change in memorisation, recovery and test accuracy by the third of layers that lost its LayerNorm"
        f" parameters, {data}."
    )
    return room(
        theme.finish(
            figure, f"Which layers matter: {data} ({said(origin)}; whiskers: all seeds)", alt, result.provenance
        ),
        105,
    )


def gradients(result: Result, data: str, arm: str = "kept", origin: str | None = None) -> go.Figure:
    """Gradient norm at every LayerNorm input after training, three groups of samples, and the learn / mem ratio
    beneath.
    """
    origin = origin or origins(result, data)[0]
    figure = make_subplots(
        2,
        2,
        shared_yaxes="rows",
        shared_xaxes=True,
        subplot_titles=[PLACES[p] for p in PLACES],
        horizontal_spacing=0.03,
        vertical_spacing=0.06,
        row_heights=[0.68, 0.32],
    )
    for column, placement in enumerate(PLACES, 1):
        norms = last_gradients(runs_of(result.data, data=data, origin=origin, placement=placement, arm=arm))
        if norms is None:
            continue
        norms = norms.dropna("layer", how="all").dropna("norm", how="all")
        x = [f"{layer}.{norm + 1}" for layer in norms["layer"].values for norm in norms["norm"].values]
        for group, (colour, text) in GROUPS.items():
            figure.add_scatter(
                x=x,
                y=norms.sel(group=group).values.ravel(),
                name=text,
                legendgroup=group,
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": colour, "width": 3, "dash": "dot" if group == "clean train" else "solid"},
                hovertemplate=f"LayerNorm %{{x}}<br>{text}: %{{y:.3g}}<extra></extra>",
                row=1,
                col=column,
            )
        for group, colour, text in (
            ("noisy", theme.RED, "learn / mem"),
            ("clean train", theme.GREEN, "learn / clean train"),
        ):
            figure.add_scatter(
                x=x,
                y=(norms.sel(group="test") / norms.sel(group=group)).values.ravel(),
                name=text,
                legendgroup=text,
                showlegend=column == 1,
                mode="lines",
                line={"color": colour, "width": 2, "dash": "dash" if group == "noisy" else "dot"},
                hovertemplate=f"LayerNorm %{{x}}<br>{text}: %{{y:.3g}}<extra></extra>",
                row=2,
                col=column,
            )
        figure.add_hline(y=1, line={"color": "#444444", "width": 1}, row=2, col=column)
    figure.update_yaxes(type="log", exponentformat="power")
    figure.update_yaxes(title="Gradient norm<br>(nats per unit)", row=1, col=1)
    figure.update_yaxes(title="Ratio", row=2, col=1)
    figure.update_xaxes(type="category")
    figure.update_xaxes(title="Layer.LayerNorm", row=2)
    figure.update_layout(legend={"orientation": "h", "y": 1.24, "x": 0})
    alt = (
        "Gradient norms at LayerNorm inputs by layer for test, noisy and clean training samples, and their ratios,"
        f" {data}."
    )
    return room(
        theme.finish(
            figure,
            f"Gradients at LayerNorm inputs, LayerNorm {SHORT[arm]}: {data} ({said(origin)})",
            alt,
            result.provenance,
        ),
        135,
        680,
    )


def gradients_over_epochs(result: Result, data: str, arm: str = "kept", origin: str | None = None) -> go.Figure:
    """Gradient norm (mean over LayerNorms) against the loss of the same samples, from before training to its end:
    the confound as a curve.
    """
    origin = origin or origins(result, data)[0]
    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=[PLACES[p] for p in PLACES], horizontal_spacing=0.03)
    for column, placement in enumerate(PLACES, 1):
        found = runs_of(result.data, data=data, origin=origin, placement=placement, arm=arm)
        if not found["gradient_norm"].notnull().any():
            continue
        for group, (colour, text) in GROUPS.items():
            loss, norm = (
                found["gradient_loss"].sel(group=group).values,
                found["gradient_norm"].sel(group=group).mean(("layer", "norm")).values,
            )
            seen = np.isfinite(loss)
            epoch = np.broadcast_to(found["epoch"].values, loss.shape)
            figure.add_scatter(
                x=loss[seen],
                y=norm[seen],
                customdata=epoch[seen],
                name=text,
                legendgroup=group,
                showlegend=column == 1,
                mode="markers",
                marker={
                    "color": colour,
                    "size": 9,
                    "symbol": {"test": "circle", "noisy": "x", "clean train": "diamond-open"}[group],
                },
                hovertemplate="after epoch %{customdata}<br>loss %{x:.3g} nats<br>gradient %{y:.3g}<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_xaxes(title="Mean loss of the samples (nats)", type="log", exponentformat="power")
    figure.update_yaxes(type="log", exponentformat="power")
    figure.update_yaxes(title="Gradient norm (nats per unit)", col=1)
    figure.update_layout(legend={"orientation": "h", "y": 1.2, "x": 0})
    alt = (
        "Gradient norm against loss for test, noisy and clean training samples at every measured epoch and seed,"
        f" {data}."
    )
    return room(
        theme.finish(
            figure, f"Is it fit, or is it noise? Gradient against loss: {data} ({said(origin)})", alt, result.provenance
        ),
        105,
    )


def room(figure: go.Figure, top: int, height: int | None = None) -> go.Figure:
    """Room for a legend between title and panels."""
    return figure.update_layout(
        margin={"t": top + 40, "l": 80, "r": 30, "b": 150},
        height=height or 620,
        title={"yref": "container", "y": 0.96, "yanchor": "top"},
    )


def figures(result: Result) -> dict[str, go.Figure]:
    """All figures of the analysis, the outcome first; those of a partial Result that can be drawn."""
    if not result.data.sizes.get("run"):
        return {}
    made: dict[str, go.Figure] = {}
    for data in data_sets(result):
        for origin in origins(result, data):
            tag = f"{data}_{'stored' if origin == STORED else 'here'}"
            arms = arms_of(result, data, origin)
            made[f"outcome_{tag}"] = outcome(result, data, origin)
            if {"kept", "removed"} <= set(arms):
                found = runs_of(result.data, data=data, origin=origin)
                for placement in sorted(set(found["placement"].values.tolist())):
                    made[f"epochs_{placement}_{tag}"] = epochs(result, data, placement, origin=origin)
                made[f"thirds_{tag}"] = thirds(result, data, origin)
            if runs_of(result.data, data=data, origin=origin, arm="kept")["gradient_norm"].notnull().any():
                made[f"gradients_{tag}"] = gradients(result, data, origin=origin)
                made[f"gradients_over_epochs_{tag}"] = gradients_over_epochs(result, data, origin=origin)
    return made
