"""Scores of attention heads, as pure functions of (pattern, value, output, mask); per input, per head.

Source: Sandoval-Segura et al., "Identifying and Evaluating Inactive Heads in Pretrained LLMs" (arXiv 2504.03889): 13
scores and two appendix variants. All are built from six quantities per head; "(LN)" divides by the mean over the heads
of the same layer and input (layer-NORMALISED, unrelated to LayerNorm), "(HN)" by the head's own average output norm.

Shapes throughout, for one layer: pattern [batch, head, query_pos, key_pos], value [batch, pos, kv_head, d_head],
output [batch, pos, head, d_head] (before the output projection), mask [batch, pos] True at real tokens (all if None).
Cost: one pass over the pattern; nothing larger than the pattern is allocated.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from workbench.core.errors import UnknownName

Mask = torch.Tensor | None


def _real(mask: Mask, batch: int, pos: int, device: torch.device) -> torch.Tensor:
    """[batch, pos] True at real tokens."""
    return torch.ones(batch, pos, dtype=torch.bool, device=device) if mask is None else mask.to(device).bool()


def _mean_over_pos(per_pos: torch.Tensor, mask: Mask) -> torch.Tensor:
    """[batch, pos, head] -> [batch, head], over real positions only."""
    real = _real(mask, per_pos.shape[0], per_pos.shape[1], per_pos.device).unsqueeze(-1)
    return per_pos.masked_fill(~real, 0).sum(1) / real.sum(1)


def _first(mask: Mask, batch: int, pos: int, device: torch.device) -> torch.Tensor:
    """[batch] index of the first real token (0 unless padded on the left)."""
    return _real(mask, batch, pos, device).int().argmax(1)


def _last(mask: Mask, batch: int, pos: int, device: torch.device) -> torch.Tensor:
    """[batch] index of the last real token."""
    return pos - 1 - _real(mask, batch, pos, device).flip(1).int().argmax(1)


def per_head(value: torch.Tensor, n_heads: int) -> torch.Tensor:
    """[batch, pos, kv_head, d_head] -> [batch, pos, head, d_head]: each key/value head repeated for its query heads."""
    return value if value.shape[2] == n_heads else value.repeat_interleave(n_heads // value.shape[2], dim=2)


# ---- the six quantities, each [batch, head] in float32 ----


def awft(pattern: torch.Tensor, mask: Mask = None) -> torch.Tensor:
    """Average weight on the first token: mean over queries of A[t, 0], the first query's own 1 included. In [0, 1]."""
    batch, _, pos, _ = pattern.shape
    first = _first(mask, batch, pos, pattern.device)
    to_first = pattern[torch.arange(batch, device=pattern.device), :, :, first].float()
    return _mean_over_pos(to_first.movedim(1, 2), mask)


def aeqd(pattern: torch.Tensor, mask: Mask = None) -> torch.Tensor:
    """Average entropy of the query distributions, in nats; 0 ln 0 = 0."""
    return _mean_over_pos(torch.special.entr(pattern.float()).sum(-1).movedim(1, 2), mask)


def ftvvn(value: torch.Tensor, n_heads: int, mask: Mask = None) -> torch.Tensor:
    """Euclidean norm of the first token's value vector, repeated to all query heads."""
    batch, pos = value.shape[:2]
    first = value[torch.arange(batch, device=value.device), _first(mask, batch, pos, value.device)]
    return per_head(first.float().unsqueeze(1), n_heads).squeeze(1).norm(dim=-1)


def avvn(value: torch.Tensor, n_heads: int, mask: Mask = None) -> torch.Tensor:
    """Average norm of the value vectors, repeated to all query heads."""
    return _mean_over_pos(per_head(value.float().norm(dim=-1, keepdim=True), n_heads).squeeze(-1), mask)


def ahon(output: torch.Tensor, mask: Mask = None) -> torch.Tensor:
    """Average norm of the head's output before the output projection."""
    return _mean_over_pos(output.float().norm(dim=-1), mask)


def lthon(output: torch.Tensor, mask: Mask = None) -> torch.Tensor:
    """Norm of the head's output at the last real token."""
    batch, pos = output.shape[:2]
    last = _last(mask, batch, pos, output.device)
    return output[torch.arange(batch, device=output.device), last].float().norm(dim=-1)


def projected_norm(output: torch.Tensor, W_O: torch.Tensor, mask: Mask = None) -> torch.Tensor:
    """Average norm of o_t W_O per head, the head's full contribution in d_model (appendix variant).

    W_O: [head, d_head, d_model]. The norm is taken through the Gram matrix W_O W_O^T, so [batch, pos, head, d_model]
    never exists.
    """
    weight = W_O.float()
    gram = weight @ weight.transpose(-1, -2)
    squared = torch.einsum("bphd,hde,bphe->bph", output.float(), gram, output.float())
    return _mean_over_pos(squared.clamp_min(0).sqrt(), mask)


# ---- the scores ----


