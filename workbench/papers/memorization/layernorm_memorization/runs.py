"""One fine-tuning run of the LayerNorm analysis: what an arm changes, and everything that is kept of a run."""

import time
from collections.abc import Callable
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
from workbench.papers.memorization.layernorm_memorization.arms import ARMS, GROUPS, WITH_GRADIENTS, Arm
from workbench.training.classifier import ClassifierSpec, Inputs, Log, train_classifier
from workbench.training.pretrained_classifier import load_classifier
from workbench.weights import layer_norms as ln


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
        pad = getattr(module.config.get_text_config(), "pad_token_id", None) or 0
        train, test = (
            Inputs(tokenizer(list(part.texts), truncation=True, max_length=length)["input_ids"], pad)
            for part in (data.train, data.test)
        )
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
    settings: ClassifierSpec,
    *,
    rate: float,
    noisy_class: int | None,
    n_gradient: int,
    checkpoint: Path | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """Fine-tune one arm with one seed (`settings.seed`: noise, head, order of samples) and keep what is known of it.

    Args:
        rate: noisy samples as a share of the training set. noisy_class: where they are taken from.
        n_gradient: at most so many samples a group for gradient norms; 0 measures none.

    Returns:
        Dataset with one `run`; see `describe` for its variables.

    Raises:
        NotFired: if something that was to be left out of training has moved.
    """
    arm, seed, n_classes = ARMS[arm_name], settings.seed, len(case.data.classes)
    rate = rate if arm.has_noise else 0.0
    noise = add_noise(case.data.train.labels, n_classes, rate=rate, noisy_class=noisy_class, seed=seed)
    module, _ = load_classifier(case.model, n_classes, seed=seed, from_scratch=arm.from_scratch)
    module.eval()
    probe = case.test.batch(np.arange(min(64, len(case.test))), next(module.parameters()).device)
    before = _logits(module, probe)
    removal, held = _remove(module, arm, seed)
    effect = float((_logits(module, probe) - before).abs().max())
    out = [(name, p) for name, p in module.named_parameters() if not p.requires_grad or name in held]
    frozen = {name: p.detach().clone() for name, p in out}
    measure = _gradient_meter(case, noise, n_gradient, seed) if arm_name in WITH_GRADIENTS and n_gradient else None
    cpu = time.process_time()
    log = train_classifier(
        module, case.train, noise.trained, settings, record={"train": case.train, "test": case.test},
        checkpoint=checkpoint, on_step=on_step,
        each_epoch=(lambda epoch, m: measure(m) if epoch & (epoch - 1) == 0 else None) if measure else None,
    )  # fmt: skip
    if measure and log.n_epochs not in log.measured:
        log.measured[log.n_epochs] = measure(module)
    cpu = time.process_time() - cpu
    check_untouched(module, frozen, held)
    return describe(case, noise, log, removal, effect, cpu)


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


def check_untouched(module: torch.nn.Module, frozen: dict[str, torch.Tensor], held: dict[str, torch.Tensor]) -> None:
    """What was taken out of training must have its value of before, to the last bit, or the arm was not what it says.

    Args:
        frozen: {parameter: its value before}. held: {parameter: mask of what is held}; without a mask, all of it is.

    Raises:
        NotFired: if something moved.
    """
    now = dict(module.named_parameters())
    for name, value in frozen.items():
        mask = held.get(name, torch.ones(value.shape, dtype=torch.bool)).cpu()
        if not torch.equal(now[name].cpu()[mask], value.cpu()[mask]):
            raise NotFired(f"{name} was to be left out of training and has moved, so this run is not what its arm says")


