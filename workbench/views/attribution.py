"""Figures and tables of direct logit attribution: bars by component, a map of heads, the neurons that wrote most.

Signed numbers: positive pushes the answer's logit (or its difference to the other token's) up.
"""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.core.result import Result

from . import theme

_PART = r"^L(?P<layer>\d+)(?:[HN](?P<unit>\d+)| )"


def parts_table(result: Result, example: int = 0) -> pd.DataFrame:
    """Every part in the model's order: columns part, layer (-1 outside the blocks), unit (head or neuron, -1 for
    none), logits.
    """
    values = result.data["attribution"].isel(example=example)
    part = pd.Series(values.part.values.astype(str), name="part")
    numbers = part.str.extract(_PART).fillna(-1).astype(int)
    return pd.concat([part, numbers, pd.Series(values.values.astype(float), name="logits")], axis=1)


def head_map(result: Result, example: int = 0) -> np.ndarray:
    """[layer, head] attribution of every head, from a result by head."""
    heads = parts_table(result, example).query("unit >= 0")
    return heads.pivot(index="layer", columns="unit", values="logits").to_numpy()


def top_neurons(result: Result, n: int = 15, example: int = 0) -> pd.DataFrame:
    """The n neurons of largest |attribution|, from a result by neuron: columns part, layer, unit, logits."""
    return _largest(parts_table(result, example).query("unit >= 0"), n)


def neurons_said(result: Result, n: int = 15, example: int = 0) -> tuple[str, pd.DataFrame]:
    """How much all neurons and the first n add together, as a sentence, and the table of the first n."""
    every = parts_table(result, example).query("unit >= 0")
    table = _largest(every, n)
    return (
        (
            f"{len(every)} neurons together {every.logits.sum():+.3f} logits, these {len(table)}:"
            f" {table.logits.sum():+.3f}"
        ),
        table,
    )


def _largest(neurons: pd.DataFrame, n: int) -> pd.DataFrame:
    order = np.argsort(-neurons.logits.abs().to_numpy(), kind="stable")[:n]
    return neurons.iloc[order].reset_index(drop=True)


def of_what(result: Result, example: int = 0) -> str:
    """ "logit of 'x'" or "logit of 'x' minus 'y'", for titles. The other token's text is not in the Result, so its
    id stands there if unknown.
    """
    answer = str(result.data["answer"].values[example])
    others = result.spec.get("others")
    if others is None:
        return f"logit of {answer!r}"
    other = str(result.data["other"].values[example]) if "other" in result.data.coords else f"token {others[example]}"
    return f"logit of {answer!r} minus that of {other!r}"


def components(result: Result, example: int = 0) -> go.Figure:
    """One bar a component, in the order in which they write."""
    table = parts_table(result, example)
    colours = [theme.RED if value >= 0 else theme.BLUE for value in table.logits]  # as the map of heads has it
    figure = go.Figure(
        go.Bar(
            x=table.part.map(theme.label),
            y=table.logits,
            marker_color=colours,
            hovertemplate="%{x}: %{y:.3f} logits<extra></extra>",
        )
    )
    figure.add_hline(y=0, line_color="#777777", line_width=1)
    figure.update_xaxes(title={"text": "Part of the model", "standoff": 12}, type="category", showgrid=False)
    figure.update_yaxes(title="Contribution (logits)")
    best = table.iloc[int(table.logits.abs().to_numpy().argmax())]
    total = float(result.data["logit"].values[example])
    alt = (
        f"What each part of the model adds to the {of_what(result, example)}; the parts add up to {total:.2f} logits,"
        f" the largest is {best.part} with {best.logits:.2f}."
    )
    finished = theme.finish(
        figure,
        theme.label(f"Parts of the {of_what(result, example)}: they add up to {total:.2f}"),
        alt,
        result.provenance,
    )
    return theme.below_tokens(finished) if len(table) > 10 else finished


def heads(result: Result, example: int = 0) -> go.Figure:
    """Layers down, heads across, signed and centred at 0."""
    values = head_map(result, example)
    n_layers, n_heads = values.shape
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=[str(h) for h in range(n_heads)],
            y=[str(n) for n in range(n_layers)],
            colorscale=theme.SIGNED,
            reversescale=True,
            colorbar={"title": "logits"},
            hovertemplate="layer %{y}, head %{x}: %{z:.3f} logits<extra></extra>",
            **theme.signed_limits(values),
        )
    )
    figure.update_xaxes(title="Head", type="category", showgrid=False)
    figure.update_yaxes(title="Layer", type="category", showgrid=False, autorange="reversed")
    return theme.finish(
        figure,
        theme.label(f"Heads: what each adds to the {of_what(result, example)}"),
        heads_alt(result, example),
        result.provenance,
    )


def heads_alt(result: Result, example: int = 0) -> str:
    """The map of heads in words."""
    values = head_map(result, example)
    layer, head = np.unravel_index(int(np.abs(values).argmax()), values.shape)
    return (
        f"What each head adds to the {of_what(result, example)}; the largest is head {head} of layer {layer} with"
        f" {values[layer, head]:.2f} logits."
    )


def neurons(result: Result, n: int = 15, example: int = 0) -> go.Figure:
    """The n neurons that wrote most, one bar each."""
    table = top_neurons(result, n, example)
    colours = [theme.RED if value >= 0 else theme.BLUE for value in table.logits]  # as the map of heads has it
    figure = go.Figure(
        go.Bar(
            x=table.part.map(theme.label),
            y=table.logits,
            marker_color=colours,
            hovertemplate="%{x}: %{y:.3f} logits<extra></extra>",
        )
    )
    figure.add_hline(y=0, line_color="#777777", line_width=1)
    figure.update_xaxes(title={"text": "Neuron (layer and number)", "standoff": 12}, type="category", showgrid=False)
    figure.update_yaxes(title="Contribution (logits)")
    first = table.iloc[0]
    alt = (
        f"The {len(table)} neurons that add most to the {of_what(result, example)}, by size; the first is {first.part}"
        f" with {first.logits:.2f} logits."
    )
    return theme.below_tokens(
        theme.finish(
            figure,
            theme.label(f"Neurons: what the first {len(table)} add to the {of_what(result, example)}"),
            alt,
            result.provenance,
        )
    )


def figures(result: Result) -> dict[str, go.Figure]:
    """All figures of a direct logit attribution: a map where its parts are heads, bars otherwise."""
    by = str(result.spec["by"])
    draw = {"component": components, "head": heads, "neuron": neurons}[by]
    return {f"attribution_by_{by}": draw(result)}
