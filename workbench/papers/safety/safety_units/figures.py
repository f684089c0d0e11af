"""Figures of the safety-units analysis: units by importance, pruning, fine-tuning, flow of labels, probe, sizes tried.

Where a Result holds stored runs and runs of its own, `origin` says which are drawn (stored ones if there are any), and
so does the title. Bars are means over seeds with 95 % intervals (Student), where there are two seeds or more.
"""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench.core.errors import BadData
from workbench.core.result import Result
from workbench.views import theme

LABELS = ("RU", "CU", "SCU", "UCU")
COLOURS = {"RU": theme.GREY, "CU": theme.SKY, "SCU": theme.RED, "UCU": theme.BLUE}
NAMES = {"RU": "redundant (RU)", "CU": "complex (CU)", "SCU": "safety-critical (SCU)", "UCU": "utility-critical (UCU)"}
MEASURES = {
    "asr_first_token": ("not refused, by first token", theme.RED),
    "asr_phrase": ("not refused, by phrase", theme.ORANGE),
    "complied": ("complied exactly", theme.PURPLE),
    "utility": ("utility: benign answered right", theme.BLUE),
}
ARMS = {
    "untouched": "before",
    "full": "full fine-tuning",
    "units": "all units only",
    "lora": "LoRA",
    "i": "(i) SCU + top CU<br>frozen",
    "random_i": "random as (i)<br>frozen",
    "ii": "(ii) SCU + all CU<br>frozen",
    "random_ii": "random as (ii)<br>frozen",
    "new_task": "full, on a<br>new format",
}
STARTS = {
    "untouched": "base, before",
    "full": "all weights trained",
    "redundant": "redundant units trained",
    "random": "random units trained",
}


def shown_origin(result: Result, origin: str | None = None) -> str:
    """Which runs a figure draws: those asked for, else the stored ones, else those run here.

    Raises:
        BadData: if there are none.
    """
    have = list(dict.fromkeys(result.data["origin"].values.tolist())) if "origin" in result.data.coords else []
    if not have or (origin is not None and origin not in have):
        raise BadData(f"no run of origin {origin or 'any'} in this Result; it has {', '.join(have) or 'none'}")
    return origin or ("stored" if "stored" in have else have[0])


def _where(result: Result, origin: str) -> str:
    n = int((result.data["origin"].values == origin).sum())
    return f"{'stored runs' if origin == 'stored' else 'run here'}, {n} seed{'s' * (n != 1)}"


AXES = {"raw": "activation² x weight²", "standard": "standard deviations in its module"}


def unit_scatter(result: Result, origin: str | None = None, scale: str = "raw") -> go.Figure:
    """Importance of every unit on the two sets, coloured by label; the first seed of the origin."""
    origin = shown_origin(result, origin)
    run = result.data.isel(run=int(np.flatnonzero(result.data["origin"].values == origin)[0]))
    title = (
        f"Every unit: safety against utility importance ({'stored' if origin == 'stored' else 'run here'}, seed"
        f" {int(run['seed'])})"
    )
    return theme.finish(
        scatter_of(run, run["label"].values, scale),
        title,
        "Scatter of unit importance on the utility and the safety set, coloured by label.",
        result.provenance,
    )


