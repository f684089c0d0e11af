"""Exact freezing: frozen entries keep every bit under AdamW with decay, the others train as if those did not exist."""

import pytest
import torch
from training.tiny import PAIRS, SHORT, fresh

from workbench.core.errors import BadData, UnknownName
from workbench.models.model import hash_weights
from workbench.training.finetune import answer_loss, finetune
from workbench.training.freezing import Frozen, MovedWeights

DECAY = SHORT.replace(lr=1e-2, weight_decay=0.5)
UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"


def some_channels() -> dict[str, torch.Tensor]:
    rows = torch.zeros(48, dtype=torch.bool)
    rows[[0, 7, 47]] = True
    return {UP: rows[:, None], DOWN: rows[None, :]}


def test_frozen_entries_keep_every_bit_and_the_others_move():
    module = fresh()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    masks = some_channels()
    frozen = Frozen(module, masks)
    assert frozen.n_frozen == 3 * 32 * 2
    finetune(module, PAIRS, DECAY, frozen=frozen)
    for name, parameter in module.named_parameters():
        mask = masks.get(name, torch.zeros(1, dtype=torch.bool)).expand(parameter.shape)
        assert torch.equal(parameter[mask].view(torch.int32), before[name][mask].view(torch.int32))
        assert (parameter[~mask] != before[name][~mask]).float().mean() > 0.4, (
            name
        )  # embeddings of absent words move by decay alone


def test_zeroing_gradients_alone_would_not_have_frozen_them():
    """The control: the same run with gradients cleared and nothing restored moves every frozen entry."""
    module, masks = fresh(), some_channels()
    frozen = Frozen(module, masks)
    frozen.restore = lambda: None
    with pytest.raises(MovedWeights, match=r"96 of 96 frozen entries of model\.layers\.0\.mlp\.up_proj"):
        finetune(module, PAIRS, DECAY, frozen=frozen)


def test_freezing_whole_parameters_by_mask_equals_switching_their_gradients_off():
    hashes = []
    for by_mask in (True, False):
        module = fresh()
        named = dict(module.named_parameters())
        if by_mask:
            frozen = Frozen(module, {name: torch.ones(1, dtype=torch.bool) for name in (UP, DOWN)})
        else:
            frozen = None
            for name in (UP, DOWN):
                named[name].requires_grad_(False)
        finetune(
            module, PAIRS, DECAY.replace(clip=1e9), frozen=frozen
        )  # unclipped: a norm over more parameters is summed in another order
        hashes.append(hash_weights(module))
    assert hashes[0] == hashes[1]


def test_a_mask_with_nothing_in_it_changes_nothing():
    one, other = fresh(), fresh()
    finetune(one, PAIRS, DECAY, frozen=Frozen(one, {UP: torch.zeros(48, 32, dtype=torch.bool)}))
    finetune(other, PAIRS, DECAY)
    assert hash_weights(one) == hash_weights(other)


def test_frozen_entries_do_not_count_in_the_clipped_norm():
    module = fresh()
    frozen = Frozen(module, {name: torch.ones(1, dtype=torch.bool) for name, _ in module.named_parameters()})
    answer_loss(module, PAIRS).backward()
    frozen.clear_gradients()
    assert float(torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)) == 0


def test_the_check_sees_a_flipped_bit_and_a_change_of_sign_of_zero():
    module = fresh()
    weight = dict(module.named_parameters())[UP]
    with torch.no_grad():
        weight[7, 0] = 0.0
    frozen = Frozen(module, some_channels())
    frozen.check()
    with torch.no_grad():
        weight[7, 0] = -0.0
    with pytest.raises(MovedWeights, match="1 of 96 frozen entries"):
        frozen.check()
    frozen.restore()
    frozen.check()


def test_masks_that_fit_nothing_get_a_sentence():
    with pytest.raises(UnknownName, match=r"no parameter called 'model\.layers\.0\.mlp\.up\.weight'\. Closest: model"):
        Frozen(fresh(), {"model.layers.0.mlp.up.weight": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(BadData, match=r"shape \(32, 48\), which does not broadcast to the parameter's \(48, 32\)"):
        Frozen(fresh(), {UP: torch.ones(32, 48, dtype=torch.bool)})
    with pytest.raises(BadData, match="must be of dtype bool"):
        Frozen(fresh(), {UP: torch.ones(48, 32)})
