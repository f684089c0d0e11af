"""Short supervised fine-tunes of a Hugging Face causal model on (prompt, answer) pairs, with the loss on answers alone.

Batches are drawn without replacement, epoch after epoch, and padded on the right. Works on any module
whose trainable parameters require a gradient: a whole model, a PEFT model (only its adapter does), or one with parts
frozen exactly (`freezing.Frozen`).
Cost: forward and backward of batch x longest pair a step (one core, 1 M parameters: about 8 steps of 32 pairs a
second).
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from workbench.core.errors import BadData
from workbench.core.progress import SILENT, Progress
from workbench.models.chat import Pair
from workbench.models.inputs import pad

from .freezing import Frozen
from .loop import TrainSpec, draws, train

IGNORED = -100  # label of a position that does not count, as torch's cross entropy has it


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
    spec: TrainSpec,
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
    return train(
        module,
        answer_loss,
        [draws(pairs, spec.batch_size, spec.seed)],
        spec,
        frozen=frozen,
        log_every=log_every,
        progress=progress,
        doing="fine-tuning",
    )
