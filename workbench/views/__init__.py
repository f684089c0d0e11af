"""Views: Result -> plotly Figure, table or HTML. Pure functions; they never see a model and import only core.

Every view module of a primitive, and `figures.py` in a paper's folder, has `figures(result) -> {name: Figure}`;
`figures` finds it.
"""

import importlib
from typing import TYPE_CHECKING

from workbench.core.catalogue import PAPERS
from workbench.core.errors import UnknownName

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.core.result import Result

_MODULES = {  # of the primitives' Results, by their stem
    "ablation": "ablation",
    "attention": "attention",
    "attribution": "circuits",
    "cell_attribution": "circuits",
    "direct_logit_attribution": "attribution",
    "logit_lens": "lenses",
    "path_patching": "circuits",
    "predictions": "predictions",
    "steering": "steering",
    "sweep": "sweep",
    "top_activations": "top_activations",
    "two_checkpoints": "two_checkpoints",
}


def figures(result: "Result") -> "dict[str, go.Figure]":
    """All figures of a Result, by name, the one to show first in front.

    Raises:
        UnknownName: if nothing draws Results of that stem.
    """
    stem = result.stem
    if stem in PAPERS and PAPERS[stem].is_ready:
        module = f"{PAPERS[stem].module}.figures"
    elif stem in _MODULES:
        module = f"{__name__}.{_MODULES[stem]}"
    else:
        raise UnknownName(
            f"no figures for {stem!r}; there are some for {', '.join(sorted(_MODULES))} and for the papers that"
            " `workbench list` calls ready"
        )
    return importlib.import_module(module).figures(result)
