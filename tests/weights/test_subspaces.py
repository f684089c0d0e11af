"""Singular subspaces: factors give what the full matrix gives, angles are scipy's and those built in, chance is what
random matrices do.
"""

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

from workbench.core.errors import BadData
from workbench.weights import subspaces
from workbench.weights.subspaces import (
    Chance,
    chance,
    chance_of_factors,
    chance_within,
    expected_overlap,
    expected_overlap_within,
    overlap,
    principal_angles,
    row_space,
    singular_of_factors,
    singular_of_matrix,
)


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def basis(d, k, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, k)))[0]


# ---- finding them ----


def test_a_matrix_is_its_triples_and_the_sides_are_not_swapped():
    matrix = gaussian(5, 9)
    found = singular_of_matrix(matrix)
    np.testing.assert_allclose(found.left * found.values @ found.right.T, matrix.numpy(), atol=1e-12)
    assert found.left.shape == (5, 5) and found.right.shape == (9, 5) and found.rank == 5
    writes, reads = torch.zeros(5), torch.zeros(9)
    writes[3], reads[7] = 1, 2
    one = singular_of_matrix(torch.outer(writes, reads))
    assert (
        abs(one.left_basis(1)[3, 0]) == pytest.approx(1)
        and abs(one.right_basis(1)[7, 0]) == pytest.approx(1)
        and one.rank == 1
    )


def test_fewer_vectors_are_kept_and_all_values():
    whole, few = singular_of_matrix(gaussian(6, 8)), singular_of_matrix(gaussian(6, 8), keep=2)
    assert few.left.shape == (6, 2) and few.right.shape == (8, 2)
    np.testing.assert_array_equal(few.values, whole.values)
    with pytest.raises(BadData, match="2 vectors were kept; choose k between 1 and 2"):
        few.right_basis(3)


@pytest.mark.parametrize(
    ("out", "inn", "r", "scale"),
    [(30, 20, 4, 2.0), (20, 30, 4, -0.5), (12, 12, 12, 1.0), (5, 40, 8, 1.0)],
    ids=["tall", "wide, negative", "full", "rank above a side"],
)
def test_factors_give_the_subspaces_of_the_full_matrix(out, inn, r, scale):
    A, B = gaussian(r, inn, seed=1), gaussian(out, r, seed=2)
    full, thin = singular_of_matrix(scale * B @ A), singular_of_factors(A, B, scale)
    n = min(r, out, inn)
    np.testing.assert_allclose(thin.values[:n], full.values[:n], rtol=1e-10)
    np.testing.assert_allclose((thin.left * thin.values) @ thin.right.T, (scale * B @ A).numpy(), atol=1e-10)
    assert thin.rank == full.rank == n
    for k in (1, n - 1, n):
        for thin_basis, full_basis in (
            (thin.right_basis(k), full.right_basis(k)),
            (thin.left_basis(k), full.left_basis(k)),
        ):
            np.testing.assert_allclose(thin_basis.T @ thin_basis, np.eye(k), atol=1e-12)
            assert overlap(thin_basis, full_basis) == pytest.approx(1, abs=1e-10)


def test_the_full_matrix_of_factors_is_never_formed(monkeypatch):
    largest = []
    real = torch.linalg.svd
    monkeypatch.setattr(
        torch.linalg, "svd", lambda matrix, **options: (largest.append(matrix.shape), real(matrix, **options))[1]
    )
    singular_of_factors(gaussian(4, 3000, seed=1), gaussian(5000, 4, seed=2))
    assert largest == [(4, 4)]


def test_half_precision_is_decomposed_in_double():
    matrix = gaussian(8, 8, dtype=torch.bfloat16)
    found = singular_of_matrix(matrix)
    assert found.values.dtype == np.float64
    np.testing.assert_allclose(found.left * found.values @ found.right.T, matrix.double().numpy(), atol=1e-12)


