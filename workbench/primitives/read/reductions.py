"""Statistics of activations in one pass: constant memory, and mergeable, so the work can be split anyhow.

    moments = Moments(); moments.update(values, numbers); moments.merge(other); moments.result(("d_model",))["mean"]

Each is a sum of per-batch summaries. Top-k and quantile sketches are exact sums: the same to the last bit in any order
and split. Moments and covariance are float64 sums, the same within rounding. `reduce_store` goes over a store,
`reduce_activations` over a model's activations without storing them.
Cost, with d units: Moments 16 d bytes; Covariance 8 d^2; TopK 8 k d; Quantiles 33 kB a unit at 1 %.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from safetensors import safe_open
from safetensors.torch import save_file

from workbench.core.errors import BadData, BadSpec

State = dict[str, torch.Tensor]


@dataclass(eq=False)
class Reduction:
    """Base: subclasses say how a batch is summarised, how two summaries add up, and what a summary means.

    `state` is empty until the first update.
    """

    state: State = field(default_factory=dict, init=False, repr=False)

    def update(self, values: torch.Tensor, numbers: torch.Tensor) -> None:
        """Take in a batch. values: [token, *unit]. numbers: [token] a different number for every token of the whole
        pass.
        """
        if len(values):
            self.state = self._added(self.summarise(values, numbers))

    def merge(self, other: "Reduction") -> None:
        """Take in what another pass over other tokens found.

        Raises:
            BadSpec: if the other one was made with other settings.
        """
        if type(other) is not type(self) or other.settings() != self.settings():
            raise BadSpec(f"{self} and {other} measure different things, so they cannot be merged")
        if other.state:
            self.state = self._added(other.state)

    def _added(self, state: State) -> State:
        if not self.state:
            return state
        if (mine := self._unit_shape(self.state)) != (theirs := self._unit_shape(state)):
            raise BadData(f"{type(self).__name__} has seen units of shape {list(mine)} and is given {list(theirs)}")
        return self.add(self.state, state)

    def _unit_shape(self, state: State) -> torch.Size:
        return state["mean"].shape

    def summarise(self, values: torch.Tensor, numbers: torch.Tensor) -> State:
        """The summary of one batch."""
        raise NotImplementedError

    def add(self, a: State, b: State) -> State:
        """The summary of two sets of tokens from theirs; must not change either."""
        raise NotImplementedError

    def result(self, dims: Sequence[str]) -> xr.Dataset:
        """What was found, over the axes of a unit."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What it was made with, as plain JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    def fresh(self) -> Self:
        """The same settings, nothing seen."""
        return replace(self)

    def _require(self) -> State:
        if not self.state:
            raise BadData(f"{type(self).__name__} has seen no tokens")
        return self.state


def _variable(
    values: torch.Tensor | np.ndarray, dims: Sequence[str], long_name: str, unit: str = "activation"
) -> tuple:
    values = values.numpy() if isinstance(values, torch.Tensor) else values
    return tuple(dims), values, {"long_name": long_name, "unit": unit}


@dataclass(eq=False)
class Moments(Reduction):
    """Mean and variance of every unit; the variance divides by the number of tokens.

    Source: the update for pairs of sets is Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for
    computing sample variances".
    """

    def summarise(self, values: torch.Tensor, numbers: torch.Tensor) -> State:
        values = values.double()
        mean = values.mean(0)
        return {
            "n": torch.tensor(float(len(values)), dtype=torch.float64),
            "mean": mean,
            "m2": (values - mean).square_().sum(0),
        }

    def add(self, a: State, b: State) -> State:
        n = a["n"] + b["n"]
        delta = b["mean"] - a["mean"]
        return {
            "n": n,
            "mean": a["mean"] + delta * (b["n"] / n),
            "m2": a["m2"] + b["m2"] + delta.square() * (a["n"] * b["n"] / n),
        }

    def result(self, dims: Sequence[str]) -> xr.Dataset:
        state = self._require()
        variables = {
            "mean": _variable(state["mean"], dims, "Mean activation"),
            "variance": _variable(state["m2"] / state["n"], dims, "Variance of the activation", "activation squared"),
        }
        return xr.Dataset(variables, attrs={"n_tokens": int(state["n"])})


