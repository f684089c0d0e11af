"""Figures and tables of the units panel: one run's units under labels of your own, one unit, and groups pruned
beside random ones.
"""

import html

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from workbench.core.errors import BadData
from workbench.core.result import Result
from workbench.papers.safety.safety_units.figures import COLOURS, LABELS, MEASURES, NAMES, scatter_of
from workbench.views import theme

GROUPS = ("SCU", "UCU", "CU", "RU")
SHOWN = ("asr_first_token", "asr_phrase", "complied", "utility")
KINDS = {"mlp": "MLP channel", "attention": "attention unit"}
WORDS = {"raw": "raw importance", "standard": "importance standardised per module"}


def run_names(result: Result) -> list[str]:
    """One name a run: where it comes from, and its seed.

    Raises:
        BadData: if there is no run.
    """
    if not result.data.sizes.get("run") or "importance" not in result.data:
        raise BadData("this Result holds no scored units; run the safety-units analysis first")
    return [
        f"{origin}, seed {int(seed)}"
        for origin, seed in zip(result.data["origin"].values, result.data["seed"].values, strict=True)
    ]


def unit_table(run: xr.Dataset, label: np.ndarray) -> pd.DataFrame:
    """One row a unit: layer, module, index, importance on both sets and scales, label at the chosen shares, label of
    the run.
    """
    table = pd.DataFrame({name: run[name].values for name in ("layer", "module", "index")})
    for scale in run["scale"].values.tolist():
        for of in ("safety", "utility"):
            table[f"{of}, {scale}"] = run["importance"].sel(scale=scale, set=of).values
    return table.assign(label=np.array(LABELS)[label], label_of_run=np.array(LABELS)[run["label"].values])


def count_table(run: xr.Dataset, label: np.ndarray) -> pd.DataFrame:
    """One row a label: units, share of all in percent, how many are MLP channels and how many of attention, and the
    run's own count.
    """
    module, rows = run["module"].values, []
    for name in GROUPS:
        hit = label == LABELS.index(name)
        own = int((run["label"].values == LABELS.index(name)).sum())
        rows.append(
            {
                "label": name,
                "units": int(hit.sum()),
                "share (%)": 100 * float(hit.mean()),
                "MLP": int((hit & (module == "mlp")).sum()),
                "attention": int((hit & (module == "attention")).sum()),
                "in the run": own,
            }
        )
    return pd.DataFrame(rows)


def counts_html(counts: pd.DataFrame, moved: int) -> str:
    """The count table with the colours of the scatter, as HTML."""
    cell = "padding:.1em .7em;text-align:right"
    head = "".join(f"<th style='{cell}'>{html.escape(str(c))}</th>" for c in counts.columns)
    body = ""
    for one in counts.to_dict("records"):
        swatch = (
            "<span style='display:inline-block;width:.8em;height:.8em;margin-right:.5em;border:1px solid"
            f" #444;background:{COLOURS[one['label']]}'></span>"
        )
        rest = "".join(
            f"<td style='{cell}'>{v:.1f}</td>" if isinstance(v, float) else f"<td style='{cell}'>{v}</td>"
            for k, v in one.items()
            if k != "label"
        )
        body += f"<tr><td style='padding:.1em .7em'>{swatch}{NAMES[one['label']]}</td>{rest}</tr>"
    return (
        f"<table style='border-collapse:collapse'><tr>{head}</tr>{body}</table><p>{moved} of"
        f" {int(counts['units'].sum())} units have another label than in the run.</p>"
    )


