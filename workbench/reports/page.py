"""One self-contained HTML page: a Result with its claims, or a view with its numbers, with figures, warnings and
provenance.

plotly.js is written into the page once (about 5 MB), so it opens without a network; it follows the reader's light or
dark setting and prints. Nothing in it names a path of the machine that made it.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from workbench.core import files
from workbench.core.catalogue import PAPERS
from workbench.core.claims import ClaimsTable
from workbench.core.result import Result

from .render import figure_html, own, page


def write_page(path: Path | str, result: Result, table: ClaimsTable, figures: dict[str, go.Figure]) -> Path:
    """Write the page of a paper's Result.

    Args:
        path: the file to write, in one step.
        table: the checked claims of this very result.
        figures: {name: Figure}, in the order to show.
    """
    paper = PAPERS.get(result.stem)
    title = paper.title if paper else result.stem
    claims = Markup(table._repr_html_())
    return files.write_text(path, _page(title, figures, result, above=result.stem, claims=claims))


def write_view(
    path: Path | str,
    title: str,
    figures: dict[str, go.Figure],
    table: pd.DataFrame,
    result: Result | None = None,
    notices: Sequence[str] = (),
) -> Path:
    """Write the page of something looked at, such as a panel: figures, the numbers behind them, notices, provenance.

    Args:
        path: the file to write, in one step. result: whose provenance is shown, if there is one.
        figures: {name: Figure}, in the order to show. table: every row goes into the page.
    """
    numbers = Markup(
        table.to_html(index=False, border=0, float_format=lambda x: f"{x:.5g}") if len(table) else "<p>no rows</p>"
    )
    text = _page(title, figures, result, notices=notices, numbers=numbers, n_rows=len(table))
    return files.write_text(path, text)


def write_figure(path: Path | str, title: str, figure: go.Figure) -> Path:
    """Write the page of one figure."""
    return files.write_text(path, _page(title, {title: figure}, None))


def _page(
    title: str,
    figures: dict[str, go.Figure],
    result: Result | None,
    *,
    above: str = "",
    notices: Sequence[str] = (),
    claims: Markup | None = None,
    numbers: Markup | None = None,
    n_rows: int = 0,
) -> str:
    return page(
        "page.html",
        title,
        styles=[own("page.css")],
        scripts=[own("document.js")],
        above=above,
        notices=[*notices, *(result.warnings if result else ())],
        cancelled=result is not None and result.partial,
        short=result.provenance.short() if result is not None else "",
        claims=claims,
        figures={name: figure_html(json.loads(figure.to_json())) for name, figure in figures.items()},
        numbers=numbers,
        n_rows=n_rows,
        about=json.dumps(_shareable(result), indent=1) if result is not None else "",
    )


def _shareable(result: Result) -> dict:
    """Provenance with directory names in place of paths."""

    def clean(value: object) -> object:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items()}
        if isinstance(value, str) and (Path(value).is_absolute() or value.startswith("~")):
            return Path(value).name
        return value

    cleaned = clean(result.provenance.to_dict())
    assert isinstance(cleaned, dict)
    return cleaned
