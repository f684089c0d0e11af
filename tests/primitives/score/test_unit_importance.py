"""Importance of units against its formula, written out; labels by hand; removal against zeroed weights and against
ablate().
"""

import copy

import numpy as np
import pytest
import torch
import transformers as tf
import xarray as xr
from models.families import GQA, NO_SPECIAL

from workbench.core.errors import BadData, NotFired, UnknownSite, UnsupportedModel
from workbench.models import load
from workbench.primitives.replace.ablation import ablate
from workbench.primitives.score import unit_importance as ui

ROWS = [[3, 9, 14, 2, 7], [5, 6, 21], [8, 30, 12, 4, 4, 19], [10, 11, 12]]


def _module(family="llama", dtype=torch.float32):
    torch.manual_seed(3)
    made = {
        "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**GQA | NO_SPECIAL)),
        "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**GQA | NO_SPECIAL)),
        "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**GQA | NO_SPECIAL | {"head_dim": 8})),
    }
    return made[family]().to(dtype).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def llama():
    return load(_module())


def _by_formula(module, rows, counted=None):
    """{(layer, projection): [n, inputs]} of every input of an output projection, caught on the plain module."""
    caught = {}
    for layer, block in enumerate(module.model.layers):
        for name, part in (("mlp", block.mlp.down_proj), ("attention", block.self_attn.o_proj)):
            part.register_forward_pre_hook(
                lambda _, args, key=(layer, name): caught.setdefault(key, []).append(args[0].detach()[0])
            )
    for row in rows:
        module(torch.tensor([row]))
    keep = torch.cat([torch.tensor(c) for c in counted]) if counted else slice(None)
    found = {}
    for (layer, name), inputs in caught.items():
        block = module.model.layers[layer]
        weight = (block.mlp.down_proj if name == "mlp" else block.self_attn.o_proj).weight
        found[layer, name] = torch.cat(inputs).double()[keep].var(0, correction=1) * weight.double().square().sum(0)
    return found


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_importance_is_variance_times_squared_norm_under_grouped_queries(family):
    module = _module(family)
    truth = _by_formula(copy.deepcopy(module), ROWS)
    found = ui.unit_importance(load(module), ROWS)["importance"]
    assert found.sizes["unit"] == 2 * (64 + 4)
    for (layer, name), want in truth.items():
        mine = found.values[(found["layer"].values == layer) & (found["module"].values == name)]
        want = want if name == "mlp" else want.reshape(4, 8).sum(1)  # four query heads, though two of keys and values
        np.testing.assert_allclose(mine, want, rtol=1e-4)


def test_only_counted_tokens_are_samples(llama):
    counted = [[i >= 1 for i in range(len(row))] for row in ROWS]
    truth = _by_formula(_module(), ROWS, counted)
    found = ui.unit_importance(llama, ROWS, counted=counted)
    assert found.attrs["n_tokens"] == sum(map(len, ROWS)) - len(ROWS)
    np.testing.assert_allclose(found["importance"].values[:64], truth[0, "mlp"], rtol=1e-4)


def test_streaming_does_not_depend_on_the_batches(llama):
    one, all_at_once = (ui.unit_importance(llama, ROWS, batch_size=size)["importance"].values for size in (1, 64))
    np.testing.assert_allclose(one, all_at_once, rtol=1e-5)


def test_channels_of_a_head_add_up_to_the_head(llama):
    heads, channels = (ui.unit_importance(llama, ROWS, attention=kind)["importance"] for kind in ("head", "channel"))
    of = {
        kind: x.values[(x["layer"].values == 1) & (x["module"].values == "attention")]
        for kind, x in (("head", heads), ("channel", channels))
    }
    np.testing.assert_allclose(of["channel"].reshape(4, 8).sum(1), of["head"], rtol=1e-6)


def test_half_precision_is_summed_in_double():
    model = load(_module(dtype=torch.bfloat16))
    exact = ui.unit_importance(load(_module()), ROWS)["importance"].values
    assert np.corrcoef(ui.unit_importance(model, ROWS)["importance"].values, exact)[0, 1] > 0.99


def test_one_token_is_no_variance_and_experts_have_no_neurons(llama, tiny_models):
    with pytest.raises(BadData, match="at least two"):
        ui.unit_importance(llama, [[3]])
    with pytest.raises(UnknownSite, match="experts"):
        ui.unit_importance(load(str(tiny_models["mixtral"])), ROWS)
    with pytest.raises(UnsupportedModel, match="causal-lm"):
        ui.unit_importance(load(str(tiny_models["bert"])), ROWS)


# ---- choosing ----


def _units(values, layer, module):
    n = len(values)
    return xr.DataArray(
        np.array(values, float),
        dims="unit",
        coords={"layer": ("unit", layer), "module": ("unit", module), "index": ("unit", range(n))},
    )


