"""Sections as one document: a page to scroll, or a PDF of it (slides: slides.py), each a single file that asks for
nothing.

plotly.js is written into the file once. The page follows the reader's light or dark setting and prints; code is folded.
PDF needs a Chromium or Chrome, whose print keeps lines and text as vectors.
"""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from workbench.core import files
from workbench.core.errors import WorkbenchError

from .front import front
from .images import NO_BROWSER, find_browser
from .render import own, page
from .sections import Section
from .slides import write_slides

_PYGMENTS_DARK = "monokai"


def write_html(path: Path | str, sections: Sequence[Section]) -> Path:
    """One page; with several sections a front page comes first."""
    return files.write_text(path, page_html(sections))


def page_html(sections: Sequence[Section]) -> str:
    """The page as text."""
    many = len(sections) > 1
    return page(
        "document.html",
        f"{len(sections)} analyses" if many else sections[0].title,
        styles=[own("page.css"), own("document.css"), _code_style()],
        scripts=[own("document.js")],
        front=front(sections) if many else "",
        sections=sections,
    )


def _code_style() -> Markup:
    from pygments.formatters import HtmlFormatter

    dark = HtmlFormatter(style=_PYGMENTS_DARK).get_style_defs(".highlight")
    light = HtmlFormatter().get_style_defs(".highlight")
    return Markup(f"{light}@media(prefers-color-scheme:dark){{{dark}}}.highlight pre{{background:var(--card)}}")


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
            # no address is found and no proxy answers, so that nothing a page names can be asked for
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--proxy-server=127.0.0.1:9",
            "--proxy-bypass-list=<-loopback>",
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
