"""Predictions: what a model expects at every position of a prompt - its likeliest tokens, the loss of what really
stands there, entropy.

A causal language model predicts the token after each position from all up to it: one forward a batch. A masked language
model is asked at each position with that position masked (pseudo-log-likelihood: Salazar et al. 2020, "Masked Language
Model Scoring", arXiv 1910.14659): one row a position. Encoders without a head and classifiers predict no tokens and are
refused. No template and no BOS is added here: text goes through the tokenizer as it is, chats through `models.chat`.
Cost: the forwards, and `top_k` numbers a position; logits are read 256 positions at a time and not kept.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from workbench.core.errors import BadData, UnsupportedModel
from workbench.core.progress import SILENT, Cancelled, Progress
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.models.inputs import Inputs, batches, prompt_ids, rows_of
from workbench.models.model import Model

AT_ONCE = 256  # positions whose probabilities are in memory together


def predictions(
    model: Model, prompts: Inputs, *, top_k: int = 10, batch_size: int = 8, progress: Progress = SILENT
) -> Result:
    """What the model expects at every position of each prompt.

    A loss of 0 is certainty, log(d_vocab) what guessing evenly costs; exp(-loss) is the probability given to the token.

    Args:
        model: a causal or a masked language model.
        prompts: a text, several texts, token ids [pos], or rows of token ids of any lengths.
        top_k: likeliest tokens to keep; no more than the vocabulary has.
        batch_size: rows a forward.
        progress: per forward; a cancelled run returns what it has, marked partial, nan elsewhere.

    Returns:
        Result over example, pos, rank: `token`, `token_id`, `probability` of the likeliest tokens; over example, pos:
        `loss` (nats) and `actual_rank` (tokens likelier; 0 is the top) of the token that really stands where the
        prediction points, `entropy` (nats) of the whole distribution, and the prompt itself, `read` and `read_id`;
        `n_tokens` [example]. Past the end of a shorter prompt are nan, -1 and "". The attribute `offset` is 1 where the
        prediction at a position is of the next one (causal) and 0 where it is of that very position (masked); at the
        last position of a causal model nothing follows and the loss is nan.

    Raises:
        UnsupportedModel: if the model predicts no tokens, or is a masked one whose tokenizer names no mask. BadData: on
            an empty prompt, one longer than the context, or top_k below 1.
    """
    started = time.monotonic()
    mask_id = _mask_of(model)
    rows = _rows(model, prompts)
    if top_k < 1:
        raise BadData(f"top_k is how many of the likeliest tokens are kept, at least 1; got {top_k}")
    kept = _Kept(rows, min(top_k, model.d_vocab))
    partial = False
    try:
        if mask_id is None:
            _next(model, rows, kept, batch_size, progress)
        else:
            _masked(model, rows, mask_id, kept, batch_size, progress)
    except Cancelled:
        partial = bool(np.isnan(kept.entropy).sum() > kept.entropy.size - sum(map(len, rows)))
    data = kept.dataset(model, rows)
    data.attrs |= {"offset": int(mask_id is None), "d_vocab": model.d_vocab, "bos": _bos(model, rows)}
    spec = {"tokens": rows, "top_k": top_k}
    warnings = (
        ()
        if mask_id is None
        else (
            (
                f"{model.name} is a masked language model: each token is predicted from both sides, with that one"
                " position masked"
            ),
        )
    )
    return Result(
        Provenance.start("predictions", spec, 0, model=model.provenance()).finish(started),
        data,
        partial=partial,
        warnings=warnings,
    )


def _mask_of(model: Model) -> int | None:
    """The mask's id for masked language models, None for causal ones."""
    if model.kind == "causal-lm":
        return None
    if model.kind != "masked-lm":
        raise UnsupportedModel(
            f"predictions need a model that gives probabilities of tokens, a causal-lm or a masked-lm, and {model.name}"
            f" is of kind {model.kind}"
        )
    mask_id = getattr(model.tokenizer, "mask_token_id", None)
    if mask_id is None:
        raise UnsupportedModel(
            f"{model.name} is a masked-lm, asked with one position masked at a time, and no tokenizer names its mask"
            " token; load(..., tokenizer=...) with one that does"
        )
    return int(mask_id)


def _rows(model: Model, prompts: Inputs) -> list[list[int]]:
    texts = [prompts] if isinstance(prompts, str) else prompts
    if model.tokenizer is None and isinstance(texts, Sequence) and texts and isinstance(texts[0], str):
        texts = [prompt_ids(model, str(text)) for text in texts]  # ids that are written out
    rows = rows_of(model, texts)
    for i, row in enumerate(rows):
        which = "the prompt" if len(rows) == 1 else f"prompt {i}"
        if model.n_ctx and len(row) > model.n_ctx:
            raise BadData(
                f"{which} has {len(row)} tokens, more than the context of {model.name} ({model.n_ctx}); shorten it, or"
                " give a part of it"
            )
    return rows


