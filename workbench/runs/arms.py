"""Arms of a study, and sets drawn at random that match a chosen one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Arm:
    """What is done in one arm. `follows` names the arm that it is compared with."""

    title: str
    kind: Literal["method", "baseline", "control"] = "method"
    follows: str | None = None


def matched(
    chosen: np.ndarray, groups: Iterable[np.ndarray], rng: np.random.Generator, *, avoid: bool = True
) -> np.ndarray:
    """bool [n] a random set with as many members of each group as `chosen` has there.

    Args:
        chosen: bool [n]. groups: indices of each group, such as the units of a module.
        avoid: draw from what is not chosen as long as there is any; otherwise from all.
    """
    drawn = np.zeros(len(chosen), bool)
    for group in groups:
        n = int(chosen[group].sum())
        others, own = (group[~chosen[group]], group[chosen[group]]) if avoid else (group, group[:0])
        drawn[np.concatenate([rng.permutation(others), rng.permutation(own)])[:n]] = True
    return drawn


def chance_overlap(
    a: np.ndarray, b: np.ndarray, groups: Sequence[np.ndarray], rng: np.random.Generator, n_draws: int = 200
) -> float:
    """Mean intersection over union of random sets with as many members of each group as `a` and `b` have."""
    found = []
    for _ in range(n_draws):
        one, other = (matched(chosen, groups, rng, avoid=False) for chosen in (a, b))
        if (one | other).any():
            found.append((one & other).sum() / (one | other).sum())
    return float(np.mean(found)) if found else float("nan")
