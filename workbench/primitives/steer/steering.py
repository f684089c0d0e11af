"""Steering: add a multiple of a direction to the residual stream, in a forward or at every step of a generation.

Every steered run reports how often its hook fired, how many positions it changed and how far the output moved.
Coefficient 0 runs the same code and adds zero, so coefficients are comparable. `sweep_coefficients` runs random
directions of the same norm beside the real one, because enough of any vector changes what a model says. Cost: `steer`
two forwards; `generate` that of `models.generate`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
import xarray as xr

from workbench.core.errors import BadData, NotFinite, NotFired, WorkbenchError
from workbench.core.progress import SILENT, Cancelled, Progress
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.models.generate import Step
from workbench.models.generate import generate as continue_rows
from workbench.models.inputs import Inputs, Rows, batches, rows_of
from workbench.models.model import Hook, Model
from workbench.primitives.replace.ablation import Report
from workbench.primitives.score.generation_metrics import continuation_loss, degeneration
from workbench.primitives.score.metrics import Metric
from workbench.primitives.steer.directions import Direction, random_like

Positions = Literal["all", "generated", "prompt"]
Normalise = Literal["none", "unit", "stream"]
Prompt = torch.Tensor | Sequence[int] | int  # tokens of each row that are prompt: one number, or [row]


@dataclass(frozen=True)
class Addition:
    """`coefficient` times a direction, added at its site.

    positions: "all" tokens, those of the "prompt", or those after it ("generated").
    normalise: what a coefficient of 1 adds: "none" the vector as it is; "unit" the vector at norm 1, so the coefficient
    is in the unit of the activations; "stream" a vector as long as the activation at that very position.
    """

    direction: Direction
    coefficient: float
    positions: Positions = "all"
    normalise: Normalise = "none"

    def __post_init__(self) -> None:
        for field, choices in (("positions", get_args(Positions)), ("normalise", get_args(Normalise))):
            if getattr(self, field) not in choices:
                raise WorkbenchError(f"{field} must be one of {', '.join(choices)}, got {getattr(self, field)!r}")
        if not np.isfinite(self.coefficient):
            raise WorkbenchError(f"coefficient must be a finite number, got {self.coefficient}")

    def hook(self, model: Model, n_prompt: Prompt, report: Report, places: torch.Tensor | None = None) -> Hook:
        """For `Model.forward`; counts firings and (row, position) entries into `report`.

        Args:
            places: [row, pos] which token of its row each column is, -1 at padding, which is never steered; 0, 1, ..
                if not given.

        Raises:
            BadData: if the direction is not of this model's width. UnknownSite: if the model has no such site.
        """
        vector = self.direction.vector if self.normalise == "none" else self.direction.unit().vector
        if len(vector) != model.d_model:
            raise BadData(
                f"the direction ({self.direction.source}) has {len(vector)} entries and the stream of {model.name}"
                f" {model.d_model}"
            )

        def add(tensor: torch.Tensor, hook: object) -> torch.Tensor:
            columns = torch.arange(tensor.shape[1]) if places is None else places
            in_prompt, real = columns < torch.as_tensor(n_prompt).cpu().reshape(-1, 1), columns >= 0
            chosen = {"all": torch.ones_like(in_prompt), "prompt": in_prompt, "generated": ~in_prompt}[self.positions]
            at = (chosen & real).expand(tensor.shape[:2])
            report.firings += 1
            report.n_replaced += int(at.sum())
            report.n_possible += int(real.expand(at.shape).sum())
            at = at.to(tensor.device)
            scale = tensor.float().norm(dim=-1, keepdim=True) if self.normalise == "stream" else 1.0
            step = self.coefficient * scale * vector.to(tensor.device)
            return torch.where(at.unsqueeze(-1), tensor + step.to(tensor.dtype), tensor)

        return model.hook_name(self.direction.site, self.direction.layer), add

    def require_fired(self, model: Model, report: Report) -> None:
        """NotFired if the hook never ran."""
        if not report.firings:
            raise NotFired(
                f"the hook at {self.direction.site} of layer {self.direction.layer} never fired in {model.name}, so"
                " this is the untouched run"
            )


# ---- one forward ----


@dataclass(frozen=True)
class Steered:
    """Output of a steered run and its report; the units of the report are positions of a row."""

    output: torch.Tensor
    report: Report


def steer(
    model: Model,
    rows: Inputs,
    direction: Direction,
    coefficient: float,
    *,
    positions: Positions = "all",
    normalise: Normalise = "none",
    prompt_lengths: Sequence[int] | None = None,
    clean: torch.Tensor | None = None,
) -> Steered:
    """One forward with `coefficient` times the direction added.

    Args:
        model: any Model that reads tokens.
        rows: prompts of one length: texts, rows of ids, [row, pos] ids or a Batch.
        coefficient: how much; 0 gives the untouched run through the same hook.
        positions, normalise: as in `Addition`.
        prompt_lengths: [row] how many tokens of each row are prompt; all of them if not given.
        clean: output of the untouched run, to measure the effect without running it again.

    Returns:
        Steered(output, report); `report.effect` is the mean over rows of the largest |logit change|, in logits.

    Raises:
        NotFired: if the hook never ran. BadData: on rows of several lengths or a direction of another width.
    """
    rows = rows_of(model, rows)
    lengths = {len(row) for row in rows}
    if len(lengths) != 1 or (prompt_lengths is not None and len(prompt_lengths) != len(rows)):
        counts = f"{len(rows)} rows of lengths {sorted(lengths)}" + (
            "" if prompt_lengths is None else f" and {len(prompt_lengths)} prompt lengths"
        )
        raise BadData(
            f"steer runs rows of one length, with a prompt length each if any, got {counts}; steer each length on its"
            " own (models.inputs.batches groups them)"
        )
    tokens = torch.as_tensor(rows)
    with model.alone():
        clean = model.forward(tokens) if clean is None else clean
        return _steer(
            model,
            tokens,
            Addition(direction, coefficient, positions, normalise),
            tokens.shape[1] if prompt_lengths is None else prompt_lengths,
            clean,
        )


def _steer(model: Model, tokens: torch.Tensor, addition: Addition, n_prompt: Prompt, clean: torch.Tensor) -> Steered:
    report = Report()
    output = model.forward(tokens, hook_fns=[addition.hook(model, n_prompt, report)])
    addition.require_fired(model, report)
    report.effect = float(_moved(output, clean).mean())
    if not report.n_replaced:
        report.warnings.append(
            f"no position was steered: none of these tokens is one of positions={addition.positions!r}"
        )
    elif addition.coefficient and report.effect == 0:
        report.warnings.append(
            f"{report.n_replaced} positions were steered at {addition.direction.site} and the output did not move:"
            " nothing downstream reads them"
        )
    return Steered(output, report)


def _moved(output: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """[row] largest |logit change|."""
    return (output.float() - clean.float()).abs().flatten(1).amax(1)


# ---- generation ----


def generate(
    model: Model,
    rows: Inputs,
    *,
    max_new_tokens: int,
    direction: Direction | None = None,
    coefficient: float = 0.0,
    positions: Positions = "all",
    normalise: Normalise = "none",
    **settings: Any,
) -> list[list[int]]:
    """`models.generate` with the direction added at every step.

    Args:
        model: a causal language model. rows: texts, rows of ids of any lengths, a tensor or a Batch.
        direction, coefficient, positions, normalise: as in `Addition`; no direction is the untouched model.
        settings: the others of `models.generate.generate`, such as temperature, stop_ids and progress. Two
            coefficients are sampled under the same draws.

    Returns:
        New ids per row, in the order given, without what stopped it: [] where the model stopped at once.

    Raises:
        NotFired: if the hook never ran. NotFinite: if the coefficient is too large for the number format.
        WorkbenchError: on a coefficient without a direction. Others as `models.generate.generate`.
    """
    if direction is None and coefficient:
        raise WorkbenchError(f"coefficient {coefficient:g} multiplies a direction, and none was given")
    if direction is None:
        return continue_rows(model, rows, max_new_tokens=max_new_tokens, **settings)
    addition = Addition(direction, coefficient, positions, normalise)
    return _generate(model, rows, addition, max_new_tokens=max_new_tokens, **settings)


def _generate(model: Model, rows: Inputs, addition: Addition, **settings: Any) -> list[list[int]]:
    report = Report()

    def hooks(step: Step) -> list[Hook]:
        return [addition.hook(model, step.n_prompt, report, step.places)]

    try:
        new = continue_rows(model, rows, hooks=hooks, **settings)
    except NotFinite as found:
        at = f"coefficient {addition.coefficient:g} in {model.dtype_name}"
        raise NotFinite(f"logits of {model.name} are not finite at {at}; lower it or load it in float32") from found
    if any(map(len, new)):
        addition.require_fired(model, report)
    return new


# ---- many coefficients ----

MEASURED = {
    "n_tokens": ("New tokens", "tokens"),
    "is_empty": ("Stopped at once", "share of examples"),
    "longest_run_share": ("Longest run of one token", "share of tokens"),
    "repeated_ngram_share": ("Repeated n-grams", "share of n-grams"),
    "is_degenerate": ("Empty, stuck or looping", "share of examples"),
    "continuation_loss": ("Loss of the continuation under the unsteered model", "nats/token"),
    "effect": ("Largest logit change on prompt and continuation", "logits"),
}
GENERATIONS = ["arm", "coefficient", "example", "prompt", "text", "ids"]


def sweep_coefficients(
    model: Model,
    rows: Inputs,
    direction: Direction,
    coefficients: Sequence[float],
    *,
    metric: Metric | None = None,
    max_new_tokens: int,
    n_random: int = 3,
    positions: Positions = "all",
    normalise: Normalise = "none",
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress = SILENT,
) -> Result:
    """What each coefficient does to target and text, for the direction and for random ones of the same norm.

    Cost: (1 + n_random) x coefficients x (one generation and 2 forwards, or 3 with a metric); 0 is run like the others.

    Args:
        metric: the target, read from the steered logits of the prompt; made for these rows in this order.
        n_random: random arms. seed: draws them, and the samples at temperature > 0.
        progress: per new token; cancelling gives a partial Result with nan where it did not come.
        the rest: as in `generate`.

    Returns:
        Result over (arm, coefficient, example): `metric` if given, `continuation_loss` (nan for empty ones), the
        measures of `generation_metrics.degeneration`, `effect`; the texts in tables["generations"].

    Raises:
        BadData: on repeated coefficients, or a metric where only generated positions are steered. Others as `generate`.
    """
    rows = rows_of(model, rows)
    started, coefficients = time.monotonic(), [float(c) for c in coefficients]
    if not coefficients or len(set(coefficients)) < len(coefficients) or not rows:
        raise BadData(f"a sweep needs rows and different coefficients, got {len(rows)} rows and {coefficients}")
    if metric is not None and positions == "generated":
        raise BadData(
            "the metric reads the prompt's logits, which positions='generated' leaves as they are; use 'all' or"
            " 'prompt', or no metric"
        )
    draws = np.random.SeedSequence(seed).generate_state(max(n_random, 1)).tolist()[:n_random]
    arms = {"direction": direction} | {f"random {i}": random_like(direction, draw) for i, draw in enumerate(draws)}
    spec = {
        "source": direction.source,
        "site": direction.site,
        "layer": direction.layer,
        "norm": direction.norm,
        "coefficients": coefficients,
        "positions": positions,
    }
    spec |= {
        "normalise": normalise,
        "metric": metric and metric.name,
        "max_new_tokens": max_new_tokens,
        "n_random": n_random,
        "temperature": temperature,
    }
    provenance = Provenance.start("steering", spec, seed, model=model.provenance(), data={"n_examples": len(rows)})
    described = MEASURED | ({"metric": (metric.name, metric.unit)} if metric else {})
    shape = (len(arms), len(coefficients), len(rows))
    variables = {
        key: (("arm", "coefficient", "example"), np.full(shape, np.nan, np.float32), {"long_name": title, "unit": unit})
        for key, (title, unit) in described.items()
    }
    data = xr.Dataset(variables, coords={"arm": list(arms), "coefficient": coefficients, "example": range(len(rows))})
    texts: list[tuple[Any, ...]] = []
    warnings: list[str] = []

    def result(partial: bool) -> Result:
        return Result(
            provenance.finish(started),
            data,
            {"generations": pd.DataFrame(texts, columns=GENERATIONS)},
            partial,
            tuple(dict.fromkeys(warnings)),
        )

    try:
        for cell, (arm, coefficient) in enumerate(product(arms, coefficients)):
            part = _Part(progress, cell, len(arms) * len(coefficients), f"{arm}, coefficient {coefficient:g}")
            addition = Addition(arms[arm], coefficient, positions, normalise)
            how: dict[str, Any] = {"temperature": temperature, "seed": seed, "batch_size": batch_size}
            try:
                new = _generate(model, rows, addition, max_new_tokens=max_new_tokens, progress=part, **how)
            except NotFinite as found:  # the other cells are worth having
                warnings.append(str(found))
                continue
            for key, values in _measure(model, rows, new, addition, metric, batch_size, warnings).items():
                data[key].values[divmod(cell, len(coefficients))] = values
            texts += [(arm, coefficient, i, _text(model, rows[i]), _text(model, ids), ids) for i, ids in enumerate(new)]
            progress.keep(lambda: result(True))
            part.update(part.total + 1, part.total)
    except Cancelled:
        return result(True)
    return result(False)


class _Part(Progress):
    """One cell's share of a sweep: its steps, and one more for measuring."""

    def __init__(self, whole: Progress, cell: int, n_cells: int, text: str) -> None:
        super().__init__()
        self.whole, self.cell, self.n_cells, self.text = whole, cell, n_cells, text

    def update(self, done: int, total: int, text: str = "") -> None:
        self.total, steps = total, total + 1
        self.whole.update(self.cell * steps + done, steps * self.n_cells, self.text)


