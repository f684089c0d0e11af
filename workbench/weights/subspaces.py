"""Leading singular subspaces of a matrix or of a low-rank update, and how far two of them overlap, beside what chance
gives.

A weight maps inputs to outputs, W [out, in], so its right singular vectors lie in the input space and its left ones in
the output space. An update dW = scale * B A never needs its full matrix: two QR decompositions and one r x r core give
the same triples. Overlap alone says little, because chance is not zero: two k-subspaces of a d-dimensional space share
k / d on average, and two that are confined to the same r dimensions (adapters that start from one A) share k / r - or
more, because B A leans to the larger singular values of A: with one Gaussian A (r 32, in 4096) and two unrelated
Gaussian B, 16 directions overlap by 0.69, not 0.50 (tests). So every measure has its floor (`expected_overlap`,
`expected_overlap_within`) and its Monte-Carlo distribution (`chance`, `chance_within`, and `chance_of_factors`, which
keeps the singular values of A and B).
Source: Bjorck & Golub 1973 for principal angles (`scipy.linalg.subspace_angles`); Halko et al. 2011 (arXiv 0909.4061)
    for working through a small core. The floors are derived in the docstrings.
Cost: a full matrix one SVD in float64 on its device; factors O((out + in) r^2 + r^3); chance O(k^3) a draw, whatever d
is.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import subspace_angles

from workbench.core.errors import BadData


@dataclass(frozen=True, eq=False)
class Singular:
    """Singular triples of a matrix, largest first, float64.

    left: [out, n] orthonormal columns of the output space. values: [m] all singular values (n <= m: vectors may be
    fewer).
    right: [in, n] orthonormal columns of the input space.
    """

    left: np.ndarray
    values: np.ndarray
    right: np.ndarray

    @property
    def rank(self) -> int:
        """Number of singular values above rounding: largest value x longest side x 2.2e-16, numpy's rule for
        matrix_rank.
        """
        return int(
            (
                self.values > self.values[:1].sum() * max(len(self.left), len(self.right)) * np.finfo(np.float64).eps
            ).sum()
        )

    def right_basis(self, k: int) -> np.ndarray:
        """[in, k] orthonormal basis of the leading input directions; BadData where they are not determined."""
        return self.right[:, : self._checked(k)]

    def left_basis(self, k: int) -> np.ndarray:
        """[out, k] orthonormal basis of the leading output directions; BadData where they are not determined."""
        return self.left[:, : self._checked(k)]

    def share(self, k: int) -> float:
        """Part of the squared Frobenius norm that the first k directions hold, in [0, 1]; nan for a zero matrix."""
        squares = self.values**2
        return float(squares[:k].sum() / squares.sum()) if squares.any() else float("nan")

    def _checked(self, k: int) -> int:
        kept = self.left.shape[1]
        if not 1 <= k <= min(self.rank, kept):
            why = f"its rank is {self.rank}" if k > self.rank else f"{kept} vectors were kept"
            raise BadData(
                f"the leading {k} singular directions of a {len(self.left)} x {len(self.right)} matrix are not there:"
                f" {why}; choose k between 1 and {min(self.rank, kept)}"
            )
        return k


# ---- finding them ----


def singular_of_matrix(matrix: torch.Tensor, keep: int | None = None) -> Singular:
    """Singular triples of a full matrix.

    Args:
        matrix: [out, in], any float type and device; the decomposition runs in float64 on that device.
        keep: how many vectors are returned; all if not given. Values are always all.

    Raises:
        BadData: if it is not a finite matrix.
    """
    _require_matrix(matrix, "a singular subspace belongs to a matrix [out, in]")
    left, values, right = torch.linalg.svd(_double(matrix), full_matrices=False)
    return Singular(_numpy(left[:, :keep]), _numpy(values), _numpy(right[:keep].T))


def singular_of_factors(A: torch.Tensor, B: torch.Tensor, scale: float = 1.0) -> Singular:
    """Singular triples of scale * B A, without forming it: B = Q R, A^T = P S, and the core R S^T is r x r.

    Args:
        A: [r, in]. B: [out, r]. scale: of the update; a negative one turns the left vectors round.

    Returns:
        Singular with min(r, out, in) triples.

    Raises:
        BadData: if the factors are not finite matrices of one rank.
    """
    for factor in (A, B):
        _require_matrix(factor, "an update is the product of two matrices, B [out, r] and A [r, in]")
    if A.shape[0] != B.shape[1] or not np.isfinite(scale):
        raise BadData(
            f"B A needs B [out, r] and A [r, in] and a finite scale, got B {list(B.shape)}, A {list(A.shape)}, scale"
            f" {scale}"
        )
    outer, r = torch.linalg.qr(_double(B))
    inner, s = torch.linalg.qr(_double(A).T)
    left, values, right = torch.linalg.svd(scale * r @ s.T, full_matrices=False)
    return Singular(_numpy(outer @ left), _numpy(values), _numpy(inner @ right.T))


def row_space(A: torch.Tensor) -> np.ndarray:
    """[in, r] orthonormal basis of the rows of A [r, in]: where every right singular vector of B A lies, whatever B is.

    Raises:
        BadData: if the rows are not independent.
    """
    found = singular_of_matrix(A)
    return found.right_basis(A.shape[0])


# ---- comparing two ----


def principal_angles(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Principal angles between two subspaces, smallest first: 0 for a shared direction, 90 for an orthogonal one.

    Args:
        one: [d, k] independent columns. other: [d, l] independent columns of the same space.

    Returns:
        [min(k, l)] degrees.

    Raises:
        BadData: if they are not of one space, or columns of one depend on each other.
    """
    _require_same_space(one, other)
    angles = np.degrees(subspace_angles(one, other))[::-1]
    if len(angles) != min(one.shape[1], other.shape[1]):
        raise BadData(
            f"the columns of a basis must be independent: {one.shape[1]} and {other.shape[1]} columns gave"
            f" {len(angles)} angles"
        )
    return angles


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Mean squared cosine of the principal angles, in [0, 1]: 1 if the smaller subspace lies in the other.

    Compare it with `expected_overlap` or `expected_overlap_within`, never with 0.

    Args:
        one: [d, k], other: [d, l]; orthonormal columns, as `Singular` gives them.

    Raises:
        BadData: if they are not of one space, or columns are not orthonormal.
    """
    _require_same_space(one, other)
    for basis in (one, other):
        off = float(np.abs(basis.T @ basis - np.eye(basis.shape[1])).max())
        if off > 1e-6:
            raise BadData(
                f"overlap needs orthonormal columns, and these are off by {off:.1e}; take right_basis or left_basis, or"
                " numpy.linalg.qr first"
            )
    return float(np.square(one.T @ other).sum() / min(one.shape[1], other.shape[1]))


# ---- what chance gives ----


def expected_overlap(k: int, d: int, other_k: int | None = None) -> float:
    """Mean overlap of a fixed subspace and a uniformly random one: k / d for two of k dimensions in d.

    A random projector P onto l dimensions has mean (l / d) I, so the expected squared cosines sum to trace(P_fixed P) =
    k l / d; divided by min(k, l) that is max(k, l) / d. With d the rank r of two adapters that share their A, this is
    the k / r floor.

    Raises:
        BadData: if a subspace is larger than its space.
    """
    other_k = k if other_k is None else other_k
    _require_fits(k, d)
    _require_fits(other_k, d)
    return max(k, other_k) / d


def expected_overlap_within(one: np.ndarray, other: np.ndarray, k: int) -> float:
    """Mean overlap of two random k-subspaces, each confined to a space of its own (the row spaces of two adapters).

    Random k-subspaces of spaces with projectors P, Q of rank r, s have mean projectors (k / r) P and (k / s) Q, so the
    overlap is k trace(P Q) / (r s) on average: k / r if the spaces are equal, and k / d on average if these are random
    themselves.

    Args:
        one: [d, r], other: [d, s]; orthonormal columns, as `row_space` gives them. k: dimensions, at most r and s.
    """
    _require_fits(k, min(one.shape[1], other.shape[1]))
    return k * overlap(one, other) / max(one.shape[1], other.shape[1])


@dataclass(frozen=True, eq=False)
class Chance:
    """What random subspaces give. cosines: [draw, i] principal cosines, largest first, so that angles increase with
    i.
    """

    cosines: np.ndarray

    @property
    def overlaps(self) -> np.ndarray:
        """[draw] mean squared cosine."""
        return np.square(self.cosines).mean(1)

    @property
    def angles(self) -> np.ndarray:
        """[draw, i] degrees, smallest first."""
        return np.degrees(np.arccos(np.clip(self.cosines, 0, 1)))

    def overlap_band(self, level: float = 0.95) -> tuple[float, float]:
        """Where the central `level` of chance overlaps lies: a measured overlap above it is more than chance."""
        low, high = np.quantile(self.overlaps, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def angle_band(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """(low, high), [i] degrees each, for the i-th smallest angle; every angle by itself."""
        low, high = np.quantile(self.angles, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high

    def p_value(self, measured: float) -> float:
        """Share of draws whose overlap is at least the measured one, the measured one counted among them."""
        return float((1 + (self.overlaps >= measured).sum()) / (1 + len(self.overlaps)))


def chance(k: int, d: int, *, other_k: int | None = None, n_draws: int = 500, seed: int = 0) -> Chance:
    """Principal cosines of a fixed k-subspace and uniformly random ones of a d-dimensional space.

    A random subspace is the span of a Gaussian [d, l]; the fixed one may be the first k axes. Only the inner products
    of the d - k rows below matter, so these are replaced by their own triangular factor, drawn directly (its diagonal
    is chi distributed, the entries above it normal): nothing of size d is made.

    Args:
        k, other_k: dimensions of the two; equal if one is given. d: of the space; the rank r for adapters that share A.
        n_draws: random subspaces. seed: draws them.

    Returns:
        Chance with [n_draws, min(k, other_k)] cosines.

    Raises:
        BadData: if a subspace is larger than its space.
    """
    columns = k if other_k is None else other_k
    _require_fits(k, d)
    _require_fits(columns, d)
    rng = np.random.default_rng([seed, k, columns, d])
    above = rng.standard_normal((n_draws, k, columns))
    n_below = d - k
    if n_below <= columns:
        below = rng.standard_normal((n_draws, n_below, columns))
    else:
        below = np.triu(rng.standard_normal((n_draws, columns, columns)), 1)
        diagonal = np.arange(columns)
        below[:, diagonal, diagonal] = np.sqrt(rng.chisquare(n_below - diagonal, (n_draws, columns)))
    frame = np.linalg.qr(np.concatenate([above, below], 1))[0]
    return Chance(np.linalg.svd(frame[:, :k], compute_uv=False))


def chance_within(one: np.ndarray, other: np.ndarray, k: int, *, n_draws: int = 500, seed: int = 0) -> Chance:
    """Principal cosines of two random k-subspaces, each drawn in a space of its own; see `expected_overlap_within`.

    Args:
        one: [d, r], other: [d, s]; orthonormal columns. k: dimensions, at most r and s. n_draws, seed: as in `chance`.

    Returns:
        Chance with [n_draws, k] cosines.
    """
    _require_same_space(one, other)
    between = one.T @ other  # [r, s]
    _require_fits(k, min(between.shape))
    rng = np.random.default_rng([seed, k, *between.shape])
    first, second = (_rotations(rng, n_draws, n)[:, :, :k] for n in between.shape)
    return Chance(np.linalg.svd(first.swapaxes(1, 2) @ between @ second, compute_uv=False))


def chance_of_factors(
    one: tuple[torch.Tensor, torch.Tensor],
    other: tuple[torch.Tensor, torch.Tensor],
    k: int,
    *,
    n_draws: int = 500,
    seed: int = 0,
) -> Chance:
    """Principal cosines of the leading input directions of two updates whose B had nothing to do with their A.

    In each draw both updates B A become B R A, with R a random rotation of the r inner dimensions. A, its row space and
    the singular values of both factors stay; which inner direction B reads, the thing that training decides, is
    forgotten. This is the chance level for adapters from one start; it lies above k / r where the singular values of A
    differ and those of B do not.

    Args:
        one, other: (A [r, in], B [out, r]) each; their scale does not matter. k: dimensions. n_draws, seed: as in
            `chance`.

    Returns:
        Chance with [n_draws, k] cosines, for the right (input) side; the column space of B is itself learned, so the
        left side has no such level.

    Raises:
        BadData: if the inputs differ in width, or k is above a rank.
    """
    rng = np.random.default_rng([seed, k])
    spaces, leading = [], []
    for A, B in (one, other):
        singular_of_factors(A, B)._checked(k)
        inner, s = torch.linalg.qr(_double(A).T)
        core = (
            np.linalg.svd(_numpy(torch.linalg.qr(_double(B))[1]), compute_uv=False)[:, None]
            * _rotations(rng, n_draws, len(A))[:, : min(B.shape)]
            @ _numpy(s).T
        )
        spaces.append(_numpy(inner))
        leading.append(np.linalg.svd(core, full_matrices=False)[2][:, :k])
    _require_same_space(*spaces)
    return Chance(np.linalg.svd(leading[0] @ (spaces[0].T @ spaces[1]) @ leading[1].swapaxes(1, 2), compute_uv=False))


def _rotations(rng: np.random.Generator, n_draws: int, n: int) -> np.ndarray:
    """[draw, n, n] orthogonal matrices, uniform: the signs of the triangular factor are a convention that would bias
    them.
    """
    q, r = np.linalg.qr(rng.standard_normal((n_draws, n, n)))
    return q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]


# ---- checks ----


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.detach().cpu() if tensor.device.type == "mps" else tensor.detach()).double()  # mps has no float64


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.cpu().numpy())  # a slice would keep the whole decomposition alive


def _require_matrix(tensor: torch.Tensor, what: str) -> None:
    if tensor.ndim != 2 or not tensor.numel() or not bool(torch.isfinite(tensor).all()):
        raise BadData(f"{what}, all entries finite; got shape {list(tensor.shape)}")


def _require_same_space(one: np.ndarray, other: np.ndarray) -> None:
    if one.ndim != 2 or other.ndim != 2 or len(one) != len(other):
        raise BadData(
            f"two subspaces are compared as bases [d, k] and [d, l] of one space, got {list(one.shape)} and"
            f" {list(other.shape)}"
        )


def _require_fits(k: int, d: int) -> None:
    if not 1 <= k <= d:
        raise BadData(f"a subspace of {k} dimensions does not fit into a space of {d}; choose k between 1 and {d}")
