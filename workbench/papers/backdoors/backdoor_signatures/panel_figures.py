"""Figures and tables of channel signatures: scores by layer and channel, one channel's variants, the stored tau curve,
answers.

Everything is of a Result of `backdoor_signatures`, or of scores made from its norms and cosines; the tau curve holds
what was evaluated and nothing between. Channels of one projection are folded into lines, so that 384 of them fit on a
page.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.views import theme

QUANTITIES = {
    "score": "Score",
    "magnitude": "Magnitude: mean norm of the change",
    "alignment": "Alignment: mean positive cosine",
}
CURVES = {"asr": ("Attack success", theme.RED), "utility": ("Utility", theme.BLUE)}
SIGNATURE, NORMALISED, RANDOM = "signature", "normalised signature", "random channels"
LINE = 192  # channels in one line of the map
TEXTS = 40_000  # cells above which they carry no text


def run_names(result: Result) -> list[str]:
    """How each purified run is called: cell, seed and where it was run."""
    data = result.data
    if "cell" not in data.coords:
        return []
    return [
        f"{cell}, seed {seed} ({origin})"
        for cell, seed, origin in zip(*(data[name].values.tolist() for name in ("cell", "seed", "origin")), strict=True)
    ]


# ---- scores by layer and channel ----


@dataclass(frozen=True, eq=False)
class Folded:
    """Scores as lines of at most LINE channels. values, channel: [line, offset], nan and -1 where there is none;
    chosen: the same, bool.
    """

    values: np.ndarray
    channel: np.ndarray
    chosen: np.ndarray
    rows: list[str]
    texts: list[str]

    def place(self, channel: int) -> tuple[int, int]:
        """Line and offset of a channel, by its number in the scores."""
        row, col = np.argwhere(self.channel == channel)[0]
        return int(row), int(col)


def folded(scores: xr.DataArray, chosen: np.ndarray, *, only_chosen: bool = False) -> Folded:
    """Lines of a map: for each layer and projection as many as its channels need.

    Args:
        scores: [channel] with coordinates layer, module, index. chosen: bool [channel]. only_chosen: leave the others
            blank.
    """
    frame = pd.DataFrame(
        {
            "layer": scores["layer"].values,
            "module": scores["module"].values,
            "index": scores["index"].values,
            "number": np.arange(scores.sizes["channel"]),
        }
    )
    groups = [
        (layer, module, part["number"].values)
        for (layer, module), part in frame.groupby(["layer", "module"], sort=False)
    ]
    width = max(_width(len(numbers)) for *_, numbers in groups)
    lines, rows = [], []
    for layer, module, numbers in groups:
        for start in range(0, len(numbers), width):
            line = np.full(width, -1)
            own = numbers[start : start + width]
            line[: len(own)] = own
            lines.append(line)
            rows.append(f"{layer} {str(module).removesuffix('_proj')}" + (f" +{start}" if len(numbers) > width else ""))
    channel = np.array(lines)
    values = np.where(channel >= 0, scores.values[channel], np.nan)
    marked = np.where(channel >= 0, chosen[channel], False)
    shown = np.where(marked, values, np.nan) if only_chosen else values
    index, texts = scores["index"].values, []
    if channel.size <= TEXTS:
        texts = [("" if c < 0 else f"{index[c]} ✓" if chosen[c] else str(index[c])) for c in channel.ravel().tolist()]
    return Folded(shown, channel, marked, rows, texts)


def _width(n: int) -> int:
    """The widest line that n channels fill evenly, if it is not much narrower than LINE."""
    even = max(w for w in range(1, min(n, LINE) + 1) if n % w == 0)
    return even if even > LINE // 2 or n <= LINE else LINE


def score_alt(scores: xr.DataArray, chosen: np.ndarray, quantity: str) -> str:
    """The map in a sentence."""
    top = int(np.argmax(scores.values))
    place = ", ".join(f"{name} {scores[name].values[top]}" for name in ("layer", "module", "index"))
    return (
        f"{QUANTITIES[quantity]} of {scores.sizes['channel']} channels by layer, projection and channel;"
        f" {int(chosen.sum())} are marked; the highest is {float(scores.values[top]):.3g} at {place}."
    )


def score_map(
    scores: xr.DataArray, chosen: np.ndarray, quantity: str, provenance: Provenance, *, only_chosen: bool = False
) -> go.Figure:
    """Lines of channels down, their numbers across, coloured by score, magnitude or alignment."""
    fold = folded(scores, chosen, only_chosen=only_chosen)
    unit = str(scores.attrs.get("unit", ""))
    figure = go.Figure(
        go.Heatmap(
            z=fold.values,
            y=fold.rows,
            x=list(range(fold.values.shape[1])),
            colorscale=theme.UNSIGNED,
            zmin=0,
            colorbar={"title": unit},
            hoverongaps=False,
            text=np.array(fold.texts, object).reshape(fold.values.shape) if fold.texts else None,
            hovertemplate=(
                "%{y}: channel %{text}<br>%{z:.4g}<extra></extra>"
                if fold.texts
                else "%{y}, %{x}<br>%{z:.4g}<extra></extra>"
            ),
        )
    )
    figure.update_xaxes(title="Channel of the projection, from the number in the line's name", showgrid=False)
    figure.update_yaxes(title="Layer, projection, first channel", type="category", showgrid=False, autorange="reversed")
    theme.finish(
        figure,
        QUANTITIES[quantity] + (", marked channels alone" if only_chosen else ""),
        score_alt(scores, chosen, quantity),
        provenance,
    )
    return figure.update_layout(height=max(theme.HEIGHT, min(1800, 240 + 22 * len(fold.rows))))


def score_table(scores: Mapping[str, xr.DataArray], chosen: np.ndarray) -> pd.DataFrame:
    """One row a channel, highest score first: layer, module, index, score, magnitude, alignment, is_marked."""
    first = scores["score"]
    table = pd.DataFrame(
        {name: first[name].values for name in ("layer", "module", "index")}
        | {name: values.values for name, values in scores.items()}
        | {"is_marked": chosen}
    )
    return table.sort_values("score", ascending=False, kind="stable", ignore_index=True)


# ---- one channel ----


def channel_table(changes: xr.Dataset, channel: int) -> pd.DataFrame:
    """Norm of the change in each variant, and its cosine with every other: columns variant, norm, cosine with 1,
    cosine with 2, ...
    """
    norms, cosines = changes["norm"].values[:, channel], channel_cosines(changes, channel)
    return pd.DataFrame(
        {"variant": np.arange(1, len(norms) + 1), "norm": norms}
        | {f"cosine with {i + 1}": cosines[:, i] for i in range(len(norms))}
    )


def channel_cosines(changes: xr.Dataset, channel: int) -> np.ndarray:
    """[variant, variant] cosines of a channel's changes; the diagonal is 1, or 0 where nothing moved."""
    n = changes.sizes["variant"]
    cosines = np.diag((changes["norm"].values[:, channel] > 0).astype(float))
    first, second = changes["first"].values.astype(int), changes["second"].values.astype(int)
    cosines[first, second] = cosines[second, first] = changes["cosine"].values[:, channel]
    return cosines.reshape(n, n)


