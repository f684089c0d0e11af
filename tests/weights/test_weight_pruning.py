"""Pruning against its formula written out; kept shares; masks that a fine-tune keeps; block by block."""

import copy

import numpy as np
import pytest
import torch
import transformers as tf
from models.families import FAMILIES, GQA, NO_SPECIAL

from workbench.core.errors import BadData, UnsupportedModel
from workbench.training.finetune import finetune
from workbench.training.freezing import Frozen
from workbench.training.loop import TrainSpec
from workbench.weights.weight_pruning import prune_magnitude, prune_wanda

ROWS = [[3, 9, 14, 2, 7], [5, 6, 21], [8, 30, 12, 4, 4, 19], [10, 11, 12]]


def _llama(seed=0):
    torch.manual_seed(seed)
    return tf.LlamaForCausalLM(tf.LlamaConfig(**GQA | NO_SPECIAL | {"intermediate_size": 48})).eval()


def _inputs(module, name):
    """[token, in] what one linear layer reads, row by row."""
    caught = []
    handle = dict(module.named_modules())[name].register_forward_pre_hook(
        lambda _, args: caught.append(args[0].detach()[0].double())
    )
    with torch.no_grad():
        for row in ROWS:
            module(input_ids=torch.tensor([row]))
    handle.remove()
    return torch.cat(caught)


@pytest.mark.parametrize(("only", "n"), [("mlp", 6), ("attention", 8), ("all", 14)])
def test_magnitude_zeroes_the_smallest_of_each_matrix_and_nothing_else(only, n):
    module, before = _llama(), dict(_llama().named_parameters())
    masks = prune_magnitude(module, 0.25, only)
    assert len(masks) == n and all(("mlp" in name) or only != "mlp" for name in masks)
    for name, parameter in module.named_parameters():
        old = before[name].detach()
        if name not in masks:
            assert torch.equal(parameter, old)
            continue
        assert int(masks[name].sum()) == round(0.25 * old.numel())
        assert old[masks[name]].abs().max() <= old[~masks[name]].abs().min()
        assert not parameter[masks[name]].any() and torch.equal(parameter[~masks[name]], old[~masks[name]])


def test_wanda_zeroes_in_each_row_the_lowest_of_weight_times_input_norm_block_after_block():
    module, dense = _llama(), _llama()
    masks = prune_wanda(module, ROWS, 0.5, "all")
    halfway = copy.deepcopy(dense)  # what the second block sees: the first one pruned, by hand
    for layer in range(2):
        names = [name for name in masks if f"layers.{layer}." in name]
        assert len(names) == 7
        inputs = {name: _inputs(halfway, name.removesuffix(".weight")) for name in names}
        for name in names:
            weight = dict(halfway.named_parameters())[name].data
            score = weight.abs().double() * inputs[name].square().sum(0).sqrt()
            for row, mask in zip(score, masks[name], strict=True):
                assert int(mask.sum()) == round(0.5 * len(row)) and row[mask].max() <= row[~mask].min()
            weight[masks[name]] = 0
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), halfway.parameters(), strict=True))


def test_wanda_spares_small_weights_on_large_inputs_where_magnitude_does_not():
    module = _llama()
    norm = module.model.layers[0].post_attention_layernorm.weight
    norm.data[4] = 1000.0  # the MLP of block 0 reads one very large input
    gate = "model.layers.0.mlp.gate_proj.weight"
    by_size, by_both = (
        prune_magnitude(copy.deepcopy(module), 0.5)[gate],
        prune_wanda(copy.deepcopy(module), ROWS, 0.5)[gate],
    )
    assert not by_both[:, 4].any() and by_size[:, 4].float().mean() > 0.2


def test_conv1d_masks_have_the_shape_of_the_parameter():
    module = FAMILIES["gpt2"]()
    masks = prune_wanda(module, ROWS, 0.5)
    into = masks["transformer.h.0.mlp.c_fc.weight"]
    assert into.shape == (32, 128)  # [in, out]
    np.testing.assert_array_equal(into.sum(0), np.full(128, 16))
    assert not dict(module.named_parameters())["transformer.h.0.mlp.c_fc.weight"][into].any()


def test_a_fine_tune_keeps_what_was_pruned():
    module = _llama()
    masks = prune_magnitude(module, 0.5)
    finetune(
        module,
        [([1, 5, 6], [7, 2]), ([1, 8], [9, 10, 2])],
        TrainSpec(steps=3, batch_size=2, lr=1e-2),
        frozen=Frozen(module, masks),
    )
    parameters = dict(module.named_parameters())
    assert all(not parameters[name][mask].any() and parameters[name][~mask].all() for name, mask in masks.items())


def test_hooks_are_gone_and_the_mode_is_kept_after_an_error():
    module = _llama().train()
    with pytest.raises(IndexError):
        prune_wanda(module, [[9999]], 0.5)
    assert module.training and not any(part._forward_pre_hooks for part in module.modules())


def test_what_cannot_be_pruned_is_refused():
    with pytest.raises(BadData, match=r"between 0 and 1, got 1\.0"):
        prune_magnitude(_llama(), 1.0)
    with pytest.raises(BadData, match="at least one row"):
        prune_wanda(_llama(), [], 0.5)
    with pytest.raises(UnsupportedModel, match="mixture of experts"):
        prune_magnitude(FAMILIES["mixtral"](), 0.5)
    with pytest.raises(UnsupportedModel, match="no linear layers in blocks"):
        prune_magnitude(torch.nn.Linear(3, 3), 0.5)
