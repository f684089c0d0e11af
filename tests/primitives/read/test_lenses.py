"""The last layer of the lens is the model, parts add up to the logits, and both agree with TransformerLens."""

import copy
import math

import numpy as np
import pytest
import torch
from models.families import DECODERS, FAMILIES
from transformer_lens.tools import analysis

from workbench.core.errors import BadData, UnknownSite, UnsupportedModel
from workbench.core.result import Result
from workbench.models import load
from workbench.primitives.read.capture import capture
from workbench.primitives.read.lenses import direct_logit_attribution, logit_lens
from workbench.primitives.replace.ablation import ablate

ROWS = [[9, 22, 31, 7, 40], [11, 12, 13], [50, 8, 33, 21, 60]]
ANSWERS, OTHERS = [10, 20, 30], [15, 25, 35]


def lively(family: str):
    """Random, with biases and gains away from their initial values and logits large enough for a softcap to act."""
    torch.manual_seed(3)
    module = FAMILIES[family]().eval()
    for parameter in module.parameters():
        parameter.data += 0.25 * torch.randn_like(parameter)
    return module


@pytest.fixture(scope="module")
def models() -> dict:
    return {family: load(lively(family)) for family in DECODERS}


# ---- the lens ----


@pytest.mark.parametrize("family", DECODERS)
def test_the_last_layer_is_the_model(family, models):
    model = models[family]
    found = logit_lens(model, ROWS[0], top_k=64, targets=[10, 20, 10]).data
    p = model.forward(torch.tensor(ROWS[:1]))[0].softmax(-1)
    own = found.isel(layer=-1)
    np.testing.assert_allclose(own.probability, p.gather(-1, torch.tensor(own.token_id.values)), atol=1e-5)
    assert own.token_id.values[:, 0].tolist() == p.argmax(-1).tolist()
    np.testing.assert_allclose(own.entropy, torch.special.entr(p).sum(-1), atol=1e-4)
    np.testing.assert_allclose(own.target_probability, p[:, [10, 20, 10]], atol=1e-5)
    assert own.target_rank.values.tolist() == [[int((row > row[t]).sum()) for t in (10, 20, 10)] for row in p]
    assert found.target.values.tolist() == ["10", "20", "10"]


@pytest.mark.parametrize("family", DECODERS)
def test_every_layer_is_what_transformer_lens_reads(family, models):
    model = models[family]
    with model.alone():
        theirs = analysis.logit_lens(model.live, torch.tensor(ROWS[:1]), positions=None, top_k=4, return_type="probs")
    ours = logit_lens(model, torch.tensor(ROWS[:1]), top_k=4).data
    assert dict(ours.sizes) == {"layer": 3, "pos": 5, "rank": 4}
    assert np.array_equal(ours.token_id, theirs.readout.top_ids[:, 0])
    np.testing.assert_allclose(ours.probability, theirs.values[:, 0], atol=1e-6)
    np.testing.assert_allclose(ours.entropy, theirs.readout.entropy[:, 0], atol=1e-5)


def test_labels_are_tokens_and_survive_the_disk(tiny_models, tmp_path):
    model = load(str(tiny_models["llama"]))
    found = logit_lens(model, model.to_rows("the")[0] + [9, 10], targets=[11])
    assert found.data.prompt.values.tolist() == model.to_strings(found.spec["tokens"])
    assert found.data.token.values[1, 2, 0] == model.to_strings([int(found.data.token_id[1, 2, 0])])[0]
    assert Result.load(found.save(tmp_path / "lens")).data.equals(found.data)


def test_folded_weights_give_the_same_lens(models):
    raw = logit_lens(models["gpt2"], ROWS[0], top_k=5)
    folded = logit_lens(load(lively("gpt2"), processing="folded"), ROWS[0], top_k=5)
    assert np.array_equal(raw.data.token_id[-1], folded.data.token_id[-1])
    np.testing.assert_allclose(raw.data.probability[-1], folded.data.probability[-1], atol=1e-5)


def test_a_readout_that_is_not_the_models_is_refused(models, monkeypatch):
    model = models["llama"]
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, *args, **rest: 1.01 * forward(self, *args, **rest))
    with pytest.raises(UnsupportedModel, match="gives other numbers than the final norm and unembedding"):
        logit_lens(model, ROWS[0])
    with pytest.raises(UnsupportedModel, match="gives other numbers than the final norm and unembedding"):
        direct_logit_attribution(model, ROWS, ANSWERS)


def test_a_prompt_of_one_token_is_a_prompt(models):
    assert dict(logit_lens(models["gpt2"], [7], top_k=99).data.sizes) == {"layer": 3, "pos": 1, "rank": 64}


