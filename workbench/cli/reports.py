"""Commands on what is read: report, bundle, reproduce, publish, compare, index, gallery."""

import json
import os
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.core.errors import BadData, UnknownName
from workbench.core.progress import Cancelled, Progress

from .checkout import checkout, find_notebook
from .run_folder import OUT, load_run
from .terminal import Terminal

app = typer.Typer()

Form = Annotated[str, typer.Option(help="html, slides or pdf")]
Folder = Annotated[Path, typer.Option(help="folder of the document")]


def _writer(form: str) -> Callable[[Path, list[Any]], Path]:
    """What writes Sections in a form; asked for before the work, so that a wrong --to costs nothing."""
    from workbench.reports.document import WRITERS

    if form not in WRITERS:
        raise BadData(f"--to must be {', '.join(WRITERS)}, got {form!r}")
    return WRITERS[form]


def _ending(form: str) -> str:
    return ".pdf" if form == "pdf" else ".html"


# ---- report ----

Items = Annotated[
    list[str],
    typer.Argument(metavar="[STEM|NOTEBOOK|RESULT_DIR]...", help="papers, notebooks or folders of `workbench run`"),
]
Offline = Annotated[
    bool,
    typer.Option("--offline", help="keep notebooks off the model hub; the documents themselves never need a network"),
]
RunNotebooks = Annotated[bool, typer.Option("--execute/--as-is", help="run notebooks, or take the outputs they have")]


@app.command()
def report(
    items: Items,
    to: Form = "html",
    offline: Offline = False,
    run_notebooks: RunNotebooks = True,
    out: Folder = OUT / "reports",
) -> None:
    """Write a review copy: one file with claims, figures, text and provenance, readable without Python and without a
    network."""
    write = _writer(to)
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    sections = _sections(items, run_notebooks)
    name = sections[0].stem if len(sections) == 1 else f"report-{datetime.now():%Y%m%d-%H%M%S}"
    path = write(out / f"{name}{'-slides' if to == 'slides' else ''}{_ending(to)}", sections)
    failed = sum(s.n_failed for s in sections)
    shown = f"; {failed} cells failed and are shown as such" if failed else ""
    typer.echo(f"{path} ({path.stat().st_size / 1e6:.1f} MB){shown}")
    raise typer.Exit(1 if failed else 0)


def _sections(items: list[str], run_notebooks: bool) -> list[Any]:
    """A Section for each item; Ctrl-C ends the command, and no document is written."""
    sections = []
    with Terminal() as progress:
        try:
            for item in items:
                sections.append(_section(item, run_notebooks, progress))
        except Cancelled:
            typer.echo(f"cancelled after {len(sections)} of {len(items)}; nothing was written", err=True)
            raise typer.Exit(130) from None
    return sections


def _section(item: str, run_notebooks: bool, progress: Progress) -> Any:
    """The Section of a stem, a notebook or the folder of a run."""
    from workbench.core.claims import check
    from workbench.reports.sections import execute, notebook_section, read_notebook, result_section

    path = find_notebook(item)
    if path is not None:
        notebook = execute(path, progress=progress) if run_notebooks else read_notebook(path)
        return notebook_section(notebook, path.stem, path.parent)
    if not Path(item).is_dir():
        raise BadData(f"{item!r} is no stem of `workbench list`, no notebook and no result folder")
    result, paper, figures = load_run(item)
    return result_section(result, check(result, paper.CLAIMS), figures)


# ---- bundles: a figure with its numbers ----


@app.command()
def bundle(
    result: Annotated[str, typer.Argument(metavar="RESULT_DIR", help="folder of `workbench run`")],
    figure: Annotated[list[str] | None, typer.Option(help="only these figures; repeatable")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the bundles")] = None,
) -> None:
    """Write each figure as PNG, SVG, PDF and HTML with the numbers it draws and where they came from."""
    from workbench.reports.bundle import write_bundles

    loaded, _, figures = load_run(result)
    for name in figure or ():
        if name not in figures:
            raise UnknownName.among("figure", name, figures)
    wanted = {name: drawn for name, drawn in figures.items() if not figure or name in figure}
    written, problem = write_bundles(wanted, loaded, out or OUT / "bundles" / loaded.stem)
    typer.echo("\n".join(str(path) for path in written))
    if problem:
        typer.echo(problem, err=True)


@app.command()
def reproduce(
    folder: Annotated[Path, typer.Argument(metavar="BUNDLE", help="a figure bundle")],
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="run Python that comes with the checkpoint where the bundle's run did; only for sources you trust",
        ),
    ] = False,
) -> None:
    """Run a figure's analysis again from its provenance: the same numbers, or by how much they differ."""
    from workbench.reports import bundle as bundles

    run = partial(_run_again, trust_remote_code=trust_remote_code)
    with Terminal() as progress:
        found = bundles.reproduce(folder, run, progress)
    typer.echo(str(found))
    raise typer.Exit(0 if found.same else 1)


