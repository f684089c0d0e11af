"""The commands of review copies: report, bundle, reproduce, publish, compare, index, gallery. `cli` takes them in."""

import json as json_module
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.core.catalogue import PAPERS
from workbench.core.errors import BadData, WorkbenchError
from workbench.core.progress import Progress

OUT = Path("workbench-out")


def _root() -> Path:
    """The checkout, which holds README and notebooks."""
    from workbench.core.places import data_folder

    root = data_folder().parent
    if not (root / "notebooks").is_dir():
        raise WorkbenchError("the notebooks are not beside the package; run from a checkout installed with `pip install -e .`")
    return root


def _notebook(item: str) -> Path | None:
    """The notebook of a stem or a path to one; None for anything else."""
    if item in PAPERS:
        path = _root() / "notebooks" / PAPERS[item].family / f"{item}.ipynb"
        if not path.is_file():
            raise BadData(f"{item} has no notebook yet; `workbench list` shows which papers are ready")
        return path
    return Path(item) if item.endswith(".ipynb") else None


def _loaded(folder: str) -> tuple[Any, Any, dict[str, Any]]:
    """A saved Result, its method module and its figures. The folder of `workbench run` is taken as well as the `result` in it."""
    from workbench.core.result import Result
    from workbench.papers import method
    from workbench.views import figures

    path = Path(folder)
    result = Result.load(path / "result" if (path / "result" / "result.json").is_file() else path)
    return result, method(result.stem), figures(result)


def _section(item: str, run_notebooks: bool, progress: Progress) -> Any:
    from workbench.core.claims import check
    from workbench.reports.sections import execute, notebook_section, read_notebook, result_section

    path = _notebook(item)
    if path is not None:
        notebook = execute(path, progress=progress) if run_notebooks else read_notebook(path)
        return notebook_section(notebook, path.stem, path.parent)
    if not Path(item).is_dir():
        raise BadData(f"{item!r} is no stem of `workbench list`, no notebook and no result folder")
    result, module, figures = _loaded(item)
    return result_section(result, check(result, module.CLAIMS), figures)


