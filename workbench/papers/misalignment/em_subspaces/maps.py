"""One pair of updates, place by place: the map of overlaps with the chance level of every cell, and what lies in one
cell.

What `_em_geometry.compare` averages over modules is kept apart here, for one pair and one k, so that it can be looked
at while k is moved. Cost: as there; 28 modules of rank 8 take about 0.1 s with 60 draws, 224 of rank 32 in 4096
dimensions some 20 s.
"""

import time
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr

from workbench.core.errors import BadData
from workbench.core.progress import SILENT, Cancelled, Progress
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.papers.misalignment.em_subspaces.geometry import (
    Pair,
    _between,
    _chance,
    angles_of,
    cosine,
    layer_and_end,
    overlap_by_k,
)
from workbench.papers.misalignment.em_subspaces.runs import Update
from workbench.weights.subspaces import overlap, row_space, singular_of_factors

MEASURED = {  # variable: (long name, unit)
    "overlap": ("Overlap of input directions", "share"),
    "overlap_left": ("Overlap of output directions", "share"),
    "cosine": ("Cosine of updates", "cosine"),
    "mean_angle": ("Mean principal angle of input directions", "degrees"),
    "row_space": ("Overlap of the whole row spaces of A", "share"),
    "free": ("Chance overlap of free directions, k / in", "share"),
    "floor": ("Overlap of random directions in one row space, k / r", "share"),
    "chance": ("Chance overlap, mean", "share"),
    "chance_low": ("Chance overlap, lower end", "share"),
    "chance_high": ("Chance overlap, upper end", "share"),
}


def most_directions(updates: Mapping[str, Update], pair: Pair) -> int:
    """The largest k two updates can be compared at: the smallest rank among their modules."""
    return min(
        min(len(f.A), *f.A.shape[1:], f.B.shape[0]) for name in (pair.one, pair.other) for f in updates[name].values()
    )


def pair_map(
    updates: Mapping[str, Update],
    pair: Pair,
    *,
    k: int,
    n_draws: int = 60,
    level: float = 0.95,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Result:
    """Overlap of the leading k directions of two updates in every module, with what chance gives in that module.

    Args:
        updates: by name. pair: which two; with `has_start` chance keeps both adapters' A (`chance_of_factors`), else
            directions are free.
        k: directions compared. n_draws, level, seed: of the chance band.
        progress: per module; cancelling gives a partial Result with nan where it did not come.

    Returns:
        Result over (layer, module): the variables of MEASURED; `row_space` and `floor` are nan where there is no A that
        was drawn.

    Raises:
        BadData: if the updates are of other modules, or k is above a rank.
    """
    started = time.monotonic()
    one, other = updates[pair.one], updates[pair.other]
    if one.keys() != other.keys():
        raise BadData(
            f"{pair.one} and {pair.other} move different modules ({', '.join(sorted(one.keys() ^ other.keys())[:3])});"
            " compare updates of one list of targets"
        )
    if k > (most := most_directions(updates, pair)):
        raise BadData(
            f"{pair.one} and {pair.other} have {most} directions in some module, so k = {k} cannot be compared; choose"
            f" at most {most}"
        )
    places = {module: layer_and_end(module) for module in one}
    layers, ends = (
        sorted({layer for layer, _ in places.values()}),
        list(dict.fromkeys(end for _, end in places.values())),
    )
    arrays = {name: np.full((len(layers), len(ends)), np.nan) for name in MEASURED}
    partial = False
    try:
        for done, (module, (layer, end)) in enumerate(places.items()):
            progress.update(done, len(places), "comparing updates")
            at = layers.index(layer), ends.index(end)
            for name, value in _measured(pair, one, other, module, k, n_draws, level, seed + done).items():
                arrays[name][at] = value
        progress.update(len(places), len(places), "done")
    except Cancelled:
        partial = True
    variables = {
        name: (("layer", "module"), values, {"long_name": MEASURED[name][0], "unit": MEASURED[name][1]})
        for name, values in arrays.items()
    }
    attrs = {
        "k": k,
        "one": pair.one,
        "other": pair.other,
        "condition": pair.condition,
        "has_start": int(pair.has_start),
        "n_draws": n_draws,
        "level": level,
    }
    provenance = Provenance.start(
        "em_subspaces", attrs | {"seed": seed}, seed, model={"name": f"{pair.one} | {pair.other}"}
    )
    return Result(
        provenance.finish(started),
        xr.Dataset(variables, coords={"layer": layers, "module": ends}, attrs=attrs),
        {},
        partial,
    )


def _measured(
    pair: Pair, one: Update, other: Update, module: str, k: int, n_draws: int, level: float, seed: int
) -> dict[str, float]:
    a, b = one[module], other[module]
    right, left = _between(*(singular_of_factors(f.A, f.B, f.scale) for f in (a, b)), k)
    drawn = _chance(pair, a, b, k, n_draws, seed)
    low, high = drawn.overlap_band(level)
    found = {
        "overlap": overlap_by_k(right)[k - 1],
        "overlap_left": overlap_by_k(left)[k - 1],
        "cosine": cosine(a, b),
        "mean_angle": angles_of(right, k).mean(),
    }
    found |= {"free": k / a.A.shape[1], "chance": float(drawn.overlaps.mean()), "chance_low": low, "chance_high": high}
    if pair.has_start:
        found |= {"floor": k / max(len(a.A), len(b.A)), "row_space": overlap(row_space(a.A), row_space(b.A))}
    return found


def module_at(update: Update, layer: int, end: str) -> str:
    """Name of the module in a cell of the map.

    Raises:
        BadData: if the update moves none there.
    """
    for module in update:
        if layer_and_end(module) == (layer, end):
            return module
    raise BadData(f"these updates move no {end} in layer {layer}")


def cell_table(
    updates: Mapping[str, Update],
    pair: Pair,
    module: str,
    *,
    k: int,
    n_draws: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """One module of a pair by index: singular values of both updates, and for the first k the principal angles with
    their chance band.

    Returns:
        Columns index, `one` and `other` (singular values, largest first), angle, chance_low, chance_high (degrees,
        smallest first).
    """
    a, b = updates[pair.one][module], updates[pair.other][module]
    found = [singular_of_factors(f.A, f.B, f.scale) for f in (a, b)]
    right, _ = _between(found[0], found[1], k)
    low, high = _chance(pair, a, b, k, n_draws, seed).angle_band(level)
    columns: dict[str, Sequence[float]] = {
        "one": found[0].values,
        "other": found[1].values,
        "angle": angles_of(right, k),
        "chance_low": low,
        "chance_high": high,
    }
    n = max(len(values) for values in columns.values())
    return pd.DataFrame(
        {"index": np.arange(1, n + 1)}
        | {
            name: np.pad(np.asarray(values, float), (0, n - len(values)), constant_values=np.nan)
            for name, values in columns.items()
        }
    )
