"""The folder of a run: checked before the run, filled by it, taken up again by a later one, read by the reports."""

import inspect
import json
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import typer

from workbench.core.errors import WorkbenchError
from workbench.notebook import quiet

from .terminal import Terminal

OUT = Path("workbench-out")  # in the current folder: what is written when no --out is given


def new_folder(name: str) -> Path:
    """A folder of its own for a run that was given none; it is not made here."""
    return OUT / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def check_writable(folder: Path) -> Path:
    """Make `folder`; one that cannot be written is found out before the run, not after it.

    Raises:
        WorkbenchError: if it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as found:
        raise WorkbenchError(f"--out {folder} cannot be written ({found.strerror}); give a folder that can") from None
    return folder


def load_run(folder: str) -> tuple[Any, Any, dict[str, Any]]:
    """A saved Result, its paper and its figures. The folder of `workbench run` is taken as well as the `result` in it.

    Raises:
        WorkbenchError: if neither holds a readable Result.
    """
    from workbench.core.result import Result
    from workbench.papers import method
    from workbench.views import figures

    path = Path(folder)
    result = Result.load(path / "result" if (path / "result" / "result.json").is_file() else path)
    return result, method(result.stem), figures(result)


def run_into(folder: Path, paper: Any, spec: Any, as_json: bool = False) -> int:
    """Run a paper, save and write up its result in `folder`, print the claims; a partial result there is resumed.

    Returns:
        The exit code: 0 if all is as it should be, 1 if not, 130 if cancelled.
    """
    from workbench.core.claims import check

    quiet()
    check_writable(folder)
    with Terminal(folder / "result") as progress:
        result = paper.run(spec, progress=progress, **_to_resume(folder, paper))
    folder = _save(result, folder)
    table = check(result, paper.CLAIMS)
    page, trouble = _write_up(result, table, folder)
    (_say_json if as_json else _say)(result, table, page)
    if trouble:
        typer.echo(trouble, err=True)
    if result.partial:
        finished = f"what was finished is in {folder}, and the same call with --out {folder} goes on from there"
        typer.echo(f"cancelled; {finished}", err=True)
        return 130
    return 0 if table.passed else 1


def _to_resume(folder: Path, paper: Any) -> dict[str, Any]:
    """The argument `resume` of a run: a partial Result left in `folder`. A paper that takes none starts again."""
    from workbench.core.result import Result

    before = Result.load(folder / "result") if (folder / "result").is_dir() else None
    if before is None or not before.partial or "resume" not in inspect.signature(paper.run).parameters:
        return {}
    return {"resume": before}


def _save(result: Any, folder: Path) -> Path:
    """Write the result and give where it went: a temporary folder if `folder` does not take it, so no run is lost."""
    try:
        result.save(folder / "result")
        return folder
    except OSError as trouble:
        instead = Path(tempfile.mkdtemp(prefix="workbench-"))
        result.save(instead / "result")
        why = trouble.strerror or trouble
        typer.echo(f"{folder} could not be written ({why}); everything went to {instead}", err=True)
        return instead


def _write_up(result: Any, table: Any, folder: Path) -> tuple[Path | None, str]:
    """The report's page, and a sentence on what went wrong; no page if the disk took none: the numbers are safe."""
    from workbench.reports.review import write_documents
    from workbench.views import figures

    try:
        return write_documents(result, table, figures(result), folder)
    except OSError as found:
        again = f"`workbench report {folder / 'result'} --out ELSEWHERE` makes one of it"
        why = found.strerror or found
        return None, f"the report could not be written ({why}); the result is whole: {again}"


def _say_json(result: Any, table: Any, page: Path | None) -> None:
    judged = {"partial": result.partial, "passed": table.passed, "claims": table.rows()}
    typer.echo(json.dumps({**judged, "warnings": list(result.warnings), "report": page and str(page)}))


def _say(result: Any, table: Any, page: Path | None) -> None:
    typer.echo(str(table))
    for warning in result.warnings:
        typer.echo(f"warning: {warning}")
    written = f" Report with figures: {page}" if page else ""
    typer.echo(f"\n{result.provenance.seconds:.0f} s.{written}")
