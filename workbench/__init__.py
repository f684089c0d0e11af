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
    from workbench.primitives.explain.attribution import attribute_edges as circuit
    from workbench.primitives.read.capture import capture
    from workbench.primitives.read.lenses import logit_lens as lens
    from workbench.primitives.read.predictions import predictions as losses
    from workbench.primitives.replace.ablation import ablate
    from workbench.primitives.replace.sweeps import denoise as patch
    from workbench.primitives.score.metrics import logit_diff
    from workbench.primitives.steer.directions import mean_difference as direction
    from workbench.primitives.steer.steering import generate
    from workbench.primitives.steer.steering import sweep_coefficients as steer
    from workbench.views import figures

__all__ = [
    "Claim",
    "ModelSpec",
    "Progress",
    "Result",
    "ablate",
    "capture",
    "check",
    "circuit",
    "direction",
    "figures",
    "generate",
    "lens",
    "load",
    "logit_diff",
    "losses",
    "method",
    "patch",
    "start",
    "steer",
]

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
        "workbench.primitives.read.capture": "capture",
        "workbench.primitives.read.lenses": "lens=logit_lens",
        "workbench.primitives.read.predictions": "losses=predictions",
        "workbench.primitives.replace.sweeps": "patch=denoise",
        "workbench.primitives.replace.ablation": "ablate",
        "workbench.primitives.explain.attribution": "circuit=attribute_edges",
        "workbench.primitives.steer.steering": "generate steer=sweep_coefficients",
        "workbench.primitives.steer.directions": "direction=mean_difference",
        "workbench.primitives.score.metrics": "logit_diff",
    },
)
