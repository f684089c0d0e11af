"""Streamed activations equal captured ones, only the blocks that are needed run, and bad rows are refused before the
first forward.
"""

import pytest
import torch

from workbench.core.errors import BadData, UnsupportedModel
from workbench.models import load
from workbench.primitives.read.capture import capture
from workbench.primitives.read.stream import check_rows, site_keys, stream, unit_dims


def rows_of(*lengths: int, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(6, 64, (n,), generator=generator).tolist() for n in lengths]


@pytest.fixture(scope="module")
def models(tiny_models):
    return {
        family: load(str(tiny_models[family]))
        for family in ("gpt2", "llama", "mixtral", "opt", "bert", "bert_classifier")
    }


def joined(model, rows, sites, layers=None, **how):
    """{key: {row number: [kept position, ...]}} of a whole stream."""
    keys = site_keys(model, sites, layers)
    found = {key: {} for key in keys}
    for piece in stream(model, rows, keys, **how):
        for key, values in piece.values.items():
            for i, row in zip(
                piece.index.tolist(), values.reshape(len(piece.index), -1, *values.shape[1:]), strict=True
            ):
                found[key][i] = row
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral", "opt", "bert", "bert_classifier"])
@pytest.mark.parametrize("layers", [None, [0]], ids=["all layers", "first layer"])
def test_streamed_equals_captured(family, layers, models):
    model, rows = models[family], rows_of(5, 9, 5, 2, 9)
    sites = [s for s in model.sites() if s not in ("pattern", "attn_scores", "logits")]
    for key, by_row in joined(model, rows, sites, layers, batch_size=2).items():
        for i, row in enumerate(rows):
            alone = capture(model, [row], [key[0]], layers=None if key[1] is None else [key[1]])[key][0]
            torch.testing.assert_close(by_row[i], alone, atol=1e-5, rtol=0)


def test_logits_and_patterns_are_streamed_whole(models):
    rows = rows_of(6, 6)
    found = joined(models["gpt2"], rows, ["logits", "pattern"])
    whole = capture(models["gpt2"], rows, ["logits", "pattern"])
    for i in range(2):
        torch.testing.assert_close(found["logits", None][i], whole["logits"][i], atol=1e-5, rtol=0)
        torch.testing.assert_close(found["pattern", 1][i], whole["pattern", 1][i].movedim(1, 0), atol=1e-6, rtol=0)
    assert unit_dims(models["gpt2"], ("pattern", 1)) == ("head", "key_pos")


def test_blocks_above_the_highest_layer_do_not_run_and_the_unembedding_sees_one_position(models):
    model, ran = models["llama"], []
    watched = ["blocks.1.hook_attn_out", "unembed.hook_out"]
    for name in watched:
        model.live.add_hook(model.hook_name(name), lambda tensor, hook: ran.append((hook.name, tuple(tensor.shape))))
    try:
        list(stream(model, rows_of(6), site_keys(model, ["resid_post"], [0])))
        assert ran == []
        list(stream(model, rows_of(6), site_keys(model, ["resid_post"], [1])))
        assert [shape for name, shape in ran if name.startswith("unembed")] == [(1, 1, model.d_vocab)]
    finally:
        model.live.reset_hooks()


def test_kept_positions_carry_their_token_and_place(models):
    rows = rows_of(6, 4)
    keys = site_keys(models["gpt2"], ["resid_post"], [1])
    for piece in stream(models["gpt2"], rows, keys, positions=[-1, 0]):
        row = rows[int(piece.index[0])]
        assert piece.token.tolist() == [row[-1], row[0]] and piece.pos.tolist() == [len(row) - 1, 0]
        alone = capture(models["gpt2"], [row], ["resid_post"], layers=[1])["resid_post", 1][0]
        torch.testing.assert_close(piece.values["resid_post", 1], alone[[-1, 0]], atol=1e-6, rtol=0)


def test_values_too_large_for_float16_are_refused(tiny_models):
    model = load(str(tiny_models["gpt2"]))
    with torch.no_grad():
        for name, parameter in model.live.original_model.named_parameters():
            if "wte" in name:
                parameter.mul_(1e8)
    keys = site_keys(model, ["resid_pre"], [0])
    with pytest.raises(BadData, match="resid_pre of layer 0 has values beyond float16"):
        list(stream(model, rows_of(4), keys, dtype=torch.float16))
    assert len(list(stream(model, rows_of(4), keys, dtype=torch.bfloat16))) == 1


@pytest.mark.parametrize(
    ("rows", "sites", "positions", "says"),
    [
        ([], ["z"], None, "no rows"),
        ([[5], []], ["z"], None, "row 1 has no tokens"),
        ([[5], [6] * 60], ["z"], None, "row 1 has 60 tokens, more than the context"),
        ([[5], [6, 64]], ["z"], None, "row 1 has a token id outside"),
        ([[5, -1]], ["z"], None, "row 0 has a token id outside"),
        ([[5, 6, 7], [5]], ["z"], [1], "row 1 has 1 tokens"),
        ([[5, 6]], ["z"], [], "must lie inside"),
        ([[5, 6], [5]], ["pattern"], None, "keeps an axis of that length"),
    ],
    ids=["none", "empty", "long", "id too large", "negative id", "position", "no positions", "ragged pattern"],
)
def test_rows_that_cannot_be_run_are_refused_first(rows, sites, positions, says, models):
    model = models["gpt2"]
    with pytest.raises(BadData, match=says):
        check_rows(model, rows, site_keys(model, sites), positions)


def test_images_are_refused(tiny_models):
    with pytest.raises(UnsupportedModel, match="reads images"):
        check_rows(load(str(tiny_models["vit"])), [[1]], [], None)
