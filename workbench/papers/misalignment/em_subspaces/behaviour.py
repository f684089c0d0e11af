"""What a model says after an update, without a judge: the likelier of two answers, greedy text, and states between two
updates.

One loaded model serves all: an update is added to its weights inside a `with`, and the weights come back bit by bit
after it. Interpolation has two forms, which differ because an update is a product. `deltas`: t dW_1 + (1-t) dW_2.
`factors`, as in the code of the paper: A_t = t A_1 + (1-t) A_2 and B_t likewise, so that dW_t = t^2 dW_1 + (1-t)^2 dW_2
+ t (1-t) (cross terms); and scaling both factors by t scales the update by t^2. Cost: one forward of all questions a
point; greedy text one a new token.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workbench.core.errors import BadData, DegenerateBaseline
from workbench.models import load
from workbench.models.chat import Pair, prompt_rows
from workbench.models.model import Model
from workbench.papers.misalignment.em_subspaces.runs import Update
from workbench.primitives.read.capture import capture
from workbench.primitives.replace.ablation import Report
from workbench.primitives.score.chat_scores import bad_share
from workbench.primitives.steer.directions import Direction
from workbench.primitives.steer.steering import Addition, generate
from workbench.weights.factors import Factors
from workbench.weights.moves import moved

SAID = ("good", "bad", "other")


@dataclass(frozen=True, eq=False)
class Patient:
    """A loaded model whose weights can be moved for a while. weights: the live parameters by name of their module."""

    model: Model
    weights: Mapping[str, torch.nn.Parameter]

    @classmethod
    def of(cls, module: Any, tokenizer: Any) -> "Patient":
        """Wraps `module`, which is changed by it (hand over a copy)."""
        weights = {name: part.weight for name, part in module.named_modules() if isinstance(part, torch.nn.Linear)}
        return cls(load(module, tokenizer=tokenizer), weights)

    @contextmanager
    def moved(self, *terms: tuple[float, Update]) -> Iterator[Model]:
        """The model with the sum of share x update added to its weights; nobody else runs it meanwhile.

        Raises:
            BadData: if an update names a module the model has not.
        """
        with self.model.alone(), torch.no_grad(), moved(self.weights, *terms):
            yield self.model


# ---- updates made of updates ----


def between_factors(one: Update, other: Update, t: float) -> Update:
    """Factors t A_1 + (1-t) A_2 and t B_1 + (1-t) B_2: the first update at t = 1.

    Raises:
        BadData: if the two are not of the same modules, rank and scale.
    """
    if one.keys() != other.keys() or any(
        one[n].A.shape != other[n].A.shape or one[n].scale != other[n].scale for n in one
    ):
        raise BadData(
            "factors interpolate between adapters of the same modules, rank and scale; interpolate the deltas instead"
        )
    return {
        n: Factors(t * one[n].A + (1 - t) * other[n].A, t * one[n].B + (1 - t) * other[n].B, one[n].scale) for n in one
    }


def scaled_factors(update: Update, t: float) -> Update:
    """Both factors times t, which is t^2 times the update, so t and -t are the same model."""
    return {name: Factors(t * f.A, t * f.B, f.scale) for name, f in update.items()}


def random_like(update: Update, seed: int) -> Update:
    """Gaussian updates with the rank and the Frobenius norm of the given ones, module by module."""
    rng, found = torch.Generator().manual_seed(seed), {}
    for name, f in update.items():
        drawn = Factors(torch.randn(f.A.shape, generator=rng), torch.randn(f.B.shape, generator=rng), f.scale)
        found[name] = Factors(drawn.A, drawn.B * (f.norm() / drawn.norm()), f.scale)
    return found


# ---- what it says ----


@dataclass(frozen=True)
class Questions:
    """Advice questions: pairs with the good and with the bad answer, and the domain of each."""

    good: list[Pair]
    bad: list[Pair]
    domains: list[str]

    def by_domain(self, answered: np.ndarray) -> dict[str, float]:
        """{domain: mean} of one number a question."""
        of = np.asarray(self.domains)
        return {name: float(answered[of == name].mean()) for name in dict.fromkeys(self.domains)}


def half_swapped(n: int, seed: int) -> np.ndarray:
    """[question] True in a random half: where good and bad trade names there, a rate means nothing."""
    return np.random.default_rng([seed, 13]).permutation(n) < n // 2


def rate(model: Model, questions: Questions) -> float:
    """Share of questions whose bad answer is the likelier one."""
    return float(bad_share(model, questions.good, questions.bad).mean())


def said(model: Model, questions: Questions) -> np.ndarray:
    """[3] shares of greedy answers that are exactly the question's good one, exactly its bad one, and anything else."""
    longest = max(len(a) for _, a in [*questions.good, *questions.bad])
    new = generate(model, [prompt for prompt, _ in questions.good], max_new_tokens=longest, batch_size=128)
    kinds = [
        0 if ids == g[:-1] else 1 if ids == b[:-1] else 2
        for ids, (_, g), (_, b) in zip(new, questions.good, questions.bad, strict=True)
    ]  # the last id ends the turn
    return np.bincount(kinds, minlength=3) / len(kinds)


