"""Figure of the tokens on which a unit is most active."""

import pandas as pd
import plotly.graph_objects as go

from workbench.core.result import Result

from . import charts


def token_bars(result: Result) -> go.Figure:
    """One bar a token, the most active first; each is named by its prompt, position and text."""
    data = result.data
    labels = [
        f"{e}:{p} {t.strip()}"
        for e, p, t in zip(*(data[n].values.tolist() for n in ("example", "pos", "token")), strict=True)
    ]
    unit = f"{data.attrs['kind']} {data.attrs['index']} of layer {data.attrs['layer']}"
    values = pd.Series(data["activation"].values, index=labels)
    words = {"x_title": "Prompt : position, and token", "y_title": charts.named(data["activation"])}
    return charts.bars(values, result.provenance, **words, title=f"Tokens on which {unit} is most active")


def figures(result: Result) -> dict[str, go.Figure]:
    """All figures of top activations."""
    return {"top_activations": token_bars(result)}
