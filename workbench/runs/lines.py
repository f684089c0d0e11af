"""Lines of a claims table over a study: every one is measured once, on the stored runs where they are loaded.

    CLAIMS = lines(
        claim("pruning raises ASR", gap("pruning", "asr", {"arm": "group"}, {"arm": "untouched"}), ">=", 40.0, CARD,
              where=SOURCE, unit="points", controls=[RANDOM]),
        repeats("labels are those of the stored run", same_labels, 99.0, PILOT, unit="% of units"),
    )

A measure takes the Result with the runs of one origin only and gives a number, `Seeds`, or None.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import xarray as xr

from workbench.core.claims import Claim, Measured, with_controls
from workbench.core.result import Result

from .seeds import Seeds, seeds
from .stored import HERE, STORED
from .study import by_origin

Measure = Callable[[Result], Seeds | Measured | float | None]
Relation = Literal["<", "<=", ">", ">="]


def shown(result: Result) -> Result:
    """The runs that claims are measured on: the stored ones where there are any, else those run here."""
    tables = (table["origin"].values for table in result.tables.values() if "origin" in table)
    coordinate = [result.data["origin"].values] if "origin" in result.data.coords else []
    has_stored = any((origins == STORED).any() for origins in [*coordinate, *tables])
    return by_origin(result, STORED if has_stored else HERE)


def claim(
    text: str,
    measure: Measure,
    relation: Relation,
    threshold: float,
    threshold_from: str,
    *,
    where: str,
    unit: str = "",
    kind: Literal["claim", "ours", "control"] = "claim",
    controls: Sequence[Claim] = (),
) -> Claim:
    """A line of the paper's. where: the paper's section or table, or who says it. The rest as in
    `core.claims.Claim`.
    """

    def measured(result: Result) -> Measured | float | None:
        found = measure(shown(result))
        return found.measured() if isinstance(found, Seeds) else found

    return Claim(text, where, measured, relation, threshold, threshold_from, kind, unit, tuple(controls))


def control(
    text: str,
    measure: Measure,
    relation: Relation,
    threshold: float,
    threshold_from: str,
    *,
    where: str,
    unit: str = "",
) -> Claim:
    """A statement that must fail; give it to the claims that it guards."""
    return claim(text, measure, relation, threshold, threshold_from, where=where, unit=unit, kind="control")


def ours(
    text: str,
    measure: Measure,
    relation: Relation,
    threshold: float,
    threshold_from: str,
    *,
    where: str = "this project",
    unit: str = "",
    controls: Sequence[Claim] = (),
) -> Claim:
    """A line of the project's own: set-up, an identity, or a statement against the paper."""
    return claim(
        text, measure, relation, threshold, threshold_from, where=where, unit=unit, kind="ours", controls=controls
    )


def lines(*claims: Claim) -> tuple[Claim, ...]:
    """CLAIMS of a paper: the claims in order, then the controls that guard them.

    Raises:
        ValueError: if two lines have one text, or a control guards nothing.
    """
    found = with_controls(claims)
    texts = [each.text for each in found]
    if twice := {text for text in texts if texts.count(text) > 1}:
        raise ValueError(f"two lines say {twice.pop()!r}")
    guards = {each for one in found for each in one.controls}
    if idle := [each.text for each in found if each.kind == "control" and each not in guards]:
        raise ValueError(f"the control {idle[0]!r} guards no claim")
    return found


# ---- measures ----


def gap(
    table: str,
    score: str,
    one: Mapping[str, object],
    other: Mapping[str, object],
    *,
    other_table: str | None = None,
    **where: object,
) -> Callable[[Result], Seeds]:
    """Score of the rows `one` minus that of `other`, paired by seed; `where` holds for both."""
    return lambda r: (
        seeds(r, table, score, **where | dict(one)) - seeds(r, other_table or table, score, **where | dict(other))
    )


def twins(result: Result, *axes: str) -> Iterator[tuple[xr.Dataset, xr.Dataset]]:
    """(run made here, stored run) of the same seed and axes."""
    data = result.data
    if "origin" not in data.coords:
        return
    keys = list(zip(*(data[name].values.tolist() for name in ("origin", *axes, "seed")), strict=True))
    for i, (origin, *key) in enumerate(keys):
        if origin == HERE and (STORED, *key) in keys:
            yield data.isel(run=i), data.isel(run=keys.index((STORED, *key)))


def repeats(
    text: str,
    alike: Callable[[xr.Dataset, xr.Dataset], float],
    at_least: float,
    threshold_from: str,
    *,
    axes: Sequence[str] = (),
    unit: str = "",
) -> Claim:
    """Runs made here are what their stored twins are: the least `alike(here, stored)` over all pairs; the one line
    that reads both.
    """

    def measured(result: Result) -> float:
        return float(np.min([alike(here, kept) for here, kept in twins(result, *axes)] or [np.nan]))

    return Claim(text, "this project", measured, ">=", at_least, threshold_from, "ours", unit)
