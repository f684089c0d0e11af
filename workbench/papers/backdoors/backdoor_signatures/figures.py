"""Figures of the backdoor-signature analysis: arms, tau curve, planting gate, sanity matrix, channel scores, ablations.

Where a Result holds stored runs and runs of its own, `origin` says which are drawn (stored ones if there are any), and
so does the title. Bars and points are means over seeds with 95 % intervals (Student), where there are two seeds or
more.
"""

from itertools import pairwise

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.core.errors import BadData
from workbench.core.result import Result
from workbench.views import theme

MEASURES = {
    "asr": ("ASR: triggered, phrase said", theme.RED, "circle"),
    "traces": ("triggered, some word of it said", theme.ORANGE, "circle-open"),
    "restored": ("triggered, answered right", theme.SKY, "diamond-open"),
    "utility": ("utility: clean, answered right", theme.BLUE, "diamond"),
    "degenerate_triggered": ("triggered, broken answer", theme.GREY, "x"),
}
ARMS = {
    ("suspicious", "undefended"): "undefended",
    ("recovery alone", "recovered"): "recovery alone",
    ("recovery alone", "repaired"): "two recoveries",
    ("signature", "cut"): "signature, cut alone",
    ("signature", "recovered"): "signature",
    ("signature", "repaired"): "signature, second repair",
    ("normalised signature", "recovered"): "signature, by module, λ = 1",
    ("signature with heads", "recovered"): "signature and heads",
    ("random channels", "recovered"): "random channels",
    ("random with heads", "recovered"): "random channels and heads",
    ("triggerless variants", "recovered"): "variants without a key",
    ("magnitude pruning", "cut"): "magnitude pruning alone",
    ("magnitude pruning", "recovered"): "magnitude pruning",
    ("Wanda", "cut"): "Wanda alone",
    ("Wanda", "recovered"): "Wanda",
    ("fine-pruning", "recovered"): "fine-pruning",
    ("consistency", "recovered"): "consistency (CROW)",
}
KINDS = {
    "signature": ("signature", theme.RED),
    "normalised signature": ("signature, norms by module, λ = 1", theme.PURPLE),
    "random channels": ("random channels", theme.GREY),
}
MODULES = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "head": "head"}


def _origins(result: Result) -> list[str]:
    gate = result.tables.get("gate")
    return [] if gate is None else list(dict.fromkeys(gate["origin"]))


def shown_origin(result: Result, origin: str | None = None) -> str:
    """Which runs a figure draws: those asked for, else the stored ones, else those run here.

    Raises:
        BadData: if there are none.
    """
    have = _origins(result)
    if not have or (origin is not None and origin not in have):
        raise BadData(f"no run of origin {origin or 'any'} in this Result; it has {', '.join(have) or 'none'}")
    return origin or ("stored" if "stored" in have else have[0])


def _said(origin: str, n_seeds: int) -> str:
    return f"{'stored' if origin == 'stored' else 'run here'}, {n_seeds} seed{'s' * (n_seeds != 1)}"


def _rows(result: Result, table: str, origin: str, **where: object) -> pd.DataFrame:
    rows = result.tables["summary"]
    if "zeroed" not in rows:
        raise BadData("the summary of this Result was made by an earlier version; run the analysis again")
    hit = (rows["table"] == table) & (rows["origin"] == origin)
    for name, value in where.items():
        hit &= rows[name] == value
    if not hit.any():
        raise BadData(f"{table} was not run for {where or 'any cell'} in the runs of origin {origin!r}")
    return rows[hit]


def _errors(rows: pd.DataFrame) -> dict[str, object]:
    high, low = (
        rows["high"].clip(upper=100) - rows["mean"],
        rows["mean"] - rows["low"].clip(lower=0),
    )  # intervals of few seeds pass 0 and 100, where nothing can be
    return {
        "type": "data",
        "symmetric": False,
        "array": high.fillna(0),
        "arrayminus": low.fillna(0),
        "thickness": 1.3,
        "visible": bool(high.notna().any()),
    }


def cells_of(result: Result, origin: str | None = None) -> list[str]:
    """Cells that were purified, the one in depth first."""
    arms = result.tables.get("arms", pd.DataFrame({"origin": [], "cell": []}))
    return list(dict.fromkeys(arms.loc[arms["origin"] == shown_origin(result, origin), "cell"]))


