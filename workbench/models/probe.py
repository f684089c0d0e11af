"""One short forward on a fixed input: for parity of two ways of running the same weights, and for what hooks mean.

Cost: a forward of 24 tokens, or of as many as the context has, or of one image.
"""

from typing import Any

import torch

CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")


def probe_input(config: Any, module: Any, is_image: bool, n_rows: int = 1, n_pos: int = 24) -> torch.Tensor:
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


def probe(runner: Any, kind: str, config: Any = None, module: Any = None) -> torch.Tensor:
    """Outputs on the fixed input.

    Args:
        runner: Hugging Face module, PEFT model, or TransformerLens bridge.
        kind: of the model, as in `model.Kind`.
        config: Hugging Face's, where the runner has none of its own.
        module: Hugging Face's, where the runner is a bridge.

    Returns:
        [1, pos, d_vocab] logits, [1, pos, d_model] for an encoder without a head or [1, class]; float32, on the CPU.
    """
    is_image = kind == "image-classifier"
    config = config if config is not None else runner.config
    inputs = probe_input(config, module if module is not None else runner, is_image)
    with torch.no_grad():
        if hasattr(runner, "hook_dict"):
            return runner(inputs).float().cpu()
        out = runner(**{"pixel_values" if is_image else "input_ids": inputs})
    return (out.last_hidden_state if kind == "encoder" else out.logits).float().cpu()


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference of two outputs, in their units."""
    return float((a - b).abs().max())


def first_position(module: Any) -> int:
    """The position id of a first token: 0, but RoBERTa counts from its padding id on."""
    body = getattr(module, getattr(module, "base_model_prefix", "") or "-", module)
    padding = getattr(getattr(body, "embeddings", None), "padding_idx", None)
    return 0 if padding is None else padding + 1
