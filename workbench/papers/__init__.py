"""Papers: one folder each, `papers/<family>/<stem>/`, that offers Spec, run(), CLAIMS and figures. This file finds
them by stem.
"""

import importlib
from types import ModuleType

from workbench.core.catalogue import PAPERS, paper
from workbench.core.errors import UnknownName


def method(stem: str) -> ModuleType:
    """The package of a paper: Spec, run, CLAIMS, figures, and what else its `__init__` names.

    Raises:
        UnknownName: on an unknown stem, or on one whose method is not written yet (it says which are).
    """
    entry = paper(stem)
    if not entry.is_ready:
        ready = ", ".join(p.stem for p in PAPERS.values() if p.is_ready)
        raise UnknownName(f"{stem} is in scope and has no method yet. Ready: {ready}.")
    return importlib.import_module(entry.module)
