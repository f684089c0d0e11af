"""Sections as one document: a page to scroll, slides, or a PDF, each a single file that asks for nothing.

plotly.js is written into the file once. The page follows the reader's light or dark setting and prints; code is folded.
Slides need reveal.js, read from the package sphinx-revealjs (extra `slides`); PDF needs a Chromium or Chrome, whose print
keeps lines and text as vectors.
"""

import html
import importlib.util
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from plotly.offline import get_plotlyjs

from workbench.core import files
from workbench.core.catalogue import PAPERS
from workbench.core.errors import WorkbenchError
from workbench.core.provenance import versions

from .images import NO_BROWSER, find_browser
from .page import STYLE
from .sections import Section, tally

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
_DRAW = """
function draw(within){for(const s of within.querySelectorAll('script.plotly')){const at=s.previousElementSibling;
if(!at.dataset.drawn){at.dataset.drawn=1;const f=JSON.parse(s.textContent);Plotly.newPlot(at,f.data,f.layout,{displaylogo:false,responsive:false});}}}
"""


def write_html(path: Path | str, sections: Sequence[Section]) -> Path:
    """One page; with several sections a front page comes first."""
    return files.write_text(path, page_html(sections))


def page_html(sections: Sequence[Section]) -> str:
    """The page as text."""
    many = len(sections) > 1
    body = "".join([_front(sections) if many else "", *(_section_html(s, f"part-{i}" if many else "") for i, s in enumerate(sections))])
    title = html.escape(sections[0].title if len(sections) == 1 else f"{len(sections)} analyses")
    return f"""<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1">
<title>{title}</title><style>{STYLE}{_MORE}{_code_style()}</style><script>{get_plotlyjs()}</script></head><body>{body}
<script>{_DRAW}draw(document);document.body.dataset.ready=1;</script></body></html>"""


def _section_html(section: Section, anchor: str) -> str:
    parts = []
    for block in section.blocks:
        if block.kind == "code":
            parts.append(f"<details class=code><summary>code</summary>{block.html}</details>")
        elif block.kind == "figure":
            parts.append(f"<figure>{block.html}</figure>")
        else:
            parts.append(f"<div class={block.kind}>{block.html}</div>")
    notes = f"<p class=warn>{section.n_failed} cell{'s' if section.n_failed > 1 else ''} of this notebook failed and are shown as such.</p>" if section.n_failed else ""
    origins = "".join(f"<li>{html.escape(line)}</li>" for line in section.origins)
    end = f"<h2>Provenance</h2><ul class=soft>{origins}</ul>" if origins else ""
    return f"<section class=stem id={anchor}>{notes}{''.join(parts)}{end}</section>" if anchor else f"{notes}{''.join(parts)}{end}"


def _front(sections: Sequence[Section]) -> str:
    """Families, claims and controls in numbers, models and versions."""
    rows = []
    for i, s in enumerate(sections):
        n = tally(s.verdicts)
        family = PAPERS[s.stem].family if s.stem in PAPERS else "-"
        claims = f"{n['hold']} of {n['claims']}" if n["claims"] else "-"
        controls = n["controls fail as they must"]
        said = (f"{controls} of {n['controls']}" + (f"; {n['controls hold']} hold" if n["controls hold"] else "")) if n["controls"] else "-"
        shade = "bad" if n["controls hold"] else "ok" if controls else ""
        failed = f"<span class=bad>{s.n_failed} failed</span>" if s.n_failed else "all ran"
        rows.append(
            f"<tr><td>{family}</td><td><a href='#part-{i}'>{html.escape(s.title)}</a></td><td>{claims}</td><td>{n['do not hold']}</td><td>{n['not testable']}</td>"
            f"<td class={shade}>{said}</td><td>{failed}</td></tr>"
        )
    head = "".join(f"<th>{h}</th>" for h in ("family", "analysis", "claims that hold", "do not hold", "not testable", "controls that fail, as they must", "cells"))
    origins = "".join(f"<tr><td>{html.escape(s.stem)}</td><td>{'<br>'.join(html.escape(o) for o in s.origins) or '-'}</td></tr>" for s in sections)
    environment = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"""<h1>{len(sections)} analyses</h1><h2>Claims and controls</h2><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>
<h2>Models</h2><table><thead><tr><th>analysis</th><th>model, weights, precision, device, seed, commit, date</th></tr></thead><tbody>{origins}</tbody></table>
<p class=soft>{html.escape(environment)}</p>"""


