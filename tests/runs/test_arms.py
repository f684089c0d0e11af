"""Matched random sets: as many of each group, and others as long as there are any."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.runs.arms import Arm, chance_overlap, matched


@settings(deadline=None, database=None)
@given(
    chosen=st.lists(st.booleans(), min_size=1, max_size=40),
    cut=st.integers(0, 40),
    avoid=st.booleans(),
    seed=st.integers(0, 99),
)
def test_as_many_of_each_group_are_drawn(chosen, cut, avoid, seed):
    chosen, cut = np.array(chosen), min(cut, len(chosen))
    groups = [np.arange(cut), np.arange(cut, len(chosen))]
    drawn = matched(chosen, groups, np.random.default_rng(seed), avoid=avoid)
    for group in groups:
        assert drawn[group].sum() == chosen[group].sum()
        if avoid:  # the overlap is only what cannot be helped
            assert (drawn & chosen)[group].sum() == max(0, 2 * chosen[group].sum() - len(group))


def test_all_members_are_drawn_equally_often():
    chosen, rng = np.array([True, False, False, False]), np.random.default_rng(0)
    free = np.mean([matched(chosen, [np.arange(4)], rng, avoid=False) for _ in range(2000)], 0)
    kept = np.mean([matched(chosen, [np.arange(4)], rng) for _ in range(2000)], 0)
    assert free == pytest.approx(0.25, abs=0.04) and kept[0] == 0 and kept[1:] == pytest.approx(1 / 3, abs=0.05)


def test_an_arm_is_of_the_method_unless_it_says_otherwise():
    assert Arm("x").kind == "method" and Arm("x", "control", "y").follows == "y"


def test_chance_overlap_is_that_of_random_sets():
    half = np.arange(1000) < 500
    found = chance_overlap(half, half, [np.arange(1000)], np.random.default_rng(0))
    assert found == pytest.approx(1 / 3, abs=0.01)  # n/4 over 3n/4
    nobody = np.zeros(4, bool)
    assert np.isnan(chance_overlap(nobody, nobody, [np.arange(4)], np.random.default_rng(0), 2))
