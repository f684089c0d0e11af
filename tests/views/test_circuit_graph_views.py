"""Circuit views from made-up scores: which edges are shown and what is dropped, where nodes stand, groups, figures;
no model.
"""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from workbench.core.errors import BadData
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.views import circuit_graph as views

WRITERS = ["embed", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1"]


def made(n_layers=2, n_heads=2, n_kv=None, seed=0, spec=None):
    """A Result as attribute_edges gives it, with random scores where an edge can be."""
    kv, kinds = ("kv", n_kv) if n_kv else ("h", n_heads), []
    writers, readers, n_before = ["embed"], [], []
    for layer in range(n_layers):
        kinds = [f"a{layer}.h{h}<q>" for h in range(n_heads)] + [
            f"a{layer}.{kv[0]}{h}<{k}>" for k in "kv" for h in range(kv[1])
        ]
        readers, n_before = readers + kinds, n_before + [len(writers)] * len(kinds)
        readers, n_before = [*readers, f"m{layer}"], [*n_before, len(writers) + n_heads]
        writers += [f"a{layer}.h{h}" for h in range(n_heads)] + [f"m{layer}"]
    readers, n_before = [*readers, "logits"], [*n_before, len(writers)]
    score = np.random.default_rng(seed).standard_normal((len(writers), len(readers))).astype(np.float32)
    score[np.arange(len(writers))[:, None] >= np.array(n_before)] = np.nan
    data = xr.Dataset(
        {"score": (("writer", "reader"), score, {"unit": "logits"}), "sem": (("writer", "reader"), np.abs(score) / 10)},
        {"writer": writers, "reader": readers},
    )
    w, r = np.nonzero(np.isfinite(score))
    table = pd.DataFrame({"writer": np.array(writers)[w], "reader": np.array(readers)[r], "score": score[w, r]})
    table = table.iloc[np.argsort(-table["score"].abs().to_numpy(), kind="stable")].reset_index(drop=True)
    return Result(
        Provenance("attribution", spec or {"metric": "logit_diff"}, 0, model={"name": "made", "weights": "abc"}),
        data,
        {"edges": table},
    )


@pytest.fixture(scope="module")
def result():
    return made()


def test_nodes_stand_in_the_order_of_the_stream(result):
    assert views.graph_nodes(result) == [*WRITERS, "logits"]
    assert [views.kind_of(n) for n in ("embed", "a0.h1", "a0.kv1", "m0", "logits")] == [
        "embed",
        "head",
        "kv",
        "mlp",
        "logits",
    ]
    assert views.kind_of("mine", {"mine"}) == "group"


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.3, 99.0])
def test_edges_above_are_those_of_the_array(result, threshold):
    shown = views.edges_above(result, threshold)
    size = np.abs(result.data["score"].values)
    assert (
        len(shown.edges) == shown.n_above == int((size >= threshold).sum())
        and shown.n_edges == int(np.isfinite(size).sum())
        and shown.dropped == ""
    )
    for edge in shown.edges.to_dict("records"):
        assert edge["score"] == float(result.data["score"].sel(writer=edge["writer"], reader=edge["reader"])) and edge[
            "sem"
        ] == pytest.approx(abs(edge["score"]) / 10)
    assert shown.share == pytest.approx(np.nansum(size[size >= threshold]) / np.nansum(size), abs=1e-6)


def test_a_graph_too_large_is_pruned_to_the_largest_and_says_so(result):
    shown = views.edges_above(result, 0.1, max_edges=10)
    assert shown.edges["score"].abs().min() >= result.tables["edges"]["score"].abs()[10]
    assert f"{shown.n_above} edges are above 0.1" in shown.dropped and "the 10 largest are shown" in shown.dropped
    few = views.edges_above(result, 0.1, max_nodes=4)
    assert (
        len({*few.edges["writer"], *map(views.node_of, few.edges["reader"])}) <= 4 and "too many to draw" in few.dropped
    )
    pd.testing.assert_frame_equal(
        few.edges[["writer", "reader"]], shown.edges[["writer", "reader"]].head(len(few.edges))
    )


