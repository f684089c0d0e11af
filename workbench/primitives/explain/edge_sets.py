"""A circuit given as a set of edges: what these edges do alone, and what is left without them, beside random sets of as
many.

`circuits.faithfulness` takes the k best by score; here the edges are anybody's choice - those on show in a panel, those
of a paper. Cost: per batch of 8 rows 5 forwards for the set and for each random one.
"""

import numpy as np
import pandas as pd
import xarray as xr

from workbench.core.errors import BadData
from workbench.core.progress import SILENT, Cancelled, Progress
from workbench.core.result import Result
from workbench.models.inputs import Inputs
from workbench.models.model import Model
from workbench.primitives.explain.circuits import faithfulness
from workbench.primitives.score.metrics import Metric


class _Part(Progress):
    """One of several runs in a row, told as a part of the whole."""

    def __init__(self, whole: Progress, place: int, n: int):
        super().__init__()
        self._whole, self._place, self._n = whole, place, n

    def update(self, done: int, total: int, text: str = "") -> None:
        self._whole.update(self._place * total + done, self._n * total, text)


def edges_faithfulness(
    model: Model,
    clean: Inputs,
    corrupted: Inputs,
    metric: Metric,
    scores: Result,
    edges: pd.DataFrame,
    *,
    n_random: int = 3,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Result:
    """What a given set of edges does alone, beside random sets of as many edges; exact, by `circuits.faithfulness`.

    1 means that these edges suffice, 0 that they do nothing; a random set that does as well means that any would do.

    Args:
        scores: from `attribute_edges`; says which edges there are. edges: columns writer and reader.
        n_random: random circuits. seed: draws them.

    Returns:
        Result with `faithfulness` and `completeness` [circuit] ("shown", "random 1", ...), shares of clean - empty.
        A cancelled call has the circuits it finished.

    Raises:
        BadData: on no edges. DegenerateBaseline: if clean and empty run do not differ.
    """
    if not len(edges):
        raise BadData("no edge is shown, so there is no circuit to test; lower the threshold")
    score = scores.data["score"]
    at = [score.indexes[dim].get_indexer(edges[dim]) for dim in ("writer", "reader")]
    exists, rng = np.argwhere(np.isfinite(score.values)), np.random.default_rng(seed)
    sets = [np.stack(at, 1), *(exists[rng.choice(len(exists), len(edges), replace=False)] for _ in range(n_random))]
    found: list[Result] = []
    for i, chosen in enumerate(sets):
        marked = xr.zeros_like(score).where(np.isfinite(score))
        marked.values[tuple(chosen.T)] = 1.0
        picked = Result(scores.provenance, xr.Dataset({"score": marked}))
        try:
            found.append(
                faithfulness(
                    model, clean, corrupted, metric, picked, [len(edges)], progress=_Part(progress, i, len(sets))
                )
            )
        except Cancelled:
            if not found:
                raise
            break
    share = {"unit": "share of clean - empty"}
    data = xr.Dataset(
        {
            name: ("circuit", [float(r.data[name][0]) for r in found], share | {"long_name": long})
            for name, long in (
                ("faithfulness", "Faithfulness of the edges alone"),
                ("completeness", "Left without the edges"),
            )
        },
        {"circuit": ["shown", *(f"random {i}" for i in range(1, len(found)))]},
        {"n_shown": len(edges), "n_edges": len(exists), "seed": seed},
    )
    partial = len(found) < len(sets) or any(r.partial for r in found)
    return Result(
        found[0].provenance, data, {"edges": edges.loc[:, ["writer", "reader"]].reset_index(drop=True)}, partial=partial
    )
