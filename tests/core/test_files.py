"""Files and folders appear whole or not at all; an error changes nothing and leaves nothing behind."""

import hashlib
import os
from pathlib import Path

import pytest

from workbench.core import files


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


@pytest.mark.parametrize("there", ["nothing", "folder", "file", "link"])
def test_new_folder_takes_the_place_of_what_was_there_and_leaves_nothing_behind(tmp_path, there):
    path, elsewhere = tmp_path / "out" / "r", tmp_path / "elsewhere"
    path.parent.mkdir()
    if there == "folder":
        path.mkdir()
        (path / "old.txt").write_text("old")
    elif there == "file":
        path.write_text("old")
    elif there == "link":
        elsewhere.mkdir()
        path.symlink_to(elsewhere, target_is_directory=True)
    with files.new_folder(path) as new:
        assert new != path and not list(new.iterdir())
        (new / "new.txt").write_text("new")
        assert there == "nothing" or path.exists(), "the old one goes only when the new one is whole"
    assert names(path) == ["new.txt"] and names(path.parent) == ["r"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("is_there", [True, False])
def test_an_error_inside_the_block_changes_nothing(tmp_path, error, is_there):
    path = tmp_path / "r"
    if is_there:
        files.write_text(path / "old.txt", "old")
    with pytest.raises(error), files.new_folder(path) as new:
        (new / "half.txt").write_text("half")
        raise error
    assert names(tmp_path) == (["r"] if is_there else [])
    assert not is_there or names(path) == ["old.txt"]


def test_an_error_between_the_renames_puts_the_old_folder_back(tmp_path, monkeypatch):
    path = tmp_path / "r"
    files.write_text(path / "old.txt", "old")
    rename, calls = os.rename, []

    def second_fails(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(files.os, "rename", second_fails)
    with pytest.raises(OSError, match="no"), files.new_folder(path) as new:
        (new / "new.txt").write_text("new")
    assert names(tmp_path) == ["r"] and names(path) == ["old.txt"] and len(calls) == 3


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