def _only(result, *pairs):
    """The same graph with a score at these edges and 0.01 elsewhere."""
    score = result.data["score"].where(result.data["score"].isnull(), 0.01).copy()
    for i, (writer, reader) in enumerate(pairs):
        score.loc[{"writer": writer, "reader": reader}] = 2.0 + i
    table = result.tables["edges"].copy()
    table["score"] = [
        float(score.sel(writer=w, reader=r)) for w, r in zip(table["writer"], table["reader"], strict=True)
    ]
    table = table.iloc[np.argsort(-table["score"].abs().to_numpy(), kind="stable")].reset_index(drop=True)
    return Result(
        result.provenance, result.data.assign(score=score.assign_attrs(result.data["score"].attrs)), {"edges": table}
    )


def test_dead_ends_are_hidden_on_request_and_counted(result):
    whole = [("embed", "a0.h0<v>"), ("a0.h0", "a1.h1<k>"), ("a1.h1", "logits")]
    graph = _only(result, *whole, ("embed", "a1.h0<q>"), ("m0", "a1.h1<q>"))
    assert len(views.edges_above(graph, 1).edges) == 5
    shown = views.edges_above(graph, 1, paths_only=True)
    assert (
        set(shown.edges[["writer", "reader"]].itertuples(index=False, name=None)) == set(whole)
        and "2 edges above" in shown.dropped
    )


def test_key_value_heads_hand_on_to_their_query_heads():
    grouped = made(n_heads=4, n_kv=2)
    assert views.kv_links(grouped)[:4] == [
        ("a0.kv0", "a0.h0"),
        ("a0.kv0", "a0.h1"),
        ("a0.kv1", "a0.h2"),
        ("a0.kv1", "a0.h3"),
    ]
    assert views.kv_links(made()) == []
    graph = _only(grouped, ("embed", "a0.kv1<v>"), ("a0.h2", "logits"), ("a0.h0", "logits"))
    shown = views.edges_above(graph, 1, paths_only=True)
    assert sorted(shown.edges["writer"]) == ["a0.h2", "embed"], "a0.h0 reads from the other key/value head"
    circuit = views.arrange(shown, graph)
    assert circuit.links == [("a0.kv1", "a0.h2")] and "a0.kv1" in set(circuit.nodes["node"])


def _at(circuit):
    return circuit.nodes.set_index("node")


def test_rows_go_up_from_embed_to_logits(result):
    nodes = _at(views.arrange(views.edges_above(result, 0), result))
    order = ["embed", "a0.h0", "m0", "a1.h0", "m1", "logits"]
    assert (
        list(nodes.loc[order, "y"]) == sorted(nodes.loc[order, "y"])
        and nodes.y["embed"] == 0
        and nodes.y["logits"] == 1
    )
    assert nodes.y["a0.h0"] == nodes.y["a0.h1"] and nodes.x["a0.h0"] < nodes.x["a0.h1"]
    assert nodes.loc["a0.h0", "in_score"] == pytest.approx(
        float(result.data["score"].sel(reader=["a0.h0<q>", "a0.h0<k>", "a0.h0<v>"]).sum()), rel=1e-5
    )


def test_a_wide_layer_takes_more_rows():
    wide = made(n_layers=1, n_heads=30)
    circuit = views.arrange(views.edges_above(wide, 0, max_nodes=999, max_edges=9999), wide)
    assert circuit.n_rows == 3 + 3 and _at(circuit).groupby("y").size().max() <= views.PER_ROW


def test_what_a_person_placed_stays(result):
    circuit = views.arrange(
        views.edges_above(result, 99), result, pins=["a0.h1"], positions={"m0": [0.1, 0.9]}, names={"a0.h1": "my head"}
    )
    assert (
        list(circuit.nodes["node"]) == ["a0.h1"]
        and circuit.nodes["label"][0] == "my head"
        and circuit.nodes["is_pinned"][0]
    )
    nodes = _at(views.arrange(views.edges_above(result, 0), result, positions={"m0": [0.1, 0.9]}))
    assert (nodes.x["m0"], nodes.y["m0"], nodes.is_pinned["m0"]) == (0.1, 0.9, True)


