"""The command `workbench`: list, run, sweep, demo, organisms, lab, doctor.

Heavy packages are imported inside the commands, so that `--help` and `list` answer at once. Exit codes: 0 all testable
claims hold and all controls fail as they must, 1 not so, 2 a mistake in the call (one sentence), 130 cancelled.
"""

import inspect
import json as json_module
import os
import signal
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.core.catalogue import FAMILIES, PAPERS
from workbench.core.errors import BadSpec, WorkbenchError
from workbench.core.progress import Progress

from .reports import add_commands

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help="A workbench for transformer interpretability, safety and privacy: one notebook per paper, every claim beside a control that must fail.")
organisms_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The small models that ship: list them, build one again, verify what they show.")
app.add_typer(organisms_app, name="organisms")


class _Terminal(Progress):
    """Progress on one line of stderr. Ctrl-C cancels the run, which then keeps what it has; a second one stops at once.

    With a `folder`, the result so far is saved there every half minute, so that a killed run can be resumed too.
    """

    def __init__(self, folder: Path | None = None):
        super().__init__()
        self.folder, self._kept = folder, time.monotonic()
        self._every = float(os.environ.get("WORKBENCH_KEEP_SECONDS", "30"))

    def keep(self, partial: Any) -> None:
        if self.folder is not None and time.monotonic() - self._kept >= self._every:
            self._kept = time.monotonic()
            try:
                partial().save(self.folder)
            except OSError as trouble:  # a full disk must not end a run that may finish after it is cleared
                typer.echo(f"what is finished so far could not be kept ({trouble.strerror or trouble}); the run goes on", err=True)

    def show(self) -> None:
        if sys.stderr.isatty():
            seconds = self.eta_seconds  # read once: it moves with the clock
            eta = "" if seconds != seconds else f", {seconds:.0f} s left"
            sys.stderr.write(f"\r\x1b[K{self.done}/{self.total} {self.text}{eta}")
            sys.stderr.flush()

    def __enter__(self) -> "_Terminal":
        self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def _interrupt(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)
        self.cancel()

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)
        if sys.stderr.isatty():
            sys.stderr.write("\r\x1b[K")


@app.command("list")
def list_papers(json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False) -> None:
    """Papers in scope, by family, and which are ready."""
    if json:
        typer.echo(json_module.dumps([{"stem": p.stem, "family": p.family, "title": p.title, "ready": p.is_ready} for p in PAPERS.values()], indent=1))
        return
    for family, about in FAMILIES.items():
        typer.echo(f"\n{family}: {about}")
        for p in PAPERS.values():
            if p.family == family:
                typer.echo(f"  {'ready  ' if p.is_ready else 'planned'}  {p.stem:28} {p.title}")


@app.command()
def run(
    stem: Annotated[str, typer.Argument(help="which paper; see `workbench list`")],
    scale: Annotated[str, typer.Option(help="tiny: offline on the model that ships; paper: the paper's own models and data")] = "tiny",
    model: Annotated[str | None, typer.Option(help="hub id, local directory, adapter directory, organism:NAME")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="change a field of the spec, e.g. n_inputs=50 or model.dtype=bfloat16; repeatable")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for result, figures, claims and provenance; one with a partial result is resumed")] = None,
    json: Annotated[bool, typer.Option("--json", help="print claims and paths as JSON instead of text")] = False,
) -> None:
    """Run a paper's analysis, print its claims table, write result and figures."""
    from workbench.papers import method

    module = method(stem)
    spec = _spec(module, scale, model, set_ or [])
    folder = out or Path("workbench-out") / f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"
    raise typer.Exit(_run(module, spec, folder, json))


