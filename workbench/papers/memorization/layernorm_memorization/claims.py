"""Claims of the LayerNorm analysis. Every line says whether it is measured on stored runs or on runs trained here.

Stored runs: a line a data set. Runs trained here: the least favourable of the data sets. Thresholds are those of the paper's
card, set before anything was trained here, but for the one that compares a run trained here with its stored twin.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import xarray as xr

from workbench.core.claims import Claim
from workbench.core.result import Result
from workbench.papers.memorization.layernorm_memorization.runs import HERE
from workbench.papers.memorization.layernorm_memorization.summary import difference, gradient_ratio, last, mean, runs, weakest
from workbench.runs.stored import STORED

SOURCE, CARD = "arXiv 2511.10566", "paper card, embedded targets (not in the paper)"
THIRDS = ("early", "middle", "late")
Measure = Callable[[xr.Dataset, str, str], float]  # (data, origin, name of the data set) -> number


def _which(origin: str, name: str, placement: str) -> dict[str, str]:
    return {"origin": origin, "data": name, "placement": placement}


def change(data: xr.Dataset, origin: str, name: str, *, placement: str, score: str, arm: str, against: str = "kept") -> float:
    """Mean over seeds of arm minus kept, in points."""
    return mean(difference(data, score, arm, _which(origin, name, placement), against))


def recovery_gap(data: xr.Dataset, origin: str, name: str) -> float:
    """Recovery with LayerNorm parameters removed, Post-LN minus Pre-LN, in points."""
    post, pre = (mean(np.array(list(last(data, "recovery", "removed", _which(origin, name, p)).values()))) for p in ("post", "pre"))
    return post - pre


def damage(data: xr.Dataset, origin: str, name: str) -> float:
    """Pre-LN: test points lost or overfit gap gained by removal, whichever is more."""
    lost = -change(data, origin, name, placement="pre", score="learning", arm="removed")
    return float(np.fmax(lost, change(data, origin, name, placement="pre", score="overfit_gap", arm="removed")))


def early_lead(data: xr.Dataset, origin: str, name: str) -> float:
    """Post-LN: fall of memorisation by removal in the early third, over the larger fall by removal in another third."""
    fall = {third: -change(data, origin, name, placement="post", score="memorisation", arm=third) for third in THIRDS}
    return fall["early"] - float(np.max([fall["middle"], fall["late"]]))


def least_ratio(data: xr.Dataset, origin: str, name: str, over: str) -> float:
    """Smallest learn-norm over the norm of another group, of all LayerNorms of both placements."""
    found = [gradient_ratio(data, over, _which(origin, name, p)) for p in ("post", "pre")]
    return weakest([float(np.nanmin(f)) for f in found if f.size and np.isfinite(f).any()], min)


def largest_change(data: xr.Dataset, origin: str, name: str, arm: str, against: str) -> float:
    """Largest |change of memorisation| by an arm that should do nothing, of both placements."""
    return weakest([abs(change(data, origin, name, placement=p, score="memorisation", arm=arm, against=against)) for p in ("post", "pre")], max)


def step_zero(data: xr.Dataset, origin: str, name: str) -> float:
    """Largest logit change by removal from a model that was never trained."""
    found = [runs(data, "scratch_removed", _which(origin, name, p))["effect"].values for p in ("post", "pre")]
    return weakest([float(f.max()) for f in found if len(f)], max)


def defined_without_noise(data: xr.Dataset, origin: str, name: str) -> float:
    """Share of epochs of noise-free runs in which memorisation, recovery or random is a number."""
    found = [runs(data, "clean", _which(origin, name, p)) for p in ("post", "pre")]
    shares = [float(np.mean([f[s].notnull().any("run").mean() for s in ("memorisation", "recovery", "random")])) for f in found if f.sizes["run"]]
    return weakest(shares, max)


LINES: tuple[tuple[str, Measure, str, float, str, str, str], ...] = (
    ("Post-LN: removal lowers memorisation by 15 points or more", lambda d, o, n: -change(d, o, n, placement="post", score="memorisation", arm="removed"), ">=", 15.0, CARD, "points", "claim"),
    ("Post-LN: removal costs at most 5 points of test accuracy", lambda d, o, n: -change(d, o, n, placement="post", score="learning", arm="removed"), "<=", 5.0, CARD, "points", "claim"),
    ("recovery after removal is 15 points higher in Post-LN than in Pre-LN", recovery_gap, ">=", 15.0, CARD, "points", "claim"),
    ("Pre-LN: removal costs 3 test points or widens the overfit gap by 3", damage, ">=", 3.0, CARD, "points", "claim"),
    ("Post-LN: the early third matters most, by more than the placebo's bound", early_lead, ">", 5.0, CARD + ": bound of the placebo", "points", "claim"),
    ("learn-norm is at least mem-norm at every LayerNorm", partial(least_ratio, over="noisy"), ">=", 1.0, "the paper's theorem", "ratio", "claim"),
    ("from scratch, removal changes nothing before training", step_zero, "<=", 0.0, "an identity", "logits", "claim"),
    ("from scratch, removal also changes memorisation by 15 points", partial(largest_change, arm="scratch_removed", against="scratch_kept"), ">=", 15.0, CARD, "points", "control"),
    ("holding as many random other parameters changes memorisation by more than 5 points", partial(largest_change, arm="placebo", against="kept"), ">", 5.0, CARD, "points", "control"),
    ("without noise, memorisation is still a number", defined_without_noise, ">", 0.0, "it must be undefined, not 0/0", "share of epochs", "control"),
    ("the learn-norm exceeds that of CLEAN training samples too, at every LayerNorm", partial(least_ratio, over="clean train"), ">=", 1.0, "the claim's own threshold", "ratio", "control"),
)  # fmt: skip


def _names(data: xr.Dataset, origin: str) -> list[str]:
    return sorted(set(data["data"].values[data["origin"].values == origin].tolist())) if "origin" in data.coords else []


def _stored(result: Result, measure: Measure, name: str) -> float:
    return measure(result.data, STORED, name) if name in _names(result.data, STORED) else float("nan")


def _here(result: Result, measure: Measure, pick: Callable[[list[float]], float]) -> float:
    return weakest([measure(result.data, HERE, name) for name in _names(result.data, HERE)], pick)


# ---- stored runs as such ----


def from_what_ships(result: Result) -> float:
    """Share of stored runs that started from the very weights that ship, as seen when they were loaded."""
    if not _names(result.data, STORED):
        return float("nan")
    return float(result.data["start_ships"].values[result.data["origin"].values == STORED].mean())


def _pairs(result: Result, *, same_arm: bool) -> Iterator[tuple[xr.Dataset, xr.Dataset]]:
    """(run trained here, stored run of the same model and seed), of the same arm or of another one with the same noise."""
    data = result.data
    if not data.attrs.get("same_recipe"):
        return
    for i in np.flatnonzero(data["origin"].values == HERE):
        for j in np.flatnonzero(data["origin"].values == STORED):
            a, b = data.isel(run=i), data.isel(run=j)
            alike = a["model"].item() == b["model"].item() and int(a["seed"]) == int(b["seed"]) and a["start"].item() == b["start"].item()
            noise = bool((a["trained_label"] == b["trained_label"]).all())
            if alike and noise and (a["arm"].item() == b["arm"].item()) is same_arm:
                yield a, b


def agreement(a: xr.Dataset, b: xr.Dataset) -> float:
    """Equal predictions on noisy samples, over all epochs that both runs have, in percent."""
    noisy = (a["trained_label"] != a["true_label"]).values & (a["trained_label"].values >= 0)
    n = min(int(a["n_epochs"]), int(b["n_epochs"]))
    return 100 * float((a["predicted_train"].values[1 : n + 1, noisy] == b["predicted_train"].values[1 : n + 1, noisy]).mean())


def repeated(result: Result, *, same_arm: bool) -> float:
    """Agreement of runs trained here with stored ones: the least with their own twin, the most with another arm's run."""
    found = [agreement(a, b) for a, b in _pairs(result, same_arm=same_arm)]
    return weakest(found, min if same_arm else max)


