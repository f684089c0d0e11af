"""A low-rank update of a weight as its two factors, of which the full matrix need never be formed.

Cost: memory of the factors.
"""

from dataclasses import dataclass
from math import sqrt

import torch


@dataclass(frozen=True, eq=False)
class Factors:
    """One update dW = scale * B A. A: [r, in]; B: [out, r]."""

    A: torch.Tensor
    B: torch.Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the full update."""
        return self.B.shape[0], self.A.shape[1]

    def delta(self) -> torch.Tensor:
        """[out, in] the full update, for where it is small enough."""
        return self.scale * self.B @ self.A

    def norm(self) -> float:
        """Frobenius norm of the update, from r x r matrices."""
        return sqrt(max(self.dot(self), 0.0))

    def dot(self, other: "Factors") -> float:
        """Inner product of two flattened updates, <vec dW, vec dW'>, from r x r matrices in float64."""
        left, right = self.B.double().T @ other.B.double(), self.A.double() @ other.A.double().T
        return float(self.scale * other.scale * (left * right).sum())
