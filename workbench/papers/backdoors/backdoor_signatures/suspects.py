"""A model under suspicion in its two forms, whole weights or an adapter on a base, with what one does to it: tune, cut, compare.

Both forms are values: every step gives a new one and leaves the old as it was. Embeddings, attention, norms and the unembedding
are trainable in the whole form, so a backdoor is nowhere by construction; an adapter has all seven projections.
Cost: a copy of the weights a step; a fine-tune as in `training.finetune`.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from workbench.core.errors import BadData
from workbench.core.progress import SILENT, Progress
from workbench.models.chat import Pair
from workbench.primitives.score.channel_signatures import neutralise, neutralise_adapter
from workbench.training import lora
from workbench.training.finetune import FinetuneSpec, finetune
from workbench.training.freezing import Frozen

LORA_LR_FACTOR = 3.0  # adapters are trained at a higher rate (pilot, seed 50)


@dataclass(frozen=True, eq=False)
class Whole:
    """A plain module whose weights are all the model's own."""

    plain: Any
    form = "full"

    @property
    def source(self) -> Any:
        """What `channel_changes` reads."""
        return self.plain

    def tuned(self, pairs: Sequence[Pair], spec: FinetuneSpec, *, masks: Mapping[str, torch.Tensor] | None = None, progress: Progress = SILENT) -> "Whole":
        """A copy, fine-tuned; entries under `masks` keep their values exactly."""
        own = copy.deepcopy(self.plain).requires_grad_(True)
        finetune(own, pairs, spec, frozen=Frozen(own, masks) if masks else None, log_every=spec.steps, progress=progress)
        return Whole(own.requires_grad_(False))

    def cut(self, chosen: np.ndarray, channels: xr.DataArray, how: str, seed: int) -> tuple["Whole", int]:
        """(a copy with the channels overwritten, how many weights changed)."""
        own = copy.deepcopy(self.plain)
        return Whole(own), neutralise(own, chosen, channels, how, seed)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Adapter:
    """A base that is trusted and an adapter that is not."""

    base: Any
    factors: Mapping[str, lora.Factors]
    form = "lora"

    @property
    def source(self) -> Mapping[str, lora.Factors]:
        return self.factors

    @property
    def plain(self) -> Any:
        """The base with the update added, to be asked."""
        return lora.merge(self._adapted())

    def _adapted(self) -> Any:
        first = next(iter(self.factors.values()))
        rank = first.A.shape[0]
        targets = tuple(sorted({name.rsplit(".", 1)[-1] for name in self.factors}))
        adapted = lora.add_lora(copy.deepcopy(self.base), lora.LoraSpec(rank=rank, alpha=first.scale * rank, targets=targets))
        with torch.no_grad():
            for name, part in adapted.named_modules():
                own = self.factors.get(name.removeprefix("base_model.model."))
                if own is not None and hasattr(part, "lora_A"):
                    part.lora_A["default"].weight.copy_(own.A)
                    part.lora_B["default"].weight.copy_(own.B)
        return adapted

    def tuned(self, pairs: Sequence[Pair], spec: FinetuneSpec, *, masks: Mapping[str, torch.Tensor] | None = None, progress: Progress = SILENT) -> "Adapter":
        """The adapter trained on, from where it is; the base stays."""
        if masks:
            raise BadData("weights are held in whole models only")
        adapted = self._adapted()
        finetune(adapted, pairs, spec.replace(lr=spec.lr * LORA_LR_FACTOR), log_every=spec.steps, progress=progress)
        return replace(self, factors=lora.factors(adapted))

    def cut(self, chosen: np.ndarray, channels: xr.DataArray, how: str, seed: int) -> tuple["Adapter", int]:
        """(the adapter with rows of B, columns of A set to zero, how many numbers changed); an adapter has no other way."""
        new = neutralise_adapter(self.factors, chosen, channels)
        changed = sum(int((a.A != b.A).sum()) + int((a.B != b.B).sum()) for a, b in zip(self.factors.values(), new.values(), strict=True))
        return replace(self, factors=new), changed


Suspect = Whole | Adapter


def fresh(base: Any, form: str, seed: int) -> Suspect:
    """The unpoisoned start of a form: the base itself, or an adapter of rank 8 that changes nothing yet."""
    if form == "full":
        return Whole(base)
    return Adapter(base, lora.factors(lora.add_lora(copy.deepcopy(base), lora.LoraSpec(init_seed=seed))))


def of_folder(base: Any, folder: str) -> Adapter:
    """A PEFT directory on its base."""
    return Adapter(base, lora.read_factors(Path(folder).expanduser()))


def dormant_channels(module: Any, rows: Sequence[Sequence[int]], share: float, channels: xr.DataArray) -> np.ndarray:
    """bool [channel] the share of MLP channels of each layer least active (mean |input of down|) on clean texts, in all three projections.

    Source: fine-pruning, Liu et al. (arXiv 1805.12185), with MLP channels for units.
    """
    seen: dict[int, list[torch.Tensor]] = {}
    layer_of = {part.mlp.down_proj: number for number, part in enumerate(module.model.layers)}
    handles = [part.register_forward_pre_hook(lambda m, given: seen.setdefault(layer_of[m], []).append(given[0].detach().abs().float().flatten(0, -2).mean(0).cpu())) for part in layer_of]
    try:
        with torch.no_grad():
            for row in rows:
                module(input_ids=torch.tensor([list(row)], device=next(module.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    chosen = np.zeros(channels.sizes["channel"], bool)
    for layer, found in seen.items():
        mean = torch.stack(found).mean(0).numpy()
        least = np.argsort(mean, kind="stable")[: round(share * len(mean))]
        chosen |= (channels["layer"].values == layer) & np.isin(channels["index"].values, least) & np.isin(channels["module"].values, ("gate_proj", "up_proj", "down_proj"))
    return chosen


def channel_masks(module: Any, chosen: np.ndarray, channels: xr.DataArray) -> dict[str, torch.Tensor]:
    """Masks for `Frozen` that hold the weights of the chosen channels: rows of gate and up, columns of down."""
    masks = {}
    for name, parameter in module.named_parameters():
        parts = name.split(".")
        if len(parts) >= 3 and parts[-3] == "mlp" and parts[-1] == "weight" and parts[-2] in ("gate_proj", "up_proj", "down_proj"):
            here = (channels["layer"].values == int(parts[-4])) & (channels["module"].values == parts[-2])
            column = parts[-2] == "down_proj"
            mask = torch.zeros(parameter.shape[1 if column else 0], dtype=torch.bool)
            mask[torch.from_numpy(channels["index"].values[here & chosen])] = True
            masks[name] = mask.unsqueeze(0 if column else 1)
    return masks
