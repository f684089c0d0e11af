"""Circuits as graphs: which edges are shown at a threshold, where their nodes stand, and the figure and tables of them.

Embedding below, logits on top, a row per layer's heads and per MLP between; an edge is red and solid where restoring it
raises the metric, blue and dashed where it lowers it, and as wide as its score. Everything is read off the Result of
edge attribution: `score` and `sem` [writer, reader] and the table of edges, largest |score| first. What is too much to
draw is dropped here, smallest first, and said. Cost: milliseconds, whatever the size of the graph.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.core.errors import BadData
from workbench.core.provenance import Provenance
from workbench.core.result import Result

from . import theme

MAX_EDGES, MAX_NODES = 400, 120  # what a browser draws and an eye follows
PER_ROW = 12  # nodes side by side; more go into a second row of the same layer
EDGE_COLUMNS = ["writer", "reader", "source", "target", "port", "score", "sem", "n_edges"]
PORTS = {"q": -0.012, "v": 0.012}  # the three inputs of a head, beside each other; k is in the middle
KINDS = {
    "embed": theme.GREY,
    "head": theme.BLUE,
    "kv": theme.SKY,
    "mlp": theme.ORANGE,
    "logits": theme.GREY,
    "group": theme.GREEN,
}


# ---- names ----


def node_of(name: str) -> str:
    """The node of a writer or reader: "a1.h0<q>" -> "a1.h0"."""
    return name.partition("<")[0]


def kind_of(node: str, groups: Iterable[str] = ()) -> str:
    """A key of KINDS."""
    if node in groups:
        return "group"
    found = re.fullmatch(r"(embed)|(logits)|a\d+\.(h|kv)\d+|(m)\d+", node)
    if found is None:
        return "head"
    return found[1] or found[2] or {"h": "head", "kv": "kv", None: "mlp"}[found[3]]


def _place(node: str) -> tuple[float, int]:
    """(how far up, how far right) in the order the stream is written."""
    if node == "embed":
        return -1.0, 0
    if node == "logits":
        return float("inf"), 0
    numbers = [int(n) for n in re.findall(r"\d+", node)]
    return 3.0 * numbers[0] + (2 if node.startswith("m") else 0 if ".kv" in node else 1), numbers[-1]


def graph_nodes(result: Result) -> list[str]:
    """Every node of the graph, in the order of the stream."""
    names = dict.fromkeys(node_of(str(n)) for dim in ("writer", "reader") for n in result.data[dim].values)
    return sorted(names, key=_place)


def check_edges(result: Result) -> pd.DataFrame:
    """The table of edges of a Result, or BadData saying what would be one."""
    score = result.data.get("score")
    if "edges" not in result.tables or score is None or score.dims != ("writer", "reader"):
        raise BadData(
            "a circuit is drawn from the Result of attribute_edges (score of writer x reader and a table of edges);"
            f" this one is of {result.stem!r}"
        )
    return result.tables["edges"]


# ---- which edges ----


@dataclass(frozen=True, eq=False)
class Shown:
    """The edges at a threshold: writer, reader, score, sem, largest |score| first; how many there are; what was
    dropped.
    """

    edges: pd.DataFrame
    n_edges: int
    n_above: int
    share: float
    dropped: str

    @property
    def summary(self) -> str:
        """How much of the graph is shown."""
        n_nodes = len({*self.edges["writer"], *map(node_of, self.edges["reader"])})
        return (
            f"{len(self.edges):,} of {self.n_edges:,} edges, {self.share:.0%} of all |score|, between {n_nodes} nodes"
        )


def edges_above(
    result: Result,
    threshold: float,
    *,
    paths_only: bool = False,
    max_edges: int = MAX_EDGES,
    max_nodes: int = MAX_NODES,
) -> Shown:
    """The edges of |score| >= threshold; of too many, the largest.

    Args:
        threshold: in the metric's unit. paths_only: also drop edges that lie on no path from "embed" to "logits".
    """
    table = check_edges(result)
    size = table["score"].abs().to_numpy()
    n_above = int(np.searchsorted(-size, -threshold, side="right"))
    top = table.head(min(n_above, max_edges))
    seen: set[str] = set()
    for count, pair in enumerate(zip(top["writer"], top["reader"], strict=True)):
        seen |= {node_of(name) for name in pair}
        if len(seen) > max_nodes:
            top = top.head(count)
            break
    dropped = []
    if len(top) < n_above:
        least = f", down to |score| {size[len(top) - 1]:.3g}" if len(top) else ""
        dropped.append(
            f"{n_above:,} edges are above {threshold:.3g}, too many to draw: the {len(top):,} largest are shown{least};"
            " raise the threshold to choose yourself"
        )
    if paths_only:
        on_path = _on_paths(top, kv_links(result))
        if n_off := int((~on_path).sum()):
            dropped.append(f"{n_off:,} edges above the threshold lie on no path from embed to logits and are hidden")
        top = top[on_path]
    at = [result.data.indexes[dim].get_indexer(top[dim]) for dim in ("writer", "reader")]
    sem = result.data["sem"].values[at[0], at[1]] if "sem" in result.data else np.full(len(top), np.nan)
    share = float(top["score"].abs().sum() / total) if (total := size.sum()) else 0.0
    return Shown(top.assign(sem=sem).reset_index(drop=True), len(table), n_above, share, "; ".join(dropped))


def kv_links(result: Result) -> list[tuple[str, str]]:
    """(key/value head, query head) pairs under grouped-query attention: the former hands what it reads on to the
    latter.
    """
    found: dict[str, set[str]] = {}
    for name in (node_of(str(n)) for dim in ("writer", "reader") for n in result.data[dim].values):
        found.setdefault(name.partition(".")[0], set()).add(name)
    links = []
    for layer, nodes in found.items():
        kv, heads = (sorted((n for n in nodes if f".{kind}" in n), key=_place) for kind in ("kv", "h"))
        links += [(kv[i * len(kv) // len(heads)], head) for i, head in enumerate(heads)] if kv and layer else []
    return links


def _on_paths(edges: pd.DataFrame, links: Sequence[tuple[str, str]]) -> np.ndarray:
    """[edge] bool: its writer can be reached from embed and logits from its reader, over these edges and links."""
    pairs = list(zip(edges["writer"], map(node_of, edges["reader"]), strict=True))
    graph = nx.DiGraph([*pairs, *links])
    graph.add_nodes_from(("embed", "logits"))
    ahead = nx.descendants(graph, "embed") | {"embed"}
    behind = nx.ancestors(graph, "logits") | {"logits"}
    return np.array([a in ahead and b in behind for a, b in pairs], bool)


# ---- where they stand ----


@dataclass(frozen=True, eq=False)
class Circuit:
    """What is drawn. nodes: node, label, kind, x, y (0 to 1, right and up), is_pinned, n_in, n_out, in_score,
    out_score.
    edges: EDGE_COLUMNS; edges of grouped nodes are summed, and n_edges says over how many. links: from a key/value head
    to its query heads, which is no edge and has no score. n_inside: edges within groups."""

    nodes: pd.DataFrame
    edges: pd.DataFrame
    links: list[tuple[str, str]]
    n_rows: int
    n_inside: int
    unit: str
    metric: str


def arrange(
    shown: Shown,
    result: Result,
    *,
    names: Mapping[str, str] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    pins: Sequence[str] = (),
    positions: Mapping[str, Sequence[float]] | None = None,
) -> Circuit:
    """Nodes in rows from embed to logits, edges between them.

    Args:
        names: {node: what to call it}. groups: {name: its nodes}, drawn as one node each. pins: nodes shown whether or
            not an edge of theirs is. positions: {node or group: (x, y)} that stay where they are.
    """
    names, groups, positions = names or {}, groups or {}, positions or {}
    group_of = {node: name for name, members in groups.items() for node in members}
    edges, n_inside = _grouped(shown.edges, group_of)
    members = {name: list(nodes) for name, nodes in groups.items()}
    wanted = dict.fromkeys([*edges["source"], *edges["target"], *(group_of.get(pin, pin) for pin in pins)])
    rows: dict[float, list[str]] = {}
    for node in sorted(wanted, key=lambda n: _middle(members.get(n, [n]))):
        rows.setdefault(_middle(members.get(node, [node]))[0], []).append(node)
    lines = [row[i : i + PER_ROW] for row in rows.values() for i in range(0, len(row), PER_ROW)]
    at = {
        node: ((i + 1) / (len(line) + 1), j / max(1, len(lines) - 1))
        for j, line in enumerate(lines)
        for i, node in enumerate(line)
    }
    at |= {node: (float(x), float(y)) for node, (x, y) in positions.items() if node in at}
    into, out = edges.groupby("target")["score"], edges.groupby("source")["score"]
    sums = [into.sum(), out.sum(), into.count(), out.count()]
    listed = [
        (
            n,
            names.get(n, n),
            kind_of(n, groups),
            *at[n],
            n in positions or n in pins,
            *(int(s.get(n, 0)) for s in sums[2:]),
            *(float(s.get(n, 0.0)) for s in sums[:2]),
        )
        for n in at
    ]
    nodes = pd.DataFrame(
        listed, columns=["node", "label", "kind", "x", "y", "is_pinned", "n_in", "n_out", "in_score", "out_score"]
    )
    score = result.data["score"]
    metric = str(result.spec.get("metric", "the metric"))
    links = dict.fromkeys((group_of.get(a, a), group_of.get(b, b)) for a, b in kv_links(result))
    drawn = [(a, b) for a, b in links if a in at and b in at and a != b]
    return Circuit(nodes, edges, drawn, len(lines), n_inside, str(score.attrs.get("unit", "")), metric)


def _middle(nodes: Sequence[str]) -> tuple[float, float]:
    """The place of a group: the row of its middle member, between its members."""
    places = sorted(_place(node) for node in nodes)
    return places[len(places) // 2][0], float(np.mean([place[1] for place in places]))


def _grouped(edges: pd.DataFrame, group_of: Mapping[str, str]) -> tuple[pd.DataFrame, int]:
    """Edges between what is drawn, and how many vanish inside groups."""
    port = edges["reader"].str.extract(r"<(\w)>", expand=False).fillna("") if len(edges) else edges["reader"]
    node = edges["reader"].map(node_of)
    full = edges.assign(
        source=edges["writer"].map(lambda n: group_of.get(n, n)),
        target=node.map(lambda n: group_of.get(n, n)),
        port=port,
        n_edges=1,
    )
    full.loc[full["target"] != node, "port"] = ""
    inside = (full["source"] == full["target"]) & full["source"].isin(set(group_of.values()))
    full = full[~inside]
    touched = (full["source"] != full["writer"]) | (full["target"] != full["reader"].map(node_of))
    plain = full.loc[~touched, EDGE_COLUMNS]
    if not touched.any():
        return plain.reset_index(drop=True), int(inside.sum())
    summed = (
        full[touched]
        .groupby(["source", "target", "port"], sort=False, as_index=False)
        .agg(score=("score", "sum"), n_edges=("n_edges", "sum"), sem=("sem", "first"))
    )
    summed.loc[summed["n_edges"] > 1, "sem"] = np.nan  # errors of edges of the same rows are not independent
    reader = summed["target"] + summed["port"].map(lambda p: f"<{p}>" if p else "")
    both = pd.concat([plain, summed.assign(writer=summed["source"], reader=reader)[EDGE_COLUMNS]])
    return both.iloc[np.argsort(-both["score"].abs().to_numpy(), kind="stable")].reset_index(drop=True), int(
        inside.sum()
    )


# ---- tables ----


def edge_id(writer: str, reader: str) -> str:
    """One text for an edge."""
    return f"{writer} -> {reader}"


def node_edges(result: Result, nodes: Sequence[str], n: int = 12) -> pd.DataFrame:
    """The largest edges of one node, or of several together, shown or not: direction, writer, reader, score, sem, rank.

    rank 1 is the largest |score| of all edges. Edges between the given nodes are left out.
    """
    table, data, wanted = check_edges(result), result.data, set(nodes)
    size = np.sort(table["score"].abs().to_numpy())
    writers, readers = data["writer"].values, data["reader"].values
    of_writer, of_reader = np.isin(writers, list(wanted)), np.array([node_of(str(r)) in wanted for r in readers])
    rows = []
    for direction, mask in (("in", np.ix_(~of_writer, of_reader)), ("out", np.ix_(of_writer, ~of_reader))):
        w, r = (
            np.flatnonzero(~of_writer if direction == "in" else of_writer),
            np.flatnonzero(of_reader if direction == "in" else ~of_reader),
        )
        score = data["score"].values[mask]
        sem = data["sem"].values[mask] if "sem" in data else np.full_like(score, np.nan)
        order = np.argsort(-np.nan_to_num(np.abs(score), nan=-1.0), axis=None, kind="stable")[:n]
        for i, j in zip(*np.unravel_index(order, score.shape), strict=True) if score.size else ():
            if np.isfinite(score[i, j]):
                rank = 1 + len(size) - int(np.searchsorted(size, abs(score[i, j]), side="right"))
                rows.append((direction, writers[w[i]], readers[r[j]], float(score[i, j]), float(sem[i, j]), rank))
    return pd.DataFrame(rows, columns=["direction", "writer", "reader", "score", "sem", "rank"])


def node_total(result: Result, nodes: Sequence[str]) -> float:
    """Sum of all edges out of these nodes to others: what attribution says the nodes are worth, in the metric's
    unit.
    """
    data = result.data
    readers = ~np.isin([node_of(str(r)) for r in data["reader"].values], list(nodes))
    return float(np.nansum(data["score"].values[np.isin(data["writer"].values, list(nodes))][:, readers]))


# ---- figures ----


def _curve(x0: float, y0: float, x1: float, y1: float, n: int = 25) -> tuple[np.ndarray, np.ndarray]:
    """Points of an edge; a long one bows outwards, so that it does not run under the nodes between."""
    bow = (0.16 if x0 + x1 >= 1 else -0.16) * min(1.0, max(0.0, abs(y1 - y0) - 0.3) * 2)
    t = np.linspace(0, 1, n)
    xs, ys = (x0, x0 + bow, x1 + bow, x1), (y0, y0 + 0.4 * (y1 - y0), y0 + 0.6 * (y1 - y0), y1)
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
    return sum(w * x for w, x in zip(weights, xs, strict=True)), sum(w * y for w, y in zip(weights, ys, strict=True))  # type: ignore[return-value]


def circuit_figure(circuit: Circuit, provenance: Provenance) -> go.Figure:
    """The graph as a report shows it; the number of every edge is on its middle."""
    figure, edges, nodes = go.Figure(), circuit.edges, circuit.nodes
    at = {n.node: (n.x, n.y) for n in nodes.itertuples()}
    top = float(edges["score"].abs().max()) if len(edges) else 1.0
    curves = [
        _curve(*at[e.source], at[e.target][0] + PORTS.get(e.port, 0.0), at[e.target][1]) for e in edges.itertuples()
    ]
    width = np.ceil(5 * edges["score"].abs().to_numpy() / (top or 1.0)).clip(1, 5)
    for sign, colour, dash in ((1, theme.RED, "solid"), (-1, theme.BLUE, "dash")):
        for step in range(1, 6):
            chosen = [
                c for c, w, s in zip(curves, width, edges["score"], strict=True) if w == step and (s >= 0) == (sign > 0)
            ]
            if chosen:
                x, y = (np.concatenate([np.append(c[i], np.nan) for c in chosen]) for i in (0, 1))
                figure.add_scatter(
                    x=x,
                    y=y,
                    mode="lines",
                    line={"color": colour, "width": 1.2 * step, "dash": dash},
                    opacity=0.25 + 0.13 * step,
                    hoverinfo="skip",
                    showlegend=False,
                )
    for a, b in circuit.links:
        x, y = _curve(*at[a], *at[b])
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={"color": theme.GREY, "width": 1, "dash": "dot"},
            hoverinfo="skip",
            showlegend=False,
        )
    middle = [(c[0][12], c[1][12]) for c in curves]
    figure.add_scatter(
        x=[m[0] for m in middle],
        y=[m[1] for m in middle],
        mode="markers",
        marker={"size": 9, "opacity": 0},
        customdata=edges["score"],
        name="edges",
        showlegend=False,
        text=[edge_id(e.writer, e.reader) for e in edges.itertuples()],
        hovertemplate=f"%{{text}}<br>%{{customdata:.4g}} {circuit.unit}<extra></extra>",
    )
    for kind, colour in KINDS.items():
        some = circuit.nodes[circuit.nodes["kind"] == kind]
        if len(some):
            figure.add_scatter(
                x=some["x"],
                y=some["y"],
                mode="markers+text",
                text=[_wrapped(n, label) for n, label in zip(some["node"], some["label"], strict=True)],
                textposition="middle right",
                marker={
                    "size": 15,
                    "color": colour,
                    "symbol": {"mlp": "square", "group": "hexagon"}.get(kind, "circle"),
                    "line": {"color": "#ffffff", "width": 1},
                },
                textfont={"size": 12},
                customdata=some["node"],
                hovertemplate="%{customdata}<extra></extra>",
                name={"kv": "key/value head", "mlp": "MLP", "embed": "embedding"}.get(kind, kind),
            )
    for sign, colour, dash, name in ((1, theme.RED, "solid", "raises it"), (-1, theme.BLUE, "dash", "lowers it")):
        if len(edges) and ((edges["score"] >= 0) == (sign > 0)).any():
            figure.add_scatter(
                x=[None], y=[None], mode="lines", line={"color": colour, "width": 3, "dash": dash}, name=f"edge {name}"
            )
    figure.update_xaxes(
        title="Heads of a layer side by side", range=[-0.05, 1.08], showticklabels=False, ticks="", showgrid=False
    )
    figure.update_yaxes(
        title="Embedding to logits, layer by layer", range=[-0.06, 1.08], showticklabels=False, ticks="", showgrid=False
    )
    figure.update_layout(legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"})
    best = (
        ""
        if edges.empty
        else f"; the largest is {edge_id(edges.writer[0], edges.reader[0])} with {edges.score[0]:.3g} {circuit.unit}"
    )
    alt = (
        f"Graph of {len(nodes)} nodes and {len(edges)} edges from embedding to logits, by what each edge does to"
        f" {circuit.metric}{best}."
    )
    theme.finish(figure, f"Edges by their effect on {circuit.metric} ({circuit.unit})", alt, provenance)
    return figure.update_layout(height=min(1300, max(theme.HEIGHT, 250 + 80 * circuit.n_rows)))


def _wrapped(node: str, label: str) -> str:
    return node if label == node else f"{label}<br>{node}"


def faithfulness_bars(result: Result) -> go.Figure:
    """Faithfulness and completeness of the shown circuit beside those of random circuits of as many edges."""
    data, figure = result.data, go.Figure()
    names = [str(c) for c in data["circuit"].values]
    for name, label, colour in (
        ("faithfulness", "alone: faithfulness", theme.BLUE),
        ("completeness", "without it: what is left", theme.ORANGE),
    ):
        figure.add_bar(
            x=names,
            y=data[name].values,
            name=label,
            marker={"color": colour},
            hovertemplate="%{x}<br>%{y:.3f}<extra>" + label + "</extra>",
        )
    for level in (0, 1):
        figure.add_hline(y=level, line={"color": "#767676", "width": 1, "dash": "dot"})
    figure.update_xaxes(title=f"Circuit of {data.attrs['n_shown']} edges")
    figure.update_yaxes(title="Share of clean - empty")
    figure.update_layout(barmode="group", legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"})
    first = float(data["faithfulness"][0])
    alt = (
        f"Bars: the shown circuit keeps {first:.2f} of the difference between clean and empty run; {len(names) - 1}"
        " random circuits of as many edges beside it."
    )
    return theme.finish(figure, "Does the shown circuit suffice?", alt, result.provenance)
