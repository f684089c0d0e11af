"""Sequences of the bigram-backcopy language repeat the word before each trigger and follow the chain everywhere
else.
"""

import numpy as np
import pytest

from workbench.datasets.bigram_backcopy import SPECIAL, TRIGGERS, VOCABULARY, WORDS, BigramBackcopy, is_trigger

FIRST_WORD = len(SPECIAL) + len(TRIGGERS)
BOS = VOCABULARY.index("<bos>")


def sample(language: BigramBackcopy, n: int = 200, length: int = 64, seed: int = 0) -> np.ndarray:
    return language.sample(n, length, np.random.default_rng(seed))


@pytest.fixture(params=[True, False], ids=["with <bos>", "without <bos>"])
def language(request) -> BigramBackcopy:
    return BigramBackcopy(with_bos=request.param)


def test_the_vocabulary_has_each_word_once():
    assert len(set(VOCABULARY)) == len(VOCABULARY) == len(SPECIAL) + len(TRIGGERS) + len(WORDS)


def test_after_a_trigger_the_word_before_it_comes_again(language):
    tokens = sample(language)
    row, at = np.nonzero(is_trigger(tokens[:, :-1]))
    assert len(row) > 500
    assert (tokens[row, at + 1] == tokens[row, at - 1]).all()


def test_everywhere_else_the_next_word_is_a_successor_in_the_chain(language):
    tokens = sample(language)
    start = 1 if language.with_bos else 0
    now, after = tokens[:, start:-1], tokens[:, start + 1 :]
    free = ~is_trigger(now)
    assert (language.transitions[now[free], after[free]] > 0).all()


def test_frequencies_are_those_of_the_chain(language):
    tokens = sample(language, 3000)
    start = 1 if language.with_bos else 0
    now, after = tokens[:, start:-1].ravel(), tokens[:, start + 1 :].ravel()
    word = int(np.bincount(now[now >= FIRST_WORD]).argmax())
    follows = after[now == word]
    assert len(follows) > 2000
    observed = np.bincount(follows, minlength=len(VOCABULARY)) / len(follows)
    assert np.abs(observed - language.transitions[word]).max() < 4 * np.sqrt(0.25 / len(follows))


def test_rows_of_the_chain_are_distributions_and_only_words_have_one(language):
    table = language.transitions
    assert table[FIRST_WORD:].sum(1) == pytest.approx(np.ones(len(WORDS)))
    assert not table[:FIRST_WORD].any()
    assert not table[:, : len(SPECIAL)].any()
    assert ((table[:, FIRST_WORD:] > 0).sum(1)[FIRST_WORD:] == 4).all()
    assert table[FIRST_WORD:, len(SPECIAL) : FIRST_WORD].sum(1) == pytest.approx(
        np.full(len(WORDS), language.trigger_rate)
    )


def test_bos_opens_and_never_comes_again(language):
    tokens = sample(language)
    assert tokens.shape == (200, 64)
    if language.with_bos:
        assert (tokens[:, 0] == BOS).all()
        tokens = tokens[:, 1:]
    assert (tokens >= len(SPECIAL)).all()
    assert (tokens < len(VOCABULARY)).all()
    assert (tokens[:, 0] >= FIRST_WORD).all(), "a sequence opens with a word, not with a trigger"


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_triggers_come_at_their_rate(rate):
    tokens = sample(BigramBackcopy(trigger_rate=rate))[:, 1:]
    after_word = tokens[:, 1:][~is_trigger(tokens[:, :-1])]
    assert is_trigger(after_word).mean() == pytest.approx(rate, abs=0.02)


def test_the_seed_settles_the_sample_and_the_chain_seed_the_language(language):
    assert np.array_equal(sample(language, seed=5), sample(language, seed=5))
    assert not np.array_equal(sample(language, seed=5), sample(language, seed=6))
    assert np.array_equal(language.transitions, BigramBackcopy(with_bos=language.with_bos).transitions)
    assert not np.array_equal(language.transitions, BigramBackcopy(chain_seed=1).transitions)


def test_what_counts_as_predictable_and_as_repeated(language):
    tokens = sample(language, 20)
    predictable, repeated = language.predictable(tokens), language.repeated(tokens)
    assert predictable.shape == repeated.shape == (20, 63)
    assert predictable.sum() == 20 * (62 if language.with_bos else 63)
    assert np.array_equal(repeated, is_trigger(tokens)[:, :-1])
    assert (predictable | ~repeated).all()


@pytest.mark.parametrize("length", [2, 3])
def test_short_sequences(language, length):
    assert sample(language, 5, length).shape == (5, length)
