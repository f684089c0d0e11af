"""The files of a checkpoint, looked at before anyone reads them, and the one boundary for what other packages raise.

A checkpoint is somebody else's: its files may be cut short, pointers to a file that never came, pickles, an index of
files elsewhere, or settings that nothing can be built from. What can be told from names, sizes and a few bytes is told
here in a sentence; the rest is caught where `load` calls the packages that read it.
Cost: one small JSON file or two, and 512 bytes of each weight file.
"""

import json
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch

from workbench.core.errors import ModelNotFound, NoRoom, UnsupportedModel, WorkbenchError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000  # bytes; the safetensors format allows no more
# Sizes that are paid for by building modules one by one, so that a wrong one costs hours instead of an error.
MOST = ((re.compile(r"layer|block|expert"), 10_000), (re.compile(r"num_labels"), 1_000_000))


@contextmanager
def our_errors(label: str) -> Iterator[None]:
    """Turn whatever other packages raise while a checkpoint is read into one sentence, with the cause behind it.

    Raises:
        NoRoom: where memory ran out. UnsupportedModel: for everything else that is not ours already.
    """
    try:
        yield
    except WorkbenchError:
        raise
    except BaseException as found:
        rust = type(found).__name__ == "PanicException"  # of tokenizers and safetensors; no Exception, and not exported
        if not (isinstance(found, Exception) or rust):
            raise
        why = f"{type(found).__name__}: {first_sentence(found)}"
        if isinstance(found, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in why:
            raise NoRoom(
                f"{label!r} ran out of memory while loading ({why}); use dtype='bfloat16', device_map='auto' or a"
                " smaller model"
            ) from found
        raise UnsupportedModel(
            f"{label!r} could not be loaded ({why}); its files are damaged, or made for other versions of the packages"
            " that read them"
        ) from found


def first_sentence(error: BaseException) -> str:
    """The first line of an error's text, and the next where it only announces it; its class where it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    n_lines = 2 if lines and lines[0].endswith(":") else 1
    return " ".join(lines[:n_lines])[:300] or type(error).__name__


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that came with a checkpoint.

    Raises:
        UnsupportedModel: if the file holds anything else; the sentence names file and folder.
    """
    where = f"{path.name} in {path.parent.name!r}"
    if path.stat().st_size > LONGEST_HEADER:
        raise UnsupportedModel(f"{where} is {path.stat().st_size / 1e6:.0f} MB long, which no such file is")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as trouble:
        raise UnsupportedModel(
            f"{where} is no JSON that can be read ({_what_it_is(path) or first_sentence(trouble)}); copy it again"
        ) from trouble
    if not isinstance(found, dict):
        raise UnsupportedModel(f"{where} holds a JSON {type(found).__name__} and should hold an object; copy it again")
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder, refused where a size in it is one that no model has.

    Raises:
        UnsupportedModel: naming the entry.
    """
    config = read_json(folder / "config.json")
    for part in [config, *(value for value in config.values() if isinstance(value, dict))]:
        for key, value in part.items():
            for pattern, most in MOST:
                if pattern.search(key) and isinstance(value, (int, float)) and value > most:
                    raise UnsupportedModel(
                        f"config.json in {folder.name!r} says {key}={value!r}, and no model has more than {most}; copy"
                        " it again"
                    )
    return config


def refuse_quantised(config: dict[str, Any], label: str) -> None:
    """Weights packed into a few bits are no matrices, so nothing that edits or reads weights would mean anything.

    Raises:
        UnsupportedModel: naming the format.
    """
    for part in [config, *(value for value in config.values() if isinstance(value, dict))]:
        for key in ("quantization_config", "compression_config"):
            if not (settings := part.get(key)):
                continue
            method = settings.get("quant_method", settings.get("format")) if isinstance(settings, dict) else settings
            raise UnsupportedModel(
                f"the weights of {label!r} are quantised ({method or 'unnamed format'}), and analyses need them as"
                " plain matrices; load the checkpoint it was made from, or de-quantise it once with transformers'"
                f" model.dequantize() and save it without {key}"
            )


def weight_files(folder: Path, named: object = None) -> list[Path]:
    """The files that transformers reads of a folder, each looked at.

    Args:
        folder: with `model.safetensors`, or an index of several; other weight files beside them are not read.
        named: `transformers_weights` of the config, if it has that: a file that is read instead.

    Raises:
        ModelNotFound: if there are none, or one of the index is not here.
        UnsupportedModel: if one is pickled, lies outside the folder, or is no safetensors file.
    """
    first = [_inside(folder, named, "config.json")] if named is not None else [folder / WEIGHTS, folder / INDEX]
    path = next((p for p in first if p.is_file()), None)
    if path is None:
        if pickled := sorted(p.name for p in folder.glob("pytorch_model*.bin")):
            raise UnsupportedModel(
                f"{folder.name!r} holds only pickled weights ({pickled[0]}), which can run code when read; convert them"
                " once with model.save_pretrained(DIR, safe_serialization=True) where you trust them"
            )
        raise ModelNotFound(
            f"{folder.name!r} has a config.json and no {' or '.join(p.name for p in first)} (no *.safetensors under a"
            " name that is read); save the weights there, or use untrained_seed for random ones"
        )
    files = _of_index(path) if path.suffix == ".json" else [path]
    for file in files:
        refuse_damaged(file)
    return files


def _of_index(path: Path) -> list[Path]:
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UnsupportedModel(
            f"{path.name} in {path.parent.name!r} has no weight_map of names to files; copy it again"
        )
    names = sorted(set(places.values()), key=str) if all(isinstance(v, str) for v in places.values()) else [None]
    files = [_inside(path.parent, name, path.name) for name in names]
    if absent := [f.name for f in files if not f.is_file()]:
        raise ModelNotFound(
            f"{path.parent.name!r} lacks {', '.join(absent[:3])}, {len(absent)} of the {len(files)} weight files that"
            f" {path.name} lists; copy the rest of the checkpoint"
        )
    return files


def _inside(folder: Path, name: object, source: str) -> Path:
    """A safetensors file (or an index of some) that a checkpoint names, which has to lie in its own folder."""
    if not isinstance(name, str) or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise UnsupportedModel(
            f"{source} in {folder.name!r} names {name!r} as a weight file, and only safetensors are read (pickled"
            " weights can run code); convert them once with model.save_pretrained where you trust them"
        )
    if any(
        path.is_absolute() or path.anchor or ".." in path.parts for path in (PurePosixPath(name), PureWindowsPath(name))
    ):
        raise UnsupportedModel(
            f"{source} in {folder.name!r} names {name!r}, a weight file outside the folder, which is not read; put the"
            " file into the folder"
        )
    return folder / name


def refuse_damaged(path: Path) -> None:
    """Look at the first bytes of a safetensors file, whose header must fit into it.

    Raises:
        UnsupportedModel: saying what the file is instead, or that it was cut short.
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        start = handle.read(9)
    n_header = struct.unpack("<Q", start[:8])[0] if len(start) == 9 else 0
    if start[8:] == b"{" and n_header <= min(LONGEST_HEADER, size - 8):
        return
    what = _what_it_is(path) or f"a header of {n_header} bytes in a file of {size}"
    raise UnsupportedModel(f"the weights of {path.parent.name!r} are damaged ({path.name}: {what}); copy them again")


def _what_it_is(path: Path) -> str:
    """What often lies in place of a file that was not downloaded; nothing where it is something else."""
    with path.open("rb") as handle:
        start = handle.read(512).lstrip().lower()
    if not start:
        return "the file is empty"
    if start.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer and not the file itself: run `git lfs pull`"
    return "a web page and not the file itself" if start.startswith((b"<!doctype", b"<html")) else ""