@dataclass(eq=False)
class Covariance(Reduction):
    """Mean and covariance of all units of a place; heads and their dimensions are run together. Divides by the
    number of tokens.
    """

    def summarise(self, values: torch.Tensor, numbers: torch.Tensor) -> State:
        values = values.flatten(1).double()
        mean = values.mean(0)
        centred = values - mean
        return {"n": torch.tensor(float(len(values)), dtype=torch.float64), "mean": mean, "m2": centred.T @ centred}

    def add(self, a: State, b: State) -> State:
        n = a["n"] + b["n"]
        delta = b["mean"] - a["mean"]
        return {
            "n": n,
            "mean": a["mean"] + delta * (b["n"] / n),
            "m2": a["m2"] + b["m2"] + torch.outer(delta, delta) * (a["n"] * b["n"] / n),
        }

    def result(self, dims: Sequence[str]) -> xr.Dataset:
        state = self._require()
        name = dims[0] if len(dims) == 1 else "unit"
        variables = {
            "mean": _variable(state["mean"], [name], "Mean activation"),
            "covariance": _variable(
                state["m2"] / state["n"], [name, f"{name}_b"], "Covariance of activations", "activation squared"
            ),
        }
        return xr.Dataset(variables, attrs={"n_tokens": int(state["n"])})


@dataclass(eq=False)
class TopK(Reduction):
    """The k tokens on which each unit is largest. Of equal values the token of the smaller number comes first.

    A value and its token are packed into one integer that sorts by value first, so ties fall the same way in any order.
    """

    k: int = 10

    def __post_init__(self) -> None:
        if self.k < 1:
            raise BadSpec(f"k must be at least 1, got {self.k}")

    def summarise(self, values: torch.Tensor, numbers: torch.Tensor) -> State:
        if int(numbers.max()) >= 2**32 or int(numbers.min()) < 0:
            raise BadData("TopK counts tokens up to 2^32; split the pass")
        shape = values.shape[1:]
        flat, numbers = values.flatten(1).float(), numbers.long()
        top = flat.topk(min(self.k, len(flat)), dim=0)
        packed = _pack(top.values, numbers[top.indices])
        # Floats first, because packing all of them costs four times as much. Where more than k reach the k-th value, or
        # where nan hides that, which of them it took is arbitrary, and the exact way is taken.
        unclear = ((flat >= top.values[-1]).sum(0) != len(top.values)) | flat.isnan().any(0)
        if bool(unclear.any()):
            packed[:, unclear] = self._largest(_pack(flat[:, unclear], numbers[:, None]))
        return {"packed": self._largest(packed).reshape(-1, *shape)}

    def add(self, a: State, b: State) -> State:
        return {"packed": self._largest(torch.cat([a["packed"], b["packed"]]))}

    def _largest(self, packed: torch.Tensor) -> torch.Tensor:
        return packed.movedim(0, -1).topk(min(self.k, len(packed))).values.movedim(-1, 0).contiguous()

    def _unit_shape(self, state: State) -> torch.Size:
        return state["packed"].shape[1:]

    def result(self, dims: Sequence[str]) -> xr.Dataset:
        packed = self._require()["packed"]
        bits = packed >> 32
        variables = {
            "value": _variable(_unsortable(bits), ["rank", *dims], "Largest activations"),
            "number": _variable(2**32 - 1 - (packed - bits * 2**32), ["rank", *dims], "Token of the store", "token"),
        }
        return xr.Dataset(variables)


def _pack(values: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """One integer that sorts by value, and among equal values the smaller number first."""
    return _sortable(values) * 2**32 + (2**32 - 1 - numbers)


def _sortable(values: torch.Tensor) -> torch.Tensor:
    """float32 -> int64 in [-2^31, 2^31) that sorts the same way; -0 and 0 are equal, nan is largest."""
    bits = (values + 0.0).contiguous().view(torch.int32).long()
    return torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF) - 1).where(~values.isnan(), 2**31 - 1)


def _unsortable(bits: torch.Tensor) -> torch.Tensor:
    return torch.where(bits >= 0, bits, (-(bits + 1)) | -(2**31)).to(torch.int32).view(torch.float32)