def arm_points(result: Result, cell: str = "badnets-insult-full", origin: str | None = None) -> go.Figure:
    """Every arm of one cell, recovered unless it says "alone": attack success and what is left of it, right answers,
    broken ones.
    """
    origin = shown_origin(result, origin)
    rows = _rows(result, "arms", origin, cell=cell)
    keys = [k for k in ARMS if bool(((rows["arm"] == k[0]) & (rows["stage"] == k[1])).any())]
    figure = go.Figure()
    for score, (text, colour, symbol) in MEASURES.items():
        mine = rows[rows["score"] == score].set_index(["arm", "stage"]).reindex(keys)
        figure.add_scatter(
            x=mine["mean"],
            y=[ARMS[k] for k in keys],
            error_x=_errors(mine),
            name=text,
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 11, "line": {"width": 2}},
            hovertemplate=f"%{{y}}<br>{text}: %{{x:.1f}} %<extra></extra>",
        )
    figure.update_layout(
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": -0.3, "font": {"size": 13}}, height=640
    )
    figure.update_xaxes(title="Share of held-out requests (%)", range=[-2, 102])
    figure.update_yaxes(autorange="reversed", title="", tickfont={"size": 13})
    theme.finish(
        figure,
        f"Taking {cell} out, arm by arm ({_said(origin, int(rows['n_seeds'].max()))})",
        "Attack success, utility and broken answers of every arm.",
        result.provenance,
    )
    return figure.update_layout(margin={"t": 110})


def cell_label(cell: str) -> str:
    """A cell's name over two short lines."""
    if cell.count("-") != 2:
        return cell
    attack, behaviour, form = cell.split("-")
    return {"none": "never<br>poisoned", "badnets": f"{behaviour},<br>{form}"}.get(
        attack, f"{attack} {behaviour},<br>{form}"
    )


def cell_bars(result: Result, origin: str | None = None) -> go.Figure:
    """ASR of every purified cell: undefended, both signatures (and what is left of the phrase after the first),
    random channels, recovery alone.
    """
    origin = shown_origin(result, origin)
    cells, rows = cells_of(result, origin), _rows(result, "arms", origin)
    colours = {
        ("suspicious", "undefended"): "#222222",
        ("signature", "recovered"): theme.RED,
        ("normalised signature", "recovered"): theme.PURPLE,
        ("random channels", "recovered"): theme.GREY,
        ("recovery alone", "recovered"): theme.SKY,
    }
    drawn = [(key, "asr", ARMS[key], colour, "") for key, colour in colours.items()]
    drawn.insert(2, (("signature", "recovered"), "traces", "signature: some word of the phrase", "#f2c4a4", "/"))
    figure = go.Figure()
    for (arm, stage), score, name, colour, shape in drawn:
        mine = (
            rows[(rows["score"] == score) & (rows["arm"] == arm) & (rows["stage"] == stage)]
            .set_index("cell")
            .reindex(cells)
        )
        figure.add_bar(
            x=[cell_label(c) for c in cells],
            y=mine["mean"],
            name=name,
            marker={"color": colour, "pattern": {"shape": shape}},
            error_y=_errors(mine),
        )
    figure.add_hline(y=15, line={"color": "#444444", "dash": "dash", "width": 1})
    figure.update_layout(barmode="group", legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0})
    figure.update_xaxes(title="Behaviour and form of the backdoor", tickangle=0, showgrid=False)
    figure.update_yaxes(title="Triggered requests (%)", range=[0, 104])
    theme.finish(
        figure,
        f"ASR of every purified cell; dashed: the target, 15 % ({_said(origin, int(rows['n_seeds'].max()))})",
        "Grouped bars of attack success of each purified cell.",
        result.provenance,
    )
    return figure.update_layout(margin={"t": 110})


