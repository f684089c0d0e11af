"""What the project offers, as generated text: the table of papers in README, notebooks/README.md, and a page of key
figures.

Read from the catalogue and from the committed notebooks: the claims cell says what was last checked, pictures are those
that `workbench publish` left. Nothing is run.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core import files
from workbench.core.catalogue import FAMILIES, PAPERS, Paper
from workbench.core.claims import read_verdicts, said, tally
from workbench.core.errors import BadData

from .render import own, page
from .sections import read_notebook

START, END = "<!-- papers: written by `workbench index` -->", "<!-- end of papers -->"


@dataclass(frozen=True)
class Entry:
    """A ready paper as its committed notebook shows it. pictures: (alt text, base64 PNG)."""

    paper: Paper
    title: str
    verdicts: tuple[dict[str, str], ...]
    pictures: tuple[tuple[str, str], ...]

    @property
    def path(self) -> str:
        """Of the notebook, from the project's folder."""
        return f"notebooks/{self.paper.family}/{self.paper.stem}.ipynb"

    @property
    def checked(self) -> str:
        """Claims and controls in words."""
        return said(tally(self.verdicts)) or "not checked yet"


def entries(root: Path) -> list[Entry]:
    """Every ready paper that has a notebook, by family."""
    order = list(FAMILIES)
    ready = sorted((p for p in PAPERS.values() if p.is_ready), key=lambda p: order.index(p.family))
    return [
        _entry(paper, root) for paper in ready if (root / "notebooks" / paper.family / f"{paper.stem}.ipynb").is_file()
    ]


def _entry(paper: Paper, root: Path) -> Entry:
    notebook = read_notebook(root / "notebooks" / paper.family / f"{paper.stem}.ipynb")
    verdicts: list[dict[str, str]] = []
    pictures: list[tuple[str, str]] = []
    title = paper.title
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (found := re.match(r"# (.+)", cell.source)) and title == paper.title:
            title = found[1].strip()
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and "nbval-check-output" in cell.metadata.get("tags", []):
                verdicts += read_verdicts(output.text)
            elif "image/png" in output.get("data", {}):
                pictures.append((_text(output.data.get("text/plain", "figure")), output.data["image/png"].strip()))
    return Entry(paper, title, tuple(verdicts), tuple(pictures))


def _text(value: Any) -> str:
    return "".join(value) if isinstance(value, list) else str(value)


def papers_table(found: list[Entry]) -> str:
    """The README's table: a row a family, what is ready with the claims last checked, and what is planned."""
    rows = ["| family | about | ready, with the claims last checked | planned |", "|---|---|---|---|"]
    for family, about in FAMILIES.items():
        ready = [e for e in found if e.paper.family == family]
        planned = [
            p.stem for p in PAPERS.values() if p.family == family and p.stem not in {e.paper.stem for e in ready}
        ]
        rows.append(
            f"| {family} | {about} | {'<br>'.join(f'[{e.paper.title}]({e.path}): {e.checked}' for e in ready)} |"
            f" {', '.join(planned)} |"
        )
    return "\n".join(rows)


def notebooks_readme(found: list[Entry]) -> str:
    """notebooks/README.md."""
    parts = [
        "# Notebooks",
        "",
        (
            "Written by `workbench index`; `workbench lab` opens them. Start with [the tour](tour.ipynb);"
            " [guides](guides/) show the tools."
        ),
        "",
    ]
    for family, about in FAMILIES.items():
        parts += [f"## {family}", "", f"{about[0].upper()}{about[1:]}.", ""]
        ready = [e for e in found if e.paper.family == family]
        for e in ready:
            parts += [f"- [{e.title}]({family}/{e.paper.stem}.ipynb): {e.checked}"]
        planned = [
            p.title for p in PAPERS.values() if p.family == family and p.stem not in {e.paper.stem for e in ready}
        ]
        parts += [f"- planned: {'; '.join(planned)}", ""] if planned else [""]
    return "\n".join(parts).rstrip() + "\n"


def generated(root: Path) -> dict[Path, str]:
    """{file: what it should say now}.

    Raises:
        BadData: if README.md lacks the two lines between which the table stands.
    """
    found, readme = entries(root), root / "README.md"
    text = readme.read_text(encoding="utf-8")
    if START not in text or END not in text:
        raise BadData(f"README.md lacks the line {START!r} or {END!r}; the table stands between them")
    before, after = text.split(START, 1)[0], text.split(END, 1)[1]
    return {
        readme: f"{before}{START}\n{papers_table(found)}\n{END}{after}",
        root / "notebooks" / "README.md": notebooks_readme(found),
    }


def stale(root: Path) -> list[str]:
    """Names of generated files that do not say what they should."""
    return [
        path.relative_to(root).as_posix()
        for path, text in generated(root).items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def write_index(root: Path) -> list[Path]:
    """Write the generated files."""
    return [files.write_text(path, text) for path, text in generated(root).items()]


def write_gallery(path: Path | str, root: Path) -> Path:
    """All key figures of the committed notebooks on one page that asks for nothing."""
    styles = [own("page.css"), own("gallery.css")]
    return files.write_text(
        path, page("gallery.html", "Key figures", styles=styles, draws=False, entries=entries(root))
    )
