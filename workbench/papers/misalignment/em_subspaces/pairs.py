"""Which of the stored updates are compared, and what each pair shares: the conditions of the figures."""

from collections.abc import Sequence
from itertools import combinations

from .conditions import (
    BENIGN,
    BENIGN_DIFFERENT,
    BENIGN_FULL,
    COIN,
    CONDITIONS,
    DIFFERENT,
    FULL,
    RANDOM,
    SAME,
    SAME_TASK,
    TWO_BENIGN,
    TWO_RANDOM,
)
from .geometry import Pair
from .runs import Recipe


def condition_of(one: Recipe, other: Recipe) -> str | None:
    """What two fine-tunes have in common, or None where no figure asks."""
    tasks, same_seed = {one.task, other.task}, one.seed == other.seed
    if (one.rank == 0) != (other.rank == 0):
        return None
    if tasks == {"bad"}:
        if one.domain == other.domain:
            return SAME_TASK
        return FULL if one.rank == 0 else SAME if same_seed else DIFFERENT
    if tasks == {"bad", "items"}:
        return BENIGN_FULL if one.rank == 0 else BENIGN if same_seed else BENIGN_DIFFERENT
    if tasks == {"bad", "coin"} and same_seed and one.domain != other.domain:
        return COIN
    return TWO_BENIGN if tasks == {"items", "count"} and same_seed else None


def pairs_of_store(known: dict[str, Recipe], random: Sequence[str]) -> list[Pair]:
    """Every pair that has a condition; grouped by seed, by pair of seeds, or for full rank (one seed) by pair."""
    found = []
    for (a, one), (b, other) in combinations(known.items(), 2):
        if condition := condition_of(one, other):
            group = f"{a} {b}" if one.rank == 0 else f"seeds {min(one.seed, other.seed)} {max(one.seed, other.seed)}"
            found.append(Pair(a, b, condition, group, has_start=one.rank > 0))
    bad = [n for n, r in known.items() if r.task == "bad" and r.rank]
    found += [
        Pair(name, drawn, RANDOM, f"{name} {drawn}", has_start=False)
        for drawn in random
        for name in bad[:: max(1, len(bad) // 3)]
    ]
    return sorted(found, key=lambda p: CONDITIONS.index(p.condition))


def curve_pairs(known: dict[str, Recipe], random: Sequence[str]) -> list[Pair]:
    """Ends of the lines between models: a pair a seed of (bad, bad) with one seed and with two, (bad, benign), and
    two random.
    """

    def name(task: str, domain: str, seed: int) -> str:
        return next(n for n, r in known.items() if (r.task, r.domain, r.seed) == (task, domain, seed) and r.rank)

    domains = list(dict.fromkeys(r.domain for r in known.values() if r.task == "bad"))
    seeds = sorted({r.seed for r in known.values() if r.task == "bad" and r.rank})
    found = []
    for i, seed in enumerate(seeds):
        one, other, later = domains[i % len(domains)], domains[(i + 1) % len(domains)], seeds[(i + 1) % len(seeds)]
        bad = name("bad", one, seed)
        found += [
            Pair(bad, name("bad", other, seed), SAME, f"seed {seed}"),
            Pair(bad, name("bad", other, later), DIFFERENT, f"seed {seed}"),
        ]
        found.append(Pair(bad, name("items", "", seed), BENIGN, f"seed {seed}"))
    if len(random) > 1:
        found.append(Pair(random[0], random[1], TWO_RANDOM, "random", has_start=False))
    return sorted(found, key=lambda p: CONDITIONS.index(p.condition))
