"""Sections as slides: one file with reveal.js and every figure in it, that asks for nothing.

A heading opens a slide, a figure has its own or one with its heading, code is left out, long tables and prints go on
over several. reveal.js is read from the package sphinx-revealjs (extra `slides`).
"""

import html
import importlib.util
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from plotly.offline import get_plotlyjs

from workbench.core import files

from .front import DRAW, front
from .sections import Block, Section


def write_slides(path: Path | str, sections: Sequence[Section]) -> Path:
    """Slides: a heading opens one, every figure has its own, code is left out, failed cells are not.

    Raises:
        ImportError: without reveal.js, with the line that installs it.
    """
    return files.write_text(path, slides_html(sections))


def slides_html(sections: Sequence[Section]) -> str:
    """The slides as text."""
    script, style, look = (_reveal(name) for name in ("reveal.js", "reveal.css", "theme/white.css"))
    look = "\n".join(
        line for line in look.splitlines() if not line.startswith("@import")
    )  # its fonts are files of their own
    slides = ([[f"<div class=front>{front(sections)}</div>"]] if len(sections) > 1 else []) + [
        slide for s in sections for slide in _slides(s)
    ]
    body = "".join(f"<section>{''.join(slide)}</section>" for slide in slides)
    more = (
        ".reveal{font-size:22px}.reveal h1{font-size:1.7em}.reveal h2{font-size:1.4em}.reveal"
        " table{font-size:.62em}.reveal"
        " pre{font-size:.62em;width:100%;box-shadow:none;white-space:pre-wrap;overflow-wrap:anywhere}.reveal .figure"
        " img{width:auto;height:660px;max-width:100%;object-fit:contain;margin:0}.reveal .titled"
        " img{height:590px}.reveal .titled .plot{zoom:1}.reveal section{text-align:left}"
    )
    more += (
        ".reveal .plot{zoom:1.15}.warn,.failed{border-left:4px solid #D55E00;padding-left:.6em}.front"
        " table{font-size:.6em}.soft{color:#666;font-size:.6em}.reveal p,.reveal li{line-height:1.35}"
    )
    return f"""<!doctype html><html lang=en><head><meta charset=utf-8><title>{html.escape(sections[0].title)}</title>
<style>{style}</style><style>{look}</style><style>:root{{--r-main-font:Inter,Helvetica,Arial,sans-serif;--r-heading-font:Inter,Helvetica,Arial,sans-serif;--r-heading-text-transform:none}}{more}</style>
<script>{get_plotlyjs()}</script></head><body><div class=reveal><div class=slides>{body}</div></div><script>{script}</script>
<script>{DRAW}Reveal.initialize({{hash:true,transition:'none',width:1180,height:760,margin:.03,center:false}}).then(()=>{{draw(document);document.body.dataset.ready=1;}});</script></body></html>"""


MOST_WORDS = 110  # of text on one slide; more goes to the next
MOST_LINES = 22  # of a table or of printed text on one slide
HEADING_ALONE = re.compile(
    r"<div class=text>\s*<h[1-3][^>]*>[^<]*</h[1-3]>\s*</div>"
)  # it goes with the figure after it
CHARS_PER_LINE = 140  # of a table's row, before its longest cell wraps


def _parts(block: Block) -> list[Block]:
    """A block as pieces that each fit a slide: pictures out of the text, long tables and long prints cut between
    their lines.
    """
    if block.kind == "text":
        pieces = [piece for piece in re.split(r"(<p><img[^>]*>\s*</p>)", block.html) if piece.strip()]
        return [
            (
                Block("figure", piece)
                if piece.startswith("<p><img")
                else replace(block, html=piece, heading=block.heading if not i else 0)
            )
            for i, piece in enumerate(pieces)
        ]
    if block.kind != "output":
        return [block]
    table = re.fullmatch(r"(.*?<tbody>)(.*)(</tbody>.*)", block.html, re.DOTALL)
    if table and "<tbody>" not in table[2]:
        pages = _filled(
            re.findall(r"<tr.*?</tr>", table[2], re.DOTALL),
            lambda row: 1.3 + 0.6 * (len(re.sub(r"<[^>]+>", "", row)) // CHARS_PER_LINE),
        )
        if len(pages) < 2:
            return [block]
        end = re.sub(r"^(</tbody>\s*</table>).*", r"\1", table[3], flags=re.DOTALL)
        close = "</div>" * (table[1].count("<div") - table[1].count("</div>"))
        return [
            replace(block, html=table[1] + "".join(page) + (table[3] if i == len(pages) - 1 else end + close))
            for i, page in enumerate(pages)
        ]
    printed = re.fullmatch(r"(<pre[^>]*>)(.*)(</pre>)", block.html, re.DOTALL)
    if printed:
        pages = _filled(printed[2].splitlines(keepends=True), lambda line: 1)
        return [replace(block, html=printed[1] + "".join(page) + printed[3]) for page in pages]
    return [block]


def _filled(lines: Sequence[str], height: Callable[[str], float]) -> list[list[str]]:
    """Lines in groups of at most MOST_LINES in height, as even as whole lines allow."""
    heights = [height(line) for line in lines]
    n_pages = max(1, math.ceil(sum(heights) / MOST_LINES))
    pages: list[list[str]] = [[]]
    filled = 0.0
    for line, high in zip(lines, heights, strict=True):
        if pages[-1] and filled + high > max(sum(heights) / n_pages, 1) + 1:
            pages.append([])
            filled = 0.0
        pages[-1].append(line)
        filled += high
    return pages


def _slides(section: Section) -> list[list[str]]:
    slides: list[list[str]] = [[]]
    words = 0
    for block in section.blocks:
        if block.kind in ("code", "aside"):
            continue
        for part in _parts(block):
            n = len(part.html.split()) if part.kind in ("text", "output") else 0
            starts = part.heading or part.kind == "figure" or words + n > MOST_WORDS
            titled = part.kind == "figure" and len(slides[-1]) == 1 and HEADING_ALONE.fullmatch(slides[-1][0])
            if starts and slides[-1] and not titled:
                slides.append([])
                words = 0
            slides[-1].append(
                f"<div class='figure titled'>{part.html}</div>"
                if titled
                else f"<div class={part.kind}>{part.html}</div>"
            )
            words += n
            if part.kind == "figure":
                slides.append([])
                words = 0
    origins = "".join(f"<li>{html.escape(line)}</li>" for line in section.origins)
    return [s for s in [*slides, [f"<h2>Provenance</h2><ul class=soft>{origins}</ul>"] if origins else []] if s]


def _reveal(name: str) -> str:
    found = importlib.util.find_spec("sphinx_revealjs")
    if found is None or not found.submodule_search_locations:
        raise ImportError(
            'slides need reveal.js, which comes with sphinx-revealjs: pip install "circuit-workbench[slides]"'
        )
    return (Path(found.submodule_search_locations[0]) / "_static" / "revealjs" / "dist" / name).read_text(
        encoding="utf-8"
    )
