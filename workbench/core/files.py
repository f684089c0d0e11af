"""Writing without leaving half a file: everything goes to a temporary name beside its place and is renamed at the
end.
"""

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


def write_text(path: Path | str, text: str) -> Path:
    """Write `text` as UTF-8; readers see the old file or the whole new one."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path | str, content: bytes) -> Path:
    """Write bytes; readers see the old file or the whole new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _temporary(path)
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as found:
        if found.errno is not None and found.filename is None:  # a full disk does not say which file found it so
            raise OSError(found.errno, found.strerror, str(path)) from found
        raise
    finally:
        partial.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `path` when the block ends well; on an error nothing changes.

    An existing `path` is moved aside first and removed last, so one of the two is always there in full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, old = _temporary(path), _temporary(path)
    partial.mkdir()
    try:
        yield partial
        if os.path.lexists(path):
            os.rename(path, old)
        os.rename(partial, path)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(path):
            os.rename(old, path)
        raise
    finally:
        for left in (partial, old):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def sha256(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
