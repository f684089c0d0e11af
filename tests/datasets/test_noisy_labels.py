"""Noise: as many samples as asked, of one class, always wrong, uniformly so; refusals say what would work."""

import numpy as np
import pytest

from workbench.core.errors import BadData
from workbench.datasets.noisy_labels import add_noise

LABELS = np.repeat(np.arange(6), [400, 300, 200, 100, 150, 450])


def test_the_papers_count():
    """1 % of 16,000 is 160, the number its percentages fit."""
    labels = np.arange(16_000) % 6
    assert len(add_noise(labels, 6, rate=0.01, noisy_class=5, seed=0).noisy) == 160


@pytest.mark.parametrize("rate", [0.01, 0.02, 0.05])
def test_noise_is_in_one_class_and_always_wrong(rate):
    noise = add_noise(LABELS, 6, rate=rate, noisy_class=5, seed=3)
    assert len(noise.noisy) == round(rate * len(LABELS))
    assert (noise.true[noise.noisy] == 5).all() and (noise.trained[noise.noisy] != 5).all()
    np.testing.assert_array_equal(noise.true, LABELS)
    np.testing.assert_array_equal(noise.trained[~noise.is_noisy], LABELS[~noise.is_noisy])


def test_wrong_labels_are_uniform():
    noise = add_noise(np.repeat([0, 1, 2, 3], 5000), 4, rate=0.2, noisy_class=2, seed=0)
    counts = np.bincount(noise.trained[noise.noisy], minlength=4)
    assert counts[2] == 0 and counts.sum() == 4000 and abs(counts[[0, 1, 3]] - 4000 / 3).max() < 120


def test_the_largest_class_is_taken_if_none_is_named():
    assert set(LABELS[add_noise(LABELS, 6, rate=0.05, noisy_class=None, seed=0).noisy]) == {5}


def test_a_seed_gives_the_same_noise_and_another_another():
    a, b, c = (add_noise(LABELS, 6, rate=0.05, noisy_class=5, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(a.trained, b.trained)
    assert (a.trained != c.trained).any()


def test_no_noise_changes_nothing():
    noise = add_noise(LABELS, 6, rate=0.0, noisy_class=5, seed=0)
    assert len(noise.noisy) == 0 and not noise.is_noisy.any()


def test_a_class_that_is_too_small_names_a_rate_that_works():
    with pytest.raises(BadData, match=r"asks for 160 samples of class 3, which has 100; a rate up to 0\.0625 works"):
        add_noise(LABELS, 6, rate=0.1, noisy_class=3, seed=0)
    assert len(add_noise(LABELS, 6, rate=0.0625, noisy_class=3, seed=0).noisy) == 100


def test_a_class_that_is_not_there():
    with pytest.raises(BadData, match="numbered 0 to 5"):
        add_noise(LABELS, 6, rate=0.01, noisy_class=6, seed=0)
