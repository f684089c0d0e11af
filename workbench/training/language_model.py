"""Next-token training of a small Hugging Face causal model, from scratch or on.

Cost: forward and backward of batch x length tokens a step (2 cores: ~15,000 tokens/s at 1.2 M parameters).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from workbench.core.progress import SILENT, Progress
from workbench.core.spec import param

from .loop import TrainSpec, train


@dataclass(frozen=True)
class PretrainSpec(TrainSpec):
    """Settings of `pretrain`. `batch_size` counts sequences; the seed draws them, and a recipe's initial weights."""

    steps: int = param(3000, "optimiser steps", ge=1)
    length: int = param(64, "tokens a sequence, BOS included", ge=2)
    lr: float = param(3e-3, "peak learning rate of AdamW", ge=0)
    weight_decay: float = param(0.1, "AdamW decay, on matrices only", ge=0)
    warmup_steps: int = param(100, "steps of linear warm-up", ge=0)


def next_token_loss(module: torch.nn.Module, tokens: torch.Tensor, skip: int = 1) -> torch.Tensor:
    """Mean next-token loss in nats of `tokens` [batch, pos], predictions at the first `skip` positions left out."""
    logits = module(tokens).logits[:, skip:-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, skip + 1 :].flatten())


def pretrain(
    module: torch.nn.Module,
    sample: Callable[[int, int, np.random.Generator], np.ndarray],
    spec: PretrainSpec,
    *,
    skip: int = 1,
    log_every: int = 100,
    progress: Progress = SILENT,
) -> pd.DataFrame:
    """Train `module` in place on next-token prediction.

    Args:
        module: Hugging Face causal language model, in any device and float dtype.
        sample: (n, length, generator) -> [n, length] token ids.
        spec: steps, rates, seed.
        skip: predictions at the first `skip` positions do not count (what follows BOS is chance).

    Returns:
        The log of `loop.train`, losses in nats.

    Raises:
        Cancelled: from `progress`; the module then has the weights of the last finished step.
    """
    device, rng = next(module.parameters()).device, np.random.default_rng(spec.seed)

    def batches() -> Iterator[torch.Tensor]:
        while True:
            yield torch.from_numpy(sample(spec.batch_size, spec.length, rng)).to(device)

    def objective(module: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        return next_token_loss(module, tokens, skip)

    return train(module, objective, [batches()], spec, log_every=log_every, progress=progress)