def scatter_of(run: xr.Dataset, label: np.ndarray, scale: str) -> go.Figure:
    """The points of one run, coloured by `label` [unit]; not finished."""
    x, y = (run["importance"].sel(scale=scale, set=s).values for s in ("utility", "safety"))
    module = run["module"].values
    figure = go.Figure()
    for name in ("RU", "CU", "UCU", "SCU"):
        for kind, symbol in (("mlp", "circle"), ("attention", "diamond")):
            hit = np.flatnonzero((label == LABELS.index(name)) & (module == kind))
            text = [
                f"layer {run['layer'].values[i]}, {'MLP channel' if kind == 'mlp' else 'attention unit'}"
                f" {run['index'].values[i]}"
                for i in hit
            ]
            figure.add_scatter(
                x=x[hit],
                y=y[hit],
                text=text,
                mode="markers",
                name=NAMES[name] + ("" if kind == "mlp" else ", attention"),
                showlegend=len(hit) > 0,
                marker={
                    "color": COLOURS[name],
                    "symbol": symbol,
                    "size": 6 if kind == "mlp" else 11,
                    "line": {"width": 0.5, "color": "#333333"},
                },
                hovertemplate="%{text}<br>utility %{x:.3g}<br>safety %{y:.3g}<extra></extra>",
            )
    kind = "log" if scale == "raw" else "linear"
    figure.update_xaxes(title=f"Importance on the utility set ({AXES[scale]})", type=kind, exponentformat="power")
    return figure.update_yaxes(
        title=f"Importance on the safety set<br>({AXES[scale]})", type=kind, exponentformat="power"
    )


def _bars(figure: go.Figure, rows: pd.DataFrame, names: list[str], score: str, text: str, colour: str) -> None:
    high, low = rows["high"] - rows["mean"], rows["mean"] - rows["low"]
    figure.add_bar(
        x=names,
        y=rows["mean"],
        name=text,
        marker={"color": colour},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": high.fillna(0),
            "arrayminus": low.fillna(0),
            "thickness": 1.5,
            "visible": bool(high.notna().any()),
        },
        hovertemplate=f"%{{x}}<br>{text}: %{{y:.1f}} %<extra></extra>",
    )


def _summary(result: Result, origin: str, table: str, **where: str) -> pd.DataFrame:
    rows = result.tables["summary"]
    hit = (rows["table"] == table) & (rows["origin"] == origin)
    for name, value in where.items():
        hit &= rows[name] == value
    return rows[hit]


def _finish_bars(figure: go.Figure, result: Result, title: str, alt: str) -> go.Figure:
    figure.update_layout(barmode="group", legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0})
    figure.update_xaxes(tickangle=0, showgrid=False)
    figure.update_yaxes(
        title="Share of held-out prompts (%)", range=[0, 104]
    )  # intervals of few seeds pass 0 and 100, where nothing can be
    theme.finish(figure, title, alt, result.provenance)
    return figure.update_layout(margin={"t": 100})


def pruning_bars(result: Result, origin: str | None = None) -> go.Figure:
    """ASR and utility with each group pruned, beside matched random units and the other controls."""
    origin = shown_origin(result, origin)
    rows = _summary(result, origin, "pruning", model="aligned")
    order = [("nothing", "untouched", "nothing<br>pruned")]
    order += [(g, a, f"{g}{t}") for g in ("SCU", "UCU", "RU") for a, t in (("group", ""), ("random", "<br>random"))]
    order += [("SCU", "shuffled sets", "SCU,<br>sets mixed"), ("SCU", "chosen on the base", "SCU of<br>base")]
    keys = [(g, a) for g, a, _ in order if bool(((rows["group"] == g) & (rows["arm"] == a)).any())]
    names = [t for g, a, t in order if (g, a) in keys]
    figure = go.Figure()
    for score, (text, colour) in MEASURES.items():
        mine = rows[rows["score"] == score].set_index(["group", "arm"]).reindex(keys)
        _bars(figure, mine, names, score, text, colour)
    figure.update_xaxes(title="Units pruned from the aligned model")
    return _finish_bars(
        figure,
        result,
        f"What pruning a group costs ({_where(result, origin)})",
        "Grouped bars of refusal failures and utility for every pruned group and its random match.",
    )


