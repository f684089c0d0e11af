"""Patterns are Hugging Face's own, scores are what they say, pooling keeps the largest, and switched-off heads are
off and counted.
"""

import copy

import numpy as np
import pytest
import torch
from models.families import moved

from workbench.core.errors import BadData, NoRoom, NotFired
from workbench.core.result import Result
from workbench.datasets.repeated_words import RepeatedWords
from workbench.models import load
from workbench.models.model import Model
from workbench.organisms.induction import head_roles
from workbench.primitives.read import attention_patterns as ap
from workbench.primitives.read.attention_patterns import (
    after_earlier_copies,
    attention_patterns,
    pattern_scores,
    switch_heads_off,
)
from workbench.primitives.replace.ablation import ablate, reference_mean

ROW = [9, 22, 31, 9, 40, 22, 31, 12, 50]
READABLE = ("gpt2", "neox", "llama", "gemma2", "opt", "qwen2", "mixtral", "bert", "bert_classifier", "llama_classifier")


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {family: load(moved(family, 0.2, matrices=True)) for family in (*READABLE, "vit")}


@pytest.fixture(scope="module")
def induction() -> Model:
    return load("organism:induction")


def n_hooks(model: Model) -> int:
    return sum(len(point.fwd_hooks) for point in model.live.hook_dict.values())


# ---- patterns ----


@pytest.mark.parametrize("family", READABLE)
def test_patterns_are_those_of_hugging_face(family, models):
    with torch.no_grad():
        wanted = moved(family, 0.2, matrices=True)(input_ids=torch.tensor([ROW]), output_attentions=True).attentions
    found = attention_patterns(models[family], ROW).data
    assert found.pattern.dims == ("layer", "head", "query_pos", "key_pos") and found.scores.shape == (4, 2, 4)
    np.testing.assert_allclose(found.pattern, torch.cat(wanted).numpy(), atol=1e-5)
    np.testing.assert_allclose(found.pattern.sum("key_pos"), 1, atol=1e-5)
    is_causal = bool((np.triu(found.pattern.values, 1) == 0).all())
    assert is_causal == bool(found.attrs["causal"]) == (not family.startswith("bert"))


def test_an_image_classifier_has_patterns_of_its_patches(models):
    pixels = torch.rand(1, 1, 8, 8)
    with torch.no_grad():
        wanted = moved("vit", 0.2, matrices=True)(pixel_values=pixels, output_attentions=True).attentions
    found = attention_patterns(models["vit"], pixels).data
    np.testing.assert_allclose(found.pattern, torch.cat(wanted).numpy(), atol=1e-5)
    assert (
        found.token.values[:2].tolist() == ["[CLS]", "patch 0"]
        and np.isnan(found.scores.sel(score=["previous", "induction"])).all()
    )


def test_long_prompts_keep_the_largest_weight_of_each_block_and_say_so(models):
    whole, pooled = attention_patterns(models["llama"], ROW), attention_patterns(models["llama"], ROW, max_pos=4)
    assert (
        pooled.data.attrs["pool"] == 3
        and pooled.data.query_pos.values.tolist() == [0, 3, 6]
        and "largest weight of 3 x 3" in pooled.warnings[0]
    )
    assert whole.data.attrs["pool"] == 1 and whole.warnings == ()
    blocks = whole.data.pattern.values.reshape(2, 4, 3, 3, 3, 3)
    np.testing.assert_array_equal(pooled.data.pattern, blocks.max((3, 5)))
    np.testing.assert_array_equal(pooled.data.scores, whole.data.scores)
    assert pooled.data.token.values.tolist() == [whole.data.token.values[i] for i in (0, 3, 6)]
    assert (
        attention_patterns(models["llama"], ROW, max_pos=8).data.sizes["key_pos"] == 5
    )  # the last block has one position


def test_all_patterns_together_stay_under_their_cap(models, monkeypatch):
    monkeypatch.setattr(ap, "MAX_CELLS", 8 * 25)
    assert attention_patterns(models["gpt2"], ROW).data.pattern.size <= 8 * 25


# ---- scores ----


def test_scores_are_those_the_organism_is_declared_with(induction):
    """On a phrase said twice, the earlier copy is one, and both definitions look at one place."""
    tokens = RepeatedWords(shortest=31, longest=31).sample(1, 63, np.random.default_rng(5))
    roles, found = head_roles(induction, tokens), attention_patterns(induction, tokens[0]).data.scores
    for key in ("previous", "induction"):
        np.testing.assert_allclose(found.sel(score=key), roles[key], atol=1e-5)
    assert found.sel(score="previous")[0].max() > 0.4 and found.sel(score="induction")[1].max() > 0.4
    assert found.sel(score="previous")[1].max() < 0.2 and found.sel(score="induction")[0].max() < 0.2


