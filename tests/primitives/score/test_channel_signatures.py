"""Scores of channels against plain loops; changes made by hand; factors = merged = directories; suppression touches
those lines and no others.
"""

import copy
import json
import os
import subprocess
import sys
import textwrap
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from models.families import FAMILIES, GQA, NO_SPECIAL, SIZE
from safetensors.torch import save_file

from workbench.core.errors import BadData, ModelNotFound, NotFired, UnsupportedModel
from workbench.core.progress import Cancelled, Progress
from workbench.models import load
from workbench.primitives.read.capture import capture
from workbench.primitives.score import channel_signatures as cs
from workbench.primitives.score.unit_importance import matched_random, module_groups
from workbench.training import lora

MODULES = ("gate_proj", "up_proj", "down_proj")


def _llama(seed=0, **options):
    torch.manual_seed(seed)
    return (
        tf.LlamaForCausalLM(tf.LlamaConfig(**GQA | NO_SPECIAL | {"intermediate_size": 48} | options))
        .eval()
        .requires_grad_(False)
    )


def _moved(module, seed, size=0.02):
    """A copy whose weights all moved by noise: an odd fine-tune."""
    new, generator = copy.deepcopy(module), torch.Generator().manual_seed(seed)
    for parameter in new.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=generator)
    return new


@pytest.fixture(scope="module")
def variants():
    """Three poisoned and three clean copies of a small Llama with grouped queries."""
    base = _llama()
    return [_moved(base, i) for i in range(3)], [_moved(base, 10 + i) for i in range(3)]


@pytest.fixture(scope="module")
def changes(variants):
    return cs.channel_changes(*variants, heads=True)


def _by_loop(poisoned, clean, layer, module, index):
    """Difference vectors of one channel, in float64, from the weights as Hugging Face names them."""
    found = []
    for p, c in zip(poisoned, clean, strict=True):
        block, base = p.model.layers[layer], c.model.layers[layer]
        if module == "head":
            slices = [
                (lambda b: b.self_attn.q_proj.weight[8 * index : 8 * index + 8]),
                (lambda b: b.self_attn.o_proj.weight[:, 8 * index : 8 * index + 8]),
            ]
            found.append(torch.cat([(s(block).double() - s(base).double()).flatten() for s in slices]))
        else:
            delta = getattr(block.mlp, module).weight.double() - getattr(base.mlp, module).weight.double()
            found.append(delta[:, index] if module == "down_proj" else delta[index])
    return [d.numpy() for d in found]


def test_norms_and_cosines_equal_a_plain_loop(variants, changes):
    assert changes.sizes == {"variant": 3, "channel": 2 * (3 * 48 + 4), "pair": 3}
    places = zip(changes["layer"].values, changes["module"].values, changes["index"].values, strict=True)
    for channel, (layer, module, index) in enumerate(places):
        vectors = _by_loop(*variants, layer, module, index)
        np.testing.assert_allclose(changes["norm"].values[:, channel], [np.linalg.norm(v) for v in vectors], rtol=1e-5)
        want = [
            vectors[i] @ vectors[j] / np.linalg.norm(vectors[i]) / np.linalg.norm(vectors[j])
            for i, j in combinations(range(3), 2)
        ]
        np.testing.assert_allclose(changes["cosine"].values[:, channel], want, atol=1e-5)
    assert list(zip(changes["first"].values, changes["second"].values, strict=True)) == [(0, 1), (0, 2), (1, 2)]


def test_the_score_is_mean_norm_and_weighted_mean_positive_cosine(changes):
    norm, cosine = changes["norm"].values, changes["cosine"].values
    np.testing.assert_allclose(
        cs.scores(changes, alignment_weight=0.5), norm.mean(0) + 0.5 * np.maximum(cosine, 0).mean(0), rtol=1e-12
    )
    np.testing.assert_array_equal(cs.scores(changes, only="magnitude"), norm.mean(0))
    np.testing.assert_array_equal(cs.scores(changes, only="alignment"), np.maximum(cosine, 0).mean(0))
    np.testing.assert_allclose(
        cs.scores(changes, variants=2), norm[:2].mean(0) + 0.01 * np.maximum(cosine[0], 0), rtol=1e-12
    )
    np.testing.assert_allclose(cs.scores(changes, variants=1), norm[0], rtol=1e-12)
    with pytest.raises(BadData, match="4 variants were asked for and there are 3"):
        cs.scores(changes, variants=4)


