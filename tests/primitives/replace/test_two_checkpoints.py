"""A model compared with itself has not changed; two that do not correspond are refused, saying where they part."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from models.families import FAMILIES, GQA, NO_SPECIAL, save
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.core.errors import BadData, NoTokenizer, UnknownName, UnsupportedModel
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.models import load
from workbench.organisms.tokenizer import word_tokenizer
from workbench.primitives.replace import two_checkpoints
from workbench.primitives.replace.sweeps import Zero, sweep
from workbench.primitives.replace.two_checkpoints import SHAPES, compare, refuse_misaligned, sweep_both, weight_change
from workbench.primitives.score.metrics import logit_diff
from workbench.primitives.score.statistics import bootstrap_interval

WORDS = ["<pad>", "<bos>", "<unk>", *[f"w{i}" for i in range(61)]]


def llama(seed: int = 0, tokenizer=None, **other):
    torch.manual_seed(seed)
    return load(
        LlamaForCausalLM(LlamaConfig(**GQA | NO_SPECIAL | other)),
        tokenizer=tokenizer or word_tokenizer(WORDS, add_bos=True),
    )


# ---- are they comparable ----


def test_two_checkpoints_of_one_family_are_aligned():
    a, b = llama(0), llama(1)
    refuse_misaligned(a, b, ["w1 w2 w3", "w9"])
    refuse_misaligned(a, b, [[1, 5, 6], [7]])
    refuse_misaligned(a, load(FAMILIES["llama"](), tokenizer=False), [[1, 5, 6]])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"num_hidden_layers": 3}, "n_layers is 2 and 3"),
        ({"hidden_size": 64}, "d_model is 32 and 64"),
        ({"num_attention_heads": 8}, "n_heads is 4 and 8"),
        ({"num_key_value_heads": 1}, "n_kv_heads is 2 and 1"),
        ({"head_dim": 16}, "d_head is 8 and 16"),
        ({"vocab_size": 70}, "d_vocab is 64 and 70"),
    ],
)
def test_the_shape_that_differs_is_named(other, said):
    with pytest.raises(UnsupportedModel, match=said):
        refuse_misaligned(llama(), llama(**other), ["w1"])


def test_every_shape_is_a_property_of_a_model():
    assert all(hasattr(llama(), name) for name in SHAPES)


def test_the_token_that_differs_is_named():
    swapped = [*WORDS[:5], WORDS[6], WORDS[5], *WORDS[7:]]
    a, b, bare = (
        llama(),
        llama(tokenizer=word_tokenizer(swapped, add_bos=True)),
        llama(tokenizer=word_tokenizer(WORDS, add_bos=False)),
    )
    refuse_misaligned(a, b, ["w9 w8"])
    with pytest.raises(BadData, match=r"part at token 2 of text 1: 'w2' \(id 5\) and 'w2' \(id 6\)"):
        refuse_misaligned(a, b, ["w9 w8", "w9 w2"])
    with pytest.raises(BadData, match=r"part at token 0 of text 0: '<bos>' \(id 1\) and 'w9'"):
        refuse_misaligned(a, bare, ["w9"])
    with pytest.raises(BadData, match=r"part at token 1 of row 0: 'w3' \(id 6\) and 'w2' \(id 6\)"):
        refuse_misaligned(a, b, [[9, 6]])
    with pytest.raises(NoTokenizer):
        refuse_misaligned(a, load(FAMILIES["llama"](), tokenizer=False), ["w1"])


def test_a_text_one_tokenizer_reads_on_is_named():
    class Longer:
        bos_token_id = 1

        def __call__(self, text, **_):
            return {"input_ids": [1, 5, 6, 7]}

        def convert_ids_to_tokens(self, token):
            return WORDS[token]

        def decode(self, ids):
            return WORDS[ids[0]]

    with pytest.raises(BadData, match=r"token 3 of text 0: nothing and 'w4' \(id 7\)"):
        refuse_misaligned(llama(), llama(tokenizer=Longer()), ["w2 w3"])


# ---- measurements ----


def measured(values: np.ndarray, dims=("layer", "example", "head"), **rest) -> Result:
    data = xr.Dataset(
        {"share": (dims, values, {"unit": "share", "long_name": "Share"})},
        coords={d: range(n) for d, n in zip(dims, values.shape, strict=True)},
    )
    return Result(Provenance("x", {"k": 1}, 0, model={"name": rest.pop("name", "m")}), data, **rest)


def test_a_model_minus_itself_is_zero_and_its_interval_holds_it():
    values = np.random.default_rng(0).normal(size=(2, 30, 3))
    same = compare(measured(values), measured(values), "share").data
    assert not same.difference.any() and not same["mean"].any() and not same.low.any() and not same.high.any()
    noisy = compare(
        measured(values), measured(values + np.random.default_rng(1).normal(size=values.shape)), "share"
    ).data
    assert ((noisy.low < noisy["mean"]) & (noisy["mean"] < noisy.high)).all()
    assert float(((noisy.low <= 0) & (noisy.high >= 0)).mean()) > 0.5


def test_every_cell_is_the_ordinary_bootstrap_of_its_own_differences(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 25, 3)), rng.normal(size=(2, 25, 3)) + 1
    monkeypatch.setattr(two_checkpoints, "CELLS_AT_ONCE", 4)  # several chunks
    found = compare(measured(a, name="base"), measured(b, name="tuned"), "share", level=0.9, n_draws=500, seed=3)
    assert found.data["difference"].dims == ("layer", "example", "head") and found.data["mean"].dims == (
        "layer",
        "head",
    )
    np.testing.assert_allclose(found.data.difference, b - a)
    for layer in range(2):
        for head in range(3):
            own, cell = (b - a)[layer, :, head], found.data.sel(layer=layer, head=head)
            assert (float(cell.low), float(cell.high)) == pytest.approx(
                bootstrap_interval(own, level=0.9, n_draws=500, seed=3), abs=1e-12
            )
            assert float(cell["mean"]) == pytest.approx(own.mean())
            assert float(cell.standard_error) == pytest.approx(own.std(ddof=1) / 5)
    assert found.provenance.model["name"] == "tuned minus base" and found.data["mean"].attrs["unit"] == "share"
    assert found.data.low.attrs["long_name"] == "Share, 90% low change"


def test_other_dtypes_a_scalar_cell_and_the_disk(tmp_path):
    flags = np.random.default_rng(0).random(40) < 0.5
    found = compare(measured(flags, ("example",)), measured(~flags, ("example",)), "share")
    assert set(np.unique(found.data.difference)) == {-1.0, 1.0} and found.data["mean"].shape == ()
    assert Result.load(found.save(tmp_path / "x")).data.equals(found.data)


def test_what_a_reader_must_know_is_said():
    few, holes = np.zeros((1, 4, 2)), np.zeros((1, 4, 2))
    holes[0, 2, 1] = np.nan
    found = compare(measured(few, warnings=("of a",)), measured(holes, warnings=("of b",), partial=True), "share")
    assert found.partial and found.warnings[:2] == ("of a", "of b")
    assert "4 examples" in found.warnings[2] and "1 of 2 cells" in found.warnings[3]
    assert np.isnan(
        compare(measured(np.zeros((1, 1, 1))), measured(np.zeros((1, 1, 1))), "share").data.standard_error
    ).all()


@pytest.mark.parametrize(
    ("b", "variable", "error", "match"),
    [
        (measured(np.zeros((2, 5, 3))), "shar", UnknownName, "no variable called 'shar'. Closest: share"),
        (measured(np.zeros((2, 5, 3)), ("layer", "input", "head")), "share", BadData, "no `example`"),
        (
            measured(np.zeros((5, 2, 3)), ("example", "layer", "head")),
            "share",
            BadData,
            r"dims \['layer', 'example', 'head'\]",
        ),
        (
            measured(np.zeros((2, 6, 3))),
            "share",
            BadData,
            "example 5 is nothing in the first Result and 5 in the second",
        ),
        (
            measured(np.zeros((2, 4, 3))),
            "share",
            BadData,
            "example 4 is 4 in the first Result and nothing in the second",
        ),
    ],
)
def test_what_cannot_be_paired_is_refused(b, variable, error, match):
    with pytest.raises(error, match=match):
        compare(measured(np.zeros((2, 5, 3))), b, variable)


def test_other_labels_are_refused():
    one, other = measured(np.zeros((2, 5, 3))), measured(np.zeros((2, 5, 3)))
    other = Result(other.provenance, other.data.assign_coords(head=["a", "x", "c"]))
    one = Result(one.provenance, one.data.assign_coords(head=["a", "b", "c"]))
    with pytest.raises(BadData, match="head 1 is 'b' in the first Result and 'x' in the second"):
        compare(one, other, "share")


# ---- weights ----


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "opt", "mixtral", "bert_classifier"])
def test_only_the_weights_that_moved_have_changed(family):
    torch.manual_seed(0)
    module = FAMILIES[family]()
    twin = copy.deepcopy(module)
    name, moved = next(
        (n, p)
        for n, p in twin.named_parameters()
        if p.ndim == 2
        and "embed" not in n
        and "wte" not in n
        and "wpe" not in n
        and "attn.c_attn" not in n
        and "query_key" not in n
    )
    original = moved.detach().clone()
    moved.data *= 1.5
    n_parameters = sum(p.numel() for p in module.parameters())
    table = weight_change(load(module), load(twin))
    assert table.n.sum() == n_parameters, "each weight counts once"
    (row,) = table[table.change > 0].itertuples()
    assert (
        row.change == pytest.approx(0.5 * float(original.norm()), rel=1e-5)
        and row.relative == pytest.approx(0.5, rel=1e-5)
        and row.cosine == pytest.approx(1)
    )
    assert row.shape == str(tuple(original.shape)) and row.parameter.split(".")[-1] == name.split(".")[-1]
    still = table[table.change == 0]
    assert ((still.cosine - 1).abs() < 1e-9)[still.norm_a > 0].all() and still.cosine[still.norm_a == 0].isna().all()


def test_a_model_has_not_moved_from_itself():
    model = llama()
    table = weight_change(model, model)
    assert isinstance(table, pd.DataFrame) and not table.change.any() and not table.relative.any()
    assert "model.layers.1.self_attn.q_proj.weight" in set(table.parameter)


def test_weights_that_do_not_correspond_are_refused():
    with pytest.raises(UnsupportedModel, match=r"layers\.2\..* is a parameter of LlamaForCausalLM only"):
        weight_change(llama(), llama(num_hidden_layers=3))
    with pytest.raises(UnsupportedModel, match=r"embed_tokens.weight has shape \(64, 32\) and \(70, 32\)"):
        weight_change(llama(), llama(vocab_size=70))


def test_the_same_sweep_on_both_finds_where_they_differ(tmp_path):
    """Two checkpoints that differ in one head's output weights: only that head's cells differ; a twin of itself
    nowhere.
    """
    one, same, other = (load(str(save("llama", tmp_path / str(i), seed=3))) for i in range(3))
    base, metric = torch.randint(5, 60, (4, 7)), logit_diff([7, 8, 9, 10], [11, 12, 13, 14])
    again = sweep_both(one, same, base, Zero(), metric, site="z", axes=("unit",))
    assert float(abs(again.data["difference"]).max()) == 0
    with torch.no_grad():
        other.live.original_model.model.layers[1].self_attn.o_proj.weight[:, 8:16] *= 3  # head 1 of layer 1
    changed = sweep_both(one, other, base, Zero(), metric, site="z", axes=("unit",))
    expected = (
        sweep(other, base, Zero(), metric, site="z", axes=("unit",)).data["value"]
        - sweep(one, base, Zero(), metric, site="z", axes=("unit",)).data["value"]
    )
    np.testing.assert_allclose(changed.data["difference"], expected, atol=1e-5)
    np.testing.assert_allclose(changed.data["mean"], expected.mean("example"), atol=1e-5)
    with pytest.raises(UnsupportedModel, match="n_kv_heads"):
        sweep_both(one, load(str(save("gpt2", tmp_path / "g"))), base, Zero(), metric, site="z", axes=("unit",))
