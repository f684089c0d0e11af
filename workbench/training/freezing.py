"""Exact freezing of any entries of any parameters while an optimiser runs.

Zeroing gradients is not freezing: AdamW's weight decay and its old moments still move the weights. Here the frozen
entries are written back after every step, and their bits compared at the end. Whole parameters are simpler frozen with
`requires_grad_(False)`. Cost: a copy of the frozen entries, and one write of them a step.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr

from workbench.core.errors import BadData, UnknownName, UnsupportedModel, WorkbenchError
from workbench.weights.names import OUTSIDE, TRANSPOSED, place


class MovedWeights(WorkbenchError):
    """Entries that were to stay as they were, and did not."""


class Frozen:
    """The entries of a module's parameters that must keep the values they have now.

    >>> frozen = Frozen(module, {"model.layers.0.mlp.up_proj.weight": rows.unsqueeze(1).expand(384, 128)})
    >>> finetune(module, pairs, spec, frozen=frozen)

    Args:
        masks: {parameter name: bool tensor of its shape, or one that broadcasts to it}, True where frozen.

    Raises:
        UnknownName: on a name the module does not have. BadData: on a mask that is not bool or not of the parameter's
            shape.
    """

    def __init__(self, module: Any, masks: Mapping[str, torch.Tensor]):
        parameters = dict(module.named_parameters())
        self._kept: dict[str, tuple[torch.nn.Parameter, torch.Tensor, torch.Tensor]] = {}
        for name, mask in masks.items():
            if name not in parameters:
                raise UnknownName.among("parameter", name, parameters)
            parameter = parameters[name]
            self._kept[name] = (parameter, *_entries(name, parameter, mask))

    @property
    def n_frozen(self) -> int:
        """Frozen entries, over all parameters."""
        return sum(len(where) for _, where, _ in self._kept.values())

    @torch.no_grad()
    def clear_gradients(self) -> None:
        """Zero the gradients of frozen entries."""
        for parameter, where, _ in self._kept.values():
            if parameter.grad is not None:
                parameter.grad.view(-1)[where] = 0

    @torch.no_grad()
    def restore(self) -> None:
        """Write the frozen values back."""
        for parameter, where, values in self._kept.values():
            parameter.view(-1)[where] = values

    def check(self) -> None:
        """Compare every frozen entry with what it was, bit by bit.

        Raises:
            MovedWeights: naming the first parameter that moved, and how many of its entries.
        """
        for name, (parameter, where, values) in self._kept.items():
            now = parameter.detach().view(-1)[where]
            moved = (now.view(_BITS[now.itemsize]) != values.view(_BITS[values.itemsize])).sum()
            if int(moved):
                raise MovedWeights(f"{int(moved)} of {len(where)} frozen entries of {name} are not what they were")


_BITS = {
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
}  # floats compared as integers: -0.0 is not 0.0, and nan is itself


def _entries(name: str, parameter: torch.nn.Parameter, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat places of the frozen entries and a copy of their values."""
    if mask.dtype != torch.bool:
        raise BadData(f"the mask of {name} must be of dtype bool, got {mask.dtype}")
    try:
        mask = mask.to(parameter.device).expand(parameter.shape)
    except RuntimeError:
        raise BadData(
            f"the mask of {name} has shape {tuple(mask.shape)}, which does not broadcast to the parameter's"
            f" {tuple(parameter.shape)}"
        ) from None
    where = mask.reshape(-1).nonzero().squeeze(1)
    return where, parameter.detach().reshape(-1)[where].clone()


def unit_masks(module: Any, units: xr.DataArray, held: np.ndarray) -> dict[str, torch.Tensor]:
    """Masks for `Frozen` of the weights that belong to some units of the blocks.

    A unit owns its rows of gate and up (or of the queries) and its column of the output projection. A head's keys and
    values are held with it; under grouped queries they belong to several heads and are held as soon as one of these is.

    Args:
        units: coordinates layer and module ("mlp" or "attention") of each unit, as `unit_importance` gives them.
        held: bool [unit].

    Returns:
        {parameter name: mask that broadcasts to it}, True where held; every projection of a block is named.

    Raises:
        UnsupportedModel: if queries, keys and values are fused, or matrices are stored [in, out].
    """
    config = module.config
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_group = config.num_attention_heads // (
        getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    )
    masks: dict[str, torch.Tensor] = {}
    roles: dict[int, set[str]] = {}
    for name, _ in module.named_parameters():
        at = place(name)
        if at.layer == OUTSIDE or not at.role:
            continue
        here, kind = units["layer"].values == at.layer, units["module"].values
        mine = torch.from_numpy(held[here & (kind == at.part)])
        if at.part == "attention":
            is_head = len(mine) == config.num_attention_heads
            mine = mine.repeat_interleave(d_head) if is_head else mine
            if at.role in ("k", "v"):
                mine = mine.reshape(-1, per_group, d_head).any(1).reshape(-1)  # rows that several heads use
        roles.setdefault(at.layer, set()).add(at.role)
        if not name.endswith("bias"):
            masks[name] = mine.unsqueeze(1 if at.units_are_rows else 0)
        elif at.units_are_rows:
            masks[name] = mine
    lacking = {"q", "k", "v", "o", "up", "down"} - (set.intersection(*roles.values()) if roles else set())
    if lacking or config.model_type in TRANSPOSED:
        raise UnsupportedModel(
            "holding units needs queries, keys, values, output and MLP as projections of their own, stored [out, in],"
            f" and {type(module).__name__} has no such {', '.join(sorted(lacking)) or 'matrices'}"
        )
    return masks
