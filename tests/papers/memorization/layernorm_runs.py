"""A made-up Result of the LayerNorm analysis, for tests of its figures and its panel: random predictions, scores counted from them."""

import numpy as np
import pandas as pd
import xarray as xr

from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.papers.memorization.layernorm_memorization import runs
from workbench.runs.stored import STORED

N_EPOCHS, N_TRAIN, N_NOISY = 4, 20, 6


def row(rng, data, placement, arm, seed, origin) -> xr.Dataset:
    true = np.arange(N_TRAIN) % 3
    trained = np.where(np.arange(N_TRAIN) < N_NOISY, (true + 1) % 3, true) if arm != "clean" else true
    test = np.arange(9) % 3
    shape = (1, N_EPOCHS + 1, 3, 3, 2)
    variables = {
        "predicted_train": (("run", "epoch", "train"), rng.integers(0, 3, (1, N_EPOCHS + 1, N_TRAIN)).astype(np.int16)),
        "predicted_test": (("run", "epoch", "test"), rng.integers(0, 3, (1, N_EPOCHS + 1, 9)).astype(np.int16)),
        "trained_label": (("run", "train"), trained[None].astype(np.int16)),
        "true_label": (("run", "train"), true[None].astype(np.int16)),
        "test_label": (("run", "test"), test[None].astype(np.int16)),
        "n_epochs": ("run", [N_EPOCHS]),
        "gradient_norm": (("run", "epoch", "group", "layer", "norm"), rng.random(shape) if arm in runs.WITH_GRADIENTS else np.full(shape, np.nan)),
        "gradient_loss": (("run", "epoch", "group"), rng.random((1, N_EPOCHS + 1, 3)) if arm in runs.WITH_GRADIENTS else np.full((1, N_EPOCHS + 1, 3), np.nan)),
    }
    coords = {"model": ("run", [f"{data}-{placement}"]), "data": ("run", [data]), "placement": ("run", [placement]), "arm": ("run", [arm]), "seed": ("run", [seed]), "origin": ("run", [origin])}
    sizes = {"epoch": range(N_EPOCHS + 1), "train": range(N_TRAIN), "test": range(9), "group": list(runs.GROUPS), "layer": range(3), "norm": range(2)}
    return xr.Dataset(variables, coords=coords | sizes)


def made_result() -> Result:
    """Two data sets, both placements, all arms, two seeds, stored; and one run trained here."""
    rng = np.random.default_rng(0)
    rows = [row(rng, d, p, a, s, STORED) for d in ("digits", "feelings") for p in ("post", "pre") for a in runs.ARMS for s in (0, 1)]
    rows.append(row(rng, "digits", "post", "early", 0, runs.HERE))
    samples = pd.DataFrame([(d, i, f"text {i}") for d in ("digits", "feelings") for i in range(N_NOISY)], columns=["data", "index", "text"])
    classes = pd.DataFrame([(d, i, n) for d in ("digits", "feelings") for i, n in enumerate("abc")], columns=["data", "index", "name"])
    return Result(Provenance("layernorm_memorization", {}, 0), runs.with_scores(runs.combine(rows)), {"samples": samples, "classes": classes})


def stored(result: Result, arm: str, placement: str, data: str = "digits") -> xr.Dataset:
    """The stored runs of an arm, by seed."""
    d = result.data
    return d.isel(run=np.flatnonzero((d["arm"].values == arm) & (d["placement"].values == placement) & (d["data"].values == data) & (d["origin"].values == STORED)))