def _run_again(
    stem: str, spec: dict[str, Any], progress: Progress, *, trust_remote_code: bool
) -> tuple[Any, dict[str, Any]]:
    """The Result of a paper and its figures, from the spec that a bundle's provenance holds.

    A bundle comes from elsewhere, and may not say that code from elsewhere is run: that is the caller's to allow.
    """
    from workbench.papers import method
    from workbench.views import figures

    paper = method(stem)
    if not trust_remote_code:
        spec, asked = _untrusted(spec)
        if asked:
            said = "the bundle asks to run Python that comes with its checkpoint, and none is run"
            typer.echo(f"{said}; if you trust its source, give --trust-remote-code", err=True)
    result = paper.run(paper.Spec.from_dict(spec), progress=progress)
    return result, figures(result)


def _untrusted(spec: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The spec with every `trust_remote_code` off, and whether one was on; specs lie in specs."""
    inner = {name: _untrusted(value) for name, value in spec.items() if isinstance(value, dict)}
    own = spec.get("trust_remote_code", False)
    safe = spec | {name: found for name, (found, _) in inner.items()}
    safe |= {"trust_remote_code": False} if own else {}
    return safe, bool(own) or any(asked for _, asked in inner.values())


# ---- publish, compare ----


@app.command()
def publish(items: Annotated[list[str], typer.Argument(metavar="STEM|NOTEBOOK...", help="which notebooks")]) -> None:
    """Run notebooks and write them back with small static pictures, no live figures, no widget state."""
    from workbench.reports import publish as publishing

    with Terminal() as progress:
        for item in items:
            path = find_notebook(item)
            if path is None:
                raise BadData(f"{item!r} is no stem of `workbench list` and no notebook")
            problem = publishing.publish(path, progress=progress)
            typer.echo(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")
            if problem:
                typer.echo(problem, err=True)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="RESULT_A")],
    b: Annotated[str, typer.Argument(metavar="RESULT_B")],
    to: Form = "html",
    out: Folder = OUT / "reports",
    as_json: Annotated[bool, typer.Option("--json", help="print claims and numbers as JSON")] = False,
) -> None:
    """Two results of one analysis: claims side by side, differences with intervals, figures laid over each other."""
    from workbench.reports import compare as comparing

    write = _writer(to)
    (one, paper, figures_a), (other, _, figures_b) = load_run(a), load_run(b)
    found = comparing.compare(one, other, paper.CLAIMS, figures_a, figures_b)
    path = write(out / f"{found.stem}-compared{_ending(to)}", [comparing.comparison_section(found)])
    if as_json:
        tables = (("claims", found.claims), ("numbers", found.numbers))
        rows = {name: json.loads(frame.to_json(orient="records")) for name, frame in tables}
        about = {"stem": found.stem, "notes": list(found.notes), "report": str(path)}
        typer.echo(json.dumps(about | rows, indent=1))
        return
    columns = ["kind", "statement", "A", "B", "verdict A", "verdict B"]
    typer.echo("\n".join([*found.notes, found.claims[columns].to_string(index=False), str(path)]))


# ---- pages of the project ----


@app.command()
def index(
    check: Annotated[
        bool, typer.Option("--check", help="write nothing; exit code 1 if a file is not what it should be")
    ] = False,
) -> None:
    """Write README's table of papers and notebooks/README.md from the catalogue and the claims last checked."""
    from workbench.reports import index as indexing

    root = checkout()
    if check:
        old = indexing.stale(root)
        named = "\n".join(f"{name} is not what `workbench index` writes" for name in old)
        typer.echo(named or "README.md and notebooks/README.md are up to date")
        raise typer.Exit(1 if old else 0)
    for path in indexing.write_index(root):
        typer.echo(path.relative_to(root).as_posix())


@app.command()
def gallery(out: Annotated[Path, typer.Option(help="the page")] = OUT / "gallery.html") -> None:
    """Write one page with the key figures of all ready papers, from the committed notebooks."""
    from workbench.reports.index import write_gallery

    typer.echo(str(write_gallery(out, checkout())))
