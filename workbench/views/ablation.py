"""Figures and tables of ablation curves: a metric against the share of units ablated, with the band of random sets
behind it.
"""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from workbench.core.result import Result

from . import theme

UNITS = {"heads": "heads", "neurons": "neurons", "layers": "attention and MLP blocks", "norms": "norms"}
PUT_IN = {"zero": "set to zero", "mean": "set to their mean", "resample": "taken from another prompt"}


# ---- tables ----


def curve_table(result: Result, name: str = "by score") -> pd.DataFrame:
    """A row a share: n_ablated, share, threshold, the metric's mean over prompts by score and for random sets (mean,
    lowest, highest draw), counts.
    """
    data = result.data
    random = data["random_value"].mean("example")
    ends = (
        {"random_mean": random.mean("draw"), "random_low": random.min("draw"), "random_high": random.max("draw")}
        if data.sizes["draw"]
        else {}
    )
    columns = {
        "n_ablated": data["n_ablated"],
        "share": data["share"],
        "threshold": data["threshold"],
        "value": data["value"].mean("example"),
    }
    columns |= ends | {key: data[key] for key in ("firings", "n_replaced", "effect")}
    table = pd.DataFrame({key: column.values for key, column in columns.items()})
    table.insert(0, "set", [name if n else "none" for n in table["n_ablated"]])
    return table


def table(curve: Result | None, chosen: Result | None) -> pd.DataFrame:
    """The rows of a curve, then that of a chosen set."""
    parts = [] if curve is None else [curve_table(curve, _order(curve))]
    if chosen is not None:
        rows = curve_table(chosen, "chosen")
        parts.append(rows if curve is None else rows.iloc[1:])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def score_table(scores: Result, chosen: np.ndarray) -> pd.DataFrame:
    """Every unit: layer, unit, score, whether it is chosen; the highest score first."""
    frame = scores.data["score"].to_dataframe().reset_index()[["layer", "unit", "score"]]
    return (
        frame.assign(chosen=chosen.ravel())
        .sort_values("score", ascending=False, kind="stable", na_position="last")
        .reset_index(drop=True)
    )


def set_text(chosen: Result) -> str:
    """What a chosen set did, in one sentence, with the counts."""
    data = chosen.data.isel(share=-1)
    kind, unit = chosen.data.attrs["kind"], chosen.data["value"].attrs["unit"]
    clean, now = float(chosen.data["value"].isel(share=0).mean()), float(data["value"].mean())
    text = (
        f"{int(data['n_ablated'])} of {chosen.data.attrs['n_units']} {UNITS[kind]} {PUT_IN[chosen.data.attrs['value']]}"
        f" on {chosen.data.sizes['example']} prompts: {chosen.data.attrs['metric']} {clean:.4g} before, {now:.4g} after"
        f" ({unit}). "
    )
    random = data["random_value"].mean("example").values
    if len(random) and np.isfinite(random).any():
        text += (
            f"{np.isfinite(random).sum()} random sets of that size: {np.nanmean(random):.4g} on average, from"
            f" {np.nanmin(random):.4g} to {np.nanmax(random):.4g}. "
        )
    if not np.isfinite(now):
        return text + "It was cancelled before the set was run."
    return (
        text
        + f"Hook calls: {int(data['firings'])}, entries replaced: {int(data['n_replaced'])}; the logits of the first"
        f" batch moved by {float(data['effect']):.3g}."
    )


# ---- figures ----


def curve_figure(curve: Result | None, chosen: Result | None = None) -> go.Figure:
    """The metric against the share ablated, by score and at random; a chosen set is a diamond. At least one of the
    two.
    """
    shown = curve if curve is not None else chosen
    assert shown is not None
    data = shown.data
    kind, metric, unit = data.attrs["kind"], data.attrs["metric"], data["value"].attrs["unit"]
    figure = go.Figure()
    rows = curve_table(shown).dropna(subset=["value"])
    if "random_mean" in rows:
        _add_band(figure, curve_table(shown).dropna(subset=["random_mean"]), data.sizes["draw"], markers=curve is None)
    words = []
    if curve is not None:
        hover = "%{x:.0%} ablated (%{customdata[0]:.0f}), score %{customdata[1]:.3g}: %{y:.4g}<extra></extra>"
        figure.add_scatter(
            x=rows["share"],
            y=rows["value"],
            mode="lines+markers",
            name=_order(curve),
            line={"color": theme.BLUE, "width": 3},
            marker={"size": 8},
            customdata=rows[["n_ablated", "threshold"]],
            hovertemplate=hover,
        )
        if len(rows):
            words.append(
                f"from {rows['value'].iloc[0]:.4g} with none to {rows['value'].iloc[-1]:.4g} with"
                f" {rows['share'].iloc[-1]:.0%} ablated"
            )
    if chosen is not None:
        points = curve_table(chosen).iloc[1:].dropna(subset=["value"])
        figure.add_scatter(
            x=points["share"],
            y=points["value"],
            mode="markers",
            name="chosen",
            marker={"color": theme.RED, "size": 15, "symbol": "diamond", "line": {"color": "#ffffff", "width": 1}},
            hovertemplate="chosen, %{x:.0%} ablated: %{y:.4g}<extra></extra>",
        )
        words += [f"the chosen set gives {value:.4g}" for value in points["value"]]
    clean = float(data["value"].isel(share=0).mean())
    if np.isfinite(clean):
        figure.add_hline(
            y=clean,
            line={"color": theme.GREY, "dash": "dot"},
            annotation={"text": "none ablated", "font": {"size": 12, "color": "#767676"}},
            annotation_position="top left" if curve is None else "top right",
        )
    last = max(0.05, float(data["share"].max()), 0.0 if chosen is None else float(chosen.data["share"].max()))
    order = "" if curve is None else f", ordered by {_lower(str(curve.spec.get('score') or 'score'))}"
    figure.update_xaxes(
        title=f"Share of {data.attrs['n_units']} {UNITS[kind]} ablated{order}",
        tickformat=".0%",
        range=[-0.03 * last, 1.05 * last],
    )
    figure.update_yaxes(title=f"{metric} ({unit})", title_standoff=14)
    title = f"{metric} when {UNITS[kind]} are {PUT_IN[data.attrs['value']]}"
    theme.finish(
        figure,
        title,
        f"Curve of {metric} against the share of {UNITS[kind]} ablated: {', '.join(words) or 'nothing measured yet'}.",
        shown.provenance,
    )
    return figure.update_layout(
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 1, "xanchor": "right"}, margin={"t": 95}
    )