@app.command()
def sweep(
    stem: Annotated[str, typer.Argument(help="which paper; see `workbench list`")],
    grid: Annotated[list[str], typer.Option("--grid", metavar="FIELD=VALUES", help="values of a field: model=a,b or seed=0..4; values with commas between bars; repeatable")],
    scale: Annotated[str, typer.Option(help="tiny or paper, as for run")] = "tiny",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="the same for every run; repeatable")] = None,
    out: Annotated[Path | None, typer.Option(help="folder for results and the table; given again, the sweep goes on")] = None,
    dask: Annotated[str | None, typer.Option(help="tcp:// address of a Dask scheduler, or `local` for one on this machine")] = None,
    workers: Annotated[int | None, typer.Option(help="worker processes; one run after another in this process if not given", min=1)] = None,
    retry: Annotated[bool, typer.Option(help="run those again that failed")] = False,
) -> None:
    """Run a paper's analysis over models, parameters and seeds: one row per run, failures kept with their error."""
    from workbench.papers.sweep import OK, sweep
    from workbench.scale.executors import open_executor
    from workbench.scale.grid import parse_grid

    _quiet()
    folder = out or Path("workbench-out") / f"{stem}-sweep-{datetime.now():%Y%m%d-%H%M%S}"
    _check_writable(folder)
    fixed = set_ or []

    def spec_of(module: Any, cell: Any) -> Any:
        return _spec(module, scale, cell.get("model"), [*fixed, *(f"{name}={value}" for name, value in cell.items() if name != "model")])

    with _Terminal() as progress, open_executor(dask, workers) as executor:
        if dask is not None:
            typer.echo(f"dashboard: {executor.dashboard}", err=True)
        table = sweep(stem, parse_grid(grid), executor, folder=folder, make_spec=spec_of, retry_failed=retry, progress=progress)
    shown = [name for name in table.columns if not name.startswith(("claim: ", "control: ")) and name not in ("commit", "model_name")]
    typer.echo(table[shown].assign(error=table["error"].str.slice(0, 70)).to_string(index=False, na_rep=""))
    typer.echo(f"\ntable with every claim's number: {folder / 'sweep.parquet'}")
    if progress.cancelled:
        typer.echo(f"cancelled; the same call with --out {folder} goes on from there", err=True)
        raise typer.Exit(130)
    raise typer.Exit(0 if (table["status"] == OK).all() else 1)


@app.command()
def demo(out: Annotated[Path, typer.Option(help="where the page goes")] = Path("workbench-out/demo")) -> None:
    """Run the inactive-heads analysis on the embedded model and write one HTML page with its claims and figures."""
    from workbench.papers import method

    module = method("attention_sinks")
    code = _run(module, module.Spec.tiny(), out, False)
    raise typer.Exit(code)


def _spec(module: Any, scale: str, model: str | None, assignments: list[str]) -> Any:
    if scale not in ("tiny", "paper"):
        raise BadSpec(f"--scale must be tiny or paper, got {scale!r}")
    spec = module.Spec.tiny() if scale == "tiny" else module.Spec.paper()
    if model is not None and scale == "tiny" and not model.startswith("organism:") and hasattr(module.Spec, "small"):
        spec = module.Spec.small(model)
    pairs = {}
    for text in assignments:
        name, sign, value = text.partition("=")
        if not sign:
            raise BadSpec(f"--set wants FIELD=VALUE, got {text!r}")
        pairs[name.strip()] = value.strip()
    if model is not None:
        pairs = {"model.name": model} | pairs
    return spec.with_strings(pairs)


def _run(module: Any, spec: Any, folder: Path, as_json: bool) -> int:
    from workbench.core.claims import check
    from workbench.core.result import Result
    from workbench.reports.review import write_documents
    from workbench.views import figures

    _quiet()
    _check_writable(folder)
    before = Result.load(folder / "result") if (folder / "result").is_dir() else None
    if before is not None and not before.partial:
        before = None
    resumable = before is not None and "resume" in inspect.signature(module.run).parameters  # a method without it starts again
    with _Terminal(folder / "result") as progress:
        result = module.run(spec, progress=progress, **({"resume": before} if resumable else {}))
    folder = _save(result, folder)
    table = check(result, module.CLAIMS)
    try:
        page, trouble = write_documents(result, table, figures(result), folder)
    except OSError as found:  # the numbers are safe and must be said
        page, trouble = None, f"the report could not be written ({found.strerror or found}); the result is whole: `workbench report {folder / 'result'} --out ELSEWHERE` makes one of it"
    if as_json:
        typer.echo(json_module.dumps({"partial": result.partial, "passed": table.passed, "claims": table.rows(), "warnings": list(result.warnings), "report": page and str(page)}))
    else:
        typer.echo(str(table))
        for warning in result.warnings:
            typer.echo(f"warning: {warning}")
        typer.echo(f"\n{result.provenance.seconds:.0f} s." + (f" Report with figures: {page}" if page else ""))
    if trouble:
        typer.echo(trouble, err=True)
    if result.partial:
        typer.echo(f"cancelled; what was finished is in {folder}, and the same call with --out {folder} goes on from there", err=True)
        return 130
    return 0 if table.passed else 1


