"""Views: Result -> plotly Figure, table or HTML. Pure functions; they never see a model and import only core.

A paper's figures are `views/<stem>.py` with `figures(result) -> {name: Figure}`; `figures_of(result)` finds them.
"""

import importlib
from typing import TYPE_CHECKING

from workbench.core.errors import UnknownName

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.core.result import Result


def figures_of(result: "Result") -> "dict[str, go.Figure]":
    """All figures of a Result, by name, the one to show first in front.

    Raises:
        UnknownName: if no view module belongs to the Result's stem.
    """
    try:
        module = importlib.import_module(f"{__package__}.{result.stem}")
    except ModuleNotFoundError:
        raise UnknownName(f"no views for {result.stem!r}: expected a module views/{result.stem}.py with figures(result)") from None
    return module.figures(result)
