"""Figures of two checkpoints from 2 x 2 Results: drawn numbers, crosses by chance, units, labels; no model."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.views import figures
from workbench.views import two_checkpoints as views


def weights(third: bool = True) -> Result:
    """Two layers of one matrix and one vector; k = 2."""
    layers, modules, against = [0, 1], ["attn.q", "norm"], ["weights", *(["other change"] if third else [])]
    matrix = np.array([[1.0, np.nan], [1.0, np.nan]])
    sided = np.broadcast_to(matrix, (2, 2, 2))
    overlap = np.broadcast_to(np.array([[0.5, np.nan], [0.1, np.nan]]), (len(against), 2, 2, 2)).copy()
    index = np.array([10.0, 80.0])
    data = xr.Dataset(
        {
            "relative": (("layer", "module"), [[0.1, 0.2], [0.3, 0.4]]),
            "change": (("layer", "module"), [[1.0, 2.0], [3.0, 4.0]]),
            "rank": (("layer", "module"), matrix * 8),
            "rounding": (("layer", "module"), matrix * 1e-6),
            "overlap": (("against", "side", "layer", "module"), overlap),
            "angle": (
                ("against", "side", "layer", "module", "index"),
                np.where(np.isfinite(overlap)[..., None], index, np.nan),
            ),
            "chance_overlap_high": (("side", "layer", "module"), sided * 0.2),
            "chance_angle_low": (("side", "layer", "module", "index"), sided[..., None] * [50.0, 70.0]),
            "chance_angle_high": (("side", "layer", "module", "index"), sided[..., None] * [70.0, 89.0]),
        },
        coords={"layer": layers, "module": modules, "against": against, "side": ["right", "left"], "index": [1, 2]},
        attrs={"k": 2},
    )
    if third:
        data["cosine_changes"] = (("layer", "module"), [[0.5, -0.5], [1.0, 0.0]])
        data["same_space_floor"] = (("layer", "module"), [[0.6, np.nan], [np.nan, np.nan]])
    parameters = pd.DataFrame(
        {
            "layer": [-1, 0, 0, 1, 1],
            "module": ["embed", *modules * 2],
            "parameter": ["embed.weight", "0.q", "0.n", "1.q", "1.n"],
            "shape": ["(3, 3)"] * 5,
            "n": [9] * 5,
            "norm_a": [1.0] * 5,
            "change": [9.0, 1, 2, 3, 4],
            "relative": [0.9, 0.1, 0.2, 0.3, 0.4],
        }
    )
    spectrum = pd.DataFrame(
        {
            "layer": [0, 0, 1, 1],
            "module": "attn.q",
            "index": [1, 2, 1, 2],
            "change": [0.5, 0.1, 0.4, 0.0],
            "weights": [3.0, 1.0, 2.0, 1.0],
        }
    )
    if third:
        spectrum["other_change"] = [0.4, 0.2, 0.3, 0.1]
    return Result(
        Provenance("two_checkpoints", {}, 0, model={"name": "b minus a"}),
        data,
        {"parameters": parameters, "spectrum": spectrum},
    )


def measured(dims=("layer", "head"), token=False) -> Result:
    values = np.array([[0.5, -0.1], [0.0, 2.0]])
    data = xr.Dataset(
        {
            "difference": ((*dims, "example"), values[..., None] + np.array([-0.2, 0.2])),
            "base_difference": ("example", [0.3, 0.3]),
        },
        coords={d: [0, 1] for d in dims},
    )
    for name, offset in {
        "mean": 0.0,
        "standard_error": 0.2,
        "low": -0.2,
        "high": 0.2,
        "mean_a": 1.0,
        "mean_b": 1.5,
    }.items():
        data[name] = (
            dims,
            values + offset,
            {"unit": "nats", "long_name": "Effect on loss of replacing z, mean change"},
        )
    if token:
        data = data.assign_coords(token=("pos", ["river", "stone"]))
    return Result(Provenance("two_checkpoints", {}, 0), data)


def test_quantities_are_those_the_result_has():
    assert list(views.quantities(weights())) == ["relative", "change", "cosine_changes", "weights", "other change"]
    assert list(views.quantities(weights(third=False))) == ["relative", "change", "weights"]


@pytest.mark.parametrize("quantity", ["relative", "change", "cosine_changes", "weights", "other change"])
def test_the_map_draws_its_numbers_with_titles_and_unit(quantity):
    result = weights()
    figure = views.change_map(result, quantity)
    heat = figure.data[0]
    np.testing.assert_allclose(np.asarray(heat.z, float), views.cells(result, quantity))
    assert (
        heat.colorbar.title.text == views.unit(quantity)
        and figure.layout.xaxis.title.text.startswith("Module")
        and figure.layout.yaxis.title.text == "Layer"
    )
    assert views.QUANTITIES[quantity] in figure.layout.title.text and figure.layout.meta["alt"].startswith(
        views.QUANTITIES[quantity]
    )
    assert list(heat.x) == (["attn.q"] if views.is_overlap(quantity) else ["attn.q", "norm"]), (
        "an overlap belongs to matrices"
    )


def test_a_cosine_has_its_zero_in_the_middle_and_a_norm_starts_at_zero():
    signed, unsigned = (views.change_map(weights(), q).data[0] for q in ("cosine_changes", "relative"))
    assert (signed.zmin, signed.zmax) == (-1, 1) and unsigned.zmin == 0 and unsigned.zmax is None


def test_overlaps_that_chance_reaches_are_crossed():
    result = weights()
    assert views.within_chance(result, "weights") == [(1, 0)] and views.within_chance(result, "relative") == []
    assert views.change_map(result, "weights").data[0].text.tolist() == [[""], [views.CROSS]]
    assert views.within_chance(result, "other change") == [
        (0, 0),
        (1, 0),
    ], "0.5 is above free chance and below the k / r of a shared start"
    assert "1 of 2 cells are crossed out" in views.map_alt(result, "weights")


def test_the_module_figure_draws_spectrum_angles_and_the_band():
    result = weights()
    figure = views.module_figure(result, 0, "attn.q")
    drawn = {trace.name: trace for trace in figure.data}
    np.testing.assert_allclose(drawn["change B - A"].y, [0.5, 0.1])
    np.testing.assert_allclose(drawn["weights of A"].y, [3.0, 1.0])
    np.testing.assert_allclose(drawn["change C - A"].y, [0.4, 0.2])
    np.testing.assert_allclose(drawn["change to weights"].y, [10, 80])
    np.testing.assert_allclose(drawn["angles by chance"].y, [70, 89, 70, 50])
    assert (
        figure.layout.yaxis.type == "log"
        and "degrees" in figure.layout.yaxis2.title.text
        and "chance 50 to 70" in figure.layout.meta["alt"]
    )
    alone = {trace.name for trace in views.module_figure(weights(third=False), 0, "attn.q").data}
    assert "change C - A" not in alone and "change to change" not in alone


def test_a_zero_singular_value_has_no_place_on_a_log_axis():
    change = next(t for t in views.module_figure(weights(), 1, "attn.q").data if t.name == "change B - A")
    assert change.y[0] == 0.4 and np.isnan(change.y[1])


def test_tables_hold_what_is_drawn():
    result = weights()
    one = views.module_table(result, 0, "attn.q")
    np.testing.assert_allclose(
        one[["change", "weights", "other_change", "angle to weights", "chance_low", "chance_high"]],
        [[0.5, 3, 0.4, 10, 50, 70], [0.1, 1, 0.2, 80, 70, 89]],
    )
    assert views.module_table(result, 0, "norm").empty and views.spectrum_table(result, 0, "norm").empty
    whole = views.change_table(result)
    assert len(whole) == 5 and whole.loc[whole.parameter == "0.q", "overlap with weights, input side"].item() == 0.5
    assert (
        whole.loc[whole.parameter == "0.q", "chance (input side)"].item() == pytest.approx(0.2)
        and whole.columns.is_unique
    )
    assert views.outside(result).parameter.tolist() == ["embed.weight"]


def test_nothing_measured_is_said():
    result = weights()
    result.data["overlap"][:], result.data["angle"][:] = np.nan, np.nan
    assert "no cell has a value" in views.map_alt(result, "weights") and views.within_chance(result, "weights") == []
    views.change_map(result, "weights")
    assert "no angle" in views.module_figure(result, 0, "attn.q").layout.meta["alt"]


@pytest.mark.parametrize(
    ("dims", "token"), [(("layer", "head"), False), (("layer", "pos"), True)], ids=["heads", "positions"]
)
def test_the_difference_map_is_centred_and_crosses_what_cannot_be_told_from_zero(dims, token):
    result = measured(dims, token)
    figure = views.difference_map(result)
    heat = figure.data[0]
    np.testing.assert_allclose(np.asarray(heat.z, float), result.data["mean"])
    assert heat.zmin == -heat.zmax and heat.colorbar.title.text == "B - A (nats)"
    assert views.not_told_apart(result) == [(0, 1), (1, 0)] and heat.text.tolist() == [
        ["", views.CROSS],
        [views.CROSS, ""],
    ]
    assert list(heat.x) == (["0 river", "1 stone"] if token else ["0", "1"])
    assert (
        "largest, 2, is at layer 1" in figure.layout.meta["alt"]
        and "2 of 4 cells are crossed out" in figure.layout.meta["alt"]
    )
    np.testing.assert_allclose(views.difference_table(result)["mean"], result.data["mean"].values.ravel())


def test_one_cell_shows_every_example_its_mean_and_interval():
    result = measured()
    figure = views.example_figure(result, 1, 1)
    np.testing.assert_allclose(figure.data[0].y, [1.8, 2.2])
    np.testing.assert_allclose(views.example_table(result, 1, 1)["difference"], [1.8, 2.2])
    shapes = [(s.y0, s.y1) for s in figure.layout.shapes]
    assert (1.8, 2.2) in [
        (pytest.approx(a), pytest.approx(b)) for a, b in shapes
    ] and "mean 2 (1.8 to 2.2) nats" in figure.layout.title.text


def test_found_by_stem():
    assert list(figures(weights())) == [
        "change_relative",
        "change_change",
        "change_cosine_changes",
        "change_weights",
        "change_other_change",
    ]
    assert list(figures(measured())) == ["difference"]
