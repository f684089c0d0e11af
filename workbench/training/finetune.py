"""Short supervised fine-tunes of a Hugging Face causal model on (prompt, answer) pairs, with the loss on answers alone.

AdamW with decay on matrices only and the schedule of `language_model`; batches are drawn without replacement, epoch
after epoch, and padded on the right. Works on any module whose trainable parameters require a gradient: a whole model,
a PEFT model (only its adapter does), or one with parts frozen exactly (`freezing.Frozen`).
Cost: forward and backward of batch x longest pair a step (one core, 1 M parameters: about 8 steps of 32 pairs a
second).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from workbench.core.errors import BadData
from workbench.core.progress import SILENT, Progress
from workbench.core.spec import Spec, param
from workbench.models.chat import Pair
from workbench.models.inputs import pad

from .freezing import Frozen
from .language_model import parameter_groups, schedule

IGNORED = -100  # label of a position that does not count, as torch's cross entropy has it


@dataclass(frozen=True)
class FinetuneSpec(Spec):
    """Settings of `finetune`."""

    steps: int = param(100, "optimiser steps", ge=1)
    batch_size: int = param(32, "pairs a step", ge=1)
    lr: float = param(1e-3, "peak learning rate of AdamW", ge=0)
    weight_decay: float = param(0.0, "AdamW decay, on matrices only", ge=0)
    beta2: float = param(0.98, "AdamW's second moment", ge=0, le=1)
    warmup_steps: int = param(10, "steps of linear warm-up", ge=0)
    decay_share: float = param(0.3, "share of the steps at the end over which the rate falls to 2 %", ge=0, le=1)
    clip: float = param(1.0, "gradient norm above which gradients are scaled down", ge=0)
    seed: int = param(0, "draws the order of the pairs, and dropout where there is any", ge=0)


def answer_batch(pairs: Sequence[Pair], pad_id: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pairs as one right-padded batch.

    Returns:
        tokens [batch, pos], mask [batch, pos] (True at real tokens), labels [batch, pos]: the token itself where it
        belongs to an answer, -100 elsewhere; not shifted.

    Raises:
        BadData: on a pair with an empty prompt or an empty answer.
    """
    for prompt, answer in pairs:
        if not prompt or not answer:
            raise BadData(
                f"a pair needs a prompt and an answer of at least one token each, got {len(prompt)} and {len(answer)}"
            )
    batch = pad([[*prompt, *answer] for prompt, answer in pairs], pad_id)
    labels = batch.tokens.masked_fill(~batch.mask, IGNORED)
    for row, (prompt, _) in enumerate(pairs):
        labels[row, : len(prompt)] = IGNORED
    return batch.tokens, batch.mask, labels


def answer_loss(module: Any, pairs: Sequence[Pair]) -> torch.Tensor:
    """Mean next-token loss over all answer tokens of the pairs, in nats; keeps the graph if gradients are on."""
    device = next(module.parameters()).device
    tokens, mask, labels = (t.to(device) for t in answer_batch(pairs))
    logits = module(input_ids=tokens, attention_mask=mask.long()).logits[:, :-1]
    counted = labels[:, 1:] != IGNORED  # the head's output is cut before the softmax: most positions are prompt
    return torch.nn.functional.cross_entropy(logits[counted].float(), labels[:, 1:][counted])


def finetune(
    module: Any,
    pairs: Sequence[Pair],
    spec: FinetuneSpec,
    *,
    frozen: Frozen | None = None,
    log_every: int = 10,
    progress: Progress = SILENT,
) -> pd.DataFrame:
    """Train `module` in place to give each prompt its answer.

    Args:
        module: Hugging Face causal language model or PEFT model, not wrapped by `load` (`models.loading.read_module`
            reads one).
        pairs: (prompt ids, answer ids), as `models.chat.chat_pairs` makes them. spec: steps, rates, seed.
        frozen: parts of parameters that must not move; restored after every step and checked bit by bit at the end.
        log_every: steps between rows of the log.

    Returns:
        One row per logged step: step, loss in nats per answer token (mean over the steps since the last row), lr.

    Raises:
        BadData: on no pairs, an empty answer, or if nothing requires a gradient. Cancelled: from `progress`; the module
            then has the weights of the last finished step.
    """
    if not pairs or not any(p.requires_grad for p in module.parameters()):
        raise BadData(
            "fine-tuning needs at least one pair"
            if not pairs
            else "no parameter of this module requires a gradient, so nothing can be trained"
        )
    optimiser = torch.optim.AdamW(parameter_groups(module, spec.weight_decay), lr=spec.lr, betas=(0.9, spec.beta2))
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, schedule(spec.steps, spec.warmup_steps, spec.decay_share))
    order, rows, losses = _order(len(pairs), spec), [], []
    module.train()
    try:
        with (
            torch.random.fork_rng()
        ):  # dropout draws from torch's global state, which is not ours to move or to depend on
            torch.manual_seed(spec.seed)
            for step in range(spec.steps):
                loss = answer_loss(module, [pairs[next(order)] for _ in range(spec.batch_size)])
                optimiser.zero_grad()
                loss.backward()
                if frozen is not None:
                    frozen.clear_gradients()  # what cannot move must not count in the norm that is clipped either
                torch.nn.utils.clip_grad_norm_(module.parameters(), spec.clip)
                losses.append(loss.item())
                if (step + 1) % log_every == 0 or step + 1 == spec.steps:
                    rows.append({"step": step + 1, "loss": float(np.mean(losses)), "lr": rate.get_last_lr()[0]})
                    losses.clear()
                optimiser.step()
                if frozen is not None:
                    frozen.restore()
                rate.step()
                progress.update(step + 1, spec.steps, "fine-tuning")
    finally:
        module.eval()
    if frozen is not None:
        frozen.check()
    return pd.DataFrame(rows)


def _order(n: int, spec: FinetuneSpec) -> Iterator[int]:
    """Indices of pairs without end: a new permutation an epoch."""
    rng = np.random.default_rng(spec.seed)
    while True:
        yield from rng.permutation(n).tolist()
