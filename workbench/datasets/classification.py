"""Labelled sets for fine-tuning classifiers: texts or images with a class each, from local files or through `datasets`.

Reads CSV and JSONL files, directories and ids that `datasets` knows, and the two sets of the organisms ("digits",
"feelings"). Text columns and label columns are named; labels may be numbers or names. Images are brought to the size
the model wants.
Cost: the set in memory once.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workbench.core import files
from workbench.core.errors import BadData

from . import digits, feelings

EMBEDDED = ("digits", "feelings")


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """`texts` [n] what a person reads, `labels` [n] class numbers, and for images `pixels` [n, channel, height,
    width].
    """

    texts: Sequence[str]
    labels: np.ndarray
    pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def some(self, index: np.ndarray) -> "LabelledSet":
        """The rows `index`, in that order."""
        return LabelledSet(
            [self.texts[int(i)] for i in index], self.labels[index], None if self.pixels is None else self.pixels[index]
        )


@dataclass(frozen=True, eq=False)
class Classification:
    """A training and a test set with their class names, and where they came from (for provenance)."""

    train: LabelledSet
    test: LabelledSet
    classes: tuple[str, ...]
    about: dict[str, Any] = field(default_factory=dict)


def embedded(
    name: str, *, n_train: int | None = None, n_test: int | None = None, image_shape: tuple[int, int, int] | None = None
) -> Classification:
    """The digits (718 and 360 images) or sentences about feelings (600 and 300).

    n_train, n_test: another number of sentences, or at most so many images.
    image_shape: (channels, height, width) of an image classifier that is to read the digits; None gives them as words
    only.
    """
    if name == "digits":
        parts = [digits.digits(part) for part in ("training", "test")]
        words = [
            [" ".join(digits.VOCABULARY[t] for t in row[1:]) for row in digits.to_tokens(part.images)] for part in parts
        ]
        pixels = [
            None if image_shape is None else _enlarged(digits.to_pixels(part.images), image_shape) for part in parts
        ]
        sets = [LabelledSet(text, part.labels, image) for text, part, image in zip(words, parts, pixels, strict=True)]
        sets = [_at_most(part, n, 0) for part, n in zip(sets, (n_train, n_test), strict=True)]
        return Classification(*sets, tuple("0123456789"), {"name": "digits", "source": "scikit-learn, UCI, CC BY 4.0"})
    drawn = [feelings.feelings("training", n_train or 600), feelings.feelings("test", n_test or 300)]
    return Classification(
        *(LabelledSet(s.texts(), s.labels) for s in drawn),
        feelings.CLASSES,
        {"name": "feelings", "source": "generated"},
    )


def _enlarged(pixels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """[n, 1, 8, 8] brought to another shape by repeating pixels and channels."""
    channels, height, width = shape
    rows, columns = np.arange(height) * pixels.shape[2] // height, np.arange(width) * pixels.shape[3] // width
    return np.ascontiguousarray(np.repeat(pixels[:, :, rows][..., columns], channels, axis=1))


def read(
    source: str,
    *,
    test: str | None = None,
    config: str | None = None,
    text_column: str = "text",
    label_column: str = "label",
    test_share: float = 0.2,
    n_train: int | None = None,
    n_test: int | None = None,
    image_shape: tuple[int, int, int] | None = None,
    seed: int = 0,
) -> Classification:
    """A labelled set from a file, a directory or an id.

    Args:
        source: .csv or .jsonl file; else a directory or id for `datasets` (splits train, and test or validation).
        test: file of the test set; without one, `test_share` of every class is held out by `seed`.
        config: configuration of a `datasets` id.
        text_column, label_column: names of the columns; for images `text_column` names the image column.
        n_train, n_test: at most so many, drawn by `seed`.
        image_shape: (channels, height, width) that the model reads; None for texts.

    Raises:
        BadData: naming the file and line, column or split that cannot be used.
    """
    about: dict[str, Any] = {"name": Path(source).name}
    if Path(source).suffix in (".csv", ".jsonl"):
        about["sha256"] = {p.name: files.sha256(p) for p in map(Path, filter(None, (source, test))) if p.is_file()}
        parts = [_from_file(Path(p), text_column, label_column) for p in filter(None, (source, test))]
        names = None
    else:
        parts, names = _from_datasets(source, config, text_column, label_column, image_shape)
    classes = names or _class_names([label for _, labels in parts for label in labels])
    number = {name: i for i, name in enumerate(classes)}
    sets = []
    for inputs, labels in parts:
        numbers = np.array([label if names else number[str(label)] for label in labels], np.int64)
        pixels = None if image_shape is None else np.stack([_pixels(image, image_shape) for image in inputs])
        sets.append(
            LabelledSet(
                [f"image {i}" for i in range(len(labels))] if image_shape is not None else inputs, numbers, pixels
            )
        )
    train, held_out = sets if len(sets) == 2 else _hold_out(sets[0], test_share, seed)
    if len(classes) < 2:
        raise BadData(f"{about['name']} has one class only ({classes[0]!r}); a classifier needs two")
    return Classification(_at_most(train, n_train, seed), _at_most(held_out, n_test, seed + 1), classes, about)


def _from_file(path: Path, text_column: str, label_column: str) -> tuple[list[str], list[str]]:
    """Texts and labels of a CSV or JSONL file, every row or an error."""
    import pandas as pd

    if not path.is_file():
        raise BadData(
            f"no file {path.name!r}; give a CSV or JSONL file with columns {text_column!r} and {label_column!r}"
        )
    try:
        if path.suffix == ".csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
        else:
            table = pd.DataFrame(
                [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()],
                dtype=object,
            )
    except (ValueError, UnicodeDecodeError, pd.errors.ParserError) as found:
        raise BadData(
            f"{path.name} could not be read as {path.suffix[1:].upper()}: {str(found).strip().splitlines()[0]}"
        ) from None
    if missing := [c for c in (text_column, label_column) if c not in table.columns]:
        raise BadData(
            f"{path.name} has no column {missing[0]!r}; it has {', '.join(map(repr, table.columns)) or 'none'}. Name"
            " yours with text_column and label_column"
        )
    for column in (text_column, label_column):
        bad = [
            i
            for i, value in enumerate(table[column])
            if not isinstance(value, (str, int, np.integer)) or str(value).strip() == ""
        ]
        if bad:
            line = bad[0] + (2 if path.suffix == ".csv" else 1)
            raise BadData(f"{path.name} row {line}: {column!r} is empty or no text ({table[column].iloc[bad[0]]!r})")
    if table.empty:
        raise BadData(f"{path.name} holds no rows")
    return [str(t) for t in table[text_column]], [str(label) for label in table[label_column]]


def _from_datasets(
    source: str, config: str | None, text_column: str, label_column: str, image_shape: object
) -> tuple[list[tuple[Any, Any]], tuple[str, ...] | None]:
    """Train and, if there is one, test split of a directory or id that `datasets` knows; class names where it has
    them.
    """
    import datasets

    try:
        saved = Path(source).is_dir() and any(
            (Path(source) / f).is_file() for f in ("dataset_dict.json", "dataset_info.json")
        )
        loaded = datasets.load_from_disk(source) if saved else datasets.load_dataset(source, config)
    except Exception as found:  # datasets raises a different class for each way a source can be missing
        raise BadData(
            f"data {source!r} could not be read: {str(found).splitlines()[0][:200]}. Give a CSV or JSONL file, a"
            f" directory that `datasets` reads, or {' or '.join(EMBEDDED)}"
        ) from None
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    if "train" not in splits:
        raise BadData(f"data {source!r} has no split 'train'; it has {', '.join(splits)}")
    chosen = [
        splits[name] for name in ("train", next((n for n in ("test", "validation") if n in splits), None)) if name
    ]
    have = chosen[0].column_names
    if missing := [c for c in (text_column, label_column) if c not in have]:
        raise BadData(
            f"data {source!r} has no column {missing[0]!r}; it has {', '.join(have)}. Name yours with text_column and"
            " label_column"
        )
    feature = chosen[0].features[label_column]
    names = tuple(feature.names) if hasattr(feature, "names") else None
    if any(label is None or (names and label < 0) for part in chosen for label in part[label_column]):
        raise BadData(f"data {source!r} has rows without a label in {label_column!r}; leave them out first")
    return [
        (
            [str(t) for t in part[text_column]] if image_shape is None else list(part[text_column]),
            list(part[label_column]),
        )
        for part in chosen
    ], names


def _class_names(labels: Sequence[Any]) -> tuple[str, ...]:
    """Class names in order: by number if all are numbers, else by alphabet."""
    found = {str(label) for label in labels}
    return tuple(sorted(found, key=int) if all(f.lstrip("-").isdigit() for f in found) else sorted(found))


def _pixels(image: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """[channel, height, width] float32 in [-1, 1] of an 8-bit picture (Pillow's or an array), resized and its
    channels made to fit.
    """
    import torch

    channels, height, width = shape
    values = np.asarray(image, np.float32)
    values = values[..., None] if values.ndim == 2 else values[..., :3]
    if channels == 1 and values.shape[2] == 3:
        values = values @ np.array([[0.299], [0.587], [0.114]], np.float32)  # luma, as Pillow's mode L
    values = np.repeat(values, channels, axis=2) if values.shape[2] == 1 else values
    tensor = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None]
    return (
        torch.nn.functional.interpolate(tensor, (height, width), mode="bilinear", antialias=True)[0] / 127.5 - 1
    ).numpy()


def _hold_out(everything: LabelledSet, share: float, seed: int) -> tuple[LabelledSet, LabelledSet]:
    """The same share of every class into the test set, at least one of each class that has two."""
    rng = np.random.default_rng([seed, 19])
    held: list[int] = []
    for label in np.unique(everything.labels):
        rows = rng.permutation(np.flatnonzero(everything.labels == label))
        held += rows[: max(1, round(share * len(rows))) if len(rows) > 1 else 0].tolist()
    if not held:
        raise BadData("no class has two samples, so none can be held out for the test; give a test file")
    mask = np.isin(np.arange(len(everything)), held)
    return everything.some(np.flatnonzero(~mask)), everything.some(np.flatnonzero(mask))


def _at_most(some: LabelledSet, n: int | None, seed: int) -> LabelledSet:
    """`n` samples drawn by `seed`; all of them if there are no more."""
    if n is None or n >= len(some):
        return some
    return some.some(np.sort(np.random.default_rng([seed, 23]).permutation(len(some))[:n]))