def _save(result: Any, folder: Path) -> Path:
    """Write the result and say where it went: into a temporary folder if `folder` does not take it, so that no run is lost."""
    try:
        result.save(folder / "result")
        return folder
    except OSError as trouble:
        instead = Path(tempfile.mkdtemp(prefix="workbench-"))
        result.save(instead / "result")
        typer.echo(f"{folder} could not be written ({trouble.strerror or trouble}); everything went to {instead}", err=True)
        return instead


def _check_writable(folder: Path) -> None:
    """A folder that cannot be written is found out before the run, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as found:
        raise WorkbenchError(f"--out {folder} cannot be written ({found.strerror}); give a folder that can") from None


@organisms_app.command("list")
def organisms_list() -> None:
    """Organisms, and where each one is."""
    from workbench.core.places import data_folder, organism_folders
    from workbench.organisms.registry import names

    have = organism_folders()
    for name in names():
        state = "not built" if name not in have else "ships" if have[name].is_relative_to(data_folder()) else "built on this machine"
        typer.echo(f"{name:24} {state}")


@organisms_app.command("build")
def organisms_build(
    name: Annotated[str, typer.Argument(help="which organism")],
    out: Annotated[Path | None, typer.Option(help="directory to write; the user's cache if not given")] = None,
) -> None:
    """Train an organism from its recipe (minutes) and measure what it shows."""
    from workbench.core.progress import Cancelled
    from workbench.organisms.registry import build

    _quiet()
    with _Terminal() as progress:
        try:
            folder, table = build(name, out, progress)
        except Cancelled as stopped:
            typer.echo(f"{stopped}; nothing was written", err=True)
            raise typer.Exit(130) from None
    typer.echo(f"{table}\n\nwritten to {folder}")
    raise typer.Exit(0 if table.passed else 1)


@organisms_app.command("verify")
def organisms_verify(name: Annotated[str | None, typer.Argument(help="which organism; all that are here if not given")] = None) -> None:
    """Measure the declared behaviour of organisms again."""
    from workbench.core.places import organism_folders
    from workbench.organisms.registry import names, verify

    _quiet()
    passed = True
    for each in [name] if name else [n for n in names() if n in organism_folders()]:
        table = verify(each)
        passed &= table.passed
        typer.echo(f"{each}\n{table}\n")
    raise typer.Exit(0 if passed else 1)


@app.command()
def lab(
    port: Annotated[int, typer.Option(help="0 picks a free one", min=0, max=65535)] = 0,
    browser: Annotated[bool, typer.Option(help="open a browser")] = True,
) -> None:
    """Open JupyterLab on the notebooks: this machine only, with a token."""
    import subprocess

    from workbench.core.places import data_folder

    notebooks = data_folder().parent / "notebooks"
    if not notebooks.is_dir():
        raise WorkbenchError("the notebooks are not beside the package; run from a checkout installed with `pip install -e .`")
    command = [sys.executable, "-m", "jupyterlab", f"--notebook-dir={notebooks}", "--ip=127.0.0.1", f"--port={port}"]
    raise typer.Exit(subprocess.call(command if browser else [*command, "--no-browser"]))


@app.command()
def doctor() -> None:
    """What this machine has: Python, GPU, memory, browser, hub, and package versions against the pins."""
    from .doctor import report

    lines, healthy = report()
    typer.echo("\n".join(lines))
    raise typer.Exit(0 if healthy else 1)


add_commands(app, _Terminal)


def _quiet() -> None:
    """Progress bars and notices of the libraries would drown ours."""
    from workbench.notebook import quiet

    quiet()


def main() -> None:
    """Entry point: a mistake of the caller becomes one sentence and exit code 2."""
    usage_error = typer.BadParameter.__bases__[0]  # typer does not export the base of its usage errors
    try:
        code = app(standalone_mode=False)
    except usage_error as mistake:
        wants_help = type(mistake).__name__ == "NoArgsIsHelpError"
        typer.echo(mistake.format_message() if wants_help else f"workbench: {mistake.format_message()} (see workbench --help)", err=not wants_help)
        raise SystemExit(2) from None
    except WorkbenchError as mistake:
        typer.echo(f"workbench: {mistake}", err=True)
        raise SystemExit(2) from None
    except OSError as trouble:
        typer.echo(f"workbench: {trouble.strerror or trouble} ({Path(trouble.filename).name if trouble.filename else 'no file named'})", err=True)
        raise SystemExit(2) from None
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("workbench: cancelled", err=True)
        raise SystemExit(130) from None
    raise SystemExit(code if isinstance(code, int) else 0)
