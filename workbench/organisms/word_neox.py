"""A small GPT-NeoX of words, width 64, trained on an artificial language: what the organisms of attention sinks and
of induction are.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from workbench.core.progress import Progress
from workbench.datasets.bigram_backcopy import VOCABULARY, BigramBackcopy
from workbench.datasets.repeated_words import RepeatedWords
from workbench.training.language_model import PretrainSpec, pretrain

from .registry import Built
from .tokenizer import word_tokenizer


def word_neox(
    language: BigramBackcopy | RepeatedWords,
    spec: PretrainSpec,
    shape: Mapping[str, Any],
    length: int,
    progress: Progress,
    *,
    with_bos: bool = True,
) -> Built:
    """Train one. shape: layers, heads, MLP width and kind of residual, as GPTNeoXConfig calls them. length: longest
    sequence.
    """
    special = {
        "bos_token_id": VOCABULARY.index("<bos>"),
        "eos_token_id": None,
        "pad_token_id": VOCABULARY.index("<pad>"),
    }
    config = GPTNeoXConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        max_position_embeddings=length,
        initializer_range=0.02,
        tie_word_embeddings=False,
        **special,
        **shape,
    )
    torch.manual_seed(spec.seed)
    module = GPTNeoXForCausalLM(config)
    log = pretrain(module, language.sample, spec, skip=1 if with_bos else 0, progress=progress)
    recipe = {
        "language": dataclasses.asdict(language),
        "training": spec.to_dict(),
        "threads": 1,
        "torch": torch.__version__,
    }
    return Built(module, word_tokenizer(VOCABULARY, add_bos=with_bos), log, recipe)