def _claims() -> Iterator[Claim]:
    yield Claim("stored runs: all started from the weights that ship", "provenance", from_what_ships, ">=", 1.0, "all of them", unit="share of runs")
    for name in ("digits", "feelings"):
        for text, measure, relation, threshold, threshold_from, unit, kind in LINES:
            yield Claim(f"stored runs, {name}: {text}", SOURCE, partial(_stored, measure=measure, name=name), relation, threshold, threshold_from, kind, unit)  # type: ignore[arg-type]
    yield Claim("trained here: the run repeats its stored twin (predictions on noisy samples)", "this project", partial(repeated, same_arm=True), ">=", 90.0, AGREES, unit="% equal")
    yield Claim("trained here: the run agrees as well with the stored run of another arm", "this project", partial(repeated, same_arm=False), ">=", 90.0, AGREES, "control", "% equal")
    for text, measure, relation, threshold, threshold_from, unit, kind in LINES:
        pick = min if relation.startswith(">") and kind == "claim" else max
        yield Claim(f"trained here: {text}", SOURCE, partial(_here, measure=measure, pick=pick), relation, threshold, threshold_from, kind, unit)  # type: ignore[arg-type]


AGREES = "pilot on seeds not shown (pretraining 1, run 11): 98 % after a change the size of rounding, at most 83 % with another arm"
CLAIMS: tuple[Claim, ...] = tuple(_claims())
