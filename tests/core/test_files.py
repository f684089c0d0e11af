"""Files and folders appear whole or not at all; errors and kills lose nothing, and what they leave is cleared away."""

import hashlib
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest

from workbench.core import files
from workbench.core.errors import WorkbenchError

OURS = ("index", "*.txt")


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_write_text_makes_parents_and_writes_utf8(tmp_path):
    path = files.write_text(tmp_path / "a" / "b.txt", "é\n")
    assert path.read_bytes() == "é\n".encode() and names(path.parent) == ["b.txt"]


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("fault", ["text", "rename"])
def test_a_failed_write_leaves_the_old_text(tmp_path, monkeypatch, is_there, fault):
    path = tmp_path / "b.txt"
    if is_there:
        path.write_text("old")

    def refuse(*args):
        raise OSError("no")

    if fault == "rename":
        monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises((OSError, UnicodeEncodeError)):
        files.write_text(path, "new \ud800" if fault == "text" else "new")
    assert names(tmp_path) == (["b.txt"] if is_there else [])
    assert not is_there or path.read_text() == "old"


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "one of ours", "a link to one of ours"])
def test_new_folder_takes_the_place_of_its_own_and_leaves_nothing_behind(tmp_path, there):
    path, elsewhere = tmp_path / "out" / "r", tmp_path / "else" / "r"
    path.parent.mkdir()
    if there == "an empty folder":
        path.mkdir()
    elif there == "one of ours":
        files.write_text(path / "old.txt", "old")
        files.write_text(path / "index", "")
    elif there == "a link to one of ours":
        files.write_text(elsewhere / "index", "")
        path.symlink_to(elsewhere, target_is_directory=True)
    with files.new_folder(path, OURS) as new:
        assert new != path and not list(new.iterdir())
        (new / "new.txt").write_text("new")
        assert there == "nothing" or path.exists(), "the old one goes only when the new one is whole"
    assert names(path) == ["new.txt"] and names(path.parent) == ["r"]
    assert there != "a link to one of ours" or (path.is_symlink() and names(elsewhere.parent) == ["r"])


