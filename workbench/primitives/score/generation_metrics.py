"""What a continuation looks like without reading it: empty, stuck on one token, or going round in a loop.

Pure functions of token ids and logits. Steering with too large a coefficient breaks a model long before it persuades
it, so every sweep carries these beside its target. Cost: one pass over the ids.
"""

from collections.abc import Sequence
from itertools import groupby

import torch

from workbench.core.errors import WorkbenchError


def longest_run_share(ids: Sequence[int]) -> float:
    """Length of the longest run of one token over the number of tokens, in [0, 1]; 0 without tokens."""
    return max((len(list(run)) for _, run in groupby(ids)), default=0) / max(len(ids), 1)


def repeated_ngram_share(ids: Sequence[int], n: int = 2) -> float:
    """1 - distinct n-grams / n-grams, in [0, 1): 0 if every n-gram is new, towards 1 in a loop; 0 below n tokens.

    Raises:
        WorkbenchError: if n is below 1.

    Source: Welleck et al., "Neural Text Generation with Unlikelihood Training" (arXiv 1908.04319), seq-rep-n; one minus
        the distinct-n of Li et al. (arXiv 1510.03055) up to the latter's division by tokens instead of n-grams.
    """
    if n < 1:
        raise WorkbenchError(f"an n-gram has at least one token, got n={n}")
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def degeneration(
    ids: Sequence[int], *, n: int = 2, max_run_share: float = 0.5, max_repeated_share: float = 0.5, min_tokens: int = 8
) -> dict[str, float | bool | int]:
    """Whether a continuation is broken, and by which measure.

    Args:
        ids: [token] the new tokens only, without the one that stopped generation.
        n: length of the n-grams, in tokens.
        max_run_share: a longer run of one token is degenerate, in share of tokens.
        max_repeated_share: a larger share of repeated n-grams is degenerate.
        min_tokens: shorter continuations are only checked for being empty: "yes yes" is an answer, not a loop.

    Returns:
        n_tokens, is_empty, longest_run_share, repeated_ngram_share, is_degenerate. A loop of k tokens has a repeated
        share of 1 - k / (n_tokens - n + 1), so with the defaults a loop is caught once it has gone round about twice.

    Raises:
        WorkbenchError: if n is below 1.
    """
    ids = [int(i) for i in ids]
    run, repeated = longest_run_share(ids), repeated_ngram_share(ids, n)
    broken = len(ids) >= min_tokens and (run > max_run_share or repeated > max_repeated_share)
    return {
        "n_tokens": len(ids),
        "is_empty": not ids,
        "longest_run_share": run,
        "repeated_ngram_share": repeated,
        "is_degenerate": not ids or broken,
    }


def continuation_loss(logits: torch.Tensor, tokens: torch.Tensor, n_prompt: Sequence[int]) -> torch.Tensor:
    """[row] mean next-token loss over the tokens after each row's prompt, in nats; nan where there are none.

    Args:
        logits: [row, pos, d_vocab]. tokens: [row, pos]. n_prompt: [row] tokens that are prompt, at least 1.
    """
    targets = tokens.to(logits.device)[:, 1:]
    loss = -logits[:, :-1].float().log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    counted = torch.arange(1, tokens.shape[1], device=loss.device) >= torch.as_tensor(
        list(n_prompt), device=loss.device
    ).unsqueeze(1)
    return (loss * counted).sum(1) / counted.sum(1)
