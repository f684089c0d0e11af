"""What a model reads: texts, rows of ids, a tensor or a Batch, brought to one form by `rows_of`, `batch_of` or
`tokens_of`.

Every primitive takes all four. This is the only place where rows of unequal length are padded.

The default is to batch rows of equal length together, so that nothing is padded. Where padding is asked for, the mask
travels with the tokens and TransformerLens derives the positions from it; tests hold padded = alone within 1e-4.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from workbench.core.errors import BadData
from workbench.core.text import readable

if TYPE_CHECKING:
    from .model import Model

Rows = Sequence[Sequence[int]]
SPACE = "▁"  # how SentencePiece writes one


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


Inputs = str | Sequence[str] | Sequence[int] | Rows | torch.Tensor | Batch


def token_words(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """One readable string per token id; control characters are written out, so that files and pictures can hold it.

    A SentencePiece decoder takes the space in front of what it decodes, which is the whole word where tokens are
    decoded one at a time: it is put back, or "the" and "▁the" would read the same.
    """
    words = [tokenizer.decode([int(i)]) for i in ids]
    return [readable(_spaced(tokenizer, int(i), word)) for i, word in zip(ids, words, strict=True)]


def _spaced(tokenizer: Any, token: int, word: str) -> str:
    piece = tokenizer.convert_ids_to_tokens(token)
    if not isinstance(piece, str) or not piece.startswith(SPACE) or word.startswith(SPACE):
        return word
    return " " * (len(piece) - len(piece.lstrip(SPACE))) + word.lstrip(" ")


def prompt_ids(model: "Model", text: str, *, bos: bool | None = None) -> list[int]:
    """Token ids of what a person typed: of a text, or, for a model without a tokenizer, of ids written out with spaces
    or commas between them.

    Args:
        bos: as for `Model.to_rows`; ids that are written out are taken as they are.

    Raises:
        BadData: if there is no tokenizer and the text is something other than ids of the vocabulary.
    """
    if model.tokenizer is not None:
        return model.to_rows(text, bos=bos)[0]
    words = text.replace(",", " ").split()
    if not all(word.isascii() and word.isdigit() and int(word) < model.d_vocab for word in words):
        raise BadData(
            f"{model.name} came without a tokenizer and cannot read {text[:60]!r}; write token ids such as '1 5 7',"
            f" from 0 to {model.d_vocab - 1}"
        )
    return [int(word) for word in words]


def rows_of(model: "Model", inputs: Inputs) -> list[list[int]]:
    """Token ids of each prompt, unpadded, in the order given.

    Args:
        inputs: a text or several (the tokenizer's own settings decide about BOS), one row of ids or several, an
            [example, pos] tensor, or a Batch.

    Raises:
        BadData: on no prompts, an empty one, a mixture of texts and ids, or a tensor of another shape.
        NoTokenizer: on texts, where the model came without one.
    """
    if isinstance(inputs, Batch):
        places = inputs.index.argsort().tolist()
        return [inputs.tokens[i][inputs.mask[i]].tolist() for i in places]
    if isinstance(inputs, (torch.Tensor, np.ndarray)):
        if inputs.ndim not in (1, 2) or not inputs.shape[-1] or not len(inputs):
            raise BadData(f"prompts are [example, pos] token ids, got a tensor of shape {tuple(inputs.shape)}")
        return [inputs.tolist()] if inputs.ndim == 1 else inputs.tolist()
    items = [inputs] if isinstance(inputs, str) else list(inputs)
    if not items:
        raise BadData("there are no prompts; give at least one text or row of token ids")
    n_texts = sum(isinstance(item, str) for item in items)
    if n_texts == len(items):
        return _none_empty(model.to_rows([str(item) for item in items]))
    if n_texts:
        raise BadData(f"{n_texts} of {len(items)} prompts are texts and the others token ids; give one kind")
    if isinstance(items[0], (int, np.integer)) or (isinstance(items[0], torch.Tensor) and items[0].ndim == 0):
        return [[int(i) for i in items]]  # type: ignore[arg-type]
    return _none_empty([[int(i) for i in item] for item in items])  # type: ignore[union-attr]


def _none_empty(rows: list[list[int]]) -> list[list[int]]:
    if empty := [i for i, row in enumerate(rows) if not row]:
        raise BadData(
            f"prompt {empty[0]} is empty and has no tokens to run: give every prompt at least one (a BOS counts)"
        )
    return rows


def batch_of(model: "Model", inputs: Inputs) -> Batch:
    """All prompts as one Batch, shorter ones padded on the right. Inputs and errors as `rows_of`."""
    return inputs if isinstance(inputs, Batch) else pad(rows_of(model, inputs), model.pad_id)


def tokens_of(model: "Model", inputs: Inputs) -> torch.Tensor:
    """[example, pos] ids of prompts of one length, for what compares prompts position by position.

    Raises:
        BadData: if the prompts have several lengths; otherwise as `rows_of`.
    """
    if isinstance(inputs, torch.Tensor) and inputs.ndim == 2:
        return inputs
    rows = rows_of(model, inputs)
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise BadData(
            f"prompts must have one length to be compared position by position, got {lengths[0]} to {lengths[-1]}"
            " tokens"
        )
    return torch.tensor(rows)


def pad(rows: Rows, pad_id: int, side: Literal["left", "right"] = "right", index: Sequence[int] | None = None) -> Batch:
    """Pad rows of token ids to the longest.

    Args:
        rows: token ids, any lengths from 1.
        pad_id: id written into the padding; the mask hides it.
        side: where the padding goes. Right is harmless for causal models; left is what generation needs.
        index: [batch] the rows' numbers in the whole set; counted from 0 if not given.

    Raises:
        BadData: on no rows or an empty row.
    """
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


def batches(
    rows: Rows,
    batch_size: int,
    *,
    pad_id: int = 0,
    equal_lengths: bool = True,
    side: Literal["left", "right"] = "right",
) -> Iterator[Batch]:
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


def by_length(model: "Model", prompts: Inputs) -> list[Batch]:
    """Prompts in sets of one length, shortest first; nothing is padded, and `Batch.index` says which prompts each set
    has.

    Raises:
        BadData: as `rows_of`.
    """
    if isinstance(prompts, torch.Tensor) and prompts.ndim == 2 and prompts.numel():
        return [Batch(prompts, torch.ones_like(prompts, dtype=torch.bool), torch.arange(len(prompts)))]
    rows = rows_of(model, prompts)
    return sorted(batches(rows, len(rows)), key=lambda batch: batch.tokens.shape[1])