def freezing_bars(result: Result, origin: str | None = None) -> go.Figure:
    """ASR and utility after fine-tuning on a benign task, by what was frozen."""
    origin = shown_origin(result, origin)
    after = _summary(result, origin, "tuning", start="aligned")
    rows = pd.concat([_summary(result, origin, "pruning", model="aligned", arm="untouched"), after])
    arms = [a for a in ARMS if (rows["arm"] == a).any()]
    if after.empty:
        raise BadData(f"no fine-tune of origin {origin!r} in this Result")
    figure = go.Figure()
    for score, (text, colour) in MEASURES.items():
        _bars(
            figure,
            rows[rows["score"] == score].set_index("arm").reindex(arms),
            [ARMS[a] for a in arms],
            score,
            text,
            colour,
        )
    figure.update_xaxes(title="How the aligned model was fine-tuned", tickfont={"size": 12})
    return _finish_bars(
        figure,
        result,
        f"Benign fine-tuning with units frozen ({_where(result, origin)})",
        "Grouped bars of refusal failures and utility after fine-tuning, by what was frozen.",
    )


def budget_bars(result: Result, origin: str | None = None) -> go.Figure:
    """ASR and utility of the base model before and after aligning it through some of its units."""
    origin = shown_origin(result, origin)
    after = _summary(result, origin, "tuning", start="base")
    if after.empty:
        raise BadData(f"the base model was not aligned in the runs of origin {origin!r}")
    rows = pd.concat([_summary(result, origin, "pruning", model="base", arm="untouched"), after])
    arms = [a for a in STARTS if (rows["arm"] == a).any()]
    figure = go.Figure()
    for score, (text, colour) in MEASURES.items():
        _bars(
            figure,
            rows[rows["score"] == score].set_index("arm").reindex(arms),
            [STARTS[a] for a in arms],
            score,
            text,
            colour,
        )
    figure.update_xaxes(title="How the base model was aligned")
    return _finish_bars(
        figure,
        result,
        f"Alignment budget: training few units of the base ({_where(result, origin)})",
        "Grouped bars of refusal failures and utility of the base model before and after alignment.",
    )


def transfer_sankey(result: Result, origin: str | None = None) -> go.Figure:
    """Flow of units from their label before to their label after benign fine-tuning; mean over seeds, in percent of
    all units.
    """
    origin = shown_origin(result, origin)
    table = result.tables.get("transfer", pd.DataFrame({"origin": []}))
    flow = table[table["origin"] == origin]
    if flow.empty:
        raise BadData(f"no transfer was measured in the runs of origin {origin!r}")
    mean = flow.groupby(["before", "after"])["share"].mean()
    before, after = ([float(mean.xs(name, level=level).sum()) for name in LABELS] for level in ("before", "after"))
    pairs = [(i, j, float(mean[a, b])) for i, a in enumerate(LABELS) for j, b in enumerate(LABELS) if mean[a, b] > 0]
    colours = [COLOURS[name] for name in LABELS]
    figure = go.Figure(
        go.Sankey(
            arrangement="snap",
            textfont={"size": 15},
            node={
                "label": [f"{n} {s:.1f} %" for n, s in zip(LABELS * 2, before + after, strict=True)],
                "color": colours * 2,
                "pad": 28,
                "thickness": 22,
            },
            link={
                "source": [i for i, _, _ in pairs],
                "target": [len(LABELS) + j for _, j, _ in pairs],
                "value": [v for _, _, v in pairs],
                "color": [_pale(colours[i]) for i, _, _ in pairs],
                "hovertemplate": "%{source.label} to %{target.label}: %{value:.2f} % of all units<extra></extra>",
            },
        )
    )
    theme.finish(
        figure,
        f"Labels before (left) and after (right) benign fine-tuning, % of all units ({_where(result, origin)})",
        "Sankey of units from label before to label after fine-tuning.",
        result.provenance,
    )
    return figure.update_layout(title_font_size=17)


def _pale(colour: str) -> str:
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},0.4)"


