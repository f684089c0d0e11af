"""What the analysis depends on (`Spec`) and how it runs (`run`)."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from workbench.core import spec as core_spec
from workbench.core.errors import BadData, BadSpec
from workbench.core.places import data_folder
from workbench.core.progress import SILENT, Cancelled, Progress
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.core.spec import param
from workbench.datasets import tasks
from workbench.datasets.bigram_backcopy import VOCABULARY, BigramBackcopy, is_trigger
from workbench.models import ModelSpec, load
from workbench.models.inputs import Batch, batches
from workbench.models.model import Model
from workbench.primitives.read.capture import observe
from workbench.primitives.replace.ablation import ablate
from workbench.primitives.score import head_scores as hs

from .claims import BEST, FIRST_TOKEN, iou_matrix, share_near, summary

STEM = "attention_sinks"
Task = tasks.NextTokenTask | tasks.ChoiceTask


@dataclass(frozen=True)
class Spec(core_spec.Spec):
    """Everything the analysis depends on."""

    model: ModelSpec = param(ModelSpec(), "the model whose heads are scored and zeroed")
    task: str = param(
        "bigram_backcopy",
        "what accuracy is: the organism's language, lettered multiple choice, or next-token on texts",
        choices=("bigram_backcopy", "choices", "text"),
    )
    counted: str = param(
        "repeated", "bigram_backcopy: count the words after triggers, or all next words", choices=("repeated", "all")
    )
    source: str | None = param(
        None, "JSONL of questions, text file with a text a line, or hub data set; the shipped ones if not given"
    )
    config: str | None = param(None, "configuration of a hub data set")
    n_inputs: int = param(200, "inputs evaluated", unit="inputs", ge=1)
    length: int = param(64, "tokens an input (bigram_backcopy, text)", unit="tokens", ge=4)
    n_shots: int = param(5, "worked examples before each question (choices)", ge=0)
    scores: tuple[str, ...] = param(tuple(hs.SCORES), "head scores to compare", choices=tuple(hs.SCORES))
    shares: tuple[float, ...] = param(
        (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3), "target shares of zeroed heads, from 0", ge=0, le=1
    )
    tolerance: float = param(1.0, "accuracy that may be lost", unit="points", ge=0)
    n_random: int = param(3, "draws of the random baseline", ge=1)
    sink_threshold: float = param(0.3, "attention to the first token above which a head is a sink", ge=0, le=1)
    controls: bool = param(True, "also run the untrained twin, and the no-BOS organism where the model is its twin")
    batch_size: int = param(100, "inputs a forward", ge=1)
    seed: int = param(0, "draws inputs, questions and random heads", ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if list(self.shares) != sorted(set(self.shares)) or self.shares[:1] != (0.0,):
            raise BadSpec(f"attention_sinks.shares must increase from 0, got {self.shares}")
        if missing := {BEST, FIRST_TOKEN} - set(self.scores):
            raise BadSpec(
                f"attention_sinks.scores must contain {' and '.join(sorted(missing))}: the claims compare them"
            )

    @classmethod
    def tiny(cls) -> "Spec":
        """The organism that ships, on a CPU in well under a minute."""
        return cls()

    @classmethod
    def small(cls, model: str) -> "Spec":
        """Any causal language model, on the short texts that ship: minutes on a CPU for half a billion parameters."""
        return cls(model=ModelSpec(name=model), task="text", n_inputs=24, length=48, controls=False, batch_size=8)

    @classmethod
    def paper(cls) -> "Spec":
        """Llama-3.1-8B on MMLU, 5-shot, as the paper; about 20 GB of GPU memory."""
        model = ModelSpec(name="meta-llama/Llama-3.1-8B", dtype="bfloat16")
        return cls(
            model=model,
            task="choices",
            source="cais/mmlu",
            config="all",
            n_inputs=14042,
            controls=False,
            batch_size=4,
            scores=hs.MAIN,
        )


# ---- running ----


def run(spec: Spec, *, model: Model | None = None, progress: Progress = SILENT, resume: Result | None = None) -> Result:
    """Score every head on every input, zero the inactive ones at each threshold, and measure accuracy.

    Args:
        spec: what to run.
        model: used instead of loading `spec.model`; a causal language model.
        progress: per (score, share) pass; cancelling gives a partial Result.
        resume: a partial Result of the same spec and weights, whose finished passes are not run again.

    Returns:
        Result with, over score, share, input, layer, head: `score`, `threshold`, `accuracy` (share of right answers),
        `realised` share zeroed, the random and reversed baselines, `sink_weight`, and the controls' measurements.

    Raises:
        UnsupportedModel: if the model is not a causal language model (use `score_heads` for encoders).
    """
    started = time.monotonic()
    own = model is None
    model = load(spec.model) if model is None else model
    model.require("causal-lm", "zeroing heads by accuracy")
    try:
        task = make_task(spec, model)
        provenance = Provenance.start(
            STEM,
            spec.to_dict(),
            spec.seed,
            model=model.provenance(),
            data={"task": task.name, "n_inputs": task.n_inputs, "source": spec.source or "shipped"},
        )
        data = _empty(spec, task.n_inputs, model, task.name)
        if resume is not None:
            _take_over(data, resume, provenance)
        partial, warnings = False, list(task.warnings)
        try:
            _baseline(data, model, task, spec, progress)
            _sweep(
                data,
                model,
                task,
                spec,
                progress,
                warnings,
                lambda: Result(provenance.finish(started), data, {}, True, tuple(warnings)),
            )
            if spec.controls:
                _controls(data, spec)
        except Cancelled:
            partial = True
        provenance = provenance.finish(started)
    finally:
        if own:
            model.unload()
    tables = {}
    if not partial:
        data["overlap"] = iou_matrix(data)
        tables["summary"] = summary(data)
    return Result(provenance, data, tables, partial, tuple(dict.fromkeys(warnings)))


def make_task(spec: Spec, model: Model) -> Task:
    """The inputs and how an answer counts as right."""
    rng = np.random.default_rng([spec.seed, 7])  # not a training stream: those are seeded by one integer
    if spec.task == "bigram_backcopy":
        if model.d_vocab != len(VOCABULARY):
            raise BadData(
                f"{model.name} has {model.d_vocab} tokens and the bigram-backcopy language {len(VOCABULARY)}; use"
                " task='text' or task='choices' for other models"
            )
        language = BigramBackcopy()
        tokens = language.sample(spec.n_inputs, spec.length, rng)
        if spec.counted == "all":
            return tasks.NextTokenTask(tokens, language.predictable(tokens), name="accuracy on all next words")
        return tasks.NextTokenTask(tokens, language.repeated(tokens), name="accuracy on repeated words")
    if spec.task == "text":
        return _text_task(spec, model)
    items = _choice_items(spec)
    order = rng.permutation(len(items))
    if len(items) <= spec.n_shots:
        raise BadData(f"{len(items)} questions leave none to ask after {spec.n_shots} shots")
    shots = [items[i] for i in order[: spec.n_shots]]
    asked = [items[i] for i in order[spec.n_shots : spec.n_shots + spec.n_inputs]]
    return tasks.choice_task(asked, shots, model.to_rows, n_ctx=model.n_ctx)


def _choice_items(spec: Spec) -> list[tasks.ChoiceItem]:
    source = spec.source or str(data_folder() / STEM / "questions.jsonl")
    if source.endswith(".jsonl"):
        return tasks.read_choice_items(source)
    return tasks.hub_choice_items(
        source, config=spec.config, split="test", n=spec.n_inputs + spec.n_shots, seed=spec.seed
    )


def _text_task(spec: Spec, model: Model) -> tasks.NextTokenTask:
    source = spec.source or str(data_folder() / STEM / "texts.txt")
    try:
        lines = [line.strip() for line in Path(source).read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as found:
        raise BadData(
            f"texts could not be read ({type(found).__name__}); source must be a text file with one text a line"
        ) from None
    rows = [row[: spec.length] for row in model.to_rows(lines) if len(row) >= spec.length][: spec.n_inputs]
    if not rows:
        raise BadData(f"no text has {spec.length} tokens for {model.name}; lower length")
    tokens = np.array(rows)
    return tasks.NextTokenTask(tokens, np.ones((len(rows), spec.length - 1), bool), name="next-token accuracy on texts")


def score_heads(model: Model, tokens: torch.Tensor | Batch, keys: Sequence[str] = hs.MAIN) -> xr.DataArray:
    """Head scores of the untouched model: any model with attention, encoders and image classifiers included.

    Args:
        tokens: [batch, pos] ids, a Batch, or pixels for an image classifier (the first token is then [CLS]).
        keys: which scores.

    Returns:
        [score, input, layer, head]; layer by layer, so no more than one layer's pattern is held.
    """
    found: list[dict[str, torch.Tensor]] = [{} for _ in range(model.n_layers)]
    mask = tokens.mask if isinstance(tokens, Batch) else None

    def look(layer: int, acts: Mapping[str, torch.Tensor]) -> None:
        W_O = model.W_O(layer) if any(k.startswith("apon") for k in keys) else None
        scores = hs.head_scores(acts["pattern"], acts["v"], acts["z"], mask, W_O=W_O, keys=keys)
        found[layer] = {key: value.cpu() for key, value in scores.items()}

    observe(model, tokens, ("pattern", "v", "z"), look)
    values = np.stack([np.stack([found[layer][key].numpy() for layer in range(model.n_layers)], 1) for key in keys])
    coords = {"score": list(keys), "layer": range(model.n_layers), "head": range(model.n_heads)}
    return xr.DataArray(
        values, dims=("score", "input", "layer", "head"), coords=coords, name="score", attrs={"long_name": "Head score"}
    )


def _empty(spec: Spec, n_inputs: int, model: Model, task_name: str) -> xr.Dataset:
    """All variables at nan, so that a cancelled run says which cells it never reached."""
    sizes = {
        "score": len(spec.scores),
        "share": len(spec.shares),
        "input": n_inputs,
        "layer": model.n_layers,
        "head": model.n_heads,
        "draw": spec.n_random,
    }
    described = {
        "value": (("score", "input", "layer", "head"), "Head score", "its own"),
        "threshold": (("score", "share"), "Threshold on the score", "its own"),
        "accuracy": (("score", "share", "input"), "Accuracy with inactive heads zeroed", "share right"),
        "realised": (("score", "share"), "Heads zeroed", "share of heads"),
        "effect": (("score", "share"), "Largest logit change on the first batch", "logits"),
        "random_accuracy": (("draw", "share", "input"), "Accuracy with random heads zeroed", "share right"),
        "random_realised": (("draw", "share"), "Heads zeroed at random", "share of heads"),
        "reversed_accuracy": (
            ("share", "input"),
            "Accuracy with the heads of LARGEST output norm zeroed",
            "share right",
        ),
        "sink_weight": (("input", "layer", "head"), "Attention to the first token", "share of attention"),
        "trigger_ratio": (("layer", "head"), "Output norm at triggers over its average", "ratio"),
        "dormant": (("layer", "head"), "Inputs without triggers on which the head is inactive", "share of inputs"),
        "untrained_weight": (("layer", "head"), "First-token weight, untrained twin", "share of attention"),
        "untrained_accuracy": (("arm", "input"), "Accuracy of the untrained twin", "share right"),
        "nobos_sink_weight": (
            ("input", "layer", "head"),
            "Attention to the first token, twin without BOS",
            "share of attention",
        ),
    }
    sizes["arm"] = 2
    coords = {
        "score": list(spec.scores),
        "share": list(spec.shares),
        "layer": range(model.n_layers),
        "head": range(model.n_heads),
        "arm": [BEST, "random"],
        "title": ("score", [hs.SCORES[k].title for k in spec.scores]),
        "unit": ("score", [hs.SCORES[k].shown_unit for k in spec.scores]),
    }
    variables = {
        name: (dims, np.full([sizes[d] for d in dims], np.nan, np.float32), {"long_name": title, "unit": unit})
        for name, (dims, title, unit) in described.items()
    }
    attrs = {
        "sink_threshold": spec.sink_threshold,
        "tolerance": spec.tolerance,
        "n_pos": spec.length,
        "task": spec.task,
        "accuracy_of": task_name,
    }
    return xr.Dataset(variables, coords=coords, attrs=attrs)


def _take_over(data: xr.Dataset, resume: Result, provenance: Provenance) -> None:
    """Copy the finished cells of a partial run, if it is of the same spec and weights."""
    before, now = resume.provenance, provenance
    if before.spec != now.spec or before.model.get("weights") != now.model.get("weights"):
        raise BadData(
            "the partial result is of another spec or other weights, so its cells cannot be reused; give another output"
            " folder"
        )
    for name in ("accuracy", "realised", "effect", "random_accuracy", "random_realised", "reversed_accuracy"):
        data[name].values[:] = resume.data[name].values


def _each_batch(task: Task, spec: Spec, model: Model) -> list[Batch]:
    return list(batches(task.rows, spec.batch_size, pad_id=model.pad_id))


def _baseline(data: xr.Dataset, model: Model, task: Task, spec: Spec, progress: Progress) -> None:
    """Scores, sink weights and thresholds of the untouched model. Nothing of it is worth keeping before it is whole."""
    parts = _each_batch(task, spec, model)
    for number, batch in enumerate(parts):
        progress.update(number, len(parts), "scores of the untouched model")
        index = batch.index.numpy()
        data["value"].values[:, index] = score_heads(model, batch, spec.scores).values
        data["sink_weight"].values[index] = _sink_weights(model, batch)
    values = data["value"].values.reshape(len(spec.scores), -1)
    for i, key in enumerate(spec.scores):
        at = [p if hs.SCORES[key].inactive == "<" else 1 - p for p in spec.shares]
        data["threshold"].values[i] = np.quantile(values[i].astype(np.float64), at)
    if spec.task == "bigram_backcopy":
        _measure_triggers(data, model, task, spec)


def _sink_weights(model: Model, tokens: torch.Tensor | Batch) -> np.ndarray:
    """[input, layer, head] attention to the first token (Gu et al.'s alpha for the first key)."""
    found: dict[int, torch.Tensor] = {}
    observe(
        model, tokens, ("pattern",), lambda layer, acts: found.__setitem__(layer, hs.sink_weight(acts["pattern"]).cpu())
    )
    return torch.stack([found[layer] for layer in range(model.n_layers)], 1).numpy()


def _measure_triggers(data: xr.Dataset, model: Model, task: Task, spec: Spec) -> None:
    """Do heads that rest on trigger-free inputs speak up at triggers? Only the organism's language has triggers."""
    tokens = np.array(task.rows)
    at_trigger = torch.from_numpy(is_trigger(tokens))

    def look(layer: int, acts: Mapping[str, torch.Tensor]) -> None:
        norm = acts["z"].float().norm(dim=-1).cpu()
        data["trigger_ratio"].values[layer] = (norm[at_trigger].mean(0) / norm.mean((0, 1))).numpy()

    observe(model, torch.from_numpy(tokens), ("z",), look)
    quiet = BigramBackcopy(trigger_rate=0.0).sample(spec.n_inputs, spec.length, np.random.default_rng([spec.seed, 8]))
    scores = score_heads(model, torch.from_numpy(quiet), (BEST,))[0]
    threshold = float(data["threshold"].sel(score=BEST, share=share_near(data, 0.15)))
    data["dormant"].values[:] = (scores.values < threshold).mean(0)


def inactive_mask(
    key: str, threshold: float, model: Model
) -> Callable[[int, Mapping[str, torch.Tensor]], torch.Tensor]:
    """Mask function for `ablate`: the heads that `key` calls inactive on this input, in this very pass."""

    def mask(layer: int, acts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        W_O = model.W_O(layer) if key.startswith("apon") else None
        score = hs.head_scores(acts["pattern"], acts["v"], acts["z"], W_O=W_O, keys=(key,))[key]
        return hs.SCORES[key].flags(score, threshold)

    return mask


class _Passes:
    """Intervened passes over all inputs. The untouched output of the first batch is kept, to measure effects
    against.
    """

    def __init__(self, model: Model, task: Task, spec: Spec):
        self.model, self.task = model, task
        self.batches = _each_batch(task, spec, model)
        self.clean = model.forward(self.batches[0])

    def run(self, mask_for: Callable[[Batch], Any], reads: Sequence[str]) -> tuple[np.ndarray, float, float, list[str]]:
        """[input] accuracy, realised share, effect on the first batch, warnings."""
        accuracy = np.full(self.task.n_inputs, np.nan, np.float32)
        replaced = possible = 0
        effect, warnings = float("nan"), []
        for number, batch in enumerate(self.batches):
            out = ablate(
                self.model,
                batch,
                mask_for(batch),
                reads=reads,
                compare=number == 0,
                clean=self.clean if number == 0 else None,
            )
            accuracy[batch.index.numpy()] = self.task.score(out.output, batch.index)
            replaced, possible = replaced + out.report.n_replaced, possible + out.report.n_possible
            if number == 0:
                effect, warnings = out.report.effect or 0.0, out.report.warnings
        return accuracy, replaced / possible, effect, warnings


def _sweep(
    data: xr.Dataset,
    model: Model,
    task: Task,
    spec: Spec,
    progress: Progress,
    warnings: list[str],
    so_far: Callable[[], Result],
) -> None:
    """Every score at every share, the random baseline and the reversed one; cells that are filled already are
    skipped.
    """
    passes = _Passes(model, task, spec)
    jobs: list[tuple[str, int, int]] = [
        ("score", i, j) for i in range(len(spec.scores)) for j in range(len(spec.shares))
    ]
    jobs += [("random", i, j) for i in range(spec.n_random) for j in range(len(spec.shares))]
    jobs += [("reversed", 0, j) for j in range(len(spec.shares))]
    for done, (kind, i, j) in enumerate(jobs):
        progress.update(done, len(jobs), f"{kind} {spec.scores[i] if kind == 'score' else ''} at {spec.shares[j]:.0%}")
        if kind == "score":
            key, threshold = spec.scores[i], float(data["threshold"].values[i, j])
            if np.isnan(data["accuracy"].values[i, j]).all():
                mask = inactive_mask(key, threshold, model)
                accuracy, realised, effect, said = passes.run(lambda batch, mask=mask: mask, ("pattern", "v"))
                data["accuracy"].values[i, j] = accuracy
                data["realised"].values[i, j], data["effect"].values[i, j] = realised, effect
                warnings += said
        elif kind == "random":
            if np.isnan(data["random_accuracy"].values[i, j]).all():
                masks = random_masks(task.n_inputs, model, spec.shares[j], seed=(spec.seed, 1, i, j))
                accuracy, realised, _, _ = passes.run(lambda batch, masks=masks: masks[batch.index], ())
                data["random_accuracy"].values[i, j], data["random_realised"].values[i, j] = accuracy, realised
        elif np.isnan(data["reversed_accuracy"].values[j]).all():
            # The other tail of the best score: the same share of heads, those with the LARGEST output norms.
            values = data["value"].sel(score=BEST).values.astype(np.float64)
            mask = _reversed_mask(float(np.quantile(values, 1 - spec.shares[j])))
            data["reversed_accuracy"].values[j] = passes.run(lambda batch, mask=mask: mask, ("pattern", "v"))[0]
        progress.keep(so_far)
    progress.update(len(jobs), len(jobs), "done")


def _reversed_mask(threshold: float) -> Callable[[int, Mapping[str, torch.Tensor]], torch.Tensor]:
    return lambda layer, acts: hs.head_scores(acts["pattern"], acts["v"], acts["z"], keys=(BEST,))[BEST] > threshold


def random_masks(n_inputs: int, model: Model, share: float, seed: Sequence[int]) -> torch.Tensor:
    """bool [input, layer, head]: each (input, head) drawn with probability `share`."""
    rng = np.random.default_rng(list(seed))
    return torch.from_numpy(rng.random((n_inputs, model.n_layers, model.n_heads)) < share)


def _controls(data: xr.Dataset, spec: Spec) -> None:
    """The untrained twin, and the organism trained without BOS where the model is its twin."""
    with load(dataclasses.replace(spec.model, untrained_seed=spec.seed)) as twin:
        task = make_task(spec, twin)
        scores = np.concatenate(
            [score_heads(twin, b, (FIRST_TOKEN, BEST)).values for b in _each_batch(task, spec, twin)], 1
        )
        data["untrained_weight"].values[:] = scores[0].mean(0)
        threshold = float(np.quantile(scores[1].astype(np.float64), 0.15))
        masks = random_masks(task.n_inputs, twin, 0.15, seed=(spec.seed, 2))
        passes = _Passes(twin, task, spec)
        arms = [
            passes.run(lambda _: inactive_mask(BEST, threshold, twin), ("pattern", "v")),
            passes.run(lambda batch: masks[batch.index], ()),
        ]
        data["untrained_accuracy"].values[:] = [arm[0] for arm in arms]
    if spec.model.name == "organism:attention-sink":
        with load("organism:attention-sink-nobos", device=spec.model.device) as twin:
            tokens = BigramBackcopy(with_bos=False).sample(
                spec.n_inputs, spec.length, np.random.default_rng([spec.seed, 7])
            )
            data["nobos_sink_weight"].values[:] = _sink_weights(twin, torch.from_numpy(tokens))