def test_groups_sum_their_edges_and_lose_nothing(result):
    shown = views.edges_above(result, 0)
    plain = views.arrange(shown, result)
    circuit = views.arrange(shown, result, groups={"layer 0": ["a0.h0", "a0.h1", "m0"]})
    assert (
        set(_at(circuit).index) == {"embed", "layer 0", "a1.h0", "a1.h1", "m1", "logits"}
        and _at(circuit).kind["layer 0"] == "group"
    )
    inside = plain.edges[plain.edges["source"].isin(["a0.h0", "a0.h1"]) & (plain.edges["target"] == "m0")]
    assert circuit.n_inside == len(inside) == 2
    assert circuit.edges["score"].sum() == pytest.approx(plain.edges["score"].sum() - inside["score"].sum(), rel=1e-4)
    assert circuit.edges["n_edges"].sum() == len(plain.edges) - 2
    into = circuit.edges.query("source == 'layer 0' and target == 'a1.h1' and port == 'k'")
    assert (
        len(into) == 1
        and into["n_edges"].item() == 3
        and np.isnan(into["sem"].item())
        and into["reader"].item() == "a1.h1<k>"
    )
    assert list(circuit.edges["score"].abs()) == sorted(circuit.edges["score"].abs(), reverse=True)


def test_node_edges_are_the_largest_and_know_their_rank(result):
    edges = views.node_edges(result, ["a0.h1"], n=4)
    assert list(edges["direction"]) == ["in"] * 3 + ["out"] * 4, "a head of layer 0 reads the embedding three times"
    whole = result.tables["edges"]
    for edge in edges.itertuples():
        assert (whole["writer"][edge.rank - 1], whole["reader"][edge.rank - 1]) == (edge.writer, edge.reader)
    out = whole[whole["writer"] == "a0.h1"]
    assert list(edges[edges["direction"] == "out"]["score"]) == pytest.approx(list(out["score"].head(4)))
    assert views.node_total(result, ["a0.h1"]) == pytest.approx(out["score"].sum(), rel=1e-5)
    both = views.node_edges(result, ["a0.h1", "m0"], n=99)
    assert not ((both["writer"] == "a0.h1") & (both["reader"] == "m0")).any()


def test_figure_draws_the_table(result):
    circuit = views.arrange(views.edges_above(result, 0.5), result, names={"m0": "a name"})
    figure = views.circuit_figure(circuit, result.provenance)
    drawn = next(t for t in figure.data if t.name == "edges")
    np.testing.assert_allclose(drawn.customdata, circuit.edges["score"])
    assert list(drawn.text) == [
        f"{w} -> {r}" for w, r in zip(circuit.edges["writer"], circuit.edges["reader"], strict=True)
    ]
    assert {n for t in figure.data if t.mode == "markers+text" for n in t.customdata} == set(circuit.nodes["node"])
    assert "a name<br>m0" in [text for t in figure.data if t.mode == "markers+text" for text in t.text]
    assert (
        figure.layout.xaxis.title.text
        and figure.layout.yaxis.title.text
        and f"{len(circuit.edges)} edges" in figure.layout.meta["alt"]
    )
    assert result.provenance.short() in [a.text for a in figure.layout.annotations]


def test_figure_of_nothing_is_a_figure(result):
    assert (
        views.circuit_figure(views.arrange(views.edges_above(result, 99), result), result.provenance)
        .layout.meta["alt"]
        .startswith("Graph of 0 nodes")
    )


def test_another_result_is_refused(result):
    with pytest.raises(BadData, match="drawn from the Result of attribute_edges"):
        views.check_edges(Result(Provenance("lens", {}, 0), result.data))


def test_faithfulness_bars_draw_the_result():
    data = xr.Dataset(
        {"faithfulness": ("circuit", [0.9, 0.1]), "completeness": ("circuit", [0.0, 0.8])},
        {"circuit": ["shown", "random 1"]},
        {"n_shown": 7},
    )
    figure = views.faithfulness_bars(Result(Provenance("attribution", {}, 0), data))
    assert (
        list(figure.data[0].y) == [0.9, 0.1]
        and list(figure.data[1].y) == [0.0, 0.8]
        and "0.90" in figure.layout.meta["alt"]
    )
