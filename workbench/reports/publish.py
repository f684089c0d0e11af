"""The notebooks as they are committed: run, figures as small pictures, no live figures and no widget state.

GitHub, VS Code and nbviewer show pictures and text; live figures and panels come back when the notebook is run.
"""

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from workbench.core import files
from workbench.core.errors import WorkbenchError
from workbench.core.progress import SILENT, Progress

from .images import small_picture
from .sections import execute, read_notebook

PANEL = re.compile(r"\bwb-[0-9a-f]{10}\b")  # the identity of a panel's static view (panels/panel.py)
LIVE = ("application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json")


def publish(path: Path | str, *, run: Callable[..., Any] = execute, progress: Progress = SILENT) -> str:
    """Run a notebook and write it back with static figures, in one step.

    Returns:
        A sentence saying which pictures are missing and why, empty if none. Published again, the text does not change
        unless what it says did; pictures carry the commit and the day they were drawn on.

    Raises:
        WorkbenchError: if a cell fails; the file is then left as it was.
    """
    import nbformat

    path = Path(path)
    before = read_notebook(path)
    notebook = run(path, progress=progress)
    failed = [
        (i, o)
        for i, cell in enumerate(notebook.cells)
        if cell.cell_type == "code"
        for o in cell.outputs
        if o.output_type == "error"
    ]
    if failed:
        number, error = failed[0]
        raise WorkbenchError(
            f"{path.name} was not published: cell {number} failed with {error.ename}:"
            f" {error.evalue.splitlines()[0] if error.evalue else ''}"
        )
    problems: list[str] = []
    for number, cell in enumerate(notebook.cells):
        cell.metadata.pop("execution", None)
        cell["id"] = str(number)  # as nbstripout numbers them, so that its check in CI finds nothing to change
        if cell.cell_type == "code":
            cell.outputs = [
                kept
                for i, output in enumerate(cell.outputs)
                if (kept := _static(output, f"cell {number}.{i}", problems)) is not None
            ]
    _name_panels(notebook, path.stem)
    notebook.metadata = before.metadata
    notebook.metadata.pop("widgets", None)
    files.write_text(path, nbformat.writes(notebook) + "\n")
    return "; ".join(dict.fromkeys(problems))


def _name_panels(notebook: Any, stem: str) -> None:
    """Panels draw a new identity in every kernel; a published one is named after its notebook and its place there."""
    shown = [
        output.data
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "text/html" in output.get("data", {})
    ]
    drawn = dict.fromkeys(found for data in shown for found in PANEL.findall("".join(data["text/html"])))
    names = {old: f"wb-{hashlib.sha256(f'{stem} {n}'.encode()).hexdigest()[:10]}" for n, old in enumerate(drawn)}
    for data in shown:
        data["text/html"] = PANEL.sub(lambda found: names[found[0]], "".join(data["text/html"]))


def _static(output: Any, name: str, problems: list[str]) -> Any:
    """The output without what is alive; None if nothing is left."""
    if output.output_type == "stream":
        return None if output.name == "stderr" else output
    data = output.data
    output.metadata = {}
    if LIVE[0] in data:
        figure = go.Figure(data.pop(LIVE[0]))
        content, problem = small_picture(figure)
        if problem:
            problems.append(f"{name}: {problem}")
        meta = figure.layout.meta if isinstance(figure.layout.meta, dict) else {}
        data["text/plain"] = meta.get("alt", "figure")
        if origin := " · ".join(
            meta.get("provenance", "").split(" · ")[:-2]
        ):  # without commit and date, which change though nothing else does
            output.metadata["provenance"] = origin
        return output if not content else _with_picture(output, content)
    if data.pop(LIVE[1], None) is not None:  # a live panel; the static view beneath it is an output of its own
        return None
    return output if any(str(value).strip() for value in data.values()) else None


def _with_picture(output: Any, content: bytes) -> Any:
    output.data["image/png"] = base64.b64encode(content).decode()
    return output
