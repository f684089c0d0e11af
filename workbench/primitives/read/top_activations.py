"""The tokens on which one unit is most active, over many prompts: what a neuron or a head reacts to.

A neuron's activation is what it hands to the output projection (`mlp_post`); a head's is the norm of what it adds to
the stream; a channel's is its own number in `z`. Ranked by size, sign kept: gated MLPs use both signs alike. The pass
streams, in memory that does not grow with the prompts, and runs blocks up to the unit's own.
Cost: one forward of that many blocks a prompt.
"""

import time

import numpy as np
import torch
import xarray as xr

from workbench.core.errors import BadData
from workbench.core.progress import SILENT, Cancelled, Progress
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.models.inputs import Rows, rows_of
from workbench.models.model import Model
from workbench.primitives.read.reductions import TopK
from workbench.primitives.read.stream import check_rows, lengths_of, site_keys, stream

KINDS = {
    "neuron": ("mlp_post", "activation"),
    "head": ("z", "norm added to the stream"),
    "head channel": ("z", "activation"),
}
AROUND = 6  # tokens kept before and after the one that is looked at


def top_activations(
    model: Model,
    rows: Rows,
    kind: str,
    layer: int,
    index: int,
    *,
    k: int = 10,
    batch_size: int = 64,
    progress: Progress = SILENT,
) -> Result:
    """The k tokens on which a unit is largest in size.

    Args:
        model: a model that reads tokens. rows: token ids of each prompt, any lengths.
        kind: "neuron", "head", or "head channel" (numbered head by head). layer, index: which.
        k: tokens kept; all of them if there are fewer. batch_size: prompts a forward.
        progress: per batch; cancelling gives a partial Result of the prompts seen so far.

    Returns:
        Result over rank: `activation` (signed), `example` and `pos` of the token, its `token` as text, `before` and
        `after` with up to six tokens of its prompt each. Attributes `mean_size` over all tokens and `n_tokens`: a top
        that is hardly above the mean says little.

    Raises:
        BadData: if there is no such unit, or a row cannot be run. UnknownSite: where neurons cannot be hooked.
    """
    started = time.monotonic()
    if kind not in KINDS or k < 1:
        raise BadData(f"a unit is a {', a '.join(KINDS)}, and k is at least 1; got {kind!r} and k = {k}")
    rows = rows_of(model, rows)
    site, unit = KINDS[kind]
    keys = site_keys(model, [site], [layer])
    check_rows(model, rows, keys, None)
    weight = model.W_O(layer)[index].detach().float() if kind == "head" and 0 <= index < model.n_heads else None
    top, total, n, partial = TopK(k), 0.0, 0, False
    starts = np.concatenate([[0], lengths_of(rows).cumsum()])  # number of each row's first token
    n_rows = 0
    try:
        for piece in stream(model, rows, keys, batch_size=batch_size):
            values = _values(piece.values[keys[0]], kind, index, weight)
            numbers = (
                torch.from_numpy(starts[piece.index.numpy()]).repeat_interleave(len(values) // len(piece.index))
                + piece.pos
            )
            top.update(
                torch.stack([values, -values], 1), numbers
            )  # either sign; what is not among k of its own sign is not among k in size
            total, n, n_rows = total + float(values.abs().double().sum()), n + len(values), n_rows + len(piece.index)
            progress.update(n_rows, len(rows), "top tokens")
    except Cancelled:  # noticed after a batch, so there is something to show
        partial = True
    data = _located(model, rows, starts, _by_size(top.result(["sign"]), k), unit)
    data.attrs = {
        "kind": kind,
        "layer": layer,
        "index": index,
        "mean_size": total / n,
        "n_tokens": n,
        "n_prompts": n_rows,
    }
    spec = {"kind": kind, "layer": layer, "index": index, "k": k}
    return Result(
        Provenance.start("top_activations", spec, 0, model=model.provenance(), data={"n_prompts": len(rows)}).finish(
            started
        ),
        data,
        {},
        partial,
    )


def _values(values: torch.Tensor, kind: str, index: int, weight: torch.Tensor | None) -> torch.Tensor:
    """[token] activation of the unit, float32 on the CPU."""
    if kind == "head channel":
        values = values.flatten(1)
    size = values.shape[1]
    if not 0 <= index < size:
        raise BadData(
            f"this layer has {size} units of kind {kind}, so there is no number {index}; the last is {size - 1}"
        )
    own = values[:, index].float()
    return (own if weight is None else (own @ weight).norm(dim=-1)).cpu()


def _by_size(found: xr.Dataset, k: int) -> list[tuple[float, int]]:
    """[(activation, number)] of the k largest in size from the k largest of each sign, ties to the smaller number."""
    both = {
        int(number): float(value)
        for value, number in zip(-found["value"].values[:, 1], found["number"].values[:, 1], strict=True)
    }
    both |= {
        int(number): float(value)
        for value, number in zip(found["value"].values[:, 0], found["number"].values[:, 0], strict=True)
    }
    return sorted(((value, number) for number, value in both.items()), key=lambda pair: (-abs(pair[0]), pair[1]))[:k]


def _located(model: Model, rows: Rows, starts: np.ndarray, found: list[tuple[float, int]], unit: str) -> xr.Dataset:
    numbers = np.array([number for _, number in found])
    examples = np.searchsorted(starts, numbers, side="right") - 1
    places = numbers - starts[examples]
    texts: dict[str, list[str]] = {"token": [], "before": [], "after": []}
    for example, pos in zip(examples.tolist(), places.tolist(), strict=True):
        words = model.to_strings(list(rows[example]))
        texts["token"].append(words[pos])
        texts["before"].append(" ".join(w.strip() for w in words[max(0, pos - AROUND) : pos]))
        texts["after"].append(" ".join(w.strip() for w in words[pos + 1 : pos + 1 + AROUND]))
    values = np.array([value for value, _ in found], np.float32)
    told = {"token": "Token", "before": "Tokens before it", "after": "Tokens after it"}
    variables = {
        "activation": ("rank", values, {"long_name": "Activation", "unit": unit}),
        "example": ("rank", examples, {"long_name": "Prompt", "unit": "number of the prompt"}),
        "pos": ("rank", places, {"long_name": "Position in the prompt", "unit": "tokens"}),
    } | {name: ("rank", np.array(texts[name], dtype=str), {"long_name": told[name], "unit": "text"}) for name in texts}
    return xr.Dataset(variables, coords={"rank": np.arange(len(found))})
