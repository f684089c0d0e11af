"""Attention patterns of every head on one prompt, scores that say what each head looks at, and what heads do when off.

`attention_patterns` reads all patterns in one forward, layer by layer; scores are of the full patterns. Prompts with
more positions than `max_pos` keep pooled patterns - each cell the largest weight of its block of positions - and a
warning says so. `switch_heads_off` is the same run with some heads replaced, with the change of the prediction and of
the loss.
Cost: one forward (three with heads off and mean ablation); n_layers * n_heads * min(n_pos, max_pos)^2 * 4 bytes are
kept.
Sources: head_scores for first-token weight and entropy; Olsson et al. 2022 (arXiv 2209.11895) for what previous-token
and induction heads attend to.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr

from workbench.core.errors import BadData, NotFired
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.models import memory
from workbench.models.model import Hook, Model
from workbench.primitives.replace.ablation import Report, ablate, reference_mean
from workbench.primitives.score import head_scores as hs

Ids = Sequence[int] | torch.Tensor
STEM = "attention"
MAX_POS = 192  # positions kept of a pattern: 192^2 cells are what a heat map still draws without pooling again
MAX_CELLS = 20_000_000  # cells kept of all patterns together, 80 MB

SCORES: dict[str, tuple[str, str]] = {
    "first_token": ("Attention to the first token", "share of attention"),
    "entropy": ("Entropy of attention", "nats"),
    "previous": ("Attention to the previous token", "share of attention"),
    "induction": ("Attention after an earlier copy", "share of attention"),
}


def attention_patterns(model: Model, tokens: Ids, *, max_pos: int | None = None) -> Result:
    """Every head's pattern on one prompt, and scores of what it attends to.

    Args:
        model: any model whose patterns can be read: decoders with any number of key/value heads, encoders, classifiers.
        tokens: [pos] ids of one prompt, or pixels [1, channel, height, width] for an image classifier.
        max_pos: most positions a kept pattern has; chosen so that all patterns fit in 80 MB, at most 192, if not given.

    Returns:
        Result with `pattern` [layer, head, query_pos, key_pos], share of attention in [0, 1], and `scores` [score,
        layer, head] in `unit` (a coordinate): first_token, mean over all queries of the weight on position 0; entropy
        of the queries' distributions; previous, mean weight on the position before over queries from 2 on (position 1
        would mix it with first_token); induction, mean weight on the places that follow earlier copies of the query's
        token, over queries that have one, nan where nothing repeats. attrs: `pool` positions a cell (1: not pooled),
        `n_pos`, `causal` 1 or 0.

    Raises:
        UnknownSite: where the model shows no pattern. NotFired: if a pattern was not read. NoRoom: before running, if
            one layer's patterns will not fit. BadData: on tokens that are not one prompt.
    """
    started = time.monotonic()
    inputs = _one_prompt(model, tokens)
    with model.alone(), _read_patterns(model, inputs, max_pos) as found:
        model.forward(inputs)
    return _result(
        model, inputs, found, {"tokens": inputs.flatten().tolist() if inputs.ndim == 2 else "pixels"}, started
    )


def switch_heads_off(
    model: Model,
    tokens: Ids,
    off: Sequence[tuple[int, int]],
    *,
    value: Literal["zero", "mean"] = "zero",
    top_k: int = 5,
    max_pos: int | None = None,
) -> Result:
    """The same with some heads' outputs replaced, and what that did to the model's output.

    Args:
        off: (layer, head) of the heads whose output (before the output projection) is replaced at every position.
        value: "zero", or "mean": the head's mean output over the prompt's positions.
        top_k: likeliest tokens (or classes) to keep of each run.

    Returns:
        Result as `attention_patterns` gives it, of the run with the heads off (later heads' patterns may change), with
        `probability` [run, candidate] at the last position over tokens likely in either run, `loss` [run, pos] of each
        token given those before it, in nats (causal language models), and `moved` [pos], the largest change of the
        output. run is "heads on" or "heads off". attrs: firings, n_replaced, `effect`, the largest |change| of the
        output. An effect of 0 is a warning.

    Raises:
        NotFired: if a hook did not fire or another number of heads was replaced than asked for. BadData: on a head that
            is not there or an empty list. Further as `attention_patterns`.
    """
    started = time.monotonic()
    inputs = _one_prompt(model, tokens)
    off = sorted({(int(layer), int(head)) for layer, head in off})
    if not off:
        raise BadData("no head is switched off; give at least one (layer, head)")
    if wrong := [pair for pair in off if not (0 <= pair[0] < model.n_layers and 0 <= pair[1] < model.n_heads)]:
        raise BadData(
            f"{model.name} has layers 0 to {model.n_layers - 1} and heads 0 to {model.n_heads - 1}, so there is no head"
            f" {wrong[0][1]} in layer {wrong[0][0]}"
        )
    mask = torch.zeros(model.n_layers, model.n_heads, dtype=torch.bool)
    for layer, head in off:
        mask[layer, head] = True
    with model.alone():
        clean = model.forward(inputs)
        reference = reference_mean(model, inputs) if value == "mean" else None
        with _read_patterns(model, inputs, max_pos) as found:
            done = ablate(
                model,
                inputs,
                mask,
                value=value,
                reference=reference,
                layers=sorted({layer for layer, _ in off}),
                clean=clean,
            )
    if done.report.n_replaced != len(off):
        raise NotFired(f"{done.report.n_replaced} heads were replaced in {model.name} where {len(off)} were asked for")
    spec = {
        "tokens": inputs.flatten().tolist() if inputs.ndim == 2 else "pixels",
        "off": [list(pair) for pair in off],
        "value": value,
    }
    result = _result(model, inputs, found, spec, started, done.report)
    result.data.update(_change(model, inputs, clean, done.output, top_k))
    return result


# ---- scores ----


def pattern_scores(pattern: torch.Tensor, tokens: torch.Tensor | None = None) -> torch.Tensor:
    """[score, head] of one layer: first_token, entropy, previous, induction, as `attention_patterns` says.

    Args:
        pattern: [head, query_pos, key_pos] shares of attention, not pooled.
        tokens: [pos] ids; without them (images) previous and induction are nan.
    """
    first, entropy = hs.awft(pattern[None])[0], hs.aeqd(pattern[None])[0]
    nothing = torch.full_like(first, torch.nan)
    if tokens is None:
        return torch.stack([first, entropy, nothing, nothing])
    n_pos = len(tokens)
    previous = pattern.diagonal(-1, 1, 2)[:, 1:].float().mean(-1) if n_pos > 2 else nothing
    after_copy = after_earlier_copies(tokens.to(pattern.device))
    queries = after_copy.any(1)
    induction = (pattern.float() * after_copy).sum(-1)[:, queries].mean(-1) if bool(queries.any()) else nothing
    return torch.stack([first, entropy, previous, induction])


def after_earlier_copies(tokens: torch.Tensor) -> torch.Tensor:
    """[query_pos, key_pos] True where the key follows an earlier copy of the query's token: where induction looks.

    A copy right before the query is left out, because what follows it is the query itself.

    Args:
        tokens: [pos] ids.
    """
    same = tokens[:, None] == tokens[None, :]
    follows = torch.zeros_like(same)
    follows[:, 1:] = same[:, :-1]
    return follows.tril(-1)


# ---- reading ----


def _one_prompt(model: Model, tokens: Ids) -> torch.Tensor:
    """[1, pos] ids or [1, channel, height, width] pixels."""
    given = torch.as_tensor(tokens)
    if model.kind == "image-classifier":
        if given.ndim != 4 or len(given) != 1 or not given.is_floating_point():
            raise BadData(
                f"{model.name} reads one image [1, channel, height, width], got {given.dtype} of shape"
                f" {tuple(given.shape)}"
            )
        return given
    if given.numel() == 0 or given.numel() != given.shape[-1]:
        raise BadData(f"patterns are read of one prompt [pos], got shape {tuple(given.shape)}")
    n_pos = given.numel()
    memory.require(
        3.0 * model.n_heads * n_pos**2 * model.dtype.itemsize,
        model.device,
        f"one layer's attention of {model.name} over {n_pos} tokens",
        "Give a shorter prompt.",
    )
    return given.reshape(1, -1)


@contextmanager
def _read_patterns(
    model: Model, inputs: torch.Tensor, max_pos: int | None
) -> Iterator[dict[int, tuple[np.ndarray, np.ndarray, int]]]:
    """Hooks that fill {layer: (pattern, pooled if long; scores; pool)} in the forward run within; every layer must
    have fired at the end.
    """
    found: dict[int, tuple[np.ndarray, np.ndarray, int]] = {}
    tokens = inputs[0] if inputs.ndim == 2 else None
    most = max_pos or min(MAX_POS, int((MAX_CELLS / (model.n_layers * model.n_heads)) ** 0.5))

    def reader(layer: int) -> Hook:
        def read(tensor: torch.Tensor, hook: object) -> None:
            pattern = tensor.detach()[0].float()
            pool = -(-pattern.shape[-1] // most)
            kept = pattern if pool == 1 else F.max_pool2d(pattern.unsqueeze(0), pool, ceil_mode=True)[0]
            found[layer] = kept.cpu().numpy().copy(), pattern_scores(pattern, tokens).cpu().numpy(), pool

        return model.hook_name("pattern", layer), read

    with model.hooked([reader(layer) for layer in range(model.n_layers)]):
        yield found
    if silent := [str(layer) for layer in range(model.n_layers) if layer not in found]:
        raise NotFired(
            f"the patterns of layers {', '.join(silent[:5])} never fired in {model.name}, so nothing was read there"
        )


def _result(
    model: Model,
    inputs: torch.Tensor,
    found: dict[int, tuple[np.ndarray, np.ndarray, int]],
    spec: dict[str, Any],
    started: float,
    report: Report | None = None,
) -> Result:
    pattern, scores = (
        np.stack([found[layer][0] for layer in sorted(found)]),
        np.stack([found[layer][1] for layer in sorted(found)], 1),
    )
    pool, n_pos = found[0][2], inputs.shape[1] if inputs.ndim == 2 else found[0][0].shape[-1]
    labels = (
        model.to_strings(inputs[0].tolist())
        if inputs.ndim == 2
        else ["[CLS]", *(f"patch {i}" for i in range(n_pos - 1))]
    )
    starts = list(range(0, n_pos, pool))
    data = xr.Dataset(
        {
            "pattern": (
                ("layer", "head", "query_pos", "key_pos"),
                pattern,
                {"long_name": "Attention", "unit": "share of attention"},
            ),
            "scores": (
                ("score", "layer", "head"),
                scores,
                {"long_name": "Head score", "unit": "as the coordinate unit says"},
            ),
        },
        coords={
            "layer": range(model.n_layers),
            "head": range(pattern.shape[1]),
            "query_pos": starts,
            "key_pos": starts,
            "token": ("query_pos", [labels[i] for i in starts]),
            "token_id": ("query_pos", inputs[0, starts].tolist() if inputs.ndim == 2 else starts),
            "score": list(SCORES),
            "title": ("score", [title for title, _ in SCORES.values()]),
            "unit": ("score", [unit for _, unit in SCORES.values()]),
        },
        attrs={"pool": pool, "n_pos": n_pos, "causal": int(model.is_causal)}
        | ({} if report is None else _counted(report)),
    )
    warnings = [] if report is None else list(report.warnings)
    if pool > 1:
        warnings.append(
            f"{n_pos} tokens are too many to keep every pattern whole: each cell is the largest weight of {pool} x"
            f" {pool} positions; scores are of the full patterns"
        )
    provenance = Provenance.start(STEM, spec, 0, model=model.provenance(), data={"n_pos": n_pos})
    return Result(provenance.finish(started), data, warnings=tuple(warnings))


def _counted(report: Report) -> dict[str, float]:
    return {"firings": report.firings, "n_replaced": report.n_replaced, "effect": float(report.effect or 0.0)}


# ---- what it did ----


def _change(
    model: Model, inputs: torch.Tensor, clean: torch.Tensor, changed: torch.Tensor, top_k: int
) -> dict[str, Any]:
    """Variables that compare the two outputs: [1, pos, d_vocab] logits, [1, pos, d_model] or [1, class]."""
    runs, found = ("run", ["heads on", "heads off"]), {}
    both = torch.stack([clean, changed])[:, 0].detach().float().cpu()
    if both.ndim == 3:
        unit = "activation units" if model.kind == "encoder" else "logits"
        found["moved"] = (
            ("pos",),
            (both[1] - both[0]).abs().amax(-1).numpy(),
            {"long_name": "Largest change of the output", "unit": unit},
        )
    if model.kind in ("causal-lm", "classifier", "image-classifier"):
        p = (both[:, -1] if both.ndim == 3 else both).softmax(-1)
        likely = p.topk(min(top_k, p.shape[-1]), -1).indices.flatten().unique()
        likely = likely[p[:, likely].amax(0).argsort(descending=True)]
        named = model.to_strings(likely.tolist()) if model.kind == "causal-lm" else [f"class {int(i)}" for i in likely]
        about = {
            "long_name": "Probability of the next token" if model.kind == "causal-lm" else "Probability of the class",
            "unit": "probability",
        }
        found |= {
            "probability": (("run", "candidate"), p[:, likely].numpy(), about),
            "candidate_id": (("candidate",), likely.numpy(), {"long_name": "Id", "unit": "id"}),
        }
        found |= {"run": runs, "candidate": ("candidate", named)}
    if model.kind == "causal-lm" and inputs.shape[1] > 1:
        targets = inputs[0, 1:].cpu().expand(2, -1).unsqueeze(-1)
        loss = torch.full(both.shape[:2], torch.nan)
        loss[:, 1:] = -both[:, :-1].log_softmax(-1).gather(-1, targets).squeeze(-1)
        found["loss"] = (
            ("run", "pos"),
            loss.numpy(),
            {"long_name": "Loss of each token given those before it", "unit": "nats"},
        )
    return found
