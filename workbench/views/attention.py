"""Figures and tables of attention: a grid of every head's pattern, one pattern with its tokens, head scores, heads
switched off.

Thumbnails show the square root of the weight, so that a share of 0.1 still reads; large patterns show the weight
itself.
"""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.core.result import Result

from . import theme

BLANK, TOP = 255, 254  # codes of a thumbnail: nothing there (a causal model's future), and a weight of 1
MAX_SIDE, MAX_BYTES = 64, 600_000  # of a thumbnail, and of all of them: 12 x 12 heads at 64 tokens are sent whole
DRAWN_SIDE = 32  # thumbnails in a report's figure
TICKS = (0.0, 0.05, 0.2, 0.5, 1.0)


def future(result: Result) -> np.ndarray:
    """[query_pos, key_pos] True where a causal model cannot look."""
    side = result.data.sizes["query_pos"]
    return np.triu(np.ones((side, side), bool), 1) & bool(result.data.attrs["causal"])


def thumbnails(result: Result, most: int = MAX_SIDE) -> np.ndarray:
    """[layer, head, side, side] uint8: TOP * sqrt(weight), BLANK where no number is or a causal model cannot look.

    Above `most` positions, or MAX_BYTES together, each cell is the largest weight of its block.
    """
    pattern = result.data["pattern"].values
    n_layers, n_heads, side = pattern.shape[:3]
    most = max(1, min(most, int((MAX_BYTES / (n_layers * n_heads)) ** 0.5)))
    starts = np.arange(0, side, -(-side // most))
    small = pattern if len(starts) == side else np.maximum.reduceat(np.maximum.reduceat(pattern, starts, 2), starts, 3)
    root = np.rint(TOP * np.sqrt(np.clip(small, 0, 1)))
    codes = np.where(np.isfinite(root), root, BLANK).astype(np.uint8)
    if result.data.attrs["causal"]:
        codes[..., np.triu(np.ones((len(starts), len(starts)), bool), 1)] = BLANK
    return codes


def weights(result: Result, layer: int, head: int) -> np.ndarray:
    """[query_pos, key_pos] one head's pattern; nan where a causal model cannot look."""
    return np.where(future(result), np.nan, result.data["pattern"].values[layer, head])


def token_names(result: Result) -> list[str]:
    """Position and token of every row of a pattern; a pooled row is named by its first."""
    more = " ..." if result.data.attrs["pool"] > 1 else ""
    return [
        f"{pos} {token}{more}"
        for pos, token in zip(result.data["query_pos"].values, result.data["token"].values, strict=True)
    ]


def score_limits(result: Result, score: str) -> tuple[float, float]:
    """Colour range of a score: 0 to 1 for shares, 0 to the largest for others."""
    found = result.data["scores"].sel(score=score)
    if str(found.unit.values).startswith("share"):
        return 0.0, 1.0
    return 0.0, float(np.nanmax(found.values)) if np.isfinite(found.values).any() else 1.0


def head_table(result: Result, off: list | tuple = ()) -> pd.DataFrame:
    """Every head with its scores and whether it is switched off: columns layer, head, one per score, off."""
    scores = result.data["scores"]
    wide = {str(key): scores.sel(score=key).values.ravel() for key in scores.score.values}
    n_layers, n_heads = scores.sizes["layer"], scores.sizes["head"]
    layer, head = np.divmod(np.arange(n_layers * n_heads), n_heads)
    gone = {tuple(pair) for pair in off}
    return pd.DataFrame(
        {
            "layer": layer,
            "head": head,
            **wide,
            "off": [pair in gone for pair in zip(layer.tolist(), head.tolist(), strict=True)],
        }
    )


def pattern_table(result: Result, layer: int, head: int) -> pd.DataFrame:
    """One head's weights: columns query_pos, query, key_pos, key, weight; cells a causal model cannot see are left
    out.
    """
    shown, token, pos = weights(result, layer, head), result.data["token"].values, result.data["query_pos"].values
    query, key = np.nonzero(np.isfinite(shown))
    return pd.DataFrame(
        {
            "query_pos": pos[query],
            "query": token[query],
            "key_pos": pos[key],
            "key": token[key],
            "weight": shown[query, key],
        }
    )


def change_table(result: Result) -> pd.DataFrame:
    """Tokens (or classes) likely with the heads on or off: columns token, id, heads_on, heads_off, change
    (probabilities).
    """
    if "probability" not in result.data:
        return pd.DataFrame()
    on, off = result.data["probability"].values
    return pd.DataFrame(
        {
            "token": result.data["candidate"].values,
            "id": result.data["candidate_id"].values,
            "heads_on": on,
            "heads_off": off,
            "change": off - on,
        }
    )


# ---- figures ----


def grid(result: Result, score: str = "first_token", off: list | tuple = ()) -> go.Figure:
    """Every head's pattern as a small picture, layers down and heads across, its score above it; heads in `off` are
    named so.
    """
    codes = thumbnails(result, DRAWN_SIDE)
    n_layers, n_heads, side, _ = codes.shape
    gap, head_room = max(1, side // 12), max(2, side // 4)
    sheet = np.full((n_layers * (side + head_room), n_heads * (side + gap)), np.nan, np.float32)
    for layer in range(n_layers):
        for head in range(n_heads):
            top, left = layer * (side + head_room) + head_room, head * (side + gap)
            tile = codes[layer, head].astype(np.float32) / TOP
            sheet[top : top + side, left : left + side] = np.where(codes[layer, head] == BLANK, np.nan, tile)
    values = result.data["scores"].sel(score=score)
    centre_x, centre_y = (
        np.arange(n_heads) * (side + gap) + side / 2 - 0.5,
        np.arange(n_layers) * (side + head_room) + head_room + side / 2 - 0.5,
    )
    bar = {
        "title": "weight<br>(root scale)",
        "tickvals": np.sqrt(TICKS).tolist(),
        "ticktext": [f"{t:g}" for t in TICKS],
    }
    figure = go.Figure(go.Heatmap(z=sheet, colorscale=theme.UNSIGNED, zmin=0, zmax=1, colorbar=bar, hoverinfo="skip"))
    y_text, x_text = np.meshgrid(centre_y - side / 2 - head_room / 2, centre_x, indexing="ij")
    labels = ["-" if np.isnan(v) else f"{v:.2f}" for v in values.values.ravel()]
    for layer, head in off:
        labels[layer * n_heads + head] += " off"
    size = int(np.clip(520 / n_heads, 7, 13))
    figure.add_scatter(
        x=x_text.ravel(),
        y=y_text.ravel(),
        text=labels,
        mode="text",
        textfont={"size": size},
        hoverinfo="skip",
        showlegend=False,
    )
    figure.update_xaxes(
        title="Head (queries down, keys across in each)",
        tickvals=centre_x,
        ticktext=[str(h) for h in range(n_heads)],
        showgrid=False,
        ticks="",
    )
    figure.update_yaxes(
        title="Layer",
        tickvals=centre_y,
        ticktext=[str(n) for n in range(n_layers)],
        showgrid=False,
        ticks="",
        range=[len(sheet) - 0.5, -0.5],
    )
    title = str(values.title.values)
    alt = (
        f"Attention patterns of {n_layers} layers x {n_heads} heads over {result.data.attrs['n_pos']} positions; the"
        f" number above each is its score, {title.lower()} ({values.unit.values})."
    )
    if np.isfinite(values.values).any():
        best = np.unravel_index(int(np.nanargmax(values.values)), values.shape)
        alt += f" The largest is head {best[1]} of layer {best[0]} with {float(values.values[best]):.2f}."
    theme.finish(
        figure,
        f"Attention of every head{_heads_off(result)}; above it: {title[0].lower()}{title[1:]} ({values.unit.values})",
        alt,
        result.provenance,
    )
    tall = (theme.WIDTH - 190) / n_heads * n_layers * (side + head_room) / (side + gap) + 175
    return figure.update_layout(height=float(np.clip(tall, 360, 1000)), title_font_size=17)


def pattern(result: Result, layer: int, head: int) -> go.Figure:
    """One head's pattern, queries down and keys across, with token labels."""
    shown, labels = weights(result, layer, head), token_names(result)
    figure = go.Figure(
        go.Heatmap(
            z=shown,
            x=[theme.label(t) for t in labels],
            y=[theme.label(t) for t in labels],
            colorscale=theme.UNSIGNED,
            zmin=0,
            zmax=pattern_top(shown),
            colorbar={"title": "share of<br>attention"},
            hovertemplate="%{y} attends to %{x}: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_xaxes(title={"text": "Key (attended to)", "standoff": 12}, type="category", showgrid=False)
    figure.update_yaxes(title="Query (attends)", type="category", showgrid=False, autorange="reversed")
    first = min(1, len(shown) - 1)  # the first query of a causal model can only attend to itself
    at = theme.largest_at(shown[first:])
    alt = f"Attention pattern of head {head} in layer {layer}"
    if at is None:
        alt += "."
    else:
        query, key = at[0] + first, at[1]
        weight = f"its largest weight is {shown[query, key]:.2f}"
        alt += f"; {weight}, from {labels[query]} to {labels[key]}."
    return theme.below_tokens(
        theme.finish(figure, f"Attention of head {head} in layer {layer}{_heads_off(result)}", alt, result.provenance)
    )


def pattern_top(shown: np.ndarray) -> float:
    """Top of a large pattern's colour range: its largest weight, so that heads that spread wide can be read."""
    at = theme.largest_at(shown)
    return (float(shown[at]) if at is not None else 0.0) or 1.0


def head_scores(result: Result, score: str = "first_token") -> go.Figure:
    """One score of every head, layers down and heads across."""
    values = result.data["scores"].sel(score=score)
    low, high = score_limits(result, score)
    figure = go.Figure(
        go.Heatmap(
            z=values.values,
            x=[str(h) for h in values["head"].values],
            y=[str(n) for n in values.layer.values],
            colorscale=theme.UNSIGNED,
            zmin=low,
            zmax=high,
            colorbar={"title": str(values.unit.values)},
            texttemplate="%{z:.2f}",
            hovertemplate="layer %{y}, head %{x}: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_xaxes(title="Head", type="category", showgrid=False)
    figure.update_yaxes(title="Layer", type="category", showgrid=False, autorange="reversed")
    title = str(values.title.values)
    return theme.finish(
        figure,
        f"{title} by head",
        f"{title} of every head ({values.unit.values}), layers down and heads across.",
        result.provenance,
    )


def change(result: Result) -> go.Figure:
    """Probabilities at the last position with all heads on and with some off, for tokens likely in either."""
    table = change_table(result)
    labels = [theme.label(f"{i} {t}") for i, t in enumerate(table.token)]  # equal texts stay apart
    figure = go.Figure()
    for name, column, colour in (("all heads on", "heads_on", theme.BLUE), ("heads off", "heads_off", theme.ORANGE)):
        figure.add_bar(
            x=labels,
            y=table[column],
            name=name,
            marker_color=colour,
            hovertemplate="%{x}: %{y:.3f}<extra>" + name + "</extra>",
        )
    what = result.data["probability"].attrs["long_name"]
    figure.update_xaxes(
        title="Token" if "token" in what else "Class",
        type="category",
        tickvals=labels,
        ticktext=[theme.label(t) for t in table.token],
    )
    figure.update_yaxes(title="Probability", range=[0, 1])
    first = table.iloc[0]
    alt = (
        f"{what} with all heads on and with {_count(result)} off; {first.token} goes from {first.heads_on:.3f} to"
        f" {first.heads_off:.3f}."
    )
    return theme.finish(figure, f"{what} with {_count(result)} off", alt, result.provenance)


def _count(result: Result) -> str:
    n = int(result.data.attrs["n_replaced"])
    return f"{n} head{'s' if n > 1 else ''}"


def _heads_off(result: Result) -> str:
    return f" ({_count(result)} off)" if "n_replaced" in result.data.attrs else ""


def figures(result: Result) -> dict[str, go.Figure]:
    """All figures of a run: the grid, the scores, and what switching heads off did if some were."""
    found = {"attention_grid": grid(result), "head_scores": head_scores(result)}
    return found | ({"heads_off": change(result)} if "probability" in result.data else {})
