"""Predictions agree with Hugging Face's own loss and with sums done by hand; batching, padding and chunks change no
number; refusals say why.
"""

import numpy as np
import pytest
import torch
from models.families import FAMILIES

from workbench.core.errors import BadData, NoTokenizer, UnsupportedModel
from workbench.core.progress import Progress
from workbench.core.result import Result
from workbench.datasets.bigram_backcopy import VOCABULARY
from workbench.models import load
from workbench.models.chat import prompt_rows
from workbench.models.inputs import prompt_ids
from workbench.organisms.tokenizer import word_tokenizer
from workbench.primitives.read import predictions as module
from workbench.primitives.read.predictions import predictions

WORDS = "apple beach bread brick cabin apple beach bread"


@pytest.fixture(scope="module")
def induction():
    return load("organism:induction")


@pytest.fixture(scope="module")
def masked():
    """A random masked language model whose tokenizer calls one of its words the mask."""
    tokenizer = word_tokenizer(VOCABULARY, add_bos=True)
    tokenizer.mask_token = "tower"
    torch.manual_seed(3)
    return load(FAMILIES["bert_mlm"](), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def found(induction):
    return predictions(induction, WORDS, top_k=6)


# ---- causal models ----


def test_loss_is_what_hugging_face_computes(induction, found):
    ids = torch.tensor(induction.to_rows(WORDS))
    logits = induction.forward(ids)[0].double()
    by_hand = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
    assert np.allclose(found.data["loss"][0, :-1], by_hand.numpy(), atol=1e-5)
    assert np.isnan(found.data["loss"][0, -1]), "nothing follows the last token"


def test_probabilities_ranks_and_entropy_are_those_of_the_softmax(induction, found):
    ids = torch.tensor(induction.to_rows(WORDS))
    probs = induction.forward(ids)[0].double().softmax(-1)
    data = found.data.isel(example=0)
    assert np.allclose(data["probability"], probs.sort(-1, descending=True).values[:, :6].numpy(), atol=1e-6)
    assert np.allclose(data["probability"], probs.gather(-1, torch.tensor(data["token_id"].values)).numpy(), atol=1e-6)
    assert np.allclose(data["entropy"], -(probs * probs.log()).sum(-1).numpy(), atol=1e-5)
    likelier = [int((probs[p] > probs[p, ids[0, p + 1]]).sum()) for p in range(ids.shape[1] - 1)]
    assert data["actual_rank"].values[:-1].tolist() == likelier


def test_a_repeated_word_is_foreseen(induction, found):
    """What the organism is for: at the second "apple" it expects "beach" again."""
    at = 6  # <bos> apple beach bread brick cabin [apple]
    assert found.data["read"].values[0, at] == "apple" and found.data["token"].values[0, at, 0] == "beach"
    assert found.data["loss"].values[0, at] < 0.2 < found.data["loss"].values[0, 1]


def test_several_prompts_are_each_what_they_are_alone(induction):
    texts = [WORDS, "apple beach", "cabin brick apple cabin brick"]
    together = predictions(induction, texts, batch_size=2).data
    for i, text in enumerate(texts):
        alone, n = predictions(induction, text).data, int(together["n_tokens"][i])
        assert alone.sizes["pos"] == n
        for name in ("loss", "entropy", "probability", "token_id", "read_id"):
            assert np.allclose(together[name].values[i, :n], alone[name].values[0], atol=1e-5, equal_nan=True), name
        assert (
            np.isnan(together["loss"].values[i, n:]).all()
            and (together["read_id"].values[i, n:] == -1).all()
            and (together["read"].values[i, n:] == "").all()
        )


def test_text_ids_rows_and_tensors_are_the_same_prompt(induction, found):
    row = induction.to_rows(WORDS)[0]
    for prompt in (row, [row], torch.tensor(row), torch.tensor([row]), [WORDS]):
        assert predictions(induction, prompt, top_k=6).data.identical(found.data)


def test_reading_the_logits_in_parts_changes_nothing(induction, found, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 2)
    assert predictions(induction, WORDS, top_k=6).data.identical(found.data)


def test_more_than_the_vocabulary_is_the_vocabulary_and_sums_to_one(induction):
    data = predictions(induction, WORDS, top_k=1000).data
    assert data.sizes["rank"] == induction.d_vocab and np.allclose(data["probability"].sum("rank"), 1, atol=1e-5)


def test_it_says_whether_bos_is_there(induction, found):
    bare = induction.to_rows(WORDS, bos=False)
    assert found.data.attrs["bos"] == "in front" and predictions(induction, bare).data.attrs["bos"] == "none in front"
    assert predictions(induction, [*bare, *induction.to_rows(WORDS)]).data.attrs["bos"] == "some"


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "opt", "mixtral"])
def test_every_family_of_decoders_is_read(family, tiny_models):
    model = load(str(tiny_models[family]))
    row = [1, 8, 9, 10, 8]
    data = predictions(model, row).data
    log_probs = model.forward(torch.tensor([row]))[0].float().log_softmax(-1)
    assert np.allclose(data["loss"][0, :-1], -log_probs[range(4), row[1:]].numpy(), atol=1e-5)


def test_a_result_survives_its_folder(found, tmp_path):
    back = Result.load(found.save(tmp_path / "r")).data
    assert back["token"].values.tolist() == found.data["token"].values.tolist() and np.array_equal(
        back["loss"], found.data["loss"], equal_nan=True
    )
    assert all(v.attrs["unit"] and v.attrs["long_name"] for v in found.data.data_vars.values())


