"""Figures and tables of predictions: tokens coloured by loss, likeliest tokens at a position, one prompt or two side by
side.

Functions take one Result or two, each of one prompt (the first, where it holds several). "Loss of a token" is always
what that very token cost: in a causal model it was predicted one position earlier.
"""

import html
from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from workbench.core.result import Result

from . import theme

QUANTITIES = {"loss": "Loss of the token", "entropy": "Entropy of the prediction"}
CHANGE = {"change": "Loss, second minus first"}
ROW_HEIGHT = {1: 385, 2: 250}  # pixels, of one plot and of each of two
LABELS = 60  # tokens named under an axis; of more, every n-th


def one_prompt(result: Result, example: int = 0) -> xr.Dataset:
    """The data of one prompt over pos and rank, without what lies past its end."""
    data = result.data.isel(example=example)
    return data.isel(pos=slice(0, int(data["n_tokens"])))


def visible(token: object) -> str:
    """A token as a label: spaces and line breaks can be seen, and there is something where it is empty."""
    return str(token).replace(" ", "·").replace("\n", "↵").replace("\t", "⇥") or "∅"


def sides(results: Sequence[Result]) -> list[str]:
    """What to call each: the model where they differ, else first and second prompt."""
    if len(results) == 1:
        return [""]
    names = [str(r.provenance.model.get("name", "model")) for r in results]
    if results[0].provenance.model == results[1].provenance.model:
        return ["first prompt", "second prompt"]
    names = [
        name if len(name) <= 40 else "…" + name[-39:] for name in names
    ]  # of a long path or hub id the end tells most
    return names if names[0] != names[1] else [f"first {names[0]}", f"second {names[1]}"]


# ---- numbers ----


def own_loss(result: Result) -> np.ndarray:
    """[pos] what each token of the prompt cost, in nats; nan for a first token that nothing predicted."""
    loss = one_prompt(result)["loss"].values
    return np.concatenate([[np.nan], loss[:-1]]).astype(np.float32) if result.data.attrs["offset"] else loss


def token_values(results: Sequence[Result], quantity: str = "loss") -> list[np.ndarray]:
    """[pos] numbers that colour the tokens of each prompt, in nats: a key of QUANTITIES, or "change": the second's loss
    minus the first's at tokens that both have, nan at others."""
    if quantity == "entropy":
        return [one_prompt(r)["entropy"].values for r in results]
    losses = [own_loss(r) for r in results]
    if quantity == "loss":
        return losses
    changes = [np.full_like(loss, np.nan) for loss in losses]
    for first, second in aligned(*results):
        changes[0][first] = changes[1][second] = losses[1][second] - losses[0][first]
    return changes


def token_table(*results: Result) -> pd.DataFrame:
    """One row a token: pos, token_id, token, loss (of this token), and entropy, likeliest, probability of the
    prediction made at its position. With two prompts a column says which."""
    tables = []
    for result, side in zip(results, sides(results), strict=True):
        data = one_prompt(result)
        columns = {
            "pos": data["pos"].values,
            "token_id": data["read_id"].values,
            "token": data["read"].values,
            "loss": own_loss(result),
            "entropy": data["entropy"].values,
        }
        columns |= {
            "likeliest": data["token"].isel(rank=0).values,
            "probability": data["probability"].isel(rank=0).values,
        }
        tables.append(pd.DataFrame(({"side": side} if side else {}) | columns))
    return pd.concat(tables, ignore_index=True)


def choices(result: Result, pos: int, top_k: int = 10) -> pd.DataFrame:
    """The likeliest tokens predicted at a position: rank, token, token_id, probability, actual (it is what the
    prompt has there).
    """
    data = one_prompt(result)
    there, at = data.isel(pos=pos, rank=slice(0, top_k)), pos + result.data.attrs["offset"]
    actual = int(data["read_id"][at]) if at < data.sizes["pos"] else -1
    ids = there["token_id"].values
    return pd.DataFrame(
        {
            "rank": there["rank"].values,
            "token": there["token"].values,
            "token_id": ids,
            "probability": there["probability"].values,
            "actual": (ids == actual) & (ids >= 0),
        }
    )


# ---- two prompts ----


