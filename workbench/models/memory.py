"""How much memory a model needs and how much there is, asked before it is loaded."""

import json
import struct
from pathlib import Path

import torch

from workbench.core.errors import NoRoom

GB = 1e9


def checkpoint_parameters(folder: Path) -> int:
    """Number of parameters in a folder's safetensors files, read from their headers only (bytes, not gigabytes)."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as handle:
            (size,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(size))
        for name, entry in header.items():
            if name != "__metadata__":
                count = 1
                for n in entry["shape"]:
                    count *= n
                total += count
    return total


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
