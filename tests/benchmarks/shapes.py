"""Models of real shapes with random weights: speed does not depend on the weights."""

import torch
import transformers as tf

from workbench.models import load
from workbench.models.model import Model

SHAPES = {
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config()),
    "llama": lambda: tf.LlamaForCausalLM(
        tf.LlamaConfig(
            vocab_size=32000,
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            num_key_value_heads=4,
            intermediate_size=2048,
            max_position_embeddings=1024,
        )
    ),
}


def model_of(shape: str) -> Model:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    return load(SHAPES[shape](), tokenizer=False, device="auto")


def prompts(n: int, n_pos: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(clean, corrupted) [n, n_pos] token ids that differ at position 3."""
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(100, 30000, (n, n_pos), generator=generator)
    corrupted = clean.clone()
    corrupted[:, 3] = 99
    return clean, corrupted
