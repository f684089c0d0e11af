"""Faithfulness of a set of edges: all of them suffice, the best k are what circuits.faithfulness says, random ones
do not.
"""

import pytest
import torch

from workbench.core.errors import BadData
from workbench.core.progress import Cancelled, Progress
from workbench.models import load
from workbench.primitives.explain.attribution import attribute_edges
from workbench.primitives.explain.circuits import faithfulness
from workbench.primitives.explain.edge_sets import edges_faithfulness
from workbench.primitives.score.metrics import logit_diff


@pytest.fixture(scope="module")
def model():
    return load("organism:induction")


@pytest.fixture(scope="module")
def pair():
    """Words 3 to 10, then word 6 again, which is not there before in the twin."""
    clean = torch.tensor([[1, 3, 4, 5, 6, 7, 8, 9, 10, 6], [1, 23, 24, 25, 26, 27, 28, 29, 30, 26]])
    corrupted = clean.clone()
    corrupted[:, 4] += 6
    return clean, corrupted, logit_diff([7, 27], [9, 29])


@pytest.fixture(scope="module")
def scores(model, pair):
    return attribute_edges(model, *pair, steps=5, mode="activations")


def test_the_best_edges_are_those_of_circuits(model, pair, scores):
    plain = faithfulness(model, *pair, scores, [12])
    found = edges_faithfulness(model, *pair, scores, scores.tables["edges"].head(12), n_random=2, seed=1).data
    for name in ("faithfulness", "completeness"):
        assert float(found[name].sel(circuit="shown")) == pytest.approx(float(plain.data[name][0]), abs=1e-4)
    assert list(found["circuit"].values) == ["shown", "random 1", "random 2"] and float(
        found["faithfulness"][1:].max()
    ) < 0.3 < float(found["faithfulness"][0])


def test_all_edges_are_faithful_and_none_is_no_circuit(model, pair, scores):
    every = edges_faithfulness(model, *pair, scores, scores.tables["edges"], n_random=0)
    assert float(every.data["faithfulness"][0]) == pytest.approx(1, abs=1e-3) and float(
        every.data["completeness"][0]
    ) == pytest.approx(0, abs=1e-3)
    with pytest.raises(BadData, match="no edge is shown"):
        edges_faithfulness(model, *pair, scores, scores.tables["edges"].head(0))


def test_faithfulness_cancelled_keeps_the_shown_circuit(model, pair, scores):
    class AfterOne(Progress):
        def show(self):
            if 4 * self.done == self.total:  # the shown circuit and three random ones
                self.cancel()

    progress = AfterOne()
    found = edges_faithfulness(model, *pair, scores, scores.tables["edges"].head(9), progress=progress)
    assert found.partial and list(found.data["circuit"].values) == ["shown"]
    with pytest.raises(Cancelled):
        progress.update(1, 1)
    with pytest.raises(Cancelled):
        edges_faithfulness(model, *pair, scores, scores.tables["edges"].head(9), progress=progress)
