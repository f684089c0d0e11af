"""The checkout that the package was installed from: where notebooks and README.md lie."""

from pathlib import Path

from workbench.core.catalogue import PAPERS
from workbench.core.errors import BadData, WorkbenchError
from workbench.core.places import data_folder


def checkout() -> Path:
    """The folder that holds README.md and notebooks/.

    Raises:
        WorkbenchError: if the package lies elsewhere, as one installed from a wheel does.
    """
    root = data_folder().parent
    if not (root / "notebooks").is_dir():
        raise WorkbenchError(
            "the notebooks are not beside the package; run from a checkout installed with `pip install -e .`"
        )
    return root


def find_notebook(item: str) -> Path | None:
    """The notebook of a stem, or the path of one; None for anything else.

    Raises:
        BadData: for a paper that has no notebook yet.
    """
    if item not in PAPERS:
        return Path(item) if item.endswith(".ipynb") else None
    path = checkout() / "notebooks" / PAPERS[item].family / f"{item}.ipynb"
    if not path.is_file():
        raise BadData(f"{item} has no notebook yet; `workbench list` shows which papers are ready")
    return path
