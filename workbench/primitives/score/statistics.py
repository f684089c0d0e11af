"""Small statistics that several papers share, in numpy; each states its formula, none of them draws without a seed."""

import numpy as np


def bootstrap_interval(
    values: np.ndarray, *, level: float = 0.95, n_draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    Args:
        values: [n] one number per independent unit (an input, a seed).
        level: coverage.

    Returns:
        (low, high), in the unit of `values`.
    """
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (n_draws, len(values)))].mean(1)
    tail = (1 - level) / 2
    return float(np.quantile(means, tail)), float(np.quantile(means, 1 - tail))


def last_crossing(x: np.ndarray, y: np.ndarray, level: float) -> float:
    """Largest x at which the piecewise-linear curve (x, y) still reaches `level` from above; 0 if it never does.

    Args:
        x: [n] increasing. y: [n]. level: in the unit of y.

    Returns:
        x of the last point with y >= level, moved along the segment to where y = level; the last x if y ends above.
    """
    order = np.argsort(x, kind="stable")
    x, y = np.asarray(x, float)[order], np.asarray(y, float)[order]
    above = np.flatnonzero(y >= level)
    if not len(above):
        return 0.0
    i = int(above[-1])
    if i == len(x) - 1:
        return float(x[i])
    return float(x[i] + (x[i + 1] - x[i]) * (y[i] - level) / (y[i] - y[i + 1]))


def normalised_auc(x: np.ndarray, y: np.ndarray) -> float:
    """Trapezoid area under (x, y) divided by the range of x: the mean height of the curve, in the unit of y."""
    order = np.argsort(x, kind="stable")
    x, y = np.asarray(x, float)[order], np.asarray(y, float)[order]
    span = x[-1] - x[0]
    return float(np.trapezoid(y, x) / span) if span > 0 else float(y[0])


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> float:
    """|a and b| / |a or b| of two boolean arrays; nan if both are empty."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else float("nan")
