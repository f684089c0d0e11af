"""Sections as slides: one file with reveal.js and every figure in it, that asks for nothing.

A heading opens a slide, a figure has its own or one with its heading, code is left out, long tables and prints go on
over several. reveal.js is read from the package sphinx-revealjs (extra `slides`).
"""

import importlib.util
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from markupsafe import Markup

from workbench.core import files

from .front import front
from .render import fragment, own, page
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
    # the theme's fonts are files of their own
    look = "\n".join(line for line in look.splitlines() if not line.startswith("@import"))
    slides = [[f"<div class=front>{front(sections)}</div>"]] if len(sections) > 1 else []
    return page(
        "slides.html",
        sections[0].title,
        styles=[Markup(style), Markup(look), own("slides.css")],
        scripts=[Markup(script), own("slides.js")],
        slides=slides + [slide for s in sections for slide in _slides(s)],
    )


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
    origins = fragment("origins.html", section=section)
    return [s for s in [*slides, [origins] if origins else []] if s]


def _reveal(name: str) -> str:
    found = importlib.util.find_spec("sphinx_revealjs")
    if found is None or not found.submodule_search_locations:
        raise ImportError(
            'slides need reveal.js, which comes with sphinx-revealjs: pip install "circuit-workbench[slides]"'
        )
    return (Path(found.submodule_search_locations[0]) / "_static" / "revealjs" / "dist" / name).read_text(
        encoding="utf-8"
    )