def probe_curves(result: Result, origin: str | None = None) -> go.Figure:
    """Margin d_mal - d_ben by number of answer tokens (one line a block), aligned beside base: above 0 leans to
    refusing.
    """
    origin = shown_origin(result, origin)
    if "distance" not in result.data:
        raise BadData("the probe was not run; set n_probe above 0")
    distance = result.data["distance"].isel(run=np.flatnonzero(result.data["origin"].values == origin))
    margin = distance.sel(direction="mal") - distance.sel(direction="ben")
    names = margin["organism"].values.tolist()
    figure = make_subplots(
        1, len(names), shared_yaxes=True, subplot_titles=[f"{n} model" for n in names], horizontal_spacing=0.05
    )
    palette = [theme.BLUE, theme.ORANGE, theme.GREEN, theme.PURPLE, theme.SKY, theme.RED]
    for column, name in enumerate(names, 1):
        for number, block in enumerate(margin["block"].values):
            each = margin.sel(organism=name, block=block)
            spread = each.std("run", ddof=1).values if each.sizes["run"] > 1 else np.zeros(each.sizes["k"])
            figure.add_scatter(
                x=each["k"].values,
                y=each.mean("run").values,
                error_y={"type": "data", "array": spread, "thickness": 1, "visible": each.sizes["run"] > 1},
                name=f"block {block}",
                legendgroup=str(block),
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": palette[number % len(palette)], "width": 3},
                hovertemplate=f"{name}, block {block}<br>k = %{{x}}: %{{y:.3f}}<extra></extra>",
                row=1,
                col=column,
            )
        figure.add_hline(y=0, line={"color": "#444444", "dash": "dash", "width": 1}, row=1, col=column)
        figure.update_xaxes(title="Answer tokens fed in, k", row=1, col=column)
    figure.update_yaxes(title="Margin d_mal - d_ben (cosine distance)", row=1, col=1)
    return theme.finish(
        figure,
        f"Which answer moves the state less? Above 0: the refusal ({_where(result, origin)}; bars: SD)",
        "Margin by number of answer tokens and block, aligned and base.",
        result.provenance,
    )


def scan_curves(result: Result, origin: str | None = None) -> go.Figure:
    """Change of ASR and utility on validation prompts by the size of a pruned group; rings mark the sizes that were
    picked.
    """
    origin = shown_origin(result, origin)
    table = result.tables.get("scan", pd.DataFrame({"origin": []}))
    rows = table[table["origin"] == origin]
    if rows.empty:
        raise BadData(f"no sizes were tried in the runs of origin {origin!r}: the shares were given")
    groups = ("SCU", "UCU", "RU")
    figure = make_subplots(1, 3, shared_yaxes=True, subplot_titles=[NAMES[g] for g in groups], horizontal_spacing=0.03)
    for column, group in enumerate(groups, 1):
        mine = rows[rows["group"] == group]
        for score, text, colour in (
            ("asr_change", "ASR, first token", theme.RED),
            ("utility_change", "utility", theme.BLUE),
        ):
            mean, picked = mine.groupby("share")[score].mean(), mine[mine["picked"]]
            figure.add_scatter(
                x=100 * mean.index,
                y=mean,
                name=text,
                legendgroup=text,
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": colour, "width": 3},
                row=1,
                col=column,
            )
            figure.add_scatter(
                x=100 * picked["share"],
                y=picked[score],
                name="picked (each seed)",
                legendgroup="picked",
                showlegend=column == 1 and score == "asr_change",
                mode="markers",
                marker={"symbol": "circle-open", "size": 15, "color": "#222222", "line": {"width": 2}},
                row=1,
                col=column,
            )
        figure.update_xaxes(title="Pruned (% of units)", row=1, col=column)
    figure.update_yaxes(title="Change on training prompts (points)", row=1, col=1)
    return theme.finish(
        figure,
        f"Picking the sizes ({_where(result, origin)})",
        "Change of ASR and utility by size of the pruned group.",
        result.provenance,
    )


def figures(result: Result) -> dict[str, go.Figure]:
    """All figures that this Result can give, the one to show first in front."""
    return theme.drawable(
        result,
        {
            "pruning": pruning_bars,
            "units": unit_scatter,
            "freezing": freezing_bars,
            "transfer": transfer_sankey,
            "budget": budget_bars,
            "probe": probe_curves,
            "sizes": scan_curves,
        },
    )
