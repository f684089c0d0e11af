"""A made-up Result of the LayerNorm analysis, for tests of its figures and panel: random predictions."""

import numpy as np
import pandas as pd
import xarray as xr

from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.papers.memorization.layernorm_memorization.arms import ARMS, GROUPS, WITH_GRADIENTS
from workbench.papers.memorization.layernorm_memorization.scores import combine, runs_of, tables_of, with_scores
from workbench.runs.stored import HERE, STORED

N_EPOCHS, N_TRAIN, N_NOISY = 4, 20, 6
ABOUT = ("trained", "start", "n_removed", "effect", "gain_moved", "seconds", "cpu_seconds")


def row(rng, data, placement, arm, seed, origin) -> xr.Dataset:
    true = np.arange(N_TRAIN) % 3
    trained = np.where(np.arange(N_TRAIN) < N_NOISY, (true + 1) % 3, true) if arm != "clean" else true
    shape = (N_EPOCHS + 1, len(GROUPS), 3, 2)
    norms, losses = (rng.random(size) * (1 if arm in WITH_GRADIENTS else np.nan) for size in (shape, shape[:2]))
    variables = {
        "predicted_train": (("epoch", "train"), rng.integers(0, 3, (N_EPOCHS + 1, N_TRAIN)).astype(np.int16)),
        "predicted_test": (("epoch", "test"), rng.integers(0, 3, (N_EPOCHS + 1, 9)).astype(np.int16)),
        "trained_label": ("train", trained.astype(np.int16)),
        "true_label": ("train", true.astype(np.int16)),
        "test_label": ("test", (np.arange(9) % 3).astype(np.int16)),
        "n_epochs": ((), N_EPOCHS),
        "gradient_norm": (("epoch", "group", "layer", "norm"), norms),
        "gradient_loss": (("epoch", "group"), losses),
    } | dict.fromkeys(ABOUT, ((), 0.0))
    sizes = {"epoch": range(N_EPOCHS + 1), "train": range(N_TRAIN), "test": range(9), "group": list(GROUPS)}
    where = {"model": f"{data}-{placement}", "data": data, "placement": placement, "arm": arm, "seed": seed}
    run = xr.Dataset(variables, coords=sizes | {"layer": range(3), "norm": range(2)}).expand_dims("run")
    return run.assign_coords({name: ("run", [value]) for name, value in (where | {"origin": origin}).items()})


def made_result() -> Result:
    """Two data sets, both placements, all arms, two seeds, stored; and one run made here."""
    rng = np.random.default_rng(0)
    sets = ("digits", "feelings")
    rows = [row(rng, d, p, a, s, STORED) for d in sets for p in ("post", "pre") for a in ARMS for s in (0, 1)]
    rows.append(row(rng, "digits", "post", "early", 0, HERE))
    samples = [(d, i, f"text {i}") for d in sets for i in range(N_NOISY)]
    classes = [(d, i, n) for d in sets for i, n in enumerate("abc")]
    data = with_scores(combine(rows))
    tables = {
        "samples": pd.DataFrame(samples, columns=["data", "index", "text"]),
        "classes": pd.DataFrame(classes, columns=["data", "index", "name"]),
    }
    return Result(Provenance("layernorm_memorization", {}, 0), data, tables | tables_of(data))


def stored(result: Result, arm: str, placement: str, data: str = "digits") -> xr.Dataset:
    """The stored runs of an arm, by seed."""
    return runs_of(result.data, arm=arm, placement=placement, data=data, origin=STORED)
