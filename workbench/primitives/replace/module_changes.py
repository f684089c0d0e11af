"""What a fine-tune did to each weight matrix: how far it moved, along which directions, and whether these are more than
chance.

For every parameter of the blocks: Euclidean norm of the change and its size relative to the weight. For every matrix
also the spectrum of the change, and the principal angles between its leading k directions and the leading k of the
weights it changed (and of a second change, where a third checkpoint is given), beside what random subspaces of that
space give (weights/subspaces.py). Checkpoints are stored in a number format, so every difference carries rounding noise
of full
rank: directions below it are noise, and a k above the rank that stands out of it is refused cell by cell (nan).
Two low-rank changes that were started from the same A overlap by k / r and more whatever they learned; the floor k / d
of free subspaces is then far too low, and `same_space_floor` gives k / r where both changes are of low rank.
Cost: one pass over the weights; two SVDs (three with a third checkpoint) of every block matrix, in float64 on the
model's device.
"""

import time
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from workbench.core.errors import BadData
from workbench.core.progress import SILENT, Cancelled, Progress
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.models.model import Model
from workbench.primitives.replace.two_checkpoints import _parameters, refuse_misaligned, weight_change
from workbench.weights.names import OUTSIDE, place
from workbench.weights.subspaces import (
    Chance,
    Singular,
    chance,
    expected_overlap,
    overlap,
    principal_angles,
    singular_of_matrix,
)

SIDES = ("right", "left")  # input and output directions
WEIGHTS, OTHER = "weights", "other change"

_CELL, _SIDED = ("layer", "module"), ("side", "layer", "module")
_VARIABLES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "norm_a": (_CELL, "Norm of the weights of A", "Frobenius norm"),
    "change": (_CELL, "Norm of the change, B - A", "Frobenius norm"),
    "relative": (_CELL, "Relative change of the weights, |B - A| / |A|", "share of |A|"),
    "rank": (_CELL, "Directions of the change above rounding", "directions"),
    "share": (_CELL, "Part of the squared change in its leading k directions", "share"),
    "rounding": (_CELL, "Largest singular value that rounding alone can make", "Frobenius norm"),
    "overlap": (("against", *_SIDED), "Overlap of the leading k directions of the change", "mean cos^2"),
    "mean_angle": (("against", *_SIDED), "Mean principal angle", "degrees"),
    "angle": (("against", *_SIDED, "index"), "Principal angle", "degrees"),
    "expected_overlap": (_SIDED, "Mean overlap of random subspaces, k / d", "mean cos^2"),
    "chance_overlap_low": (_SIDED, "Lower end of chance overlap", "mean cos^2"),
    "chance_overlap_high": (_SIDED, "Upper end of chance overlap", "mean cos^2"),
    "chance_angle_low": ((*_SIDED, "index"), "Lower end of chance angle", "degrees"),
    "chance_angle_high": ((*_SIDED, "index"), "Upper end of chance angle", "degrees"),
}
_OF_THIRD: dict[str, tuple[tuple[str, ...], str, str]] = {
    "cosine_changes": (_CELL, "Cosine of the changes B - A and C - A", "cosine"),
    "same_space_floor": (
        _CELL,
        "Mean overlap of random k-subspaces if low-rank changes share their r dimensions, k / r",
        "mean cos^2",
    ),
}


