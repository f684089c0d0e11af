"""The shared statistics agree with their formulas on cases done by hand, and with each other's limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.primitives.score.statistics import (
    bootstrap_interval,
    intersection_over_union,
    last_crossing,
    normalised_auc,
)
from workbench.runs.seeds import student_interval

CURVE = st.lists(st.floats(-5, 5), min_size=2, max_size=8)


def test_the_interval_of_a_constant_is_the_constant():
    assert bootstrap_interval(np.full(20, 3.5)) == (3.5, 3.5)


def test_the_interval_covers_as_often_as_it_says():
    """90 % intervals of the mean of 40 normal numbers hold the true mean in about 90 % of 300 draws."""
    rng = np.random.default_rng(0)
    hits = sum(
        low <= 1.0 <= high
        for low, high in (
            bootstrap_interval(rng.normal(1.0, 2.0, 40), level=0.9, n_draws=400, seed=i) for i in range(300)
        )
    )
    assert 0.84 <= hits / 300 <= 0.95


def test_the_interval_has_the_width_of_the_normal_approximation():
    values = np.random.default_rng(1).normal(size=500)
    low, high = bootstrap_interval(values, n_draws=4000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(500), rel=0.1)
    assert low < values.mean() < high


def test_the_interval_follows_its_seed_and_level():
    values = np.random.default_rng(2).normal(size=30)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    narrow, wide = bootstrap_interval(values, level=0.5), bootstrap_interval(values, level=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@pytest.mark.parametrize("only", [0, 1, 2])
def test_every_value_is_drawn(only):
    """One in three values is 1: a sample of three holds none of it in 8 of 27 draws, and three times in 1 of 27."""
    values = np.zeros(3)
    values[only] = 1.0
    assert bootstrap_interval(values, level=0.98) == (0.0, 1.0)
    assert bootstrap_interval(values, level=0.9) == (0.0, pytest.approx(2 / 3))


def test_an_interval_without_settings_is_the_documented_one():
    values = np.random.default_rng(4).normal(size=25)
    assert bootstrap_interval(values) == bootstrap_interval(values, level=0.95, n_draws=2000, seed=0)


@pytest.mark.parametrize(
    ("y", "level", "wanted"),
    [
        ([10, 10, 8, 6], 9, 1.5),  # falls through half-way between 1 and 2
        ([10, 8, 10, 8], 9, 2.5),  # the last of two crossings
        ([10, 10, 10, 10], 9, 3.0),  # never falls
        ([10, 10, 9, 8], 9, 2.0),  # touches at a point
        ([8, 8, 8, 8], 9, 0.0),  # never reaches
        ([8, 8, 8, 9], 9, 3.0),  # reaches at the end
    ],
)
def test_last_crossing_by_hand(y, level, wanted):
    x = np.arange(4)
    assert last_crossing(x, np.array(y), level) == pytest.approx(wanted)
    shuffled = np.array([2, 0, 3, 1])
    assert last_crossing(x[shuffled], np.array(y)[shuffled], level) == pytest.approx(wanted)


@settings(max_examples=60, deadline=None)
@given(CURVE, st.floats(-5, 5))
def test_the_curve_is_at_the_level_where_it_crosses_and_below_after(y, level):
    x, y = np.arange(len(y), dtype=float), np.array(y)
    at = last_crossing(x, y, level)
    if (y >= level).any():
        assert np.interp(at, x, y) >= level - 1e-6
        assert (y[x > at + 1e-9] < level).all()
    else:
        assert at == 0.0


def test_normalised_auc_by_hand():
    assert normalised_auc(np.array([0.0, 1.0, 3.0]), np.array([1.0, 3.0, 3.0])) == pytest.approx((2 * 1 + 3 * 2) / 3)
    assert normalised_auc(np.array([3.0, 0.0, 1.0]), np.array([3.0, 1.0, 3.0])) == pytest.approx(8 / 3)
    assert normalised_auc(np.array([0.2]), np.array([7.0])) == 7.0
    assert normalised_auc(np.array([0.2, 0.2]), np.array([7.0, 7.0])) == 7.0


@settings(max_examples=60, deadline=None)
@given(CURVE, st.floats(-3, 3), st.floats(0.1, 3))
def test_the_mean_height_ignores_where_the_axis_starts_and_how_it_is_scaled(y, shift, scale):
    x, y = np.arange(len(y), dtype=float), np.array(y)
    area = normalised_auc(x, y)
    assert y.min() - 1e-9 <= area <= y.max() + 1e-9
    assert normalised_auc(x * scale + shift, y) == pytest.approx(area, abs=1e-6)


def test_intersection_over_union_by_hand():
    a, b = np.array([[True, True], [False, False]]), np.array([[True, False], [True, False]])
    assert intersection_over_union(a, b) == intersection_over_union(b, a) == pytest.approx(1 / 3)
    assert intersection_over_union(a, a) == 1.0
    assert intersection_over_union(a, ~a) == 0.0
    assert np.isnan(intersection_over_union(a & False, b & False))


def test_students_interval_by_hand():
    low, high = student_interval(np.array([1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx((2 - 4.302653 / np.sqrt(3), 2 + 4.302653 / np.sqrt(3)), rel=1e-5)
    assert (
        np.isnan(student_interval(np.array([1.0]))).all()
        and np.isnan(student_interval(np.array([1.0, np.nan, 3.0]))).all()
    )
