"""Noisy samples one by one: what became of each after every epoch, what it looks like, and the arms beside each other
at one epoch.

Pure functions of a LayerNorm-memorization Result; the panel of the same name and the notebook use them.
"""

import html
import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench.core.result import Result
from workbench.papers.memorization.layernorm_memorization.figures import PARTS, PLACES, SHORT, origins, room, said
from workbench.papers.memorization.layernorm_memorization.scores import runs_of
from workbench.views import theme

BECAME = {"memorised": 1.0, "random": 0.0, "recovered": -1.0}  # as the map of samples and epochs colours them


def class_names(result: Result, data: str) -> list[str]:
    """Names of the classes of a data set, in the order of their numbers."""
    table = result.tables["classes"]
    return table.loc[table["data"] == data].sort_values("index")["name"].tolist()


def one_run(result: Result, data: str, placement: str, arm: str, seed: int, origin: str | None = None) -> xr.Dataset:
    """The one run of an arm and seed.

    Raises:
        KeyError: if there is none, naming the seeds there are.
    """
    found = runs_of(result.data, data=data, origin=origin or origins(result, data)[0], placement=placement, arm=arm)
    at = np.flatnonzero(found["seed"].values == seed)
    if not len(at):
        raise KeyError(
            f"no {SHORT[arm]} run of seed {seed} on {data}, {PLACES[placement]}; seeds here:"
            f" {', '.join(map(str, found['seed'].values)) or 'none'}"
        )
    return found.isel(run=int(at[0]))


def fates(run: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """What became of every noisy sample of a run: [noisy] sample numbers, and [noisy, epoch] values of BECAME."""
    trained, true = run["trained_label"].values, run["true_label"].values
    index = np.flatnonzero((trained != true) & (trained >= 0))
    predicted = run["predicted_train"].values[: int(run["n_epochs"]) + 1, index].T
    memorised, recovered = predicted == trained[index, None], predicted == true[index, None]
    return index, np.where(memorised, BECAME["memorised"], np.where(recovered, BECAME["recovered"], BECAME["random"]))


def noisy_samples(
    result: Result, data: str, placement: str, arm: str, seed: int, epoch: int | None = None, origin: str | None = None
) -> pd.DataFrame:
    """One row a noisy sample of a run: text, true and noisy label, prediction after an epoch (the last if None),
    what it counts as.
    """
    run = one_run(result, data, placement, arm, seed, origin)
    at = int(run["n_epochs"]) if epoch is None else min(epoch, int(run["n_epochs"]))
    index, fate = fates(run)
    known = result.tables["samples"].query("data == @data").drop_duplicates("index")
    names, texts = class_names(result, data), known.set_index("index")["text"]
    words = {value: word for word, value in BECAME.items()}
    said_of = {
        "true": run["true_label"].values[index],
        "noisy": run["trained_label"].values[index],
        "predicted": run["predicted_train"].values[at, index],
    }
    columns = {name: [names[i] for i in numbers] for name, numbers in said_of.items()}
    return pd.DataFrame(
        {
            "sample": index,
            "text": [texts.loc[i] for i in index],
            **columns,
            "became": [words[value] for value in fate[:, at]],
        }
    )


def outcome_at(
    result: Result,
    data: str,
    epoch: int,
    arms: tuple[str, ...] = ("kept", "removed"),
    seed: int | None = None,
    origin: str | None = None,
) -> go.Figure:
    """Memorisation, recovery and random after one epoch, stacked, arms beside each other; of one seed, or the mean
    of all (None).
    """
    origin = origin or origins(result, data)[0]
    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=list(PLACES.values()), horizontal_spacing=0.03)
    for column, placement in enumerate(PLACES, 1):
        shown: dict[str, list[float]] = {name: [] for name in (*PARTS, "learning")}
        for arm in arms:
            found = runs_of(result.data, data=data, origin=origin, placement=placement, arm=arm)
            found = found if seed is None else found.isel(run=np.flatnonzero(found["seed"].values == seed))
            at = np.minimum(epoch, found["n_epochs"].values).astype(int)
            for name, values in shown.items():
                values.append(float(np.mean(found[name].values[np.arange(len(at)), at])) if len(at) else float("nan"))
        for part, colour in PARTS.items():
            figure.add_bar(
                x=[SHORT[a] for a in arms],
                y=shown[part],
                name=part,
                legendgroup=part,
                showlegend=column == 1,
                marker={"color": colour},
                hovertemplate=f"%{{x}}<br>{part}: %{{y:.1f}} % of noisy samples<extra></extra>",
                row=1,
                col=column,
            )
        figure.add_scatter(
            x=[SHORT[a] for a in arms],
            y=shown["learning"],
            name="test accuracy",
            legendgroup="learning",
            showlegend=column == 1,
            mode="markers",
            marker={"symbol": "diamond", "size": 13, "color": theme.BLUE, "line": {"width": 1.5, "color": "#ffffff"}},
            hovertemplate="%{x}<br>test accuracy %{y:.1f} %<extra></extra>",
            row=1,
            col=column,
        )
    figure.update_layout(barmode="stack", legend={"orientation": "h", "y": 1.2, "x": 0}, bargap=0.35)
    figure.update_xaxes(title="Arm", showgrid=False)
    figure.update_yaxes(range=[0, 103])
    figure.update_yaxes(title="Noisy samples, test samples (%)", col=1)
    who = "mean of seeds" if seed is None else f"seed {seed}"
    alt = (
        f"Memorised, recovered and random noisy labels after epoch {epoch} on {data},"
        f" {' and '.join(SHORT[a] for a in arms)}, {who}."
    )
    return room(
        theme.finish(figure, f"After epoch {epoch}: {data} ({said(origin)}, {who})", alt, result.provenance), 105
    )


