"""Lenses: what the stream already says at each layer, and which parts of the model wrote the final logits.

`logit_lens` reads every layer's stream through the model's own final norm and unembedding (TransformerLens's
`logit_readout`). `direct_logit_attribution` splits a logit, or the difference of two, into parts that add up to it.
That sum is linear once the final norm's per-token scale is frozen at the value it had in the run, which is the
convention here: a part's number says what it contributed at that scale, not what would happen without it.
TransformerLens's own attribution wants the norm folded into the weights; here the norm is applied, so raw weights,
which match Hugging Face, are enough.
Cost: one forward each for the activations and the logits; [part, d_model] of one position is kept.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from transformer_lens.tools.analysis import logit_readout

from workbench.core.errors import BadData, UnsupportedModel
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.models.inputs import Rows, batches, rows_of
from workbench.models.model import Model
from workbench.primitives.read.capture import Capture, capture

Ids = Sequence[int] | torch.Tensor
By = Literal["component", "head", "neuron"]


def logit_lens(model: Model, tokens: Ids, *, top_k: int = 5, targets: Sequence[int] | None = None) -> Result:
    """The next tokens that each layer's stream would predict if the model stopped there.

    Args:
        model: a causal language model.
        tokens: [pos] ids of one prompt.
        top_k: likeliest tokens to keep.
        targets: token ids to follow through the layers.

    Returns:
        Result over layer (0 is the embedding, k the stream after k blocks, the last is the model's own output), pos,
        rank: `token_id`, `token`, `probability`, and `entropy` in nats; with targets also `target_probability` and
            `target_rank` (tokens that are likelier; 0 is the top) over (layer, pos, target).

    Raises:
        UnsupportedModel: where final norm and unembedding of the last stream are not the model's logits. BadData: on
            tokens that are not one row.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    started = time.monotonic()
    model.require("causal-lm", "a logit lens")
    row, *others = rows_of(model, tokens)
    if others:
        raise BadData(f"the lens reads one prompt, got {1 + len(others)}")
    with model.alone():
        kept = capture(model, [row], ["resid_pre", "resid_post"])
        stack = torch.cat([kept["resid_pre", 0], *(kept["resid_post", layer] for layer in range(model.n_layers))])
        logits = model.forward(torch.tensor([row]))[0].float()
        top = _readout(model, stack, top_k=min(top_k, model.d_vocab))
        followed = _readout(model, stack, targets=[int(t) for t in targets]) if targets is not None else None
    own = logits.log_softmax(-1).gather(-1, top.top_ids[-1])
    _refuse_if_apart(
        model, top.values[-1], own, 1 + float(own.abs().max()), "the final norm and unembedding of its last stream"
    )
    dims, labels = (
        ("layer", "pos", "rank"),
        np.array(model.to_strings(top.top_ids.flatten().tolist())).reshape(top.top_ids.shape),
    )
    data = xr.Dataset(
        {
            "probability": (dims, _numpy(top.values.exp()), {"long_name": "Probability", "unit": "probability"}),
            "token_id": (dims, top.top_ids.cpu().numpy(), {"long_name": "Token id", "unit": "id"}),
            "token": (dims, labels, {"long_name": "Token", "unit": "text"}),
            "entropy": (
                ("layer", "pos"),
                _numpy(top.entropy),
                {"long_name": "Entropy of the next-token distribution", "unit": "nats"},
            ),
        },
        coords={
            "layer": range(model.n_layers + 1),
            "pos": range(len(row)),
            "rank": range(top.values.shape[-1]),
            "prompt": ("pos", model.to_strings(row)),
        },
    )
    if followed is not None and targets is not None:
        dims = ("layer", "pos", "target")
        data["target_probability"] = (
            dims,
            _numpy(followed.values.exp()),
            {"long_name": "Probability of the followed token", "unit": "probability"},
        )
        data["target_rank"] = (
            dims,
            followed.target_ranks.cpu().numpy(),
            {"long_name": "Rank of the followed token", "unit": "tokens above"},
        )
        data = data.assign_coords(target=model.to_strings([int(t) for t in targets]))
    spec = {"tokens": row, "top_k": top_k, "targets": None if targets is None else [int(t) for t in targets]}
    return Result(Provenance.start("logit_lens", spec, 0, model=model.provenance()).finish(started), data)


def _readout(model: Model, stack: torch.Tensor, **selected: Any) -> Any:
    try:
        return logit_readout(model.live, stack, return_type="log_probs", **selected)
    except (ValueError, NotImplementedError) as found:
        raise UnsupportedModel(f"the stream of {model.name} cannot be read as logits: {found}") from found


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


# ---- attribution ----


def direct_logit_attribution(
    model: Model, rows: Rows, answers: Ids, others: Ids | None = None, *, by: By = "component", batch_size: int = 32
) -> Result:
    """What each part of the model wrote into the answer's logit at each row's last token.

    Args:
        model: a causal language model, raw or folded weights.
        rows: token ids per row, any lengths.
        answers: [example] token ids. others: [example] ids whose logit is subtracted; none gives the logit itself.
        by: "component": embedding, attention and MLP of each layer; "head": attention split into heads and its output
            bias; "neuron": the MLP split into neurons and its output bias.

    Returns:
        Result with `attribution` [part, example] in logits, and `logit` [example], the model's own number, which is the
        sum over all parts. Parts are named embed, pos_embed, L0 attn, L0H1, L0 attn bias, L0 mlp, L0N5, L0 mlp bias,
        norm bias, unembed bias. A softcap or scale after the unembedding acts on the sum and belongs to no component:
        what it adds is the part "after unembedding", and a warning says so.

    Raises:
        UnsupportedModel: if the parts do not add up to the model's logits, which happens where a family writes to its
            stream in a way not listed here; numbers that do not add up are never returned. BadData: unless there is one
            answer a row.
    """
    started = time.monotonic()
    model.require("causal-lm", "direct logit attribution")
    rows = rows_of(model, rows)
    ids = [torch.as_tensor(list(given)) for given in ([answers] if others is None else [answers, others])]
    if by not in ("component", "head", "neuron") or any(len(given) != len(rows) for given in ids):
        raise BadData(
            f"by must be component, head or neuron and every row needs one answer: got by={by!r}, {len(rows)} rows and"
            f" {' and '.join(str(len(g)) for g in ids)} ids"
        )
    adapter: Any = model.live.adapter
    with model.alone():
        parts, before = _parts(model, rows, ids, by, batch_size)
        after = _signed(adapter.apply_output_logits_transform(before))
        logit = _signed(_last_logits(model, rows, ids, batch_size))
    labels, values = list(parts), torch.stack(list(parts.values()))
    size = 1 + float(values.abs().sum(0).max())
    _refuse_if_apart(model, values.sum(0), _signed(before), size, f"its parts by {by}")
    _refuse_if_apart(model, after, logit, size, "the final norm and unembedding of its last stream")
    warnings = []
    if not torch.equal(after, _signed(before)):
        labels, values = [*labels, "after unembedding"], torch.cat([values, (logit - _signed(before)).unsqueeze(0)])
        warnings.append(
            f"{model.name} transforms its logits after the unembedding (a softcap or scale); parts are of the logit"
            " before it, and 'after unembedding' is the rest"
        )
    data = xr.Dataset(
        {
            "attribution": (
                ("part", "example"),
                _numpy(values),
                {
                    "long_name": "Contribution to the logit" + ("" if others is None else " difference"),
                    "unit": "logits",
                },
            ),
            "logit": (
                ("example",),
                _numpy(logit),
                {"long_name": "Logit" if others is None else "Logit difference", "unit": "logits"},
            ),
        },
        coords={"part": labels, "example": range(len(rows)), "answer": ("example", model.to_strings(ids[0].tolist()))},
        attrs={
            "convention": "final norm's scale frozen at its value in the run",
            "max_gap": float((values.sum(0) - logit).abs().max()),
        },
    )
    spec = {"by": by, "answers": ids[0].tolist(), "others": None if others is None else ids[1].tolist()}
    provenance = Provenance.start(
        "direct_logit_attribution", spec, 0, model=model.provenance(), data={"n_examples": len(rows)}
    )
    return Result(provenance.finish(started), data, {}, False, tuple(warnings))


def _signed(per_token: torch.Tensor) -> torch.Tensor:
    """[1 or 2, example] logits of answers (and others) -> [example] logit or difference."""
    return per_token[0] if len(per_token) == 1 else per_token[0] - per_token[1]


def _last_logits(model: Model, rows: Rows, ids: list[torch.Tensor], batch_size: int) -> torch.Tensor:
    """[1 or 2, example] what the model itself gives at each row's last token."""
    found = torch.zeros(len(ids), len(rows))
    for batch in batches(rows, batch_size):
        last = model.forward(batch)[:, -1].float().cpu()
        found[:, batch.index] = torch.stack(
            [last.gather(1, given[batch.index].unsqueeze(1)).squeeze(1) for given in ids]
        )
    return found


@dataclass(frozen=True)
class _FrozenNorm:
    """A norm as the linear map it was in the run: gain / scale, after centring where it centres; its bias is a part
    of its own.
    """

    gain: torch.Tensor
    bias: torch.Tensor
    scale: torch.Tensor
    centres: bool

    @classmethod
    def read(cls, norm: Any, scale: torch.Tensor) -> "_FrozenNorm":
        weight, bias = (
            getattr(norm.original_component, name, None) for name in ("weight", "bias")
        )  # OLMo's norms have neither
        gain = torch.ones(()) if weight is None else weight.detach().float().cpu() + float(norm.uses_weight_offset)
        return cls(
            gain, torch.zeros(()) if bias is None else bias.detach().float().cpu(), scale, not norm.uses_rms_norm
        )

    def pull(self, direction: torch.Tensor) -> torch.Tensor:
        """[example, d_model] w after the norm -> the u with u . x = w . (norm(x) - bias)."""
        pulled = direction * self.gain / self.scale
        return pulled - pulled.mean(-1, keepdim=True) if self.centres else pulled


def _parts(
    model: Model, rows: Rows, ids: list[torch.Tensor], by: By, batch_size: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """{part: [example]} in logits, and [1 or 2, example] logits right after the unembedding."""
    live: Any = model.live
    if live.W_U.shape[0] != model.d_model:
        raise UnsupportedModel(
            f"{model.name} projects its stream of width {model.d_model} to {live.W_U.shape[0]} before the unembedding,"
            " so what is written into the stream is not added to a logit directly"
        )
    within = {"component": [], "head": ["z"], "neuron": ["mlp_post"]}[by]
    norms = [
        n
        for n in model.hook_names
        if n.endswith(("ln_final.hook_scale", "ln_final.hook_out", "ln1_post.hook_scale", "ln2_post.hook_scale"))
    ]
    sites = ["embed", "resid_pre", "resid_post", "attn_out", "mlp_out", *within, *norms]
    kept = capture(model, rows, sites, dtype=torch.float32, reduce="last", batch_size=batch_size)
    columns = [
        live.W_U[:, given.to(live.W_U.device)].detach().float().cpu() for given in ids
    ]  # [d_model, example] of a wide matrix
    biases = torch.stack([live.b_U[given.to(live.b_U.device)].detach().float().cpu() for given in ids])
    has_norm = "ln_final.hook_out" in norms
    ending = kept["ln_final.hook_out"] if has_norm else kept["resid_post", model.n_layers - 1]
    before = torch.stack([torch.einsum("em,me->e", ending, column) for column in columns]) + biases
    w = _signed(torch.stack([column.T for column in columns]))  # [example, d_model]
    final = _FrozenNorm.read(live.ln_final, kept["ln_final.hook_scale"]) if has_norm else None
    u = w if final is None else final.pull(w)

    has_pos = "pos_embed.hook_out" in model.hook_names
    embed = kept["embed"] if has_pos else kept["resid_pre", 0]
    parts = {"embed": (embed * u).sum(-1)} | (
        {"pos_embed": ((kept["resid_pre", 0] - embed) * u).sum(-1)} if has_pos else {}
    )
    for layer in range(model.n_layers):
        for site, name, split in (("attn_out", "attn", by == "head"), ("mlp_out", "mlp", by == "neuron")):
            parts |= (
                _inside(model, kept, layer, name, u) if split else {f"L{layer} {name}": (kept[site, layer] * u).sum(-1)}
            )
    constants = {"norm bias": (w * final.bias).sum(-1) if final else torch.zeros(1), "unembed bias": _signed(biases)}
    return parts | {name: value for name, value in constants.items() if bool(value.any())}, before


def _inside(model: Model, kept: Capture, layer: int, name: str, u: torch.Tensor) -> dict[str, torch.Tensor]:
    """Heads of an attention or neurons of an MLP, and its output bias: {part: [example]}. u: [example, d_model]
    reads the stream.
    """
    block: Any = model.live.blocks[layer]
    module, norm = (block.attn, "ln1_post") if name == "attn" else (block.mlp, "ln2_post")
    bias, constant = module.b_O if name == "attn" else module.b_out, torch.zeros(())
    if (scale := f"blocks.{layer}.{norm}.hook_scale") in model.hook_names:  # Gemma 2 normalises what a sublayer writes
        post = _FrozenNorm.read(getattr(block, norm), kept[scale])
        constant, u = (u * post.bias).sum(-1), post.pull(u)
    if name == "attn":
        split = torch.einsum("ehd,hdm,em->he", kept["z", layer], model.W_O(layer).detach().float().cpu(), u)
    else:
        split = (kept["mlp_post", layer] * (u @ module.W_out.detach().float().cpu().T)).T
    short = "H" if name == "attn" else "N"
    constant = constant + (0 if bias is None else (u * bias.detach().float().cpu()).sum(-1))
    return {f"L{layer}{short}{i}": value for i, value in enumerate(split)} | (
        {f"L{layer} {name} bias": constant} if bool(constant.any()) else {}
    )


def _refuse_if_apart(model: Model, found: torch.Tensor, wanted: torch.Tensor, size: float, what: str) -> None:
    """UnsupportedModel unless two routes to the same number agree up to rounding. size: of the numbers summed."""
    gap = float((found.cpu() - wanted.cpu()).abs().max())
    if not gap <= size * (1e-4 if model.dtype in (torch.float32, torch.float64) else 5e-2):
        raise UnsupportedModel(
            f"{model.name} gives other numbers than {what}: they differ by {gap:.3g}; this architecture is not"
            " supported"
        )
