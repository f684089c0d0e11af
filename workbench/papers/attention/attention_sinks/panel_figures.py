"""Figure of the heads that a score switches off on one input: layer x head, the ones that are off crossed out."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.core.provenance import Provenance
from workbench.views import theme


def grid(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """[layer, head] values and whether each head is off, from rows of layer, head, value, off."""
    return table.pivot(index="layer", columns="head", values="value").to_numpy(float), table.pivot(
        index="layer", columns="head", values="off"
    ).to_numpy(bool)


def heads_map(table: pd.DataFrame, score: str, unit: str, input: int, provenance: Provenance) -> go.Figure:
    """Layers down, heads across, coloured by the score; a cross is a head that is off.

    Args:
        table: columns layer, head, value, off. score: its title. unit: of the values. input: number of the input.
    """
    values, off = grid(table)
    figure = go.Figure(
        go.Heatmap(
            z=values,
            colorscale=theme.UNSIGNED,
            zmin=min(0.0, float(values.min())),
            colorbar={"title": unit},
            hovertemplate="layer %{y}, head %{x}: %{z:.3f}<extra></extra>",
        )
    )
    layer, head = np.nonzero(off)
    for size, width, colour in (
        (15, 6, "#ffffff"),
        (14, 2.5, "#111111"),
    ):  # a dark cross with a white rim reads on every colour
        figure.add_scatter(
            x=head,
            y=layer,
            mode="markers",
            marker={"symbol": "x-thin", "size": size, "line": {"width": width, "color": colour}},
            showlegend=False,
            hoverinfo="skip",
        )
    figure.update_xaxes(title="Head", dtick=1 if values.shape[1] <= 32 else None, showgrid=False)
    figure.update_yaxes(title="Layer", dtick=1 if values.shape[0] <= 32 else None, autorange="reversed", showgrid=False)
    alt = (
        f"Heat map of {score} by layer and head on input {input}; {int(off.sum())} of {off.size} heads are off and"
        " crossed out."
    )
    return theme.finish(
        figure, f"{score} on input {input}: {int(off.sum())} of {off.size} heads are off (x)", alt, provenance
    )
