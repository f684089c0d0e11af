"""Figures of lenses and of direct logit attribution: what each layer would say, and which parts wrote the answer."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.core.result import Result

from . import theme

QUANTITIES = {"probability": "Probability of the likeliest token", "entropy": "Entropy (nats)"}


def lens_values(result: Result, quantity: str = "probability") -> np.ndarray:
    """[layer, pos] what colours the lens: a key of QUANTITIES, or "rank" of the followed token."""
    data = result.data
    if quantity == "rank":
        return np.log10(1 + data["target_rank"].isel(target=0).values)
    return data["probability"].isel(rank=0).values if quantity == "probability" else data["entropy"].values


def layer_names(result: Result) -> list[str]:
    """The embedding, then the number of blocks passed; the last is the model's own output."""
    numbers = [int(n) for n in result.data.layer.values]
    return ["embed", *(str(n) for n in numbers[1:-1]), f"{numbers[-1]} (output)"]


def cell_table(result: Result, layer: int, pos: int) -> pd.DataFrame:
    """The likeliest tokens of one cell: columns rank, token, token_id, probability. layer 0 is the embedding."""
    cell = result.data[["token", "token_id", "probability"]].isel(layer=layer, pos=pos)
    return cell.to_dataframe().reset_index()[["rank", "token", "token_id", "probability"]]


def lens_grid(result: Result, quantity: str = "probability") -> go.Figure:
    """Layers down, positions across, the likeliest next token written in each cell."""
    values, texts = lens_values(result, quantity), result.data["token"].isel(rank=0).values
    columns = [theme.label(f"{i} {t}") for i, t in enumerate(result.data["prompt"].values)]
    unit = "log10(1 + rank)" if quantity == "rank" else {"probability": "probability", "entropy": "nats"}[quantity]
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=columns,
            y=layer_names(result),
            text=np.array([[theme.label(t) for t in row] for row in texts], dtype=object),
            texttemplate="%{text}",
            textfont={"size": 13},
            colorscale=theme.UNSIGNED,
            zmin=0,
            colorbar={"title": unit},
            hovertemplate="after block %{y}, position %{x}: %{text}<br>%{z:.3f}<extra></extra>",
        )
    )
    figure.update_xaxes(title="Position (token read)", type="category", showgrid=False)
    figure.update_yaxes(title="Blocks passed", type="category", showgrid=False, autorange="reversed")
    title = "Rank of the followed token" if quantity == "rank" else QUANTITIES[quantity]
    alt = (
        f"Logit lens: {title.lower()} by blocks passed and position; at the last position the model's own first choice"
        f" is {texts[-1][-1]}."
    )
    return theme.below_tokens(theme.finish(figure, f"Logit lens: {title.lower()}", alt, result.provenance))


def figures(result: Result) -> dict[str, go.Figure]:
    """All figures of a logit lens."""
    return {"logit_lens": lens_grid(result)}
