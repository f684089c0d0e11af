"""The one training loop: what is minimised and where batches come from are the caller's, the rest is the same for all.

AdamW with decay on matrices only; linear warm-up, constant rate, linear decay; gradients clipped by their norm; entries
frozen exactly; a log. Next-token training, fine-tuning on answers, classifiers and consistency are calls of it.
Cost: what `objective` and its backward cost, a step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from workbench.core.errors import BadData
from workbench.core.progress import SILENT, Progress
from workbench.core.spec import Spec, param

from .freezing import Frozen

Row = TypeVar("Row")


@dataclass(frozen=True)
class TrainSpec(Spec):
    """Settings of `train`. The defaults suit a short fine-tune."""

    steps: int = param(100, "optimiser steps", ge=1)
    batch_size: int = param(32, "examples a step", ge=1)
    lr: float = param(1e-3, "peak learning rate of AdamW", ge=0)
    weight_decay: float = param(0.0, "AdamW decay, on matrices only", ge=0)
    beta2: float = param(0.98, "AdamW's second moment", ge=0, le=1)
    warmup_steps: int = param(10, "steps of linear warm-up", ge=0)
    decay_share: float = param(0.3, "share of the steps at the end over which the rate falls to 2 %", ge=0, le=1)
    clip: float = param(1.0, "gradient norm above which gradients are scaled down", ge=0)
    seed: int = param(0, "draws the order of the examples, and dropout where there is any", ge=0)


@dataclass(frozen=True)
class Step:
    """A finished step. number: how many are done, this one included. loss: what was minimised, before the update."""

    number: int
    loss: float


Loss = torch.Tensor | tuple[torch.Tensor, Mapping[str, torch.Tensor]]


def train(
    module: torch.nn.Module,
    objective: Callable[..., Loss],
    streams: Sequence[Iterator[Any]],
    spec: TrainSpec,
    *,
    frozen: Frozen | None = None,
    every: Callable[[Step], bool | None] | None = None,
    optimiser: torch.optim.Optimizer | None = None,
    start: int = 0,
    log_every: int = 10,
    progress: Progress = SILENT,
    doing: str = "training",
) -> pd.DataFrame:
    """Train what requires a gradient in `module`, in place.

    >>> train(module, answer_loss, [draws(pairs, 32, seed=0)], TrainSpec(steps=50))
    >>> train(module, lambda m, forget, retain: answer_loss(m, retain) - answer_loss(m, forget), [f, r], spec)

    Args:
        module: any module; in training mode at every step, in eval mode after.
        objective: (module, one batch of each stream) -> scalar to minimise, or that and {name: scalar} to log.
        streams: endless iterators of batches; each gives one a step. See `draws`.
        spec: steps, rates, seed.
        frozen: entries that must not move; restored after every step and compared bit by bit at the end.
        every: called after every step; may raise Cancelled, and ends the training by returning True.
        optimiser: one with a state of its own, for a run that goes on; AdamW by `adamw` if not given.
        start: steps done before, by an earlier call with this optimiser.
        log_every: steps between rows of the log. doing: what `progress` says.

    Returns:
        One row per logged step: step, loss and what the objective logs (means over the steps since the last row), lr.

    Raises:
        BadData: if nothing requires a gradient. Cancelled: from `progress`; the module then has the weights of the last
            finished step. MovedWeights: from `frozen`.
    """
    if not any(p.requires_grad for p in module.parameters()):
        raise BadData("no parameter of this module requires a gradient, so nothing can be trained")
    optimiser = optimiser or adamw(module, spec)
    factor, rows, seen = schedule(spec.steps, spec.warmup_steps, spec.decay_share), [], []
    try:
        with torch.random.fork_rng():  # dropout draws from torch's global state, which is not ours to move
            torch.manual_seed(spec.seed)
            for step in range(start, spec.steps):
                module.train()
                batches = [next(stream) for stream in streams]
                found = objective(module, *batches)
                loss, named = found if isinstance(found, tuple) else (found, {})
                optimiser.zero_grad()
                loss.backward()
                if frozen is not None:
                    frozen.clear_gradients()  # what cannot move must not count in the norm that is clipped either
                torch.nn.utils.clip_grad_norm_(module.parameters(), spec.clip)
                rate = spec.lr * factor(step)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                optimiser.step()
                if frozen is not None:
                    frozen.restore()
                seen.append({"loss": loss.item()} | {name: value.item() for name, value in named.items()})
                if (step + 1) % log_every == 0 or step + 1 == spec.steps:
                    rows.append({"step": step + 1, **pd.DataFrame(seen).mean().to_dict(), "lr": rate})
                    seen.clear()
                if every is not None and every(Step(step + 1, loss.item())):
                    break
                progress.update(step + 1, spec.steps, doing)
    finally:
        module.eval()
    if frozen is not None:
        frozen.check()
    return pd.DataFrame(rows)


def draws(items: Sequence[Row], batch_size: int, seed: int) -> Iterator[list[Row]]:
    """Batches without end: every item once, then all again in a new order; a batch may hold the end of one order and
    the start of the next.

    Raises:
        BadData: if there are no items.
    """
    if not len(items):
        raise BadData("training needs at least one example, and none was given")
    order = _order(len(items), seed)
    return iter(lambda: [items[next(order)] for _ in range(batch_size)], None)


def _order(n: int, seed: int) -> Iterator[int]:
    rng = np.random.default_rng(seed)
    while True:
        yield from rng.permutation(n).tolist()


def adamw(module: torch.nn.Module, spec: TrainSpec) -> torch.optim.AdamW:
    """AdamW on what requires a gradient."""
    return torch.optim.AdamW(parameter_groups(module, spec.weight_decay), lr=spec.lr, betas=(0.9, spec.beta2))


def parameter_groups(module: torch.nn.Module, weight_decay: float) -> Iterator[dict[str, Any]]:
    """Groups for AdamW of what requires a gradient: decay on matrices, none on gains and biases."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    yield {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay}
    yield {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}


def schedule(steps: int, warmup_steps: int, decay_share: float) -> Callable[[int], float]:
    """Factor on the learning rate by step: linear warm-up, constant, linear decay to 2 % over the last share of the
    steps. The first step is not wasted on a rate of zero, as it is in transformers' schedules.
    """
    fall = max(1.0, decay_share * steps)

    def factor(step: int) -> float:
        up = min(1.0, (step + 1) / max(1, warmup_steps))
        return up * max(0.02, min(1.0, (steps - step) / fall))

    return factor
