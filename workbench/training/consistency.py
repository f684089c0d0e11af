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

import numpy as np
import pandas as pd
import torch

from workbench.core.errors import BadData
from workbench.core.progress import SILENT, Progress
from workbench.models.chat import Pair

from .finetune import FinetuneSpec, _order, answer_batch, answer_loss
from .language_model import parameter_groups, schedule

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
    spec: FinetuneSpec,
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
        One row per logged step: step, loss in nats per answer token, inconsistency (of the moved embeddings), lr.

    Raises:
        BadData: on no pairs, fewer than three blocks, or if nothing requires a gradient. Cancelled: from `progress`.
    """
    if not pairs or not any(p.requires_grad for p in module.parameters()):
        raise BadData(
            "fine-tuning needs at least one pair"
            if not pairs
            else "no parameter of this module requires a gradient, so nothing can be trained"
        )
    optimiser = torch.optim.AdamW(parameter_groups(module, spec.weight_decay), lr=spec.lr, betas=(0.9, spec.beta2))
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, schedule(spec.steps, spec.warmup_steps, spec.decay_share))
    order, device, rows, seen = _order(len(pairs), spec), next(module.parameters()).device, [], []
    module.train()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(spec.seed)
            for step in range(spec.steps):
                batch = [pairs[next(order)] for _ in range(spec.batch_size)]
                tokens, mask, _ = (t.to(device) for t in answer_batch(batch))
                moved = perturbed(module, tokens, mask, epsilon)
                loss, uneven = answer_loss(module, batch), inconsistency(module, moved, mask)
                optimiser.zero_grad()
                (loss + alpha * uneven).backward()
                torch.nn.utils.clip_grad_norm_(module.parameters(), spec.clip)
                seen.append((loss.item(), uneven.item()))
                if (step + 1) % log_every == 0 or step + 1 == spec.steps:
                    means = np.mean(seen, 0)
                    rows.append(
                        {
                            "step": step + 1,
                            "loss": float(means[0]),
                            "inconsistency": float(means[1]),
                            "lr": rate.get_last_lr()[0],
                        }
                    )
                    seen.clear()
                optimiser.step()
                rate.step()
                progress.update(step + 1, spec.steps, "fine-tuning towards consistency")
    finally:
        module.eval()
    return pd.DataFrame(rows)