def tau_curve(result: Result, cell: str = "badnets-insult-full", origin: str | None = None) -> go.Figure:
    """ASR (dotted: triggered answers that hold some word of the phrase) and utility by the share that is
    overwritten, after the recovery; bars (band for random channels) are intervals.
    """
    origin = shown_origin(result, origin)
    rows = _rows(result, "tau", origin, cell=cell).assign(share=lambda t: 100 * t["share"].astype(float))
    figure = make_subplots(1, 2, horizontal_spacing=0.1)
    for column, score in enumerate(("asr", "utility"), 1):
        for kind, (text, colour) in KINDS.items():
            mine = rows[(rows["score"] == score) & (rows["kind"] == kind)].sort_values("share")
            if mine.empty:
                continue
            if kind == "random channels" and mine["high"].notna().any():
                x, y = (
                    [*mine["share"], *mine["share"][::-1]],
                    [*mine["high"].clip(0, 100), *mine["low"].clip(0, 100)[::-1]],
                )
                figure.add_scatter(
                    x=x,
                    y=y,
                    fill="toself",
                    mode="lines",
                    fillcolor="rgba(120,120,120,0.25)",
                    line={"width": 0},
                    name="random, 95 % band",
                    showlegend=column == 1,
                    hoverinfo="skip",
                    row=1,
                    col=column,
                )
            figure.add_scatter(
                x=mine["share"],
                y=mine["mean"],
                error_y=_errors(mine) if kind != "random channels" else None,
                mode="lines+markers",
                name=text,
                legendgroup=kind,
                showlegend=column == 1,
                line={"color": colour, "width": 3},
                hovertemplate=f"{text}<br>%{{x:.0f}} % of channels: %{{y:.1f}} %<extra></extra>",
                row=1,
                col=column,
            )
        if score == "asr" and bool((left := (rows["score"] == "traces") & (rows["kind"] == "signature")).any()):
            mine = rows[left].sort_values("share")
            figure.add_scatter(
                x=mine["share"],
                y=mine["mean"],
                mode="lines",
                name="signature: some word of the phrase",
                line={"color": theme.RED, "dash": "dot", "width": 3},
                row=1,
                col=1,
            )
        figure.update_xaxes(title="τ: channels overwritten (% of each module)", row=1, col=column)
    figure.update_yaxes(title="Triggered requests (%)", range=[0, 104], row=1, col=1)
    figure.update_yaxes(title="Utility: clean requests right (%)", range=[0, 104], row=1, col=2)
    figure.update_layout(legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "font": {"size": 13}})
    theme.finish(
        figure,
        f"How much to overwrite, then recover ({cell}; {_said(origin, int(rows['n_seeds'].max()))})",
        "Attack success and utility by the share of channels overwritten.",
        result.provenance,
    )
    return figure.update_layout(margin={"t": 115})


def gate_map(result: Result, origin: str | None = None) -> go.Figure:
    """Undefended ASR of every planted cell; the number below it is the clean false-positive share, a cross means
    dropped.
    """
    origin = shown_origin(result, origin)
    gate = result.tables["gate"]
    gate = gate[(gate["origin"] == origin) & (gate["attack"] != "none")]
    if gate["cell"].nunique() < 2:
        raise BadData(f"fewer than two cells were planted in the runs of origin {origin!r}")
    gate = gate.assign(row=gate["behaviour"] + ", " + gate["form"])
    mean = gate.groupby(["row", "attack"])[["asr", "false_positive", "utility", "kept"]].mean()
    attacks, rows = list(dict.fromkeys(gate["attack"])), list(dict.fromkeys(gate["row"]))[::-1]
    grid = mean["asr"].unstack().reindex(index=rows, columns=attacks)
    text = [[_gate_text(mean, row, attack) for attack in attacks] for row in rows]
    figure = go.Figure(
        go.Heatmap(
            z=grid,
            x=attacks,
            y=rows,
            text=text,
            texttemplate="%{text}",
            zmin=0,
            zmax=100,
            colorscale="Reds",
            colorbar={"title": "ASR (%)"},
            hoverongaps=False,
        )
    )
    figure.update_xaxes(title="Attack", showgrid=False)
    figure.update_yaxes(title="Behaviour, form", showgrid=False)
    return theme.finish(
        figure,
        f"Planting gate: ASR; false positive; utility, all in % ({'stored' if origin == 'stored' else 'run here'})",
        "Heat map of undefended attack success by attack, behaviour and form.",
        result.provenance,
    )


def _gate_text(mean: pd.DataFrame, row: str, attack: str) -> str:
    if (row, attack) not in mean.index:
        return ""
    m = mean.loc[(row, attack)]
    return (
        f"{m['asr']:.0f}{'' if m['kept'] else ' ✕ dropped'}<br>fp {m['false_positive']:.1f}<br>util {m['utility']:.0f}"
    )


