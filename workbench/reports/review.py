"""A folder for a review: the Result, one HTML page, the claims, the provenance, and every figure as a picture.

The command line fills the folder a run was given; the Run panel makes a new one. Cost: about 3 s a figure, for the
PNGs.
"""

import json
from pathlib import Path

import plotly.graph_objects as go

from workbench.core import files
from workbench.core.claims import ClaimsTable
from workbench.core.errors import WorkbenchError
from workbench.core.result import Result

from .images import write_pngs
from .page import write_page


def write_review(
    result: Result, claims: ClaimsTable, figures: dict[str, go.Figure], folder: Path | str
) -> tuple[Path, str]:
    """Everything a reviewer needs, in one new folder: what `write_documents` writes, and the Result in result/.

    Returns:
        The folder, and a sentence saying why there are no PNGs, empty if they are there.

    Raises:
        WorkbenchError: if the folder is there already; nothing is overwritten.
    """
    folder = Path(folder)
    if folder.exists():
        raise WorkbenchError(f"{folder} is there already and is not overwritten; give another folder")
    with files.new_folder(folder) as new:
        result.save(new / "result")
        _, trouble = write_documents(result, claims, figures, new)
    return folder, trouble


def write_documents(
    result: Result, claims: ClaimsTable, figures: dict[str, go.Figure], folder: Path
) -> tuple[Path, str]:
    """report.html, claims.json, provenance.json and figures/NAME.png, each written in one step.

    Returns:
        The page, and a sentence saying why there are no PNGs, empty if they are there.
    """
    files.write_text(folder / "claims.json", json.dumps(claims.rows(), indent=1))
    files.write_text(folder / "provenance.json", json.dumps(result.provenance.to_dict(), indent=1))
    page = write_page(folder / "report.html", result, claims, figures)
    _, trouble = write_pngs(figures, folder / "figures")
    return page, trouble