def _blocks(first: Result, second: Result) -> list[tuple[str, int, int, int, int]]:
    """difflib's blocks over the two token lists. Models of one vocabulary: equal text is equal; of two: leading space
    aside, which some families write into their tokens and some do not."""
    exact = first.data.attrs["d_vocab"] == second.data.attrs["d_vocab"]
    texts = [
        [str(t) if exact else str(t).strip() or str(t) for t in one_prompt(r)["read"].values] for r in (first, second)
    ]
    return SequenceMatcher(None, *texts, autojunk=False).get_opcodes()


def aligned(first: Result, second: Result) -> list[tuple[int, int]]:
    """(position in the first, position in the second) of tokens that both have, in order."""
    return [
        (i + n, j + n) for kind, i, until, j, _ in _blocks(first, second) if kind == "equal" for n in range(until - i)
    ]


def differences(first: Result, second: Result) -> pd.DataFrame:
    """Where the two token lists differ: first_pos, first, second_pos, second; a position is where it starts, tokens
    as text.
    """
    reads = [[visible(t) for t in one_prompt(r)["read"].values] for r in (first, second)]
    rows = [
        {
            "first_pos": i,
            "first": " | ".join(reads[0][i:i_end]),
            "second_pos": j,
            "second": " | ".join(reads[1][j:j_end]),
        }
        for kind, i, i_end, j, j_end in _blocks(first, second)
        if kind != "equal"
    ]
    return pd.DataFrame(rows, columns=["first_pos", "first", "second_pos", "second"])


# ---- figures ----


def _shown(token: object) -> str:
    """A token in a plotly label, cut where it is long."""
    text = visible(token)
    return theme.label(text if len(text) <= 18 else text[:17] + "…")


def token_bars(*results: Result, quantity: str = "loss") -> go.Figure:
    """The number that colours each token, as bars along the prompt; a second prompt below the first, on the same
    scale.
    """
    values, names, n = token_values(results, quantity), sides(results), len(results)
    title = (QUANTITIES | CHANGE)[quantity]
    labels = [[f"{pos} {_shown(token)}" for pos, token in enumerate(one_prompt(r)["read"].values)] for r in results]
    gap = 60 + 8 * max(len(html.unescape(label)) for label in labels[0])  # labels stand upright between the two
    plots = n * ROW_HEIGHT[n] + (n - 1) * gap
    bars, layout = [], {}
    for i in range(n):
        down, step, at = i * (ROW_HEIGHT[n] + gap) / plots, -(-len(labels[i]) // LABELS), list(range(len(labels[i])))
        bars.append(
            go.Bar(
                x=at,
                y=values[i],
                text=labels[i],
                textposition="none",
                xaxis=f"x{i + 1}",
                yaxis=f"y{i + 1}",
                showlegend=False,
                marker={"color": theme.BLUE if i == 0 or quantity == "change" else theme.ORANGE},
                hovertemplate="%{text}: %{y:.3f} nats<extra></extra>",
            )
        )
        words = {"text": "Position (token read)" if i == n - 1 else "", "standoff": 18}
        layout[f"xaxis{i + 1}"] = {
            "anchor": f"y{i + 1}",
            "tickvals": at[::step],
            "ticktext": labels[i][::step],
            "range": [-0.6, len(at) - 0.4],
            "showgrid": False,
            "title": words,
        }
        domain = [1 - down - ROW_HEIGHT[n] / plots if i < n - 1 else 0, 1 - down]
        says = "Entropy (nats)" if quantity == "entropy" else "Loss (nats)"
        layout[f"yaxis{i + 1}"] = {
            "anchor": f"x{i + 1}",
            "domain": domain,
            "title": says,
            "zeroline": True,
            "zerolinecolor": "#444444",
        } | ({"matches": "y"} if i else {})
    headings = [
        _heading(theme.label(name), 0.5, 1 - i * (ROW_HEIGHT[n] + gap) / plots) for i, name in enumerate(names) if name
    ]
    alt = f"Bars of {title.lower()} in nats by position; " + _largest(results, values, names)
    figure = go.Figure(bars, {**layout, "annotations": headings})
    theme.below_tokens(theme.finish(figure, title, alt, results[0].provenance)).update_layout(height=plots + 70 + 185)
    return _both_sources(figure, results)


def next_tokens(results: Sequence[Result], positions: Sequence[int], top_k: int = 10) -> go.Figure:
    """The likeliest tokens predicted at one position of each prompt; the token that is really there in another
    colour.
    """
    names, n = sides(results), len(results)
    tables = [choices(result, pos, top_k) for result, pos in zip(results, positions, strict=True)]
    wheres = [_where(result, pos) for result, pos in zip(results, positions, strict=True)]
    top = max((float(table.probability.max()) for table in tables if table.probability.notna().any()), default=1.0)
    mark = "  ← follows" if results[0].data.attrs["offset"] else "  ← stands there"
    bars, layout, headings = [], {}, []
    for i, table in enumerate(tables):
        labels = [f"{_shown(token)}  (id {id_})" for token, id_ in zip(table.token, table.token_id, strict=True)]
        bars.append(
            go.Bar(
                x=table.probability,
                y=table["rank"],
                orientation="h",
                textposition="outside",
                cliponaxis=False,
                xaxis=f"x{i + 1}",
                yaxis=f"y{i + 1}",
                text=[
                    f"{p:.4g}" + (mark if actual else "")
                    for p, actual in zip(table.probability, table.actual, strict=True)
                ],
                marker={"color": [theme.ORANGE if actual else theme.BLUE for actual in table.actual]},
                customdata=labels,
                showlegend=False,
                hovertemplate="%{customdata}: %{x:.4f}<extra></extra>",
            )
        )
        domain = [0, 1] if n == 1 else [i * 0.6, i * 0.6 + 0.4]
        layout[f"xaxis{i + 1}"] = {
            "anchor": f"y{i + 1}",
            "domain": domain,
            "title": "Probability",
            "range": [0, top * 1.35],
            "tickvals": [0, 0.25, 0.5, 0.75, 1] if top > 0.6 else None,
        }
        layout[f"yaxis{i + 1}"] = {
            "anchor": f"x{i + 1}",
            "tickvals": list(table["rank"]),
            "ticktext": labels,
            "range": [len(table) - 0.5, -0.5],
            "showgrid": False,
            "ticks": "",
            "ticklabelstandoff": 6,
        }
        headings += [_heading(f"{theme.label(names[i])}<br>{wheres[i]}", sum(domain) / 2, 1)] if names[i] else []
    alt = "Bars of the likeliest tokens: " + "; ".join(
        f"{name + ', ' if name else ''}{html.unescape(where)}: first {visible(table.token[0])} at"
        f" {table.probability[0]:.2f}"
        for name, where, table in zip(names, wheres, tables, strict=True)
    )
    title = f"Likeliest tokens {wheres[0]}" if n == 1 else "Likeliest tokens"
    figure = theme.finish(go.Figure(bars, {**layout, "annotations": headings}), title, alt, results[0].provenance)
    return _both_sources(
        figure.update_layout(height=theme.HEIGHT + 30, margin={"t": 100}) if n == 2 else figure, results
    )


def _heading(text: str, x: float, y: float) -> dict:
    """The line above one of two plots."""
    return {
        "text": text,
        "x": x,
        "y": y,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "center",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 15},
    }


