"""Rows become batches and come back in order, padding on either side changes no number, and BOS is there exactly
when asked.
"""

import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from models.families import DECODERS, FAMILIES, GPT2, GQA, NO_SPECIAL, SIZE, WITH_TOKENIZER
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from workbench.core.errors import BadData, WorkbenchError
from workbench.models import load
from workbench.models.inputs import Batch, batches, pad, prompt_ids, token_words

ROWS = st.lists(st.lists(st.integers(0, 63), min_size=1, max_size=6), min_size=1, max_size=12)
LENGTHS = (3, 8, 5, 1)
TOKEN_CLASSIFIERS = [
    (tf.BertForTokenClassification, lambda: tf.BertConfig(**SIZE, num_labels=3)),
    (tf.GPT2ForTokenClassification, lambda: tf.GPT2Config(**GPT2 | NO_SPECIAL | {"num_labels": 3})),
    (tf.LlamaForTokenClassification, lambda: tf.LlamaConfig(**GQA | NO_SPECIAL | {"num_labels": 3})),
]


def some_rows(seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [[1, *torch.randint(6, 64, (n,), generator=generator).tolist()] for n in LENGTHS]


# ---- batches ----


def unpadded(batch: Batch) -> list[list[int]]:
    return [row[real].tolist() for row, real in zip(batch.tokens, batch.mask, strict=True)]


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 5), st.booleans(), st.sampled_from(["left", "right"]))
def test_index_restores_every_row_in_order(rows, batch_size, equal_lengths, side):
    back: dict[int, list[int]] = {}
    for batch in batches(rows, batch_size, equal_lengths=equal_lengths, side=side):
        assert 1 <= len(batch.index) <= batch_size
        back |= dict(zip(batch.index.tolist(), unpadded(batch), strict=True))
    assert [back[i] for i in range(len(rows))] == rows


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 5))
def test_equal_lengths_pad_nothing_and_fill_batches(rows, batch_size):
    made = list(batches(rows, batch_size))
    assert not any(batch.is_padded for batch in made)
    by_length = {n: sum(len(row) == n for row in rows) for n in {len(row) for row in rows}}
    assert len(made) == sum(-(-count // batch_size) for count in by_length.values())


@settings(max_examples=60, deadline=None)
@given(ROWS, st.sampled_from(["left", "right"]), st.integers(0, 63))
def test_padding_goes_to_its_side_and_is_masked(rows, side, pad_id):
    batch = pad(rows, pad_id, side)
    assert batch.lengths.tolist() == [len(row) for row in rows]
    assert bool((batch.tokens[~batch.mask] == pad_id).all())
    edge = batch.mask[:, -1] if side == "left" else batch.mask[:, 0]
    assert bool(edge.all())
    assert batch.is_padded == (len({len(row) for row in rows}) > 1)


# ---- padding = alone ----


def largest_difference(model, rows, side: str) -> float:
    """Between the outputs of a padded batch at real positions and of each row alone."""
    batch = pad(rows, model.pad_id, side)
    assert batch.is_padded
    together, worst = model.forward(batch), 0.0
    for i, row in enumerate(rows):
        alone = model.forward(torch.tensor([row]))[0]
        found = together[i][batch.mask[i]] if together.ndim == 3 else together[i]
        worst = max(worst, float((found - alone).abs().max()))
    return worst


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "vit"])
def test_padded_equals_alone(family, side, tiny_models):
    """Learned positions (gpt2, opt, bert) and rotary ones; language models, encoders and heads kept outside the
    bridge.
    """
    model = load(str(tiny_models[family]))
    if (family, side) == ("bert_classifier", "left"):  # it classifies by what stands first, which would be padding
        with pytest.raises(BadData, match="pad on the right"):
            model.forward(pad(some_rows(), 0, side))
    else:
        assert largest_difference(model, some_rows(), side) < 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("head", ["Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"])
def test_padded_equals_alone_where_positions_do_not_start_at_zero(head, side):
    """RoBERTa counts positions from padding_idx + 1."""
    config = tf.RobertaConfig(
        **SIZE | {"pad_token_id": 0, "bos_token_id": 1, "num_labels": 3, "max_position_embeddings": 60}
    )
    model = load(getattr(tf, f"Roberta{head}")(config))
    try:
        assert largest_difference(model, some_rows(), side) < 1e-4
    except BadData as refused:
        assert (head, side) == ("ForSequenceClassification", "left") and "pad on the right" in str(refused)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("module", "settings"), TOKEN_CLASSIFIERS, ids=["bert", "gpt2", "llama"])
def test_padded_equals_alone_for_a_label_per_token(module, settings, side):
    model = load(module(settings()))
    assert model.forward(torch.tensor(some_rows()[:1])).shape == (1, LENGTHS[0] + 1, 3)
    assert largest_difference(model, some_rows(), side) < 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad_token_id", [0, 5, None])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_decoder_classifier_reads_its_last_real_token_whatever_its_pad_id(family, pad_token_id, side):
    """transformers finds the last token by config.pad_token_id, not by the mask: the two must agree or the call be
    refused.
    """
    common = NO_SPECIAL | {"pad_token_id": pad_token_id, "num_labels": 3}
    gpt2 = family == "gpt2"
    model = load(
        tf.GPT2ForSequenceClassification(tf.GPT2Config(**GPT2 | common))
        if gpt2
        else tf.LlamaForSequenceClassification(tf.LlamaConfig(**GQA | common))
    )
    try:
        assert largest_difference(model, some_rows(), side) < 1e-4
    except WorkbenchError as refused:
        assert "pad" in str(refused)


