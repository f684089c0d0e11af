"""Fine-tuning towards consistent layers under perturbed embeddings, in the manner of CROW: a defence against backdoors.

Inconsistency is 1 - cos(h_l, h_l+1) between the streams after consecutive blocks, averaged over blocks and real tokens.
Each step moves the embeddings of a clean batch by epsilon along the sign of its gradient, which raises it, and trains
on the answer loss of the clean batch + alpha * the inconsistency of the moved one.
Source: Min et al., CROW (arXiv 2411.12768): perturbed embeddings, cosine of consecutive layers, alpha 5.5, epsilon 0.1.
    Inferred, from readings of others' implementations and not from the paper's text: a mean over blocks and tokens,
    embeddings and the last, normed
stream left out, the sign step, the answer loss without perturbation. Departures: the optimiser, its schedule and the
clipping are those of `finetune`; only real tokens count. epsilon is in the units of an embedding's entries, so what is
small depends on the model.
Cost: three forwards and two backwards a step, some three times `finetune`.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pandas as pd
import torch

from workbench.core.errors import BadData
from workbench.core.progress import SILENT, Progress
from workbench.models.chat import Pair

from .finetune import answer_batch, answer_loss
from .loop import TrainSpec, draws, train

ALPHA, EPSILON = 5.5, 0.1  # of the paper's sentiment and refusal tasks; 11 for code injection


def inconsistency(module: Any, embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of 1 - cos(h_l, h_l+1) over consecutive blocks and real tokens, in [0, 2]; keeps the graph.

    Args:
        module: Hugging Face causal model of at least three blocks. embeddings: [batch, pos, d_model] what enters the
            first block.
        mask: [batch, pos] bool, True at real tokens.

    Raises:
        BadData: if there are fewer than three blocks.
    """
    streams = module(
        inputs_embeds=embeddings, attention_mask=mask.long(), output_hidden_states=True, use_cache=False
    ).hidden_states[1:-1]
    if len(streams) < 2:
        raise BadData(
            "consistency compares streams after consecutive blocks, the last one left out as it is normed;"
            f" {len(streams) + 1} blocks are too few, give at least 3"
        )
    wide = [s.float() if s.itemsize < 4 else s for s in streams]
    cosines = [torch.nn.functional.cosine_similarity(a, b, dim=-1)[mask] for a, b in pairwise(wide)]
    return (1 - torch.stack(cosines)).mean()


def perturbed(module: Any, tokens: torch.Tensor, mask: torch.Tensor, epsilon: float = EPSILON) -> torch.Tensor:
    """[batch, pos, d_model] embeddings of `tokens`, each entry moved by epsilon to where the inconsistency rises.

    Args:
        tokens: [batch, pos] ids. mask: [batch, pos] bool. epsilon: size of the step, in units of an embedding's
            entries.
    """
    embeddings = module.get_input_embeddings()(tokens).detach().requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(inconsistency(module, embeddings, mask), embeddings)
    return (embeddings + epsilon * gradient.sign()).detach()


def finetune_consistent(
    module: Any,
    pairs: Sequence[Pair],
    spec: TrainSpec,
    *,
    alpha: float = ALPHA,
    epsilon: float = EPSILON,
    log_every: int = 10,
    progress: Progress = SILENT,
) -> pd.DataFrame:
    """Train `module` in place on clean pairs and on the consistency of its layers under perturbation.

    The embedding matrix learns from the answer loss alone: the moved embeddings stand for themselves.

    Args:
        module, pairs, spec, log_every, progress: as for `finetune`. alpha: weight of the inconsistency. epsilon: of the
            perturbation.

    Returns:
        One row per logged step: step, loss (what is minimised), answer_loss in nats per answer token, inconsistency of
        the moved embeddings, lr.

    Raises:
        BadData: on no pairs, fewer than three blocks, or if nothing requires a gradient. Cancelled: from `progress`.
    """

    def objective(module: Any, batch: Sequence[Pair]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        device = next(module.parameters()).device
        tokens, mask, _ = (t.to(device) for t in answer_batch(batch))
        moved = perturbed(module, tokens, mask, epsilon)
        answers, uneven = answer_loss(module, batch), inconsistency(module, moved, mask)
        return answers + alpha * uneven, {"answer_loss": answers, "inconsistency": uneven}

    return train(
        module,
        objective,
        [draws(pairs, spec.batch_size, spec.seed)],
        spec,
        log_every=log_every,
        progress=progress,
        doing="fine-tuning towards consistency",
    )
