"""Writing without leaving half a file, and without losing what is there.

Everything goes to a temporary name beside its place and is renamed at the end. A writer holds a lock on its temporary
file or folder, which the operating system drops when the process ends, however it ends: what is found unlocked was left
by a killed writer, and the next one clears it away, or puts it in its place if that is empty and it is whole.
Where a file system has no locks, nothing is cleared away. Cost: one listing of the folder for each file written.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from .errors import WorkbenchError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None


# ---- files ----


def write_text(path: Path | str, text: str) -> Path:
    """Write `text` as UTF-8; readers see the old file or the whole new one."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path | str, content: bytes | memoryview) -> Path:
    """Write bytes; readers see the old file or the whole new one."""
    path = Path(path)
    with _partial(path, Path.touch) as partial:
        try:
            partial.write_bytes(content)
            os.replace(partial, path)
        except OSError as found:
            if found.errno is not None and found.filename is None:  # a full disk does not say which file found it so
                raise OSError(found.errno, found.strerror, str(path)) from found
            raise
    return path


def sha256(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


# ---- folders ----


@contextlib.contextmanager
def new_folder(path: Path | str, ours: Sequence[str] = ()) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `path` when the block ends well; on an error nothing changes.

    An existing `path` is moved aside first and removed last, so one of the two is always there in full; whoever is
    killed in between leaves both, and `recover` brings one back. Of two writers the later one stays, whole.

    Args:
        path: a link is followed, so that the folder it leads to is replaced.
        ours: names (or patterns such as "*.json") of all that such a folder may hold. The first is its index: every
            such folder has it, and the block writes it last, so that a folder with an index is whole. Without any,
            only an empty place is taken.

    Raises:
        WorkbenchError: if `path` is a file, or a folder with anything else in it; nothing of that is removed.
    """
    path = Path(os.path.realpath(path))
    recover(path, ours)
    _refuse_foreign(path, ours)
    with _partial(path, Path.mkdir) as partial:
        new, old = partial / "new", partial / "old"
        new.mkdir()
        yield new
        with _alone(path.parent):
            _refuse_foreign(path, ours)  # it may have been filled in the meantime
            try:
                if path.exists():
                    os.rename(path, old)
                os.rename(new, path)
            except BaseException:
                if old.exists() and not path.exists():
                    os.rename(old, path)
                raise


def check_place(path: Path | str, ours: Sequence[str]) -> None:
    """Find out before the work, not after it, whether `new_folder` will take this place.

    Raises:
        WorkbenchError: if it cannot be written, is a file, or holds anything that is not `ours`.
    """
    path = Path(os.path.realpath(path))
    check_writable(path.parent)
    recover(path, ours)
    _refuse_foreign(path, ours)


def check_writable(folder: Path | str) -> Path:
    """Make `folder`, and try to write there.

    Raises:
        WorkbenchError: if it cannot be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as found:
        raise WorkbenchError(f"{folder} cannot be written ({found.strerror}); give a folder that can") from None
    return folder


def recover(path: Path | str, ours: Sequence[str]) -> None:
    """Put the newest whole folder that a killed writer left beside `path` in its place if that is empty, and clear away
    the rest. ours: as for `new_folder`."""
    path = Path(os.path.realpath(path))
    with _alone(path.parent):
        if not path.exists():
            left = [folder for at in _left_by_killed(path) for folder in (at / "new", at / "old", at)]
            whole = [index for folder in left for index in map(folder.joinpath, ours[:1]) if index.is_file()]
            if whole:
                os.rename(max(whole, key=lambda index: index.stat().st_mtime_ns).parent, path)
        _clear(path)


def _refuse_foreign(path: Path, ours: Sequence[str]) -> None:
    if path.is_dir():
        held = sorted(p.name for p in path.iterdir())
        foreign = [name for name in held if not any(fnmatchcase(name, pattern) for pattern in ours)]
        if held and (foreign or ours[0] not in held):
            shown = ", ".join((foreign or held)[:3]) + (" and more" if len(foreign or held) > 3 else "")
            raise WorkbenchError(f"{path} holds {shown}, which would be replaced; give an empty folder or a new one")
    elif os.path.lexists(path):
        raise WorkbenchError(f"{path} is a file, which would be replaced; give an empty folder or a new one")


# ---- temporary names ----


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


@contextlib.contextmanager
def _partial(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A new temporary file or folder beside `path`, locked while the block runs and gone after it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _temporary(path)
    with _alone(path.parent):  # so that nobody takes it for left behind before it is locked
        _clear(path)
        make(partial)
        handle = _hold(partial, wait=False)
    try:
        yield partial
    finally:
        if path.exists() or not (partial / "old").exists():  # else what was moved aside is all there is
            _remove(partial)
        if handle is not None:
            os.close(handle)


def _left_by_killed(path: Path) -> list[Path]:
    """Temporary files and folders of `path` whose writer is no longer alive."""
    name = re.compile(rf"\.{re.escape(path.name)}\.\d+-[0-9a-f]{{8}}\.tmp")
    left = []
    with contextlib.suppress(OSError):  # a folder that is not there, or may not be listed, has nothing to clear away
        for found in path.parent.iterdir():
            if name.fullmatch(found.name) and (handle := _hold(found, wait=False)) is not None:
                os.close(handle)
                left.append(found)
    return left


def _clear(path: Path) -> None:
    for left in _left_by_killed(path):
        _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# ---- one at a time ----


def lock(handle: int, *, wait: bool) -> bool:
    """Lock an open file or folder until it is closed; False if another holds it and `wait` is off.

    Raises:
        OSError: if there are no locks here.
    """
    if fcntl is None:
        raise OSError(errno.ENOLCK, "this system has no file locks")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def claimed(path: Path | str) -> Iterator[bool]:
    """Hold the lock file `path` during the block. Gives False at once if another process holds it; True where there
    are no locks.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        is_mine = True
        with contextlib.suppress(OSError):
            is_mine = lock(handle, wait=False)
        yield is_mine
    finally:
        os.close(handle)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until nobody else makes, clears away or renames temporary names in `folder`."""
    handle = _hold(folder, wait=True)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _hold(path: Path, *, wait: bool) -> int | None:
    """The handle that locks a file or folder; None if another holds it, or there is nothing to lock or no lock."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        if lock(handle, wait=wait):
            return handle
    os.close(handle)
    return None
