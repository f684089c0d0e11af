"""Organism of the circuit primitives: induction in two layers, a circuit whose shape is known before any tool looks for
it.

GPT-NeoX blocks with serial residual, two layers of four heads, trained on random phrases said again. Used as ground
truth: sweeps, attribution and path patching must find a previous-token head in layer 0 and an induction head in layer
1.
Cost: under a minute on one core.
"""

from collections.abc import Mapping

import numpy as np
import torch

from workbench.core.claims import Claim
from workbench.core.progress import Progress
from workbench.datasets.repeated_words import RepeatedWords
from workbench.models.model import Model
from workbench.primitives.read.capture import observe
from workbench.training.language_model import PretrainSpec

from .registry import Built, Organism
from .word_neox import word_neox

EVAL_SEED, EVAL_N, LENGTH = 99, 100, 64


def _make(spec: PretrainSpec, progress: Progress) -> Built:
    shape = {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "use_parallel_residual": False,
        "rotary_pct": 0.5,
    }
    return word_neox(RepeatedWords(), spec, shape, LENGTH, progress)


def head_roles(model: Model, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Mean attention of every head to the two places an induction circuit looks at.

    Args:
        tokens: [n, pos] sequences of RepeatedWords.

    Returns:
        "previous": [layer, head] attention to the word before, over all words; "induction": [layer, head] attention to
        the place after the last time the current word was said, over the words that were said before. Both in [0, 1].
    """
    after_match = np.full(tokens.shape, -1)
    for row, words in enumerate(tokens):
        last: dict[int, int] = {}
        for t, word in enumerate(words):
            after_match[row, t] = last.get(word, -2) + 1
            last[word] = t
    query_row, query = np.nonzero(after_match > 0)
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def look(layer: int, acts: Mapping[str, torch.Tensor]) -> None:
        pattern = acts["pattern"].cpu().numpy()
        previous = np.stack([pattern[:, :, t, t - 1] for t in range(2, tokens.shape[1])]).mean((0, 1))
        found[layer] = previous, pattern[query_row, :, query, after_match[query_row, query]].mean(0)

    observe(model, torch.from_numpy(tokens), ("pattern",), look)
    both = [np.stack([found[layer][i] for layer in range(model.n_layers)]) for i in (0, 1)]
    return {"previous": both[0], "induction": both[1]}


def _measure(model: Model) -> Mapping[str, float]:
    language = RepeatedWords()
    tokens = language.sample(EVAL_N, LENGTH, np.random.default_rng(EVAL_SEED))
    right = model.forward(torch.from_numpy(tokens))[:, :-1].argmax(-1).cpu().numpy() == tokens[:, 1:]
    counted, roles = language.predictable(tokens), head_roles(model, tokens)
    return {
        "accuracy": float(right[counted].mean()),
        "previous": float(roles["previous"][0].max()),
        "induction": float(roles["induction"][1].max()),
    }


def _claim(text: str, key: str, threshold: float, threshold_from: str) -> Claim:
    return Claim(text, "organism", lambda m: m[key], ">=", threshold, threshold_from)


ORGANISMS = {
    "induction": Organism(
        name="induction",
        paper="(circuit primitives)",
        summary=(
            "A causal language model (GPT-NeoX, 2 blocks x 4 heads, d_model 64, serial residual) trained on random"
            " phrases said again. It predicts every repeated word by induction, the two-layer circuit of Olsson et al."
            " 2022."
        ),
        limits=(
            "Words are drawn without meaning and phrases repeat exactly, so it says nothing about fuzzy or semantic"
            " induction."
        ),
        make=lambda progress: _make(PretrainSpec(steps=1500), progress),
        measure=_measure,
        declared=(
            _claim(
                "repeated words are predicted", "accuracy", 0.99, "the task is deterministic there; margin for ties"
            ),
            _claim(
                "some head of layer 0 attends to the word before",
                "previous",
                0.4,
                "half of a perfect head, rounded down; set before the first build",
            ),
            _claim(
                "some head of layer 1 attends to the place after an earlier copy",
                "induction",
                0.4,
                "half of a perfect head, rounded down; set before the first build",
            ),
        ),
    )
}
