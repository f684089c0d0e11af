"""The fixed input on which a model is measured: for parity with Hugging Face at load, and for what its hooks mean."""

from typing import Any

import torch
from torch import nn

CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")


def probe_input(config: Any, module: nn.Module, is_image: bool, n_rows: int = 1, n_pos: int = 24) -> torch.Tensor:
    """[row, pos] token ids, or [row, channel, height, width] pixels; always the same ones for one config.

    Args:
        config: the Hugging Face config. module: says device, dtype and where positions start.
        n_pos: most tokens; fewer where the context is shorter.
    """
    generator = torch.Generator().manual_seed(0)
    parameter = next(p for p in module.parameters() if p.is_floating_point())
    if is_image:
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else size
        pixels = torch.rand(n_rows, config.num_channels, height, width, generator=generator)
        return pixels.to(parameter.device, parameter.dtype)
    text = config.get_text_config()
    context = next((n for name in CONTEXT if isinstance(n := getattr(text, name, None), int) and n > 0), n_pos)
    n_pos = max(1, min(n_pos, context - first_position(module)))
    ids = torch.randint(min(5, text.vocab_size - 1), text.vocab_size, (n_rows, n_pos), generator=generator)
    return ids.to(parameter.device)


def first_position(module: Any) -> int:
    """The position id of a first token: 0, but RoBERTa counts from its padding id on."""
    body = getattr(module, getattr(module, "base_model_prefix", "") or "-", module)
    padding = getattr(getattr(body, "embeddings", None), "padding_idx", None)
    return 0 if padding is None else padding + 1
