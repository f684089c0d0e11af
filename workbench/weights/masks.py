"""Masks over weights: the highest by a score over all or within each, random ones of the same sizes, how full they are.

A mask is {parameter name: bool tensor of its shape}, True where something is chosen, as `training.freezing.Frozen` and
the pruning functions take it. Weights of any number of dimensions, experts' three included.
Cost: a sort of the scores.
"""

from collections.abc import Mapping

import pandas as pd
import torch

from workbench.core.errors import BadData
from workbench.weights.names import place

Mask = dict[str, torch.Tensor]


def top(scores: Mapping[str, torch.Tensor], share: float, *, within_each: bool = False) -> Mask:
    """The entries of the highest scores.

    Args:
        scores: {parameter name: a score for each entry}.
        share: of all entries together, or of each parameter's; rounded to a whole number. Ties fall to the first.
        within_each: the same share of every parameter, in place of one threshold over all.

    Raises:
        BadData: on a share outside [0, 1], or a score that is nan.
    """
    if not 0 <= share <= 1:
        raise BadData(f"a share of entries lies between 0 and 1, got {share}")
    if odd := [name for name, score in scores.items() if torch.isnan(score).any()]:
        raise BadData(f"the scores of {odd[0]} hold nan, so no entry of it can be ranked")
    if within_each:
        return {name: _highest(score.flatten(), share).view(score.shape) for name, score in scores.items()}
    chosen = _highest(torch.cat([score.flatten().cpu() for score in scores.values()]), share)
    parts = chosen.split([score.numel() for score in scores.values()])
    return {
        name: part.view(score.shape).to(score.device) for (name, score), part in zip(scores.items(), parts, strict=True)
    }


def _highest(score: torch.Tensor, share: float) -> torch.Tensor:
    chosen = torch.zeros(len(score), dtype=torch.bool, device=score.device)
    chosen[score.argsort(descending=True, stable=True)[: round(share * len(score))]] = True
    return chosen


def matched(mask: Mapping[str, torch.Tensor], generator: torch.Generator) -> Mask:
    """Random entries, as many in every parameter as `mask` has there: the control of a chosen mask."""
    found = {}
    for name, chosen in mask.items():
        drawn = torch.zeros(chosen.numel(), dtype=torch.bool)
        drawn[torch.randperm(chosen.numel(), generator=generator)[: int(chosen.sum())]] = True
        found[name] = drawn.view(chosen.shape).to(chosen.device)
    return found


def density(mask: Mapping[str, torch.Tensor]) -> pd.DataFrame:
    """How full a mask is: one row a parameter with layer (-1 outside the blocks), part, projection, chosen, entries,
    density.
    """
    rows = []
    for name, chosen in mask.items():
        at, n = place(name), int(chosen.sum())
        rows.append(
            {
                "parameter": name,
                "layer": at.layer,
                "part": at.part,
                "projection": at.projection,
                "chosen": n,
                "entries": chosen.numel(),
                "density": n / chosen.numel(),
            }
        )
    return pd.DataFrame(rows)
