"""One self-contained HTML page: a Result with its claims, or a view with its numbers, with figures, warnings and
provenance.

plotly.js is written into the page once (about 5 MB), so it opens without a network; it follows the reader's light or
dark setting and prints. Nothing in it names a path of the machine that made it.
"""

import html
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from workbench.core import files
from workbench.core.catalogue import PAPERS
from workbench.core.claims import ClaimsTable
from workbench.core.result import Result

STYLE = """
:root{--ink:#1d1d1f;--paper:#fff;--soft:#6b6b70;--line:#ddd;--card:#f6f6f8;--link:#0b57d0}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8ea;--paper:#17181b;--soft:#a0a0a6;--line:#3a3b40;--card:#202226;--link:#8ab4f8}}
body{font:16px/1.5 Inter,Helvetica,Arial,sans-serif;color:var(--ink);background:var(--paper);max-width:1040px;margin:2em auto;padding:0 1em}
a{color:var(--link)}h1{font-size:1.7em;line-height:1.25}h2{margin-top:2em}
table{border-collapse:collapse;width:100%;font-size:.92em}td,th{border-bottom:1px solid var(--line);padding:.4em .6em;vertical-align:top;text-align:left}
.soft{color:var(--soft)}.warn{border-left:4px solid #D55E00;background:var(--card);padding:.6em 1em}
figure{margin:1.5em 0;background:#fff;border:1px solid var(--line);border-radius:6px;overflow-x:auto}
pre{background:var(--card);padding:1em;overflow-x:auto;font-size:.85em}
@media print{figure{break-inside:avoid}}
"""


def write_page(path: Path | str, result: Result, table: ClaimsTable, figures: dict[str, go.Figure]) -> Path:
    """Write the page of a paper's Result.

    Args:
        path: the file to write, in one step.
        table: the checked claims of this very result.
        figures: {name: Figure}, in the order to show.
    """
    paper = PAPERS.get(result.stem)
    body = f"<h2>Claims and controls</h2>{table._repr_html_()}<h2>Figures</h2>{_drawn(figures)}"
    return files.write_text(
        path, _page(paper.title if paper else result.stem, result.stem, list(result.warnings), body, result)
    )


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
    numbers = (
        table.to_html(index=False, border=0, float_format=lambda x: f"{x:.5g}") if len(table) else "<p>no rows</p>"
    )
    body = f"{_drawn(figures)}<h2>Numbers</h2><details open><summary>{len(table)} rows</summary>{numbers}</details>"
    return files.write_text(path, _page(title, "", [*notices, *(result.warnings if result else ())], body, result))


def _page(title: str, above: str, notices: Sequence[str], body: str, result: Result | None) -> str:
    title = html.escape(title)
    notes = "".join(f"<p class=warn>{html.escape(w)}</p>" for w in notices)
    if result is not None and result.partial:
        notes = (
            "<p class=warn>This run was cancelled: what was finished is shown, and no claim is tested on it.</p>"
            + notes
        )
    short = html.escape(result.provenance.short()) if result is not None else ""
    about = "" if result is None else html.escape(json.dumps(_shareable(result), indent=1))
    provenance = (
        f"<h2>Provenance</h2><details><summary>Spec, model, data, versions</summary><pre>{about}</pre></details>"
        if about
        else ""
    )
    return f"""<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1">
<title>{title}</title><style>{STYLE}</style><script>{get_plotlyjs()}</script></head><body>
<p class=soft>{html.escape(above)}</p><h1>{title}</h1><p class=soft>{short}</p>{notes}{body}{provenance}</body></html>"""


def _drawn(figures: dict[str, go.Figure]) -> str:
    return "".join(
        "<figure role=img"
        f" aria-label={html.escape(json.dumps(_alt(figure)))}>{figure.to_html(include_plotlyjs=False, full_html=False, div_id=name)}</figure>"
        for name, figure in figures.items()
    )


def _alt(figure: go.Figure) -> str:
    meta = figure.layout.meta
    return meta["alt"] if isinstance(meta, dict) and "alt" in meta else "figure"


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