@dataclass(eq=False)
class Quantiles(Reduction):
    """Quantiles of every unit within a share `accuracy` of their value, from counts in bins of constant relative width.

    A bin is an exponent and the first bits of a fraction, read off the float itself, so a value falls into the same bin
    on every machine. Magnitudes below 2^low count as 0, those above 2^high as that. Counts add up exactly.

    Source: DDSketch (Masson, Rim & Lee 2019, arXiv 1908.10693), with a fixed range and octaves cut linearly.
    """

    quantiles: tuple[float, ...] = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
    accuracy: float = 0.01
    low: int = -16
    high: int = 16

    def __post_init__(self) -> None:
        self.quantiles = tuple(self.quantiles)
        in_range = self.quantiles and all(0 <= q <= 1 for q in self.quantiles)
        if not (in_range and 1e-4 <= self.accuracy < 0.5 and -100 <= self.low < self.high <= 100):
            raise BadSpec(f"quantiles lie in 0 to 1, accuracy in 0.0001 to 0.5, low < high in -100 to 100; got {self}")

    @property
    def _bits(self) -> int:
        """Bits of the fraction that tell bins apart: half a bin is then at most `accuracy` of its lower end."""
        return max(0, math.ceil(-math.log2(self.accuracy)) - 1)

    @property
    def _n_side(self) -> int:
        """Bins of one sign."""
        return (self.high - self.low) << self._bits

    def summarise(self, values: torch.Tensor, numbers: torch.Tensor) -> State:
        units = values.flatten(1).float().contiguous()
        if not bool(torch.isfinite(units).all()):
            raise BadData("quantiles need finite values")
        side, n_units = self._n_side, units.shape[1]
        step = units.abs().view(torch.int32).bitwise_right_shift_(23 - self._bits)
        step.sub_((self.low + 127 << self._bits) - 1).clamp_(0, side)
        bins = torch.where(units < 0, side - step, side + step).long()
        n_bins = 2 * side + 1
        counts = torch.bincount(bins.add_(torch.arange(n_units) * n_bins).flatten(), minlength=n_units * n_bins)
        return {"counts": counts.reshape(*values.shape[1:], n_bins)}

    def add(self, a: State, b: State) -> State:
        return {"counts": a["counts"] + b["counts"]}

    def _unit_shape(self, state: State) -> torch.Size:
        return state["counts"].shape[:-1]

    def _centres(self) -> np.ndarray:
        """[bin] the value that stands for each."""
        edges = (
            ((np.arange(self._n_side + 1, dtype=np.int32) + (self.low + 127 << self._bits)) << (23 - self._bits))
            .view(np.float32)
            .astype(np.float64)
        )
        positive = (edges[:-1] + edges[1:]) / 2
        return np.concatenate([-positive[::-1], [0.0], positive])

    def result(self, dims: Sequence[str]) -> xr.Dataset:
        counts = self._require()["counts"].numpy()
        centres, below = self._centres(), counts.cumsum(-1)
        total = below[..., -1:]
        found = [centres[(below <= np.floor(q * (total - 1))).sum(-1)] for q in self.quantiles]
        variables = {
            "quantile": _variable(np.stack(found), ["q", *dims], f"Quantile, within {self.accuracy:.1%} of its value")
        }
        return xr.Dataset(
            variables, coords={"q": list(self.quantiles)}, attrs={"n_tokens": int(total.flat[0]) if total.size else 0}
        )


@dataclass(eq=False)
class Projected(Reduction):
    """Another reduction of the projections on directions: values . direction, one unit per direction.

    directions: [direction, unit...] tensor; not normalised here.
    """

    directions: torch.Tensor
    of: Reduction

    def __post_init__(self) -> None:
        self.directions = self.directions.flatten(1).float()

    def update(self, values: torch.Tensor, numbers: torch.Tensor) -> None:
        self.of.update(project(values, self.directions), numbers)

    def merge(self, other: Reduction) -> None:
        if not isinstance(other, Projected) or not torch.equal(other.directions, self.directions):
            raise BadSpec("these are projections on other directions, so they cannot be merged")
        self.of.merge(other.of)

    def result(self, dims: Sequence[str]) -> xr.Dataset:
        return self.of.result(["direction"])

    def fresh(self) -> Self:
        return replace(self, of=self.of.fresh())


