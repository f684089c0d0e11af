"""Scoring units, picking sizes, and pruning: the forward-only half of the safety-units analysis."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from workbench.core.progress import Cancelled, Progress
from workbench.models.chat import Pair
from workbench.models.inputs import pad
from workbench.models.model import Model
from workbench.papers.safety.safety_units.prompts import Prompts, Sets, quick, score
from workbench.primitives.read.capture import capture
from workbench.primitives.score.statistics import intersection_over_union
from workbench.primitives.score.unit_importance import (
    LABELS,
    Ratios,
    answer_positions,
    label_units,
    matched_random,
    module_groups,
    standardised,
    unit_importance,
    units_removed,
)

SETS = ("safety", "utility")
SCALES = ("raw", "standard")
BREAKS, HOLDS_WITHIN, REDUNDANT_WITHIN, UTILITY_BREAKS = 40.0, 5.0, 3.0, 15.0  # points, of the card


def code(label: str) -> int:
    """Place of a label in LABELS."""
    return LABELS.index(label)


def importance_of(model: Model, safety: Sequence[Pair], utility: Sequence[Pair], *, counted: str, attention: str) -> xr.DataArray:
    """[scale, set, unit] importance on the two sets, raw and standardised per module."""
    found = []
    for pairs in (safety, utility):
        rows, answer = answer_positions(pairs)
        found.append(unit_importance(model, rows, counted=answer if counted == "answer" else None, attention=attention)["importance"])  # type: ignore[arg-type]
    raw = xr.concat(found, "set")
    both = xr.concat([raw, standardised(raw)], "scale").assign_coords(set=list(SETS), scale=list(SCALES))
    return both.assign_attrs(long_name="Importance", unit="raw: (activation x weight) squared; standard: standard deviations")


def labels_of(importance: xr.DataArray, scale: str, ratios: Ratios) -> np.ndarray:
    """[unit] index into LABELS, from one scale of `importance_of`."""
    values = importance.sel(scale=scale)
    return label_units(values.sel(set="safety").values, values.sel(set="utility").values, ratios)


def scan(model: Model, importance: xr.DataArray, scale: str, prompts: Prompts, grids: Mapping[str, Sequence[float]]) -> tuple[Ratios, pd.DataFrame]:
    """Pick the sizes on validation prompts, going down from the largest share of the grid.

    Redundant first: the largest share at which ASR and utility stay within 3 points. Then safety-critical (ASR up 40, utility within
    5) and utility-critical (utility down 15, ASR within 5): the last, so the smallest, share that still breaks the one while the
    other holds (inferred). Where none breaks it, the largest at which the other holds, else the smallest of the grid.

    Returns:
        The ratios, and a row per share tried: group, share, utility_change and asr_change in points, fits, broke, picked.
    """
    clean, picked, rows = quick(model, prompts.validation, prompts.refusals), {"redundant": 0.0, "safety": 0.0, "utility": 0.0}, []
    for key, name in (("redundant", "RU"), ("safety", "SCU"), ("utility", "UCU")):
        tried = []
        for share in sorted(grids[key], reverse=True):
            chosen = labels_of(importance, scale, Ratios(**picked | {key: share})) == code(name)
            with units_removed(model, chosen, importance):
                now = quick(model, prompts.validation, prompts.refusals)
            lost, rise = clean["utility"] - now["utility"], now["asr_first_token"] - clean["asr_first_token"]
            fits = {"RU": abs(lost) <= REDUNDANT_WITHIN and abs(rise) <= REDUNDANT_WITHIN, "SCU": lost <= HOLDS_WITHIN, "UCU": rise <= HOLDS_WITHIN}[name]
            broke = {"RU": True, "SCU": rise >= BREAKS, "UCU": lost >= UTILITY_BREAKS}[name]
            tried.append({"group": name, "share": share, "utility_change": -lost, "asr_change": rise, "fits": fits, "broke": broke})
        breaking = [t for t in tried if t["fits"] and t["broke"]]
        if breaking:
            best = breaking[0] if name == "RU" else breaking[-1]
        else:
            best = next((t for t in tried if t["fits"]), tried[-1])
        picked[key] = best["share"]
        rows += [t | {"picked": t is best} for t in tried]
    return Ratios(**picked), pd.DataFrame(rows)


class Pruning:
    """Prunes sets of units and scores what is left, beside the untouched model."""

    def __init__(self, model: Model, shown: Sets, prompts: Prompts):
        self.model, self.shown, self.refusals = model, shown, prompts.refusals
        some = [[*p, *a] for p, a in (*shown.safety[:16], *shown.utility[:: max(1, len(shown.utility) // 16)])]
        self.probe = pad(some, model.pad_id)
        self.clean = model.forward(self.probe)
        self.rows: list[dict[str, Any]] = [{"group": "nothing", "arm": "untouched", "draw": 0, "n_units": 0, "firings": 0, "effect": 0.0} | score(model, shown, self.refusals)]

    def prune(self, group: str, arm: str, chosen: np.ndarray, units: xr.DataArray, draw: int = 0) -> None:
        """One pruned model. effect: mean over probe prompts of the largest |logit change|."""
        with units_removed(self.model, chosen, units) as report:
            moved = (self.model.forward(self.probe) - self.clean).abs() * self.probe.mask.to(self.clean.device).unsqueeze(-1)
            found = score(self.model, self.shown, self.refusals)
        about = {"group": group, "arm": arm, "draw": draw, "n_units": report.n_units, "firings": report.firings, "effect": float(moved.flatten(1).amax(1).mean())}
        self.rows.append(about | found)

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)


def prune_groups(bench: Pruning, labels: np.ndarray, units: xr.DataArray, *, seed: int, n_random: int, progress: Progress) -> bool:
    """Fill `bench` with every group of `labels` and its matched random groups, drawn as a run of that seed draws them; True if cancelled."""
    groups = ("SCU", "UCU", "CU", "RU")
    done, total = 0, len(groups) * (1 + n_random)
    try:
        for group in groups:
            chosen = labels == code(group)
            for arm in ("group", *["random"] * n_random):
                progress.update(done, total, f"pruning {group}{' (random)' * (arm == 'random')}")
                draw = max(0, done % (1 + n_random) - 1)
                pruned = chosen if arm == "group" else random_like(chosen, units, seed, code(group), draw)
                bench.prune(group, arm, pruned, units, draw)
                bench.rows[-1]["n_shared"] = int((pruned & chosen).sum())
                done += 1
        progress.update(total, total, "done")
    except Cancelled:
        return True
    return False


def halves(model: Model, prompts: Prompts, scale: str, ratios: Ratios, **how: str) -> tuple[float, np.ndarray, np.ndarray, xr.DataArray]:
    """(Jaccard of the two halves' SCU, SCU of half A, of half B, units)."""
    found = []
    for start in (0, 1):
        part = importance_of(model, prompts.calibration.safety[start::2], prompts.calibration.utility[start::2], **how)
        found.append(labels_of(part, scale, ratios) == code("SCU"))
    return intersection_over_union(*found), found[0], found[1], part


def chance_overlap(a: np.ndarray, b: np.ndarray, units: xr.DataArray, rng: np.random.Generator, n_draws: int = 200) -> float:
    """Mean Jaccard of sets drawn with as many units of each module as `a` and `b` have, from all units of it."""
    nobody = np.zeros(len(a), bool)

    def draw(like: np.ndarray) -> np.ndarray:
        return _as_many(like, nobody, units, rng)

    return float(np.nanmean([intersection_over_union(draw(a), draw(b)) for _ in range(n_draws)]))


def _as_many(like: np.ndarray, nobody: np.ndarray, units: xr.DataArray, rng: np.random.Generator) -> np.ndarray:
    drawn = nobody.copy()
    for hit in module_groups(units):
        drawn[rng.permutation(hit)[: int(like[hit].sum())]] = True
    return drawn


def shuffled(prompts: Prompts, rng: np.random.Generator) -> tuple[list[Pair], list[Pair]]:
    """The calibration pairs dealt out to two sets at random, of the sizes of the true ones."""
    both = [*prompts.calibration.safety, *prompts.calibration.utility]
    order = rng.permutation(len(both))
    cut = len(prompts.calibration.safety)
    return [both[i] for i in order[:cut]], [both[i] for i in order[cut:]]


def probe(model: Model, sets: Sets, ks: Sequence[int], n_queries: int) -> xr.DataArray:
    """[direction, block, k] mean cosine distance between the query's last hidden state and that of query + first k answer tokens.

    direction "ben" takes the refusal, "mal" the compliant answer. margin = mal - ben; above 0 the model leans to refusing.
    """
    queries = [p for p, _ in sets.safety[:n_queries]]
    answers = {"ben": sets.safety[:n_queries], "mal": sets.compliant[:n_queries]}
    rows = queries + [[*p, *a[:k]] for pairs in answers.values() for k in ks for p, a in pairs]
    hidden = capture(model, rows, ["resid_post"], reduce="last", batch_size=64)
    states = torch.stack([hidden["resid_post", layer].float() for layer in range(model.n_layers)])  # [block, row, d_model]
    n = len(queries)
    alone, rest = states[:, :n], states[:, n:].reshape(model.n_layers, 2, len(ks), n, -1)
    distance = 1 - torch.nn.functional.cosine_similarity(rest, alone[:, None, None], dim=-1)  # [block, direction, k, query]
    values = distance.mean(-1).permute(1, 0, 2).numpy()
    return xr.DataArray(values, dims=("direction", "block", "k"), coords={"direction": ["ben", "mal"], "block": range(model.n_layers), "k": list(ks)})


def random_like(chosen: np.ndarray, units: xr.DataArray, *key: int) -> np.ndarray:
    """As many other units of each module, drawn by the integers of `key`."""
    return matched_random(chosen, units, np.random.default_rng(list(key)))