@dataclass(frozen=True)
class Score:
    """A score: which quantity, divided by what, and on which side of a threshold a head counts as inactive.

    over: "" nothing; "layer" the layer mean of `divisor`; "own" the head's own `divisor`.
    """

    key: str
    title: str
    quantity: str
    inactive: Literal["<", ">"]
    over: Literal["", "layer", "own"] = ""
    divisor: str = ""
    number: int | None = None
    unit: str = ""

    @property
    def shown_unit(self) -> str:
        """What to write on an axis."""
        return (
            {"layer": "ratio to layer mean", "own": "ratio to the head's own mean"}.get(self.over)
            or self.unit
            or "activation units"
        )

    def flags(self, score: Any, threshold: Any) -> Any:
        """True where a head is inactive, for tensors and arrays; strict, so a threshold at the smallest (largest)
        score flags nothing.
        """
        return score < threshold if self.inactive == "<" else score > threshold


def _pair(key: str, title: str, side: Literal["<", ">"], number: int | None, unit: str) -> tuple[Score, Score]:
    plain = Score(key, title, key, side, number=number, unit=unit)
    return plain, Score(f"{key}_ln", f"{title} (LN)", key, side, "layer", key, None if number is None else number + 1)


SCORES: dict[str, Score] = {
    s.key: s
    for s in (
        *_pair("awft", "First-token weight", ">", 1, "share of attention"),
        *_pair("aeqd", "Query entropy", "<", 3, "nats"),
        *_pair("ftvvn", "First value norm", "<", 5, ""),
        *_pair("avvn", "Average value norm", "<", 7, ""),
        *_pair("ahon", "Average output norm", "<", 9, ""),
        Score("lthon", "Last output norm", "lthon", "<", number=11),
        Score("lthon_ln", "Last output norm (LN)", "lthon", "<", "layer", "ahon", 12),
        Score("lthon_hn", "Last output norm (HN)", "lthon", "<", "own", "ahon", 13),
        *_pair("apon", "Projected output norm", "<", None, ""),
    )
}
MAIN = tuple(key for key, score in SCORES.items() if score.number is not None)


def score_named(key: str) -> Score:
    """The score of this key; UnknownName with the closest otherwise."""
    if key not in SCORES:
        raise UnknownName.among("head score", key, SCORES)
    return SCORES[key]


def head_scores(
    pattern: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    mask: Mask = None,
    *,
    W_O: torch.Tensor | None = None,
    keys: Sequence[str] = MAIN,
) -> dict[str, torch.Tensor]:
    """Scores of all heads of one layer.

    Args:
        pattern: [batch, head, query_pos, key_pos] attention after softmax.
        value: [batch, pos, kv_head, d_head]; key/value heads are repeated to all heads here.
        output: [batch, pos, head, d_head] head outputs before the output projection.
        mask: [batch, pos] True at real tokens; padding counts neither as query nor as first or last token.
        W_O: [head, d_head, d_model], needed for the projected norms (`apon`, `apon_ln`) only.
        keys: which scores; the paper's 13 if not given.

    Returns:
        {key: [batch, head] float32}.

    Raises:
        UnknownName: on a key that is no score. ValueError: if a projected norm is asked for without W_O.

    Source: arXiv 2504.03889, table of scores as in its card; #12 divides by the layer mean of #9, not of #11.
    """
    chosen = [score_named(key) for key in keys]
    n_heads = output.shape[2]
    need = {s.quantity for s in chosen} | {s.divisor for s in chosen if s.divisor}
    if "apon" in need and W_O is None:
        raise ValueError("projected output norms need the layer's W_O [head, d_head, d_model]")
    compute: Mapping[str, Callable[[], torch.Tensor]] = {
        "awft": lambda: awft(pattern, mask),
        "aeqd": lambda: aeqd(pattern, mask),
        "ftvvn": lambda: ftvvn(value, n_heads, mask),
        "avvn": lambda: avvn(value, n_heads, mask),
        "ahon": lambda: ahon(output, mask),
        "lthon": lambda: lthon(output, mask),
        "apon": lambda: projected_norm(output, W_O, mask),  # type: ignore[arg-type]
    }
    quantity = {name: compute[name]() for name in need}

    def combine(score: Score) -> torch.Tensor:
        top = quantity[score.quantity]
        if score.over == "layer":
            return top / quantity[score.divisor].mean(-1, keepdim=True)
        return top / quantity[score.divisor] if score.over == "own" else top

    return {score.key: combine(score) for score in chosen}


def sink_weight(pattern: torch.Tensor, k: int = 0, mask: Mask = None) -> torch.Tensor:
    """[batch, head] attention that key k receives on average from the queries at or after it: alpha_k, in [0, 1].

    Source: Gu et al., "When Attention Sink Emerges in Language Models" (as in the card): the sink rate is the share of
    (layer, head, input) with alpha_k above 0.3.
    """
    batch, _, pos, _ = pattern.shape
    real = _real(mask, batch, pos, pattern.device)
    key = _first(mask, batch, pos, pattern.device) + k
    after = real & (torch.arange(pos, device=pattern.device) >= key.unsqueeze(1))
    to_key = pattern[torch.arange(batch, device=pattern.device), :, :, key].float().movedim(1, 2)
    return to_key.masked_fill(~after.unsqueeze(-1), 0).sum(1) / after.sum(1, keepdim=True)
