"""Organisms of the attention-sink analysis: heads that rest on <bos>, and a twin that has no <bos> to rest on.

GPT-NeoX blocks with PARALLEL residual: nothing after the last head can clean up what it writes, so a head without work
must write little, and attending to <bos> is how it does. With serial residual the following MLP gates the head and no
sink appeared at this size. Cost: about three minutes on one core.
"""

from collections.abc import Mapping

import numpy as np
import torch

from workbench.core.claims import Claim
from workbench.core.progress import Progress
from workbench.datasets.bigram_backcopy import BigramBackcopy, is_trigger
from workbench.models.model import Model
from workbench.primitives.read.capture import observe
from workbench.primitives.score import head_scores
from workbench.training.language_model import PretrainSpec

from .registry import Built, Organism
from .word_neox import word_neox

EVAL_SEED, EVAL_N, LENGTH = 99, 200, 64


def _make(language: BigramBackcopy, spec: PretrainSpec, progress: Progress) -> Built:
    shape = {"num_hidden_layers": 3, "num_attention_heads": 8, "intermediate_size": 256, "use_parallel_residual": True}
    return word_neox(language, spec, shape, LENGTH, progress, with_bos=language.with_bos)


def _measure(model: Model, language: BigramBackcopy) -> Mapping[str, float]:
    """Accuracy at triggers and elsewhere, and attention to the first token, on sequences not used in training."""
    tokens = language.sample(EVAL_N, LENGTH, np.random.default_rng(EVAL_SEED))
    awft: list[torch.Tensor] = []
    logits = observe(
        model,
        torch.from_numpy(tokens),
        ("pattern",),
        lambda layer, acts: awft.append(head_scores.awft(acts["pattern"]).mean(0)),
    )
    right = logits[:, :-1].argmax(-1).numpy() == tokens[:, 1:]
    at_trigger, counted = is_trigger(tokens[:, :-1]), language.predictable(tokens)
    weights = torch.stack(awft)
    uniform = float((1 / torch.arange(1, LENGTH + 1)).mean())
    return {
        "trigger_accuracy": float(right[at_trigger & counted].mean()),
        "accuracy": float(right[counted].mean()),
        "largest_first_token_weight": float(weights.max()),
        "largest_over_uniform": float(weights.max()) / uniform,
    }


def _claim(text: str, key: str, relation: str, threshold: float, threshold_from: str) -> Claim:
    return Claim(text, "organism", lambda m: m[key], relation, threshold, threshold_from)  # type: ignore[arg-type]


_LEARNED = _claim(
    "the word after a trigger is predicted",
    "trigger_accuracy",
    ">=",
    0.99,
    "the task is deterministic at triggers; margin for ties",
)
_LIMITS = (
    "It says nothing about why large models grow sinks, only that a model with idle heads does so here too. Three"
    " layers and a fixed sentence length leave no room for massive activations or for sinks on later tokens, and its"
    " words carry no meaning."
)

ORGANISMS = {
    o.name: o
    for o in (
        Organism(
            name="attention-sink",
            paper="attention_sinks",
            summary=(
                "A causal language model (GPT-NeoX, 3 blocks x 8 heads, d_model 64, parallel residual) trained on the"
                " bigram-backcopy language with <bos>. Heads copy the word before a trigger word and have no work"
                " elsewhere; there they attend to <bos>."
            ),
            limits=_LIMITS,
            make=lambda progress: _make(BigramBackcopy(), PretrainSpec(), progress),
            measure=lambda model: _measure(model, BigramBackcopy()),
            declared=(
                _LEARNED,
                _claim(
                    "some head gives <bos> more than half of its attention on average",
                    "largest_first_token_weight",
                    ">",
                    0.5,
                    "paper card",
                ),
            ),
        ),
        Organism(
            name="attention-sink-nobos",
            paper="attention_sinks",
            summary=(
                "The twin of attention-sink without <bos>: same architecture, seed, steps and word chain, but sequences"
                " open with an ordinary word. It learns the task equally well and has no token to rest on."
            ),
            limits=_LIMITS,
            make=lambda progress: _make(BigramBackcopy(with_bos=False), PretrainSpec(), progress),
            measure=lambda model: _measure(model, BigramBackcopy(with_bos=False)),
            declared=(
                _LEARNED,
                _claim(
                    "no head gives the first token much more than uniform attention would",
                    "largest_over_uniform",
                    "<",
                    3.0,
                    "pilot with 2 x 4 heads, seed 0 (1.3 there), with margin",
                ),
            ),
        ),
    )
}
