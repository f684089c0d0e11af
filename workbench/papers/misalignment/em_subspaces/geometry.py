"""Where updates point: cosine, overlap and angles of leading singular subspaces, module by module, beside what chance
gives.

Works on factors alone, so it serves the stored adapters, PEFT directories of any size (one module at a time) and
full-rank updates. Two chance levels stand beside every measured overlap: `free`, k / in, for directions anywhere in the
input space, and for two low-rank adapters `start`, the mean overlap when each update is B R A with a random rotation R,
which keeps both adapters' A (so the start they may share) and both spectra and forgets what training chose within them.
Cost: one r x r core an adapter and module, one [n, n] product a pair and module; chance about 1 ms a pair and module
for ten draws.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import xarray as xr

from workbench.core.errors import BadData
from workbench.core.progress import SILENT, Progress
from workbench.runs.seeds import student_interval
from workbench.weights.factors import Factors
from workbench.weights.names import OUTSIDE, place
from workbench.weights.subspaces import (
    Chance,
    Singular,
    chance,
    chance_of_factors,
    row_space,
    singular_of_factors,
    singular_of_matrix,
)
from workbench.weights.subspaces import overlap as subspace_overlap


@dataclass(frozen=True)
class Pair:
    """Two updates to compare.

    condition: what they share, as the figures group them. group: the unit that intervals count (a seed, a pair of
    seeds).
    has_start: both are trained B A whose A was drawn; False for full-rank and for random updates.
    """

    one: str
    other: str
    condition: str
    group: str
    has_start: bool = True

    @property
    def name(self) -> str:
        return f"{self.one} | {self.other}"


def layer_and_end(module: str) -> tuple[int, str]:
    """("model.layers.3.mlp.up_proj") -> (3, "up_proj").

    Raises:
        BadData: if no part of the name is a number.
    """
    at = place(module)
    if at.layer == OUTSIDE:
        raise BadData(f"{module!r} names no layer by number, and layer x module maps need one")
    return at.layer, at.projection


def cosine(one: Factors, other: Factors) -> float:
    """Cosine of two flattened updates, signed; nan if one is zero."""
    norms = one.norm() * other.norm()
    return one.dot(other) / norms if norms > 0 else float("nan")


def overlap_by_k(between: np.ndarray) -> np.ndarray:
    """Overlap of the leading k directions for k = 1 .. n.

    Args:
        between: [n, n] inner products of two orthonormal bases, leading directions first.

    Returns:
        [n] mean squared cosine; entry k - 1 uses k directions of each.
    """
    sums = np.square(between).cumsum(0).cumsum(1)
    return np.diagonal(sums) / np.arange(1, len(between) + 1)


def angles_of(between: np.ndarray, k: int) -> np.ndarray:
    """[k] principal angles of the leading k directions, in degrees, smallest first."""
    return np.degrees(np.arccos(np.clip(np.linalg.svd(between[:k, :k], compute_uv=False), 0, 1)))


Streams = Iterable[tuple[str, Mapping[str, Factors]]]  # module by module: (its name, {adapter: its update})


def compare(
    modules: Sequence[str],
    stream: Streams,
    pairs: Sequence[Pair],
    *,
    k: int,
    n_draws: int,
    seed: int,
    base: Callable[[str], torch.Tensor] | None = None,
    progress: Progress = SILENT,
) -> xr.Dataset:
    """Geometry of all pairs in all modules.

    Args:
        modules: names, in the order of the stream. stream: updates of every adapter, one module at a time.
        pairs: which to compare. k: leading directions, at most the smallest rank. n_draws, seed: of the chance levels.
        base: weight [out, in] of a module by name; its own leading input directions are compared with each update's.

    Returns:
        Dataset over pair, layer, module: `cosine`, `overlap` and `overlap_left` (by k), `angle`, `row_space` (nan for
        full-rank updates), `free_overlap` = k / in and `free_overlap_left` = k / out; over pair and draw the
        `start_overlap` and `start_angle`, means over layer and module; over
        adapter: `norm`, `singular_value`, `base_overlap`.

    Raises:
        BadData: if k is above a rank (`subspaces` says which).
    """
    places = [layer_and_end(m) for m in modules]
    layers, ends = sorted({n for n, _ in places}), list(dict.fromkeys(e for _, e in places))
    adapters = list(dict.fromkeys(name for p in pairs for name in (p.one, p.other)))
    started = {name for p in pairs if p.has_start for name in (p.one, p.other)}
    sizes = {"pair": len(pairs), "adapter": len(adapters), "k": k, "angle_index": k}
    place_first = {
        name: tuple(d for d in dims if d not in ("layer", "module"))
        for name, (dims, _, _) in SHOWN.items()
        if "layer" in dims
    }
    arrays = {
        name: np.full((len(layers), len(ends), *(sizes[d] for d in dims)), np.nan) for name, dims in place_first.items()
    }
    arrays |= {name: np.zeros((len(pairs), n_draws)) for name in ("start_overlap", "start_angle")}
    for done, (module, updates) in enumerate(stream):
        at = (layers.index(layer_and_end(module)[0]), ends.index(layer_and_end(module)[1]))
        found = {name: singular_of_factors(updates[name].A, updates[name].B, updates[name].scale) for name in adapters}
        rows = {name: row_space(updates[name].A) for name in started}
        own = singular_of_matrix(base(module), keep=k).right_basis(k) if base is not None else None
        for a, name in enumerate(adapters):
            arrays["norm"][at][a], arrays["singular_value"][at][a] = updates[name].norm(), found[name].values[:k]
            if own is not None:
                arrays["base_overlap"][at][a] = subspace_overlap(found[name].right_basis(k), own)
        for p, pair in enumerate(pairs):
            one, other = updates[pair.one], updates[pair.other]
            right, left = _between(found[pair.one], found[pair.other], k)
            arrays["cosine"][at][p], arrays["free_overlap"][at][p] = cosine(one, other), k / one.A.shape[1]
            arrays["overlap"][at][p], arrays["overlap_left"][at][p], arrays["angle"][at][p] = (
                overlap_by_k(right),
                overlap_by_k(left),
                angles_of(right, k),
            )
            arrays["free_overlap_left"][at][p] = k / one.B.shape[0]
            if pair.has_start:
                arrays["row_space"][at][p] = subspace_overlap(rows[pair.one], rows[pair.other])
            by_chance = _chance(pair, one, other, k, n_draws, seed + done)
            arrays["start_overlap"][p] += by_chance.overlaps / len(modules)
            arrays["start_angle"][p] += by_chance.angles.mean(1) / len(modules)
        progress.update(done + 1, len(modules), "comparing updates")
    in_order = {
        name: (
            np.moveaxis(values, (0, 1), [SHOWN[name][0].index(d) for d in ("layer", "module")])
            if name in place_first
            else values
        )
        for name, values in arrays.items()
    }
    return _dataset(pairs, adapters, layers, ends, k, in_order)


def _chance(pair: Pair, one: Factors, other: Factors, k: int, n_draws: int, seed: int) -> Chance:
    """Chance level of a pair: B R A for two adapters with a start, free subspaces for anything else."""
    if pair.has_start:
        return chance_of_factors((one.A, one.B), (other.A, other.B), k, n_draws=n_draws, seed=seed)
    return chance(k, one.A.shape[1], n_draws=n_draws, seed=seed)


def _between(one: Singular, other: Singular, k: int) -> tuple[np.ndarray, np.ndarray]:
    return one.right_basis(k).T @ other.right_basis(k), one.left_basis(k).T @ other.left_basis(k)


SHOWN = {  # variable: (dims, long name, unit)
    "cosine": (("pair", "layer", "module"), "Cosine of updates", "cosine"),
    "row_space": (("pair", "layer", "module"), "Overlap of the whole row spaces of A", "share"),
    "free_overlap": (("pair", "layer", "module"), "Chance overlap of free directions, k / in", "share"),
    "free_overlap_left": (("pair", "layer", "module"), "Chance overlap of free output directions, k / out", "share"),
    "overlap": (("pair", "k", "layer", "module"), "Overlap of input directions", "share"),
    "overlap_left": (("pair", "k", "layer", "module"), "Overlap of output directions", "share"),
    "angle": (("pair", "angle_index", "layer", "module"), "Principal angle of input directions", "degrees"),
    "norm": (("adapter", "layer", "module"), "Norm of the update", "weight units"),
    "base_overlap": (
        ("adapter", "layer", "module"),
        "Overlap with the base weight's leading input directions",
        "share",
    ),
    "singular_value": (("adapter", "k", "layer", "module"), "Singular value of the update", "weight units"),
    "start_overlap": (("pair", "draw"), "Chance overlap with the starts kept, mean over modules", "share"),
    "start_angle": (("pair", "draw"), "Chance mean angle with the starts kept, mean over modules", "degrees"),
}


def _dataset(
    pairs: Sequence[Pair],
    adapters: list[str],
    layers: list[int],
    ends: list[str],
    k: int,
    arrays: dict[str, np.ndarray],
) -> xr.Dataset:
    coords = {
        "pair": [p.name for p in pairs],
        "one": ("pair", [p.one for p in pairs]),
        "other": ("pair", [p.other for p in pairs]),
        "condition": ("pair", [p.condition for p in pairs]),
        "group": ("pair", [p.group for p in pairs]),
        "adapter": adapters,
        "layer": layers,
        "module": ends,
        "k": np.arange(1, k + 1),
        "angle_index": np.arange(1, k + 1),
    }
    variables = {
        name: (dims, arrays[name], {"long_name": title, "unit": unit}) for name, (dims, title, unit) in SHOWN.items()
    }
    return xr.Dataset(variables, coords=coords)


# ---- summaries ----


def by_condition(data: xr.Dataset, values: xr.DataArray) -> dict[str, np.ndarray]:
    """{condition: [group] mean over its pairs}, from one number a pair; pairs of one seed are not independent, so
    they count once.
    """
    found: dict[str, np.ndarray] = {}
    for condition in dict.fromkeys(data["condition"].values.tolist()):
        of = values.where(data["condition"] == condition, drop=True)
        found[condition] = of.groupby("group").mean().values
    return found


def condition_table(data: xr.Dataset) -> pd.DataFrame:
    """One row a condition: overlap with its interval over groups, both chance levels, the part above each, angle,
    cosine.
    """
    k = int(data.k.max())
    measured, free = data["overlap"].sel(k=k).mean(("layer", "module")), data["free_overlap"].mean(("layer", "module"))
    start = data["start_overlap"].mean("draw")
    others = {
        "mean_angle": data["angle"].mean(("angle_index", "layer", "module")),
        "start_angle": data["start_angle"].mean("draw"),
        "cosine": abs(data["cosine"]).mean(("layer", "module")),
        "overlap_left": data["overlap_left"].sel(k=k).mean(("layer", "module")),
        "row_space": data["row_space"].mean(("layer", "module")),
        "free_left": data["free_overlap_left"].mean(("layer", "module")),
    }
    start_low, start_high = data["start_overlap"].quantile(0.025, "draw"), data["start_overlap"].quantile(0.975, "draw")
    values = {
        "overlap": measured,
        "above": measured - start,
        "free": free,
        "start": start,
        "start_low": start_low,
        "start_high": start_high,
    } | others
    grouped = {name: by_condition(data, value) for name, value in values.items()}
    rows = []
    for condition, of in grouped["overlap"].items():
        means = {name: grouped[name][condition].mean() for name in ("free", "start", "start_low", "start_high")}
        (low, high), (above_low, above_high) = student_interval(of), student_interval(grouped["above"][condition])
        row = {
            "condition": condition,
            "n_pairs": int((data["condition"] == condition).sum()),
            "n_groups": len(of),
            "overlap": of.mean(),
            "low": low,
            "high": high,
        } | means
        row |= {
            "above_start": grouped["above"][condition].mean(),
            "above_start_low": above_low,
            "above_start_high": above_high,
        }
        rows.append(row | {name: grouped[name][condition].mean() for name in others})
    return pd.DataFrame(rows)