def module_changes(
    a: Model,
    b: Model,
    third: Model | None = None,
    *,
    k: int = 4,
    level: float = 0.95,
    n_draws: int = 500,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Result:
    """Norms, spectra and principal angles of the change from A to B, block by block and module by module.

    Args:
        a: the base. b: the fine-tune. third: another fine-tune of `a`, whose change is compared with that of `b`.
        k: leading directions taken as the subspace. level, n_draws, seed: of the Monte-Carlo chance band.
        progress: per matrix; cancelling gives a partial Result with all norms and nan for the matrices not reached.

    Returns:
        Result over layer and module: `norm_a`, `change`, `relative`, `rank`, `share`, `rounding`; over (against, side)
        too `overlap` and `mean_angle`; `angle` by index; the chance of each: `expected_overlap` (k / d),
        `chance_overlap_low/high` and `chance_angle_low/high`. With a third checkpoint `cosine_changes`, against "other
        change" and `same_space_floor`. tables["parameters"] lists every parameter, those outside the blocks with layer
        -1; tables["spectrum"] the singular values.

    Raises:
        UnsupportedModel, BadData: if shapes, parameters or vocabularies disagree, saying where; if k is below 1.
    """
    started = time.monotonic()
    if k < 1:
        raise BadData(f"a subspace has at least one direction, got k={k}")
    for other in (b, third):
        if other is not None:
            refuse_misaligned(
                a, other, [range(a.d_vocab)] if a.tokenizer is not None and other.tokenizer is not None else []
            )
    table = _table(a, b, third)
    models = {"a": a.provenance(), "b": b.provenance(), "name": f"{b.name} minus {a.name}"} | (
        {} if third is None else {"third": third.provenance()}
    )
    provenance = Provenance.start(
        "two_checkpoints", {"k": k, "level": level, "n_draws": n_draws, "third": third is not None}, seed, model=models
    )
    data = _empty(table, k, third is not None)
    _fill(data, table)
    weights = [_parameters(m) for m in (a, b, third) if m is not None]
    transposed = _input_first(a)
    matrices = [
        row for row in table.to_dict("records") if row["layer"] != OUTSIDE and weights[0][row["parameter"]].ndim == 2
    ]
    spectra: list[pd.DataFrame] = []
    warnings = [f"no parameter differs between {a.name} and {b.name}"] if not table["change"].to_numpy().any() else []
    partial = False
    levels = _Levels(k, level, n_draws, seed)
    try:
        for done, row in enumerate(matrices):
            layer, module, name = row["layer"], row["module"], row["parameter"]
            progress.update(done, len(matrices), f"layer {layer}, {module}")
            spectra.append(
                _measure(data, layer, module, [_matrix(w[name], name in transposed) for w in weights], levels)
            )
        progress.update(len(matrices), len(matrices), "done")
    except Cancelled:
        partial = True
    moved = data["change"].where(data["rank"].notnull()) > 0
    if short := int((moved & (data["rank"] < k)).sum()):
        warnings.append(
            f"{short} of {int(moved.sum())} changed matrices have fewer than {k} directions above rounding: no subspace"
            " there; choose a smaller k"
        )
    tables = {
        "parameters": table,
        "spectrum": (
            pd.concat(spectra, ignore_index=True)
            if spectra
            else pd.DataFrame(columns=["layer", "module", "index", "change", "weights"])
        ),
    }
    return Result(provenance.finish(started), data, tables, partial, tuple(warnings))


def _table(a: Model, b: Model, third: Model | None) -> pd.DataFrame:
    """`weight_change` with layer and module, and what the third checkpoint adds."""
    table = weight_change(a, b)
    places = [place(name) for name in table["parameter"]]
    several = len({at.before for at in places if at.layer != OUTSIDE}) > 1  # an encoder and a decoder number alike
    table.insert(0, "layer", [at.layer for at in places])
    names = [f"{at.before}.{at.inside}" if several and at.layer != OUTSIDE else at.inside for at in places]
    table.insert(1, "module", names)
    if third is not None:
        other = weight_change(a, third)
        table["relative_third"] = other["relative"]
        table["cosine_changes"] = [
            _cosine(*(_parameters(m)[name] for m in (a, b, third))) for name in table["parameter"]
        ]
    return table


def _cosine(base: Any, one: Any, other: Any) -> float:
    """Of two changes, flattened; nan where one is zero."""
    x, y = ((tensor.detach().cpu().double() - base.detach().cpu().double()).flatten() for tensor in (one, other))
    product = float(x.norm() * y.norm())
    return float(x @ y) / product if product else float("nan")


def _empty(table: pd.DataFrame, k: int, has_third: bool) -> xr.Dataset:
    blocks = table[table["layer"] != OUTSIDE]
    coords: dict[str, Any] = {"layer": sorted(set(blocks["layer"])), "module": list(dict.fromkeys(blocks["module"]))}
    coords |= {"against": [WEIGHTS, OTHER] if has_third else [WEIGHTS], "side": list(SIDES), "index": range(1, k + 1)}
    asked = _VARIABLES | (_OF_THIRD if has_third else {})
    sizes = {dim: len(values) for dim, values in coords.items()}
    variables = {
        name: (dims, np.full([sizes[d] for d in dims], np.nan), {"long_name": title, "unit": unit})
        for name, (dims, title, unit) in asked.items()
    }
    return xr.Dataset(variables, coords=coords, attrs={"k": k})


def _fill(data: xr.Dataset, table: pd.DataFrame) -> None:
    """Norms and cosines, which the table has, onto layer x module."""
    for row in table.to_dict("records"):
        for name in ("norm_a", "change", "relative", "cosine_changes"):
            if name in data and row["layer"] != OUTSIDE:
                data[name].loc[{"layer": row["layer"], "module": row["module"]}] = row[name]


def _input_first(model: Model) -> set[str]:
    """Names, as `_parameters` has them, of matrices stored [in, out]: those of transformers' Conv1D."""
    module: Any = model.live.original_model if model.runner is model.bridge else model.runner
    return {
        f"{name}.weight".replace("_original_component.", "")
        for name, part in module.named_modules()
        if type(part).__name__ == "Conv1D"
    }


def _matrix(parameter: Any, is_input_first: bool) -> torch.Tensor:
    matrix = parameter.detach()
    return matrix.T if is_input_first else matrix


@dataclass
class _Levels:
    """Chance for every width of a space, drawn once."""

    k: int
    level: float
    n_draws: int
    seed: int
    drawn: dict[int, Chance] = field(default_factory=dict)

    def bands(self, d: int) -> dict[str, tuple[Any, Any]]:
        """{"overlap": (low, high), "angle": (low, high)} of random k-subspaces in d dimensions."""
        if d not in self.drawn:
            self.drawn[d] = chance(self.k, d, n_draws=self.n_draws, seed=self.seed)
        return {"overlap": self.drawn[d].overlap_band(self.level), "angle": self.drawn[d].angle_band(self.level)}


def _measure(data: xr.Dataset, layer: int, module: str, matrices: list[torch.Tensor], levels: _Levels) -> pd.DataFrame:
    """Fill one cell from the matrices of A, B and perhaps C; the spectra of change and weights, largest first."""
    at: dict[str, Any] = {"layer": layer, "module": module}
    k, base, tuned, other = levels.k, matrices[0], matrices[1], matrices[2] if len(matrices) > 2 else None
    found = {"change": _change(base, tuned, k), WEIGHTS: singular_of_matrix(base, keep=k)} | (
        {} if other is None else {OTHER: _change(base, other, k)}
    )
    floors = {
        name: _rounding(base, matrix) for name, matrix in (("change", tuned), (OTHER, other)) if matrix is not None
    }
    ranks = {name: int((found[name].values > floor).sum()) for name, floor in floors.items()} | {
        WEIGHTS: found[WEIGHTS].rank
    }
    data["rank"].loc[at], data["rounding"].loc[at], data["share"].loc[at] = (
        ranks["change"],
        floors["change"],
        found["change"].share(k),
    )
    widths = {"right": base.shape[1], "left": base.shape[0]}
    for side, d in widths.items():
        if k > d:
            continue
        data["expected_overlap"].loc[at | {"side": side}] = expected_overlap(k, d)
        for name, ends in levels.bands(d).items():
            for end, values in zip(("low", "high"), ends, strict=True):
                data[f"chance_{name}_{end}"].loc[at | {"side": side}] = values
        for against in data["against"].values.tolist():
            if min(ranks["change"], ranks[against]) < k:
                continue
            one, two = (getattr(found[name], f"{side}_basis")(k) for name in ("change", against))
            angles, where = principal_angles(one, two), at | {"side": side, "against": against}
            data["overlap"].loc[where], data["mean_angle"].loc[where], data["angle"].loc[where] = (
                overlap(one, two),
                angles.mean(),
                angles,
            )
    if (
        other is not None
        and k <= min(ranks["change"], ranks[OTHER])
        and max(ranks["change"], ranks[OTHER]) < min(base.shape)
    ):
        data["same_space_floor"].loc[at] = k / max(ranks["change"], ranks[OTHER])
    columns = {"change": found["change"].values, "weights": found[WEIGHTS].values} | (
        {} if other is None else {"other_change": found[OTHER].values}
    )
    return pd.DataFrame(
        {"layer": layer, "module": module, "index": np.arange(1, len(found["change"].values) + 1)} | columns
    )


def _change(base: torch.Tensor, tuned: torch.Tensor, keep: int) -> Singular:
    exact = torch.float32 if base.device.type == "mps" else torch.float64
    return singular_of_matrix(tuned.to(base.device, exact) - base.to(exact), keep)


def _rounding(base: torch.Tensor, tuned: torch.Tensor) -> float:
    """A bound on the largest singular value of rounding errors: entries of size eps |w| or less, independent, hence
    eps x rms(w) x (sqrt(out) + sqrt(in)); three times what uniform errors of half a step give."""
    eps = max(torch.finfo(base.dtype).eps, torch.finfo(tuned.dtype).eps)
    return eps * float(tuned.detach().float().square().mean().sqrt()) * (sqrt(base.shape[0]) + sqrt(base.shape[1]))