# ---- chats ----


def test_the_chat_template_is_applied_only_where_asked(tiny_models):
    model = load(str(tiny_models["llama"]))
    model.tokenizer.chat_template = (
        "{% for m in messages %}again {{ m.content }} {% endfor %}{% if add_generation_prompt %}echo{% endif %}"
    )
    plain, chat = (
        predictions(model, "lamp river").data,
        predictions(model, prompt_rows(model.tokenizer, ["lamp river"])).data,
    )
    assert plain["read"].values[0].tolist() == ["<bos>", "lamp", "river"]
    assert [t for t in chat["read"].values[0].tolist() if t != "<bos>"] == ["again", "lamp", "river", "echo"]


def test_without_a_template_a_chat_is_refused(induction):
    with pytest.raises(NoTokenizer, match="chat template"):
        prompt_rows(induction.tokenizer, ["lamp"])


# ---- masked language models ----


def test_a_masked_model_is_asked_with_one_position_masked(masked):
    row = masked.to_rows("lamp river lamp")[0]
    result = predictions(masked, [row], batch_size=3)
    assert result.data.attrs["offset"] == 0 and "masked language model" in result.warnings[0]
    for pos in range(len(row)):
        hidden = [masked.tokenizer.mask_token_id if i == pos else t for i, t in enumerate(row)]
        log_probs = masked.forward(torch.tensor([hidden]))[0, pos].float().log_softmax(-1)
        assert float(result.data["loss"][0, pos]) == pytest.approx(-float(log_probs[row[pos]]), abs=1e-5)


def test_at_a_mask_of_the_prompt_there_is_a_prediction_and_no_loss(masked):
    data = predictions(masked, "lamp tower river").data
    at = data["read"].values[0].tolist().index("tower")
    assert np.isnan(data["loss"][0, at]) and np.isfinite(data["probability"][0, at]).all()
    assert np.isfinite(data["loss"].values[0]).sum() == int(data["n_tokens"][0]) - 1


def test_a_masked_model_without_a_mask_is_refused(tiny_models):
    with pytest.raises(UnsupportedModel, match="no tokenizer names its mask"):
        predictions(load(str(tiny_models["bert_mlm"])), [1, 2, 3])


@pytest.mark.parametrize(
    ("family", "kind"), [("bert", "encoder"), ("bert_classifier", "classifier"), ("vit", "image-classifier")]
)
def test_models_that_predict_no_tokens_are_refused(family, kind, tiny_models):
    with pytest.raises(UnsupportedModel, match=f"a causal-lm or a masked-lm, and .* is of kind {kind}"):
        predictions(load(str(tiny_models[family])), [1, 2, 3])


# ---- refusals, cancel ----


def test_a_prompt_longer_than_the_context_is_refused_before_any_forward(induction, monkeypatch):
    monkeypatch.setattr(type(induction), "forward", lambda *a, **k: pytest.fail("ran"))
    with pytest.raises(BadData, match=r"prompt 1 has 70 tokens, more than the context of organism:induction \(64\)"):
        predictions(induction, [[1, 2], [7] * 70])


@pytest.mark.parametrize("prompts", [[], [[]], [[1], []]], ids=["none", "empty", "one empty"])
def test_an_empty_prompt_is_refused(prompts, induction):
    with pytest.raises(BadData, match=r"no prompts|no tokens"):
        predictions(induction, prompts)


def test_no_tokens_to_keep_is_refused(induction):
    with pytest.raises(BadData, match="at least 1; got 0"):
        predictions(induction, WORDS, top_k=0)


def test_without_a_tokenizer_ids_are_read_from_text_and_words_refused(tiny_models):
    model = load(str(tiny_models["gemma2"]))
    assert prompt_ids(model, "1 5, 7") == [1, 5, 7]
    assert predictions(model, "1 5 7").data["read"].values[0].tolist() == ["1", "5", "7"]
    with pytest.raises(BadData, match=r"cannot read 'apple'; write token ids such as '1 5 7', from 0 to 63"):
        predictions(model, "apple")


class StopAfter(Progress):
    """Cancels itself once `n` steps are done."""

    def __init__(self, n: int):
        super().__init__()
        self.n = n

    def show(self):
        if self.done >= self.n:
            self.cancel()


def test_a_cancelled_run_keeps_what_it_has(induction):
    texts = ["apple", "apple beach", "apple beach bread"]
    cut = predictions(induction, texts, batch_size=1, progress=StopAfter(1))
    whole = predictions(induction, texts, batch_size=1)
    n = whole.data["n_tokens"].values
    there = [bool(np.isfinite(cut.data["entropy"].values[i, : n[i]]).all()) for i in range(3)]
    assert cut.partial and not whole.partial and 0 < sum(there) < 3
    for i in np.flatnonzero(there):
        assert np.array_equal(cut.data["entropy"].values[i], whole.data["entropy"].values[i], equal_nan=True)


def test_cancelled_after_the_last_forward_nothing_is_missing(induction):
    assert not predictions(induction, ["apple", "apple beach"], batch_size=1, progress=StopAfter(1)).partial


def test_no_hook_is_left_behind(induction, found):
    assert not [name for name, point in induction.live.hook_dict.items() if point.fwd_hooks]