def test_places_after_earlier_copies_by_hand_and_by_loops():
    found = after_earlier_copies(torch.tensor([5, 6, 5, 5, 6]))
    assert [(q, k) for q, k in np.argwhere(found.numpy()).tolist()] == [
        (2, 1),
        (3, 1),
        (4, 2),
    ]  # not (3, 3): it follows its own copy
    tokens = np.random.default_rng(0).integers(0, 5, 30)
    wanted = {(t, i + 1) for t in range(30) for i in range(t - 1) if tokens[i] == tokens[t]}
    assert {tuple(pair) for pair in np.argwhere(after_earlier_copies(torch.tensor(tokens)).numpy())} == wanted


def test_scores_by_hand():
    first, before, copied = torch.zeros(5, 5), torch.zeros(5, 5), torch.zeros(5, 5)
    first[:, 0] = 1
    before[range(1, 5), range(4)] = before[0, 0] = 1
    copied[4, 2] = 1  # the only place after an earlier copy of <bos> 6 7 8 6
    copied[:4, 0] = 1
    even = torch.full((5, 5), 0.2)
    found = pattern_scores(torch.stack([first, before, copied, even]), torch.tensor([1, 6, 7, 8, 6]))
    np.testing.assert_allclose(found[0], [1, 0.4, 0.8, 0.2], atol=1e-6)
    np.testing.assert_allclose(found[1], [0, 0, 0, np.log(5)], atol=1e-6)
    np.testing.assert_allclose(found[2], [0, 1, 0, 0.2], atol=1e-6)
    np.testing.assert_allclose(found[3], [0, 0, 1, 0.2], atol=1e-6)
    assert pattern_scores(first[None], torch.arange(5))[3].isnan().all()


def test_one_token_is_a_prompt(models):
    found = attention_patterns(models["gpt2"], [7]).data
    assert float(found.pattern.min()) == 1 and np.isnan(found.scores.sel(score="previous")).all()


# ---- heads off ----


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_the_run_with_heads_off_is_the_ablated_run(family, models):
    model, tokens = models[family], torch.tensor([ROW])
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[0, 1] = mask[0, 3] = True
    for value in ("zero", "mean"):
        wanted = ablate(model, tokens, mask, value=value, reference=reference_mean(model, tokens), layers=[0])
        result = switch_heads_off(model, ROW, [(0, 3), (0, 1), (0, 1)], value=value)
        data = result.data
        p = wanted.output[0, -1].softmax(-1)
        np.testing.assert_allclose(data.probability.sel(run="heads off"), p[data.candidate_id.values], atol=1e-6)
        losses = -wanted.output[0, :-1].log_softmax(-1)[range(8), ROW[1:]]
        np.testing.assert_allclose(data.loss.sel(run="heads off")[1:], losses, atol=1e-5)
        assert (data.attrs["n_replaced"], data.attrs["firings"]) == (2, 1) and data.attrs["effect"] == pytest.approx(
            wanted.report.effect
        )
        whole = attention_patterns(model, ROW).data
        np.testing.assert_array_equal(data.pattern[0], whole.pattern[0])
        assert float(abs(data.pattern[1] - whole.pattern[1]).max()) > 1e-5, "later heads see the changed stream"
        clean = model.forward(tokens)[0]
        np.testing.assert_allclose(
            data.probability.sel(run="heads on"), clean[-1].softmax(-1)[data.candidate_id.values], atol=1e-6
        )
        np.testing.assert_allclose(data.moved, (wanted.output[0] - clean).abs().amax(-1), atol=1e-5)


def test_both_runs_likeliest_tokens_are_kept(models):
    tokens, off = torch.tensor([ROW]), torch.tensor([[True] * 4, [False] * 4])
    data = switch_heads_off(models["gpt2"], ROW, [(0, h) for h in range(4)], top_k=3).data
    runs = models["gpt2"].forward(tokens)[0, -1], ablate(models["gpt2"], tokens, off).output[0, -1]
    assert set(data.candidate_id.values.tolist()) == {i for logits in runs for i in logits.topk(3).indices.tolist()}


def test_without_previous_token_heads_induction_is_gone(induction):
    """Layer 1 finds earlier copies by what layer 0's previous-token heads wrote. Heads of layer 1 cannot change
    their own layer's patterns.
    """
    tokens = RepeatedWords(shortest=12, longest=12).sample(1, 25, np.random.default_rng(8))[0]
    whole = attention_patterns(induction, tokens).data.scores
    previous = [(0, int(h)) for h in np.flatnonzero(whole.sel(score="previous", layer=0) > 0.4)]
    without, same = (
        switch_heads_off(induction, tokens, heads).data for heads in (previous, [(1, h) for h in range(4)])
    )
    assert (
        float(without.scores.sel(score="induction", layer=1).max())
        < 0.4
        < float(whole.sel(score="induction", layer=1).max())
    )
    np.testing.assert_array_equal(same.scores, whole)
    for data in (without, same):
        assert float((data.loss.sel(run="heads off") - data.loss.sel(run="heads on"))[13:].mean()) > 1