def _code_style() -> str:
    from pygments.formatters import HtmlFormatter

    dark = HtmlFormatter(style=_PYGMENTS_DARK).get_style_defs(".highlight")
    return HtmlFormatter().get_style_defs(".highlight") + "@media(prefers-color-scheme:dark){" + dark + "}.highlight pre{background:var(--card)}"


# ---- slides ----


def write_slides(path: Path | str, sections: Sequence[Section]) -> Path:
    """Slides: a heading opens one, every figure has its own, code is left out, failed cells are not.

    Raises:
        ImportError: without reveal.js, with the line that installs it.
    """
    return files.write_text(path, slides_html(sections))


def slides_html(sections: Sequence[Section]) -> str:
    """The slides as text."""
    script, style, look = (_reveal(name) for name in ("reveal.js", "reveal.css", "theme/white.css"))
    look = "\n".join(line for line in look.splitlines() if not line.startswith("@import"))  # its fonts are files of their own
    slides = ([[f"<div class=front>{_front(sections)}</div>"]] if len(sections) > 1 else []) + [slide for s in sections for slide in _slides(s)]
    body = "".join(f"<section>{''.join(slide)}</section>" for slide in slides)
    more = ".reveal{font-size:22px}.reveal h1{font-size:1.7em}.reveal h2{font-size:1.4em}.reveal table{font-size:.62em}.reveal pre{font-size:.62em;width:100%;box-shadow:none}.reveal .figure img{width:auto;height:660px;max-width:100%;object-fit:contain;margin:0}.reveal section{text-align:left}"
    more += ".reveal .plot{zoom:1.15}.warn,.failed{border-left:4px solid #D55E00;padding-left:.6em}.front table{font-size:.6em}.soft{color:#666;font-size:.6em}.reveal p,.reveal li{line-height:1.35}"
    return f"""<!doctype html><html lang=en><head><meta charset=utf-8><title>{html.escape(sections[0].title)}</title>
<style>{style}</style><style>{look}</style><style>:root{{--r-main-font:Inter,Helvetica,Arial,sans-serif;--r-heading-font:Inter,Helvetica,Arial,sans-serif;--r-heading-text-transform:none}}{more}</style>
<script>{get_plotlyjs()}</script></head><body><div class=reveal><div class=slides>{body}</div></div><script>{script}</script>
<script>{_DRAW}Reveal.initialize({{hash:true,transition:'none',width:1180,height:760,margin:.03,center:false}}).then(()=>{{draw(document);document.body.dataset.ready=1;}});</script></body></html>"""


MOST_WORDS = 110  # of text on one slide; more goes to the next


def _slides(section: Section) -> list[list[str]]:
    slides: list[list[str]] = [[]]
    words = 0
    for block in section.blocks:
        if block.kind in ("code", "aside"):
            continue
        n = len(block.html.split()) if block.kind in ("text", "output") else 0
        starts = block.heading or block.kind == "figure" or words + n > MOST_WORDS
        if starts and slides[-1]:
            slides.append([])
            words = 0
        slides[-1].append(f"<div class={block.kind}>{block.html}</div>")
        words += n
        if block.kind == "figure":
            slides.append([])
            words = 0
    origins = "".join(f"<li>{html.escape(line)}</li>" for line in section.origins)
    return [s for s in [*slides, [f"<h2>Provenance</h2><ul class=soft>{origins}</ul>"] if origins else []] if s]


def _reveal(name: str) -> str:
    found = importlib.util.find_spec("sphinx_revealjs")
    if found is None or not found.submodule_search_locations:
        raise ImportError('slides need reveal.js, which comes with sphinx-revealjs: pip install "circuit-workbench[slides]"')
    return (Path(found.submodule_search_locations[0]) / "_static" / "revealjs" / "dist" / name).read_text(encoding="utf-8")


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
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-pdf-header-footer", f"--user-data-dir={room}/profile"]
        command = [browser, *options, "--virtual-time-budget=60000", f"--print-to-pdf={printed}", source.as_uri()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise WorkbenchError(f"the browser did not print {path.name} within {timeout:.0f} s; write HTML and print that") from None
        if not printed.is_file():
            raise WorkbenchError(f"the browser printed nothing ({done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f'exit code {done.returncode}'})")
        return files.write_bytes(path, printed.read_bytes())


WRITERS = {"html": write_html, "slides": write_slides, "pdf": write_pdf}