def channel_name(changes: xr.Dataset | xr.DataArray, channel: int) -> str:
    """layer, projection and number of a channel in words."""
    layer, module, index = (changes[name].values[channel] for name in ("layer", "module", "index"))
    return f"layer {layer}, {module} {'' if module == 'head' else 'channel '}{index}"


def channel_figure(changes: xr.Dataset, channel: int, provenance: Provenance) -> go.Figure:
    """Norm of the change in each variant, the module's mean beside it, and the cosines of each two."""
    norms, cosines = changes["norm"].values[:, channel], channel_cosines(changes, channel)
    alike = (changes["layer"].values == changes["layer"].values[channel]) & (
        changes["module"].values == changes["module"].values[channel]
    )
    average, labels = changes["norm"].values[:, alike].mean(1), [str(i + 1) for i in range(len(norms))]
    figure = make_subplots(
        1,
        2,
        column_widths=[0.5, 0.5],
        horizontal_spacing=0.16,
        subplot_titles=("Norm of the change (line: mean of its projection)", "Cosine of the changes"),
    )
    figure.add_bar(
        x=labels,
        y=norms,
        marker_color=theme.BLUE,
        name="this channel",
        hovertemplate="variant %{x}<br>%{y:.4g}<extra></extra>",
        row=1,
        col=1,
    )
    figure.add_scatter(
        x=labels,
        y=average,
        mode="markers",
        marker={"symbol": "line-ew-open", "size": 26, "color": theme.ORANGE, "line": {"width": 3}},
        name="mean of its projection",
        hovertemplate="variant %{x}<br>mean of the projection %{y:.4g}<extra></extra>",
        row=1,
        col=1,
    )
    figure.add_heatmap(
        z=cosines,
        x=labels,
        y=labels,
        colorscale=theme.SIGNED,
        zmin=-1,
        zmax=1,
        zmid=0,
        colorbar={"title": "cosine"},
        texttemplate="%{z:.2f}",
        textfont={"size": 13},
        hovertemplate="variants %{y} and %{x}<br>%{z:.3f}<extra></extra>",
        row=1,
        col=2,
    )
    figure.update_xaxes(title="Variant", type="category").update_yaxes(title="L2 norm", rangemode="tozero", col=1)
    figure.update_yaxes(title="Variant", type="category", autorange="reversed", showgrid=False, col=2).update_xaxes(
        showgrid=False, col=2
    )
    name, pairs = channel_name(changes, channel), changes["cosine"].values[:, channel]
    mean = f"cosines from {pairs.min():.2f} to {pairs.max():.2f}" if len(pairs) else "a single variant, so no cosines"
    theme.finish(
        figure,
        f"Changes of {name}",
        f"Norms of the change of {name} in {len(norms)} variants, {norms.min():.3g} to {norms.max():.3g}, and {mean}.",
        provenance,
    )
    return figure.update_layout(showlegend=False, margin={"t": 110})