def sample_history(
    result: Result, data: str, sample: int, placement: str, arm: str, seed: int, origin: str | None = None
) -> go.Figure:
    """What one training sample was called after every epoch, with its true label and the one trained on as lines."""
    origin = origin or origins(result, data)[0]
    run = one_run(result, data, placement, arm, seed, origin)
    n, names = int(run["n_epochs"]) + 1, class_names(result, data)
    figure = go.Figure()
    for variable, colour, text in (
        ("true_label", theme.GREEN, "true label"),
        ("trained_label", theme.RED, "noisy label"),
    ):
        figure.add_hline(
            y=int(run[variable].values[sample]),
            line={"color": colour, "width": 3},
            annotation={"text": text, "font": {"color": colour, "size": 14}, "bgcolor": "rgba(255,255,255,0.8)"},
        )
    figure.add_scatter(
        x=np.arange(n),
        y=run["predicted_train"].values[:n, sample],
        mode="lines+markers",
        name="predicted",
        line={"color": theme.BLUE, "shape": "hv"},
        hovertemplate="after epoch %{x}: class %{y}<extra></extra>",
    )
    figure.update_xaxes(title="Epochs trained")
    figure.update_yaxes(
        title="Class predicted", tickvals=list(range(len(names))), ticktext=names, range=[-0.5, len(names) - 0.5]
    )
    title = f"Sample {sample} of {data}: {PLACES[placement]}, {SHORT[arm]}, seed {seed} ({said(origin)})"
    return theme.finish(
        figure,
        title,
        "Predicted class of one training sample by epoch, beside its true and its noisy label.",
        result.provenance,
    )


def fate_map(result: Result, data: str, placement: str, arm: str, seed: int, origin: str | None = None) -> go.Figure:
    """Noisy samples down, epochs across: memorised, random or recovered."""
    origin = origin or origins(result, data)[0]
    index, fate = fates(one_run(result, data, placement, arm, seed, origin))
    scale = [
        [0, PARTS["recovery"]],
        [0.33, PARTS["recovery"]],
        [0.33, PARTS["random"]],
        [0.67, PARTS["random"]],
        [0.67, PARTS["memorisation"]],
        [1, PARTS["memorisation"]],
    ]
    bar = {"tickvals": [-0.67, 0, 0.67], "ticktext": ["recovered", "random", "memorised"], "title": ""}
    figure = go.Figure(
        go.Heatmap(
            z=fate,
            y=[str(i) for i in index],
            zmin=-1,
            zmax=1,
            colorscale=scale,
            colorbar=bar,
            xgap=1,
            ygap=1,
            hovertemplate="sample %{y}, after epoch %{x}<extra></extra>",
        )
    )
    figure.update_xaxes(title="Epochs trained", showgrid=False)
    figure.update_yaxes(
        title="Noisy sample (its number)", type="category", autorange="reversed", showgrid=False, tickfont={"size": 12}
    )
    title = f"What became of each noisy label: {data}, {PLACES[placement]}, {SHORT[arm]}, seed {seed} ({said(origin)})"
    return theme.finish(
        figure, title, "Map of noisy samples and epochs: memorised, random or recovered.", result.provenance
    ).update_layout(height=760)


# ---- what a sample looks like ----


def as_image(text: str) -> np.ndarray | None:
    """[8, 8] grey levels 0 to 2 of a digit that is written as 16 words of four levels; None for other texts."""
    if not re.fullmatch(r"(?:[0-2]{4} ){15}[0-2]{4}", text):
        return None
    levels = np.array([[int(c) for c in word] for word in text.split()])
    return levels.reshape(4, 4, 2, 2).transpose(0, 2, 1, 3).reshape(8, 8)


def sample_html(text: str) -> str:
    """A sample as a person sees it: a digit as a small picture, anything else as its text."""
    image = as_image(text)
    if image is None:
        return f"<blockquote style='margin:.4em 1em'>{html.escape(text)}</blockquote>"
    greys = ("#ffffff", "#999999", "#000000")
    rows = "".join(
        "<tr>"
        + "".join(f"<td style='width:14px;height:14px;padding:0;background:{greys[v]}'></td>" for v in line)
        + "</tr>"
        for line in image
    )
    return (
        "<table role='img' aria-label='a handwritten digit' style='border-collapse:collapse;border:1px solid"
        f" #777;margin:.4em 1em'>{rows}</table>"
    )