@pytest.mark.parametrize(
    ("family", "has"),
    [
        ("bert", {"moved"}),
        ("bert_classifier", {"probability"}),
        ("llama_classifier", {"probability"}),
        ("vit", {"probability"}),
        ("opt", {"moved", "probability", "loss"}),
    ],
)
def test_heads_can_be_off_in_every_kind_of_model(family, has, models):
    inputs = torch.rand(1, 1, 8, 8) if family == "vit" else ROW
    result = switch_heads_off(models[family], inputs, [(0, 0), (1, 2)])
    assert (
        has == {"moved", "probability", "loss"} & set(result.data)
        and result.data.attrs["n_replaced"] == 2
        and result.data.attrs["effect"] > 0
    )
    if family.endswith("classifier"):  # three classes, all of them kept
        np.testing.assert_allclose(result.data.probability.sum("candidate"), 1, atol=1e-5)
        assert sorted(result.data.candidate.values) == ["class 0", "class 1", "class 2"]


def test_heads_that_nothing_reads_give_a_warning_and_no_silence():
    module = moved("gpt2", 0.2, matrices=True)
    module.transformer.h[1].attn.c_proj.weight.data[8:16] = 0  # what head 1 of layer 1 writes
    result = switch_heads_off(load(module), ROW, [(1, 1)])
    assert result.data.attrs["effect"] == 0 and "did not move" in result.warnings[0]


# ---- what is refused, and that nothing stays behind ----


def test_what_cannot_be_read_is_refused(models, monkeypatch):
    with pytest.raises(BadData, match="one prompt"):
        attention_patterns(models["gpt2"], torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(BadData, match="one prompt"):
        attention_patterns(models["gpt2"], [])
    with pytest.raises(BadData, match="one image"):
        attention_patterns(models["vit"], ROW)
    with pytest.raises(BadData, match="no head is switched off"):
        switch_heads_off(models["gpt2"], ROW, [])
    with pytest.raises(BadData, match="no head 4 in layer 1"):
        switch_heads_off(models["gpt2"], ROW, [(1, 4)])
    with pytest.raises(BadData, match="layers 0 to 1"):
        switch_heads_off(models["gpt2"], ROW, [(2, 0)])
    monkeypatch.setattr("workbench.models.memory.available_bytes", lambda device: 100)
    with pytest.raises(NoRoom, match="shorter prompt"):
        attention_patterns(models["gpt2"], ROW)


def test_patterns_that_do_not_fire_are_an_error(models, monkeypatch):
    model = copy.copy(models["gpt2"])
    monkeypatch.setattr(type(model), "forward", lambda self, *args, **rest: torch.zeros(1, 9, 64))
    with pytest.raises(NotFired, match="layers 0, 1 never fired"):
        attention_patterns(model, ROW)


def test_another_number_of_heads_than_asked_for_is_an_error(models, monkeypatch):
    def one_too_few(model, tokens, mask, **options):
        mask[0, 0] = False
        return ablate(model, tokens, mask, **options)

    monkeypatch.setattr(ap, "ablate", one_too_few)
    with pytest.raises(NotFired, match=r"1 heads were replaced .* where 2 were asked for"):
        switch_heads_off(models["gpt2"], ROW, [(0, 0), (0, 1)])


def test_an_error_in_the_run_leaves_no_hook_behind(models, monkeypatch):
    model = models["llama"]
    before, clean = n_hooks(model), model.forward(torch.tensor([ROW]))

    def broken(*_):
        raise RuntimeError("in a hook")

    with monkeypatch.context() as patch:
        patch.setattr(ap, "pattern_scores", broken)
        for run in (lambda: attention_patterns(model, ROW), lambda: switch_heads_off(model, ROW, [(0, 1)])):
            with pytest.raises(RuntimeError, match="in a hook"):
                run()
    assert n_hooks(model) == before and torch.equal(model.forward(torch.tensor([ROW])), clean)
    switch_heads_off(model, ROW, [(0, 1)])
    assert n_hooks(model) == before and torch.equal(model.forward(torch.tensor([ROW])), clean)


def test_results_survive_the_disk(models, tmp_path):
    for name, result in (
        ("plain", attention_patterns(models["gpt2"], ROW)),
        ("off", switch_heads_off(models["gpt2"], ROW, [(0, 1)], max_pos=4)),
    ):
        assert Result.load(result.save(tmp_path / name)).data.equals(result.data)
        assert all("unit" in v.attrs and "long_name" in v.attrs for v in result.data.values())