def test_a_subspace_beyond_the_rank_is_refused():
    found = singular_of_factors(
        gaussian(3, 20, seed=1),
        gaussian(30, 3, seed=2) @ torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)),
    )
    assert found.rank == 2
    with pytest.raises(
        BadData,
        match=(
            r"leading 3 singular directions of a 30 x 20 matrix are not there: its rank is 2; choose k between 1 and 2"
        ),
    ):
        found.right_basis(3)
    with pytest.raises(BadData, match="rank is 0"):
        singular_of_matrix(torch.zeros(4, 4)).left_basis(1)
    assert np.isnan(singular_of_matrix(torch.zeros(4, 4)).share(1))


def test_share_is_of_the_squared_norm():
    assert singular_of_matrix(torch.diag(torch.tensor([4.0, 3.0, 0.0]))).share(1) == pytest.approx(16 / 25)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: singular_of_matrix(torch.zeros(3)), r"got shape \[3\]"),
        (lambda: singular_of_matrix(torch.tensor([[float("nan")]])), "all entries finite"),
        (lambda: singular_of_factors(gaussian(3, 5), gaussian(5, 4)), r"got B \[5, 4\], A \[3, 5\]"),
        (lambda: singular_of_factors(gaussian(3, 5), gaussian(5, 3), float("inf")), "scale inf"),
        (lambda: principal_angles(basis(5, 2), basis(6, 2)), r"\[5, 2\] and \[6, 2\]"),
        (lambda: principal_angles(np.ones((5, 2)), basis(5, 2)), "independent"),
        (lambda: overlap(2 * basis(5, 2), basis(5, 2)), "orthonormal"),
        (lambda: expected_overlap(6, 5), "6 dimensions does not fit into a space of 5"),
        (lambda: chance(2, 5, other_k=6), "does not fit"),
        (lambda: chance_within(basis(9, 3), basis(9, 4, 1), 4), "does not fit into a space of 3"),
        (lambda: row_space(torch.ones(2, 5)), "rank is 1"),
    ],
    ids=[
        "vector",
        "nan",
        "ranks differ",
        "scale",
        "spaces differ",
        "dependent",
        "not orthonormal",
        "too large",
        "other too large",
        "within",
        "rows depend",
    ],
)
def test_bad_input_is_one_sentence(call, said):
    with pytest.raises(BadData, match=said):
        call()


# ---- comparing two ----


def test_angles_built_in_are_found_and_agree_with_scipy():
    built = np.array([0.001, 10.0, 45.0, 89.0])
    axes = basis(20, 8)
    one = axes[:, :4]
    other = np.cos(np.radians(built)) * one + np.sin(np.radians(built)) * axes[:, 4:]
    mixed = other @ basis(4, 4, 5)  # another basis of the same subspace
    np.testing.assert_allclose(principal_angles(one, mixed), built, atol=1e-7)
    np.testing.assert_allclose(
        principal_angles(one, mixed), np.degrees(np.sort(subspace_angles(one, mixed))), atol=1e-12
    )
    assert overlap(one, mixed) == pytest.approx(np.square(np.cos(np.radians(built))).mean())
    assert overlap(one, mixed) == pytest.approx(overlap(mixed, one))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_overlap_is_the_mean_squared_cosine_of_scipys_angles(seed):
    one, other = basis(15, 3, seed), basis(15, 5, seed + 50)
    assert overlap(one, other) == pytest.approx(np.square(np.cos(subspace_angles(one, other))).mean(), abs=1e-12)
    assert len(principal_angles(one, other)) == 3


def test_a_subspace_has_no_angle_to_itself_and_a_right_one_to_its_complement():
    axes = basis(10, 6)
    np.testing.assert_allclose(principal_angles(axes[:, :3], axes[:, :3]), 0, atol=1e-6)
    np.testing.assert_allclose(principal_angles(axes[:, :3], axes[:, 3:]), 90, atol=1e-6)
    assert overlap(axes[:, :3], axes[:, 3:]) == pytest.approx(0, abs=1e-20) and overlap(
        axes[:, :2], axes[:, :5]
    ) == pytest.approx(1)