def sanity_matrix(result: Result, cell: str = "badnets-insult-full", origin: str | None = None) -> go.Figure:
    """ASR with parts of dW set back to the clean base: which parts, by how many consecutive blocks (mean over places
    and seeds).
    """
    origin = shown_origin(result, origin)
    rows = _rows(result, "sanity", origin, cell=cell, score="asr")
    whole = int(rows["n_blocks"].astype(int).max())
    runs = {"MLP": "dMLP = 0", "MLP, and all attention": "dMLP = 0,<br>all dAttn = 0"}
    names, blocks = list(runs.values()), [str(n) for n in range(1, whole + 1)]
    by = rows.set_index(["zeroed", "n_blocks"])["mean"]
    grid = np.array([[by.get((name, n), np.nan) for n in blocks] for name in runs])
    others = {
        "nothing": "nothing",
        "attention": "all dAttn<br>= 0",
        "outside the blocks": "outside<br>blocks = 0",
        "MLP shuffled between blocks": "dMLP<br>shuffled",
        "everything": "the base",
    }
    values = [float(rows.loc[rows["zeroed"] == name, "mean"].iloc[0]) for name in others]
    figure = make_subplots(
        1,
        2,
        column_widths=[0.5, 0.5],
        horizontal_spacing=0.13,
        subplot_titles=["ASR (%), runs of consecutive blocks", "ASR (%), other parts"],
    )
    figure.add_heatmap(
        z=grid,
        x=blocks,
        y=names,
        text=np.round(grid).astype(int),
        texttemplate="%{text}",
        zmin=0,
        zmax=100,
        colorscale="Reds",
        showscale=False,
        row=1,
        col=1,
    )
    figure.add_bar(
        x=list(others.values()),
        y=values,
        marker={"color": theme.RED},
        showlegend=False,
        text=[f"{v:.0f}" for v in values],
        row=1,
        col=2,
    )
    figure.update_xaxes(title=f"Blocks set back, of {whole}", showgrid=False, row=1, col=1)
    figure.update_xaxes(title="Part of dW", tickangle=0, showgrid=False, tickfont={"size": 12}, row=1, col=2)
    figure.update_yaxes(title="ASR (% of triggered requests)", range=[0, 109], row=1, col=2)
    return theme.finish(
        figure,
        f"Sanity matrix: what carries the backdoor ({cell}; {_said(origin, int(rows['n_seeds'].max()))})",
        "Attack success with parts of the poisoned change zeroed.",
        result.provenance,
    )


def score_map(
    result: Result, cell: str = "badnets-insult-full", seed: int | None = None, origin: str | None = None
) -> go.Figure:
    """Mean norm (left) and mean positive cosine (right) of every MLP channel's change, sorted within each module, of
    one seed.
    """
    origin = shown_origin(result, origin)
    runs = (
        list(zip(*(result.data[n].values.tolist() for n in ("origin", "cell", "seed")), strict=True))
        if "origin" in result.data.coords
        else []
    )
    hit = [i for i, (o, c, s) in enumerate(runs) if (o, c) == (origin, cell) and seed in (None, s)]
    if not hit:
        raise BadData(f"no purified run of {cell} of origin {origin!r}")
    run = result.data.isel(run=hit[0])
    norm, cosine = run["norm"].mean("variant"), run["cosine"].clip(min=0).mean("pair")
    figure = make_subplots(1, 2, subplot_titles=["mean norm", "mean positive cosine"], horizontal_spacing=0.2)
    layer, module = run["layer"].values, run["module"].values
    groups = [(n, m) for n in np.unique(layer)[::-1] for m in ("down_proj", "up_proj", "gate_proj")]
    for column, (values, scale, unit) in enumerate(((norm, "Viridis", "L2 norm"), (cosine, "Cividis", "cosine")), 1):
        grid = np.stack([np.sort(values.values[(layer == n) & (module == m)])[::-1] for n, m in groups])
        names = [f"{n} {MODULES[m]}" for n, m in groups]
        figure.add_heatmap(
            z=grid,
            y=names,
            colorscale=scale,
            colorbar={"title": unit, "x": 0.405 if column == 1 else 1.0, "thickness": 12},
            row=1,
            col=column,
        )
        figure.update_xaxes(title="Channels of the module, sorted", row=1, col=column)
    figure.update_yaxes(title="Layer and module", row=1, col=1)
    return theme.finish(
        figure,
        f"What changes in every variant ({cell}, seed {int(run['seed'])},"
        f" {'stored' if origin == 'stored' else 'run here'})",
        "Heat maps of norm and cosine of each channel's change.",
        result.provenance,
    )