@pytest.mark.parametrize("family", DECODERS)
def test_a_mask_given_apart_equals_a_batch(family, tiny_models):
    model, batch = load(str(tiny_models[family])), pad(some_rows(), 0, "left")
    assert torch.equal(model.forward(batch.tokens, mask=batch.mask), model.forward(batch))


# ---- text ----


@pytest.fixture(scope="module")
def speaking(tiny_models) -> dict:
    return {family: load(str(tiny_models[family])) for family in WITH_TOKENIZER}


@pytest.mark.parametrize("family", WITH_TOKENIZER)
def test_bos_is_there_exactly_when_asked(family, speaking):
    """The same on every architecture: TransformerLens's own to_tokens is not."""
    model = speaking[family]
    bos, words = model.tokenizer.bos_token_id, ["lamp again lamp", "river"]
    with_bos, without, own = (model.to_rows(words, bos=wanted) for wanted in (True, False, None))
    assert with_bos == [[bos, *row] for row in without]
    assert own == with_bos, "this tokenizer puts <bos> in front by itself"
    assert not any(bos in row for row in without)
    assert model.to_strings(without[0]) == ["lamp", "again", "lamp"]


def test_bos_none_leaves_it_to_the_tokenizer(speaking):
    from workbench.datasets.bigram_backcopy import VOCABULARY
    from workbench.organisms.tokenizer import word_tokenizer

    model = load(FAMILIES["gpt2"](), tokenizer=word_tokenizer(VOCABULARY, add_bos=False))
    assert model.to_rows("lamp river") == model.to_rows("lamp river", bos=False)
    assert model.to_rows("lamp river", bos=True) == speaking["gpt2"].to_rows("lamp river", bos=True)


def test_text_that_opens_with_bos_already_does_not_get_a_second(speaking):
    model = speaking["gpt2"]
    assert model.to_rows("<bos> lamp", bos=True) == model.to_rows("lamp", bos=True)


def test_one_text_or_several(speaking):
    model = speaking["gpt2"]
    assert model.to_rows("lamp") == model.to_rows(["lamp"])
    assert model.to_rows([]) == []


def test_an_empty_text_without_bos_cannot_be_batched(speaking):
    with pytest.raises(BadData, match="at least one token"):
        list(batches(speaking["gpt2"].to_rows(["lamp", ""], bos=False), 2))


def test_ids_stand_for_themselves_without_a_tokenizer(tiny_models):
    assert load(str(tiny_models["gemma2"])).to_strings([5, 6]) == ["5", "6"]


class _Pieces:
    """A tokenizer by its pieces, whose decoder takes the space in front, as SentencePiece's does."""

    PIECES = ("▁the", "the", "▁", "▁▁▁", "x▁y", "<s>", "\x1b", "\n", "\x7f\x00")

    def convert_ids_to_tokens(self, token):
        return self.PIECES[token]

    def decode(self, ids):
        return "".join(self.PIECES[i] for i in ids).replace("▁", " ").removeprefix(" ")


def test_token_words_keep_their_space_and_write_control_characters_out():
    assert token_words(_Pieces(), range(9)) == [" the", "the", " ", "   ", "x y", "<s>", r"\x1b", "\n", r"\x7f\x00"]


def test_token_words_of_a_sentencepiece_tokenizer_join_to_the_text():
    text = " the cat sat on the mat, the cats"
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.train_from_iterator([text] * 3, trainers.BpeTrainer(vocab_size=60, show_progress=False))
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=made)
    ids = tokenizer(text)["input_ids"]
    assert "".join(token_words(tokenizer, ids)) == text
    assert len(set(token_words(tokenizer, range(len(tokenizer))))) == len(tokenizer), "no two tokens read the same"


def test_ids_are_read_as_they_are_typed_where_there_is_no_tokenizer(gpt2_alone):
    assert prompt_ids(gpt2_alone, "5 6, 7") == [5, 6, 7]
    for text in ("five", f"5 {gpt2_alone.d_vocab}", "-1"):
        with pytest.raises(BadData, match="write token ids such as '1 5 7', from 0 to"):
            prompt_ids(gpt2_alone, text)


@pytest.fixture(scope="module")
def gpt2_alone():
    """A small model that came without a tokenizer."""
    sizes = {"vocab_size": 97, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 32}
    return load(tf.GPT2LMHeadModel(tf.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad_id", [0, 1, 99])
def test_what_stands_in_the_padding_does_not_matter(side, pad_id):
    """RoBERTa counts positions by its own padding id, and 99 is an id that the embedding does not have."""
    from models.architectures import loaded

    model, rows = loaded("RoBERTa"), [[5, 6, 7], [5, 6, 7, 8, 9, 10]]
    batch = pad(rows, pad_id, side)
    found = model.forward(batch)[0][batch.mask[0]]
    torch.testing.assert_close(found, model.forward(torch.tensor(rows[:1]))[0], atol=1e-5, rtol=1e-5)


def test_an_unknown_id_that_is_no_padding_is_still_refused():
    from models.architectures import loaded

    model, batch = loaded("GPT-2"), pad([[5, 99, 7], [5, 6, 7, 8]], 99)
    with pytest.raises(BadData, match="token id 99 is outside"):
        model.forward(batch)
