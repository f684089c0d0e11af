"""Is it cheaper to read the activations or to make them again? Measured, not guessed.

Disk: a sample of the store's bytes, read after the operating system was asked to forget them (it holds what was read or
written lately, and would answer at the speed of memory). Model: the seconds its shards took, or a batch run now.
Cost: reads `sample_mb`; with a model, one batch.
"""

import os
import time
from dataclasses import dataclass

import numpy as np

from workbench.models.model import Model
from workbench.primitives.read.stream import stream

from .parts import DTYPES
from .reading import Store
from .shards import BrokenStore, shard_about


@dataclass(frozen=True)
class Cost:
    """Seconds to read and to make again the same values, and what they rest on."""

    n_bytes: int
    read_seconds: float
    read_mb_per_s: float
    recompute_seconds: float
    measured_by: str

    @property
    def cheaper(self) -> str:
        """ "read" or "recompute"."""
        return "read" if self.read_seconds <= self.recompute_seconds else "recompute"

    def __str__(self) -> str:
        return (
            f"reading {self.n_bytes / 1e6:,.1f} MB takes {self.read_seconds:.2f} s ({self.read_mb_per_s:,.0f} MB/s from"
            f" disk), making them again {self.recompute_seconds:.2f} s ({self.measured_by}): {self.cheaper}"
        )


def compare_cost(
    store: Store,
    site: str | None = None,
    layer: int | None = None,
    *,
    model: Model | None = None,
    sample_mb: float = 256,
) -> Cost:
    """Compare reading with recomputing, for one stored site and layer or for all.

    Args:
        model: run one batch of the store's rows up to the highest layer asked for; without it the seconds that the
            shards took when they were written, on whatever machine that was.
        sample_mb: how much is read to measure the disk.

    Raises:
        BrokenStore: if no shard is there yet. OtherStore: if `model` did not make the store.
    """
    there = [(part, n) for part, n in store.shards if part.shard_path(n).exists()]
    if not there:
        raise BrokenStore(f"{store.folder.name} has no finished shard yet, so there is nothing to measure")
    places = [p for p in store.places if site is None or p.key == (site, layer)] or [store.place(site or "", layer)]
    n_bytes = store.n_tokens * sum(int(np.prod(p.shape)) for p in places) * DTYPES[store.identity.dtype].itemsize
    speed = _disk_speed([part.shard_path(n) for part, n in there], sample_mb * 1e6)
    if model is None:
        some = [there[i] for i in np.unique(np.linspace(0, len(there) - 1, 64).astype(int))]
        per_token = sum(shard_about(part.shard_path(n))["seconds"] for part, n in some) / sum(
            part.sizes(n)[1] for part, n in some
        )
        measured_by = "as its shards took"
    else:
        store.require(model)
        part, number = there[0]
        rows = part.rows_of(number)[1][: store.identity.batch_size]
        pieces = stream(
            model,
            rows,
            [p.key for p in places],
            positions=store.identity.positions,
            dtype=DTYPES[store.identity.dtype],
            batch_size=store.identity.batch_size,
        )
        started = time.perf_counter()
        n_done = sum(len(piece.token) for piece in pieces)
        per_token, measured_by = (time.perf_counter() - started) / n_done, "from one batch"
    return Cost(n_bytes, n_bytes / speed, speed / 1e6, per_token * store.n_tokens, measured_by)


def _disk_speed(paths: list, most: float) -> float:
    """Bytes a second of reading files that are not in memory."""
    seconds, n_bytes = 0.0, 0
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            if hasattr(os, "posix_fadvise"):
                os.fsync(handle)  # what is not on disk yet cannot be forgotten
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            started = time.perf_counter()
            while n_bytes < most and (chunk := os.read(handle, 1 << 24)):
                n_bytes += len(chunk)
            seconds += time.perf_counter() - started
        finally:
            os.close(handle)
        if n_bytes >= most:
            break
    return n_bytes / max(seconds, 1e-9)
