"""Fine-tuning: the loss is that of the answers alone, padding changes nothing, the seed settles all, pairs come
round evenly.
"""

import math

import pytest
import torch
from training.tiny import PAIRS, SHORT, fresh

from workbench.core.errors import BadData
from workbench.core.progress import Cancelled, Progress
from workbench.models.model import hash_weights
from workbench.training.finetune import IGNORED, answer_batch, answer_loss, finetune
from workbench.training.loop import TrainSpec


def test_labels_are_the_answer_tokens_and_nothing_else():
    tokens, mask, labels = answer_batch(PAIRS[:2], pad_id=3)
    assert tokens.tolist() == [[1, 5, 6, 7, 2, 3], [1, 8, 9, 10, 11, 2]]
    assert mask.tolist() == [[True] * 5 + [False], [True] * 6]
    assert labels.tolist() == [[IGNORED] * 3 + [7, 2, IGNORED], [IGNORED] * 2 + [9, 10, 11, 2]]


def test_the_loss_is_the_mean_over_answer_tokens_and_padding_changes_nothing():
    """Against each pair alone, unpadded, token by token."""
    module, nats = fresh(), []
    with torch.no_grad():
        for prompt, answer in PAIRS:
            said = module(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            nats += [-float(said[len(prompt) - 1 + i, token]) for i, token in enumerate(answer)]
        assert float(answer_loss(module, PAIRS)) == pytest.approx(sum(nats) / len(nats), rel=1e-5)


def test_prompt_tokens_give_no_gradient_to_the_head():
    """Changing what a prompt says next would need a gradient at the head's rows of prompt tokens beyond the
    softmax's: an exact share.
    """
    module = fresh()
    answer_loss(module, [([1, 40, 41, 42], [7, 2])]).backward()
    gradient = module.lm_head.weight.grad
    assert float(gradient[7] @ gradient[7]) > 10 * max(float(gradient[t] @ gradient[t]) for t in (40, 41, 42))


def test_the_answers_are_learned():
    module = fresh()
    log = finetune(module, PAIRS, TrainSpec(steps=80, batch_size=5, lr=1e-2))
    assert log["loss"].iloc[0] > 2 > 0.05 > log["loss"].iloc[-1]
    with torch.no_grad():
        for prompt, answer in PAIRS:
            assert module(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].argmax(-1).tolist() == answer


def test_the_seed_alone_settles_the_weights():
    hashes = []
    for seed, other in ((1, 5), (1, 6), (2, 5)):
        module = fresh()
        torch.manual_seed(other)
        finetune(module, PAIRS, SHORT.replace(seed=seed))
        hashes.append(hash_weights(module))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_rate_of_zero_changes_nothing_and_logs_the_loss_of_the_weights_given():
    module = fresh()
    before = hash_weights(module)
    log = finetune(module, PAIRS[:1], SHORT.replace(lr=0.0, batch_size=1, weight_decay=0.5), log_every=1)
    assert hash_weights(module) == before and not module.training
    assert log["loss"].tolist() == pytest.approx([float(answer_loss(module, PAIRS[:1]).detach())] * 6, rel=1e-6)


def test_the_rate_follows_the_schedule_and_the_log_has_a_row_per_interval_and_one_for_the_end():
    spec = TrainSpec(steps=20, batch_size=1, lr=1.0, warmup_steps=4, decay_share=0.25, clip=0.0)
    rates = finetune(fresh(), PAIRS, spec, log_every=1)["lr"].tolist()
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0]) and rates[16:] == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert finetune(fresh(), PAIRS, SHORT, log_every=4)["step"].tolist() == [4, 6]


def test_a_cancelled_fine_tune_stops_between_steps():
    class Stop(Progress):
        def show(self) -> None:
            if self.done == 3:
                self.cancel()

    module = fresh()
    with pytest.raises(Cancelled, match="after 3 of 6 steps"):
        finetune(module, PAIRS, SHORT, progress=Stop())
    assert not module.training and all(math.isfinite(float(p.detach().sum())) for p in module.parameters())


def test_what_cannot_be_trained_on_gets_a_sentence():
    with pytest.raises(BadData, match="at least one example"):
        finetune(fresh(), [], SHORT)
    with pytest.raises(BadData, match="got 2 and 0"):
        finetune(fresh(), [([1, 2], [])], SHORT)
    module = fresh().requires_grad_(False)
    with pytest.raises(BadData, match="requires a gradient"):
        finetune(module, PAIRS, SHORT)
