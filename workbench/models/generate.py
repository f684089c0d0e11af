"""Generation: continue rows of token ids, greedily or by sampling, with hooks in every forward.

The prompts run once; after that each forward reads one new token per row and takes the rest from a key/value cache,
which the TransformerLens bridge hands through to Hugging Face. Hooks fire as always, on tensors with one position.
Cost: one forward over the prompts and `max_new_tokens - 1` over one position each, and two tensors of
[row, kv_head, pos, d_head] per layer to hold.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import DynamicCache

from workbench.core.errors import BadData, NoRoom
from workbench.core.progress import SILENT, Progress

from .inputs import Batch, Inputs, Rows, batches, pad, rows_of
from .model import Hook, Model


@dataclass(frozen=True, eq=False)
class Step:
    """What the next forward sees, for hooks that depend on the position.

    places: [batch, pos] which token of its row each column is, from 0; -1 at padding. The first forward sees the
    prompts, later ones only the newest token (without a cache: the whole text again).
    n_prompt: [batch] length of each prompt, so that `places < n_prompt[:, None]` is the prompt and its padding.
    index: [batch] which row of the whole set each row is.
    """

    places: torch.Tensor
    n_prompt: torch.Tensor
    index: torch.Tensor


Hooks = Sequence[Hook] | Callable[[Step], Sequence[Hook]]


def generate(
    model: Model,
    rows: Inputs,
    *,
    max_new_tokens: int,
    prefixes: Rows | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    stop_ids: Sequence[int | Sequence[int]] | None = None,
    hooks: Hooks = (),
    batch_size: int = 32,
    progress: Progress = SILENT,
) -> list[list[int]]:
    """Continue each row.

    An architecture whose cached forward does not give the logits of its uncached one (see `can_cache`) runs the whole
    text at every step, unpadded.

    Args:
        model: a causal language model. rows: texts, rows of ids of any lengths, a tensor or a Batch; they run
            together, padded on the left.
        max_new_tokens: how many tokens to choose for a row at most.
        prefixes: [row] ids that each answer must begin with, possibly none; `max_new_tokens` come after them.
        temperature: 0 takes the likeliest token; above it samples, with noise that depends only on `seed`, row and
            step, so that neither the batch size nor a hook changes the draws.
        stop_ids: what ends a row, as single ids or sequences of ids; by default `end_ids` of the model.
        hooks: in force in every forward, or a function that gives the hooks for a `Step`. What a hook does to a
            position may depend on that position alone: with a cache it does not see the others again.
        progress: per new token; cancelling raises Cancelled.

    Returns:
        The answers in the order of the rows: the prefix, if any, and what was chosen after it, without the stop: []
        where the model stopped at once.

    Raises:
        BadData: if prompt and answer exceed the context, or prefixes and rows differ in number. NotFinite: if the
        logits overflow. UnsupportedModel: if the model is no causal language model.
    """
    model.require("causal-lm", "generating text")
    rows = rows_of(model, rows)
    forced = [[] for _ in rows] if prefixes is None else [list(ids) for ids in prefixes]
    if len(forced) != len(rows):
        raise BadData(f"there are {len(rows)} rows and {len(forced)} prefixes; give one to each row, empty where none")
    texts = [[*row, *ids] for row, ids in zip(rows, forced, strict=True)]
    longest = max(map(len, texts), default=0) + max_new_tokens - 1  # the last new token is never read
    if model.n_ctx and longest > model.n_ctx:
        raise BadData(
            f"prompt and continuation take {longest} positions, more than the context of {model.name} "
            f"({model.n_ctx}); lower max_new_tokens"
        )
    if not texts or max_new_tokens < 1:
        return forced
    stops = end_ids(model) if stop_ids is None else stop_ids
    endings = [(stop,) if isinstance(stop, int) else tuple(stop) for stop in stops]
    cached = can_cache(model)
    sets = _padded(texts, batch_size, model.pad_id) if cached else list(batches(texts, batch_size))
    for i, batch in enumerate(sets):
        members = batch.index.tolist()
        choose = _Chooser(temperature, [np.random.default_rng([seed, row]) for row in members])
        n_prompt = torch.tensor([len(rows[row]) for row in members])
        chosen: list[list[int]] = [[] for _ in members]
        running = set(range(len(members)))
        for step, ids in enumerate(_steps(model, batch, n_prompt, max_new_tokens, hooks, choose, cached)):
            for row in list(running):
                chosen[row].append(ids[row])
                stop = next((end for end in endings if tuple(chosen[row][-len(end) :]) == end), None)
                if stop is not None:
                    del chosen[row][-len(stop) :]
                    running.remove(row)
            progress.update(i * max_new_tokens + step + 1, len(sets) * max_new_tokens, "generating")
            # Rows that stopped stay in the batch, so that its shape, and with it the rounding, is that of a run under
            # other hooks in which they go on.
            if not running:
                break
        for row, new in zip(members, chosen, strict=True):
            forced[row] += new
    return forced


def end_ids(model: Model) -> list[int]:
    """End-of-text ids of the tokenizer and of the checkpoint's settings, which may name several."""
    original: Any = model.live.original_model
    settings = [getattr(original, "generation_config", None), original.config, model.tokenizer]
    named = [getattr(s, "eos_token_id", None) for s in settings]
    each = (ids if isinstance(ids, (list, tuple)) else [ids] for ids in named if ids is not None)
    return sorted({int(i) for ids in each for i in ids})


