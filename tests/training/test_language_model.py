"""Training lowers the loss to what the language allows, follows its seed, stops between steps and decays matrices
only.
"""

import math

import numpy as np
import pytest
import torch
import transformers as tf
from models.families import GPT2, NO_SPECIAL

from workbench.core.progress import Cancelled, Progress
from workbench.models.model import hash_weights
from workbench.training.language_model import PretrainSpec, pretrain
from workbench.training.loop import parameter_groups

SHORT = PretrainSpec(steps=12, batch_size=4, length=8, warmup_steps=2)


def fresh(seed: int = 0):
    torch.manual_seed(seed)
    return tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2 | NO_SPECIAL))


def counting(n: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Each sequence counts up from a random start, so the next token is certain after the first."""
    return (rng.integers(0, 64, (n, 1)) + np.arange(length)) % 64


def always_seven(n: int, length: int, rng: np.random.Generator) -> np.ndarray:
    return np.full((n, length), 7, dtype=np.int64)


def coin(n: int, length: int, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 2, (n, length))


def test_the_loss_falls_to_zero_on_a_constant_language():
    log = pretrain(fresh(), always_seven, PretrainSpec(steps=60, batch_size=4, length=8, warmup_steps=5), log_every=20)
    assert log["loss"].iloc[0] < math.log(64) + 0.5
    assert log["loss"].is_monotonic_decreasing
    assert log["loss"].iloc[-1] < 0.1


def test_the_loss_of_a_coin_stops_at_its_entropy():
    log = pretrain(fresh(), coin, PretrainSpec(steps=120, batch_size=16, length=16, warmup_steps=5), log_every=40)
    assert log["loss"].iloc[-1] == pytest.approx(math.log(2), abs=0.05)


def test_the_first_loss_is_the_cross_entropy_of_the_positions_that_count():
    """Dropout off and a rate of zero, so the logged loss is that of the weights given."""
    config = tf.GPT2Config(**GPT2 | NO_SPECIAL | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0})
    torch.manual_seed(0)
    model = tf.GPT2LMHeadModel(config)
    tokens = torch.from_numpy(counting(4, 8, np.random.default_rng(SHORT.seed)))
    for skip in (0, 1, 3):
        with torch.no_grad():
            said = model(tokens).logits.log_softmax(-1)
        nats = [-float(said[b, t, tokens[b, t + 1]]) for b in range(4) for t in range(skip, 7)]
        log = pretrain(model, counting, SHORT.replace(steps=1, lr=0.0), skip=skip)
        assert log["loss"].tolist() == [pytest.approx(sum(nats) / len(nats), rel=1e-5)]


def test_the_same_seed_gives_the_same_weights():
    hashes = []
    for seed in (1, 1, 2):
        model = fresh()
        torch.manual_seed(5)
        pretrain(model, counting, SHORT.replace(seed=seed))
        hashes.append(hash_weights(model))
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_seed_alone_settles_the_weights():
    """Also what dropout draws: the state of torch's global generator before the call must not matter."""
    hashes = []
    for other in (5, 6):
        model = fresh()
        torch.manual_seed(other)
        pretrain(model, counting, SHORT)
        hashes.append(hash_weights(model))
    assert hashes[0] == hashes[1]


def test_a_rate_of_zero_changes_nothing_and_the_model_comes_back_in_eval():
    model = fresh()
    before = hash_weights(model)
    pretrain(model, counting, SHORT.replace(lr=0.0))
    assert hash_weights(model) == before
    assert not model.training


class StopAfter(Progress):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def show(self) -> None:
        if self.done == self.steps:
            self.cancel()


def test_a_cancelled_training_keeps_the_last_finished_step():
    """The weights are those of an undisturbed run after 5 steps or after 6 (cancel is noticed after the step in
    which it came).
    """
    seen: list[str] = []

    class Watching(Progress):
        def show(self) -> None:
            seen.append(hash_weights(undisturbed))

    undisturbed, stopped = fresh(), fresh()
    torch.manual_seed(5)
    pretrain(undisturbed, counting, SHORT, progress=Watching())
    torch.manual_seed(5)
    with pytest.raises(Cancelled, match="cancelled after 5 of 12 steps"):
        pretrain(stopped, counting, SHORT, progress=StopAfter(5))
    assert len(set(seen)) == SHORT.steps
    assert hash_weights(stopped) in seen[4:6]
    assert not stopped.training


def test_decay_is_on_matrices_only():
    model = fresh()
    decayed, kept = parameter_groups(model, 0.3)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in kept["params"]} == {1}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_decay_shrinks_the_weights_it_is_on():
    """Unused embedding rows get no gradient from an untied head: decay alone moves them, towards zero."""
    norms = {}
    for decay in (0.0, 2.0):
        torch.manual_seed(0)
        model = tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2 | NO_SPECIAL, tie_word_embeddings=False))
        before = model.transformer.wte.weight[20:].detach().clone()
        pretrain(model, always_seven, SHORT.replace(weight_decay=decay, lr=1e-2))
        norms[decay] = float(model.transformer.wte.weight[20:].detach().norm() / before.norm())
    assert norms[0.0] == pytest.approx(1.0, abs=1e-6)
    assert norms[2.0] < 0.95


def test_the_rate_warms_up_stays_and_falls():
    spec = PretrainSpec(steps=20, batch_size=1, length=4, lr=1.0, warmup_steps=4, decay_share=0.25, clip=0.0)
    rates = pretrain(fresh(), counting, spec, log_every=1)["lr"].tolist()
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4:16] == pytest.approx([1.0] * 12)
    assert rates[16:20] == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_the_log_has_a_row_per_interval_and_one_for_the_end():
    log = pretrain(fresh(), counting, SHORT.replace(steps=7), log_every=3)
    assert log["step"].tolist() == [3, 6, 7]
    assert list(log.columns) == ["step", "loss", "lr"]


def test_frozen_parameters_stay():
    model = fresh()
    model.transformer.wpe.weight.requires_grad_(False)
    before = model.transformer.wpe.weight.clone()
    pretrain(model, counting, SHORT)
    assert torch.equal(model.transformer.wpe.weight, before)