def _order(curve: Result) -> str:
    return f"{'highest' if curve.spec.get('side') == 'high' else 'lowest'} score first"


def _lower(words: str) -> str:
    return words if words[:2].isupper() else words[:1].lower() + words[1:]


def _add_band(figure: go.Figure, rows: pd.DataFrame, n_draws: int, markers: bool) -> None:
    """Random sets: lowest to highest draw as a band, their mean as a line; as a bar where there is a single size."""
    name, seeds = f"random, mean and range of {n_draws} draws", {"color": theme.GREY, "width": 2, "dash": "dash"}
    hover = "%{x:.0%} ablated at random: %{y:.4g}<extra></extra>"
    if markers:
        last = rows.iloc[1:]
        bars = {
            "type": "data",
            "symmetric": False,
            "array": last["random_high"] - last["random_mean"],
            "arrayminus": last["random_mean"] - last["random_low"],
            "thickness": 3,
            "width": 8,
        }
        figure.add_scatter(
            x=last["share"],
            y=last["random_mean"],
            error_y=bars,
            mode="markers",
            marker={"color": theme.GREY, "size": 11},
            name=name,
            hovertemplate=hover,
        )
        return
    figure.add_scatter(
        x=rows["share"], y=rows["random_low"], mode="lines", line={"width": 0}, showlegend=False, hoverinfo="skip"
    )
    figure.add_scatter(
        x=rows["share"],
        y=rows["random_high"],
        mode="lines",
        line={"width": 0},
        fill="tonexty",
        fillcolor="rgba(154,154,154,.28)",
        showlegend=False,
        hoverinfo="skip",
    )
    figure.add_scatter(x=rows["share"], y=rows["random_mean"], mode="lines", line=seeds, name=name, hovertemplate=hover)


def score_map(scores: Result, chosen: np.ndarray) -> go.Figure:
    """Layer by unit, coloured by score; crosses mark the chosen units."""
    score = scores.data["score"]
    labels, layers = [str(u) for u in score["unit"].values], [str(n) for n in score["layer"].values]
    where = [(layers[i], labels[j]) for i, j in zip(*np.nonzero(chosen), strict=True)]
    title = score.attrs["long_name"]
    figure = go.Figure(
        go.Heatmap(
            z=score.values,
            x=labels,
            y=layers,
            colorscale=theme.UNSIGNED,
            colorbar={"title": score.attrs["unit"]},
            hovertemplate="layer %{y}, unit %{x}: %{z:.3g}<extra></extra>",
        )
    )
    marker = {
        "symbol": "x",
        "size": 12 if len(labels) < 60 else 4,
        "color": "#ffffff",
        "line": {"color": "#111111", "width": 1.5 if len(labels) < 60 else 0.5},
    }
    figure.add_scatter(
        x=[w[1] for w in where],
        y=[w[0] for w in where],
        mode="markers",
        marker=marker,
        hoverinfo="skip",
        showlegend=False,
    )
    kind = scores.spec.get("kind", "")
    figure.update_xaxes(
        title={"heads": "Head", "neurons": "Neuron", "norms": "Norm", "layers": "Part of the layer"}.get(kind, "Unit"),
        type="category",
        showgrid=False,
    )
    figure.update_yaxes(title="Layer", type="category", autorange="reversed", showgrid=False)
    alt = f"Heat map of {_lower(title)} by layer and unit; {len(where)} of {chosen.size} units are chosen."
    return theme.finish(
        figure, f"{title}: {len(where)} of {chosen.size} {UNITS.get(kind, 'units')} chosen", alt, scores.provenance
    )


def blocks(score: xr.DataArray, most: int = 256) -> tuple[np.ndarray, list[str], int]:
    """A score map narrow enough to click: [layer, block] the highest score of each block of neighbouring units, the
    blocks' names, units a block.
    """
    values, labels = score.values, [str(u) for u in score["unit"].values]
    step = -(-values.shape[1] // most)
    if step == 1:
        return values, labels, 1
    n = -(-values.shape[1] // step)
    padded = np.full((values.shape[0], n * step), -np.inf)
    padded[:, : values.shape[1]] = np.where(np.isnan(values), -np.inf, values)
    top = padded.reshape(values.shape[0], n, step).max(-1)
    names = [f"{labels[i * step]}-{labels[min((i + 1) * step, len(labels)) - 1]}" for i in range(n)]
    return np.where(np.isinf(top), np.nan, top), names, step


def figures(result: Result) -> dict[str, go.Figure]:
    """All figures of an ablation curve, or of scores."""
    if "value" in result.data:
        return {"ablation_curve": curve_figure(result)}
    return {"score_map": score_map(result, np.zeros(result.data["score"].shape, bool))}
