"""Shares of a circuit are ratios of means over rows: from TransformerLens's share of every single row."""

import numpy as np
import pytest
import torch
from transformer_lens.tools.analysis import attribution_patching as theirs

from workbench.primitives.explain.attribution import attribute_edges
from workbench.primitives.explain.circuits import faithfulness
from workbench.primitives.score.metrics import Metric, logit_diff

WEIGHTS = torch.tensor([1.0, 60.0, 0.02])  # one row's gap is thousands of times another's


def their_name(node):
    """The name here of a node of TransformerLens."""
    if node.layer is None or node.kind == "logits":
        return "embed" if node.layer is None else "logits"
    place = f"m{node.layer}" if node.head is None else f"a{node.layer}.h{node.head}"
    return place + (f"<{node.kind[0]}>" if node.kind.endswith("_input") else "")


def weighted() -> Metric:
    """The logit difference of three rows, each in its own unit."""
    plain = logit_diff([3, 4, 5], [6, 7, 8])

    def compute(logits: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
        return plain.compute(logits, example) * WEIGHTS[example]

    return Metric("weighted", "logits", compute, n_examples=3)


def test_faithfulness_and_completeness_are_ratios_of_means_over_rows(models, pair):
    """TransformerLens gives each row's own share r; of rows with gaps g the ratio of means is sum(r g) / sum(g)."""
    model, (clean, corrupted), metric, k = models("gpt2"), pair, weighted(), 25
    scores = attribute_edges(model, clean, corrupted, metric)
    found = faithfulness(model, clean, corrupted, metric, scores, [k], batch_size=2).data
    best = {(row.writer, row.reader) for row in scores.tables["edges"].head(k).itertuples()}
    shares = np.zeros((2, len(clean)))
    for i in range(len(clean)):
        value = lambda logits, i=i: logit_diff([3 + i], [6 + i])(logits).sum()  # noqa: E731
        row = clean[i : i + 1], corrupted[i : i + 1]
        config = theirs.EdgeAttributionConfig(granularity="edge")
        every = list(theirs.attribution_patch(model.live, *row, value, config).edge_scores)
        inside = [(their_name(w), their_name(r)) in best for w, r in every]
        for side, kept in enumerate((True, False)):
            circuit = [edge for edge, is_in in zip(every, inside, strict=True) if is_in is kept]
            shares[side, i] = theirs.faithfulness(model.live, *row, value, circuit).recovered
    gaps = (metric(model.forward(clean)) - metric(model.forward(corrupted))).double().numpy()
    wanted, of_rows = shares @ gaps / gaps.sum(), shares.mean(1)
    assert (np.abs(wanted - of_rows) > 0.02).all()  # the mean of the rows' shares is another number
    assert float(found["faithfulness"][0]) == pytest.approx(wanted[0], abs=1e-3)
    assert float(found["completeness"][0]) == pytest.approx(wanted[1], abs=1e-3)
