"""Fine-tuning of Hugging Face classifiers with a record of every prediction after every epoch.

A plain module in the loop of `loop.train`: Adam, constant rate, seeded batch order, autocast on CUDA; it stops early
when the training set is fitted, and goes on after a kill from its last finished epoch. Works for text (token rows) and
images (pixels).
Cost: forward and backward of every sample an epoch, plus a forward of every sample that is recorded.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from workbench.core import files
from workbench.core.errors import BadData, BadSpec
from workbench.core.spec import Spec, param
from workbench.models.inputs import pad

from .loop import Step, TrainSpec, train


@dataclass(frozen=True)
class ClassifierSpec(Spec):
    """Settings of `train_classifier`."""

    epochs: int = param(30, "passes over the training set", unit="epochs", ge=1)
    batch_size: int = param(32, "samples a step", ge=1)
    lr: float = param(6e-4, "constant learning rate of Adam", ge=0)
    clip: float = param(1.0, "gradient norm above which gradients are scaled down", ge=0)
    stop_at: float | None = param(None, "training accuracy that counts as fitted; none runs all epochs", ge=0, le=1)
    overtrain: float = param(0.0, "once fitted, epochs to go on for, as a share of those so far", ge=0)
    autocast: str = param(
        "auto", "bfloat16 on CUDA if auto; none is float32 everywhere", choices=("auto", "none", "bfloat16")
    )
    seed: int = param(0, "draws the batch order and dropout", ge=0)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a classifier reads: token rows of any lengths, or [n, channel, height, width] pixels."""

    rows: Sequence[Sequence[int]] | np.ndarray
    pad_id: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, index: np.ndarray, device: torch.device) -> dict[str, torch.Tensor]:
        """The module's arguments for these rows; padded on the right, with a mask only where there is padding."""
        if isinstance(self.rows, np.ndarray) and self.rows.ndim == 4:
            return {"pixel_values": torch.from_numpy(self.rows[index]).to(device)}
        padded = pad([self.rows[int(i)] for i in index], self.pad_id)
        mask = {"attention_mask": padded.mask.to(device, torch.long)} if padded.is_padded else {}
        return {"input_ids": padded.tokens.to(device)} | mask


@dataclass(eq=False)
class Log:
    """What happened: `predictions` {set: [epoch, sample] class number}, row 0 before training; `loss` [epoch] mean
    training loss in nats, nan in row 0; `measured` {epoch: what `each_epoch` returned}; `seconds` of all of it."""

    predictions: dict[str, list[np.ndarray]] = field(default_factory=dict)
    loss: list[float] = field(default_factory=list)
    measured: dict[int, np.ndarray] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def n_epochs(self) -> int:
        """Finished epochs of training."""
        return len(self.loss) - 1


