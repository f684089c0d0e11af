"""The arms of the LayerNorm analysis: what is different in each kind of run. Imports without torch."""

from dataclasses import dataclass
from typing import Literal

from workbench.runs import arms


@dataclass(frozen=True)
class Arm(arms.Arm):
    """What is different in a run. `follows` names the arm whose number of epochs it takes; None decides for itself."""

    removal: Literal["nothing", "gain and bias", "whole norm", "random others"] = "nothing"
    where: Literal["all", "early", "middle", "late"] = "all"
    from_scratch: bool = False
    has_noise: bool = True


ARMS = {
    "kept": Arm("kept", "baseline"),
    "removed": Arm("removed", "method", "kept", "gain and bias"),
    "early": Arm("early third", "method", "kept", "gain and bias", "early"),
    "middle": Arm("middle third", "method", "kept", "gain and bias", "middle"),
    "late": Arm("late third", "method", "kept", "gain and bias", "late"),
    "whole": Arm("whole norm", "control", "kept", "whole norm"),  # not the paper's removal
    "placebo": Arm("placebo", "control", "kept", "random others"),  # as many other parameters held as `removed` takes
    "scratch_kept": Arm("scratch, kept", "control", from_scratch=True),
    "scratch_removed": Arm("scratch, removed", "control", "scratch_kept", "gain and bias", from_scratch=True),
    "clean": Arm("no noise", "control", has_noise=False),
}
WITH_GRADIENTS = ("kept", "removed")
GROUPS = ("test", "noisy", "clean train")  # samples whose gradients are measured
