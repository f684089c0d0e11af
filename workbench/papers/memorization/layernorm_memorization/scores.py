"""The paper's scores, counted from stored predictions: run by run, after the last epoch, and gradients at the norms.

Runs are rows of one Dataset (dimension `run`); all functions here are pure, and none needs torch.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr

from workbench.papers.memorization.layernorm_memorization.arms import ARMS
from workbench.runs.seeds import summary

SCORES = ("learning", "memorisation", "recovery", "random", "train_accuracy", "overfit_gap")
OF_NOISY = ("memorisation", "recovery", "random")
FILL = dict.fromkeys(("predicted_train", "predicted_test", "trained_label", "true_label", "test_label"), -1)
KEYS = ("model", "data", "placement", "arm")
ABOUT = ("trained", "start", "n_epochs", "n_removed", "effect", "gain_moved", "seconds", "cpu_seconds")


def combine(sets: Sequence[xr.Dataset]) -> xr.Dataset:
    """Runs under each other; shorter ones are padded with -1 (class numbers) and nan up to the longest, no further."""
    bare = [part.drop_vars(SCORES, errors="ignore") for part in sets]  # scores are counted again from all
    joined = xr.concat(
        bare, "run", join="outer", data_vars="all", coords="minimal", compat="override", fill_value=FILL,
        combine_attrs="override",
    )  # fmt: skip
    for dim, name in (("epoch", "predicted_train"), ("train", "true_label"), ("test", "test_label")):
        exists = (joined[name].fillna(-1) >= 0).any([d for d in joined[name].dims if d != dim])
        joined = joined.isel({dim: np.flatnonzero(exists)})
    for name, variable in joined.data_vars.items():
        if name in FILL:
            joined[name] = variable.fillna(-1).astype(np.int16)
        if variable.ndim > 1:
            joined[name].encoding = {"zlib": True, "complevel": 9}
    return joined


def with_scores(data: xr.Dataset) -> xr.Dataset:
    """Add SCORES, counted from the predictions of every run and epoch. Percent; undefined (nan) without noise.

    Raises:
        AssertionError: if memorisation, recovery and random do not sum to 100, which cannot happen.
    """
    predicted, trained, true = data["predicted_train"], data["trained_label"], data["true_label"]
    exists, is_noisy = predicted >= 0, (trained != true) & (trained >= 0)

    def share(hit: xr.DataArray, of: xr.DataArray) -> xr.DataArray:
        total = (exists & of).sum("train")
        return 100 * (hit & exists & of).sum("train") / total.where(total > 0)

    tested = data["predicted_test"] >= 0
    right = ((data["predicted_test"] == data["test_label"]) & tested).sum("test")
    scores = {
        "learning": 100 * right / tested.sum("test").where(tested.any("test")),
        "memorisation": share(predicted == trained, is_noisy),
        "recovery": share(predicted == true, is_noisy),
        "random": share((predicted != trained) & (predicted != true), is_noisy),
        "train_accuracy": share(predicted == trained, trained >= 0),
    }
    total = sum(scores[name] for name in OF_NOISY).values
    assert np.allclose(total[np.isfinite(total)], 100), "memorisation, recovery and random must sum to 100"
    assert np.isfinite(total).any() == bool(is_noisy.any())
    scores["overfit_gap"] = scores["train_accuracy"] - scores["learning"]
    titles = {"learning": "Learning: test accuracy", "train_accuracy": "Training accuracy"}
    units = {"overfit_gap": "points"} | dict.fromkeys(OF_NOISY, "% of noisy samples")
    out = data.copy()
    for name, values in scores.items():
        title = titles.get(name, name.capitalize().replace("_", " "))
        out[name] = values.transpose("run", "epoch").astype(np.float32)
        out[name].attrs = {"long_name": title, "unit": units.get(name, "% of samples")}
    return out


def runs_of(runs: xr.Dataset, /, **which: str | int) -> xr.Dataset:
    """The runs whose coordinates are as named, in their order; empty if there are none."""
    hit = [np.ones(runs.sizes["run"], bool), *(runs[name].values == value for name, value in which.items())]
    return runs.isel(run=np.flatnonzero(np.logical_and.reduce(hit)))


def after(runs: xr.Dataset, score: str, epoch: np.ndarray | None = None) -> np.ndarray:
    """[run] a score after the last epoch of each run, or after the one given for each."""
    at = runs["n_epochs"].values if epoch is None else epoch
    return runs[score].values[np.arange(runs.sizes["run"]), np.asarray(at, int)].astype(float)


def last_gradients(runs: xr.Dataset) -> xr.DataArray | None:
    """[group, layer, norm] mean over runs of the gradient norms after the last epoch; None if none was measured."""
    at = xr.DataArray(runs["n_epochs"].values.astype(int), dims="run")
    norms = runs["gradient_norm"].isel(epoch=at, run=xr.DataArray(np.arange(runs.sizes["run"]), dims="run")).mean("run")
    return norms if bool(norms.notnull().any()) else None


# ---- tables ----


def tables_of(data: xr.Dataset) -> dict[str, pd.DataFrame]:
    """runs: a row a run. first_fit: the same scores when the kept twin first fitted. summary: both by seed."""
    tables = {"runs": _rows(data, ABOUT), "first_fit": first_fit(data)}
    return tables | {"summary": summary(tables, dict.fromkeys(tables, KEYS), SCORES)}


def _rows(runs: xr.Dataset, about: Sequence[str] = (), epoch: np.ndarray | None = None) -> pd.DataFrame:
    columns = {name: runs[name].values for name in ("origin", *KEYS, "seed", *about)}
    return pd.DataFrame(columns | {score: after(runs, score, epoch) for score in SCORES})


def first_fit(data: xr.Dataset) -> pd.DataFrame:
    """Scores at the epoch when the run that a run follows (its twin of the same seed) first had all its labels.

    The other reading of "until the kept run fits". Runs that ended before, or whose twin never fitted, are left out.
    """
    fits = data["train_accuracy"].values >= 100
    names = ("origin", "model", "arm", "seed")
    keys = list(zip(*(data[name].values.tolist() for name in names), strict=True))
    first = {key: int(fit.argmax()) for key, fit in zip(keys, fits, strict=True) if fit.any()}
    leader = [(origin, model, ARMS[arm].follows or arm, seed) for origin, model, arm, seed in keys]
    epoch = np.array([first.get(key, np.inf) for key in leader])
    has = np.flatnonzero(epoch <= data["n_epochs"].values)
    return _rows(data.isel(run=has), epoch=epoch[has])