def _text(model: Model, ids: Sequence[int]) -> str:
    return " ".join(map(str, ids)) if model.tokenizer is None else model.tokenizer.decode(list(ids))


def _measure(
    model: Model,
    rows: Rows,
    new: list[list[int]],
    addition: Addition,
    metric: Metric | None,
    batch_size: int,
    warnings: list[str],
) -> dict[str, np.ndarray]:
    """{variable: [example]} of one cell."""
    broken = pd.DataFrame([degeneration(ids) for ids in new])
    found = {str(key): broken[key].to_numpy(float) for key in broken}
    found |= {key: np.full(len(rows), np.nan) for key in ("continuation_loss", "effect")}
    for batch in batches([[*row, *ids] for row, ids in zip(rows, new, strict=True)], batch_size):
        index, n_prompt = batch.index.numpy(), [len(rows[i]) for i in batch.index.tolist()]
        clean = model.forward(batch)
        steered = _steer(model, batch.tokens, addition, n_prompt, clean)
        warnings += steered.report.warnings
        found["effect"][index] = _moved(steered.output, clean).cpu().numpy()
        found["continuation_loss"][index] = continuation_loss(clean, batch.tokens, n_prompt).cpu().numpy()
    if metric is not None:
        found["metric"] = np.full(len(rows), np.nan)
        for batch in batches(rows, batch_size):
            steered = model.forward(batch, hook_fns=[addition.hook(model, batch.tokens.shape[1], Report())])
            found["metric"][batch.index.numpy()] = metric(steered, batch.index).cpu().numpy()
    return found
