"""workbench: analyses of transformers for interpretability, safety and privacy, one notebook per paper.

    import workbench as wb
    model = wb.load("organism:attention-sink")
    sinks = wb.method("attention_sinks")
    result = sinks.run(sinks.Spec.tiny(), model=model)
    wb.check(result, sinks.CLAIMS)

Importing this package is light: what a name needs is imported when the name is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.core.claims import Claim, check
    from workbench.core.progress import Progress
    from workbench.core.result import Result
    from workbench.methods import method
    from workbench.models import ModelSpec
    from workbench.models.loading import load
    from workbench.notebook import start

_HOMES = {
    "Claim": "workbench.core.claims",
    "check": "workbench.core.claims",
    "Progress": "workbench.core.progress",
    "Result": "workbench.core.result",
    "method": "workbench.methods",
    "ModelSpec": "workbench.models",
    "load": "workbench.models.loading",
    "start": "workbench.notebook",
    "figures_of": "workbench.views",
}

__all__ = ["Claim", "ModelSpec", "Progress", "Result", "check", "load", "method", "start"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'workbench' has no attribute {name!r}; it offers {', '.join(sorted(_HOMES))}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