def project(values: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """[token, *unit] values on [direction, *unit] directions -> [token, direction], float64.

    In float64, because a product in float32 differs in its last bits with the size of the batch.

    Raises:
        BadData: if their sizes differ.
    """
    flat, directions = values.flatten(1).double(), directions.flatten(1).double()
    if flat.shape[1] != directions.shape[1]:
        raise BadData(f"directions have {directions.shape[1]} numbers and the values of a token {flat.shape[1]}")
    return flat @ directions.T


@dataclass(eq=False)
class Together(Reduction):
    """Several reductions in one pass, by name; their variables and own axes carry the name in front: "moments_mean"."""

    of: dict[str, Reduction]

    def update(self, values: torch.Tensor, numbers: torch.Tensor) -> None:
        for one in self.of.values():
            one.update(values, numbers)

    def merge(self, other: Reduction) -> None:
        if not isinstance(other, Together) or list(other.of) != list(self.of):
            raise BadSpec(f"{self} and {other} measure different things, so they cannot be merged")
        for name, one in self.of.items():
            one.merge(other.of[name])

    def result(self, dims: Sequence[str]) -> xr.Dataset:
        total = xr.Dataset()
        for name, one in self.of.items():
            found = one.result(dims)
            own = [
                *found.data_vars,
                *(d for d in found.dims if d not in dims),
            ]  # two may rank, or project, differently many
            total = total.merge(
                found.rename({v: f"{name}_{v}" for v in own}),
                join="exact",
                compat="no_conflicts",
                combine_attrs="drop_conflicts",
            )
        return total

    def fresh(self) -> Self:
        return replace(self, of={name: one.fresh() for name, one in self.of.items()})


# ---- to a file and back: how a worker is told what to measure, and answers ----

KINDS: dict[str, type[Reduction]] = {
    kind.__name__: kind for kind in (Moments, Covariance, TopK, Quantiles, Projected, Together)
}


def save_reduction(reduction: Reduction, path: Path) -> Path:
    """Settings and state as one safetensors file."""
    tensors: State = {}
    settings = _describe(reduction, "", tensors)
    save_file({"": torch.zeros(1)} | tensors, path, metadata={"reduction": json.dumps(settings)})
    return path


def load_reduction(path: Path) -> Reduction:
    """What `save_reduction` wrote."""
    with safe_open(path, framework="pt") as handle:
        return _build(
            json.loads(handle.metadata()["reduction"]),
            "",
            {name: handle.get_tensor(name).clone() for name in handle.keys()},
        )


def _describe(reduction: Reduction, prefix: str, tensors: State) -> dict[str, Any]:
    tensors |= {f"{prefix}state.{name}": value.contiguous() for name, value in reduction.state.items()}
    told: dict[str, Any] = {"kind": type(reduction).__name__}
    for name, value in reduction.settings().items():
        if isinstance(value, torch.Tensor):
            tensors[f"{prefix}{name}"] = value.contiguous()
        elif isinstance(value, Reduction):
            told[name] = _describe(value, f"{prefix}{name}.", tensors)
        elif isinstance(value, dict):
            told[name] = {key: _describe(one, f"{prefix}{name}.{key}.", tensors) for key, one in value.items()}
        else:
            told[name] = value
    return told


def _build(told: dict[str, Any], prefix: str, tensors: State) -> Reduction:
    kind = KINDS[told["kind"]]
    given: dict[str, Any] = {}
    for one in fields(kind):
        if not one.init:
            continue
        value = told.get(one.name)
        if one.name not in told:
            given[one.name] = tensors[f"{prefix}{one.name}"]
        elif isinstance(value, dict) and "kind" in value:
            given[one.name] = _build(value, f"{prefix}{one.name}.", tensors)
        elif isinstance(value, dict):
            given[one.name] = {
                key: _build(inner, f"{prefix}{one.name}.{key}.", tensors) for key, inner in value.items()
            }
        else:
            given[one.name] = value
    made = kind(**given)
    start = f"{prefix}state."
    made.state = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
    return made
