"""A bench for ablations: prompts, a metric and a replacement, and what any set of units does to them.

Units are heads (z), neurons (mlp_post), the attention and the MLP of each layer (what they write), or the norms of each
layer (what they return, gain and bias included). Put in their place: zero, the mean over the prompts' tokens, or what
the unit holds in another prompt of the same length, never the prompt itself ("resample"). Every run counts its hooks
and the entries they replaced, and is refused where these are not exactly the ones asked for.
Cost: two forwards over the prompts to set up, one for each run; for "resample" the replaced sites of all prompts are
kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workbench.core.errors import BadData, NotFired, UnknownName, UnsupportedModel, WorkbenchError
from workbench.models.inputs import Batch, Inputs, batches, rows_of
from workbench.models.model import Hook, Model
from workbench.primitives.replace.ablation import Ablated, Report, ablate
from workbench.primitives.score.metrics import Metric

KINDS: dict[str, str] = {
    "heads": "Attention heads",
    "neurons": "MLP neurons",
    "layers": "Attention and MLP of each layer",
    "norms": "Norms of each layer",
}
VALUES: dict[str, str] = {
    "zero": "zero",
    "mean": "the mean over the prompts",
    "resample": "the same place in another prompt",
}
INSIDE = {"heads": "z", "neurons": "mlp_post"}  # kinds whose units share one hook a layer


# ---- what there is ----


def places(model: Model, kind: str) -> list[list[str]]:
    """Per layer the hooks that hold the kind's units: one for heads and neurons, otherwise one a unit.

    Raises:
        UnknownName: on a kind that is none. UnknownSite: where the model has no such site. UnsupportedModel: on norms
            that differ between layers.
    """
    if kind not in KINDS:
        raise UnknownName.among("kind of unit", kind, KINDS)
    layers = range(model.n_layers)
    if kind in INSIDE:
        return [[model.hook_name(INSIDE[kind], layer)] for layer in layers]
    if kind == "layers":
        return [[model.hook_name("attn_out", layer), model.hook_name("mlp_out", layer)] for layer in layers]
    known = sorted(set(model.hook_names.values()))
    found = [
        [name for name in known if name.startswith(f"blocks.{layer}.ln") and name.endswith(".hook_out")]
        for layer in layers
    ]
    if not found[0] or len({len(names) for names in found}) > 1:
        raise UnsupportedModel(
            f"{model.name} shows {sorted({len(names) for names in found})} norms a layer, and a map needs the same"
            " number, at least one, in every layer"
        )
    return found


def unit_labels(model: Model, kind: str) -> list[str]:
    """What the units of one layer are called."""
    found = places(model, kind)
    if kind == "heads":
        return [str(h) for h in range(model.n_heads)]
    if kind == "neurons":
        return [str(n) for n in range(_width(model, found[0][0]))]
    return ["attention", "MLP"] if kind == "layers" else [name.split(".")[2] for name in found[0]]


def _width(model: Model, name: str) -> int:
    """Neurons at a hook, read off the tensor itself: some adapters record another MLP width than there is."""
    seen: list[int] = []
    model.forward(
        torch.zeros(1, 1, dtype=torch.long), hook_fns=[(name, lambda tensor, hook: seen.append(tensor.shape[-1]))]
    )
    return seen[0]


# ---- the runs ----


@dataclass(frozen=True)
class Outcome:
    """value: [example] of the metric. firings, n_replaced: hooks that ran and entries they replaced, over all prompts.
    effect: mean over the first batch of the largest |logit change|, in logits."""

    value: np.ndarray
    firings: int
    n_replaced: int
    effect: float


class Bench:
    """Prompts, a metric and what goes into the place of ablated units; `run(mask)` says what a set of units does.

    Args:
        rows: texts, rows of ids of any lengths, a tensor or a Batch. metric: made for these prompts.
        kind, value: of KINDS and VALUES. batch_size: prompts of one length run together.
        seed: pairs prompts for "resample".

    Attributes:
        labels: of the units in a layer. shape: (layer, unit). clean: [example] the metric of the untouched model.

    Raises:
        BadData: where "resample" has no other prompt of some length.
    """

    def __init__(
        self,
        model: Model,
        rows: Inputs,
        metric: Metric,
        *,
        kind: str = "heads",
        value: str = "zero",
        batch_size: int = 16,
        seed: int = 0,
    ):
        model.require("causal-lm", "an ablation curve")
        if value not in VALUES:
            raise UnknownName.among("replacement", value, VALUES)
        rows = rows_of(model, rows)
        self.model, self.rows, self.metric, self.kind, self.value, self.seed = model, rows, metric, kind, value, seed
        self.places, self.labels = places(model, kind), unit_labels(model, kind)
        self.shape = (model.n_layers, len(self.labels))
        self.batches = list(batches(rows, batch_size))
        self.clean = np.full(len(rows), np.nan, np.float32)
        with model.alone():
            for i, batch in enumerate(self.batches):
                logits = model.forward(batch)
                self._first = logits if i == 0 else self._first
                self.clean[batch.index.numpy()] = self._measured(logits, batch)
            self._given = self._replacements()

    def run(self, mask: np.ndarray) -> Outcome:
        """The metric with the units of `mask`, bool [layer, unit], replaced in every prompt.

        Raises:
            NotFired: if not exactly these were replaced.
        """
        if mask.shape != self.shape:
            raise WorkbenchError(
                f"mask has shape {mask.shape} and the {self.kind} of {self.model.name} are {self.shape} (layer, unit)"
            )
        if not mask.any():
            return Outcome(self.clean.copy(), 0, 0, 0.0)
        value, firings, replaced, effect = np.empty(len(self.rows), np.float32), 0, 0, 0.0
        with self.model.alone():
            for i, (batch, given) in enumerate(zip(self.batches, self._given, strict=True)):
                done = self._ablated(batch, mask, given, self._first if i == 0 else None)
                value[batch.index.numpy()] = self._measured(done.output, batch)
                firings, replaced = firings + done.report.firings, replaced + done.report.n_replaced
                effect = effect if done.report.effect is None else done.report.effect
        if replaced != mask.sum() * len(self.rows):
            raise NotFired(
                f"{replaced} entries were replaced in {self.model.name} where {mask.sum()} units on {len(self.rows)}"
                " prompts were asked for"
            )
        return Outcome(value, firings, replaced, effect)

    def _measured(self, logits: torch.Tensor, batch: Batch) -> np.ndarray:
        return self.metric(logits, batch.index.to(logits.device)).float().cpu().numpy()

    def _ablated(
        self, batch: Batch, mask: np.ndarray, given: Mapping[str, torch.Tensor], clean: torch.Tensor | None
    ) -> Ablated:
        layers = np.flatnonzero(mask.any(1)).tolist()
        if self.kind in INSIDE:
            # ablate puts in what the reference holds: a mean is the same for all rows, a resampled row has its own.
            reference = {layer: given[self.places[layer][0]] for layer in layers} if given else None
            options: dict[str, Any] = {
                "site": INSIDE[self.kind],
                "value": "mean" if given else "zero",
                "reference": reference,
                "layers": layers,
            }
            return ablate(self.model, batch, torch.from_numpy(mask), clean=clean, compare=clean is not None, **options)
        report = Report(n_possible=mask.size * len(batch.index))

        def put(name: str) -> Hook:
            def replace(tensor: torch.Tensor, hook: object) -> torch.Tensor:
                report.firings, report.n_replaced = report.firings + 1, report.n_replaced + len(tensor)
                return (
                    given[name].to(tensor.device, tensor.dtype).expand_as(tensor) if given else torch.zeros_like(tensor)
                )

            return name, replace

        output = self.model.forward(
            batch, hook_fns=[put(self.places[layer][unit]) for layer, unit in zip(*np.nonzero(mask), strict=True)]
        )
        if clean is not None:
            report.effect = float((output - clean).abs().flatten(1).amax(1).mean())
        return Ablated(output, report, batch)

    def _replacements(self) -> list[dict[str, torch.Tensor]]:
        """Per batch {hook: what is put in}, empty for zero."""
        names = [name for layer in self.places for name in layer]
        if self.value == "zero":
            return [{} for _ in self.batches]
        if self.value == "mean":
            sums: dict[str, torch.Tensor] = {}
            for batch in self.batches:
                for name, tensor in seen(self.model, batch.tokens, names).items():
                    sums[name] = sums.get(name, 0) + tensor.double().sum((0, 1))
            n_tokens = sum(batch.tokens.numel() for batch in self.batches)
            means = {name: (total / n_tokens).float() for name, total in sums.items()}
            return [means for _ in self.batches]
        twins = _twins([len(row) for row in self.rows], self.seed)
        return [
            seen(self.model, torch.tensor([list(self.rows[twins[int(i)]]) for i in batch.index]), names)
            for batch in self.batches
        ]


def _twins(lengths: Sequence[int], seed: int) -> dict[int, int]:
    """{prompt: another prompt of the same length}; every prompt is used once."""
    rng, twins = np.random.default_rng([seed, 11]), {}
    for length in sorted(set(lengths)):
        members = [i for i, n in enumerate(lengths) if n == length]
        if len(members) < 2:
            raise BadData(
                f"prompt {members[0]} is the only one of {length} tokens, so nothing of its length can be resampled"
                " into it; use mean or zero, or prompts of one length"
            )
        shift = int(rng.integers(1, len(members)))
        twins |= {member: members[(i + shift) % len(members)] for i, member in enumerate(members)}
    return twins


def seen(model: Model, tokens: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """{hook: a copy of its tensor} in one run; NotFired if one never ran."""
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Hook:
        return name, lambda tensor, hook: kept.__setitem__(name, tensor.detach().clone())

    model.forward(tokens, hook_fns=[keep(name) for name in names])
    if silent := [name for name in names if name not in kept]:
        raise NotFired(f"{silent[0]} never fired in {model.name}, so nothing was read there")
    found = dict(kept)
    kept.clear()  # the hooks' closures live until the garbage collector comes by
    return found
