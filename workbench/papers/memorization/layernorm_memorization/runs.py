"""One fine-tuning run of the LayerNorm analysis: what an arm changes, and everything that is kept of a run.

Runs are rows of one xarray Dataset (dimension `run`), so stored runs, runs trained here and half-finished sets of runs are
joined by putting rows under each other.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from workbench.core.errors import NotFired, NoTokenizer
from workbench.datasets.classification import Classification
from workbench.datasets.noisy_labels import NoisyLabels, add_noise
from workbench.models import ModelSpec
from workbench.training.classifier import FineTuneSpec, Inputs, Log, fine_tune
from workbench.training.pretrained_classifier import load_classifier
from workbench.weights import layer_norms as ln

HERE = "trained here"
GROUPS = ("test", "noisy", "clean train")
SCORES = ("learning", "memorisation", "recovery", "random", "train_accuracy", "overfit_gap")
FILL = {"predicted_train": -1, "predicted_test": -1, "trained_label": -1, "true_label": -1, "test_label": -1}


@dataclass(frozen=True)
class Arm:
    """What is different in a run. `follows` names the arm whose number of epochs it takes; None decides for itself."""

    title: str
    removal: str = "nothing"
    where: ln.Where = "all"
    from_scratch: bool = False
    has_noise: bool = True
    follows: str | None = "kept"


ARMS = {
    "kept": Arm("LayerNorm kept", follows=None),
    "removed": Arm("gain and bias removed", "gain and bias"),
    "early": Arm("removed in the early third", "gain and bias", "early"),
    "middle": Arm("removed in the middle third", "gain and bias", "middle"),
    "late": Arm("removed in the late third", "gain and bias", "late"),
    "whole": Arm("whole LayerNorm removed (not the paper's removal)", "whole norm"),
    "placebo": Arm("as many random other parameters held", "random others"),
    "scratch_kept": Arm("from scratch, LayerNorm kept", from_scratch=True, follows=None),
    "scratch_removed": Arm("from scratch, gain and bias removed", "gain and bias", from_scratch=True, follows="scratch_kept"),
    "clean": Arm("LayerNorm kept, no label noise", has_noise=False, follows=None),
}
WITH_GRADIENTS = ("kept", "removed")


@dataclass(frozen=True, eq=False)
class Case:
    """A pretrained model and the set it is fine-tuned on, tokenised.

    start: which weights it starts from. placement: "pre" or "post". grid: layers, and norms a layer.
    """

    model: ModelSpec
    name: str
    start: str
    placement: str
    grid: tuple[int, int]
    data: Classification
    train: Inputs
    test: Inputs


def make_case(model: ModelSpec, name: str, start: str, data: Classification, length: int) -> Case:
    """Tokenise the set for this model, and look where its LayerNorms stand."""
    module, tokenizer = load_classifier(model, len(data.classes), seed=0)
    if data.train.pixels is not None and data.test.pixels is not None and _reads_pixels(module):
        train, test = Inputs(data.train.pixels), Inputs(data.test.pixels)
    else:
        if tokenizer is None:
            raise NoTokenizer(f"{name} came without a tokenizer, and the data is text; save one beside the weights")
        rows = [tokenizer(list(part.texts), truncation=True, max_length=length)["input_ids"] for part in (data.train, data.test)]
        train, test = (Inputs(r, getattr(module.config.get_text_config(), "pad_token_id", None) or 0) for r in rows)
    module.eval()
    placement = ln.placement(module, test.batch(np.arange(2), next(module.parameters()).device))
    found = [norm for norm in ln.norms(module) if norm.block is not None]
    grid = max(n.block for n in found) + 1, max(n.place for n in found) + 1  # type: ignore[type-var, operator]
    return Case(model, name, start, placement, grid, data, train, test)


def _reads_pixels(module: torch.nn.Module) -> bool:
    return getattr(module, "main_input_name", "input_ids") == "pixel_values"


def train_run(
    case: Case,
    arm_name: str,
    settings: FineTuneSpec,
    *,
    rate: float,
    noisy_class: int | None,
    n_gradient: int,
    checkpoint: Path | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """Fine-tune one arm with one seed (`settings.seed`: noise, head, order of samples) and keep all there is to know of it.

    Args:
        rate: noisy samples as a share of the training set. noisy_class: where they are taken from.
        n_gradient: at most so many samples a group for gradient norms; 0 measures none.

    Returns:
        Dataset with one `run`; see `describe` for its variables.
    """
    arm, seed = ARMS[arm_name], settings.seed
    noise = add_noise(case.data.train.labels, len(case.data.classes), rate=rate if arm.has_noise else 0.0, noisy_class=noisy_class, seed=seed)
    module, _ = load_classifier(case.model, len(case.data.classes), seed=seed, from_scratch=arm.from_scratch)
    module.eval()
    probe = case.test.batch(np.arange(min(64, len(case.test))), next(module.parameters()).device)
    before = _logits(module, probe)
    removal, held = _remove(module, arm, seed)
    effect = float((_logits(module, probe) - before).abs().max())
    frozen = {name: p.detach().clone() for name, p in module.named_parameters() if not p.requires_grad or name in held}
    measure = _gradient_meter(case, noise, n_gradient, seed) if arm_name in WITH_GRADIENTS and n_gradient else None
    cpu = time.process_time()
    log = fine_tune(
        module, case.train, noise.trained, settings, record={"train": case.train, "test": case.test}, checkpoint=checkpoint, on_step=on_step,
        each_epoch=(lambda epoch, m: measure(m) if epoch & (epoch - 1) == 0 else None) if measure else None,
    )  # fmt: skip
    if measure and log.n_epochs not in log.measured:
        log.measured[log.n_epochs] = measure(module)
    cpu = time.process_time() - cpu
    _check_untouched(module, frozen, held)
    return describe(case, arm_name, seed, noise, log, removal, effect, cpu)


def _logits(module: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return module(**inputs).logits.float()


def _remove(module: torch.nn.Module, arm: Arm, seed: int) -> tuple[ln.Removal, dict[str, torch.Tensor]]:
    """Do what the arm says; the removal, and the masks of what is held at its pretrained values instead."""
    gain, bias = ln.moved(ln.norms(module))
    if arm.removal == "gain and bias":
        return ln.remove_gain_and_bias(module, arm.where), {}
    if arm.removal == "whole norm":
        return ln.remove_whole_norm(module, arm.where), {}
    if arm.removal == "random others":
        n = sum(norm.n_parameters for norm in ln.norms(module))
        return ln.Removal(0, n, gain, bias), ln.hold_random(module, n, seed=seed)
    return ln.Removal(0, 0, gain, bias), {}


def _check_untouched(module: torch.nn.Module, frozen: dict[str, torch.Tensor], held: dict[str, torch.Tensor]) -> None:
    """What was taken out of training must have its value of before, to the last bit, or the arm was not what it says."""
    after = dict(module.named_parameters())
    for name, value in frozen.items():
        same = torch.equal(after[name], value) if name not in held else torch.equal(after[name].cpu()[held[name]], value.cpu()[held[name]])
        if not same:
            raise NotFired(f"{name} was to be left out of training and has moved, so this run is not the arm it claims to be")


def _gradient_meter(case: Case, noise: NoisyLabels, n: int, seed: int) -> Callable[[torch.nn.Module], np.ndarray]:
    """A function module -> [group, 1 + layer x norm] mean loss and mean gradient norms of GROUPS, on fixed samples.

    Losses are against the labels trained on (for noisy samples the wrong ones; inferred), for test samples the true ones.
    """
    rng = np.random.default_rng([seed, 29])
    clean = np.flatnonzero(~noise.is_noisy)
    groups = [
        (case.test, case.data.test.labels, np.sort(rng.permutation(len(case.test))[:n])),
        (case.train, noise.trained, noise.noisy[:n]),
        (case.train, noise.trained, np.sort(rng.permutation(clean)[:n])),
    ]

    def measure(module: torch.nn.Module) -> np.ndarray:
        device = next(module.parameters()).device
        rows = []
        for inputs, labels, index in groups:
            parts = [index[i : i + 50] for i in range(0, len(index), 50)]
            found, loss = ln.gradient_norms(module, [(inputs.batch(p, device), torch.from_numpy(labels[p]).to(device)) for p in parts])
            rows.append(np.concatenate([[loss.mean()], found.mean(0).ravel()]))
        return np.stack(rows).astype(np.float32)

    return measure


# ---- the row of a run ----


def describe(case: Case, arm: str, seed: int, noise: NoisyLabels, log: Log, removal: ln.Removal, effect: float, cpu_seconds: float) -> xr.Dataset:
    """One run as a Dataset: predictions and labels sample by sample, and what was done."""
    n_epochs = log.n_epochs
    train, test = (np.stack(log.predictions[name]).astype(np.int16) for name in ("train", "test"))
    variables: dict[str, Any] = {
        "predicted_train": (("run", "epoch", "train"), train[None], {"long_name": "Predicted class, training samples", "unit": "class number, -1 is none"}),
        "predicted_test": (("run", "epoch", "test"), test[None], {"long_name": "Predicted class, test samples", "unit": "class number, -1 is none"}),
        "trained_label": (("run", "train"), noise.trained[None].astype(np.int16), {"long_name": "Label trained on", "unit": "class number"}),
        "true_label": (("run", "train"), noise.true[None].astype(np.int16), {"long_name": "True label", "unit": "class number"}),
        "test_label": (("run", "test"), case.data.test.labels[None].astype(np.int16), {"long_name": "Test label", "unit": "class number"}),
        "loss": (("run", "epoch"), np.array([log.loss], np.float32), {"long_name": "Training loss", "unit": "nats"}),
        "n_epochs": ("run", [n_epochs], {"long_name": "Epochs trained", "unit": "epochs"}),
        "seconds": ("run", [log.seconds], {"long_name": "Training time, wall clock", "unit": "s"}),
        "cpu_seconds": ("run", [cpu_seconds], {"long_name": "Training time of this process's cores", "unit": "s"}),
        "n_removed": ("run", [removal.n_parameters], {"long_name": "Numbers taken out of training", "unit": "parameters"}),
        "gain_moved": ("run", [removal.gain_moved], {"long_name": "Mean |gain - 1| before the change", "unit": "1"}),
        "bias_moved": ("run", [removal.bias_moved], {"long_name": "Mean |bias| before the change", "unit": "1"}),
        "effect": ("run", [effect], {"long_name": "Largest logit change before training", "unit": "logits"}),
    }
    coords: dict[str, Any] = {
        "model": ("run", [case.name]), "data": ("run", [case.data.about["name"]]), "placement": ("run", [case.placement]), "arm": ("run", [arm]), "seed": ("run", [seed]),
        "origin": ("run", [HERE]), "start": ("run", [case.start]), "trained": ("run", [datetime.now(UTC).isoformat(timespec="seconds")]),
        "epoch": range(n_epochs + 1), "train": range(train.shape[1]), "test": range(test.shape[1]),
    }  # fmt: skip
    n_layers, n_norms = case.grid
    norms = np.full((1, n_epochs + 1, len(GROUPS), n_layers, n_norms), np.nan, np.float32)
    losses = np.full((1, n_epochs + 1, len(GROUPS)), np.nan, np.float32)
    for epoch, rows in log.measured.items():
        losses[0, epoch], norms[0, epoch] = rows[:, 0], rows[:, 1:].reshape(len(GROUPS), n_layers, n_norms)
    variables["gradient_norm"] = (("run", "epoch", "group", "layer", "norm"), norms, {"long_name": "Gradient at the input of a LayerNorm", "unit": "nats per unit of activation"})
    variables["gradient_loss"] = (("run", "epoch", "group"), losses, {"long_name": "Loss of the samples whose gradients are shown", "unit": "nats"})
    coords |= {"group": list(GROUPS), "layer": range(n_layers), "norm": range(n_norms)}
    return xr.Dataset(variables, coords=coords)


def combine(rows: Sequence[xr.Dataset]) -> xr.Dataset:
    """Runs under each other; shorter ones are padded with -1 (class numbers) and nan."""
    joined = xr.concat(rows, "run", join="outer", data_vars="all", coords="minimal", compat="override", fill_value=FILL, combine_attrs="override")
    for name, variable in joined.data_vars.items():
        if name in FILL:
            joined[name] = variable.fillna(-1).astype(np.int16) if variable.dtype.kind == "f" else variable.astype(np.int16)
        if variable.ndim > 1:
            joined[name].encoding = {"zlib": True, "complevel": 9}
    return joined


def with_scores(data: xr.Dataset) -> xr.Dataset:
    """Add the paper's scores, counted from the predictions of every run and epoch. Percent; undefined (nan) without noise.

    Raises:
        AssertionError: if memorisation, recovery and random do not sum to 100, which cannot happen.
    """
    predicted, trained, true = data["predicted_train"], data["trained_label"], data["true_label"]
    exists, is_noisy = predicted >= 0, (trained != true) & (trained >= 0)
    n_noisy = is_noisy.sum("train")

    def share(hit: xr.DataArray, of: xr.DataArray) -> xr.DataArray:
        count = (hit & exists & of).sum("train")
        total = (exists & of).sum("train")
        return 100 * count / total.where(total > 0)

    tested = data["predicted_test"] >= 0
    scores = {
        "learning": 100 * ((data["predicted_test"] == data["test_label"]) & tested).sum("test") / tested.sum("test").where(tested.any("test")),
        "memorisation": share(predicted == trained, is_noisy),
        "recovery": share(predicted == true, is_noisy),
        "random": share((predicted != trained) & (predicted != true), is_noisy),
        "train_accuracy": share(predicted == trained, trained >= 0),
    }
    total = (scores["memorisation"] + scores["recovery"] + scores["random"]).values
    assert np.allclose(total[np.isfinite(total)], 100), "memorisation, recovery and random must sum to 100"
    assert np.isfinite(scores["memorisation"].values).any() == bool((n_noisy > 0).any())
    scores["overfit_gap"] = scores["train_accuracy"] - scores["learning"]
    titles = {"learning": "Learning: test accuracy", "train_accuracy": "Training accuracy", "overfit_gap": "Overfit gap"}
    out = data.copy()
    for name, values in scores.items():
        unit = "points" if name == "overfit_gap" else "% of noisy samples" if name in ("memorisation", "recovery", "random") else "% of samples"
        out[name] = values.transpose("run", "epoch").astype(np.float32).assign_attrs({"long_name": titles.get(name, name.capitalize()), "unit": unit})
    return out


def text_tables(case: Case, row: xr.Dataset) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What a person reads: (data, index, text) of the samples whose labels were changed, and (data, index, name) of the classes."""
    data = case.data.about["name"]
    noisy = np.flatnonzero((row["trained_label"] != row["true_label"]).values[0])
    samples = pd.DataFrame({"data": data, "index": noisy, "text": [case.data.train.texts[int(i)] for i in noisy]})
    return samples, pd.DataFrame({"data": data, "index": range(len(case.data.classes)), "name": list(case.data.classes)})
