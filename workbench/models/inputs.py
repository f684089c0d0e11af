"""Token batches: the only place where rows of unequal length are padded, and where BOS is put in front.

The default is to batch rows of equal length together, so that nothing is padded. Where padding is asked for, the mask
travels with the tokens and TransformerLens derives the positions from it; tests hold padded = alone within 1e-4.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from workbench.core.errors import BadData

Rows = Sequence[Sequence[int]]
Prompts = torch.Tensor | Rows  # [example, pos] tokens, or rows of token ids of any lengths


@dataclass(frozen=True, eq=False)
class Batch:
    """Tokens and which of them are real.

    tokens: [batch, pos] int64 ids. mask: [batch, pos] bool, False at padding.
    index: [batch] which row of the whole set each row is (rows of equal length are batched together, so order changes).
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    index: torch.Tensor

    @property
    def is_padded(self) -> bool:
        return not bool(self.mask.all())

    @property
    def lengths(self) -> torch.Tensor:
        """[batch] number of real tokens."""
        return self.mask.sum(-1)

    def to(self, device: str | torch.device) -> "Batch":
        return Batch(self.tokens.to(device), self.mask.to(device), self.index)


def refuse_text(rows: Iterable[object]) -> None:
    """Raises BadData on texts where rows of token ids belong."""
    if any(isinstance(row, str) for row in rows):
        raise BadData("rows are token ids, and these are text: model.to_rows(texts) makes them")


def pad(rows: Rows, pad_id: int, side: Literal["left", "right"] = "right", index: Sequence[int] | None = None) -> Batch:
    """Pad rows of token ids to the longest.

    Args:
        rows: token ids, any lengths from 1.
        pad_id: id written into the padding; the mask hides it.
        side: where the padding goes. Right is harmless for causal models; left is what generation needs.
        index: [batch] the rows' numbers in the whole set; counted from 0 if not given.

    Raises:
        BadData: on no rows, an empty row, or text.
    """
    refuse_text(rows)
    if not rows or any(len(row) == 0 for row in rows):
        raise BadData("an empty prompt has no tokens to run: give every row at least one token (a BOS counts)")
    longest = max(len(row) for row in rows)
    tokens = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
        tokens[i, where] = torch.as_tensor(list(row))
        mask[i, where] = True
    return Batch(tokens, mask, torch.as_tensor(list(range(len(rows)) if index is None else index)))


def batches(rows: Rows, batch_size: int, *, pad_id: int = 0, equal_lengths: bool = True, side: Literal["left", "right"] = "right") -> Iterator[Batch]:
    """Split rows into batches of at most `batch_size`.

    With `equal_lengths` (the default) rows are grouped by length and nothing is padded; batch order follows length, and
    `Batch.index` says which rows these are. Without it, consecutive rows are padded on `side`.
    """
    if not equal_lengths:
        for start in range(0, len(rows), batch_size):
            chunk = rows[start : start + batch_size]
            yield pad(chunk, pad_id, side, range(start, start + len(chunk)))
        return
    by_length: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        by_length.setdefault(len(row), []).append(i)
    for members in by_length.values():
        for start in range(0, len(members), batch_size):
            chosen = members[start : start + batch_size]
            yield pad([rows[i] for i in chosen], pad_id, side, chosen)


def by_length(prompts: Prompts) -> list[Batch]:
    """Prompts in sets of one length, shortest first; nothing is padded, and `Batch.index` says which prompts each set has.

    Raises:
        BadData: on no prompts, an empty one, text, or a tensor that is not [example, pos].
    """
    if isinstance(prompts, torch.Tensor):
        if prompts.ndim != 2 or prompts.numel() == 0:
            raise BadData(f"prompts must be [example, pos] tokens or rows of token ids, got a tensor of shape {tuple(prompts.shape)}")
        return [Batch(prompts, torch.ones_like(prompts, dtype=torch.bool), torch.arange(len(prompts)))]
    if not len(prompts):
        raise BadData("there are no prompts; give at least one row of token ids")
    return sorted(batches(prompts, len(prompts)), key=lambda batch: batch.tokens.shape[1])
