"""A small random Llama and a handful of pairs, for tests of fine-tuning."""

import torch
import transformers as tf
from models.families import GQA, NO_SPECIAL

from workbench.training.loop import TrainSpec

SHORT = TrainSpec(steps=6, batch_size=4, warmup_steps=2)
PAIRS = [
    ([1, 5, 6], [7, 2]),
    ([1, 8], [9, 10, 11, 2]),
    ([1, 5, 6, 12, 13], [14, 2]),
    ([1, 20], [21, 2]),
    ([1, 30, 31], [32, 33, 2]),
]


def fresh(seed: int = 0) -> tf.LlamaForCausalLM:
    torch.manual_seed(seed)
    return tf.LlamaForCausalLM(tf.LlamaConfig(**GQA | NO_SPECIAL | {"intermediate_size": 48})).eval()
