"""What a review document is made of: a notebook or a Result turned into a Section of HTML blocks, nothing dropped.

Notebooks are run here (nbclient) or taken as they are; a failed cell stays, shown as failed, with the cells after it.
Markdown goes through mistune, formulas become MathML, code is coloured by pygments, plotly outputs stay live figures.
Cost: that of the notebook.
"""

import contextlib
import html
import json
import re
import signal
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from xml.etree.ElementTree import tostring

import plotly.graph_objects as go
from markupsafe import Markup

from workbench.core.catalogue import PAPERS
from workbench.core.claims import ClaimsTable, read_verdicts
from workbench.core.errors import BadData
from workbench.core.progress import SILENT, Cancelled, Progress
from workbench.core.result import Result

from .cleaning import clean_html, picture_html
from .render import figure_html, fragment

Kind = Literal[
    "text", "code", "output", "aside", "figure", "failed"
]  # aside: what a setup cell says, or a table says better; left out of slides
INTERRUPTS = 5  # of a kernel, before it is ended
VERDICT_COLUMN = (  # of a claims table (core/claims.py), which says more than the verdicts printed for nbval
    "verdict</th>"
)


@dataclass(frozen=True)
class Block:
    """A piece of a section. html: ready to stand in a page. heading: level of the heading it opens with, 0 for none."""

    kind: Kind
    html: str
    heading: int = 0


@dataclass(frozen=True)
class Section:
    """A notebook or a Result. verdicts: rows of kind, text, verdict. origins: where its numbers came from, a line
    each.
    """

    title: str
    stem: str
    blocks: tuple[Block, ...]
    verdicts: tuple[dict[str, str], ...] = ()
    origins: tuple[str, ...] = field(default=())

    @property
    def n_failed(self) -> int:
        return sum(block.kind == "failed" for block in self.blocks)


# ---- notebooks ----


def execute(path: Path | str, *, timeout: float = 1800, progress: Progress = SILENT) -> Any:
    """Run a notebook in its folder, every cell whatever the others do, and return it with its outputs; the file is not
    touched.

    Raises:
        BadData: if the file is no notebook. Cancelled: from `progress`, between cells; a cell that runs is interrupted.
    """
    import nbformat
    from nbclient import NotebookClient

    path = Path(path)
    notebook = read_notebook(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        timeout=int(timeout),
        allow_errors=True,
        coalesce_streams=True,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    )
    n_code = sum(cell.cell_type == "code" for cell in notebook.cells)
    with client.setup_kernel(), _interrupted_by(progress, client):
        done = 0
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type == "code":
                progress.update(done, n_code, path.stem)
                done += 1
            client.execute_cell(cell, index)
        client.nb.cells.append(nbformat.v4.new_code_cell(_LAST_WORDS))
        client.execute_cell(client.nb.cells[-1], len(client.nb.cells) - 1)
        del client.nb.cells[-1]
    progress.update(n_code, n_code, path.stem)
    return nbformat.from_dict(client.nb)


@contextlib.contextmanager
def _interrupted_by(progress: Progress, client: Any) -> Iterator[None]:
    """While the block runs, a cancel interrupts the kernel, which Ctrl-C does not reach, every second; one that goes on
    all the same is ended. What the block raises then is the cancel.
    """
    from nbclient.exceptions import DeadKernelError
    from nbclient.util import run_sync

    over = threading.Event()

    def watch() -> None:
        n_sent = 0
        while not over.wait(1 if n_sent else 0.1):
            if progress.cancelled:
                end = client.km.interrupt_kernel if n_sent < INTERRUPTS else client.km.signal_kernel
                run_sync(end)(*([] if n_sent < INTERRUPTS else [signal.SIGTERM]))
                n_sent += 1

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    except DeadKernelError:
        if progress.cancelled:
            raise Cancelled("cancelled; the kernel did not answer and was ended") from None
        raise
    finally:
        over.set()
        watching.join()


# Panels draw what they leave in a notebook once nothing has changed for a moment; here there is no moment left.
_LAST_WORDS = """
import sys
if "workbench.panels.panel" in sys.modules:
    sys.modules["workbench.panels.panel"].keep_static_views()
"""


