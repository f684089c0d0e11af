"""Directions: one vector of the residual stream with the place it belongs to and where it came from.

A steering vector, a probe and a random control are the same thing to whoever adds or projects them: `Direction` holds
the vector, its site and layer, and a sentence on its source. Makers pool each row's activations to one vector first, at
the last token or as the mean over tokens (in which the first token, often a sink of hundredfold norm, counts like any
other).
Cost: one forward per batch of rows; [row, d_model] is kept in float32, sums are taken in float64.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from workbench.core import hooks
from workbench.core.errors import BadData, UnknownSite
from workbench.models.inputs import Inputs
from workbench.models.model import Model
from workbench.primitives.read.capture import capture

Pooling = Literal["last", "mean"]


@dataclass(frozen=True, eq=False)
class Direction:
    """A vector at a site.

    vector: [d_model] float32 on the CPU, raw or of unit norm as its maker says. site: a word of core.hooks.SITES that
    holds the stream. layer: its block, None for sites that exist once. source: one sentence for captions and
    provenance.

    Raises:
        BadData: if the vector is not a finite, non-zero vector. UnknownSite: if the site holds no stream.
    """

    vector: torch.Tensor
    site: str
    layer: int | None
    source: str

    def __post_init__(self) -> None:
        hooks.name(self.site, self.layer)
        if hooks.SITES[self.site].dims != ("pos", "d_model"):
            streams = [s for s, entry in hooks.SITES.items() if entry.dims == ("pos", "d_model")]
            raise UnknownSite(
                f"a direction lives where the model keeps [pos, d_model], and {self.site} is"
                f" {list(hooks.SITES[self.site].dims)}; use one of {', '.join(streams)}"
            )
        if self.vector.ndim != 1 or not bool(torch.isfinite(self.vector).all()) or not bool(self.vector.any()):
            raise BadData(
                f"a direction is one finite, non-zero vector [d_model]; {self.source!r} gave shape"
                f" {tuple(self.vector.shape)} and norm {float(self.vector.norm()):g}"
            )
        object.__setattr__(self, "vector", self.vector.detach().to("cpu", torch.float32, copy=True).contiguous())

    @property
    def norm(self) -> float:
        """Euclidean norm of the vector, in the unit of the activations."""
        return float(self.vector.norm())

    def unit(self) -> "Direction":
        """The same direction with norm 1."""
        return Direction(self.vector / self.vector.norm(), self.site, self.layer, f"{self.source}, scaled to norm 1")


def given(vector: torch.Tensor | np.ndarray, site: str, layer: int | None, source: str = "given") -> Direction:
    """A vector made elsewhere, kept raw. vector: [d_model]."""
    return Direction(torch.as_tensor(vector), site, layer, source)


def mean_difference(
    model: Model,
    positive_rows: Inputs,
    negative_rows: Inputs,
    *,
    site: str = "resid_post",
    layer: int | None,
    pos: Pooling = "last",
    batch_size: int = 32,
) -> Direction:
    """Mean of the positive rows minus mean of the negative ones, raw: its norm is the distance of the two means.

    Args:
        positive_rows: texts, rows of ids, a tensor or a Batch; the direction points to these. negative_rows: where it
            points from.
        site, layer: where to read. pos: pooling over a row's tokens.

    Returns:
        A Direction [d_model], not normalised.

    Raises:
        BadData: if there is no row on one side, or the two means are equal.

    Source: Arditi et al. 2024 (arXiv 2406.11717), "difference-in-means"; Rimsky et al. 2023 (arXiv 2312.06681) for last
        tokens.
    """
    positive, negative = (_pooled(model, rows, site, layer, pos, batch_size) for rows in (positive_rows, negative_rows))
    source = f"mean of {len(positive)} positive rows minus mean of {len(negative)} negative rows, {pos} token"
    return Direction(torch.as_tensor(positive.mean(0) - negative.mean(0)), site, layer, source)


def principal_component(
    model: Model,
    rows: Inputs,
    *,
    site: str = "resid_post",
    layer: int | None,
    pos: Pooling = "last",
    batch_size: int = 32,
) -> Direction:
    """First principal component of the centred, pooled activations, of unit norm.

    The sign is a convention, because data do not fix it: the entry of largest size is positive.

    Args:
        rows: token ids per row, at least two. site, layer, pos: as in `mean_difference`.

    Returns:
        A Direction [d_model] of norm 1; its source says which share of the variance it explains.

    Raises:
        BadData: on fewer than two rows, or rows without any variance.
    """
    values = _pooled(model, rows, site, layer, pos, batch_size)
    _, size, axes = np.linalg.svd(values - values.mean(0), full_matrices=False)
    if len(values) < 2 or size[0] <= 1e-6 * np.linalg.norm(values):  # float32 activations: below this it is rounding
        raise BadData(
            f"{len(values)} rows have no variance at {site} of layer {layer}, so there is no first component; give rows"
            " that differ"
        )
    axis = axes[0] * np.sign(axes[0][np.abs(axes[0]).argmax()])
    share = size[0] ** 2 / (size**2).sum()
    return Direction(
        torch.as_tensor(axis),
        site,
        layer,
        f"first principal component of {len(values)} rows, {pos} token, {100 * share:.0f} % of the variance",
    )


def probe_direction(
    model: Model,
    positive_rows: Inputs,
    negative_rows: Inputs,
    *,
    site: str = "resid_post",
    layer: int | None,
    pos: Pooling = "last",
    penalty: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
) -> Direction:
    """Weights of a logistic regression that tells positive from negative rows, of unit norm; it points to the positive
    ones.

    Args:
        positive_rows, negative_rows: token ids per row. site, layer, pos: as in `mean_difference`.
        penalty: strength of the L2 penalty on the weights (1 / C of scikit-learn), on activations as they are. seed: of
            the solver.

    Returns:
        A Direction [d_model] of norm 1; its source gives the accuracy on these same rows, which says nothing about
        others.

    Raises:
        BadData: if there is no row on one side.
    """
    from sklearn.linear_model import LogisticRegression

    positive, negative = (_pooled(model, rows, site, layer, pos, batch_size) for rows in (positive_rows, negative_rows))
    values, labels = np.concatenate([positive, negative]), np.repeat([1, 0], [len(positive), len(negative)])
    probe = LogisticRegression(C=1 / penalty, max_iter=2000, random_state=seed).fit(values, labels)
    source = (
        f"logistic regression on {len(values)} rows, {pos} token, training accuracy {probe.score(values, labels):.2f}"
    )
    return Direction(torch.as_tensor(probe.coef_[0] / np.linalg.norm(probe.coef_[0])), site, layer, source)


def random_like(direction: Direction, seed: int) -> Direction:
    """A control: a uniformly random direction with the norm, site and layer of `direction`."""
    draw = torch.randn(direction.vector.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Direction(
        draw / draw.norm() * direction.vector.double().norm(),
        direction.site,
        direction.layer,
        f"random, seed {seed}, norm as: {direction.source}",
    )


def _pooled(model: Model, rows: Inputs, site: str, layer: int | None, pos: Pooling, batch_size: int) -> np.ndarray:
    """[row, d_model] float64."""
    if pos not in ("last", "mean"):
        raise BadData(f"pos must be 'last' or 'mean', got {pos!r}")
    taken = capture(
        model,
        rows,
        [site],
        layers=None if layer is None else [layer],
        dtype=torch.float32,
        reduce=pos,
        batch_size=batch_size,
    )
    return taken[site, layer].numpy().astype(np.float64)
