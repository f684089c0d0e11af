"""The effect of a replacement in two checkpoints: the untouched run is taken off each, so only what changed its role
stands out.
"""

import copy

import numpy as np
import pytest
import torch
from models.families import GQA, NO_SPECIAL
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.models import load
from workbench.primitives.replace.sweeps import Zero, sweep
from workbench.primitives.replace.two_checkpoints import sweep_both, sweep_effects_both
from workbench.primitives.score.metrics import logit_diff, sequence_loss

TOKENS = torch.randint(3, 64, (5, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    module = LlamaForCausalLM(LlamaConfig(**GQA | NO_SPECIAL)).eval()
    tuned = copy.deepcopy(module)
    for weight in tuned.parameters():
        weight.data += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    return load(module, tokenizer=False), load(tuned, tokenizer=False)


def test_it_is_the_difference_of_two_effects_done_by_hand(pair):
    metric = sequence_loss(TOKENS)
    found = sweep_effects_both(*pair, TOKENS, Zero(), metric, site="z", axes=("unit",))
    effects = [
        run.data["value"] - run.data["base_value"]
        for run in (sweep(m, TOKENS, Zero(), metric, site="z", axes=("unit",)) for m in pair)
    ]
    np.testing.assert_allclose(found.data["difference"], effects[1] - effects[0], atol=1e-6)
    np.testing.assert_allclose(found.data["mean"], found.data["mean_b"] - found.data["mean_a"], atol=1e-6)
    np.testing.assert_allclose(found.data["mean_a"], effects[0].mean("example"), atol=1e-6)
    assert found.data["mean"].dims == ("layer", "head") and found.data["base_difference"].dims == ("example",)
    assert found.data["mean"].attrs == {"long_name": "Effect on loss of replacing z, mean change", "unit": "nats"}


def test_the_change_of_the_untouched_run_is_taken_off_every_cell(pair):
    """What `sweep_both` adds to every cell is the change of the untouched run; a model and itself differ in neither."""
    metric = logit_diff([5] * 5, [6] * 5)
    same = sweep_effects_both(pair[0], pair[0], TOKENS, Zero(), metric, site="z", axes=("unit",))
    assert not same.data["difference"].any() and not same.data["base_difference"].any()
    values, effects = (
        function(*pair, TOKENS, Zero(), metric, site="attn_out") for function in (sweep_both, sweep_effects_both)
    )
    untouched = effects.data["base_difference"]
    np.testing.assert_allclose(
        values.data["difference"] - effects.data["difference"],
        untouched.broadcast_like(values.data["difference"]).transpose(*values.data["difference"].dims),
        atol=1e-5,
    )
    assert float(np.abs(untouched).max()) > 0.01


def test_prompts_of_several_lengths_are_rows(pair):
    rows = [[5, 6, 7], [8, 9, 10, 11], [12, 13, 14]]
    found = sweep_effects_both(*pair, rows, Zero(), sequence_loss(rows), site="z", axes=("unit",))
    assert found.data.sizes["example"] == 3 and np.isfinite(found.data["mean"]).all()
