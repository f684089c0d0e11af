"""Figures of attribution, circuits and path patching: which edges and nodes carry a metric, and whether they
suffice.
"""

import pandas as pd
import plotly.graph_objects as go

from workbench.core.errors import BadData
from workbench.core.result import Result

from . import charts
from .circuit_graph import arrange, circuit_figure, edges_above

N_BARS = 20  # edges that have a bar
N_EDGES = 40  # edges that the graph starts with


def edge_graph(result: Result, n: int = N_EDGES) -> go.Figure:
    """The n largest edges as a graph from embedding to logits."""
    size = result.tables["edges"]["score"].abs()
    threshold = float(size.nlargest(n).iloc[-1]) if len(size) else 0.0
    return circuit_figure(arrange(edges_above(result, threshold), result), result.provenance)


def edge_bars(result: Result, n: int = N_BARS) -> go.Figure:
    """The n edges of the largest size, one bar each."""
    edges = result.tables["edges"]
    edges = edges.loc[edges["score"].abs().nlargest(n).index]
    values = pd.Series(edges["score"].to_numpy(), index=edges["writer"] + " → " + edges["reader"])
    unit = result.data["score"].attrs.get("unit", "")
    title = f"The {len(values)} largest edges"
    return charts.bars(values, result.provenance, x_title="Edge", y_title=f"Attributed change ({unit})", title=title)


def node_map(result: Result) -> go.Figure:
    """Attribution of every node at every position, mean over rows."""
    score = result.data["score"]
    return charts.grid(score.mean("example", keep_attrs=True), result.provenance, x_title="Position", y_title="Node")


def faithfulness_curve(result: Result) -> go.Figure:
    """What the k best edges keep alone, and what is left without them."""
    values = [result.data["faithfulness"], result.data["completeness"]]
    words = {
        "x_title": "Edges in the circuit",
        "y_title": "Share of clean - empty",
        "title": "Do the best edges suffice?",
    }
    return charts.lines(values, result.provenance, **words)


def minimality_bars(result: Result) -> go.Figure:
    """What each edge of the circuit adds to it, beside random edges (hatched)."""
    edges = result.tables["edges"]
    values = pd.Series(edges["effect"].to_numpy(), index=edges["writer"] + " → " + edges["reader"])
    random = [name for name, chosen in zip(values.index, edges["chosen"], strict=True) if chosen == "random"]
    words = {"x_title": "Edge (hatched: random, from outside)", "y_title": "Effect (share of clean - empty)"}
    return charts.bars(values, result.provenance, **words, title="Is every edge needed?", controls=random)


def calibration_scatter(result: Result) -> go.Figure:
    """Attribution of nodes against exact patching of the same nodes."""
    nodes, figure = result.tables["nodes"], go.Figure()
    for chosen, colour in (("top", charts.theme.BLUE), ("random", charts.theme.GREY)):
        rows = nodes[nodes["chosen"] == chosen]
        marker = {"color": colour, "size": 10}
        figure.add_scatter(
            x=rows["exact"], y=rows["approx"], mode="markers", name=chosen, text=rows["node"], marker=marker
        )
    figure.update_xaxes(title="Exact change by patching")
    figure.update_yaxes(title="Attributed change")
    rho = float(result.data["spearman"].sel(over="all"))
    alt = f"Attributed against exact change of {len(nodes)} nodes; rank correlation {rho:.2f}."
    return charts.theme.finish(
        figure, f"Attribution beside exact patching: rank correlation {rho:.2f}", alt, result.provenance
    )


def path_map(result: Result) -> go.Figure:
    """Effect of every sender on every set of receivers, mean over rows."""
    effect = result.data["effect"]
    titles = {"x_title": "Receiver", "y_title": "Sender"}
    return charts.grid(effect.mean("example", keep_attrs=True), result.provenance, **titles)


def cell_map(result: Result) -> go.Figure:
    """Attributed change of every cell of a sweep, mean over rows: a map of two axes, bars of any other number."""
    score = result.data["score"].mean("example", keep_attrs=True).squeeze(drop=True)
    title = f"{score.attrs['long_name']} ({result.data.attrs['site']})"
    if score.ndim == 2:
        y, x = (str(dim).capitalize() for dim in score.dims)
        return charts.grid(score, result.provenance, x_title=x, y_title=y, title=title)
    values = score.stack(cell=score.dims).to_series() if score.ndim > 1 else score.to_series()
    return charts.bars(values, result.provenance, x_title="Cell", y_title=charts.named(score), title=title)


BY_KIND = {  # of an attribution, by what was done: its figures
    "edges": {"edges": edge_bars, "graph": edge_graph},
    "nodes": {"nodes": node_map},
    "faithfulness": {"faithfulness": faithfulness_curve},
    "minimality": {"minimality": minimality_bars},
    "calibration": {"calibration": calibration_scatter},
}


def figures(result: Result) -> dict[str, go.Figure]:
    """All figures of an attribution of edges, nodes or cells, a circuit's test, or path patching.

    Raises:
        BadData: if the Result says of none of these that it is one.
    """
    if result.stem == "path_patching":
        return {"paths": path_map(result)}
    if result.stem == "cell_attribution":
        return {"cells": cell_map(result)}
    kind = str(result.spec.get("what"))
    if kind not in BY_KIND:
        raise BadData(f"an attribution of kind {kind!r} has no figures; there are some for {', '.join(BY_KIND)}")
    return {name: draw(result) for name, draw in BY_KIND[kind].items()}
