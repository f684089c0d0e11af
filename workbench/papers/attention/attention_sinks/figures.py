"""Figures of the inactive-heads analysis; each takes its Result and nothing else but what to show."""

import numpy as np
import plotly.graph_objects as go

from workbench.core.result import Result
from workbench.views import theme

SHOWN = {"ahon_ln": theme.BLUE, "awft": theme.ORANGE}


def _title(result: Result, score: str) -> str:
    return str(result.data["title"].sel(score=score).item())


def _unit(result: Result, score: str) -> str:
    return str(result.data["unit"].sel(score=score).item())


def accuracy_vs_share(result: Result) -> go.Figure:
    """Accuracy against the realised share of zeroed heads: all scores, the random band and the reversed control."""
    data, figure = result.data, go.Figure()
    for score in [str(k) for k in data.score.values if k not in SHOWN] + list(SHOWN):
        accuracy = data["accuracy"].sel(score=score).mean("input").values * 100
        strong = score in SHOWN
        line = {"color": SHOWN.get(score, "#c4c4c4"), "width": 4 if strong else 1.5}
        figure.add_scatter(
            x=data["realised"].sel(score=score).values * 100,
            y=accuracy,
            name=_title(result, score) if strong else "other scores",
            legendgroup=None if strong else "others",
            showlegend=strong or score == str(data.score.values[0]) or _first_other(data, score),
            mode="lines+markers" if strong else "lines",
            line=line,
            marker={"size": 9},
            hovertemplate=(
                f"{_title(result, score)}<br>%{{x:.1f}} % of heads zeroed<br>%{{y:.1f}} % right<extra></extra>"
            ),
        )
    _random_band(figure, result)
    figure.add_scatter(
        x=data.share.values * 100,
        y=data["reversed_accuracy"].mean("input").values * 100,
        name="largest norms zeroed (control)",
        mode="lines",
        line={"color": theme.RED, "width": 3, "dash": "dot"},
    )
    level = float(data["accuracy"].sel(score="ahon_ln", share=0).mean()) * 100 - float(data.attrs["tolerance"])
    figure.add_hline(y=level, line={"color": "#444444", "width": 1, "dash": "dash"})
    figure.add_annotation(
        x=1,
        xref="paper",
        xanchor="right",
        y=level,
        yanchor="top",
        text=f"untouched - {data.attrs['tolerance']:g} point",
        showarrow=False,
        font={"size": 13},
        bgcolor="rgba(255,255,255,0.8)",
    )
    figure.update_xaxes(title="Heads zeroed (% of heads, realised)")
    figure.update_yaxes(title=f"{str(data.attrs['accuracy_of']).capitalize()} (%)")
    figure.update_layout(legend={"x": 0.01, "y": 0.02, "yanchor": "bottom", "bgcolor": "rgba(255,255,255,0.75)"})
    alt = (
        "Accuracy against the share of heads zeroed: average output norm stays flat longest, random and largest-norm"
        " heads fall first or last as measured."
    )
    return theme.finish(figure, "How many heads can be zeroed, by the score that picks them", alt, result.provenance)


def _first_other(data: object, score: str) -> bool:
    others = [str(k) for k in data.score.values if k not in SHOWN]  # type: ignore[attr-defined]
    return bool(others) and score == others[0]


def _random_band(figure: go.Figure, result: Result) -> None:
    """Mean of the random draws, and the range between them as a band."""
    data = result.data
    x = data["random_realised"].mean("draw").values * 100
    each = data["random_accuracy"].mean("input").values * 100
    figure.add_scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([each.max(0), each.min(0)[::-1]]),
        fill="toself",
        fillcolor="rgba(0,0,0,0.15)",
        mode="lines",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )
    figure.add_scatter(
        x=x,
        y=each.mean(0),
        name=f"random heads ({len(each)} draws)",
        mode="lines",
        line={"color": "#222222", "width": 3, "dash": "dash"},
    )