def test_what_a_lens_cannot_read_is_refused(models, tiny_models):
    with pytest.raises(BadData, match="one prompt"):
        logit_lens(models["gpt2"], torch.tensor([[5, 6], [7, 8]]))
    with pytest.raises(UnsupportedModel, match="a logit lens needs a causal-lm"):
        logit_lens(load(str(tiny_models["bert"])), [5, 6])
    with pytest.raises(UnsupportedModel, match="cannot be read as logits"):
        logit_lens(models["gpt2"], [5, 6], targets=[64])


# ---- attribution ----


@pytest.mark.parametrize("by", ["component", "head", "neuron"])
@pytest.mark.parametrize("family", DECODERS)
def test_the_parts_add_up_to_the_logits(family, by, models):
    model = models[family]
    if (family, by) == ("mixtral", "neuron"):
        with pytest.raises(UnknownSite, match="its experts run as one fused operation"):
            direct_logit_attribution(model, ROWS, ANSWERS, by=by)
        return
    last = torch.stack([model.forward(torch.tensor([row]))[0, -1] for row in ROWS])
    for others, wanted in (
        (None, last[[0, 1, 2], ANSWERS]),
        (OTHERS, last[[0, 1, 2], ANSWERS] - last[[0, 1, 2], OTHERS]),
    ):
        found = direct_logit_attribution(model, ROWS, ANSWERS, others, by=by).data
        np.testing.assert_allclose(found.logit, wanted, atol=1e-4)
        np.testing.assert_allclose(found.attribution.sum("part"), wanted, atol=1e-4)
        assert found.attrs["max_gap"] < 1e-4
        assert by == "neuron" or (abs(found.attribution).max("example") > 0).all()  # ReLU neurons may all be off


