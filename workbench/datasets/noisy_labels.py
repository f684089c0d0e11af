"""Label noise with the truth kept aside: some samples of ONE class get a uniformly random wrong label.

Source: Singhal & Kim 2025 (arXiv 2511.10566), which relabels round(rate * N) training samples and takes all of them
    from one class. Its text speaks of a share of the class; only a share of the whole training set fits its percentages
    (28.12 % = 45/160).
"""

from dataclasses import dataclass

import numpy as np

from workbench.core.errors import BadData


@dataclass(frozen=True, eq=False)
class NoisyLabels:
    """`trained` [n] labels to train on, `true` [n] labels kept aside, both class numbers; they differ at `noisy`
    rows only.
    """

    trained: np.ndarray
    true: np.ndarray

    @property
    def is_noisy(self) -> np.ndarray:
        """[n] True where the label was changed."""
        return self.trained != self.true

    @property
    def noisy(self) -> np.ndarray:
        """[n_noisy] rows whose label was changed, increasing."""
        return np.flatnonzero(self.is_noisy)


def add_noise(labels: np.ndarray, n_classes: int, *, rate: float, noisy_class: int | None, seed: int) -> NoisyLabels:
    """Relabel round(rate * n) samples of one class.

    Args:
        labels: [n] true class numbers.
        n_classes: how many classes there are.
        rate: noisy samples as a share of ALL samples, in [0, 1].
        noisy_class: the class they are taken from; the most frequent one if None.
        seed: draws the samples and their wrong labels.

    Raises:
        BadData: if the class does not exist or has too few samples, saying which rate it could bear.
    """
    labels = np.asarray(labels)
    counts = np.bincount(labels, minlength=n_classes)
    chosen_class = int(counts.argmax()) if noisy_class is None else noisy_class
    if not 0 <= chosen_class < n_classes:
        raise BadData(f"noisy_class is {noisy_class}, and the classes are numbered 0 to {n_classes - 1}")
    n_noisy = round(rate * len(labels))
    if n_noisy and n_classes < 2:
        raise BadData("there is one class only, so no label can be wrong")
    if n_noisy > counts[chosen_class]:
        raise BadData(
            f"a noise rate of {rate:g} asks for {n_noisy} samples of class {chosen_class}, which has"
            f" {counts[chosen_class]}; a rate up to {np.floor(counts[chosen_class] / len(labels) * 1e4) / 1e4:g} works,"
            " or another class"
        )
    rng = np.random.default_rng([seed, 11])
    rows = rng.choice(np.flatnonzero(labels == chosen_class), n_noisy, replace=False)
    trained = labels.copy()
    trained[rows] = (chosen_class + rng.integers(1, n_classes, n_noisy)) % n_classes if n_noisy else trained[rows]
    return NoisyLabels(trained, labels)