def test_normalised_norms_average_one_in_each_module(changes):
    s = cs.scores(changes, normalised=True, alignment_weight=0)
    assert [round(float(s.values[hit].mean()), 9) for hit in module_groups(s)] == [1.0] * 8
    np.testing.assert_array_equal(cs.signature(s, 0.2), cs.signature(cs.scores(changes, only="magnitude"), 0.2))


def test_differences_made_by_hand_have_the_cosine_they_were_made_with():
    base, a, b, same = _llama(), _llama(), _llama(), _llama()
    step = torch.zeros(32)
    step[:2] = torch.tensor([3.0, 4.0])
    turned = torch.zeros(32)
    turned[:2] = torch.tensor([4.0, 3.0])  # 24 / 25 of the first
    for module, rows in ((a, step), (b, turned), (same, step)):
        module.model.layers[1].mlp.up_proj.weight.data[7] += rows
        module.model.layers[0].mlp.down_proj.weight.data[:, 5] += (
            -rows if module is b else rows
        )  # the second points away
    found = cs.channel_changes([a, b, same], [base] * 3)
    where = {
        (int(n), str(m), int(i)): c
        for c, (n, m, i) in enumerate(
            zip(found["layer"].values, found["module"].values, found["index"].values, strict=True)
        )
    }
    row, column, still = where[1, "up_proj", 7], where[0, "down_proj", 5], where[1, "gate_proj", 7]
    np.testing.assert_allclose(found["norm"].values[:, row], 5, rtol=1e-6)
    np.testing.assert_allclose(found["cosine"].values[:, row], [0.96, 1, 0.96], atol=1e-6)
    assert cs.alignment(found).values[row] == pytest.approx((0.96 + 1 + 0.96) / 3, abs=1e-6)
    np.testing.assert_allclose(found["cosine"].values[:, column], [-0.96, 1, -0.96], atol=1e-6)
    assert cs.alignment(found).values[column] == pytest.approx(
        1 / 3, abs=1e-6
    )  # what points away counts as 0, not against
    assert not found["norm"].values[:, still].any() and not found["cosine"].values[:, still].any()
    assert set(np.flatnonzero(found["norm"].values.any(0))) == {row, column}


def test_identical_changes_are_aligned_by_one():
    base, moved = _llama(), _moved(_llama(), 4)
    found = cs.channel_changes([moved] * 3, [base] * 3)
    np.testing.assert_allclose(cs.alignment(found), 1, atol=1e-9)


# ---- families and formats ----


@pytest.mark.parametrize(
    ("family", "modules", "n_mlp"),
    [
        ("gpt2", ("c_fc", "c_proj"), 128),
        ("neox", ("dense_h_to_4h", "dense_4h_to_h"), 64),
        ("opt", ("fc1", "fc2"), 64),
        ("qwen2", MODULES, 64),
    ],
)
def test_each_family_has_the_channels_its_forward_uses(family, modules, n_mlp):
    base = FAMILIES[family]()
    moved, layer = copy.deepcopy(base), 1
    moved_channel = 3
    for (
        name,
        parameter,
    ) in (
        moved.named_parameters()
    ):  # move one channel by what it computes: rows of the input side, columns of the output side
        kind = name.split(".")[-2]
        if f".{layer}." in name and name.endswith("weight") and kind in modules and "attn" not in name:
            out_side = kind in ("c_proj", "dense_4h_to_h", "fc2", "down_proj")
            lines = parameter.data.T if out_side != (family == "gpt2") else parameter.data
            lines[moved_channel] += 1.0
    found = cs.channel_changes([moved], [base])
    assert set(found["module"].values.tolist()) == set(modules) and found.sizes["channel"] == 2 * len(modules) * n_mlp
    hit = np.flatnonzero(found["norm"].values[0])
    assert found["layer"].values[hit].tolist() == [layer] * len(modules) and found["index"].values[hit].tolist() == [
        moved_channel
    ] * len(modules)
    np.testing.assert_allclose(found["norm"].values[0, hit], np.sqrt(32), rtol=1e-5)


def test_heads_take_keys_and_values_only_where_each_has_its_own():
    base = _llama(num_key_value_heads=4)
    moved = copy.deepcopy(base)
    moved.model.layers[0].self_attn.v_proj.weight.data[8:16] += 1.0  # the second of four heads of 8
    found = cs.channel_changes([moved], [base], heads=True)
    assert (
        found["module"].values[np.flatnonzero(found["norm"].values[0])].tolist(),
        found["index"].values[np.flatnonzero(found["norm"].values[0])].tolist(),
    ) == (["head"], [1])
    grouped = _llama()
    moved = copy.deepcopy(grouped)
    moved.model.layers[0].self_attn.v_proj.weight.data += 1.0
    assert not cs.channel_changes([moved], [grouped], heads=True)["norm"].values.any()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_directories_equal_modules_and_half_precision_is_subtracted_in_single(tmp_path, dtype, variants):
    folders = {}
    for which, modules in zip(("bd", "clean"), variants, strict=True):
        for i, module in enumerate(modules):
            folders[which, i] = tmp_path / f"{which}{i}"
            shard = {"max_shard_size": "25KB"} if i == 1 else {}  # one of them in several files, with an index
            copy.deepcopy(module).to(getattr(torch, dtype)).save_pretrained(folders[which, i], **shard)
    assert len(list(folders["bd", 1].glob("*.safetensors"))) > 1
    found = cs.channel_changes(
        [folders["bd", i] for i in range(3)], [str(folders["clean", i]) for i in range(3)], heads=True
    )
    rounded = [[m.to(getattr(torch, dtype)).float() for m in map(copy.deepcopy, side)] for side in variants]
    want = cs.channel_changes(*rounded, heads=True)
    np.testing.assert_array_equal(found["norm"], want["norm"])
    np.testing.assert_array_equal(found["cosine"], want["cosine"])


def test_one_module_is_in_memory_at_a_time_and_cancelling_stops(variants):
    class Stop(Progress):
        def show(self):
            if self.done == 2:
                self.cancel()

    progress = Stop()
    with pytest.raises(Cancelled, match="after 2 of 6"):
        cs.channel_changes(*variants, progress=progress)
    assert progress.text == "layer 0 up_proj"


# ---- adapters ----


def _adapted(seed, targets=lora.ATTENTION + lora.MLP):
    adapted = lora.add_lora(_llama(num_key_value_heads=4), lora.LoraSpec(rank=3, alpha=6, targets=targets, init_seed=1))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return adapted


@pytest.fixture(scope="module")
def adapters():
    return [_adapted(i) for i in range(3)], [_adapted(20 + i) for i in range(3)]


def test_scores_from_factors_equal_those_of_merged_matrices(adapters, tmp_path):
    factors = [[lora.factors(a) for a in side] for side in adapters]
    found = cs.channel_changes(*factors, heads=True, n_heads=4)
    folders = [
        [lora.save_adapter(copy.deepcopy(a), tmp_path / f"{s}{i}", "base") for i, a in enumerate(side)]
        for s, side in enumerate(adapters)
    ]
    from_folders = cs.channel_changes(*folders, heads=True, n_heads=4)
    merged = cs.channel_changes(*[[lora.merge(copy.deepcopy(a)) for a in side] for side in adapters], heads=True)
    for name in ("norm", "cosine"):
        np.testing.assert_array_equal(found[name], from_folders[name])
        np.testing.assert_allclose(found[name], merged[name], rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(cs.scores(found), cs.scores(merged), rtol=1e-5)


def test_a_neutralised_adapter_no_longer_touches_those_channels(adapters):
    factors = lora.factors(adapters[0][0])
    before = {name: (f.A.clone(), f.B.clone()) for name, f in factors.items()}
    found = cs.channel_changes([factors], [lora.factors(adapters[1][0])], heads=True, n_heads=4)
    chosen = cs.signature(cs.scores(found), 0.1)
    new = cs.neutralise_adapter(factors, chosen, found)
    for name, f in factors.items():
        assert torch.equal(f.A, before[name][0]) and torch.equal(
            f.B, before[name][1]
        )  # the adapter itself is left alone
        update, old = new[name].delta(), f.delta()
        layer, kind = int(name.split(".")[2]), name.rsplit(".", 1)[-1]
        module = kind if kind in MODULES else "head"
        lines = np.flatnonzero(chosen[(found["layer"].values == layer) & (found["module"].values == module)])
        lines = lines if module != "head" else (lines[:, None] * 8 + np.arange(8)).reshape(-1)
        gone = torch.zeros_like(old, dtype=torch.bool)
        gone[(slice(None), lines) if kind in ("down_proj", "o_proj") else lines] = True
        assert gone.any() and not update[gone].any()
        np.testing.assert_allclose(update[~gone], old[~gone], atol=1e-7)
    with pytest.raises(NotFired, match="0 in all of them already"):
        cs.neutralise_adapter(new, chosen, found)


# ---- the choice ----


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.03, 2), (0.125, 6), (0.25, 12), (0.35, 17), (1.0, 48)])
def test_a_signature_takes_exactly_that_many_of_each_module_and_the_highest(changes, share, count):
    s = cs.scores(changes.isel(channel=changes["module"].values != "head"))
    chosen = cs.signature(s, share)
    for hit in module_groups(s):
        inside, outside = s.values[hit[chosen[hit]]], s.values[hit[~chosen[hit]]]
        assert len(inside) == count
        assert not len(inside) or not len(outside) or inside.min() >= outside.max()


def test_ties_fall_to_the_lower_index_and_a_share_is_not_rounded_up_by_its_last_bit(changes):
    s = cs.scores(changes)
    flat = s.copy(data=np.ones(s.shape))
    assert np.flatnonzero(cs.signature(flat, 0.05)).tolist()[:3] == [0, 1, 2]
    hundred = flat[[0] * 100]
    assert int(cs.signature(hundred, 0.07).sum()) == 7 and 0.07 * 100 > 7
    with pytest.raises(BadData, match=r"share between 0 and 1, got 1\.5"):
        cs.signature(s, 1.5)
    with pytest.raises(BadData, match="finite"):
        cs.signature(s.copy(data=np.full(s.shape, np.nan)), 0.1)


def test_random_channels_match_the_counts_and_avoid_the_chosen(changes):
    chosen = cs.signature(cs.scores(changes), 0.1)
    drawn = [matched_random(chosen, changes, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert not (drawn[0] & chosen).any()
    assert [int(drawn[0][hit].sum()) for hit in module_groups(changes)] == [
        int(chosen[hit].sum()) for hit in module_groups(changes)
    ]
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any()


# ---- suppression ----


def _lines(module, chosen, channels):
    """{parameter: bool mask} of exactly the entries that the chosen channels own, by hand."""
    masks = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in module.named_parameters()}
    for layer, kind, index, is_chosen in zip(
        channels["layer"].values, channels["module"].values, channels["index"].values, chosen, strict=True
    ):
        if not is_chosen:
            continue
        if kind == "head":
            eight = slice(8 * index, 8 * index + 8)
            masks[f"model.layers.{layer}.self_attn.q_proj.weight"][eight] = True
            masks[f"model.layers.{layer}.self_attn.o_proj.weight"][:, eight] = True
        else:
            mask = masks[f"model.layers.{layer}.mlp.{kind}.weight"]
            mask[(slice(None), index) if kind == "down_proj" else index] = True
    return masks


@pytest.mark.parametrize("how", ["reinitialise", "zero"])
def test_neutralising_changes_those_rows_and_columns_and_not_a_bit_elsewhere(changes, how):
    module, chosen = _llama(), cs.signature(cs.scores(changes), 0.1)
    before = {name: p.clone() for name, p in module.named_parameters()}
    masks = _lines(module, chosen, changes)
    n = cs.neutralise(module, chosen, changes, how, seed=3)
    assert n == sum(int(mask.sum()) for mask in masks.values()) > 0
    for name, parameter in module.named_parameters():
        same = parameter.view(torch.int32) == before[name].view(torch.int32)
        assert torch.equal(same, ~masks[name]), name
        new = parameter[masks[name]]
        bound = np.sqrt(6 / sum(parameter.shape))
        assert (
            not new.any()
            if how == "zero"
            else not len(new) or bool((new.abs() <= bound).all() and new.abs().max() > 0.9 * bound)
        )
    again = _llama()
    cs.neutralise(again, chosen, changes, how, seed=3)
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), again.parameters(), strict=True))
    if how == "zero":
        with pytest.raises(NotFired, match="not one weight"):
            cs.neutralise(module, chosen, changes, how)
    with pytest.raises(NotFired, match="0 channels were chosen"):
        cs.neutralise(module, np.zeros_like(chosen), changes, how)


@pytest.mark.parametrize("kind", ["gate_proj", "up_proj", "down_proj"])
def test_zeroed_channels_write_nothing(changes, kind):
    module, mlp_only = _llama(), changes.isel(channel=changes["module"].values != "head")
    chosen = cs.signature(cs.scores(mlp_only), 0.2) & (mlp_only["module"].values == kind)
    cs.neutralise(module, chosen, mlp_only, "zero")
    rows = [[3, 9, 14, 2, 7]]
    model = load(copy.deepcopy(module))
    seen = capture(model, rows, ["mlp_post"])
    for layer in range(2):
        gone = chosen[(mlp_only["layer"].values == layer) & (mlp_only["module"].values == kind)]
        post = seen["mlp_post", layer].reshape(-1, 48)
        written = post[:, :, None] * module.model.layers[layer].mlp.down_proj.weight.T
        assert not written[:, gone].any() and written[:, ~gone].any(-1).all()
        if kind != "down_proj":
            assert not post[:, gone].any() and post[:, ~gone].any()


def test_a_bias_goes_with_its_row():
    module = FAMILIES["gpt2"]().requires_grad_(False)
    for name, p in module.named_parameters():
        p.data += 0.1 if name.endswith("bias") else 0
    found = cs.channel_changes([_moved(module, 1)], [module])
    chosen = np.asarray((found["module"] == "c_fc") & (found["index"] == 5))
    before = {name: p.clone() for name, p in module.named_parameters()}
    cs.neutralise(module, chosen, found, "zero")
    changed = {
        name: int((p != before[name]).sum())
        for name, p in module.named_parameters()
        if not torch.equal(p, before[name])
    }
    assert changed == {
        f"transformer.h.{n}.mlp.c_fc.{kind}": count for n in (0, 1) for kind, count in (("weight", 32), ("bias", 1))
    }


# ---- what is refused ----


def test_what_does_not_correspond_is_refused(variants, adapters, tmp_path):
    poisoned, clean = variants
    factors = lora.factors(adapters[0][0])
    with pytest.raises(BadData, match="got 2 and 3"):
        cs.channel_changes(poisoned[:2], clean)
    with pytest.raises(BadData, match="got 0 and 0"):
        cs.channel_changes([], [])
    with pytest.raises(BadData, match="merge the adapters first"):
        cs.channel_changes(poisoned[:1], [factors])
    with pytest.raises(BadData, match="give n_heads"):
        cs.channel_changes([factors], [factors], heads=True)
    with pytest.raises(BadData, match=r"layer 0 gate_proj.* is in one of them only"):
        cs.channel_changes([factors], [{k: v for k, v in factors.items() if "layers.0.mlp.gate" not in k}])
    with pytest.raises(BadData, match="give checkpoints of one architecture"):
        cs.channel_changes([_llama(intermediate_size=40)], [_llama()])
    with pytest.raises(BadData, match="different shapes in these checkpoints"):
        cs.channel_changes(
            [poisoned[0], _llama(intermediate_size=40)], [clean[0], _llama(seed=1, intermediate_size=40)]
        )
    with pytest.raises(ModelNotFound, match="holds no"):
        cs.channel_changes([tmp_path], [tmp_path])
    scored = cs.channel_changes(poisoned[:1], clean[:1])
    with pytest.raises(BadData, match="has 40 channels here, and 48 were scored"):
        cs.neutralise(_llama(intermediate_size=40), cs.signature(cs.scores(scored), 0.1), scored)


def test_an_encoder_has_channels_in_both_of_its_dense_layers():
    """BERT calls them intermediate.dense and output.dense; a channel of the second is a column."""
    clean, poisoned = FAMILIES["bert"](), FAMILIES["bert"]()
    poisoned.load_state_dict(clean.state_dict())
    with torch.no_grad():
        poisoned.encoder.layer[1].output.dense.weight[:, 5] += 2.0
    found = cs.channel_changes([poisoned], [clean])
    moved = found.isel(channel=np.flatnonzero(found["norm"].values[0]))
    assert found.sizes["channel"] == 2 * 2 * 64 and moved.sizes["channel"] == 1
    assert (int(moved["layer"][0]), str(moved["module"].values[0]), int(moved["index"][0])) == (1, "output.dense", 5)
    assert float(moved["norm"][0, 0]) == pytest.approx(2.0 * 32**0.5)


def test_models_whose_channels_cannot_be_told_apart_are_refused(variants, adapters, tmp_path):
    mixtral, neox = FAMILIES["mixtral"](), FAMILIES["neox"]()
    with pytest.raises(UnsupportedModel, match="mixture of experts"):
        cs.channel_changes([mixtral], [mixtral])
    with pytest.raises(UnsupportedModel, match="fused or absent"):
        cs.channel_changes([neox], [neox], heads=True)
    with pytest.raises(UnsupportedModel, match="no MLP projections by the names"):
        cs.channel_changes([torch.nn.Linear(2, 2)], [torch.nn.Linear(2, 2)])
    with pytest.raises(UnsupportedModel, match="holds its adapter apart"):
        cs.channel_changes([adapters[0][0]], [adapters[1][0]])
    save_file({k: v.to(torch.int8) for k, v in variants[0][0].state_dict().items()}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModel, match="quantised"):
        cs.channel_changes([tmp_path], [tmp_path])
    folder = lora.save_adapter(copy.deepcopy(adapters[0][0]), tmp_path / "dora", "base")
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}), encoding="utf-8")
    with pytest.raises(UnsupportedModel, match="no plain LoRA"):
        cs.channel_changes([folder], [folder])


# ---- memory ----

_MEASURE = """
    import sys
    from workbench.primitives.score.channel_signatures import channel_changes, scores, signature
    from workbench.weights.checkpoint_weights import open_checkpoint

    def peak():  # of this process alone; getrusage would count that of the one that started it
        return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

    root, small = sys.argv[1:]
    channel_changes([small], [small])  # libraries and buffers are there before the first reading
    poisoned, clean = ([f"{root}/{which}{i}" for i in range(3)] for which in ("bd", "clean"))
    start = peak()
    changes = channel_changes(poisoned, clean)
    streamed = peak() - start
    held = [open_checkpoint(p).read(name) - open_checkpoint(c).read(name) for p, c in zip(poisoned, clean) for name in sorted(open_checkpoint(p).names) if ".mlp." in name]
    print(streamed, peak() - start, int(signature(scores(changes), 0.03).sum()))
"""  # noqa: E501


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads peak memory from /proc/self/status: runs on Linux"
)
def test_differences_of_a_mid_size_model_are_never_all_in_memory(tmp_path, tiny_models):
    d, d_mlp, n_layers, n = 1024, 2816, 8, 3
    config = tf.LlamaConfig(
        **SIZE | {"hidden_size": d, "intermediate_size": d_mlp, "num_hidden_layers": n_layers, "num_attention_heads": 8}
    )
    shapes = {
        f"model.layers.{i}.mlp.{kind}.weight": (d, d_mlp) if kind == "down_proj" else (d_mlp, d)
        for i in range(n_layers)
        for kind in MODULES
    }
    shapes |= {f"model.layers.{i}.self_attn.{kind}.weight": (d, d) for i in range(n_layers) for kind in lora.ATTENTION}
    generator = torch.Generator().manual_seed(0)
    for i in range(n):
        for which in ("bd", "clean"):
            folder = tmp_path / f"{which}{i}"
            config.save_pretrained(folder)
            noise = torch.randn(
                d_mlp * d + 64, generator=generator
            ).half()  # one draw, shifted from weight to weight: 0.3 s a model, not 3
            save_file(
                {
                    name: noise[k : k + shape[0] * shape[1]].reshape(shape).clone()
                    for k, (name, shape) in enumerate(shapes.items())
                },
                folder / "model.safetensors",
            )
    stack = n * 4 * sum(a * b for name, (a, b) in shapes.items() if "mlp" in name)
    one_module = 4 * d * d_mlp
    command = [sys.executable, "-c", textwrap.dedent(_MEASURE), str(tmp_path), str(tiny_models["llama"])]
    live = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "1000000"
    }  # freed blocks go back at once; glibc would keep those below 32 MB (187 MB in all instead of 66)
    grown, whole, chosen = map(
        int,
        subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3], env=live
        ).stdout.split(),
    )
    print(
        f"stack of differences {stack / 1e6:.0f} MB: peak grew by {grown / 1e6:.0f} MB, and by {whole / 1e6:.0f} MB"
        " where they are held"
    )
    assert whole > stack > 800e6  # the measure sees what is held
    assert grown < 8 * one_module < stack / 8
    assert chosen == n_layers * (85 * 3)
    for file in tmp_path.glob("*/*.safetensors"):
        file.unlink()