def train_classifier(
    module: nn.Module,
    inputs: Inputs,
    labels: np.ndarray,
    spec: ClassifierSpec,
    *,
    record: Mapping[str, Inputs],
    each_epoch: Callable[[int, nn.Module], np.ndarray | None] | None = None,
    checkpoint: Path | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Log:
    """Train what requires a gradient, and record the predictions on each set before training and after every epoch.

    Args:
        module: Hugging Face classifier, changed in place; frozen parameters never enter the optimiser.
        inputs, labels: the training set; `labels` [n] class numbers.
        spec: rates, epochs, seed.
        record: sets to predict, by name; `stop_at` reads the one called "train", against `labels`.
        each_epoch: called with (finished epochs, module in eval mode), first with 0; an array it returns is kept in the
            log.
        checkpoint: folder where weights, optimiser and log are kept after every epoch; if it holds a run of the same
            settings, that run goes on as if it had not been interrupted. Removed when training ends.
        on_step: called with (steps done, steps in all) before every step; may raise Cancelled.

    Returns:
        The Log; the module has the last epoch's weights and is in eval mode.

    Raises:
        BadData: if labels do not fit. BadSpec: if `checkpoint` holds a run of other settings.
    """
    if len(inputs) != len(labels) or len(labels) == 0:
        raise BadData(
            f"{len(inputs)} training samples and {len(labels)} labels; there must be as many, and at least one"
        )
    device = next(module.parameters()).device
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimiser = torch.optim.Adam(trained.values(), lr=spec.lr, fused=device.type in ("cpu", "cuda"))
    keeper = (
        None
        if checkpoint is None
        else _Keeper(checkpoint, module, optimiser, trained, _fingerprint(spec, labels, trained))
    )
    log = Log({name: [] for name in record})
    if keeper is not None:
        keeper.restore(log)
    targets = torch.from_numpy(np.asarray(labels, np.int64))
    n_steps = -(-len(labels) // spec.batch_size)
    began = time.monotonic() - log.seconds

    def finish_epoch(epoch: int, loss: float) -> None:
        module.eval()
        log.loss.append(loss)
        for name, rows in record.items():
            log.predictions[name].append(predict(module, rows, 4 * spec.batch_size, autocast=spec.autocast))
        measured = each_epoch(epoch, module) if each_epoch is not None else None
        if measured is not None:
            log.measured[epoch] = measured
        log.seconds = time.monotonic() - began

    def samples() -> Iterator[np.ndarray]:
        for epoch in range(log.n_epochs, spec.epochs):
            order = np.random.default_rng([spec.seed, epoch, 17]).permutation(len(labels))
            dropout = np.random.SeedSequence([spec.seed, epoch])  # the same after a resume
            torch.manual_seed(int(dropout.generate_state(1)[0]))
            for step, rows in enumerate(_chunks(order, spec.batch_size)):
                if on_step is not None:
                    on_step(epoch * n_steps + step, spec.epochs * n_steps)
                yield rows

    def objective(module: nn.Module, rows: np.ndarray) -> torch.Tensor:
        with _autocast(spec.autocast, device):
            logits = module(**inputs.batch(rows, device)).logits
        return nn.functional.cross_entropy(logits.float(), targets[rows].to(device))

    losses: list[float] = []

    def after(step: Step) -> bool:
        losses.append(step.loss)
        if step.number % n_steps:
            return False
        sizes = [len(rows) for rows in _chunks(np.arange(len(labels)), spec.batch_size)]
        finish_epoch(step.number // n_steps, float(np.dot(losses, sizes) / len(labels)))
        losses.clear()
        if keeper is not None:
            keeper.keep(log)
        return _is_enough(log, labels, spec)

    if not log.loss:
        finish_epoch(0, float("nan"))
    if log.n_epochs < spec.epochs and not _is_enough(log, labels, spec):
        steps = TrainSpec(
            steps=spec.epochs * n_steps, lr=spec.lr, clip=spec.clip, warmup_steps=0, decay_share=0.0, seed=spec.seed
        )
        done = log.n_epochs * n_steps
        train(module, objective, [samples()], steps, every=after, optimiser=optimiser, start=done)
    if keeper is not None:
        keeper.remove()
    return log


def first_fit(predictions: Sequence[np.ndarray], labels: np.ndarray, stop_at: float) -> int | None:
    """The first epoch (0 is before training) after which the training accuracy reached `stop_at`; None if it never
    did.
    """
    return next((epoch for epoch, predicted in enumerate(predictions) if np.mean(predicted == labels) >= stop_at), None)


def _is_enough(log: Log, labels: np.ndarray, spec: ClassifierSpec) -> bool:
    fitted = None if spec.stop_at is None else first_fit(log.predictions["train"], labels, spec.stop_at)
    return fitted is not None and log.n_epochs >= np.ceil(fitted * (1 + spec.overtrain))


def predict(module: nn.Module, inputs: Inputs, batch_size: int, *, autocast: str = "none") -> np.ndarray:
    """[sample] most likely class of each input."""
    device = next(module.parameters()).device
    with torch.no_grad(), _autocast(autocast, device):
        found = [
            module(**inputs.batch(rows, device)).logits.argmax(-1).cpu().numpy()
            for rows in _chunks(np.arange(len(inputs)), batch_size)
        ]
    return np.concatenate(found).astype(np.int16)


def _chunks(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _autocast(kind: str, device: torch.device) -> Any:
    if kind == "none" or (kind == "auto" and device.type != "cuda"):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)  # weights stay float32, so no loss scaling is needed


# ---- going on after a kill ----


def _fingerprint(spec: ClassifierSpec, labels: np.ndarray, trained: Mapping[str, nn.Parameter]) -> str:
    """Of everything that makes two runs the same one, but for the weights they start from."""
    told = spec.to_json() + ",".join(trained) + str([tuple(p.shape) for p in trained.values()])
    return hashlib.sha256(told.encode() + np.asarray(labels, np.int64).tobytes()).hexdigest()[:16]


@dataclass(eq=False)
class _Keeper:
    """Weights, optimiser state and log of a run, in a folder that is replaced as a whole."""

    folder: Path
    module: nn.Module
    optimiser: torch.optim.Adam
    trained: Mapping[str, nn.Parameter]
    fingerprint: str

    def keep(self, log: Log) -> None:
        from safetensors.torch import save_file

        tensors = {f"weight/{name}": value for name, value in self.module.state_dict().items()}
        for name, parameter in self.trained.items():
            tensors |= {f"adam/{key}/{name}": value for key, value in self.optimiser.state[parameter].items()}
        tensors |= {f"predicted/{name}": torch.from_numpy(np.stack(rows)) for name, rows in log.predictions.items()}
        tensors |= {
            f"measured/{epoch}": torch.from_numpy(np.ascontiguousarray(value)) for epoch, value in log.measured.items()
        }
        with files.new_folder(self.folder, ("log.json", "state.safetensors")) as new:
            save_file(
                {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()},
                new / "state.safetensors",
            )
            files.write_text(
                new / "log.json",
                json.dumps({"fingerprint": self.fingerprint, "loss": log.loss, "seconds": log.seconds}),
            )

    def restore(self, log: Log) -> None:
        from safetensors.torch import load_file

        if not (self.folder / "log.json").is_file():
            return
        about = json.loads((self.folder / "log.json").read_text(encoding="utf-8"))
        if about["fingerprint"] != self.fingerprint:
            raise BadSpec(
                f"checkpoint folder {self.folder.name!r} holds a run of other settings or labels; give another folder"
                " or remove it"
            )
        tensors = load_file(self.folder / "state.safetensors")
        self.module.load_state_dict(
            {name.removeprefix("weight/"): value for name, value in tensors.items() if name.startswith("weight/")}
        )
        for name, parameter in self.trained.items():
            state = {key: tensors[f"adam/{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            self.optimiser.state[parameter] = {
                key: value if key == "step" and parameter.device.type == "cpu" else value.to(parameter.device)
                for key, value in state.items()
            }
        log.predictions = {name: list(tensors[f"predicted/{name}"].numpy()) for name in log.predictions}
        log.measured = {
            int(name.split("/")[1]): value.numpy() for name, value in tensors.items() if name.startswith("measured/")
        }
        log.loss, log.seconds = about["loss"], about["seconds"]

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
