"""Numbers over seeds: scores at the end of training, paired differences between arms, intervals, gradient ratios."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import xarray as xr

from workbench.papers.memorization.layernorm_memorization.runs import ARMS, SCORES
from workbench.runs.seeds import student_interval

Which = Mapping[str, str]  # coordinates of `run` to match: origin, data, placement


def runs(data: xr.Dataset, arm: str, which: Which) -> xr.Dataset:
    """The runs of an arm, by (model, seed); empty if there are none."""
    hit = data["arm"].values == arm
    for name, value in which.items():
        hit &= data[name].values == value
    chosen = np.flatnonzero(hit)
    return data.isel(run=chosen[np.lexsort((data["seed"].values[chosen], data["model"].values[chosen]))])


def last(data: xr.Dataset, score: str, arm: str, which: Which) -> dict[tuple[str, int], float]:
    """{(model, seed): score after the last epoch}."""
    found = runs(data, arm, which)
    return {(str(found["model"].values[i]), int(found["seed"].values[i])): float(found[score].values[i, int(found["n_epochs"].values[i])]) for i in range(found.sizes["run"])}


def difference(data: xr.Dataset, score: str, arm: str, which: Which, against: str = "kept") -> np.ndarray:
    """[pair] score of `arm` minus that of the arm it is compared with, same model and seed, after the last epoch; in points."""
    a, b = last(data, score, arm, which), last(data, score, against, which)
    return np.array([a[key] - b[key] for key in sorted(a.keys() & b.keys())])


def mean(values: np.ndarray) -> float:
    """Mean over seeds; nan if there are none."""
    return float(np.mean(values)) if len(values) else float("nan")


def gradient_ratio(data: xr.Dataset, over: str, which: Which, arm: str = "kept") -> np.ndarray:
    """[layer, norm] learn-norm (mean over test samples) over the norm of another group, after the last epoch; means over seeds.

    over: "noisy" gives the paper's learn-norm / mem-norm; "clean train" the comparison that tells whether it means anything.
    """
    norms = last_gradients(data, which, arm)
    return np.empty((0, 0)) if norms is None else (norms.sel(group="test") / norms.sel(group=over)).values


def last_gradients(data: xr.Dataset, which: Which, arm: str = "kept") -> xr.DataArray | None:
    """[group, layer, norm] mean over seeds of the gradient norms after the last epoch."""
    found = runs(data, arm, which)
    each = [found["gradient_norm"].isel(run=i, epoch=int(found["n_epochs"].values[i])) for i in range(found.sizes["run"])]
    if not each or not any(bool(e.notnull().any()) for e in each):
        return None
    return xr.concat(each, "run", coords="minimal", compat="override").mean("run")


def summary(data: xr.Dataset) -> pd.DataFrame:
    """One row per origin, data, placement, arm and score: seeds, mean, 95 % interval, and the mean when the kept twin first fitted.

    `at_first_fit` is the other reading of "until the kept run fits": the epoch at which the kept run of the same seed first
    had 100 % training accuracy, and no later.
    """
    keys = pd.DataFrame({name: data[name].values for name in ("origin", "data", "placement")}).drop_duplicates()
    rows = []
    for which in keys.to_dict("records"):
        for arm in [a for a in ARMS if runs(data, a, which).sizes["run"]]:
            early = _at_first_fit(data, arm, which)
            for score in SCORES:
                values = np.array(list(last(data, score, arm, which).values()))
                low, high = student_interval(values)
                rows.append(which | {"arm": arm, "score": score, "seeds": len(values), "mean": mean(values), "low": low, "high": high, "at_first_fit": mean(early[score])})
    return pd.DataFrame(rows)


def runs_table(data: xr.Dataset) -> pd.DataFrame:
    """One row a run: where it came from, what was done, how long it took, and its scores after the last epoch."""
    names = ("origin", "model", "data", "placement", "arm", "seed", "trained", "start", "n_epochs", "n_removed", "effect", "gain_moved", "seconds", "cpu_seconds")
    table = pd.DataFrame({name: data[name].values for name in names})
    at = data["n_epochs"].values.astype(int)
    return table.assign(**{score: data[score].values[np.arange(len(at)), at] for score in SCORES})


def _at_first_fit(data: xr.Dataset, arm: str, which: Which) -> dict[str, np.ndarray]:
    """{score: [pair]} of an arm at the epoch when the run it is compared with first fitted all its labels."""
    mine, leading = runs(data, arm, which), runs(data, ARMS[arm].follows or arm, which)
    where = {(str(m), int(s)): i for i, (m, s) in enumerate(zip(leading["model"].values, leading["seed"].values, strict=True))}
    found: dict[str, list[float]] = {score: [] for score in SCORES}
    for i, key in enumerate(zip(mine["model"].values, mine["seed"].values, strict=True)):
        j = where.get((str(key[0]), int(key[1])))
        fitted = np.flatnonzero(leading["train_accuracy"].values[j] >= 100) if j is not None else np.array([], int)
        if len(fitted) and fitted[0] <= int(mine["n_epochs"].values[i]):
            for score in SCORES:
                found[score].append(float(mine[score].values[i, fitted[0]]))
    return {score: np.array(values) for score, values in found.items()}


def weakest(values: list[float], pick: Callable[[list[float]], float]) -> float:
    """The least favourable of several numbers; nan if there is none to be had."""
    known = [v for v in values if np.isfinite(v)]
    return float(pick(known)) if known else float("nan")
