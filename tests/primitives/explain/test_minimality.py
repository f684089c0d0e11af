"""What each edge of a circuit adds: against runs counted by hand, on the known circuit, with a circuit of useless
edges as control.
"""

# ruff: noqa: F401, F811 - fixtures of another file

from itertools import pairwise

import numpy as np
import pytest
from models.families import DECODERS
from primitives.explain.test_known_circuit import induction, induction_heads, previous_heads, roles, task, twin

from workbench.core.errors import DegenerateBaseline, WorkbenchError
from workbench.core.progress import Cancelled, Progress
from workbench.primitives.explain.attribution import attribute_edges
from workbench.primitives.explain.circuits import faithfulness, minimality, patch_edges
from workbench.primitives.explain.residual_graph import Graph, read_run
from workbench.primitives.score.metrics import logit_diff

METRIC = logit_diff([3, 4, 5], [6, 7, 8])


@pytest.mark.parametrize("family", [f for f in DECODERS if f != "gemma2"])
def test_effects_are_those_of_circuits_built_by_hand(models, pair, family):
    model, (clean, corrupted) = models(family), pair
    scores = attribute_edges(model, clean, corrupted, METRIC)
    found = minimality(model, clean, corrupted, METRIC, scores, 6, n_random=3, seed=2, batch_size=2)
    table, graph = found.tables["edges"], Graph.of(model, clean)
    assert table["chosen"].tolist() == ["circuit"] * 6 + ["random"] * 3
    best = {(row.writer, row.reader) for row in scores.tables["edges"].head(6).itertuples()}
    assert {(row.writer, row.reader) for row in table.head(6).itertuples()} == best

    replacement = read_run(model, graph, corrupted).writes(model, graph, range(len(graph.writers)))

    def run(edges):
        drop = np.ones(graph.exists().shape, bool)
        for writer, reader in edges:
            drop[graph.writers.index(writer), graph.readers.index(reader)] = False
        return METRIC(patch_edges(model, graph, clean, replacement, drop)).numpy()

    for i, row in enumerate(table.itertuples()):
        edge = (row.writer, row.reader)
        path = {tuple(step.split(" -> ")) for step in row.path.split("; ")} if row.path else set()
        inflated = best | path
        assert row.chosen == "circuit" or (edge in path and edge not in best)
        expected = run(inflated) - run(inflated - {edge})
        np.testing.assert_allclose(found.data["effect"].isel(edge=i), expected, atol=2e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_random_paths_are_whole_and_alive(models, pair, family):
    """From the embeddings to the logits, each edge from the node that the one before it feeds; so the metric moves."""
    model, (clean, corrupted) = models(family), pair
    graph = Graph.of(model, clean)
    owns = {
        reader: {graph.writers[w] for w in range(len(graph.writers)) if i in graph.readers_of(w)}
        for i, reader in enumerate(graph.readers)
    }
    assert all(
        len(nodes) == (0 if reader == "logits" else 2 if ".kv" in reader else 1) for reader, nodes in owns.items()
    )
    scores = attribute_edges(model, clean, corrupted, METRIC)
    table = minimality(model, clean, corrupted, METRIC, scores, 1, n_random=12).tables["edges"]
    for steps in (path.split("; ") for path in table["path"] if path):
        pairs = [step.split(" -> ") for step in steps]
        assert pairs[0][0] == "embed" and pairs[-1][1] == "logits"
        assert all(after[0] in owns[before[1]] for before, after in pairwise(pairs))
    assert (table.query("chosen == 'random'")["effect"].abs() > 1e-6).mean() > 0.7


def test_a_circuit_of_one_edge_adds_its_faithfulness(models, pair):
    model = models("gpt2")
    scores = attribute_edges(model, *pair, METRIC)
    for ablate in ("corrupted", "zero", "mean"):
        one = minimality(model, *pair, METRIC, scores, 1, n_random=1, ablate=ablate).tables["edges"]["effect"][0]
        assert one == pytest.approx(
            float(faithfulness(model, *pair, METRIC, scores, [1], ablate=ablate).data["faithfulness"][0]), abs=1e-5
        )


def test_the_known_circuit_needs_its_edges_and_a_random_one_does_not(induction, roles, task):
    scores = attribute_edges(induction, *task, steps=5, mode="activations")
    n_edges = len(scores.tables["edges"])
    found = minimality(induction, *task, scores, n_edges // 4, seed=1)
    edges = found.tables["edges"]
    keys = edges[
        edges.writer.isin(previous_heads(roles)) & edges.reader.isin({f"{head}<k>" for head in induction_heads(roles)})
    ]
    between = edges[edges.writer.str.startswith("a0") & edges.reader.str.startswith("a1")]
    assert len(keys) and keys["effect"].max() == between["effect"].max(), (
        "of the steps between the layers, that from a previous-token head to keys is the one that cannot go"
    )
    assert keys["needed"].any()
    shuffled = scores.data.copy(deep=True)
    flat = shuffled["score"].values.ravel()
    real = np.flatnonzero(~np.isnan(flat))
    flat[real] = flat[np.random.default_rng(0).permutation(real)]
    control = minimality(
        induction, *task, type(scores)(scores.provenance, shuffled, scores.tables), n_edges // 4, seed=1
    )
    assert float(control.data["needed"]) < 0.5 * float(found.data["needed"])


def test_cancelling_keeps_the_rows_that_were_run_and_bad_questions_are_refused(models, pair):
    model = models("gpt2")
    scores = attribute_edges(model, *pair, METRIC)

    class Stop(Progress):
        def update(self, done, total, text=""):
            if 2 * done > total:
                self.cancel()
            super().update(done, total, text)

    part = minimality(model, *pair, METRIC, scores, 4, n_random=2, batch_size=2, progress=Stop())
    assert part.partial and 0 < part.data.sizes["example"] < 3
    none = Progress()
    none.cancel()
    with pytest.raises(Cancelled):
        minimality(model, *pair, METRIC, scores, 4, n_random=2, batch_size=3, progress=none)
    with pytest.raises(WorkbenchError, match="nothing to compare"):
        minimality(model, *pair, METRIC, scores, 0)
    with pytest.raises(WorkbenchError, match="nothing to compare"):
        minimality(model, *pair, METRIC, scores, len(scores.tables["edges"]))
    with pytest.raises(DegenerateBaseline, match="agree in logit_diff"):
        minimality(model, pair[0], pair[0], METRIC, scores, 3)
    with pytest.raises(WorkbenchError, match="a model of this shape"):
        minimality(models("llama"), *pair, METRIC, scores, 3)
