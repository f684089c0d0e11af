"""Sections as one document: a page to scroll, or a PDF of it (slides: slides.py), each a single file that asks for
nothing.

plotly.js is written into the file once. The page follows the reader's light or dark setting and prints; code is folded.
PDF needs a Chromium or Chrome, whose print keeps lines and text as vectors.
"""

import html
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from plotly.offline import get_plotlyjs

from workbench.core import files
from workbench.core.errors import WorkbenchError

from .front import DRAW, front
from .images import NO_BROWSER, find_browser
from .page import STYLE
from .sections import Section
from .slides import write_slides

_MORE = """
.plot{margin:0 auto}.out{overflow-x:auto}pre{white-space:pre-wrap}img{max-width:100%;background:#fff}
.code{margin:.4em 0}.code>summary{color:var(--soft);font-size:.8em;cursor:pointer}
.failed{border-left:4px solid #D55E00;background:var(--card);padding:.4em 1em}
nav ol{columns:2}.stem{border-top:2px solid var(--line);margin-top:3em;padding-top:1em}
.ok{color:#0f8a5f;font-weight:600}.bad{color:#D55E00;font-weight:600}
@media print{.code{display:none}.stem{break-before:page}h2,h3{break-after:avoid}body{max-width:none;margin:0}.plot{zoom:.72}
.out{overflow:visible}.out table{font-size:.74em}.out td,.out th{padding:.2em .35em;overflow-wrap:break-word}.out thead th{overflow-wrap:anywhere}}
"""
_PYGMENTS_DARK = "monokai"


def write_html(path: Path | str, sections: Sequence[Section]) -> Path:
    """One page; with several sections a front page comes first."""
    return files.write_text(path, page_html(sections))


def page_html(sections: Sequence[Section]) -> str:
    """The page as text."""
    many = len(sections) > 1
    body = "".join(
        [
            front(sections) if many else "",
            *(_section_html(s, f"part-{i}" if many else "") for i, s in enumerate(sections)),
        ]
    )
    title = html.escape(sections[0].title if len(sections) == 1 else f"{len(sections)} analyses")
    return f"""<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1">
<title>{title}</title><style>{STYLE}{_MORE}{_code_style()}</style><script>{get_plotlyjs()}</script></head><body>{body}
<script>{DRAW}draw(document);document.body.dataset.ready=1;</script></body></html>"""


def _section_html(section: Section, anchor: str) -> str:
    parts = []
    for block in section.blocks:
        if block.kind == "code":
            parts.append(f"<details class=code><summary>code</summary>{block.html}</details>")
        elif block.kind == "figure":
            parts.append(f"<figure>{block.html}</figure>")
        else:
            parts.append(f"<div class={block.kind}>{block.html}</div>")
    notes = (
        f"<p class=warn>{section.n_failed} cell{'s' if section.n_failed > 1 else ''} of this notebook failed and are"
        " shown as such.</p>"
        if section.n_failed
        else ""
    )
    origins = "".join(f"<li>{html.escape(line)}</li>" for line in section.origins)
    end = f"<h2>Provenance</h2><ul class=soft>{origins}</ul>" if origins else ""
    return (
        f"<section class=stem id={anchor}>{notes}{''.join(parts)}{end}</section>"
        if anchor
        else f"{notes}{''.join(parts)}{end}"
    )


def _code_style() -> str:
    from pygments.formatters import HtmlFormatter

    dark = HtmlFormatter(style=_PYGMENTS_DARK).get_style_defs(".highlight")
    return (
        HtmlFormatter().get_style_defs(".highlight")
        + "@media(prefers-color-scheme:dark){"
        + dark
        + "}.highlight pre{background:var(--card)}"
    )


# ---- PDF ----


def write_pdf(path: Path | str, sections: Sequence[Section], *, timeout: float = 180) -> Path:
    """The page as PDF, printed by a browser.

    Raises:
        WorkbenchError: without a browser, or if it does not finish.
    """
    browser = find_browser()
    if browser is None:
        raise WorkbenchError(NO_BROWSER.replace("no PNG was drawn: kaleido needs", "a PDF needs"))
    path = Path(path)
    with tempfile.TemporaryDirectory() as room:
        source, printed = Path(room) / "page.html", Path(room) / "page.pdf"
        source.write_text(page_html(sections), encoding="utf-8")
        options = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--no-pdf-header-footer",
            f"--user-data-dir={room}/profile",
        ]
        command = [browser, *options, "--virtual-time-budget=60000", f"--print-to-pdf={printed}", source.as_uri()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise WorkbenchError(
                f"the browser did not print {path.name} within {timeout:.0f} s; write HTML and print that"
            ) from None
        if not printed.is_file():
            raise WorkbenchError(
                "the browser printed nothing"
                f" ({done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f'exit code {done.returncode}'})"
            )
        return files.write_bytes(path, printed.read_bytes())


WRITERS = {"html": write_html, "slides": write_slides, "pdf": write_pdf}
