"""Sweep figures from 2 x 2 Results: drawn numbers, centred scale, labels; no model."""

import numpy as np
import pytest
import xarray as xr

from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.views import figures_of
from workbench.views.sweep import change, patch_grid


def result(dims=("layer", "pos"), source=True, token=True):
    sizes = {"layer": 2, "pos": 2, "head": 2}
    shape = [sizes[d] for d in dims] + [2]
    values = np.arange(np.prod(shape), dtype=float).reshape(shape)
    data = xr.Dataset(
        {"value": ((*dims, "example"), values, {"unit": "logits"}), "base_value": ("example", [0.0, 1.0])},
        coords={d: range(sizes[d]) for d in dims},
        attrs={"site": "z", "metric": "logit_diff"},
    )
    if source:
        data["source_value"] = ("example", [4.0, 5.0])
    if token and "pos" in dims:
        data = data.assign_coords(token=("pos", ["river", "stone"]))
    return Result(Provenance("sweep", {}, 0), data)


def test_share_is_a_ratio_of_means():
    np.testing.assert_allclose(change(result()), np.array([[0.0, 2.0], [4.0, 6.0]]) / 4)
    assert change(result(source=False)).attrs["unit"] == "logits"


@pytest.mark.parametrize("dims", [("layer", "pos"), ("layer", "head"), ("layer", "pos", "head")])
def test_grid_draws_the_change_with_zero_in_the_middle(dims):
    figure = patch_grid(result(dims))
    heat = figure.data[0]
    np.testing.assert_allclose(np.sort(np.asarray(heat.z).ravel()), np.sort(change(result(dims)).values.ravel()))
    assert heat.zmin == -heat.zmax and heat.colorbar.title.text == "share of source - base"
    assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text and "largest change" in figure.layout.meta["alt"]


def test_positions_carry_their_tokens():
    assert list(patch_grid(result()).data[0].x) == ["0 river", "1 stone"]
    assert list(patch_grid(result(token=False)).data[0].x) == ["0", "1"]


def test_found_by_stem():
    assert list(figures_of(result())) == ["patch_grid"]