def _padded(texts: Rows, batch_size: int, pad_id: int) -> list[Batch]:
    """Rows of similar length together, so that little is padding."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [pad([texts[i] for i in chunk], pad_id, "left", chunk) for chunk in chunks]


def _steps(
    model: Model,
    batch: Batch,
    n_prompt: torch.Tensor,
    n_steps: int,
    hooks: Hooks,
    choose: Callable[[torch.Tensor], torch.Tensor],
    cached: bool,
) -> Iterator[list[int]]:
    """[batch] ids that each forward chose."""
    cache = DynamicCache() if cached else None
    tokens, mask = batch.tokens, batch.mask
    places = (mask.cumsum(-1) - 1).masked_fill(~mask, -1)
    for _ in range(n_steps):
        hook_fns = hooks(Step(places, n_prompt, batch.index)) if callable(hooks) else hooks
        chosen = choose(model.forward(tokens, mask=mask, hook_fns=hook_fns, cache=cache)[:, -1])
        yield chosen.tolist()
        new, place = chosen[:, None], places[:, -1:] + 1
        tokens = new if cached else torch.cat([tokens, new], 1)
        places = place if cached else torch.cat([places, place], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)


@dataclass(frozen=True)
class _Chooser:
    """[batch, d_vocab] logits -> [batch] ids, on the CPU."""

    temperature: float
    noise: list[np.random.Generator]

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        if self.temperature > 0:  # adding Gumbel noise and taking the largest is a draw from the softmax
            drawn = np.stack([rng.gumbel(size=logits.shape[1]) for rng in self.noise])
            logits = logits / self.temperature + torch.as_tensor(drawn, dtype=logits.dtype).to(logits.device)
        return logits.argmax(-1).cpu()


# ---- which models can keep keys and values ----

_known: WeakKeyDictionary[Model, bool] = WeakKeyDictionary()
N_PROBE = 8  # tokens of the longer probed row
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # of the largest logit; 0.05 at 16 bits


def can_cache(model: Model) -> bool:
    """Whether cached, left-padded steps give the logits of a plain forward here.

    Found out once a model by running two short rows both ways. Rotary positions that change with the length of the
    text ("dynamic", "longrope") are never cached: the keys held would keep the angles of a shorter text.
    """
    if model not in _known:
        _known[model] = _follows_length(model) is False and _probe(model)
    return _known[model]


def _follows_length(model: Model) -> bool:
    config: Any = model.live.original_model.config
    rope = str([getattr(config, name, None) for name in ("rope_parameters", "rope_scaling")])
    return "dynamic" in rope or "longrope" in rope


def _probe(model: Model) -> bool:
    if model.n_ctx and model.n_ctx < N_PROBE:
        return False
    drawn = np.random.default_rng(0).integers(model.d_vocab, size=2 * N_PROBE).tolist()
    rows = [drawn[:N_PROBE], drawn[N_PROBE : -N_PROBE // 2 + 1]]
    wanted = torch.cat([model.forward(torch.tensor([row]))[:, -1] for row in rows]).float()
    batch, cache = pad([row[:-2] for row in rows], model.pad_id, "left"), DynamicCache()
    mask = batch.mask
    try:
        found = model.forward(batch, cache=cache)
        for at in (-2, -1):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            found = model.forward(torch.tensor([[row[at]] for row in rows]), mask=mask, cache=cache)
    except NoRoom:
        raise
    except Exception:  # state-space layers and others refuse this kind of cache, each in its own way
        return False
    off = (found[:, -1].float() - wanted).abs().max() / wanted.abs().max()
    return bool(off <= TOLERANCE.get(model.dtype, 0.05))
