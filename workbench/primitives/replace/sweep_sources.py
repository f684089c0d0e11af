"""What a sweep puts in: the sources that replace an activation, for prompts of one length or several."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from workbench.core.errors import BadData
from workbench.core.hooks import SITES
from workbench.models.inputs import Batch, Inputs, by_length, rows_of
from workbench.models.model import Model
from workbench.primitives.replace.sweep_plan import read_site


@dataclass(frozen=True, eq=False)
class FromRun:
    """The same place in a run of other tokens, [example, pos] or rows, aligned with the base."""

    tokens: Inputs


@dataclass(frozen=True)
class Zero:
    """Zero."""


@dataclass(frozen=True, eq=False)
class Mean:
    """The mean of the site over examples and positions of a reference set, [row, pos] tokens or rows."""

    tokens: Inputs


@dataclass(frozen=True)
class Resample:
    """The same place in another example of the base of the same length, drawn by `seed` so that no example is its
    own source.
    """

    seed: int = 0


Source = FromRun | Zero | Mean | Resample


def source_of(model: Model, source: Source, part: Batch, base: Inputs) -> Source:
    """The source of the examples of one length.

    Raises:
        BadData: where the source's tokens are not aligned with the base's.
    """
    if not isinstance(source, FromRun):
        return source
    given, wanted = rows_of(model, source.tokens), len(rows_of(model, base))
    if len(given) != wanted:
        raise BadData(f"the source has {len(given)} prompts and the base {wanted}; a patch needs one source per prompt")
    index, n_pos = part.index.tolist(), part.tokens.shape[1]
    for i in index:
        if len(given[i]) != n_pos:
            raise BadData(
                f"the source of example {i} has {len(given[i])} tokens and its base {n_pos}; a patch needs aligned"
                " tokens"
            )
    return replace(source, tokens=torch.tensor([given[i] for i in index]))


def source_values(
    model: Model, base: torch.Tensor, source: Source, site: str, layers: Sequence[int]
) -> tuple[dict[int, torch.Tensor], torch.Tensor | None]:
    """{layer: tensor shaped like the site in a run of `base`} to copy cells from, and the source run's logits if it is
    one.

    Args:
        base: [example, pos] tokens of one length.
    """
    if isinstance(source, Resample):
        if len(base) < 2:
            raise BadData(
                f"resampling takes another example of {base.shape[1]} tokens as source, and there is only one; give"
                " several of that length, or FromRun"
            )
        shift = 1 + int(torch.randint(len(base) - 1, (1,), generator=torch.Generator().manual_seed(source.seed)))
        source = FromRun(base.roll(shift, 0))
    if isinstance(source, FromRun):
        assert isinstance(source.tokens, torch.Tensor)
        return read_site(model, source.tokens, site, layers)
    if isinstance(source, Mean) and "query_pos" in SITES[site].dims:
        raise BadData(f"a mean over positions of {site} mixes queries that see different keys; sweep z, or use FromRun")
    like, _ = read_site(model, base, site, layers)
    if isinstance(source, Zero):
        return {layer: torch.zeros_like(value) for layer, value in like.items()}, None
    means = _means(model, source.tokens, site, layers)
    return {layer: means[layer].to(value.dtype).expand_as(value) for layer, value in like.items()}, None


def _means(model: Model, tokens: Inputs, site: str, layers: Sequence[int]) -> dict[int, torch.Tensor]:
    """{layer: mean over all examples and positions}, summed in fp32 over sets of one length."""
    sums: dict[int, torch.Tensor] = {}
    n = 0
    for part in by_length(model, tokens):
        values, _ = read_site(model, part.tokens, site, layers)
        n += part.tokens.numel()
        for layer, value in values.items():
            sums[layer] = sums.get(layer, 0) + value.float().sum((0, 1))
    return {layer: total / n for layer, total in sums.items()}