@pytest.mark.parametrize("family", DECODERS)
def test_heads_and_neurons_split_their_sublayer(family, models):
    model = models[family]
    whole = direct_logit_attribution(model, ROWS, ANSWERS, OTHERS).data.attribution
    for by, sublayer, short in (("head", "attn", "H"), ("neuron", "mlp", "N")):
        if (family, by) == ("mixtral", "neuron"):
            continue
        split = direct_logit_attribution(model, ROWS, ANSWERS, OTHERS, by=by).data.attribution
        for layer in range(2):
            own = [p for p in split.part.values if p.startswith(f"L{layer}{short}") or p == f"L{layer} {sublayer} bias"]
            np.testing.assert_allclose(
                split.sel(part=own).sum("part"), whole.sel(part=f"L{layer} {sublayer}"), atol=1e-4
            )


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_a_head_of_the_last_layer_is_what_its_ablation_takes_from_the_stream(family, models):
    """Nothing but the MLP reads it there, so with that held the stream loses exactly the head's part, read at the
    frozen scale.
    """
    model, tokens = models[family], torch.tensor([ROWS[0]])
    found = direct_logit_attribution(model, ROWS[:1], ANSWERS[:1], OTHERS[:1], by="head").data.attribution
    kept = capture(model, ROWS[:1], ["attn_out", "ln_final.hook_scale"], reduce="last")
    norm = model.live.ln_final
    for head in range(4):
        mask = torch.zeros(2, 4, dtype=torch.bool)
        mask[1, head] = True
        seen = []
        with pytest.MonkeyPatch.context() as patch:
            forward = type(model).forward
            see = (model.hook_name("attn_out", 1), lambda tensor, hook, seen=seen: seen.append(tensor[0, -1].clone()))
            patch.setattr(
                type(model),
                "forward",
                lambda self, t, *, hook_fns=(), see=see, forward=forward, **rest: forward(
                    self, t, hook_fns=[*hook_fns, see], **rest
                ),
            )
            ablate(model, tokens, mask, compare=False)
        lost = kept["attn_out", 1][0] - seen[-1]
        lost = lost - (0 if norm.uses_rms_norm else lost.mean())
        W_U = model.live.W_U.detach()
        wanted = (lost * norm.weight.detach() / kept["ln_final.hook_scale"][0]) @ (
            W_U[:, ANSWERS[0]] - W_U[:, OTHERS[0]]
        )
        assert float(found.sel(part=f"L1H{head}")[0]) == pytest.approx(float(wanted), abs=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
def test_raw_parts_are_those_transformer_lens_finds_in_folded_weights(family, models):
    folded = load(lively(family), processing="folded")
    rows = [ROWS[0], ROWS[2]]
    answers, others = [10, 30], [15, 35]
    with folded.alone():
        theirs = analysis.direct_logit_attribution(
            folded.live, torch.tensor(rows), torch.tensor(answers), torch.tensor(others), unit="component"
        )
    wanted = dict(zip(theirs.labels, theirs.attribution, strict=True))
    ours = direct_logit_attribution(models[family], rows, answers, others).data.attribution
    same = direct_logit_attribution(folded, rows, answers, others).data.attribution
    for part in ("embed", "L0 attn", "L0 mlp", "L1 attn", "L1 mlp"):
        their_name = part if part == "embed" else f"{part[1]}_{part[3:]}_out"
        np.testing.assert_allclose(
            same.sel(part=part), wanted[their_name].detach(), atol=1e-4, err_msg=f"folded {part}"
        )
        np.testing.assert_allclose(ours.sel(part=part), wanted[their_name].detach(), atol=2e-4, err_msg=f"raw {part}")


def test_a_softcap_is_a_part_of_its_own_and_says_so(models):
    """Gemma 2: the parts before it add up to the logit before the cap, 30 atanh(logit / 30)."""
    module = lively("gemma2")
    module.model.norm.weight.data += 4  # logits near the cap
    model = load(module)
    found = direct_logit_attribution(model, ROWS, ANSWERS)
    after = found.data.attribution.sel(part="after unembedding")
    before = found.data.attribution.sum("part") - after
    assert float(abs(after).max()) > 0.01, "the cap must act here, or the test shows nothing"
    for logit, linear in zip(found.data.logit.values, before.values, strict=True):
        assert 30 * math.tanh(linear / 30) == pytest.approx(float(logit), abs=1e-4)
    assert "softcap" in found.warnings[0]
    assert "after unembedding" not in direct_logit_attribution(models["llama"], ROWS, ANSWERS).data.part


def test_the_norms_bias_and_the_centring_have_their_place(models):
    """OPT and GPT-2 have a bias after the final norm; RMS models have none, and nobody here has an unembedding bias."""
    for family, has_bias in (("gpt2", True), ("opt", True), ("neox", True), ("llama", False), ("gemma2", False)):
        parts = direct_logit_attribution(models[family], ROWS, ANSWERS).data.part.values
        assert ("norm bias" in parts) is has_bias and "unembed bias" not in parts, family
        assert ("pos_embed" in parts) is (family in ("gpt2", "opt"))


def test_an_unembedding_bias_is_a_part():
    module = lively("llama")
    module.lm_head = torch.nn.Linear(32, 64)
    torch.nn.init.normal_(module.lm_head.bias)
    bias = module.lm_head.bias.detach().clone()
    found = direct_logit_attribution(load(module), ROWS, ANSWERS, OTHERS).data.attribution
    np.testing.assert_allclose(found.sel(part="unembed bias"), bias[ANSWERS] - bias[OTHERS], atol=1e-6)


def test_a_family_whose_parts_do_not_add_up_is_refused(models, monkeypatch):
    model = copy.copy(models["llama"])
    monkeypatch.setattr(type(model), "W_O", lambda self, layer: 2 * self.live.blocks[layer].attn.W_O.reshape(4, 8, 32))
    with pytest.raises(UnsupportedModel, match="gives other numbers than its parts by head"):
        direct_logit_attribution(model, ROWS, ANSWERS, by="head")


def test_half_precision_adds_up_to_rounding():
    found = direct_logit_attribution(load(lively("llama"), dtype="bfloat16"), ROWS, ANSWERS, OTHERS, by="head").data
    assert found.attrs["max_gap"] < 0.2


def test_attribution_does_not_depend_on_batching_and_survives_the_disk(models, tmp_path):
    whole = direct_logit_attribution(models["qwen2"], ROWS, ANSWERS, OTHERS, by="head")
    each = [
        direct_logit_attribution(models["qwen2"], [r], [a], [o], by="head").data.attribution
        for r, a, o in zip(ROWS, ANSWERS, OTHERS, strict=True)
    ]
    np.testing.assert_allclose(whole.data.attribution, np.concatenate(each, axis=1), atol=1e-5)
    assert Result.load(whole.save(tmp_path / "dla")).data.equals(whole.data)


def test_hooks_are_gone_and_bad_calls_refused(models):
    model = models["gpt2"]
    clean = model.forward(torch.tensor(ROWS[:1]))
    with pytest.raises(BadData, match="2 ids"):
        direct_logit_attribution(model, ROWS, [1, 2])
    with pytest.raises(BadData, match="by='layer'"):
        direct_logit_attribution(model, ROWS, ANSWERS, by="layer")
    logit_lens(model, ROWS[0])
    direct_logit_attribution(model, ROWS, ANSWERS)
    assert torch.equal(model.forward(torch.tensor(ROWS[:1])), clean)
