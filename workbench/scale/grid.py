"""A function over a grid of settings: one row per run, resumable, failures kept as rows with their error.

Every run has a folder of its own, named by what was run; its row.json is written when it ends. The table is made of
these rows, so a sweep that was killed goes on when it is called again, and two that share a folder help each other.
Cost: beside the runs, one small file each.
"""

import contextlib
import hashlib
import importlib
import itertools
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.core import files
from workbench.core.errors import BadSpec
from workbench.core.progress import SILENT, Cancelled, Progress

from .executors import Executor, Inline, run_all

OK, FAILED, MISSING = "ok", "failed", "not run"
WAIT_SECONDS = 0.5  # before looking again at runs that another sweep is at


def cells_of(grid: Mapping[str, Iterable[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values, the last field fastest: {"a": [1, 2], "seed": [0, 1]} gives four.

    Raises:
        BadSpec: if a field has no values.
    """
    values = {name: list(options) for name, options in grid.items()}
    if empty := [name for name, options in values.items() if not options]:
        raise BadSpec(f"the grid has no values for {', '.join(empty)}")
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """A grid from the words of a command line: `field=a,b`, `seed=0..4` (both ends), `shares=0,0.1|0,0.2` where
    values have commas.
    """
    grid: dict[str, list[str]] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.strip() or not value.strip():
            raise BadSpec(f"--grid wants FIELD=VALUE,VALUE or FIELD=FIRST..LAST, got {text!r}")
        span = re.fullmatch(r"\s*(-?\d+)\.\.(-?\d+)\s*", value)
        options = (
            [str(i) for i in range(int(span[1]), int(span[2]) + 1)]
            if span
            else [part.strip() for part in value.split("|" if "|" in value else ",")]
        )
        if not options or "" in options:
            raise BadSpec(f"--grid {text!r} holds no value, or an empty one")
        if name.strip() in grid:
            raise BadSpec(f"--grid names {name.strip()} twice; give all its values at once")
        grid[name.strip()] = options
    return grid


def sweep(
    run: str,
    cells: Sequence[Mapping[str, Any]],
    folder: Path | str,
    *,
    specs: Sequence[Mapping[str, Any]] | None = None,
    executor: Executor | None = None,
    retry_failed: bool = False,
    progress: Progress = SILENT,
) -> pd.DataFrame:
    """Run a function on every cell.

    Args:
        run: "package.module:function", called in a worker as function(spec, folder) -> a flat dict of JSON values: the
            row.
        cells: the settings that differ, as the table shows them.
        folder: where runs and the table go. Cells whose row is there are not run again.
        specs: what the function is given for each cell, plain JSON; the cell itself if not given.
        executor: from this room; in this process if not given.
        retry_failed: run those again that failed.
        progress: per run; a cancelled sweep gives the table so far, with the rest marked "not run".

    Returns:
        One row per cell, also in `sweep.parquet`: the settings, `status` (ok, failed, not run), `error`, `seconds`,
        `folder` and what the function gave.
    """
    folder = Path(folder)
    specs = [dict(c) for c in cells] if specs is None else [dict(s) for s in specs]
    homes = [
        folder / "runs" / hashlib.sha256(json.dumps([run, spec], sort_keys=True).encode()).hexdigest()[:16]
        for spec in specs
    ]
    known = [_read_row(home) for home in homes]
    todo = [i for i, row in enumerate(known) if _is_to_do(row, retry_failed)]

    def failed(number: int, error: Exception) -> str:
        _write_row(
            homes[todo[number]], {"status": FAILED, "error": f"{type(error).__name__}: {error}", "seconds": None}
        )
        return str(homes[todo[number]])

    def keep(number: int, home: str | None) -> None:
        if home is None:
            busy.append(todo[number])
        else:
            known[todo[number]] = _read_row(homes[todo[number]])

    with contextlib.suppress(Cancelled):
        while todo:
            busy: list[int] = []
            run_all(
                executor or Inline(),
                run_cell,
                [(run, specs[i], str(homes[i].resolve()), retry_failed) for i in todo],
                on_error=failed,
                on_done=keep,
                progress=progress,
                text="runs",
            )
            todo = busy  # another sweep is at them: they are its work, unless it dies
            if todo:
                time.sleep(WAIT_SECONDS)
    nothing = {"status": MISSING, "error": "", "seconds": None}
    rows = [
        {**cell, **(row or nothing), "folder": home.relative_to(folder).as_posix()}
        for cell, row, home in zip(cells, known, homes, strict=True)
    ]
    table = pd.DataFrame(rows)
    save_table(table, folder / "sweep.parquet")
    return table


def run_cell(run: str, spec: dict[str, Any], home: str, retry_failed: bool = False) -> str | None:
    """What a worker does: one run, its row, and where that is; None if another sweep is at it just now. A run that
    another sweep has finished meanwhile is not done again. An error of the run is its row.
    """
    started = time.monotonic()
    module, _, function = run.partition(":")
    with files.claimed(Path(home) / ".lock") as is_mine:
        if not is_mine:
            return None
        if not _is_to_do(_read_row(Path(home)), retry_failed):
            return home
        try:
            given = getattr(importlib.import_module(module), function)(spec, home)
            row = {"status": OK, "error": "", **given}
            json.dumps(row)
        except Exception as found:  # whatever a run raises is a result of the sweep
            row = {"status": FAILED, "error": f"{type(found).__name__}: {found}"}
        _write_row(Path(home), {**row, "seconds": round(time.monotonic() - started, 3)})
    return home


def _is_to_do(row: Mapping[str, Any] | None, retry_failed: bool) -> bool:
    return row is None or (retry_failed and row["status"] == FAILED)


def _write_row(home: Path, row: Mapping[str, Any]) -> None:
    files.write_text(home / "row.json", json.dumps(row, indent=1))


def _read_row(home: Path) -> dict[str, Any] | None:
    """A finished run's row; None if there is none, or half of one from a full disk."""
    try:
        row = json.loads((home / "row.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return row if isinstance(row, dict) and "status" in row else None


def save_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as parquet, whole or not at all; columns of mixed types as text."""
    mixed = {
        name: table[name].map(str)
        for name in table.columns
        if table[name].dtype == object and table[name].map(type).nunique() > 1
    }
    files.write_bytes(path, table.assign(**mixed).to_parquet(index=False))
