"""Digits: words and pixels say the same image, parts do not overlap, shifts lose nothing but the border."""

import numpy as np
import pytest

from workbench.datasets import digits as d


def test_an_image_worked_by_hand():
    image = np.zeros((1, 8, 8), np.int64)
    image[0, 0, :4] = [0, 6, 12, 16]  # first row: white, grey, black, black
    image[0, 1, 1] = 11
    tokens = d.to_tokens(image)
    assert [d.VOCABULARY[t] for t in tokens[0]] == ["<bos>", "0101", "2200", *["0000"] * 14]


def test_words_keep_the_grey_levels():
    part = d.digits("training")
    np.testing.assert_array_equal(d.to_levels(d.to_tokens(part.images)), np.digitize(part.images, d.EDGES))


def test_parts_cover_everything_once():
    parts = [d.digits(name) for name in d.PARTS]
    assert [len(p) for p in parts] == [719, 718, 360]
    assert sorted(np.concatenate([p.index for p in parts])) == list(range(1797))
    assert all(set(p.labels) == set(range(10)) for p in parts)


def test_an_unknown_part_is_refused():
    with pytest.raises(KeyError):
        d.digits("validation")


def test_pixels_are_the_ink():
    part = d.digits("test")
    pixels = d.to_pixels(part.images)
    assert pixels.shape == (360, 1, 8, 8) and pixels.dtype == np.float32
    np.testing.assert_allclose((pixels[:, 0] + 1) * 8, part.images)


def test_a_shift_moves_the_whole_image():
    part = d.digits("pretraining")
    moved = part.shifted(np.random.default_rng(0))
    for before, after in zip(part.images[:40], moved[:40], strict=True):
        big = np.pad(before, 1)
        assert any((after == big[r : r + 8, c : c + 8]).all() for r in range(3) for c in range(3))
    assert not (moved == part.images).all((1, 2)).all()


def test_pretraining_sees_only_its_part():
    drawn = d.sample(400, 17, np.random.default_rng(1))
    assert drawn.shape == (400, 17) and drawn.min() >= d.VOCABULARY.index("<bos>") and drawn.max() < len(d.VOCABULARY)
    source = d.digits("pretraining")
    padded = np.pad(source.images, ((0, 0), (1, 1), (1, 1)))
    possible = {
        d.to_tokens(padded[:, r : r + 8, c : c + 8])[i].tobytes()
        for r in range(3)
        for c in range(3)
        for i in range(len(source))
    }
    assert all(row.tobytes() in possible for row in drawn)