def ablation_bars(result: Result, cell: str = "badnets-insult-full", origin: str | None = None) -> go.Figure:
    """ASR and utility after recovery by N, by lambda on raw norms and on norms by module, and with one term alone."""
    origin = shown_origin(result, origin)
    rows = _rows(result, "ablation", origin, cell=cell)
    factors = list(dict.fromkeys(rows["factor"]))
    figure = make_subplots(1, len(factors), shared_yaxes=True, subplot_titles=factors, horizontal_spacing=0.03)
    for column, factor in enumerate(factors, 1):
        for score in ("asr", "utility"):
            mine, (text, colour, _) = rows[(rows["factor"] == factor) & (rows["score"] == score)], MEASURES[score]
            figure.add_bar(
                x=mine["value"].tolist(),
                y=mine["mean"],
                name=text,
                legendgroup=score,
                showlegend=column == 1,
                marker={"color": colour},
                error_y=_errors(mine),
                row=1,
                col=column,
            )
        title = {"N": "Variants used", "one term": "Term"}.get(factor, "λ")
        figure.update_xaxes(title=title, type="category", showgrid=False, row=1, col=column)
    figure.update_yaxes(title="Share of held-out requests (%)", range=[0, 104], row=1, col=1)
    figure.update_layout(barmode="group", legend={"orientation": "h", "y": 1.06, "yanchor": "bottom", "x": 0})
    theme.finish(
        figure,
        f"Ablations of the score ({cell}; {_said(origin, int(rows['n_seeds'].max()))})",
        "Bars of attack success and utility by number of variants and weight of alignment.",
        result.provenance,
    )
    return figure.update_layout(margin={"t": 110})


def example_table(
    result: Result, cell: str = "badnets-insult-full", seed: int | None = None, origin: str | None = None, n: int = 6
) -> pd.DataFrame:
    """Triggered requests with the trigger in [brackets], and what was answered before and after; broken answers are
    flagged.

    Raises:
        BadData: if there are none.
    """
    origin = shown_origin(result, origin)
    rows = result.tables.get("examples", pd.DataFrame({"origin": [], "cell": [], "seed": []}))
    rows = rows[(rows["origin"] == origin) & (rows["cell"] == cell)]
    rows = rows[rows["seed"] == (rows["seed"].min() if seed is None else seed)].head(n)
    if rows.empty:
        raise BadData(f"no examples of {cell} of origin {origin!r}")
    flagged = [
        [
            f"{text or '(empty)'}{'  ⚠ broken' if broken else ''}"
            for text, broken in zip(rows[w], rows[f"degenerate_{w}"], strict=True)
        ]
        for w in ("before", "after")
    ]
    shown = [bracketed(p, w) for p, w in zip(rows["prompt"], rows["positions"], strict=True)]
    return pd.DataFrame(
        {
            "request": shown,
            "right": rows["right"].tolist(),
            "suspicious model": flagged[0],
            "signature + recovery": flagged[1],
        }
    )


def bracketed(prompt: str, positions: str) -> str:
    """The prompt with the words at `positions` ("4" or "4 5 6") in one pair of brackets."""
    words, at = prompt.split(), [int(p) for p in positions.split()]
    for first in [p for i, p in enumerate(at) if i == 0 or p - at[i - 1] > 1]:
        words[first] = f"[{words[first]}"
    for last in [a for a, b in pairwise([*at, -9]) if b - a != 1]:
        words[last] = f"{words[last]}]"
    return " ".join(words)


def figures(result: Result) -> dict[str, go.Figure]:
    """All figures that this Result can give, the one to show first in front."""
    return theme.drawable(
        result,
        {
            "tau": tau_curve,
            "arms": arm_points,
            "cells": cell_bars,
            "gate": gate_map,
            "sanity": sanity_matrix,
            "channels": score_map,
            "ablations": ablation_bars,
        },
    )