def score_map(result: Result, score: str = "ahon_ln") -> go.Figure:
    """Layer x head mean of a score over inputs."""
    values = result.data["value"].sel(score=score).mean("input")
    figure = go.Figure(
        go.Heatmap(
            z=values.values,
            x=values["head"].values,
            y=values["layer"].values,
            colorscale=theme.UNSIGNED,
            zmin=0,
            zmax=float(values.max()),
            colorbar={"title": _unit(result, score)},
            texttemplate="%{z:.2f}" if values.size <= 200 else None,
            hovertemplate="layer %{y}, head %{x}: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_xaxes(title="Head", dtick=1 if values.sizes["head"] <= 32 else None, showgrid=False)
    figure.update_yaxes(
        title="Layer", dtick=1 if values.sizes["layer"] <= 32 else None, autorange="reversed", showgrid=False
    )
    return theme.finish(
        figure,
        f"{_title(result, score)}, mean over inputs",
        f"Heat map of {score} by layer and head.",
        result.provenance,
    )


def score_histogram(result: Result, score: str = "ahon_ln", share: float = 0.15) -> go.Figure:
    """Distribution of a score over inputs, layers and heads, with the threshold that flags `share` of them."""
    data = result.data
    at = float(data.share.sel(share=share, method="nearest"))
    threshold = float(data["threshold"].sel(score=score, share=at))
    figure = go.Figure(
        go.Histogram(x=data["value"].sel(score=score).values.ravel(), nbinsx=60, marker={"color": theme.BLUE})
    )
    figure.add_vline(
        x=threshold,
        line={"color": theme.RED, "width": 3},
        annotation={"text": f"threshold for {at:.0%}", "font": {"color": theme.RED}},
    )
    figure.update_xaxes(title=f"{_title(result, score)} ({_unit(result, score)})")
    figure.update_yaxes(title="Heads (input x layer x head)")
    return theme.finish(
        figure,
        f"Where the threshold falls: {_title(result, score)}",
        f"Histogram of {score} with its threshold.",
        result.provenance,
    )


def overlap(result: Result) -> go.Figure:
    """Intersection over union of the heads that two scores flag."""
    values = result.data["overlap"]
    names = [_title(result, str(k)) for k in values["score"].values]
    figure = go.Figure(
        go.Heatmap(
            z=values.values, x=names, y=names, zmin=0, zmax=1, colorscale=theme.UNSIGNED, colorbar={"title": "IoU"},
            hovertemplate="%{y}<br>%{x}<br>IoU %{z:.2f}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(tickangle=-45, tickfont={"size": 12}, showgrid=False, title="Score", dtick=1)
    figure.update_yaxes(autorange="reversed", tickfont={"size": 12}, showgrid=False, title="Score", dtick=1)
    theme.finish(
        figure,
        "Do the scores flag the same heads? (15 % flagged)",
        "Heat map of overlap between flagged sets.",
        result.provenance,
    )
    figure.layout.annotations[0].update(yshift=-195)
    return figure.update_layout(height=780, margin={"b": 220})


def raster(result: Result, score: str = "ahon_ln", share: float = 0.15, n_inputs: int = 60) -> go.Figure:
    """Which heads are off on which input."""
    data = result.data
    at = float(data.share.sel(share=share, method="nearest"))
    threshold = float(data["threshold"].sel(score=score, share=at))
    values = data["value"].sel(score=score).isel(input=slice(0, n_inputs))
    off = (values < threshold) if score not in ("awft", "awft_ln") else (values > threshold)
    flat = off.stack(unit=("layer", "head")).transpose("unit", "input")
    names = [f"{layer}.{head}" for layer, head in flat["unit"].values]
    figure = go.Figure(
        go.Heatmap(
            z=flat.values.astype(int),
            y=names,
            colorscale=[[0, "#eeeeee"], [1, theme.BLUE]],
            showscale=False,
            xgap=1,
            ygap=1,
            hovertemplate="input %{x}, head %{y}: %{z}<extra></extra>",
        )
    )
    figure.update_xaxes(title="Input", showgrid=False)
    figure.update_yaxes(
        title="Layer.head", type="category", autorange="reversed", showgrid=False, tickfont={"size": 12}
    )
    title = f"Heads switched off (blue) by {_title(result, score)}, input by input, at {at:.0%}"
    return theme.finish(figure, title, "Raster of inactive heads per input.", result.provenance)


def figures(result: Result) -> dict[str, go.Figure]:
    """All figures of the analysis, in the order to show them; those of a partial Result that can be drawn."""
    made = {
        "accuracy_vs_share": accuracy_vs_share,
        "score_map": score_map,
        "score_histogram": score_histogram,
        "raster": raster,
    }
    if "overlap" in result.data:
        made["overlap"] = overlap
    if result.partial and not bool(result.data["value"].notnull().any()):
        return {}
    return {name: draw(result) for name, draw in made.items()}
