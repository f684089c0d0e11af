"""A study: units of work (a seed and the axes of a grid), each done or not, kept, resumed and joined with the stored
runs.

A paper says what one unit does; `study` does the rest: progress, cancelling, resuming a partial Result, keeping what is
finished now and then, putting stored runs beside what is run here, provenance, and a summary by seed.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import xarray as xr

from workbench.core.errors import BadData
from workbench.core.progress import Cancelled, Progress
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.core.spec import Spec

from . import stored as stored_runs
from .stored import HERE

Tables = dict[str, pd.DataFrame]
Value = str | int | float


@dataclass(frozen=True)
class Unit:
    """The smallest thing that is done or not: a seed, and its place on the axes of the grid."""

    seed: int
    axes: Mapping[str, Value] = field(default_factory=dict)

    @property
    def key(self) -> dict[str, Value]:
        """{axis: value} with the seed last, as rows and runs are labelled."""
        return {**self.axes, "seed": self.seed}

    def __str__(self) -> str:
        return ", ".join([*map(str, self.axes.values()), f"seed {self.seed}"])


@dataclass(frozen=True, eq=False)
class Part:
    """What a unit gives.

    `data` is one run: either without a dimension `run`, or with one of length 1 that has coordinates of its own. The
    rows of `tables` get the unit's axes, seed and origin. `shared` are tables about all runs, such as names of classes:
    equal rows of several units are kept once.
    """

    data: xr.Dataset | None = None
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    shared: Mapping[str, pd.DataFrame] = field(default_factory=dict)


class Steps(Progress):
    """Progress of one unit, a hundred steps of the whole study.

    `at(percent, text)` says how far the unit is. What runs inside is given this object as its progress: its steps fill
    the way up to `until`, and it notices here that it was cancelled. `done` finds units that were finished before.
    """

    def __init__(self, outer: Progress, number: int, of: int, unit: Unit, done: Callable[[Unit], xr.Dataset | None]):
        super().__init__()
        self.outer, self.number, self.of, self.unit, self.done_before = outer, number, of, unit, done
        self.percent, self.until, self.said = 0, 0, ""

    def at(self, percent: int, text: str, *, until: int | None = None) -> "Steps":
        """Say that `percent` of the unit are done, and up to where the steps of what runs now lead."""
        self.percent, self.until, self.said = percent, percent if until is None else until, text
        self.update(0, 1)
        return self

    def tick(self, text: str) -> "Steps":
        """One percent on, never to the last."""
        return self.at(min(self.percent + 1, 99), text)

    def update(self, done: int, total: int, text: str = "") -> None:
        inside = (self.until - self.percent) * done // max(total, 1)
        here = f"{self.unit}: {self.said}" if self.said else str(self.unit)
        self.outer.update(100 * self.number + self.percent + inside, 100 * self.of, here)


def study(
    stem: str,
    spec: Spec,
    units: Sequence[Unit],
    do: Callable[[Unit, Steps], Part],
    *,
    about: Mapping[str, object],
    progress: Progress,
    resume: Result | None = None,
    stored: Result | None = None,
    choosing: Collection[str] = ("seeds",),
    join: Callable[[list[xr.Dataset]], xr.Dataset] | None = None,
    derive: Callable[[xr.Dataset, Tables], tuple[xr.Dataset, Tables]] | None = None,
    warn: Callable[[xr.Dataset, Tables], Iterable[str]] | None = None,
) -> Result:
    """Do every unit that is not done yet, and return all of them, with the stored runs in front.

    Args:
        stem, spec: of the paper. units: in the order they are run.
        do: runs one unit; it may read earlier ones with `steps.done_before(unit)`.
        about: what provenance tells of the model; its `weights` decide whether a partial Result may be resumed.
        progress: a hundred steps a unit; cancelling gives a partial Result with the finished units.
        resume: a partial Result of the same spec and weights, whose finished units are not run again.
        stored: runs that ship, of `load_runs`.
        choosing: fields of the spec that only choose units, so that a resumed Result may have had others.
        join: [one run each] -> Dataset over `run`; by default runs under each other, padded with nan.
        derive: (data, tables) -> the same with what is computed from all runs, such as a summary.
        warn: sentences that a reader of the numbers must see.

    Returns:
        Result whose dimension `run`, and the rows of whose tables, name origin ("stored" or "run here"), axes and seed.

    Raises:
        BadData: if the Result to resume is of another spec or other weights.
    """
    started = time.monotonic()
    known = {} if stored is None else {"stored": stored_runs.told(stored)}
    seed = min((unit.seed for unit in units), default=0)
    provenance = Provenance.start(stem, spec.to_dict(), seed, model=dict(about), data=known)
    parts = [] if stored is None else [_of_result(stored)]
    if resume is not None:
        _refuse_other(resume, provenance, choosing)
        parts.append(_only(_of_result(resume), units))

    def result(partial: bool) -> Result:
        if not any(part.data is not None or part.tables for part in parts):
            return Result(provenance.finish(started), xr.Dataset(), {}, True)
        data, tables = _joined(parts, join)
        if derive is not None:
            data, tables = derive(data, tables)
        warnings = [stored_runs.sentence(known["stored"], data.sizes.get("run", 0))] if known else []
        warnings += list(warn(data, tables)) if warn is not None else []
        return Result(provenance.finish(started), data, tables, partial, tuple(warnings))

    def done(unit: Unit) -> xr.Dataset | None:
        runs = (run for part in parts if part.data is not None for run in _runs_of(part.data))
        return next((run for run in runs if _is(run, unit)), None)

    missing = {number: unit for number, unit in enumerate(units) if not any(_has(part, unit) for part in parts)}
    try:
        for number, unit in list(missing.items()):
            parts.append(_labelled(do(unit, Steps(progress, number, len(units), unit, done)), unit))
            del missing[number]
            progress.keep(lambda: result(True))
        progress.update(100 * len(units), 100 * len(units), "done")
    except Cancelled:
        pass  # what is finished is kept; cancelled after the last unit, nothing is missing
    return result(bool(missing))


def by_origin(result: Result, origin: str) -> Result:
    """The runs and rows of one origin; what names none stays."""
    data = result.data
    if "origin" in data.coords:
        data = data.isel(run=np.flatnonzero(data["origin"].values == origin))
    tables = {n: t[t["origin"] == origin] if "origin" in t else t for n, t in result.tables.items()}
    return Result(result.provenance, data, tables, result.partial, result.warnings)


# ---- labels ----


def _labelled(part: Part, unit: Unit) -> Part:
    key = {"origin": HERE} | unit.key
    data = part.data
    if data is not None:
        data = data if "run" in data.dims else data.expand_dims("run")
        data = data.assign_coords({name: ("run", [value]) for name, value in key.items()})
    return Part(data, {name: table.assign(**unit.key, origin=HERE) for name, table in part.tables.items()}, part.shared)


def _of_result(result: Result) -> Part:
    """A Result as one part of many runs. Tables that name no origin are shared; a summary is made anew."""
    rows = {name: t for name, t in result.tables.items() if "origin" in t and "seed" in t}
    shared = {name: t for name, t in result.tables.items() if "origin" not in t}
    return Part(result.data if "run" in result.data.dims else None, rows, shared)


def _is(run: xr.Dataset, unit: Unit) -> bool:
    key = {"origin": HERE} | unit.key
    return all(name in run.coords and run[name].item() == value for name, value in key.items())


def _hits(table: pd.DataFrame, unit: Unit) -> np.ndarray:
    key = {"origin": HERE} | unit.key
    return np.logical_and.reduce([table[name].values == value for name, value in key.items()])


def _runs_of(data: xr.Dataset) -> Iterable[xr.Dataset]:
    return (data.isel(run=[i]) for i in range(data.sizes["run"]))


def _has(part: Part, unit: Unit) -> bool:
    in_data = part.data is not None and any(_is(run, unit) for run in _runs_of(part.data))
    return in_data or any(_hits(table, unit).any() for table in part.tables.values())


def _only(part: Part, units: Sequence[Unit]) -> Part:
    """What a part has of these units, all of them run here."""
    hit = (
        [i for i, run in enumerate(_runs_of(part.data)) if any(_is(run, u) for u in units)]
        if part.data is not None
        else []
    )
    kept = {name: np.logical_or.reduce([_hits(table, unit) for unit in units]) for name, table in part.tables.items()}
    tables = {name: table[kept[name]] for name, table in part.tables.items() if kept[name].any()}
    return Part(part.data.isel(run=hit) if hit and part.data is not None else None, tables, part.shared)


def _refuse_other(resume: Result, now: Provenance, choosing: Collection[str]) -> None:
    before = resume.provenance
    one, other = ({n: v for n, v in spec.items() if n not in choosing} for spec in (before.spec, now.spec))
    if one != other or before.model.get("weights") != now.model.get("weights"):
        changed = sorted(n for n in one.keys() | other.keys() if one.get(n) != other.get(n))
        what = f"another spec ({', '.join(changed)})" if changed else "other weights"
        raise BadData(f"the partial result is of {what}, so its runs cannot be reused; give another output folder")


# ---- joining ----


def _joined(parts: Sequence[Part], join: Callable[[list[xr.Dataset]], xr.Dataset] | None) -> tuple[xr.Dataset, Tables]:
    sets = [part.data for part in parts if part.data is not None]
    data = (join or _under_each_other)(sets) if sets else xr.Dataset()
    names = dict.fromkeys(name for part in parts for name in part.tables)
    tables = {name: pd.concat([p.tables[name] for p in parts if name in p.tables], ignore_index=True) for name in names}
    for name in dict.fromkeys(name for part in parts for name in part.shared):
        found = pd.concat([p.shared[name] for p in parts if name in p.shared], ignore_index=True)
        tables[name] = found.drop_duplicates(ignore_index=True)
    return data, tables


def _under_each_other(sets: list[xr.Dataset]) -> xr.Dataset:
    return xr.concat(sets, "run", join="outer", combine_attrs="override") if len(sets) > 1 else sets[0].copy()