@pytest.mark.parametrize(
    ("kind", "early"),
    [(kind, early) for kind in ("a file", "no index", "more than ours") for early in (True, False)]
    + [("filled while the block ran", False)],  # nothing to find out before the block
)
def test_what_is_not_ours_is_never_removed(tmp_path, kind, early):
    path = tmp_path / "r"
    late = kind == "filled while the block ran"

    def fill() -> None:
        files.write_text(path / "thesis.tex", "years")
        if kind == "more than ours":
            files.write_text(path / "index", "")

    if kind == "a file":
        path.write_text("years")
    elif not late:
        fill()
    with pytest.raises(
        WorkbenchError, match=r"r (is a file|holds thesis\.tex), which would be replaced; give an empty"
    ):
        if early:
            files.check_place(path, OURS)
        else:
            with files.new_folder(path, OURS):
                assert late
                fill()
    assert (path if kind == "a file" else path / "thesis.tex").read_text() == "years" and names(tmp_path) == ["r"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("is_there", [True, False])
def test_an_error_inside_the_block_changes_nothing(tmp_path, error, is_there):
    path = tmp_path / "r"
    if is_there:
        files.write_text(path / "index", "old")
    with pytest.raises(error), files.new_folder(path, OURS) as new:
        (new / "half.txt").write_text("half")
        raise error
    assert names(tmp_path) == (["r"] if is_there else [])
    assert not is_there or names(path) == ["index"]


def test_an_error_between_the_renames_puts_the_old_folder_back(tmp_path, monkeypatch):
    path = tmp_path / "r"
    files.write_text(path / "index", "old")
    rename, calls = os.rename, []

    def second_fails(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(files.os, "rename", second_fails)
    with pytest.raises(OSError, match="no"), files.new_folder(path, OURS) as new:
        (new / "new.txt").write_text("new")
    assert names(tmp_path) == ["r"] and names(path) == ["index"] and len(calls) == 3


@pytest.mark.parametrize("content", [b"", b"abc", bytes(range(256)) * 4096])
def test_sha256_is_that_of_the_bytes(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    assert files.sha256(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device.*page\.html"):
        files.write_text(tmp_path / "page.html", "text")
    assert not list(tmp_path.iterdir())


# ---- killed writers, several writers ----

KILL = getattr(signal, "SIGKILL", None)
needs_locks = pytest.mark.skipif(files.fcntl is None, reason="locks and kills as on Linux and macOS")


def killed(target, *arguments) -> None:
    """Run a function in another process, which kills itself there."""
    running = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    running.start()
    running.join(30)
    assert running.exitcode == -KILL


def write_and_die_at(number: int, path: Path) -> None:
    """Killed at the start of this rename of a folder."""
    rename, calls = os.rename, []

    def counted(source, target):
        calls.append(target)
        if len(calls) == number:
            os.kill(os.getpid(), KILL)
        rename(source, target)

    files.os.rename = counted
    with files.new_folder(path, OURS) as new:
        (new / "index").write_text("new")


@needs_locks
@pytest.mark.parametrize(("number", "left"), [(1, "old"), (2, "new")])
def test_a_kill_between_the_renames_hides_nothing(tmp_path, number, left):
    path = tmp_path / "r"
    files.write_text(path / "index", "old")
    killed(write_and_die_at, number, path)
    assert path.exists() == (number == 1) and len(names(tmp_path)) == (2 if number == 1 else 1)
    files.recover(path, OURS)
    assert (path / "index").read_text() == left and names(tmp_path) == ["r"]


def die_inside(path: Path, is_folder: bool) -> None:
    if is_folder:
        with files.new_folder(path, OURS) as new:
            (new / "half.txt").write_text("half")
            os.kill(os.getpid(), KILL)
    files.os.replace = lambda *_: os.kill(os.getpid(), KILL)
    files.write_text(path, "half")


@needs_locks
@pytest.mark.parametrize("is_folder", [True, False])
def test_the_next_writer_clears_away_what_killed_ones_left_and_nothing_of_one_that_lives(tmp_path, is_folder):
    path = tmp_path / "r"
    for _ in range(3):
        killed(die_inside, path, is_folder)
        assert len(names(tmp_path)) == 1, "each clears away what the one before left"
    with files.new_folder(path, OURS) as first:
        (first / "index").write_text("first")
        if is_folder:
            with files.new_folder(path, OURS) as second:
                (second / "index").write_text("second")
        assert sorted([*names(tmp_path)]) == sorted([first.parent.name, *(["r"] if is_folder else [])])
    assert names(tmp_path) == ["r"] and (path / "index").read_text() == "first"


@needs_locks
def test_many_writers_of_one_folder_all_end_well_and_one_of_them_stays(tmp_path):
    path, errors = tmp_path / "r", []

    def write(number: int) -> None:
        try:
            for _ in range(30):
                with files.new_folder(path, OURS) as new:
                    (new / "a.txt").write_text(str(number))
                    (new / "index").write_text(str(number))
        except Exception as found:
            errors.append(found)

    writers = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not errors and names(tmp_path) == ["r"]
    assert (path / "a.txt").read_text() == (path / "index").read_text()


def test_a_claim_is_held_once_and_ends_with_its_block(tmp_path):
    path = tmp_path / "a" / ".lock"
    with files.claimed(path) as mine, files.claimed(path) as other:
        assert (mine, other) == (True, files.fcntl is None)
    with files.claimed(path) as again:
        assert again


def test_a_folder_that_cannot_be_written_is_said_before(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkbenchError, match=r"cannot be written \(Not a directory\); give a folder that can"):
        files.check_place(tmp_path / "file" / "a" / "r", OURS)
    files.check_place(tmp_path / "b" / "r", OURS)
    assert names(tmp_path) == ["b", "file"] and names(tmp_path / "b") == []
