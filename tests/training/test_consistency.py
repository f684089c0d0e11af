"""Inconsistency by hand and against finite differences; the perturbation raises it; training lowers it; the log and
its refusals.
"""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers as tf
from models.families import GQA, NO_SPECIAL
from training.tiny import PAIRS

from workbench.core.errors import BadData
from workbench.training import consistency, lora
from workbench.training.finetune import answer_batch, finetune
from workbench.training.loop import TrainSpec

SPEC = TrainSpec(steps=30, batch_size=4, lr=3e-3, warmup_steps=2)


def _deep(n_blocks: int = 4) -> tf.LlamaForCausalLM:
    torch.manual_seed(0)
    return tf.LlamaForCausalLM(
        tf.LlamaConfig(**GQA | NO_SPECIAL | {"intermediate_size": 48, "num_hidden_layers": n_blocks})
    ).eval()


def _batch(module):
    tokens, mask, _ = answer_batch(PAIRS)
    return tokens, mask, module.get_input_embeddings()(tokens).detach()


def test_it_is_one_minus_the_mean_cosine_of_what_consecutive_blocks_give():
    module = _deep()
    _, mask, embeddings = _batch(module)
    streams = []
    handles = [
        block.register_forward_hook(lambda _, __, out: streams.append(out[0] if isinstance(out, tuple) else out))
        for block in module.model.layers
    ]
    with torch.no_grad():
        found = float(consistency.inconsistency(module, embeddings, mask))
    for handle in handles:
        handle.remove()
    kept = [s[mask].double().numpy() for s in streams[:-1]]  # the last one is left out
    want = [1 - (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1) for a, b in pairwise(kept)]
    assert len(kept) == 3 and found == pytest.approx(np.mean(want), abs=1e-6) and found > 0.001


def test_padding_does_not_count():
    module = _deep()
    _, mask, embeddings = _batch(module)
    other = embeddings.clone()
    other[~mask] += 5.0
    with torch.no_grad():
        assert float(consistency.inconsistency(module, embeddings, mask)) == pytest.approx(
            float(consistency.inconsistency(module, other, mask)), abs=1e-7
        )


def test_its_gradient_equals_finite_differences():
    module = _deep().double()
    _, mask, embeddings = _batch(module)
    embeddings.requires_grad_(True)
    (gradient,) = torch.autograd.grad(consistency.inconsistency(module, embeddings, mask), embeddings)
    with torch.no_grad():
        for place in ((0, 2, 5), (3, 1, 0), (4, 4, 31)):
            step = torch.zeros_like(embeddings)
            step[place] = 1e-3  # the norms of transformers run in single precision whatever the model's
            up, down = (float(consistency.inconsistency(module, embeddings + sign * step, mask)) for sign in (1, -1))
            assert (up - down) / 2e-3 == pytest.approx(float(gradient[place]), rel=0.01)
    assert gradient[mask].abs().max() > 1e-3 and not gradient[~mask].any()


def test_the_perturbation_is_epsilon_everywhere_and_raises_it_more_than_noise_does():
    module = _deep()
    tokens, mask, embeddings = _batch(module)
    moved = consistency.perturbed(module, tokens, mask, 0.01)
    assert not moved.requires_grad
    np.testing.assert_allclose((moved - embeddings)[mask].abs(), 0.01, atol=1e-6)
    noise = 0.01 * torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(1)).sign()
    with torch.no_grad():
        still, pushed, shaken = (
            float(consistency.inconsistency(module, e, mask)) for e in (embeddings, moved, embeddings + noise)
        )
    assert pushed - still > 3 * abs(shaken - still) > 0


def test_training_lowers_it_where_the_answer_loss_alone_does_not():
    module, plain = _deep(), _deep()
    _, mask, embeddings = _batch(module)
    with torch.no_grad():
        before = float(consistency.inconsistency(module, embeddings, mask))
    log = consistency.finetune_consistent(module, PAIRS, SPEC)
    finetune(plain, PAIRS, SPEC)
    with torch.no_grad():
        after, without = (float(consistency.inconsistency(m, _batch(m)[2], mask)) for m in (module, plain))
    assert list(log.columns) == ["step", "loss", "answer_loss", "inconsistency", "lr"] and log["step"].tolist() == [
        10,
        20,
        30,
    ]
    assert after < 0.5 * before and after < 0.5 * without
    assert log["answer_loss"].iloc[-1] < log["answer_loss"].iloc[0] and log["inconsistency"].is_monotonic_decreasing
    assert not module.training


def test_alpha_zero_is_the_plain_fine_tune_and_runs_repeat():
    one, other, plain = _deep(), _deep(), _deep()
    short = SPEC.replace(steps=5)
    consistency.finetune_consistent(one, PAIRS, short, alpha=0.0)
    finetune(plain, PAIRS, short)
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(one.parameters(), plain.parameters(), strict=True))
    again = copy.deepcopy(other)
    consistency.finetune_consistent(other, PAIRS, short)
    consistency.finetune_consistent(again, PAIRS, short)
    assert all(torch.equal(p, q) for p, q in zip(other.parameters(), again.parameters(), strict=True))
    assert not all(torch.allclose(p, q, atol=1e-4) for p, q in zip(other.parameters(), plain.parameters(), strict=True))


def test_an_adapter_alone_can_be_trained():
    adapted = lora.add_lora(_deep(), lora.LoraSpec(rank=2, init_seed=1))
    kept = {name: p.clone() for name, p in adapted.named_parameters() if not p.requires_grad}
    consistency.finetune_consistent(adapted, PAIRS, SPEC.replace(steps=3))
    assert all(torch.equal(p, kept[name]) for name, p in adapted.named_parameters() if name in kept)
    assert any(f.norm() > 0 for f in lora.factors(adapted).values())


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(BadData, match="at least one example"):
        consistency.finetune_consistent(_deep(), [], SPEC)
    with pytest.raises(BadData, match="2 blocks are too few"):
        consistency.finetune_consistent(_deep(2), PAIRS, SPEC)
    with pytest.raises(BadData, match="requires a gradient"):
        consistency.finetune_consistent(_deep().requires_grad_(False), PAIRS, SPEC)
