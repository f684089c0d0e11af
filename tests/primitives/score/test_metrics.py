"""Each metric against its formula in float64, SciPy or torch, on rows whose answers and order differ."""

import numpy as np
import pytest
import scipy.stats
import torch

from workbench.core.errors import BadData, DegenerateBaseline
from workbench.primitives.score.metrics import (
    Metric,
    answer_loss,
    kl_div,
    logit_diff,
    probability,
    rank,
    recovered,
    sequence_loss,
)

N, POS, VOCAB = 4, 5, 7
ANSWERS, OTHERS = [3, 0, 6, 2], [1, 5, 0, 4]
ROWS = [[1, 2, 3, 4, 5], [6, 5, 4, 3, 2], [0, 0, 1, 1, 6], [2, 4, 6, 0, 1]]


def logits(seed: int = 0) -> torch.Tensor:
    """[N, POS, VOCAB], far from uniform, so that KL(p || q) and KL(q || p) differ."""
    return 2 * torch.randn(N, POS, VOCAB, generator=torch.Generator().manual_seed(seed))


def chances(values: torch.Tensor) -> np.ndarray:
    """Softmax over the last axis, in float64, without torch."""
    raised = np.exp(values.double().numpy())
    return raised / raised.sum(-1, keepdims=True)


# ---- one value per row, against its formula ----


@pytest.mark.parametrize("pos", [-1, 0, 2])
def test_kl_divergence_is_from_the_reference_to_the_run(pos):
    """KL(reference || run): scipy.stats.entropy(p, q) sums p log(p / q), and torch.distributions agrees."""
    reference, run = logits(0), logits(1)
    p, q = chances(reference[:, pos]), chances(run[:, pos])
    wanted, reversed_ = scipy.stats.entropy(p, q, axis=-1), scipy.stats.entropy(q, p, axis=-1)
    assert np.abs(wanted - reversed_).max() > 0.3  # nats: the two directions are told apart
    found = kl_div(reference, pos)(run)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    as_torch = [torch.distributions.Categorical(logits=x[:, pos]) for x in (reference, run)]
    torch.testing.assert_close(found, torch.distributions.kl_divergence(*as_torch), rtol=1e-4, atol=1e-6)


def test_kl_divergence_of_two_coins_by_hand():
    """p = (3/4, 1/4) against q = (1/2, 1/2) and back: two numbers that anyone can check."""
    skewed, fair = torch.tensor([[[3.0, 1.0]]]).log(), torch.zeros(1, 1, 2)
    assert kl_div(skewed)(fair).item() == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5), rel=1e-5)
    assert kl_div(fair)(skewed).item() == pytest.approx(0.5 * np.log(2 / 3) + 0.5 * np.log(2), rel=1e-5)


def test_kl_divergence_of_a_run_from_itself_is_zero_and_references_may_differ_in_length():
    run = logits()
    assert kl_div(run)(run).abs().max() < 1e-6
    ragged = [run[0, :3], run[1], run[2, :1], run[3]]  # the last position of each is what it was made from
    last = torch.stack([row[-1] for row in ragged]).unsqueeze(1)
    np.testing.assert_allclose(kl_div(ragged)(logits(1)), kl_div(last)(logits(1)), rtol=1e-6)


@pytest.mark.parametrize("pos", [(), (-1,), (1,)], ids=["default", "last", "second"])
def test_metrics_of_an_answer_follow_their_formulas(pos):
    """Without a position they read the last one."""
    run, at = logits(), pos[0] if pos else POS - 1
    read, rows = run[:, at].double().numpy(), np.arange(N)
    p = chances(run[:, at])[rows, ANSWERS]
    wanted = read[rows, ANSWERS] - read[rows, OTHERS]
    np.testing.assert_allclose(logit_diff(ANSWERS, OTHERS, *pos)(run), wanted, rtol=1e-5)
    np.testing.assert_allclose(probability(ANSWERS, *pos)(run), p, rtol=1e-5)
    np.testing.assert_allclose(answer_loss(ANSWERS, *pos)(run), -np.log(p), rtol=1e-5)
    above = [sorted(row, reverse=True).index(row[answer]) for row, answer in zip(read, ANSWERS, strict=True)]
    assert rank(ANSWERS, *pos)(run).tolist() == above


def test_equal_logits_are_not_above_the_answer():
    assert rank([0, 2])(torch.tensor([[[1.0, 1.0, 0.0]], [[1.0, 1.0, 0.0]]])).tolist() == [0.0, 2.0]


