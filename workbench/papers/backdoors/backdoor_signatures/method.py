"""How the analysis runs: every cell and seed a unit of a study, joined with the runs that ship."""

import copy
from collections.abc import Iterator

import pandas as pd
import xarray as xr

from workbench.core.progress import SILENT, Progress
from workbench.core.result import Result
from workbench.models import load
from workbench.models.loading import read_module
from workbench.models.model import Model, hash_weights
from workbench.runs.seeds import summary
from workbench.runs.stored import load_runs
from workbench.runs.study import Steps, Unit, study

from .runs import GATE, run_unit, suspicious_and_purified
from .scores import SCORES
from .spec import STEM, Spec

KEYS = {
    "gate": ["cell", "attack", "behaviour", "form"],
    "arms": ["cell", "arm", "stage"],
    "sanity": ["cell", "zeroed", "n_blocks"],
    "tau": ["cell", "kind", "share"],
    "ablation": ["cell", "factor", "value"],
    "transfer": ["cell", "taught", "attacked"],
}
Tables = dict[str, pd.DataFrame]


def run(spec: Spec, *, model: Model | None = None, progress: Progress = SILENT, resume: Result | None = None) -> Result:
    """Plant, check the gate, and purify, cell by cell and seed by seed.

    Args:
        spec: what to run. model: only its spec is taken, as weights are trained; it stands for the clean model.
        progress: per fine-tune; cancelling gives a partial Result with the finished cells.
        resume: a partial Result of the same weights and spec, but for grid, purified and seeds; what it has is kept.

    Returns:
        Result with, per purified cell and seed (`run`, coordinates origin, cell, seed), `norm` [variant, channel] and
        `cosine` [pair, channel], channel coordinates layer, module, index (`changes_of` gives those of one run);
        tables gate, arms, sanity, tau, ablation, transfer, examples and summary, whose rows name origin, cell and seed.

    Raises:
        BadData: if stored runs were asked for another model than theirs, or files cannot be used.
    """
    spec = spec if model is None else spec.replace(model=model.spec)
    base, tokenizer = read_module(spec.model)
    weights = hash_weights(base)
    return study(
        STEM,
        spec,
        spec.units(),
        lambda unit, steps: run_unit(spec, unit, base, tokenizer, steps),
        about={"name": spec.model.name, "weights": weights},
        progress=progress,
        resume=resume,
        stored=load_runs(STEM, weights=weights) if spec.stored else None,
        choosing=("grid", "purified", "seeds"),
        derive=_derived,
        warn=_dropped,
    )


def models_of(spec: Spec, cell: str, seed: int, *, progress: Progress = SILENT) -> tuple[Model, Model]:
    """(the suspicious model, the same with its signature cut and recovered) of one cell, made again, for a prompt box.

    Cost: planting, two fine-tunes a variant and the recovery; 40 s of one core with the spec of `tiny`.
    """
    base, tokenizer = read_module(spec.model)
    unit = Unit(seed, {"cell": cell})
    steps = Steps(progress, 0, 1, unit, lambda _: None)
    before, after = suspicious_and_purified(spec, unit, base, tokenizer, steps)
    return load(copy.deepcopy(before.plain), tokenizer=tokenizer), load(copy.deepcopy(after.plain), tokenizer=tokenizer)


def _derived(data: xr.Dataset, tables: Tables) -> tuple[xr.Dataset, Tables]:
    if "cosine" in data:  # kept small on disk; a thirty-thousandth of a cosine is lost
        data["cosine"].encoding = {"zlib": True, "dtype": "int16", "scale_factor": 1 / 32000, "_FillValue": -32768}
        data["norm"].encoding = {"zlib": True, "dtype": "float32"}
    found = summary(tables, KEYS, SCORES)
    as_text = {name: str for name in ("n_blocks", "share") if name in found}  # a column of a file has one type
    return data, tables | {"summary": found.astype(as_text)}


def _dropped(data: xr.Dataset, tables: Tables) -> Iterator[str]:
    gate = tables["gate"]
    for cell, rows in gate[~gate["kept"]].groupby("cell"):
        yield f"{cell} is dropped: its undefended ASR is {rows['asr'].mean():.0f} %, below the gate of {GATE:.0f} %"