def test_standardised_has_mean_0_and_deviation_1_in_every_module(llama):
    raw = ui.unit_importance(llama, ROWS)["importance"]
    scaled = ui.standardised(raw)
    for hit in ui.module_groups(raw):
        assert abs(scaled.values[hit].mean()) < 1e-9 and scaled.values[hit].std() == pytest.approx(1)
        assert (np.argsort(scaled.values[hit]) == np.argsort(raw.values[hit])).all()
    assert (ui.standardised(_units([2, 2, 2], [0] * 3, ["mlp"] * 3)).values == 0).all()


def test_labels_by_hand():
    safety, utility = np.array([9.0, 5, 1, 4, 0, 2, 3, 0.1]), np.array([1.0, 5, 9, 1, 0, 2, 6, 0.1])
    #    difference             8   0 -8  3  0  0 -3  0            sum: 10 10 10 5 0 4 9 .2
    labels = [
        ui.LABELS[i] for i in ui.label_units(safety, utility, ui.Ratios(safety=0.25, utility=0.25, redundant=0.25))
    ]
    assert labels == ["SCU", "CU", "UCU", "SCU", "RU", "CU", "UCU", "RU"]


def test_redundant_is_given_out_first():
    labels = ui.label_units(np.array([0.5, 9.0]), np.array([0.0, 9.0]), ui.Ratios(safety=0.5, utility=0, redundant=0.5))
    assert [ui.LABELS[i] for i in labels] == ["RU", "SCU"]


@pytest.mark.parametrize("shares", [(0.6, 0.3, 0.3), (-0.2, 0, 0)], ids=["too many", "negative"])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(BadData, match="shares"):
        ui.label_units(np.ones(10), np.ones(10), ui.Ratios(*shares))


def test_matched_random_has_as_many_of_every_module_and_avoids_the_chosen():
    units = _units(range(40), [0] * 20 + [1] * 20, (["mlp"] * 16 + ["attention"] * 4) * 2)
    chosen = np.zeros(40, bool)
    chosen[[0, 1, 2, 17, 18, 19, 25]] = True  # three of four heads of layer 0: one other is left, two must come again
    drawn = ui.matched_random(chosen, units, np.random.default_rng(0))
    for hit in ui.module_groups(units):
        assert drawn[hit].sum() == chosen[hit].sum()
    assert not (drawn & chosen)[:16].any() and drawn[16] and not (drawn & chosen)[20:].any()


# ---- removing ----


@pytest.mark.parametrize("kind", ["head", "channel"])
def test_removal_is_zeroing_columns_of_the_output_projections(llama, kind):
    units = ui.unit_importance(llama, ROWS, attention=kind)["importance"]
    chosen = np.random.default_rng(1).random(units.sizes["unit"]) < 0.3
    module = _module()
    width = {"head": 8, "channel": 1}[kind]
    with torch.no_grad():
        for layer, block in enumerate(module.model.layers):
            here = units["layer"].values == layer
            block.mlp.down_proj.weight[:, torch.from_numpy(chosen[here & (units["module"].values == "mlp")])] = 0
            block.self_attn.o_proj.weight[
                :, torch.from_numpy(chosen[here & (units["module"].values == "attention")]).repeat_interleave(width)
            ] = 0
        tokens = torch.tensor([ROWS[2]])
        want = module(tokens).logits
    with ui.units_removed(llama, chosen, units) as report:
        got = llama.forward(tokens)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    assert (
        report.n_units == chosen.sum()
        and report.firings == sum(chosen[hit].any() for hit in ui.module_groups(units)) > 2
    )
    assert not torch.allclose(got, llama.forward(tokens))  # the hooks are gone


def test_removal_agrees_with_ablate(llama):
    units = ui.unit_importance(llama, ROWS)["importance"]
    chosen = np.zeros(units.sizes["unit"], bool)
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[1, 2] = True
    chosen[(units["layer"].values == 1) & (units["module"].values == "attention") & (units["index"].values == 2)] = True
    tokens = torch.tensor([ROWS[0]])
    with ui.units_removed(llama, chosen, units):
        got = llama.forward(tokens)
    torch.testing.assert_close(got, ablate(llama, tokens, mask).output)


def test_nobody_removed_changes_nothing_and_a_block_without_a_forward_is_an_error(llama):
    units = ui.unit_importance(llama, ROWS)["importance"]
    nobody = np.zeros(units.sizes["unit"], bool)
    tokens = torch.tensor([ROWS[0]])
    clean = llama.forward(tokens)
    with ui.units_removed(llama, nobody, units):
        assert torch.equal(llama.forward(tokens), clean)
    with pytest.raises(NotFired, match="never fired"), ui.units_removed(llama, ~nobody, units):
        pass


def test_hooks_leave_no_trace_after_an_error(llama):
    units = ui.unit_importance(llama, ROWS)["importance"]
    tokens = torch.tensor([ROWS[0]])
    clean = llama.forward(tokens)
    with pytest.raises(RuntimeError, match="mine"), ui.units_removed(llama, np.ones(units.sizes["unit"], bool), units):
        raise RuntimeError("mine")
    assert torch.equal(llama.forward(tokens), clean)
