"""Handwritten digits as small images, as patches, and as words: one word for each 2x2 patch.

    0002 0222 2220 1000 ...      16 words, row by row; "0222" is a patch: top left, top right, bottom left, bottom right

A pixel is one of three grey levels (0 white, 1 grey, 2 black ink), so there are 81 words and any language model can
read an image. That keeps vision and language organisms the same architecture; three levels cost a plain classifier
about a point. Image classifiers get the same images as pixels.
Source: the 1,797 8x8 digits that scikit-learn bundles (UCI "Optical Recognition of Handwritten Digits", CC BY 4.0).
Cost: under a second.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

SIDE, PATCH, N_PATCHES = 8, 2, 16
EDGES = (6, 12)  # ink from which a pixel is grey, and black: the range 0 to 16 in thirds
SPECIAL = ("<pad>", "<bos>", "<unk>")
WORDS = tuple(f"{a}{b}{c}{d}" for a in range(3) for b in range(3) for c in range(3) for d in range(3))
VOCABULARY = SPECIAL + WORDS
LENGTH = 1 + N_PATCHES  # tokens of an image, <bos> included
PARTS = ("pretraining", "training", "test")


@dataclass(frozen=True, eq=False)
class Digits:
    """Some of the images: `images` [n, 8, 8] ink in 0 to 16, `labels` [n] digit, `index` [n] row in scikit-learn's
    set.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def shifted(self, rng: np.random.Generator) -> np.ndarray:
        """[n, 8, 8] every image moved by at most one pixel in each direction, white coming in; for pretraining only."""
        padded = np.pad(self.images, ((0, 0), (1, 1), (1, 1)))
        down, right = rng.integers(0, 3, (2, len(self), 1, 1))
        rows, columns = down + np.arange(SIDE)[None, :, None], right + np.arange(SIDE)[None, None, :]
        return padded[np.arange(len(self))[:, None, None], rows, columns]


@cache
def _all() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    bundled = load_digits()
    order = np.random.default_rng(0).permutation(
        len(bundled.target)
    )  # one split for everybody; run seeds do not move it
    return bundled.images.astype(np.int64), bundled.target.astype(np.int64), order


def digits(part: str) -> Digits:
    """A part of the images; parts do not overlap.

    Args:
        part: "pretraining" (719), "training" (718) or "test" (360).
    """
    images, labels, order = _all()
    start, stop = {"pretraining": (0, 719), "training": (719, 1437), "test": (1437, 1797)}[part]
    index = order[start:stop]
    return Digits(images[index], labels[index], index)


def patches(images: np.ndarray) -> np.ndarray:
    """[n, 8, 8] -> [n, 16, 4]: the 2x2 patches in reading order, each in reading order."""
    cut = images.reshape(-1, SIDE // PATCH, PATCH, SIDE // PATCH, PATCH)
    return cut.transpose(0, 1, 3, 2, 4).reshape(-1, N_PATCHES, PATCH * PATCH)


def to_tokens(images: np.ndarray) -> np.ndarray:
    """[n, 8, 8] ink -> [n, 17] token ids: <bos> and a word a patch."""
    levels = np.digitize(patches(images), EDGES)
    words = len(SPECIAL) + levels @ np.array([27, 9, 3, 1])
    return np.concatenate([np.full((len(words), 1), VOCABULARY.index("<bos>")), words], 1)


def to_levels(tokens: np.ndarray) -> np.ndarray:
    """[n, 17] token ids -> [n, 8, 8] grey levels 0, 1, 2: the image as a model that reads words sees it."""
    cut = (tokens[:, 1:, None] - len(SPECIAL)) // np.array([27, 9, 3, 1]) % 3
    return cut.reshape(-1, SIDE // PATCH, SIDE // PATCH, PATCH, PATCH).transpose(0, 1, 3, 2, 4).reshape(-1, SIDE, SIDE)


def to_pixels(images: np.ndarray) -> np.ndarray:
    """[n, 8, 8] ink -> [n, channel, 8, 8] float32 in [-1, 1], one channel, as image classifiers want it."""
    return (images[:, None] / 8 - 1).astype(np.float32)


def sample(n: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """[n, length] token ids of shifted pretraining images, cut to `length`; for next-word training."""
    source = digits("pretraining")
    chosen = rng.integers(0, len(source), n)
    return to_tokens(Digits(source.images[chosen], source.labels[chosen], source.index[chosen]).shifted(rng))[
        :, :length
    ]
