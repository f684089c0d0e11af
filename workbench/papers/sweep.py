"""A paper's method over models x parameters x seeds: one row per run, on any executor, resumable.

    sweep("attention_sinks", {"model": ["organism:attention-sink", "./my-model"], "seed": range(5)}, folder="out")

Each run's Result is in the folder its row names; `workbench.core.result.Result.load` opens it.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from workbench.core.claims import check
from workbench.core.errors import BadSpec
from workbench.core.progress import SILENT, Progress
from workbench.core.spec import Spec
from workbench.papers import method
from workbench.scale import grid as grids
from workbench.scale.executors import Executor
from workbench.scale.grid import OK

__all__ = ["OK", "run_method", "spec_of", "sweep"]


def sweep(
    stem: str,
    grid: Mapping[str, Iterable[Any]],
    executor: Executor | None = None,
    *,
    folder: Path | str,
    make_spec: Callable[[ModuleType, Mapping[str, Any]], Spec] | None = None,
    retry_failed: bool = False,
    progress: Progress = SILENT,
) -> pd.DataFrame:
    """Run a method on every combination of the grid's values.

    Args:
        stem: which paper.
        grid: {field of its Spec, dotted where nested: values}; `model` stands for `model.name`. Text is read by the
            field's type.
        executor: from workbench.scale; in this process if not given.
        folder: where results and the table go; called again with the same one, what is finished is not run again.
        make_spec: (method, cell) -> Spec; by default `Spec.tiny()` with the cell's fields.
        retry_failed: run those again that failed.
        progress: per run.

    Returns:
        One row per run: the cell's fields, status, error, seconds, `passed` (every testable claim holds and every
        control fails), `holds` (how many lines are as they should be, of those tested), and each claim's measured
        number under its text.

    Raises:
        UnknownName, BadSpec: before the first run, if a field or a value is wrong.
    """
    module, cells = method(stem), grids.cells_of(grid)
    specs = [{"stem": stem, "spec": (make_spec or spec_of)(module, cell).to_dict()} for cell in cells]
    return grids.sweep(
        f"{__name__}:run_method",
        cells,
        folder,
        specs=specs,
        executor=executor,
        retry_failed=retry_failed,
        progress=progress,
    )


def spec_of(module: ModuleType, cell: Mapping[str, Any]) -> Spec:
    """`Spec.tiny()` with a cell's fields set; text by the field's type, other values as they are."""
    if "model" in cell and "model.name" in cell:
        raise BadSpec("the grid names model and model.name, which are the same field")
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in cell.items()}
    named = {"model.name" if name == "model" else name: value for name, value in plain.items()}
    texts = {name: value for name, value in named.items() if isinstance(value, str)}
    return (
        module.Spec.tiny()
        .with_strings(texts)
        .replace(**{name: value for name, value in named.items() if name not in texts})
    )


def run_method(job: Mapping[str, Any], home: str) -> dict[str, Any]:
    """What a worker does: run a method, save its Result in `home`, give its row."""
    module = method(job["stem"])
    result = module.run(module.Spec.from_dict(job["spec"]))
    result.save(Path(home) / "result")
    table = check(result, module.CLAIMS)
    tested = [row for row in table.rows() if row["ok"] is not None]
    measured = {f"{row['kind']}: {row['text']}": row["measured"] for row in tested}
    commit = (result.provenance.git.get("commit") or "")[:8]
    return {
        "commit": commit,
        "passed": table.passed,
        "holds": f"{sum(row['ok'] for row in tested)} of {len(tested)}",
        "model_name": result.provenance.model.get("name", ""),
        **measured,
    }