def _bos(model: Model, rows: list[list[int]]) -> str:
    """Whether prompts open with the tokenizer's BOS; no number here is comparable without knowing."""
    bos = getattr(model.tokenizer, "bos_token_id", None)
    if bos is None:
        return "no BOS known"
    there = {row[0] == bos for row in rows}
    return "some" if len(there) == 2 else "in front" if there == {True} else "none in front"


class _Kept:
    """What is kept of each position, filled forward by forward."""

    def __init__(self, rows: list[list[int]], top_k: int):
        shape = (len(rows), max(map(len, rows)))
        self.loss, self.entropy, self.rank = (np.full(shape, np.nan, np.float32) for _ in range(3))
        self.probability, self.ids = (
            np.full((*shape, top_k), np.nan, np.float32),
            np.full((*shape, top_k), -1, np.int64),
        )

    def take(self, example: int, positions: Sequence[int], logits: torch.Tensor, actual: Sequence[int]) -> None:
        """positions: where these predictions were made. logits: [position, d_vocab]. actual: ids that stand there,
        -1 for none.
        """
        for start in range(0, len(positions), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            log_probs = logits[part].float().log_softmax(-1)
            probs, at = log_probs.exp(), list(positions[part])
            top = probs.topk(self.ids.shape[-1])
            wanted = torch.tensor(actual[part], device=log_probs.device)
            own = log_probs.gather(-1, wanted.clamp_min(0).unsqueeze(-1))
            there = (wanted >= 0).cpu().numpy()
            self.probability[example, at], self.ids[example, at] = top.values.cpu().numpy(), top.indices.cpu().numpy()
            self.entropy[example, at] = torch.special.entr(probs).sum(-1).cpu().numpy()
            self.loss[example, at] = np.where(there, -own.squeeze(-1).cpu().numpy(), np.nan)
            self.rank[example, at] = np.where(there, (log_probs > own).sum(-1).cpu().numpy(), np.nan)

    def dataset(self, model: Model, rows: list[list[int]]) -> xr.Dataset:
        each, top = ("example", "pos"), ("example", "pos", "rank")
        read = np.full(self.loss.shape, -1, np.int64)
        for i, row in enumerate(rows):
            read[i, : len(row)] = row
        return xr.Dataset(
            {
                "token": (top, _texts(model, self.ids), {"long_name": "Likely token", "unit": "text"}),
                "token_id": (top, self.ids, {"long_name": "Likely token's id", "unit": "id"}),
                "probability": (top, self.probability, {"long_name": "Probability", "unit": "probability"}),
                "loss": (each, self.loss, {"long_name": "Loss of the actual token", "unit": "nats"}),
                "actual_rank": (each, self.rank, {"long_name": "Rank of the actual token", "unit": "tokens above"}),
                "entropy": (each, self.entropy, {"long_name": "Entropy of the prediction", "unit": "nats"}),
                "read": (each, _texts(model, read), {"long_name": "Token of the prompt", "unit": "text"}),
                "read_id": (each, read, {"long_name": "Id of the prompt's token", "unit": "id"}),
                "n_tokens": (
                    "example",
                    [len(row) for row in rows],
                    {"long_name": "Length of the prompt", "unit": "tokens"},
                ),
            },
            coords={"example": range(len(rows)), "pos": range(self.loss.shape[1]), "rank": range(self.ids.shape[-1])},
        )


def _texts(model: Model, ids: np.ndarray) -> np.ndarray:
    """Ids as texts, each id decoded once; "" for -1."""
    known, where = np.unique(ids, return_inverse=True)
    return np.array(["" if i < 0 else model.to_strings([i])[0] for i in known], dtype=object)[where].reshape(ids.shape)


def _next(model: Model, rows: list[list[int]], kept: _Kept, batch_size: int, progress: Progress) -> None:
    parts = list(batches(rows, batch_size))
    for done, batch in enumerate(parts):
        progress.update(done, len(parts), "forwards")
        logits = model.forward(batch)
        for i, example in enumerate(batch.index.tolist()):
            kept.take(example, range(len(rows[example])), logits[i], [*rows[example][1:], -1])
    progress.update(len(parts), len(parts), "forwards")


def _masked(
    model: Model, rows: list[list[int]], mask_id: int, kept: _Kept, batch_size: int, progress: Progress
) -> None:
    jobs = [
        (example, range(start, min(start + batch_size, len(row))))
        for example, row in enumerate(rows)
        for start in range(0, len(row), batch_size)
    ]
    for done, (example, positions) in enumerate(jobs):
        progress.update(done, len(jobs), "forwards")
        row, copies = rows[example], torch.arange(len(positions))
        tokens = torch.tensor([row] * len(positions))
        tokens[copies, list(positions)] = mask_id
        logits = model.forward(tokens)[copies, list(positions)]
        kept.take(
            example, positions, logits, [-1 if row[p] == mask_id else row[p] for p in positions]
        )  # what a mask of the prompt hides is not known
    progress.update(len(jobs), len(jobs), "forwards")
