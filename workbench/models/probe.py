"""One short forward on a fixed input, by which two ways of running the same weights are compared.

Cost: a forward of 24 tokens, or of one image.
"""

from typing import Any

import torch


def probe(runner: Any, kind: str, config: Any = None) -> torch.Tensor:
    """Outputs on a fixed input.

    Args:
        runner: Hugging Face module, PEFT model, or TransformerLens bridge.
        kind: of the model, as in `model.Kind`.
        config: Hugging Face's, where the runner has none of its own.

    Returns:
        [1, pos, d_vocab] logits, [1, pos, d_model] for an encoder without a head or [1, class]; float32, on the CPU.
    """
    config = config if config is not None else runner.config
    parameter = next(p for p in runner.parameters() if p.is_floating_point())
    generator = torch.Generator().manual_seed(0)
    if kind == "image-classifier":
        size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        pixels = torch.rand(1, config.num_channels, size, size, generator=generator)
        given = {"pixel_values": pixels.to(parameter.device, parameter.dtype)}
    else:
        n_vocab = config.get_text_config().vocab_size
        ids = torch.randint(min(5, n_vocab - 1), n_vocab, (1, 24), generator=generator)
        given = {"input_ids": ids.to(parameter.device)}
    with torch.no_grad():
        if hasattr(runner, "hook_dict"):
            return runner(given["input_ids"]).float().cpu()
        out = runner(**given)
    return (out.last_hidden_state if kind == "encoder" else out.logits).float().cpu()


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference of two outputs, in their units."""
    return float((a - b).abs().max())