def add_commands(app: typer.Typer, terminal: Callable[[], AbstractContextManager[Progress]]) -> None:
    """Put the commands on `app`. terminal: makes the progress that Ctrl-C cancels."""

    @app.command()
    def report(
        items: Annotated[list[str], typer.Argument(metavar="[STEM|NOTEBOOK|RESULT_DIR]...", help="papers, notebooks or folders of `workbench run`")],
        to: Annotated[str, typer.Option(help="html, slides or pdf")] = "html",
        offline: Annotated[bool, typer.Option("--offline", help="keep notebooks off the model hub; the documents themselves never need a network")] = False,
        run_notebooks: Annotated[bool, typer.Option("--execute/--as-is", help="run notebooks, or take the outputs they have")] = True,
        out: Annotated[Path, typer.Option(help="folder of the document")] = OUT / "reports",
    ) -> None:
        """Write a review copy: one file with claims, figures, text and provenance, readable without Python and without a network."""
        import os

        from workbench.core.progress import Cancelled
        from workbench.reports.document import WRITERS

        if to not in WRITERS:
            raise BadData(f"--to must be {', '.join(WRITERS)}, got {to!r}")
        if offline:
            os.environ["HF_HUB_OFFLINE"] = "1"
        sections = []
        with terminal() as progress:
            try:
                for item in items:
                    sections.append(_section(item, run_notebooks, progress))
            except Cancelled:
                typer.echo(f"cancelled after {len(sections)} of {len(items)}; nothing was written", err=True)
                raise typer.Exit(130) from None
        name = sections[0].stem if len(sections) == 1 else f"report-{datetime.now():%Y%m%d-%H%M%S}"
        path = WRITERS[to](out / f"{name}{'-slides' if to == 'slides' else ''}.{'pdf' if to == 'pdf' else 'html'}", sections)
        failed = sum(s.n_failed for s in sections)
        typer.echo(f"{path} ({path.stat().st_size / 1e6:.1f} MB)" + (f"; {failed} cells failed and are shown as such" if failed else ""))
        raise typer.Exit(1 if failed else 0)

    @app.command()
    def bundle(
        result: Annotated[str, typer.Argument(metavar="RESULT_DIR", help="folder of `workbench run`")],
        figure: Annotated[list[str] | None, typer.Option(help="only these figures; repeatable")] = None,
        out: Annotated[Path | None, typer.Option(help="folder of the bundles")] = None,
    ) -> None:
        """Write each figure as PNG, SVG, PDF and HTML with the numbers it draws and where they came from."""
        from workbench.core.errors import UnknownName
        from workbench.reports.bundle import write_bundles

        loaded, _, figures = _loaded(result)
        for name in figure or ():
            if name not in figures:
                raise UnknownName.among("figure", name, figures)
        written, problem = write_bundles({k: f for k, f in figures.items() if not figure or k in figure}, loaded, out or OUT / "bundles" / loaded.stem)
        typer.echo("\n".join(str(path) for path in written))
        if problem:
            typer.echo(problem, err=True)

    @app.command()
    def reproduce(folder: Annotated[Path, typer.Argument(metavar="BUNDLE", help="a figure bundle")]) -> None:
        """Run a figure's analysis again from its provenance: the same numbers, or by how much they differ."""
        from workbench.papers import method
        from workbench.reports import bundle as bundles
        from workbench.views import figures

        def run(stem: str, spec: dict, progress: Progress) -> tuple[Any, dict[str, Any]]:
            module = method(stem)
            result = module.run(module.Spec.from_dict(spec), progress=progress)
            return result, figures(result)

        with terminal() as progress:
            found = bundles.reproduce(folder, run, progress)
        typer.echo(str(found))
        raise typer.Exit(0 if found.same else 1)

    @app.command()
    def publish(items: Annotated[list[str], typer.Argument(metavar="STEM|NOTEBOOK...", help="which notebooks")]) -> None:
        """Run notebooks and write them back with small static pictures, no live figures, no widget state."""
        from workbench.reports import publish as publishing

        with terminal() as progress:
            for item in items:
                path = _notebook(item)
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
        to: Annotated[str, typer.Option(help="html, slides or pdf")] = "html",
        out: Annotated[Path, typer.Option(help="folder of the document")] = OUT / "reports",
        json: Annotated[bool, typer.Option("--json", help="print claims and numbers as JSON")] = False,
    ) -> None:
        """Two results of one analysis: claims side by side, differences with intervals, figures laid over each other."""
        from workbench.reports import compare as comparing
        from workbench.reports.document import WRITERS

        if to not in WRITERS:
            raise BadData(f"--to must be {', '.join(WRITERS)}, got {to!r}")
        (one, module, figures_a), (other, _, figures_b) = _loaded(a), _loaded(b)
        found = comparing.compare(one, other, module.CLAIMS, figures_a, figures_b)
        path = WRITERS[to](out / f"{found.stem}-compared.{'pdf' if to == 'pdf' else 'html'}", [comparing.comparison_section(found)])
        if json:
            rows = {name: json_module.loads(frame.to_json(orient="records")) for name, frame in (("claims", found.claims), ("numbers", found.numbers))}
            typer.echo(json_module.dumps({"stem": found.stem, "notes": list(found.notes), "report": str(path), **rows}, indent=1))
            return
        typer.echo("\n".join([*found.notes, found.claims[["kind", "statement", "A", "B", "verdict A", "verdict B"]].to_string(index=False), str(path)]))

    @app.command()
    def index(check: Annotated[bool, typer.Option("--check", help="write nothing; exit code 1 if a file is not what it should be")] = False) -> None:
        """Write README's table of papers and notebooks/README.md from the catalogue and the claims last checked."""
        from workbench.reports import index as indexing

        if check:
            old = indexing.stale(_root())
            typer.echo("\n".join(f"{name} is not what `workbench index` writes" for name in old) or "README.md and notebooks/README.md are up to date")
            raise typer.Exit(1 if old else 0)
        for path in indexing.write_index(_root()):
            typer.echo(path.relative_to(_root()).as_posix())

    @app.command()
    def gallery(out: Annotated[Path, typer.Option(help="the page")] = OUT / "gallery.html") -> None:
        """Write one page with the key figures of all ready papers, from the committed notebooks."""
        from workbench.reports.index import write_gallery

        typer.echo(str(write_gallery(out, _root())))