def test_the_loss_of_a_row_is_the_mean_cross_entropy_of_what_comes_next():
    run = logits()
    p = chances(run)
    wanted = [np.mean([-np.log(p[i, t, row[t + 1]]) for t in range(POS - 1)]) for i, row in enumerate(ROWS)]
    np.testing.assert_allclose(sequence_loss(ROWS)(run), wanted, rtol=1e-5)
    two = sequence_loss([row[:2] for row in ROWS])(run[:, :2])  # the shortest row there is
    np.testing.assert_allclose(two, [-np.log(p[i, 0, row[1]]) for i, row in enumerate(ROWS)], rtol=1e-5)
    with pytest.raises(BadData, match="at least two tokens"):
        sequence_loss([[1, 2], [3]])


# ---- which rows and positions ----


METRICS = {
    "logit_diff": (logit_diff(ANSWERS, OTHERS), "logits"),
    "probability": (probability(ANSWERS), "probability"),
    "answer_loss": (answer_loss(ANSWERS), "nats"),
    "sequence_loss": (sequence_loss(ROWS), "nats"),
    "kl_div": (kl_div(logits(1)), "nats"),
    "rank": (rank(ANSWERS), "tokens above"),
}


@pytest.mark.parametrize("name", METRICS)
def test_a_row_is_measured_by_its_own_example_whichever_rows_are_run(name):
    metric, unit = METRICS[name]
    run, picked = logits(), torch.tensor([2, 0, 2])
    whole = metric(run)
    assert metric.unit == unit and metric.n_examples == N and whole.shape == (N,) and whole.dtype == torch.float32
    assert len(set(whole.tolist())) > 1
    torch.testing.assert_close(metric(run[picked], picked), whole[picked])
    torch.testing.assert_close(metric.of([3, 1])(run[[3, 1]]), whole[[3, 1]])
    read = run if metric.positions is None else run[:, list(metric.positions)]
    torch.testing.assert_close(metric.at_read(read, torch.arange(N)), whole)
    torch.testing.assert_close(metric(run.double()), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METRICS)
def test_every_example_can_be_asked_for_and_no_more(name):
    metric, run = METRICS[name][0], logits()
    assert metric(run[-1:], torch.tensor([N - 1])).isfinite().all() and metric.of([N - 1]).n_examples == 1
    with pytest.raises(BadData, match=f"made for {N} examples, and example {N} was run"):
        metric(run[:2], torch.tensor([0, N]))
    with pytest.raises(BadData, match=f"made for {N} examples, and example {N} was asked for"):
        metric.of([0, N])


def test_a_metric_that_knows_no_examples_can_be_asked_for_any():
    free = Metric("top", "logits", lambda logits, example: logits[:, 0].amax(-1) + example)
    assert free.positions == (-1,) and free.n_examples is None
    run = logits()[:2]
    torch.testing.assert_close(free.of([5, 9])(run), run[:, -1].amax(-1) + torch.tensor([5, 9]))
    assert free.of([]).n_examples == 0


@pytest.mark.parametrize(
    ("answers", "named"), [([0, 0, 0, VOCAB], VOCAB), ([0, -1, 0, 0], -1), ([-2, 0, 0, VOCAB], -2)]
)
def test_an_answer_that_the_model_does_not_have_is_named(answers, named):
    with pytest.raises(BadData, match=f"has id {named}, and the model knows tokens 0 to {VOCAB - 1}"):
        probability(answers)(logits())
    assert probability([0, VOCAB - 1, 0, 0])(logits()).isfinite().all()
    with pytest.raises(BadData, match="4 answers and 3 others"):
        logit_diff(ANSWERS, OTHERS[:3])


# ---- recovered share ----


def test_a_recovered_share_is_each_examples_own():
    """Gaps of 1, -100 and 0.01: no example's share depends on another's gap."""
    clean, corrupted = torch.tensor([1.0, -99.0, 3.01]), torch.tensor([0.0, 1.0, 3.0])
    patched = torch.tensor([[0.25, -24.0, 3.01], [-1.0, 1.0, 3.02]])
    wanted = torch.tensor([[0.25, 0.25, 1.0], [-1.0, 0.0, 2.0]])
    torch.testing.assert_close(recovered(patched, clean, corrupted), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_gap_too_small_to_divide_by_is_refused_on_either_side(sign):
    corrupted = torch.zeros(3)
    clean = sign * torch.tensor([1.0, 0.4, 0.6])
    assert recovered(corrupted, clean, corrupted, eps=0.4).tolist() == [0.0, 0.0, 0.0]  # eps itself is enough
    with pytest.raises(DegenerateBaseline, match=r"within 0\.5 on 1 of 3 examples"):
        recovered(corrupted, clean, corrupted, eps=0.5)