# ---- chance ----


@pytest.mark.parametrize(
    ("k", "d", "other_k"),
    [(16, 32, None), (2, 3, None), (3, 12, 5), (5, 12, 3), (1, 200, None), (4, 4, None), (8, 4096, None)],
)
def test_monte_carlo_has_the_analytic_mean(k, d, other_k):
    drawn = chance(k, d, other_k=other_k, n_draws=2000)
    assert drawn.cosines.shape == (2000, min(k, other_k or k))
    error = drawn.overlaps.std() / np.sqrt(2000)
    assert drawn.overlaps.mean() == pytest.approx(expected_overlap(k, d, other_k), abs=4 * error + 1e-12)
    assert (np.diff(drawn.angles, axis=1) >= 0).all()


@pytest.mark.parametrize(
    ("k", "d", "other_k"),
    [(4, 30, 4), (3, 6, 5), (5, 40, 2)],
    ids=["through the factor", "few rows below", "two sizes"],
)
def test_the_shortcut_draws_what_whole_gaussian_matrices_give(k, d, other_k):
    rng = np.random.default_rng(7)
    fixed = basis(d, k, 3)
    plain = np.array([np.cos(subspace_angles(fixed, rng.standard_normal((d, other_k)))) for _ in range(1500)])
    quick = chance(k, d, other_k=other_k, n_draws=1500).cosines
    for measure in (lambda c: np.sort(c, axis=1).mean(0), lambda c: np.sort(c, axis=1).std(0)):
        np.testing.assert_allclose(measure(plain), measure(quick), atol=0.02)


def test_numbers_known_for_adapters():
    """k/r = 0.50 for 16 of 32 and a mean angle of 32.9 degrees for 20 of 32; 0.004 and about 86.5 for free ones in
    4096 (paper card em_subspaces).
    """
    assert expected_overlap(16, 32) == 0.5
    assert chance(20, 32, n_draws=400).angles.mean() == pytest.approx(32.9, abs=0.3)
    assert expected_overlap(16, 4096) == pytest.approx(0.0039, abs=1e-4)
    assert chance(20, 4096, n_draws=100).angles.mean() == pytest.approx(86.7, abs=0.4)


def updates(r, d, k, a, make_b, n=40):
    """Mean overlap of n pairs of updates with the given As and Bs made anew."""
    pairs = [(make_b(2 * i), make_b(2 * i + 1)) for i in range(n)]
    return np.mean(
        [
            overlap(singular_of_factors(a[0], b).right_basis(k), singular_of_factors(a[1], c).right_basis(k))
            for b, c in pairs
        ]
    )


def test_updates_with_one_isotropic_a_overlap_by_k_over_r_and_with_two_by_chance():
    d, r, k = 200, 16, 8
    a, c = (torch.as_tensor(basis(d, r, seed).T) for seed in (1, 2))
    assert updates(r, d, k, (a, a), lambda seed: gaussian(150, r, seed=seed)) == pytest.approx(k / r, abs=0.05)
    assert updates(r, d, k, (a, c), lambda seed: gaussian(150, r, seed=seed)) == pytest.approx(
        expected_overlap_within(row_space(a), row_space(c), k), abs=0.02
    )
    assert expected_overlap_within(row_space(a), row_space(a), k) == pytest.approx(k / r)


def test_a_gaussian_a_lifts_the_overlap_of_unrelated_updates_above_k_over_r_and_the_rotation_chance_says_so():
    d, r, k = 200, 16, 8
    a, make_b = gaussian(r, d, seed=100), lambda seed: gaussian(150, r, seed=seed)
    measured = updates(r, d, k, (a, a), make_b)
    level = chance_of_factors((a, make_b(0)), (a, make_b(1)), k, n_draws=300)
    assert measured > k / r + 0.1
    assert level.overlaps.mean() == pytest.approx(measured, abs=0.03)
    decaying = torch.diag(torch.tensor([0.5**i for i in range(r)], dtype=torch.float64))
    steep = chance_of_factors((a, make_b(0) @ decaying), (a, make_b(1) @ decaying), k, n_draws=300)
    assert steep.overlaps.mean() == pytest.approx(k / r, abs=0.05)