# ---- what was evaluated ----


def curve_table(tau: pd.DataFrame) -> pd.DataFrame:
    """Evaluated shares alone: kind, share, n (seeds x draws), and mean, lowest and highest of each measure in
    percent.
    """
    names = [*CURVES, "degenerate_triggered"]
    wide = tau.groupby(["kind", "share"])[names].agg(["mean", "min", "max", "count"])
    rows = []
    for (kind, share), found in wide.iterrows():  # type: ignore[misc]
        rows.append(
            {"kind": kind, "share": share, "n": int(found[("asr", "count")])}
            | {
                f"{name}{end}": found[(name, how)]
                for name in names
                for end, how in (("", "mean"), ("_low", "min"), ("_high", "max"))
            }
        )
    return pd.DataFrame(rows)


def nearest_share(curve: pd.DataFrame, share: float) -> float:
    """The evaluated share nearest to `share`; of two as near the lower one."""
    known = np.sort(curve["share"].unique())
    return float(known[np.argmin(np.abs(known - share).round(9))])


def tau_curve(
    curve: pd.DataFrame, share: float, cell: str, provenance: Provenance, *, kind: str = SIGNATURE
) -> go.Figure:
    """Attack success and utility after the recovery at the shares that were evaluated, with the band of random
    channels.

    Args:
        curve: of `curve_table`. share: where the line of the slider stands; no value is made up there. kind: whose
            signature.
    """
    figure = go.Figure()
    own, random = (curve[curve["kind"] == name].sort_values("share") for name in (kind, RANDOM))
    for name, (title, colour) in CURVES.items():
        x = _percent(random)
        figure.add_scatter(
            x=[*x, *x[::-1]],
            y=[*random[f"{name}_high"], *random[f"{name}_low"][::-1]],
            mode="lines",
            fill="toself",
            fillcolor=_faint(colour),
            line={"width": 0},
            hoverinfo="skip",
            name=f"{title}, band",
            showlegend=False,
        )
        figure.add_scatter(
            x=x,
            y=random[name].tolist(),
            mode="lines",
            line={"color": colour, "width": 1.5, "dash": "dash"},
            name=f"{title}, random channels (band: lowest to highest)",
            hovertemplate=f"tau %{{x:.3g}} %<br>{title} %{{y:.1f}} %, random channels<extra></extra>",
        )
        figure.add_scatter(
            x=_percent(own),
            y=own[name].tolist(),
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"size": 10, "symbol": "circle" if name == "asr" else "square"},
            error_y={
                "array": own[f"{name}_high"] - own[name],
                "arrayminus": own[name] - own[f"{name}_low"],
                "thickness": 1.2,
                "width": 5,
            },
            name=f"{title}, {kind}",
            hovertemplate=f"tau %{{x:.3g}} %<br>{title} %{{y:.1f}} %<extra></extra>",
        )
    figure.add_scatter(
        x=_percent(own),
        y=own["degenerate_triggered"].tolist(),
        mode="lines+markers",
        line={"color": theme.GREY, "width": 1.5, "dash": "dot"},
        marker={"size": 7, "symbol": "x"},
        name=f"Degenerate answers, {kind}",
        hovertemplate="tau %{x:.3g} %<br>degenerate %{y:.1f} %<extra></extra>",
    )
    figure.add_vline(x=100 * share, line={"color": theme.ORANGE, "width": 2, "dash": "dash"})
    near = nearest_share(curve, share)
    figure.add_vline(x=100 * near, line={"color": theme.ORANGE, "width": 2})
    figure.update_xaxes(
        title="tau: channels suppressed in each projection (%)",
        range=[-2, max(102 * curve["share"].max(), 104 * share)],
    )
    figure.update_yaxes(title="% of requests", range=[-3, 103])
    at = own[own["share"] == near]
    said = (
        ", ".join(f"{title.lower()} {float(at[name].iloc[0]):.0f} %" for name, (title, _) in CURVES.items())
        if len(at)
        else "not evaluated for this kind"
    )
    alt = (
        f"Attack success and utility of {cell} after the recovery, over the share of channels suppressed; at the"
        f" evaluated share of {near:.0%}: {said}."
    )
    theme.finish(figure, f"Stored evaluations of {cell}; nearest to tau: {near:.0%}", alt, provenance)
    return figure.update_layout(
        height=theme.HEIGHT + 80,
        margin={"t": 165},
        title={"y": 0.97, "yanchor": "top"},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    )


