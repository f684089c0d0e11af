"""The folder of a run: checked before the run, filled by it, taken up again by a later one, read by the reports."""

import inspect
import json
import shutil
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import typer

from workbench.core import files
from workbench.core.errors import WorkbenchError
from workbench.notebook import quiet

from .terminal import Terminal

OUT = Path("workbench-out")  # in the current folder: what is written when no --out is given


def new_folder(name: str) -> Path:
    """A folder of its own for a run that was given none; it is not made here."""
    return OUT / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


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


def run_into(folder: Path, paper: Any, spec: Any, *, as_json: bool = False, force: bool = False) -> int:
    """Run a paper, save and write up its result in `folder`, print the claims; a partial result there is resumed.

    Args:
        force: put the result in the place of another that is there. That one stays until the new one is finished; what
            is kept until then lies in a folder of its own.

    Returns:
        The exit code: 0 if all is as it should be, 1 if not, 130 if cancelled.

    Raises:
        WorkbenchError: before the run, if the folder cannot be written, another run is at it, or it holds a result that
            is finished, of another spec, or not of `workbench run`.
    """
    from workbench.core.claims import check
    from workbench.core.result import OURS

    quiet()
    files.check_writable(folder)
    with files.claimed(folder / ".lock") as is_mine:
        if not is_mine:
            raise WorkbenchError(f"another run is writing to {folder}; wait for its end or give another folder")
        files.check_place(folder / "result", OURS)
        replaces = force and (folder / "result").exists()
        resumed = {} if replaces else _to_resume(folder, paper, spec)
        home = new_folder(_stem(paper)) if replaces else folder
        with Terminal(home / "result") as progress:
            result = paper.run(spec, progress=progress, **resumed)
        place = _save(result, home if result.partial else folder)
        if replaces and not result.partial and place == folder:
            shutil.rmtree(home, ignore_errors=True)
        table = check(result, paper.CLAIMS)
        page, trouble = _write_up(result, table, place)
    (_say_json if as_json else _say)(result, table, page)
    if trouble:
        typer.echo(trouble, err=True)
    if result.partial:
        finished = f"what was finished is in {place}, and the same call with --out {place} goes on from there"
        typer.echo(f"cancelled; {finished}", err=True)
        return 130
    return 0 if table.passed else 1


def _to_resume(folder: Path, paper: Any, spec: Any) -> dict[str, Any]:
    """The argument `resume` of a run: a partial Result of the same spec left in `folder`.

    Raises:
        WorkbenchError: if what is there cannot be resumed, so that the run would replace it.
    """
    from workbench.core.result import Result

    if not (folder / "result").exists():
        return {}
    before = Result.load(folder / "result")
    wanted = json.loads(json.dumps(spec.to_dict()))
    instead = "give another folder, or --force to put the new result in its place"
    if before.stem != _stem(paper):
        raise WorkbenchError(f"{folder} holds a result of {before.stem}; {instead}")
    if changed := sorted(n for n in before.spec.keys() | wanted.keys() if before.spec.get(n) != wanted.get(n)):
        state = "partial" if before.partial else "finished"
        raise WorkbenchError(f"{folder} holds a {state} result of another spec ({', '.join(changed)}); {instead}")
    if not before.partial:
        raise WorkbenchError(f"{folder} holds the finished result of this very spec; {instead}")
    if "resume" not in inspect.signature(paper.run).parameters:
        raise WorkbenchError(f"{folder} holds a partial result, and {before.stem} cannot go on from one; {instead}")
    return {"resume": before}


def _stem(paper: Any) -> str:
    return paper.__name__.rsplit(".", 1)[-1]


def _save(result: Any, folder: Path) -> Path:
    """Write the result and give where it went: a temporary folder if `folder` does not take it, so no run is lost."""
    try:
        result.save(folder / "result")
    except (OSError, WorkbenchError) as trouble:
        instead = Path(tempfile.mkdtemp(prefix="workbench-"))
        result.save(instead / "result")
        why = getattr(trouble, "strerror", None) or trouble
        typer.echo(f"{folder} could not be written ({why}); everything went to {instead}", err=True)
        return instead
    for name in ("claims.json", "report.html", "provenance.json"):  # of the result before, which they may not outlive
        (folder / name).unlink(missing_ok=True)
    return folder


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