def _gradient_meter(case: Case, noise: NoisyLabels, n: int, seed: int) -> Callable[[torch.nn.Module], np.ndarray]:
    """A function module -> [group, 1 + layer x norm] mean loss and mean gradient norms of GROUPS, on fixed samples.

    Losses are against the labels trained on (for noisy samples the wrong ones: inferred), for test samples the true.
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
            batches = [(inputs.batch(p, device), torch.from_numpy(labels[p]).to(device)) for p in parts]
            found, loss = ln.gradient_norms(module, batches)
            rows.append(np.concatenate([[loss.mean()], found.mean(0).ravel()]))
        return np.stack(rows).astype(np.float32)

    return measure


# ---- what is kept of a run ----


def describe(
    case: Case, noise: NoisyLabels, log: Log, removal: ln.Removal, effect: float, cpu_seconds: float
) -> xr.Dataset:
    """One run as a Dataset: predictions and labels sample by sample, and what was done."""
    train, test = (np.stack(log.predictions[name]).astype(np.int16) for name in ("train", "test"))
    n_epochs, sizes = log.n_epochs, (log.n_epochs + 1, len(GROUPS), *case.grid)
    norms, losses = np.full(sizes, np.nan, np.float32), np.full(sizes[:2], np.nan, np.float32)
    for epoch, rows in log.measured.items():
        losses[epoch], norms[epoch] = rows[:, 0], rows[:, 1:].reshape(sizes[1:])
    number, at_norm = "class number", "nats per unit of activation"
    variables: dict[str, tuple[Any, Any, str, str]] = {
        "predicted_train": (("epoch", "train"), train, "Predicted class, training samples", "class number, -1 is none"),
        "predicted_test": (("epoch", "test"), test, "Predicted class, test samples", "class number, -1 is none"),
        "trained_label": ("train", noise.trained.astype(np.int16), "Label trained on", number),
        "true_label": ("train", noise.true.astype(np.int16), "True label", number),
        "test_label": ("test", case.data.test.labels.astype(np.int16), "Test label", number),
        "loss": ("epoch", np.array(log.loss, np.float32), "Training loss", "nats"),
        "n_epochs": ((), n_epochs, "Epochs trained", "epochs"),
        "seconds": ((), log.seconds, "Training time, wall clock", "s"),
        "cpu_seconds": ((), cpu_seconds, "Training time of this process's cores", "s"),
        "n_removed": ((), removal.n_parameters, "Numbers taken out of training", "parameters"),
        "gain_moved": ((), removal.gain_moved, "Mean |gain - 1| before the change", "1"),
        "bias_moved": ((), removal.bias_moved, "Mean |bias| before the change", "1"),
        "effect": ((), effect, "Largest logit change before training", "logits"),
        "gradient_norm": (("epoch", "group", "layer", "norm"), norms, "Gradient at the input of a LayerNorm", at_norm),
        "gradient_loss": (("epoch", "group"), losses, "Loss of the samples whose gradients are shown", "nats"),
    }
    data = xr.Dataset(
        {name: (dims, v, {"long_name": title, "unit": unit}) for name, (dims, v, title, unit) in variables.items()},
        coords={"group": list(GROUPS)} | {d: range(n) for d, n in zip(("layer", "norm"), case.grid, strict=True)}
        | {"epoch": range(n_epochs + 1), "train": range(train.shape[1]), "test": range(test.shape[1])},
    )  # fmt: skip
    about = {"data": case.data.about["name"], "placement": case.placement, "start": case.start}
    about |= {"trained": datetime.now(UTC).isoformat(timespec="seconds")}
    return data.expand_dims("run").assign_coords({name: ("run", [value]) for name, value in about.items()})


def text_tables(case: Case, run: xr.Dataset) -> dict[str, pd.DataFrame]:
    """samples: texts of those whose labels were changed. classes: their names. sets: where the data came from."""
    data = case.data.about["name"]
    noisy = np.flatnonzero((run["trained_label"] != run["true_label"]).values[0])
    texts, classes = [case.data.train.texts[int(i)] for i in noisy], list(case.data.classes)
    return {
        "samples": pd.DataFrame({"data": data, "index": noisy, "text": texts}),
        "classes": pd.DataFrame({"data": data, "index": range(len(classes)), "name": classes}),
        "sets": pd.DataFrame({"model": [case.name], "data": data, "about": str(case.data.about)}),
    }
