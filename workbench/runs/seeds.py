"""Numbers by seed: the mean over a unit's rows, differences paired by seed, and intervals of means over few seeds."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from workbench.core.claims import Measured
from workbench.core.result import Result


def student_interval(values: np.ndarray | Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean, for few independent units (three seeds): mean -+ t(n - 1) * s / sqrt(n).

    Args:
        values: [n] one number per unit. level: coverage.

    Returns:
        (low, high), in the unit of `values`; nan with fewer than two values or one that is not finite.
    """
    values = np.asarray(values, float)
    if len(values) < 2 or not np.isfinite(values).all():
        return float("nan"), float("nan")
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half


class Seeds:
    """One number a seed. Arithmetic pairs by seed, and seeds that one side lacks fall away."""

    def __init__(self, values: pd.Series):
        self.values = values

    @property
    def mean(self) -> float:
        """Over seeds; nan if there is none."""
        return float(self.values.mean()) if len(self.values) else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Student's 95 % interval of the mean; nan with fewer than two seeds."""
        return student_interval(self.values.to_numpy())

    def __len__(self) -> int:
        return len(self.values)

    def __sub__(self, other: "Seeds | float") -> "Seeds":
        return Seeds((self.values - (other.values if isinstance(other, Seeds) else other)).dropna())

    def __rsub__(self, other: float) -> "Seeds":
        return Seeds(other - self.values)

    def __mul__(self, factor: float) -> "Seeds":
        return Seeds(self.values * factor)

    __rmul__ = __mul__

    def __neg__(self) -> "Seeds":
        return Seeds(-self.values)

    def measured(self) -> Measured:
        """The mean with its interval, as claims take it."""
        return Measured(self.mean, *self.interval)


def seeds(result: Result, table: str, score: str, **where: object) -> Seeds:
    """Mean of a score, by seed, over the rows of a table that match; empty if that was not run.

    Args:
        where: {column: value}; a column that the table lacks matches nothing.
    """
    found = result.tables.get(table)
    if found is None or score not in found or any(name not in found for name in where):
        return Seeds(pd.Series(dtype=float))
    hit = np.logical_and.reduce(
        [np.ones(len(found), bool), *(found[name].values == value for name, value in where.items())]
    )
    return Seeds(found[hit].groupby("seed")[score].mean())


def share_of(part: Seeds, whole: Seeds) -> float:
    """Mean of a part over the mean of the whole: a ratio of means, as one small whole would rule a mean of ratios.

    Returns:
        The ratio; nan where the whole is not above 0, or seeds are missing.
    """
    return part.mean / whole.mean if whole.mean > 0 else float("nan")


def summary(
    tables: Mapping[str, pd.DataFrame], keys: Mapping[str, Sequence[str]], scores: Iterable[str]
) -> pd.DataFrame:
    """A row per table, origin, condition and score: mean over seeds of the mean over a seed's rows, with its interval.

    Args:
        keys: {table: columns that tell its conditions apart}. scores: columns that are summed up, where a table has
            them.

    Returns:
        Columns table, origin, all of `keys` as text ("" where a table has no such column), score, mean, low, high,
        n_seeds.
    """
    names = list(dict.fromkeys(name for columns in keys.values() for name in columns))
    scores, rows = list(scores), []
    for table, columns in keys.items():
        found = tables.get(table)
        if found is None or found.empty:
            continue
        for key, part in found.groupby(["origin", *columns], sort=False):
            about = dict.fromkeys(names, "") | dict(zip(("origin", *columns), map(str, key), strict=True))
            means = part.groupby("seed")[[score for score in scores if score in found]].mean()
            for score in means:
                low, high = student_interval(means[score].to_numpy())
                mean, n = means[score].mean(), len(means)
                rows.append(
                    {"table": table, **about, "score": score, "mean": mean, "low": low, "high": high, "n_seeds": n}
                )
    return pd.DataFrame(rows)


def worst(values: Iterable[float], pick: Callable[[list[float]], float]) -> float:
    """The least favourable of several numbers, by `min` or `max`; nan if none is finite."""
    known = [value for value in values if np.isfinite(value)]
    return float(pick(known)) if known else float("nan")
