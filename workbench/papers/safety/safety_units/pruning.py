"""Scoring units, picking sizes, and pruning: the forward-only half of the analysis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from workbench.models.chat import Pair
from workbench.models.inputs import pad
from workbench.models.model import Model
from workbench.primitives.read.capture import capture
from workbench.primitives.score.statistics import intersection_over_union
from workbench.primitives.score.unit_importance import (
    LABELS,
    Ratios,
    answer_positions,
    label_units,
    module_groups,
    standardised,
    unit_importance,
    units_removed,
)
from workbench.runs.arms import chance_overlap, matched

from .prompts import Prompts, Sets, quick, score

SETS, SCALES = ("safety", "utility"), ("raw", "standard")
BREAKS, HOLDS_WITHIN, REDUNDANT_WITHIN, UTILITY_BREAKS = 40.0, 5.0, 3.0, 15.0  # points, of the card
GROUPS = {"redundant": "RU", "safety": "SCU", "utility": "UCU"}  # field of Ratios: label, in the order of the scan


def importance_of(model: Model, sets: Sequence[Sequence[Pair]], counted: str, attention: str) -> xr.DataArray:
    """[scale, set, unit] importance on the safety and the utility pairs, raw and standardised per module."""
    found = []
    for pairs in sets:
        rows, answer = answer_positions(pairs)
        which = answer if counted == "answer" else None
        found.append(unit_importance(model, rows, counted=which, attention=attention)["importance"])  # type: ignore[arg-type]
    raw = xr.concat(found, "set")
    both = xr.concat([raw, standardised(raw)], "scale").assign_coords(set=list(SETS), scale=list(SCALES))
    return both.assign_attrs(
        long_name="Importance", unit="raw: (activation x weight) squared; standard: standard deviations"
    )


@dataclass(frozen=True, eq=False)
class Labelled:
    """Units of a model with labels at some sizes. units: [scale, set, unit] importance; labels are taken from one
    scale.
    """

    units: xr.DataArray
    scale: str
    ratios: Ratios

    @cached_property
    def labels(self) -> np.ndarray:
        """int [unit] index into LABELS."""
        values = self.units.sel(scale=self.scale)
        return label_units(values.sel(set="safety").values, values.sel(set="utility").values, self.ratios)

    def group(self, label: str) -> np.ndarray:
        """bool [unit] the units of a label."""
        return self.labels == LABELS.index(label)

    def random(self, chosen: np.ndarray, *key: int) -> np.ndarray:
        """As many other units of each module, drawn by the integers of `key`."""
        return matched(chosen, module_groups(self.units), np.random.default_rng(list(key)))


def scan(
    model: Model, units: xr.DataArray, scale: str, prompts: Prompts, grids: Mapping[str, Sequence[float]]
) -> tuple[Ratios, pd.DataFrame]:
    """Pick the sizes on validation prompts, going down from the largest share of the grid.

    Redundant first: the largest share at which ASR and utility stay within 3 points. Then safety-critical (ASR up 40,
    utility within 5) and utility-critical (utility down 15, ASR within 5): the last, so the smallest, share that still
    breaks the one while the other holds (inferred). Where none breaks it, the largest at which the other holds, else
    the smallest of the grid.

    Returns:
        The ratios, and a row per share tried: group, share, utility_change and asr_change in points, fits, broke,
        picked.
    """
    clean, picked, rows = quick(model, prompts.validation, prompts.refusals), dict.fromkeys(GROUPS, 0.0), []
    for key, group in GROUPS.items():
        tried = []
        for share in sorted(grids[key], reverse=True):
            with units_removed(model, Labelled(units, scale, Ratios(**picked | {key: share})).group(group), units):
                now = quick(model, prompts.validation, prompts.refusals)
            lost, rise = clean["utility"] - now["utility"], now["asr_first_token"] - clean["asr_first_token"]
            harmless = abs(lost) <= REDUNDANT_WITHIN and abs(rise) <= REDUNDANT_WITHIN
            fits = {"RU": harmless, "SCU": lost <= HOLDS_WITHIN, "UCU": rise <= HOLDS_WITHIN}[group]
            broke = {"RU": True, "SCU": rise >= BREAKS, "UCU": lost >= UTILITY_BREAKS}[group]
            tried.append(
                {
                    "group": group,
                    "share": share,
                    "utility_change": -lost,
                    "asr_change": rise,
                    "fits": fits,
                    "broke": broke,
                }
            )
        if breaking := [t for t in tried if t["fits"] and t["broke"]]:
            best = breaking[0 if group == "RU" else -1]
        else:
            best = next((t for t in tried if t["fits"]), tried[-1])
        picked[key] = best["share"]
        rows += [t | {"picked": t is best} for t in tried]
    return Ratios(**picked), pd.DataFrame(rows)


class Pruning:
    """Prunes sets of units and scores what is left, beside the untouched model; `rows` grow by one a pruned model."""

    def __init__(self, model: Model, prompts: Prompts):
        self.model, self.shown, self.refusals = model, prompts.shown, prompts.refusals
        benign = self.shown.utility[:: max(1, len(self.shown.utility) // 16)]
        self.probe = pad([[*p, *a] for p, a in (*self.shown.safety[:16], *benign)], model.pad_id)
        self.clean = model.forward(self.probe)
        nothing = {"group": "nothing", "arm": "untouched", "draw": 0, "n_units": 0, "firings": 0, "effect": 0.0}
        self.rows: list[dict[str, Any]] = [nothing | score(model, self.shown, self.refusals)]

    def prune(self, group: str, arm: str, chosen: np.ndarray, units: xr.DataArray, draw: int = 0, **more: Any) -> None:
        """One pruned model. effect: mean over probe prompts of the largest |logit change|; more: columns of the row."""
        with units_removed(self.model, chosen, units) as report:
            change = (self.model.forward(self.probe) - self.clean).abs()
            found = score(self.model, self.shown, self.refusals)
        effect = float((change * self.probe.mask.to(change.device).unsqueeze(-1)).flatten(1).amax(1).mean())
        about = {
            "group": group,
            "arm": arm,
            "draw": draw,
            "n_units": report.n_units,
            "firings": report.firings,
            "effect": effect,
        }
        self.rows.append(about | found | more)

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)


def stability(model: Model, prompts: Prompts, like: Labelled, seed: int, **how: str) -> pd.DataFrame:
    """One row: Jaccard of the SCU of two calibration halves, and of random sets of the same sizes in each module."""
    found = []
    for start in (0, 1):
        half = [pairs[start::2] for pairs in (prompts.calibration.safety, prompts.calibration.utility)]
        found.append(Labelled(importance_of(model, half, **how), like.scale, like.ratios).group("SCU"))
    chance = chance_overlap(*found, module_groups(like.units), np.random.default_rng([seed, 12]))
    return pd.DataFrame([{"jaccard": intersection_over_union(*found), "chance": chance, "n_scu": int(found[0].sum())}])


def shuffled(sets: Sets, rng: np.random.Generator) -> tuple[list[Pair], list[Pair]]:
    """The calibration pairs dealt out to two sets at random, of the sizes of the true ones."""
    both, cut = [*sets.safety, *sets.utility], len(sets.safety)
    order = rng.permutation(len(both))
    return [both[i] for i in order[:cut]], [both[i] for i in order[cut:]]


def probe(model: Model, sets: Sets, ks: Sequence[int], n_queries: int) -> xr.DataArray:
    """[direction, block, k] mean cosine distance of the query's last state to that of query + first k answer tokens.

    direction "ben" takes the refusal, "mal" the compliant answer; above 0, mal - ben says that the model leans to
    refusing.
    """
    queries = [p for p, _ in sets.safety[:n_queries]]
    answers = (sets.safety[:n_queries], sets.compliant[:n_queries])
    rows = queries + [[*p, *a[:k]] for pairs in answers for k in ks for p, a in pairs]
    hidden = capture(model, rows, ["resid_post"], reduce="last", batch_size=64)
    states = torch.stack(
        [hidden["resid_post", layer].float() for layer in range(model.n_layers)]
    )  # [block, row, d_model]
    n = len(queries)
    alone, rest = states[:, :n], states[:, n:].reshape(model.n_layers, 2, len(ks), n, -1)
    distance = 1 - torch.nn.functional.cosine_similarity(
        rest, alone[:, None, None], dim=-1
    )  # [block, direction, k, query]
    coords = {"direction": ["ben", "mal"], "block": range(model.n_layers), "k": list(ks)}
    return xr.DataArray(distance.mean(-1).permute(1, 0, 2).numpy(), dims=("direction", "block", "k"), coords=coords)
