"""One shard: a safetensors file written piece by piece, by one writer at a time, and whole or not there.

While it is written it is called NAME.partial and its writer holds a lock on it, which the operating system drops when
the process ends, however it ends. Whoever finds it unlocked starts it over; finished, it is renamed. The library's own
`save_file` wants all tensors in memory at once and leaves no room for their checksums; here batches go to disk as they
come, each tensor's checksum is taken on the way, and the header (which carries them) is written last. Checksums are
XXH3 (128 bit): they find accidents, not forgers, and cost a tenth of SHA-256 (measured: 10 against 0.8-1.7 GB/s).
Not done: fsync. A power cut can damage a shard that was just finished; `verify` finds it.
Cost: memory of one batch; writing and hashing beside the model in one thread.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open

from workbench.core import files
from workbench.core.errors import WorkbenchError

CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
}
NO_SUM = "0" * 32
SUFFIX = ".safetensors"


class BrokenStore(WorkbenchError):
    """A store with a missing, damaged or unfinished piece; the text says which and what mends it."""


class OtherStore(WorkbenchError):
    """A store that was made by another model or with other settings; the text says what differs."""


@dataclass(frozen=True)
class Field:
    """One tensor of a shard."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        n = self.dtype.itemsize
        for size in self.shape:
            n *= size
        return n


# ---- one writer at a time ----


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock on a file, for the length of a short block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(handle, wait=True)
        yield
    finally:
        os.close(handle)


def claim(final: Path) -> int | None:
    """Open NAME.partial for writing, or None if the shard is there already or another writer has it.

    A file left by a killed writer is unlocked, so it is taken over and emptied.
    """
    partial = final.with_suffix(".partial")
    while not final.exists():
        handle = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
        if not _lock(handle, wait=False):
            os.close(handle)
            return None
        # Between opening and locking, the other writer may have finished and renamed the very file that is open here.
        try:
            is_same = os.fstat(handle).st_ino == partial.stat().st_ino
        except FileNotFoundError:
            is_same = False
        if is_same and not final.exists():
            os.ftruncate(handle, 0)
            return handle
        if is_same:
            partial.unlink()
        os.close(handle)
    return None


def _lock(handle: int, wait: bool) -> bool:
    try:
        return files.lock(handle, wait=wait)
    except OSError as found:
        raise BrokenStore(
            f"this file system has no locks ({found.strerror}), so writers could damage each other's shards; put the"
            " store on another"
        ) from None


# ---- writing ----


class ShardWriter:
    """Fills a claimed file: `put` in any order of tensors, each from its start to its end, then `finish`; else
    `discard`.
    """

    def __init__(self, handle: int, final: Path, fields: list[Field], about: Mapping[str, Any]):
        self.handle, self.final, self.about = handle, final, dict(about)
        self.fields = sorted(
            fields, key=lambda f: -f.dtype.itemsize
        )  # so that every tensor starts at a multiple of its item
        self._sums = {f.name: xxhash.xxh3_128() for f in self.fields}
        self._at: dict[str, int] = {}
        self._end: dict[str, int] = {}
        start = len(self._header({f.name: NO_SUM for f in self.fields}, 0.0, NO_SUM))
        for field in self.fields:
            self._at[field.name], self._end[field.name] = start, start + field.n_bytes
            start += field.n_bytes
        self.n_bytes = start

    def _header(self, sums: Mapping[str, str], seconds: float, own: str) -> bytes:
        """The header; of one length whatever the sums and the seconds are."""
        about = self.about | {"seconds": f"{seconds:012.3f}", "xxh3_128": dict(sums), "header": own}
        entries: dict[str, Any] = {"__metadata__": {"workbench": json.dumps(about, sort_keys=True)}}
        offset = 0
        for field in self.fields:
            entries[field.name] = {
                "dtype": CODES[field.dtype],
                "shape": list(field.shape),
                "data_offsets": [offset, offset + field.n_bytes],
            }
            offset += field.n_bytes
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def reserve(self) -> None:
        """Take the room on the disk now: tensors grow side by side, and blocks found one by one cost twice the time.
        A full disk shows here.
        """
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.handle, 0, self.n_bytes)

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Append to a tensor: the next rows of its first axis."""
        data = _bytes(tensor.detach().cpu())
        if self._at[name] + len(data) > self._end[name]:
            raise ValueError(f"more was written to {name} than its shape holds")
        self._sums[name].update(data)
        self._write(data, self._at[name])
        self._at[name] += len(data)

    def _write(self, data: memoryview | bytes, at: int) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self.handle, data[done:], at + done)

    def finish(self, seconds: float) -> Path:
        """Write the header and give the file its name. `seconds`: what making the values took."""
        if short := [name for name, at in self._at.items() if at != self._end[name]]:
            raise ValueError(f"{', '.join(short)} was not written to the end")
        sums = {name: digest.hexdigest() for name, digest in self._sums.items()}
        own = xxhash.xxh3_128(self._header(sums, seconds, NO_SUM)).hexdigest()
        self._write(self._header(sums, seconds, own), 0)
        os.replace(self.final.with_suffix(".partial"), self.final)
        os.close(self.handle)
        return self.final

    def discard(self) -> None:
        """Remove the unfinished file."""
        self.final.with_suffix(".partial").unlink(missing_ok=True)
        os.close(self.handle)


# ---- reading ----


def shard_about(path: Path) -> dict[str, Any]:
    """What the writer said of a shard: its key, the seconds it took, versions, device, checksums."""
    with safe_open(path, framework="pt") as handle:
        about = json.loads(handle.metadata()["workbench"])
    return about | {"seconds": float(about["seconds"])}


class Damaged(Exception):
    """What is wrong with a shard's file, in a few words."""


