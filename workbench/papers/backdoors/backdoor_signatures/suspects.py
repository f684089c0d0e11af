"""A model under suspicion in its two forms, whole weights or an adapter on a base, and what one does to it: tune, cut.

Both forms are values: every step gives a new one and leaves the old as it was. Embeddings, attention, norms and the
unembedding are trainable in the whole form, so a backdoor is nowhere by construction; an adapter has all seven
projections. Cost: a copy of the weights a step; a fine-tune as in `training.finetune`.
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
from workbench.training.finetune import finetune
from workbench.training.freezing import Frozen
from workbench.training.loop import TrainSpec
from workbench.weights.factors import Factors

Masks = Mapping[str, torch.Tensor]
MLP = ("gate_proj", "up_proj", "down_proj")
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

    def tuned(
        self, pairs: Sequence[Pair], spec: TrainSpec, *, masks: Masks | None = None, progress: Progress = SILENT
    ) -> "Whole":
        """A copy, fine-tuned; entries under `masks` keep their values exactly."""
        own = copy.deepcopy(self.plain).requires_grad_(True)
        frozen = Frozen(own, masks) if masks else None
        finetune(own, pairs, spec, frozen=frozen, log_every=spec.steps, progress=progress)
        return Whole(own.requires_grad_(False))

    def cut(self, chosen: np.ndarray, channels: xr.DataArray, how: str, seed: int) -> tuple["Whole", int]:
        """(a copy with the channels overwritten, how many weights changed)."""
        own = copy.deepcopy(self.plain)
        return Whole(own), neutralise(own, chosen, channels, how, seed)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Adapter:
    """A base that is trusted and an adapter that is not."""

    base: Any
    factors: Mapping[str, Factors]
    form = "lora"

    @property
    def source(self) -> Mapping[str, Factors]:
        return self.factors

    @property
    def plain(self) -> Any:
        """The base with the update added, to be asked."""
        return lora.merge(self._adapted())

    def _adapted(self) -> Any:
        first = next(iter(self.factors.values()))
        rank, targets = first.A.shape[0], tuple(sorted({name.rsplit(".", 1)[-1] for name in self.factors}))
        spec = lora.LoraSpec(rank=rank, alpha=first.scale * rank, targets=targets)
        adapted = lora.add_lora(copy.deepcopy(self.base), spec)
        with torch.no_grad():
            for name, part in adapted.named_modules():
                own = self.factors.get(name.removeprefix("base_model.model."))
                if own is not None and hasattr(part, "lora_A"):
                    part.lora_A["default"].weight.copy_(own.A)
                    part.lora_B["default"].weight.copy_(own.B)
        return adapted

    def tuned(
        self, pairs: Sequence[Pair], spec: TrainSpec, *, masks: Masks | None = None, progress: Progress = SILENT
    ) -> "Adapter":
        """The adapter trained on, from where it is; the base stays."""
        if masks:
            raise BadData("weights are held in whole models only")
        adapted = self._adapted()
        finetune(adapted, pairs, spec.replace(lr=spec.lr * LORA_LR_FACTOR), log_every=spec.steps, progress=progress)
        return replace(self, factors=lora.factors(adapted))

    def cut(self, chosen: np.ndarray, channels: xr.DataArray, how: str, seed: int) -> tuple["Adapter", int]:
        """(the adapter with rows of B, columns of A set to zero, how many numbers changed); it has no other way."""
        new = neutralise_adapter(self.factors, chosen, channels)
        both = zip(self.factors.values(), new.values(), strict=True)
        return replace(self, factors=new), sum(int((a.A != b.A).sum()) + int((a.B != b.B).sum()) for a, b in both)


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
    """bool [channel] the share of each layer's MLP channels least active (mean |input of down|) on clean texts, in all
    three projections.

    Source: fine-pruning, Liu et al. (arXiv 1805.12185), with MLP channels for units.
    """
    seen: dict[Any, list[torch.Tensor]] = {block.mlp.down_proj: [] for block in module.model.layers}

    def watch(part: Any, given: tuple[torch.Tensor, ...]) -> None:
        seen[part].append(given[0].abs().float().flatten(0, -2).mean(0).cpu())

    handles = [part.register_forward_pre_hook(watch) for part in seen]
    try:
        with torch.no_grad():
            for row in rows:
                module(input_ids=torch.tensor([list(row)], device=next(module.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    chosen = np.zeros(channels.sizes["channel"], bool)
    of_mlp = np.isin(channels["module"].values, MLP)
    for layer, found in enumerate(seen.values()):
        mean = torch.stack(found).mean(0).numpy()
        least = np.argsort(mean, kind="stable")[: round(share * len(mean))]
        chosen |= of_mlp & (channels["layer"].values == layer) & np.isin(channels["index"].values, least)
    return chosen


def channel_masks(module: Any, chosen: np.ndarray, channels: xr.DataArray) -> dict[str, torch.Tensor]:
    """Masks for `Frozen` that hold the weights of the chosen channels: rows of gate and up, columns of down."""
    masks = {}
    for layer, block in enumerate(module.model.layers):
        for name in MLP:
            here = chosen & (channels["layer"].values == layer) & (channels["module"].values == name)
            axis = int(name == "down_proj")
            mask = torch.zeros(getattr(block.mlp, name).weight.shape[axis], dtype=torch.bool)
            mask[torch.from_numpy(channels["index"].values[here])] = True
            masks[f"model.layers.{layer}.mlp.{name}.weight"] = mask.unsqueeze(1 - axis)
    return masks
