"""Activations of many rows, batch by batch, with the batch and position axes run together: [token, ...].

What the store writes and what reductions on the way read. Only what is asked for is run: blocks above the highest layer
asked for are skipped, and the unembedding is given one position where nobody reads the logits (a third of the
arithmetic of GPT-2 small).
Cost: one forward per batch, up to the highest layer; memory of one batch, held until the next one is asked for.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from workbench.core.errors import BadData, NotFired, UnsupportedModel
from workbench.models.inputs import Rows, batches
from workbench.models.model import Hook, Model
from workbench.primitives.read.capture import Key, _dims, _keys


@dataclass(frozen=True, eq=False)
class Piece:
    """One batch: values {(site, layer): [token, ...]} on the model's device, and whose they are.

    index: [batch] numbers of the rows. token, pos: [token] id and place in its row, in the order of the values.
    """

    values: dict[Key, torch.Tensor]
    index: torch.Tensor
    token: torch.Tensor
    pos: torch.Tensor


def site_keys(model: Model, sites: Sequence[str], layers: Sequence[int] | None = None) -> list[Key]:
    """(site, layer) pairs, each place once even if it was named twice under different words."""
    return _keys(model, sites, layers)


def unit_dims(model: Model, key: Key) -> tuple[str, ...]:
    """Axes of a place beside its token: ("d_model",), ("head", "d_head"), ("head", "key_pos")."""
    return tuple(d for d in _dims(model, key) if d not in ("pos", "query_pos"))


def lengths_of(rows: Rows) -> np.ndarray:
    """[row] number of tokens."""
    return np.fromiter((len(row) for row in rows), np.int64, len(rows))


def flat_ids(rows: Rows) -> np.ndarray:
    """[token] ids of all rows, one after another."""
    return np.fromiter(itertools.chain.from_iterable(rows), np.int64, int(lengths_of(rows).sum()))


def check_rows(model: Model, rows: Rows, keys: Sequence[Key], positions: Sequence[int] | None) -> None:
    """Refuse before a long run what would fail in the middle of it.

    Raises:
        BadData: on an empty, too long or out-of-vocabulary row, positions outside a row, or rows of several lengths
            where a site keeps an axis of that length. UnsupportedModel: if the model reads pixels.
    """
    if model.kind == "image-classifier":
        raise UnsupportedModel(f"{model.name} reads images; activations are streamed for models that read tokens")
    if len(rows) == 0:
        raise BadData("no rows to run: give at least one list of token ids")
    lengths = lengths_of(rows)
    shortest, longest = int(lengths.argmin()), int(lengths.argmax())
    low, high = int(lengths[shortest]), int(lengths[longest])
    if low == 0:
        raise BadData(f"row {shortest} has no tokens: give every row at least one (a BOS counts)")
    if model.n_ctx and high > model.n_ctx:
        raise BadData(
            f"row {longest} has {high} tokens, more than the context of {model.name} ({model.n_ctx}); shorten or"
            " split it"
        )
    ids = flat_ids(rows)
    if len(bad := np.flatnonzero((ids < 0) | (ids >= model.d_vocab))):
        row = int(np.searchsorted(lengths.cumsum(), bad[0], side="right"))
        raise BadData(
            f"row {row} has a token id outside the vocabulary of {model.name}, 0 to {model.d_vocab - 1}: {ids[bad[0]]}"
        )
    if positions is not None and (not positions or any(not -low <= p < low for p in positions)):
        raise BadData(f"positions {list(positions)} must lie inside every row, and row {shortest} has {low} tokens")
    if low != high and (square := [k for k in keys if "key_pos" in _dims(model, k)]):
        raise BadData(
            f"rows have {low} to {high} tokens, and {square[0][0]} keeps an axis of that length; use rows of one length"
        )


def stream(
    model: Model,
    rows: Rows,
    keys: Sequence[Key],
    *,
    positions: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int = 32,
) -> Iterator[Piece]:
    """Run the rows and yield each batch's activations.

    Rows of equal length are batched together and nothing is padded, so pieces come in order of first length seen;
    `Piece.index` says which rows they are.

    Args:
        rows: token ids per row, any lengths.
        keys: from `site_keys`.
        positions: which of each row to keep, negative from its end; all if not given.
        dtype: number format of the values; the model's own if not given.
        batch_size: rows a forward.

    Raises:
        NotFired: if a site never fired. BadData: if a value is too large for float16.
    """
    canonical = [model.hook_name(*key) for key in keys]
    stop = _stop_layer(model, canonical)
    extra: list[Hook] = []
    if (
        stop is None
        and model.kind == "causal-lm"
        and "unembed.hook_in" in model.hook_names
        and not any(name.startswith("unembed") for name in canonical)
    ):
        extra = [("unembed.hook_in", lambda tensor, hook: tensor[:, -1:])]
    position_axis = {
        key: 1 + min(_dims(model, key).index(d) for d in ("pos", "query_pos") if d in _dims(model, key)) for key in keys
    }
    for batch in batches(rows, batch_size, pad_id=model.pad_id):
        n_batch, n_pos = batch.tokens.shape
        kept = torch.arange(n_pos) if positions is None else torch.tensor([p % n_pos for p in positions])
        values: dict[Key, torch.Tensor] = {}

        def hook_for(key: Key, values: dict[Key, torch.Tensor], kept: torch.Tensor) -> Hook:
            def take(tensor: torch.Tensor, hook: object) -> None:
                tensor = tensor.detach().movedim(position_axis[key], 1)
                if positions is not None:
                    tensor = tensor[:, kept.to(tensor.device)]
                # A copy of its own: an edit in place downstream must not reach it.
                values[key] = tensor.to(dtype=dtype or tensor.dtype, copy=True).contiguous().flatten(0, 1)

            return model.hook_name(*key), take

        model.forward(batch, hook_fns=[*(hook_for(key, values, kept) for key in keys), *extra], stop_at_layer=stop)
        if silent := [f"{s} of layer {n}" for s, n in keys if (s, n) not in values]:
            raise NotFired(f"{', '.join(silent[:3])} never fired in {model.name}, so nothing was read there")
        if dtype == torch.float16:
            _refuse_overflow(values)
        # The hooks' closures sit in reference cycles and would keep what they hold until the garbage collector comes.
        taken = dict(values)
        values.clear()
        yield Piece(taken, batch.index, batch.tokens[:, kept].flatten(), kept.repeat(n_batch))


def _stop_layer(model: Model, canonical: Sequence[str]) -> int | None:
    """How many blocks have to run, or None for the whole model."""
    layers = []
    for name in canonical:
        if found := re.match(r"blocks\.(\d+)\.", name):
            layers.append(int(found[1]))
        elif not name.startswith(("embed", "hook_embed", "pos_embed", "hook_pos_embed")):
            return None
    stop = max(layers, default=0) + 1
    return stop if model.kind == "causal-lm" and stop < model.n_layers else None


def _refuse_overflow(values: dict[Key, torch.Tensor]) -> None:
    for (site, layer), tensor in values.items():
        low, high = torch.aminmax(tensor)  # nan comes through, and isfinite of every value takes twenty times as long
        if not (bool(torch.isfinite(low)) and bool(torch.isfinite(high))):
            where = site if layer is None else f"{site} of layer {layer}"
            raise BadData(f"{where} has values beyond float16 (65504) or not finite; store it as bfloat16 or float32")