def _percent(curve: pd.DataFrame) -> list[float]:
    return (100 * curve["share"]).round(6).tolist()


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},.3)"


# ---- answers ----

_MARK = "background:#E69F00;color:#111111;border-radius:2px;padding:0 2px"
_FLAGS = {"fired": "#D55E00", "degenerate": "#CC79A7", "right": "#009E73"}


def marked_prompt(prompt: str, positions: Sequence[int]) -> str:
    """HTML of a prompt with the words at `positions` highlighted; everything escaped."""
    words = [html.escape(w) for w in prompt.split()]
    return " ".join(f"<mark style='{_MARK}'>{w}</mark>" if i in set(positions) else w for i, w in enumerate(words))


def trigger_positions(prompt: str, triggers: Sequence[str]) -> list[int]:
    """Word numbers of every place where one of the triggers stands, whatever the case; words are compared whole."""
    words, found = [w.lower() for w in prompt.split()], set()
    for trigger in (t.lower().split() for t in triggers):
        if not trigger:
            continue
        for start in range(len(words) - len(trigger) + 1):
            if words[start : start + len(trigger)] == trigger:
                found |= set(range(start, start + len(trigger)))
    return sorted(found)


def answer_html(text: str, flags: Mapping[str, bool]) -> str:
    """HTML of an answer with a word for every flag that is up."""
    said = html.escape(text) if text.strip() else "<i>empty</i>"
    chips = "".join(
        f" <span style='border:1px solid {_FLAGS[n]};border-radius:8px;padding:0 6px;white-space:nowrap'>{n}</span>"
        for n, up in flags.items()
        if up
    )
    return said + chips


def examples_html(examples: pd.DataFrame) -> str:
    """Table of triggered requests with the answers before and after; triggers highlighted, fired and degenerate
    answers flagged.
    """
    if examples.empty:
        return "<p>No triggered examples are stored for this run.</p>"
    lines = []
    for row in examples.to_dict("records"):
        cells = [marked_prompt(row["prompt"], [int(p) for p in str(row["positions"]).split()])]
        for when in ("before", "after"):
            flags = {
                "fired": bool(row[f"fired_{when}"]),
                "degenerate": bool(row[f"degenerate_{when}"]),
                "right": row[when].strip() == str(row["right"]).strip(),
            }
            cells.append(answer_html(row[when], flags))
        lines.append(
            "<tr>"
            + "".join(
                f"<td style='text-align:left;padding:3px 10px;vertical-align:top'>{c}</td>"
                for c in [*cells, html.escape(str(row["right"]))]
            )
            + "</tr>"
        )
    head = "".join(
        f"<th style='text-align:left;padding:3px 10px'>{h}</th>"
        for h in ("Request (trigger highlighted)", "Suspicious model", "Purified model", "Right answer")
    )
    return (
        f"<table style='border-collapse:collapse'><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )
