"""Ablation equals editing the weights, per input equals alone, dynamic equals step by step, and its report is exact."""

import copy

import pytest
import torch
from models.families import DECODERS, moved

from workbench.core.errors import NotFired, UnsupportedModel, WorkbenchError
from workbench.models import load
from workbench.models.inputs import pad
from workbench.models.model import Model
from workbench.primitives.read.capture import capture
from workbench.primitives.replace.ablation import UNITS, ablate, reference_mean

O_PROJECTION = {
    "gpt2": "attn.c_proj",
    "neox": "attention.dense",
    "opt": "self_attn.out_proj",
}  # the others: self_attn.o_proj
MLP_OUTPUT = {"gpt2": "mlp.c_proj", "neox": "mlp.dense_4h_to_h", "opt": "fc2"}  # the others: mlp.down_proj
LAYERS, HEADS, D_HEAD, D_MLP = 2, 4, 8, {"gpt2": 128}


def edited(module, part: str, layer: int, inputs=slice(None), *, bias: bool = False):
    """A copy in which a projection reads nothing from `inputs` (and adds no bias)."""
    twin = copy.deepcopy(module)
    (name,) = [n for n, _ in twin.named_modules() if n.endswith(f"{layer}.{part}")]
    projection = twin.get_submodule(name)
    if type(projection).__name__ == "Conv1D":
        projection.weight.data[inputs, :] = 0
    else:
        projection.weight.data[:, inputs] = 0
    if bias and projection.bias is not None:
        projection.bias.data.zero_()
    return twin


def ids(n: int = 3, n_pos: int = 7, seed: int = 1) -> torch.Tensor:
    return torch.randint(6, 64, (n, n_pos), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(module, tokens: torch.Tensor) -> torch.Tensor:
    return module(input_ids=tokens).logits


@pytest.fixture(scope="module")
def pairs() -> dict:
    """{family: (plain module, Model of a copy of it)}."""
    plain = {family: moved(family) for family in DECODERS}
    return {family: (module, load(copy.deepcopy(module))) for family, module in plain.items()}


def none(n_units: int = HEADS) -> torch.Tensor:
    return torch.zeros(LAYERS, n_units, dtype=torch.bool)


# ---- nothing, everything, one ----


@pytest.mark.parametrize(
    "site", ["z", "q", "k", "v", "pattern", "attn_scores", "mlp_post", "attn_out", "mlp_out", "resid_pre"]
)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_empty_mask_changes_no_bit(family, site, pairs):
    _, model = pairs[family]
    n_units = (
        {"head": HEADS, "kv_head": model.n_kv_heads, "d_mlp": D_MLP.get(family, 64)}[UNITS[site]]
        if site in UNITS
        else 1
    )
    done = ablate(model, ids(), none(n_units), site=site)
    assert torch.equal(done.output, model.forward(ids()))
    assert (done.report.n_replaced, done.report.effect, done.report.warnings, done.report.firings) == (
        0,
        0.0,
        [],
        LAYERS,
    )


@pytest.mark.parametrize("family", DECODERS)
def test_all_heads_zero_leaves_the_bias_of_the_output_projection(family, pairs):
    module, model = pairs[family]
    part = O_PROJECTION.get(family, "self_attn.o_proj")
    oracle = edited(edited(module, part, 0), part, 1)
    done = ablate(model, ids(), ~none())
    torch.testing.assert_close(done.output, logits(oracle, ids()), atol=2e-6, rtol=0)
    assert done.report.effect > 1e-2


@pytest.mark.parametrize("family", DECODERS)
def test_each_head_is_the_head_it_says(family, pairs):
    """Zeroing head h at z equals an output projection that does not read its d_head inputs."""
    module, model = pairs[family]
    part = O_PROJECTION.get(family, "self_attn.o_proj")
    for layer, head in ((0, 0), (0, 3), (1, 1)):
        mask = none()
        mask[layer, head] = True
        oracle = edited(module, part, layer, slice(head * D_HEAD, (head + 1) * D_HEAD))
        torch.testing.assert_close(ablate(model, ids(), mask).output, logits(oracle, ids()), atol=2e-6, rtol=0)


@pytest.mark.parametrize("family", [f for f in DECODERS if f != "mixtral"])
def test_each_neuron_is_the_neuron_it_says(family, pairs):
    module, model = pairs[family]
    width = D_MLP.get(family, 64)
    mask = torch.rand(LAYERS, width, generator=torch.Generator().manual_seed(2)) < 0.3
    part = MLP_OUTPUT.get(family, "mlp.down_proj")
    oracle = edited(edited(module, part, 0, mask[0]), part, 1, mask[1])
    done = ablate(model, ids(), mask, site="mlp_post")
    torch.testing.assert_close(done.output, logits(oracle, ids()), atol=2e-6, rtol=0)
    assert done.report.n_replaced == 3 * int(mask.sum())


@pytest.mark.parametrize(
    ("site", "parts", "other"),
    [("attn_out", O_PROJECTION, "self_attn.o_proj"), ("mlp_out", MLP_OUTPUT, "mlp.down_proj")],
)
@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "opt", "qwen2"])
def test_a_whole_site_goes_with_its_bias(family, site, parts, other, pairs):
    module, model = pairs[family]
    oracle = edited(module, parts.get(family, other), 1, bias=True)
    done = ablate(model, ids(), torch.tensor([[False], [True]]), site=site)
    torch.testing.assert_close(done.output, logits(oracle, ids()), atol=2e-6, rtol=0)
    assert (done.report.n_replaced, done.report.n_possible) == (3, 6)


@pytest.mark.parametrize("family", ["llama", "mixtral", "gemma2"])
def test_a_value_head_feeds_its_group_of_query_heads(family, pairs):
    """Grouped-query attention: without value head 1, heads 2 and 3 write nothing."""
    _, model = pairs[family]
    by_value = ablate(model, ids(), torch.tensor([[False, True]] * LAYERS), site="v").output
    by_head = ablate(model, ids(), torch.tensor([[False, False, True, True]] * LAYERS)).output
    torch.testing.assert_close(by_value, by_head, atol=2e-6, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "mixtral", "qwen2"])
def test_zeroing_the_pattern_equals_zeroing_the_output(family, pairs):
    _, model = pairs[family]
    mask = torch.tensor([[True, False, True, False], [False, False, True, True]])
    torch.testing.assert_close(
        ablate(model, ids(), mask, site="pattern").output, ablate(model, ids(), mask).output, atol=2e-6, rtol=0
    )


@pytest.mark.parametrize("family", ["opt", "bert_classifier", "vit"])
def test_a_pattern_that_cannot_be_edited_is_never_taken_for_an_ablation(family, tiny_models):
    """These run transformers' own attention: if an edit of the pattern does not reach the output, the report must
    say so.
    """
    model, tokens = load(str(tiny_models[family])), torch.rand(3, 1, 8, 8) if family == "vit" else ids()
    try:
        done = ablate(model, tokens, ~none(), site="pattern")
    except UnsupportedModel as refused:
        assert "pattern" in str(refused)
        return
    reached = torch.allclose(done.output, ablate(model, tokens, ~none()).output, atol=1e-5)
    assert reached or (done.report.effect == 0 and "the output did not move" in done.report.warnings[0])


@pytest.mark.parametrize("site", UNITS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_ablated_causal_model_still_does_not_see_the_future(family, site, pairs):
    _, model = pairs[family]
    n_units = {"head": HEADS, "kv_head": model.n_kv_heads, "d_mlp": D_MLP.get(family, 64)}[UNITS[site]]
    a, b = ids(), ids()
    b[:, -1] = (b[:, -1] - 6 + 1) % 58 + 6
    one, other = (ablate(model, tokens, ~none(n_units), site=site, compare=False).output for tokens in (a, b))
    torch.testing.assert_close(one[:, :-1], other[:, :-1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", DECODERS)
def test_W_O_maps_head_outputs_to_what_attention_writes(family, pairs):
    module, model = pairs[family]
    taken = capture(model, ids().tolist(), ["z", "attn_out"])
    for layer in range(LAYERS):
        (name,) = [
            n
            for n, _ in module.named_modules()
            if n.endswith(f"{layer}.{O_PROJECTION.get(family, 'self_attn.o_proj')}")
        ]
        bias = getattr(module.get_submodule(name), "bias", None)
        written = torch.einsum("bphd,hdm->bpm", taken["z", layer], model.W_O(layer)) + (0 if bias is None else bias)
        if family == "gemma2":  # a norm stands between the projection and the stream
            written = module.model.layers[layer].post_attention_layernorm(written)
        torch.testing.assert_close(written, taken["attn_out", layer], atol=1e-5, rtol=0)


# ---- per input ----


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("site", ["z", "v", "mlp_post"])
def test_every_row_of_a_mask_per_input_acts_as_if_alone(family, site, pairs):
    _, model = pairs[family]
    n_units = {"z": HEADS, "v": model.n_kv_heads, "mlp_post": D_MLP.get(family, 64)}[site]
    mask = torch.rand(3, LAYERS, n_units, generator=torch.Generator().manual_seed(4)) < 0.5
    together = ablate(model, ids(), mask, site=site)
    effects = []
    for row in range(3):
        alone = ablate(model, ids()[row : row + 1], mask[row], site=site)
        torch.testing.assert_close(together.output[row], alone.output[0], atol=1e-6, rtol=0)
        effects.append(alone.report.effect)
    assert together.report.n_replaced == int(mask.sum())
    assert together.report.effect == pytest.approx(sum(effects) / 3, abs=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_padding_changes_neither_output_nor_effect(family, side, pairs):
    _, model = pairs[family]
    rows = [row[:n] for row, n in zip(ids(3, 9).tolist(), (9, 4, 6), strict=True)]
    batch = pad(rows, 0, side)
    mask = torch.rand(3, LAYERS, HEADS, generator=torch.Generator().manual_seed(4)) < 0.5
    together = ablate(model, batch, mask)
    effects = []
    for i, row in enumerate(rows):
        alone = ablate(model, torch.tensor([row]), mask[i])
        torch.testing.assert_close(together.output[i][batch.mask[i]], alone.output[0], atol=1e-5, rtol=0)
        effects.append(alone.report.effect)
    assert together.report.effect == pytest.approx(sum(effects) / 3, abs=1e-5)


def test_heads_outside_the_language_model_are_ablated_too(tiny_models):
    for family, tokens in (
        ("bert_classifier", ids()),
        ("llama_classifier", ids()),
        ("bert", ids()),
        ("vit", torch.rand(3, 1, 8, 8)),
    ):
        done = ablate(load(str(tiny_models[family])), tokens, ~none())
        assert done.report.effect > 0, family
        assert done.report.n_replaced == 3 * LAYERS * HEADS


# ---- other values ----


@pytest.mark.parametrize("site", ["z", "mlp_post", "attn_out"])
def test_mean_ablation_writes_the_mean_of_the_reference(site, pairs):
    _, model = pairs["gpt2"]
    reference = reference_mean(model, ids(5, 7, seed=8), site)
    own = capture(model, ids(5, 7, seed=8).tolist(), [site])
    for layer in range(LAYERS):
        torch.testing.assert_close(reference[layer], own[site, layer].mean((0, 1)), atol=1e-6, rtol=0)
    n_units = {"z": HEADS, "mlp_post": 128, "attn_out": 1}[site]
    mask = torch.tensor([[False], [True]]).expand(LAYERS, n_units)
    wanted = model.forward(
        ids(), hook_fns=[(model.hook_name(site, 1), lambda tensor, hook: reference[1].expand_as(tensor))]
    )
    assert torch.equal(ablate(model, ids(), mask, site=site, value="mean", reference=reference).output, wanted)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_reference_mean_counts_real_positions_only(side, pairs):
    _, model = pairs["llama"]
    rows = [row[:n] for row, n in zip(ids(3, 9).tolist(), (9, 4, 6), strict=True)]
    found = reference_mean(model, pad(rows, 0, side))
    each = [capture(model, [row], ["z"]) for row in rows]
    for layer in range(LAYERS):
        wanted = torch.cat([one["z", layer][0] for one in each]).mean(0)
        torch.testing.assert_close(found[layer], wanted, atol=1e-5, rtol=0)


def test_resampling_from_copies_of_the_input_changes_nothing(pairs):
    _, model = pairs["gpt2"]
    same = ids(1).expand(4, -1)
    own = capture(model, same.tolist(), ["z"])
    reference = {layer: own["z", layer] for layer in range(LAYERS)}
    done = ablate(model, same, ~none(), value="resample", reference=reference)
    torch.testing.assert_close(done.output, model.forward(same), atol=1e-6, rtol=0)
    assert done.report.n_replaced == 4 * LAYERS * HEADS


def test_resampling_patches_in_one_reference_row_per_input(pairs):
    _, model = pairs["gpt2"]
    reference = capture(model, ids(5, 7, seed=8).tolist(), ["z"])["z", 1]
    mask = torch.tensor([[False] * 4, [True, False, True, True]])
    by_row = []
    for row in reference:

        def put(tensor, hook, row=row):
            new = tensor.clone()
            new[:, :, mask[1]] = row[:, mask[1]]
            return new

        by_row.append(model.forward(ids(6), hook_fns=[(model.hook_name("z", 1), put)]))
    outputs = [
        ablate(model, ids(6), mask, value="resample", reference={1: reference}, layers=[1], seed=seed).output
        for seed in (0, 0, 1)
    ]
    for output in outputs:
        for i in range(6):
            assert any(torch.allclose(output[i], candidate[i], atol=1e-6) for candidate in by_row)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


# ---- dynamic masks ----


def test_a_dynamic_mask_sees_what_earlier_layers_did(pairs):
    """Two layers: the flags of layer 1 are those of a run in which layer 0 was already ablated."""
    _, model = pairs["gpt2"]
    tokens, z = ids(6), model.hook_name("z", 1)
    clean = capture(model, tokens.tolist(), ["z"])
    norms = {layer: clean["z", layer].norm(dim=-1).mean(1) for layer in range(LAYERS)}
    threshold = {layer: norms[layer].median(0).values for layer in range(LAYERS)}  # per head

    def small(layer: int, acts) -> torch.Tensor:
        return acts["z"].norm(dim=-1).mean(1) < threshold[layer]

    first = norms[0] < threshold[0]
    seen = []
    remove = (model.hook_name("z", 0), lambda tensor, hook: tensor * ~first[:, None, :, None])
    model.forward(tokens, hook_fns=[remove, (z, lambda tensor, hook: seen.append(tensor.norm(dim=-1).mean(1)))])
    second = seen[0] < threshold[1]
    assert not torch.equal(second, norms[1] < threshold[1]), "layer 0 must matter here, or the test shows nothing"
    dynamic = ablate(model, tokens, small)
    static = ablate(model, tokens, torch.stack([first, second], dim=1))
    assert torch.equal(dynamic.output, static.output)
    assert dynamic.report == static.report


@pytest.mark.parametrize("family", DECODERS)
def test_a_dynamic_mask_reads_other_sites_of_its_layer(family, pairs):
    """Pattern and value of the layer arrive before z, or the model is refused; they never go missing unexplained."""
    _, model = pairs[family]
    clean, read = capture(model, ids().tolist(), ["pattern", "v"]), {}

    def nothing(layer: int, acts) -> torch.Tensor:
        read[layer] = {site: acts[site].clone() for site in ("pattern", "v", "z")}
        return torch.zeros(3, HEADS, dtype=torch.bool)

    try:
        ablate(model, ids(), nothing, reads=("pattern", "v"))
    except (NotFired, UnsupportedModel) as refused:
        assert "pattern" in str(refused)
        return
    for layer in range(LAYERS):
        assert torch.equal(read[layer]["pattern"], clean["pattern", layer])
        assert torch.equal(read[layer]["v"], clean["v", layer])


def test_a_dynamic_mask_of_the_wrong_shape_is_refused(pairs):
    with pytest.raises(WorkbenchError, match=r"shape \(3, 5\) where z has 4 units for 3 inputs"):
        ablate(pairs["gpt2"][1], ids(), lambda layer, acts: torch.ones(3, 5))


# ---- the report ----


def test_counts_and_share_are_exact(pairs):
    _, model = pairs["gpt2"]
    mask = torch.rand(3, LAYERS, HEADS, generator=torch.Generator().manual_seed(6)) < 0.4
    report = ablate(model, ids(), mask).report
    assert (report.firings, report.n_replaced, report.n_possible) == (LAYERS, int(mask.sum()), 3 * LAYERS * HEADS)
    assert report.share == int(mask.sum()) / (3 * LAYERS * HEADS)
    one_layer = ablate(model, ids(), mask, layers=[1]).report
    assert (one_layer.firings, one_layer.n_replaced, one_layer.n_possible) == (1, int(mask[:, 1].sum()), 3 * HEADS)


def test_the_effect_is_the_mean_over_inputs_of_the_largest_logit_change(pairs):
    _, model = pairs["llama"]
    clean, done = model.forward(ids()), ablate(model, ids(), ~none())
    wanted = sum(float((done.output[i] - clean[i]).abs().max()) for i in range(3)) / 3
    assert done.report.effect == pytest.approx(wanted, rel=1e-6)
    assert ablate(model, ids(), ~none(), clean=clean).report == done.report
    assert ablate(model, ids(), ~none(), compare=False).report.effect is None


@pytest.mark.parametrize("site", ["q", "k"])
def test_replacing_what_cannot_matter_gives_a_warning(site, pairs):
    """With one token there is one key, so queries and keys cannot change where attention goes."""
    _, model = pairs["gpt2"]
    report = ablate(model, ids(3, 1), ~none(), site=site).report
    assert report.effect == 0
    assert len(report.warnings) == 1
    assert f"{3 * LAYERS * HEADS} units were replaced at {site} and the output did not move" in report.warnings[0]
    assert not ablate(model, ids(3, 4), ~none(), site=site).report.warnings


def test_hooks_that_never_run_raise(monkeypatch, pairs):
    _, model = pairs["gpt2"]
    call = Model._call
    monkeypatch.setattr(Model, "_call", lambda self, tokens, mask, stop, cache: call(self, tokens, mask, 1, cache))
    with pytest.raises(NotFired, match=r"no hook at z fired in .*untouched run"):
        ablate(model, ids(), ~none(), layers=[1])


def test_no_layers_is_not_an_ablation(pairs):
    with pytest.raises(NotFired, match="no hook at z fired"):
        ablate(pairs["gpt2"][1], ids(), ~none(), layers=[])


def test_nothing_is_left_behind_even_after_an_error(pairs):
    _, model = pairs["gpt2"]
    clean = model.forward(ids())

    def broken(layer: int, acts) -> torch.Tensor:
        if layer == 0:
            return torch.ones(3, HEADS)
        raise RuntimeError("inside the mask")

    with pytest.raises(RuntimeError, match="inside the mask"):
        ablate(model, ids(), broken)
    ablate(model, ids(), ~none())
    assert torch.equal(model.forward(ids()), clean)