def read_notebook(path: Path) -> Any:
    """A notebook file as nbformat has it; BadData if it is none."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except OSError as found:
        raise BadData(
            f"{path.name} cannot be read ({found.strerror}); give a notebook, a stem of `workbench list` or a result"
            " folder"
        ) from None
    except Exception as found:
        raise BadData(f"{path.name} is no Jupyter notebook ({type(found).__name__})") from None


def notebook_section(notebook: Any, stem: str, folder: Path | None = None) -> Section:
    """A notebook with its outputs as a Section. folder: where it lies, whose pictures are put into the page."""
    blocks: list[Block] = []
    verdicts: list[dict[str, str]] = []
    origins: list[str] = []
    has_table = any(
        VERDICT_COLUMN in output.get("data", {}).get("text/html", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        is_repeated = has_table and "nbval-check-output" in tags
        if cell.cell_type == "markdown":
            blocks += _text_blocks(cell.source, folder)
        if cell.cell_type != "code":
            continue
        if cell.source.strip():
            blocks.append(Block("code", _code(cell.source)))
        for output in cell.outputs:
            found = _output(output, origins)
            if is_repeated:
                found = [
                    (
                        replace(
                            b,
                            html=(
                                "<details><summary>the verdicts as printed, which the tests"
                                f" compare</summary>{b.html}</details>"
                            ),
                        )
                        if b.kind == "output"
                        else b
                    )
                    for b in found
                ]
            blocks += (
                [replace(b, kind="aside") if b.kind == "output" else b for b in found]
                if is_repeated or "setup" in tags
                else found
            )
            if "nbval-check-output" in tags and output.output_type == "stream":
                verdicts += read_verdicts(output.text)
    title = next((_plain(b.html) for b in blocks if b.heading == 1), stem)
    return Section(title, stem, tuple(blocks), tuple(verdicts), tuple(dict.fromkeys(origins)))


_MATH = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$([^\s$](?:[^$\n]*[^\s$])?)\$(?![\d$])", re.DOTALL)
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)


def markdown_html(source: str, folder: Path | None = None) -> str:
    """Markdown as HTML that runs and loads nothing; formulas between dollar signs as MathML, which browsers draw
    without a script.

    Args:
        source: Markdown. folder: whose pictures are put into the page.
    """
    import mistune

    formulas: list[Markup] = []
    mark = f"formula{uuid.uuid4().hex}n"  # which stands in no notebook

    def keep(match: re.Match) -> str:
        formulas.append(formula_html(match[0], *match.groups()))
        return f"{mark}{len(formulas) - 1};"

    pieces = _CODE.split(source)  # dollar signs in code are not formulas
    pieces[::2] = [_MATH.sub(keep, piece) for piece in pieces[::2]]
    rendered = mistune.create_markdown(escape=False, plugins=["table", "strikethrough", "footnotes"])("".join(pieces))
    return re.sub(f"{mark}(\\d+);", lambda m: formulas[int(m[1])], clean_html(str(rendered), folder))


def formula_html(source: str, display: str | None, inline: str | None) -> Markup:
    """A formula as MathML; the source as it was written where it cannot be read.

    Args:
        source: with its dollar signs. display, inline: what stands between two or one of them, the other None.
    """
    from latex2mathml.converter import Converter

    kind = "inline" if display is None else "block"
    try:
        drawn = Converter(display=kind).convert_to_element(display or inline or "")
    except Exception:  # the converter raises what it likes, and a slip of the pen must not end a report
        return Markup("<code>{}</code>").format(source)
    for part in drawn.iter():  # it names signs by entities; as plain text they are escaped with all the rest
        part.text = html.unescape(part.text) if part.text else part.text
    return Markup(tostring(drawn, encoding="unicode"))


def _text_blocks(source: str, folder: Path | None) -> list[Block]:
    """One block per heading, so that slides can break there."""
    parts = re.split(r"(?=<h[1-3][ >])", markdown_html(source, folder))
    return [Block("text", part, int(part[2]) if re.match(r"<h[1-3]", part) else 0) for part in parts if part.strip()]


def _code(source: str) -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return highlight(source, PythonLexer(), HtmlFormatter(nowrap=False, noclasses=False))


def _output(output: Any, origins: list[str]) -> list[Block]:
    if output.output_type == "stream":
        printed = Markup('<pre class="{}">{}</pre>').format(output.name, output.text)
        return [Block("output", printed)] if output.text.strip() else []
    if output.output_type == "error":
        trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback))
        return [Block("failed", fragment("failed.html", name=output.ename, value=output.evalue, trace=trace))]
    data = output.data
    if "application/vnd.plotly.v1+json" in data:
        figure = data["application/vnd.plotly.v1+json"]
        origins += _origin({"metadata": figure.get("layout", {}).get("meta")})
        return [Block("figure", figure_html(figure))]
    if data.get("image/svg+xml", "").strip():  # a picture, in which a browser runs and loads nothing
        drawing = picture_html(data["image/svg+xml"].encode(), "image/svg+xml", data.get("text/plain", "figure"))
        return [Block("output", f"<div class=out>{drawing}</div>")]
    if data.get("text/html", "").strip():
        return [Block("output", f"<div class=out>{clean_html(data['text/html'])}</div>")]
    for mime in ("image/png", "image/jpeg"):
        if mime in data:
            origins += _origin(output)
            picture = Markup('<img alt="{}" src="data:{};base64,{}">')
            return [Block("figure", picture.format(data.get("text/plain", "figure"), mime, data[mime].strip()))]
    if "text/markdown" in data:
        return [Block("output", markdown_html(data["text/markdown"]))]
    if "application/vnd.jupyter.widget-view+json" in data or not data.get("text/plain", "").strip():
        return []  # a live panel has no life in a page; the static view it leaves beneath it is an output of its own
    return [Block("output", Markup("<pre>{}</pre>").format(data["text/plain"]))]


def _origin(output: Any) -> list[str]:
    """The line of provenance that a live figure carries, or that `publish` left with its picture."""
    meta = output.get("metadata")
    return [meta["provenance"]] if isinstance(meta, dict) and meta.get("provenance") else []


# ---- results ----


def result_section(result: Result, table: ClaimsTable, figures: dict[str, go.Figure]) -> Section:
    """A saved Result with its checked claims and figures as a Section."""
    paper = PAPERS.get(result.stem)
    title = paper.title if paper else result.stem
    said = [*(["This run was cancelled: no claim is tested on it."] if result.partial else []), *result.warnings]
    notices = Markup("").join(Markup("<p class=warn>{}</p>").format(line) for line in said)
    blocks = [Block("text", Markup("<h1>{}</h1>").format(title), 1)]
    blocks += [Block("output", notices)] if notices else []
    blocks += [
        Block("text", "<h2>Claims and controls</h2>", 2),
        Block("output", table._repr_html_()),
        Block("text", "<h2>Figures</h2>", 2),
    ]
    blocks += [Block("figure", figure_html(json.loads(figure.to_json()))) for figure in figures.values()]
    return Section(
        title, result.stem, tuple(blocks), tuple(read_verdicts(table.verdicts())), (result.provenance.short(),)
    )


def _plain(fragment: str) -> str:
    found = re.search(r"<h1[^>]*>(.*?)</h1>", fragment, re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", "", found[1] if found else fragment)).strip()