def _where(result: Result, pos: int) -> str:
    token = _shown(one_prompt(result)["read"].values[pos])
    return f"after position {pos}, {token}" if result.data.attrs["offset"] else f"at position {pos}, masked ({token})"


def _largest(results: Sequence[Result], values: Sequence[np.ndarray], names: Sequence[str]) -> str:
    """The largest bar of each, in words."""
    found = []
    for result, side, name in zip(results, values, names, strict=True):
        if np.isfinite(side).any():
            at = int(np.nanargmax(np.abs(side)))
            found.append(
                f"{name + ': ' if name else ''}the largest is {side[at]:.2f} at position {at},"
                f" {visible(one_prompt(result)['read'].values[at])}"
            )
    return "; ".join(found) or "there is none yet"


def _both_sources(figure: go.Figure, results: Sequence[Result]) -> go.Figure:
    """The line of provenance, a second one for the second Result."""
    if len(results) == 2:
        both = [r.provenance.short() for r in results]
        figure.layout.annotations[-1].update(text="<br>".join(map(theme.label, both)), align="left")
        figure.update_layout(
            meta=figure.layout.meta | {"provenance": "; ".join(both)},
            height=figure.layout.height + 20,
            margin={"b": (figure.layout.margin.b or theme.TEMPLATE.layout.margin.b) + 20},
        )
    return figure


def figures(result: Result) -> dict[str, go.Figure]:
    """All figures of predictions: of its first prompt, at that one's last position."""
    last = int(result.data["n_tokens"][0]) - 1
    return {"token_loss": token_bars(result), "next_tokens": next_tokens([result], [last])}