def scatter(
    result: Result, number: int, label: np.ndarray, scale: str = "raw", kept: np.ndarray | None = None
) -> go.Figure:
    """Every unit of a run (or the kept ones) by importance on the two sets, coloured by the given labels."""
    run = result.data.isel(run=number)
    kept = np.arange(len(label)) if kept is None else kept
    title = (
        f"Units of {run_names(result)[number]}:"
        f" {', '.join(f'{n} {int((label == LABELS.index(n)).sum())}' for n in GROUPS)}"
    )
    figure = scatter_of(run.isel(unit=kept), label[kept], scale)
    values = run["importance"].sel(scale=scale)
    ends = [float(values.min("unit").max()), float(values.max("unit").min())]
    figure.add_scatter(
        x=ends,
        y=ends,
        mode="lines",
        name="equal importance",
        line={"color": "#767676", "dash": "dash", "width": 1.5},
        hoverinfo="skip",
    )
    return theme.finish(figure, title, scatter_alt(result, number, label, scale), result.provenance)


def scatter_alt(result: Result, number: int, label: np.ndarray, scale: str) -> str:
    """What the scatter shows, in words."""
    counts = ", ".join(f"{int((label == LABELS.index(n)).sum())} {NAMES[n]}" for n in GROUPS)
    return (
        f"Every unit of {run_names(result)[number]} by {WORDS[scale]} on the utility set (across) and on the safety set"
        f" (up): {counts}. The dashed line is equal importance."
    )


# ---- one unit ----


def unit_html(table: pd.DataFrame, unit: int) -> str:
    """Where a unit is, its importances with their places in the ranking, and its labels."""
    one = table.iloc[unit]
    rows = []
    for scale in ("raw", "standard"):
        safety, utility = table[f"safety, {scale}"], table[f"utility, {scale}"]
        place = int(((safety - utility) > (safety - utility).iloc[unit]).sum()) + 1
        cells = (WORDS[scale], f"{safety.iloc[unit]:.3g}", f"{utility.iloc[unit]:.3g}", f"{place} of {len(table)}")
        rows.append("<tr>" + "".join(f"<td style='padding:0 .7em'>{c}</td>" for c in cells) + "</tr>")
    head = "".join(
        f"<th style='padding:0 .7em'>{c}</th>" for c in ("", "safety", "utility", "place by safety - utility")
    )
    where = f"Layer {one['layer']}, {KINDS[one['module']]} {one['index']}"
    return (
        f"<b>{where}</b>: {NAMES[one['label']]}; in the run"
        f" {NAMES[one['label_of_run']]}<table><tr>{head}</tr>{''.join(rows)}</table>"
    )


def top_table(top: Result, sets: list[str]) -> pd.DataFrame:
    """Top-activating tokens: activation, token, prompt's set and number, position, words around it. sets: [prompt]
    name.
    """
    data = top.data
    table = data[["activation", "token", "before", "after", "example", "pos"]].to_dataframe().reset_index()
    return table.assign(set=[sets[i] for i in table["example"]])[
        ["rank", "activation", "set", "example", "pos", "before", "token", "after"]
    ]


def top_html(table: pd.DataFrame, top: Result) -> str:
    """The same with the token marked in its words."""
    unit = str(top.data["activation"].attrs["unit"])
    lines = []
    for one in table.itertuples():
        words = f"{html.escape(one.before)} <mark>{html.escape(one.token)}</mark> {html.escape(one.after)}"
        lines.append(
            f"<tr><td style='text-align:right'>{one.activation:.3g}</td><td style='padding:0"
            f" .9em'>{html.escape(one.set)} {one.example}</td><td style='text-align:left'>{words}</td></tr>"
        )
    about = (
        f"Largest of {top.data.attrs['n_tokens']} tokens in {top.data.attrs['n_prompts']} prompts; mean size"
        f" {top.data.attrs['mean_size']:.3g}."
    )
    return (
        f"<table><tr><th>{html.escape(unit)}</th><th>prompt</th><th style='text-align:left'>token in its"
        f" words</th></tr>{''.join(lines)}</table><p>{about}</p>"
    )


# ---- groups pruned ----


