"""Organisms of the LayerNorm analysis: pretrained pairs that differ in where the LayerNorm stands, for images and for
text.

GPT (OpenAIGPT, LayerNorm after each residual sum: Post-LN) and GPT-2 (LayerNorm before each sub-layer: Pre-LN) have the
same blocks and sizes; a Pre-LN model needs one more norm at its end, 96 numbers. Each is pretrained on next-word
prediction without labels, as the paper's models were, so that gains and biases have moved before anything is
fine-tuned. Digits are words here (a word a 2x2 patch), which lets one architecture do both. Cost: one to two minutes on
one core each.
"""

from collections.abc import Mapping
from types import ModuleType

import numpy as np
import torch
import transformers as tf

from workbench.core.claims import Claim
from workbench.core.progress import Progress
from workbench.datasets import digits, feelings
from workbench.models.model import Model
from workbench.training.language_model import PretrainSpec, pretrain
from workbench.weights.layer_norms import moved, norms

from .registry import Built, Organism
from .tokenizer import word_tokenizer

D_MODEL, N_LAYERS, N_HEADS = 48, 6, 4
EVAL_SEED, EVAL_N = 99, 300


def _config(language: ModuleType, placement: str) -> tf.PretrainedConfig:
    sizes = {
        "vocab_size": len(language.VOCABULARY),
        "n_positions": 24,
        "n_embd": D_MODEL,
        "n_layer": N_LAYERS,
        "n_head": N_HEADS,
    }
    # 0.02, the default, is made for widths of hundreds: at 48 pretraining stays on the plateau of word frequencies.
    plain = {
        "initializer_range": 0.1,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "summary_first_dropout": 0.0,
    }
    special = {
        "bos_token_id": language.VOCABULARY.index("<bos>"),
        "eos_token_id": None,
        "pad_token_id": language.VOCABULARY.index("<pad>"),
    }
    if placement == "post":
        return tf.OpenAIGPTConfig(**sizes, **plain, **special, afn="relu")
    return tf.GPT2Config(**sizes, **plain, **special, activation_function="relu")


def _make(language: ModuleType, placement: str, spec: PretrainSpec, progress: Progress) -> Built:
    torch.manual_seed(spec.seed)
    config = _config(language, placement)
    module = tf.OpenAIGPTLMHeadModel(config) if placement == "post" else tf.GPT2LMHeadModel(config)
    log = pretrain(module, language.sample, spec, progress=progress)
    recipe = {
        "language": {"module": language.__name__.rpartition(".")[2], "part": "pretraining, no labels"},
        "training": spec.to_dict(),
        "threads": 1,
        "torch": torch.__version__,
    }
    return Built(module, word_tokenizer(language.VOCABULARY, add_bos=True), log, recipe)


def spec_for(language: ModuleType, seed: int = 0) -> PretrainSpec:
    """The pretraining settings of a language, the same for both placements."""
    return PretrainSpec(steps=2000 if language is digits else 4000, length=language.LENGTH, seed=seed)


def _unseen(language: ModuleType) -> np.ndarray:
    """[n, pos] tokens that pretraining did not draw."""
    return (
        digits.to_tokens(digits.digits("test").images[:EVAL_N])
        if language is digits
        else feelings.draw(EVAL_N, np.random.default_rng(EVAL_SEED)).tokens
    )


def _measure(model: Model, language: ModuleType) -> Mapping[str, float]:
    """How far gains and biases have moved, and what the words before tell the model beyond the place in the
    sequence.
    """
    tokens = _unseen(language)
    seen = language.sample(4000, language.LENGTH, np.random.default_rng(EVAL_SEED + 1))
    share = np.stack(
        [
            (np.bincount(column, minlength=len(language.VOCABULARY)) + 0.01)
            / (len(seen) + 0.01 * len(language.VOCABULARY))
            for column in seen.T
        ]
    )
    by_place = -np.log(share[np.arange(2, tokens.shape[1]), tokens[:, 2:]]).mean()
    logits = model.forward(torch.from_numpy(tokens))[:, 1:-1].float().cpu()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(tokens[:, 2:]).flatten())
    gain, bias = moved(norms(model.live.original_model))
    return {
        "saved": float(by_place) - float(loss),
        "gain_moved": gain,
        "bias_moved": bias,
        "norms": len(norms(model.live.original_model)),
    }


_PILOT = "pilot with pretraining seed 1, with margin"
_LEARNED = {digits: 0.5, feelings: 0.2}  # the pilots saved 0.63 to 0.66, and 0.26 of the 0.26 there is to save


def _organism(language: ModuleType, placement: str, what: str, data: str) -> Organism:
    name = f"{language.__name__.rpartition('.')[2]}-{placement}ln"
    family, where = (
        ("GPT (OpenAIGPT)", "after each residual sum")
        if placement == "post"
        else ("GPT-2", "before each sub-layer, and once at the end")
    )
    return Organism(
        name=name,
        paper="layernorm_memorization",
        summary=(
            f"A {family} causal language model (6 blocks x 4 heads, d_model 48) with LayerNorm {where}, pretrained on"
            f" {what}. To be fine-tuned as a classifier with its LayerNorm gains and biases kept or removed; its twin"
            f" with LayerNorm in the other place has the same blocks. {data}"
        ),
        limits=(
            "Pretraining is a minute or two, so gains have moved by a tenth or so and not as far as in large models,"
            " and there are no outlier features. One pretraining seed ships: seeds of the analysis move the noise, the"
            " new head and the order of samples, not the pretrained weights."
        ),
        make=lambda progress: _make(language, placement, spec_for(language), progress),
        measure=lambda model: _measure(model, language),
        declared=(
            Claim(
                "the words before save this much over knowing the place alone",
                "organism",
                lambda m: m["saved"],
                ">=",
                _LEARNED[language],
                _PILOT,
                unit="nats",
            ),
            Claim(
                "LayerNorm gains have moved from 1 (mean)", "organism", lambda m: m["gain_moved"], ">=", 0.05, _PILOT
            ),
            Claim(
                "LayerNorm biases have moved from 0 (mean)", "organism", lambda m: m["bias_moved"], ">=", 0.02, _PILOT
            ),
        ),
    )


_DIGITS = "images of digits cut into 16 patches, a word a patch, half of the training images, moved by up to a pixel"
_UCI = "Images: scikit-learn's bundled digits (UCI Optical Recognition of Handwritten Digits, CC BY 4.0)."
_FEELINGS = "templated sentences about feelings"
ORGANISMS = {
    o.name: o
    for placement in ("post", "pre")
    for o in (
        _organism(digits, placement, _DIGITS, _UCI),
        _organism(feelings, placement, _FEELINGS, "Sentences: the project's own template."),
    )
}
