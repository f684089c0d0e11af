"""Copies of a module, fine-tuned: whole, in some of its weights only, or as an adapter that is merged in."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workbench.core.progress import SILENT, Progress
from workbench.models.chat import Pair

from . import lora as low_rank
from .finetune import answer_loss, finetune
from .freezing import Frozen
from .loop import TrainSpec


@dataclass(frozen=True, eq=False)
class Tuned:
    """A fine-tuned copy. loss: nats per answer token on the first pairs. n_frozen: entries held bit by bit."""

    module: Any
    loss: float
    n_frozen: int


def tuned(
    module: Any,
    pairs: Sequence[Pair],
    spec: TrainSpec,
    *,
    held: Mapping[str, torch.Tensor] | None = None,
    only_named: bool = False,
    lora: low_rank.LoraSpec | None = None,
    progress: Progress = SILENT,
) -> Tuned:
    """Fine-tune a copy of `module` and leave the module as it was.

    Args:
        pairs, spec, progress: as `finetune` takes them.
        held: {parameter: bool mask}, True where an entry must keep its value exactly.
        only_named: train no parameter but those `held` names.
        lora: train an adapter instead, and merge it.
    """
    own = copy.deepcopy(module).requires_grad_(True)
    frozen = None
    if lora is not None:
        own = low_rank.add_lora(own, lora)
    elif held is not None:
        for name, parameter in own.named_parameters():
            parameter.requires_grad_(not only_named or name in held)
        frozen = Frozen(own, held)
    finetune(own, pairs, spec, frozen=frozen, log_every=spec.steps, progress=progress)
    own = low_rank.merge(own) if lora is not None else own
    with torch.no_grad():
        loss = float(answer_loss(own, list(pairs[:128])))
    return Tuned(own.requires_grad_(False), loss, 0 if frozen is None else frozen.n_frozen)