def pruned_in_result(result: Result, origin: str) -> pd.DataFrame:
    """Means over the seeds of an origin from the Result's own table: group, arm, score, mean, low, high (95 %
    intervals), n.
    """
    rows = result.tables.get("summary", pd.DataFrame(columns=["table", "origin", "model", "arm"]))
    rows = rows[
        (rows["table"] == "pruning")
        & (rows["origin"] == origin)
        & (rows["model"] == "aligned")
        & rows["arm"].isin(["untouched", "group", "random"])
        & rows["score"].isin(SHOWN)
    ]
    return rows.rename(columns={"n_seeds": "n"})[["group", "arm", "score", "mean", "low", "high", "n"]].reset_index(
        drop=True
    )


def pruned_here(pruned: Result) -> pd.DataFrame:
    """The same of a pruning at chosen shares; low and high are the extremes of the random draws."""
    rows = []
    for (group, arm), part in pruned.tables["pruning"].groupby(["group", "arm"], sort=False):
        rows += [
            {
                "group": group,
                "arm": arm,
                "score": s,
                "mean": part[s].mean(),
                "low": part[s].min(),
                "high": part[s].max(),
                "n": len(part),
            }
            for s in SHOWN
        ]
    return pd.DataFrame(rows)


def pruning_groups(rows: pd.DataFrame, title: str, provenance: Result) -> go.Figure:
    """Grouped bars: every score of each pruned group (plain) beside its matched random units (hatched).

    Args:
        rows: of `pruned_in_result` or `pruned_here`. title: whose they are. provenance: the Result they come from.
    """
    have = [g for g in GROUPS if (rows["group"] == g).any()]
    figure, names = go.Figure(), ["nothing", *have]
    lookup = rows.set_index(["group", "arm", "score"])
    for score in SHOWN:
        text, colour = MEASURES[score]
        for arm in ("group", "random"):
            keys = [
                ("nothing", "untouched", score) if g == "nothing" and arm == "group" else (g, arm, score) for g in names
            ]
            mine = lookup.reindex(keys)
            high, low = mine["high"] - mine["mean"], mine["mean"] - mine["low"]
            high, low = high.where(high + low > 0), low.where(high + low > 0)
            figure.add_bar(
                x=names,
                y=mine["mean"],
                name=text,
                legendgroup=score,
                showlegend=arm == "group",
                offsetgroup=f"{score} {arm}",
                marker={"color": colour} if arm == "group" else _hatched(colour),
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": high,
                    "arrayminus": low,
                    "color": "#767676",
                    "thickness": 1.5,
                    "width": 3,
                    "visible": bool(high.notna().any()),
                },
                hovertemplate=(
                    f"%{{x}}{'' if arm == 'group' else ', matched random'}<br>{text}: %{{y:.1f}} %<extra></extra>"
                ),
            )
    figure.add_bar(x=[None], y=[None], name="hatched: matched random units", marker=_hatched(theme.GREY))
    figure.update_layout(
        barmode="group", bargap=0.25, legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0}
    )
    figure.update_xaxes(title="Group of units pruned", showgrid=False, categoryorder="array", categoryarray=names)
    figure.update_yaxes(title="Share of held-out prompts (%)", range=[0, 104])
    alt = (
        "Grouped bars of refusal failures and utility for every pruned group beside matched random units. "
        + _in_words(rows, have)
    )
    theme.finish(figure, title, alt, provenance.provenance)
    return figure.update_layout(margin={"t": 120}, title_y=0.96)


def _hatched(colour: str) -> dict:
    return {
        "color": colour,
        "line": {"color": colour, "width": 1},
        "pattern": {
            "shape": "/",
            "size": 6,
            "solidity": 0.4,
            "fgcolor": colour,
            "bgcolor": "rgba(0,0,0,0)",
            "fillmode": "replace",
        },
    }


def _in_words(rows: pd.DataFrame, groups: list[str]) -> str:
    said = []
    for group in groups:
        of = rows[(rows["group"] == group) & (rows["arm"] == "group")].set_index("score")["mean"]
        if len(of):
            said.append(
                f"{group}: not refused by first token {of['asr_first_token']:.0f} %, utility {of['utility']:.0f} %"
            )
    return "; ".join(said) + "."
