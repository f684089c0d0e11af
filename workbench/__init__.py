"""workbench: analyses of transformers for interpretability, safety and privacy, one notebook per paper.

    import workbench as wb
    model = wb.load("organism:attention-sink")
    sinks = wb.method("attention_sinks")
    result = sinks.run(sinks.Spec.tiny(), model=model)
    wb.check(result, sinks.CLAIMS)

Importing this package is light: what a name needs is imported when the name is first used.
"""

from typing import TYPE_CHECKING

from workbench.core.lazy import lazy

if TYPE_CHECKING:
    from workbench.core.claims import Claim, check
    from workbench.core.progress import Progress
    from workbench.core.result import Result
    from workbench.models import ModelSpec
    from workbench.models.loading import load
    from workbench.notebook import start
    from workbench.papers import method

__all__ = ["Claim", "ModelSpec", "Progress", "Result", "check", "load", "method", "start"]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "workbench.core.claims": "Claim check",
        "workbench.core.progress": "Progress",
        "workbench.core.result": "Result",
        "workbench.models": "ModelSpec",
        "workbench.models.loading": "load",
        "workbench.notebook": "start",
        "workbench.papers": "method",
        "workbench.views": "figures",
    },
)
