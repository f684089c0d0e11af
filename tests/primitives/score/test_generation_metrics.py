"""Empty, stuck and looping continuations are told from ordinary ones, by measures small enough to do by hand."""

import pytest
import torch

from workbench.core.errors import WorkbenchError
from workbench.primitives.score.generation_metrics import (
    continuation_loss,
    degeneration,
    longest_run_share,
    repeated_ngram_share,
)


@pytest.mark.parametrize(
    ("ids", "share"), [([], 0), ([7], 1), ([1, 2, 3, 4], 1 / 4), ([1, 5, 5, 5, 2, 5], 3 / 6), ([2, 2, 1, 1, 1], 3 / 5)]
)
def test_longest_run(ids, share):
    assert longest_run_share(ids) == share


@pytest.mark.parametrize(
    ("ids", "n", "share"),
    [
        ([], 2, 0),
        ([1], 2, 0),
        ([1, 2, 3], 2, 0),
        ([1, 2, 1, 2, 1], 2, 1 - 2 / 4),
        ([1, 1, 1, 1], 2, 1 - 1 / 3),
        ([1, 2, 3, 1, 2, 3], 3, 1 - 3 / 4),
        ([1, 2, 1], 1, 1 - 2 / 3),
    ],
)
def test_repeated_ngrams(ids, n, share):
    assert repeated_ngram_share(ids, n) == pytest.approx(share)


@pytest.mark.parametrize(
    ("ids", "is_degenerate"),
    [
        ([], True),
        ([5], False),
        ([5, 5], False),
        (list(range(12)), False),
        ([5] * 12, True),
        ([1, 2] * 6, True),
        ([1, 2, 3] * 4, True),
        ([*range(10), 1, 2], False),
    ],
)
def test_what_counts_as_degenerate(ids, is_degenerate):
    found = degeneration(ids)
    assert found["is_degenerate"] is is_degenerate
    assert found["is_empty"] is (not ids) and found["n_tokens"] == len(ids)


def test_thresholds_are_where_they_say():
    ids = [9] * 5 + [1, 2, 3, 4, 5]
    assert degeneration(ids)["longest_run_share"] == 0.5 and not degeneration(ids)["is_degenerate"]
    assert degeneration(ids, max_run_share=0.49)["is_degenerate"]
    assert degeneration([1, 2] * 3, min_tokens=6)["is_degenerate"] and not degeneration([1, 2] * 3)["is_degenerate"]
    assert degeneration([1, 2] * 6, max_repeated_share=0.9)["is_degenerate"] is False
    loop = degeneration(list(range(5)) * 4, n=2)
    assert loop["repeated_ngram_share"] == pytest.approx(1 - 5 / (20 - 2 + 1))


def test_an_ngram_needs_a_token():
    with pytest.raises(WorkbenchError, match="n=0"):
        degeneration([1, 2], n=0)


def test_the_loss_of_a_continuation_counts_its_tokens_only():
    logits, tokens = torch.randn(3, 6, 9), torch.randint(0, 9, (3, 6))
    found = continuation_loss(logits, tokens, [2, 5, 6])
    log_p = logits.log_softmax(-1)
    assert float(found[0]) == pytest.approx(
        -sum(float(log_p[0, t - 1, tokens[0, t]]) for t in (2, 3, 4, 5)) / 4, rel=1e-5
    )
    assert float(found[1]) == pytest.approx(-float(log_p[1, 4, tokens[1, 5]]), rel=1e-5)
    assert torch.isnan(found[2])