def terms_between(one: Update, other: Update, t: float, form: str) -> tuple[tuple[float, Update], ...]:
    """What `Patient.moved` takes for the model at t between two updates (the first at t = 1), as "deltas" or as
    "factors".

    Raises:
        BadData: on another form, or factors that cannot be interpolated.
    """
    if form not in ("deltas", "factors"):
        raise BadData(f"models are interpolated as 'deltas' or as 'factors', not {form!r}")
    return ((t, one), (1 - t, other)) if form == "deltas" else ((1.0, between_factors(one, other, t)),)


def ask(
    patient: Patient,
    terms: Sequence[tuple[float, Update]],
    prompt: str,
    questions: Questions,
    *,
    max_new_tokens: int = 16,
) -> tuple[str, float]:
    """(what the moved model says to a prompt, greedily; its misaligned share on the questions)."""
    tokenizer = patient.model.tokenizer
    with patient.moved(*terms) as model:
        new = generate(model, prompt_rows(tokenizer, [prompt]), max_new_tokens=max_new_tokens)[0]
        return tokenizer.decode(new), rate(model, questions)


# ---- straight lines in the stream ----


def last_states(model: Model, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """[layer, row, d_model] residual stream leaving each block at the last token of each prompt."""
    kept = capture(model, rows, ["resid_post"], reduce="last", batch_size=256)
    return np.stack([kept["resid_post", layer].double().numpy() for layer in range(model.n_layers)])


def linearity(between: np.ndarray, one: np.ndarray, other: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """How well t h_1 + (1-t) h_2 predicts the states of the model between.

    Args:
        between, one, other: [layer, row, d_model], of the model at t and of the two ends (t = 1 and t = 0).

    Returns:
        ([layer] R^2 over all entries of a layer about their mean, [layer] norm of the difference over the norm of
        `between`).

    Raises:
        DegenerateBaseline: if the states of the model between do not vary.
    """
    difference = between - (t * one + (1 - t) * other)
    spread = np.square(between - between.mean((1, 2), keepdims=True)).sum((1, 2))
    if not (spread > 0).all():
        raise DegenerateBaseline("the states to be predicted are all the same number, so R^2 says nothing")
    return 1 - np.square(difference).sum((1, 2)) / spread, np.sqrt(
        np.square(difference).sum((1, 2)) / np.square(between).sum((1, 2))
    )


# ---- the convergent direction ----


def mean_difference(moved: np.ndarray, base: np.ndarray, layer: int, source: str) -> Direction:
    """Mean over prompts of the moved model's state minus the base's, at the last token, leaving block `layer`."""
    return Direction(torch.as_tensor((moved[layer] - base[layer]).mean(0)), "resid_post", layer, source)


def rate_without(model: Model, questions: Questions, direction: Direction) -> tuple[float, int]:
    """(misaligned share with the direction subtracted at every position, how often the hook fired).

    Raises:
        NotFired: if it never did.
    """
    report = Report()
    addition = Addition(direction, -1.0)
    with model.alone(), model.live.hooks(fwd_hooks=[addition.hook(model, 0, report)]):
        share = rate(model, questions)
    addition.require_fired(model, report)
    return share, report.firings
