"""How much memory a model needs and how much there is, asked before it is loaded."""

from collections.abc import Callable

import torch
from torch import nn

from workbench.core.errors import NoRoom

GB = 1e9


def module_bytes(build: Callable[[], nn.Module], dtype: torch.dtype) -> int:
    """Most memory that a module's parameters take, counted on one that is built without memory.

    What is counted is what will be made: a tied table once, whatever lies in the checkpoint's folder beside it.

    Args:
        build: makes the module, in whatever number format it is first made in.
        dtype: format in which it is kept; a parameter counts by the wider of the two.

    Returns:
        Bytes.
    """
    with torch.random.fork_rng(), torch.device("meta"):
        module = build()
    return sum(p.numel() * max(p.itemsize, dtype.itemsize) for p in module.parameters())


def available_bytes(device: str) -> int:
    """Free memory on a device; for cpu and mps that of the machine."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def require(n_bytes: float, device: str, what: str, instead: str) -> None:
    """Refuse before the work starts when `n_bytes` will not fit.

    Raises:
        NoRoom: naming the need, what is free, and `instead`.
    """
    free = available_bytes(device)
    if n_bytes > free:
        raise NoRoom(f"{what} needs about {n_bytes / GB:.1f} GB on {device}, {free / GB:.1f} GB are free. {instead}")
