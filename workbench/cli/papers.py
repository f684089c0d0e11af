"""Commands on papers: list, run, sweep, demo."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.core import files
from workbench.core.catalogue import FAMILIES, PAPERS
from workbench.core.errors import BadSpec
from workbench.notebook import quiet

from .run_folder import new_folder, run_into
from .terminal import Terminal

app = typer.Typer()

Stem = Annotated[str, typer.Argument(help="which paper; see `workbench list`")]


@app.command("list")
def list_papers(as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False) -> None:
    """Papers in scope, by family, and which are ready."""
    if as_json:
        rows = [{"stem": p.stem, "family": p.family, "title": p.title, "ready": p.is_ready} for p in PAPERS.values()]
        typer.echo(json.dumps(rows, indent=1))
        return
    for family, about in FAMILIES.items():
        typer.echo(f"\n{family}: {about}")
        for p in PAPERS.values():
            if p.family == family:
                typer.echo(f"  {'ready  ' if p.is_ready else 'planned'}  {p.stem:28} {p.title}")


ScaleOfRun = Annotated[
    str, typer.Option(help="tiny: offline on the model that ships; paper: the paper's own models and data")
]
Model = Annotated[str | None, typer.Option(help="hub id, local directory, adapter directory, organism:NAME")]
SetOfRun = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="change a field of the spec, e.g. n_inputs=50 or model.dtype=bfloat16; repeatable",
    ),
]
OutOfRun = Annotated[
    Path | None,
    typer.Option(
        help="folder for result, figures, claims and provenance; one with a partial result of the same spec is resumed"
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="replace the result that --out holds, once the new one is finished")
]
Json = Annotated[bool, typer.Option("--json", help="print claims and paths as JSON instead of text")]


@app.command("run")
def run_paper(
    stem: Stem,
    scale: ScaleOfRun = "tiny",
    model: Model = None,
    settings: SetOfRun = None,
    out: OutOfRun = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Run a paper's analysis, print its claims table, write result and figures."""
    from workbench.papers import method

    paper = method(stem)
    spec = _spec(paper, scale, model, settings or [])
    raise typer.Exit(run_into(out or new_folder(stem), paper, spec, as_json=as_json, force=force))


Grid = Annotated[
    list[str],
    typer.Option(
        metavar="FIELD=VALUES",
        help="values of a field: model=a,b or seed=0..4; values with commas between bars; repeatable",
    ),
]
ScaleOfSweep = Annotated[str, typer.Option(help="tiny or paper, as for run")]
SetOfSweep = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="the same for every run; repeatable")
]
OutOfSweep = Annotated[
    Path | None, typer.Option(help="folder for results and the table; given again, the sweep goes on")
]
Dask = Annotated[
    str | None, typer.Option(help="tcp:// address of a Dask scheduler, or `local` for one on this machine")
]
Workers = Annotated[
    int | None, typer.Option(help="worker processes; one run after another in this process if not given", min=1)
]
Retry = Annotated[bool, typer.Option(help="run those again that failed")]


@app.command("sweep")
def sweep_paper(
    stem: Stem,
    grid: Grid,
    scale: ScaleOfSweep = "tiny",
    settings: SetOfSweep = None,
    out: OutOfSweep = None,
    dask: Dask = None,
    workers: Workers = None,
    retry: Retry = False,
) -> None:
    """Run a paper's analysis over models, parameters and seeds: one row per run, failures kept with their error."""
    from workbench.papers.sweep import OK, sweep
    from workbench.scale.executors import open_executor
    from workbench.scale.grid import parse_grid

    def spec_of(paper: Any, cell: Mapping[str, Any]) -> Any:
        varied = [f"{name}={value}" for name, value in cell.items() if name != "model"]
        return _spec(paper, scale, cell.get("model"), [*(settings or ()), *varied])

    quiet()
    folder = files.check_writable(out or new_folder(f"{stem}-sweep"))
    with Terminal() as progress, open_executor(dask, workers) as executor:
        if dask is not None:
            typer.echo(f"dashboard: {executor.dashboard}", err=True)
        table = sweep(
            stem,
            parse_grid(grid),
            executor,
            folder=folder,
            make_spec=spec_of,
            retry_failed=retry,
            progress=progress,
        )
    _say_sweep(table, folder)
    if progress.cancelled:
        typer.echo(f"cancelled; the same call with --out {folder} goes on from there", err=True)
        raise typer.Exit(130)
    raise typer.Exit(0 if (table["status"] == OK).all() else 1)


def _say_sweep(table: Any, folder: Path) -> None:
    """Print the rows of a sweep without the claims' numbers, which are too many for a terminal."""
    hidden = ("commit", "model_name")
    shown = [c for c in table.columns if not c.startswith(("claim: ", "control: ")) and c not in hidden]
    short = table[shown].assign(error=table["error"].str.slice(0, 70))
    typer.echo(short.to_string(index=False, na_rep=""))
    typer.echo(f"\ntable with every claim's number: {folder / 'sweep.parquet'}")


@app.command("demo")
def run_demo(out: Annotated[Path | None, typer.Option(help="where the page goes")] = None) -> None:
    """Run the inactive-heads analysis on the embedded model and write one HTML page with its claims and figures."""
    from workbench.papers import method

    paper = method("attention_sinks")
    raise typer.Exit(run_into(out or new_folder("demo"), paper, paper.Spec.tiny()))


def _spec(paper: Any, scale: str, model: str | None, settings: list[str]) -> Any:
    """The Spec that the options of `run` and `sweep` describe. settings: FIELD=VALUE each; model.name beats `model`."""
    if scale not in ("tiny", "paper"):
        raise BadSpec(f"--scale must be tiny or paper, got {scale!r}")
    spec = paper.Spec.tiny() if scale == "tiny" else paper.Spec.paper()
    named = {} if model is None else {"model.name": model}
    if model is not None and scale == "tiny" and not model.startswith("organism:") and hasattr(paper.Spec, "small"):
        spec = paper.Spec.small(model)
    for text in settings:
        name, sign, value = text.partition("=")
        if not sign:
            raise BadSpec(f"--set wants FIELD=VALUE, got {text!r}")
        named[name.strip()] = value.strip()
    return spec.with_strings(named)
