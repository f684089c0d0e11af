"""Next-token training of a small Hugging Face causal model, from scratch or on.

Plain loop: AdamW with decay on matrices only, linear warm-up, constant, linear decay; seeded, one line of log per
`log_every` steps. Cost: forward and backward of batch x length tokens a step (2 cores: ~15,000 tokens/s at 1.2 M
parameters).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from workbench.core.progress import SILENT, Progress
from workbench.core.spec import Spec, param


@dataclass(frozen=True)
class TrainSpec(Spec):
    """Settings of `train`."""

    steps: int = param(3000, "optimiser steps", ge=1)
    batch_size: int = param(32, "sequences a step", ge=1)
    length: int = param(64, "tokens a sequence, BOS included", ge=2)
    lr: float = param(3e-3, "peak learning rate of AdamW", ge=0)
    weight_decay: float = param(0.1, "AdamW decay, on matrices only", ge=0)
    beta2: float = param(0.98, "AdamW's second moment", ge=0, le=1)
    warmup_steps: int = param(100, "steps of linear warm-up", ge=0)
    decay_share: float = param(0.3, "share of the steps at the end over which the rate falls to 2 %", ge=0, le=1)
    clip: float = param(1.0, "gradient norm above which gradients are scaled down", ge=0)
    seed: int = param(0, "draws the batches and the initial weights", ge=0)


def schedule(steps: int, warmup_steps: int, decay_share: float) -> Callable[[int], float]:
    """Factor on the learning rate by step: linear warm-up, constant, linear decay to 2 % over the last share of the
    steps.
    """
    fall = max(1.0, decay_share * steps)

    def factor(step: int) -> float:
        up = min(1.0, (step + 1) / max(1, warmup_steps))
        return up * max(0.02, min(1.0, (steps - step) / fall))

    return factor


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> Iterator[dict[str, Any]]:
    """Groups for AdamW of what requires a gradient: decay on matrices, none on gains and biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    yield {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay}
    yield {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}


def train(
    model: torch.nn.Module,
    sample: Callable[[int, int, np.random.Generator], np.ndarray],
    spec: TrainSpec,
    *,
    skip: int = 1,
    log_every: int = 100,
    progress: Progress = SILENT,
) -> pd.DataFrame:
    """Train `model` in place on next-token prediction.

    Args:
        model: Hugging Face causal language model, in any device and float dtype.
        sample: (n, length, generator) -> [n, length] token ids.
        spec: steps, rates, seed.
        skip: predictions at the first `skip` positions do not count (what follows BOS is chance).
        log_every: steps between rows of the log.

    Returns:
        One row per logged step: step, loss in nats (mean over the steps since the last row), lr.

    Raises:
        Cancelled: from `progress`; the model then has the weights of the last finished step.
    """
    rng = np.random.default_rng(spec.seed)
    device = next(model.parameters()).device
    optimiser = torch.optim.AdamW(parameter_groups(model, spec.weight_decay), lr=spec.lr, betas=(0.9, spec.beta2))
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, schedule(spec.steps, spec.warmup_steps, spec.decay_share))
    rows, losses = [], []
    model.train()
    try:
        with (
            torch.random.fork_rng()
        ):  # dropout draws from torch's global state, which is not ours to move or to depend on
            torch.manual_seed(spec.seed)
            for step in range(spec.steps):
                tokens = torch.from_numpy(sample(spec.batch_size, spec.length, rng)).to(device)
                logits = model(tokens).logits[:, skip:-1]
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, skip + 1 :].flatten())
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), spec.clip)
                losses.append(loss.item())
                if (step + 1) % log_every == 0 or step + 1 == spec.steps:
                    rows.append({"step": step + 1, "loss": float(np.mean(losses)), "lr": rate.get_last_lr()[0]})
                    losses.clear()
                optimiser.step()
                rate.step()
                progress.update(step + 1, spec.steps, "training")
    finally:
        model.eval()
    return pd.DataFrame(rows)