class Shard:
    """A shard's tensors, mapped. Opening compares its header, reading a tensor compares that with its checksum, the
    first time, so that no byte is used that is not what was written.

    Raises:
        Damaged: on opening or reading. FileNotFoundError: if it is not there.
    """

    def __init__(self, path: Path, fields: list[Field], key: str, known: set[str] | None = None):
        """known: names of tensors that were compared before; those compared here are added to it."""
        self._known: set[str] = set() if known is None else known
        try:
            raw = _raw_header(path)
            with safe_open(path, framework="pt") as handle:
                about = json.loads(handle.metadata()["workbench"])
                if about["key"] != key:
                    raise Damaged(f"it holds shard {about['key']}")
                own = about["header"].encode()
                if xxhash.xxh3_128(raw.replace(own, NO_SUM.encode())).hexdigest() != about["header"]:
                    raise Damaged("checksum of the header differs")
                if set(handle.keys()) != {f.name for f in fields}:
                    raise Damaged("it holds other tensors")
                self._tensors = {f.name: handle.get_tensor(f.name) for f in fields}
                self._sums = dict(about["xxh3_128"])
        except FileNotFoundError:
            raise
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, AttributeError) as found:
            reason = re.sub(r"\s+", " ", str(found))[:80]
            raise Damaged(f"it cannot be read ({type(found).__name__}: {reason})") from None
        for field in fields:
            if (found := self._tensors[field.name]).dtype != field.dtype or tuple(found.shape) != field.shape:
                raise Damaged(f"{field.name} has shape {tuple(found.shape)} where {field.shape} was planned")

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        if name not in self._known:
            if xxhash.xxh3_128(_bytes(tensor)).hexdigest() != self._sums.get(name):
                raise Damaged(f"checksum of {name} differs")
            self._known.add(name)
        return tensor


def damage(path: Path, fields: list[Field], key: str) -> str:
    """What is wrong with a shard's file, in a few words; empty if every byte is what was written. Reads all of it."""
    try:
        shard = Shard(path, fields, key)
        for field in fields:
            shard[field.name]
    except Damaged as found:
        return str(found)
    return ""


def _bytes(tensor: torch.Tensor) -> memoryview:
    """A tensor's bytes, without a copy where they lie together; numpy has no bfloat16, so they go as bytes."""
    flat: Any = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return memoryview(flat)


def _raw_header(path: Path) -> bytes:
    with path.open("rb") as handle:
        size = handle.read(8)
        return size + handle.read(min(int.from_bytes(size, "little"), 100_000_000))
