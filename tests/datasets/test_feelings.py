"""Sentences about feelings: the label is what the words say, the hint agrees as often as stated, draws are fixed."""

import numpy as np

from workbench.datasets import feelings as f


def words(row):
    return [f.VOCABULARY[t] for t in row]


def feeling_of(word):
    return next(i for i, cues in enumerate(f.CUE_WORDS) if word in cues)


def test_words_are_unique_and_labels_follow_from_the_text():
    assert len(set(f.VOCABULARY)) == len(f.VOCABULARY)
    some = f.draw(200, np.random.default_rng(0))
    for row, label in zip(some.tokens, some.labels, strict=True):
        said = words(row)
        assert said[0] == "<bos>" and len(said) == f.LENGTH and said[3] == "felt"
        assert feeling_of(said[4]) == feeling_of(said[6]) == label


def test_the_last_word_agrees_as_often_as_stated():
    many = f.draw(20_000, np.random.default_rng(1))
    agrees = np.mean(
        [feeling_of(f.VOCABULARY[row[-1]]) == label for row, label in zip(many.tokens, many.labels, strict=True)]
    )
    assert abs(agrees - f.AGREEMENT) < 0.01


def test_common_words_come_by_zipfs_law():
    many = f.draw(20_000, np.random.default_rng(2))
    first = many.tokens[many.labels == 0, 4]
    counts = [(first == f.VOCABULARY.index(w)).sum() for w in f.CUE_WORDS[0]]
    assert 1.6 < counts[0] / counts[1] < 2.4 and 7 < counts[0] / counts[9] < 14


def test_classifiers_do_not_read_the_last_word():
    some = f.feelings("training", 50)
    assert all(text.endswith(" looked") and len(text.split()) == f.LENGTH - 2 for text in some.texts())


def test_draws_are_fixed_and_parts_differ():
    np.testing.assert_array_equal(f.feelings("training", 50).tokens, f.feelings("training", 50).tokens)
    a, b = (set(f.feelings(part, 300).texts()) for part in f.SEEDS)
    assert len(a & b) <= 1  # 192 surnames x 12 names x ...: a sentence hardly ever comes twice


def test_surnames_are_rare():
    text = f.feelings("training", 600).texts()
    _, counts = np.unique([t.split()[1] for t in text], return_counts=True)
    assert np.median(counts) <= 4