def test_one_start_of_the_usual_size_gives_0_69():
    a = gaussian(32, 4096, seed=1)
    assert chance_of_factors(
        (a, gaussian(4096, 32, seed=2)), (a, gaussian(4096, 32, seed=3)), 16, n_draws=60
    ).overlaps.mean() == pytest.approx(0.69, abs=0.02)


def test_an_update_that_training_aligned_is_above_the_rotation_chance():
    a, b = (
        gaussian(8, 60, seed=1),
        gaussian(50, 8, seed=2) @ torch.diag(torch.tensor([8.0, 6, 1, 1, 1, 1, 1, 1], dtype=torch.float64)),
    )
    level = chance_of_factors((a, b), (a, b), 2)
    aligned = overlap(
        singular_of_factors(a, b).right_basis(2), singular_of_factors(a, gaussian(50, 50, seed=9) @ b).right_basis(2)
    )
    assert aligned > level.overlap_band()[1] and level.cosines.shape == (500, 2)
    with pytest.raises(BadData, match="rank is 8"):
        chance_of_factors((a, b), (a, b), 9)
    with pytest.raises(BadData, match="one space"):
        chance_of_factors((a, b), (gaussian(8, 61), b), 2)


def test_rotations_are_uniform():
    drawn = subspaces._rotations(np.random.default_rng(0), 4000, 3)
    np.testing.assert_allclose(drawn @ drawn.swapaxes(1, 2), np.broadcast_to(np.eye(3), drawn.shape), atol=1e-12)
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.05)
    np.testing.assert_allclose((drawn**2).mean(0), 1 / 3, atol=0.02)


def test_chance_within_two_spaces_has_its_analytic_mean_and_reduces_to_chance():
    one, other = basis(40, 6, 1), np.linalg.qr(np.concatenate([basis(40, 6, 1)[:, :3], basis(40, 5, 2)], 1))[0]
    drawn = chance_within(one, other, 3, n_draws=3000)
    assert drawn.overlaps.mean() == pytest.approx(
        expected_overlap_within(one, other, 3), abs=4 * drawn.overlaps.std() / np.sqrt(3000)
    )
    equal = chance_within(one, one, 3, n_draws=3000)
    np.testing.assert_allclose(equal.cosines.mean(0), chance(3, 6, n_draws=3000).cosines.mean(0), atol=0.02)


def test_the_band_holds_chance_and_not_a_shared_direction():
    drawn = chance(4, 64, n_draws=1000)
    low, high = drawn.overlap_band()
    fixed = basis(64, 4, 11)
    inside = [low <= overlap(fixed, basis(64, 4, 1000 + i)) <= high for i in range(200)]
    assert 0.88 < np.mean(inside) < 0.99
    planted = np.linalg.qr(np.concatenate([fixed[:, :1], basis(64, 3, 12)], 1))[0]
    assert overlap(fixed, planted) > high and drawn.p_value(overlap(fixed, planted)) < 0.01 and drawn.p_value(-1) == 1
    low_angle, high_angle = drawn.angle_band()
    assert (
        principal_angles(fixed, planted)[0] < low_angle[0] < high_angle[0] and (low_angle <= drawn.angles.mean(0)).all()
    )


def test_draws_depend_on_the_seed_only():
    np.testing.assert_array_equal(chance(3, 20, n_draws=5, seed=4).cosines, chance(3, 20, n_draws=5, seed=4).cosines)
    assert not np.array_equal(chance(3, 20, n_draws=5, seed=4).cosines, chance(3, 20, n_draws=5, seed=5).cosines)


def test_wide_spaces_cost_no_memory():
    assert chance(8, 10**6, n_draws=50).overlaps.mean() == pytest.approx(8e-6, rel=0.3)
    assert isinstance(subspaces.chance(1, 1, n_draws=3), Chance)
