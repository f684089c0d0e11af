"""Sweep figures and tables from small Results: drawn numbers, centred scale, labels, the two ends, estimates; no
model.
"""

import numpy as np
import pytest
import xarray as xr

from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.views import figures
from workbench.views.sweep import (
    Baseline,
    agreement,
    attributed_change,
    attributed_grid,
    attribution_scatter,
    baseline,
    cells_table,
    change,
    grid,
    limit,
    patch_grid,
    token_pair,
    warnings,
    where,
)


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


def test_a_share_of_rows_with_very_different_gaps_is_not_the_mean_of_their_shares():
    """Gaps 100 and 0.1: the second row's share of 50 would carry a mean of ratios, and counts little here."""
    exact = placed(("layer", "pos"), {"layer": 1, "pos": 2}, {"layer": [0], "pos": [0, 1]})
    data = exact.data.isel(example=[0, 0]).copy(deep=True)
    data["base_value"].values[:], data["source_value"].values[:] = [0.0, 1.0], [100.0, 1.1]
    data["value"].values[:] = [[[20.0, 6.0], [0.0, 1.0]]]
    exact, gap = Result(Provenance("sweep", {}, 0), data), 50.05  # mean gap
    np.testing.assert_allclose(change(exact), [[12.5 / gap, 0.0]])  # mean of the ratios: 25.1
    attributed = estimates(exact, [[[10.0, 5.0], [-1.0, 1.0]]])
    np.testing.assert_allclose(attributed_change(exact, attributed), [[7.5 / gap, 0.0]])
    assert cells_table(exact, attributed)["shown"].tolist() == pytest.approx([12.5 / gap, 0.0])


@pytest.mark.parametrize("dims", [("layer", "pos"), ("layer", "head"), ("layer", "pos", "head")])
def test_grid_draws_the_change_with_zero_in_the_middle(dims):
    figure = patch_grid(result(dims))
    heat = figure.data[0]
    np.testing.assert_allclose(np.sort(np.asarray(heat.z).ravel()), np.sort(change(result(dims)).values.ravel()))
    assert heat.zmin == -heat.zmax and heat.colorbar.title.text == "share of source - base"
    assert (
        figure.layout.xaxis.title.text
        and figure.layout.yaxis.title.text
        and "largest change" in figure.layout.meta["alt"]
    )


def test_positions_carry_their_tokens():
    assert list(patch_grid(result()).data[0].x) == ["0 river", "1 stone"]
    assert list(patch_grid(result(token=False)).data[0].x) == ["0", "1"]


def test_found_by_stem():
    assert list(figures(result())) == ["patch_grid"]


# ---- one place and what it is made of ----


def placed(dims, sizes, coords, site="z", base=0.0, source=4.0, values=None):
    """A sweep of one example with the given axes; `values` in the order of the dims."""
    shape = [sizes[d] for d in dims]
    numbers = (
        np.arange(np.prod(shape), dtype=float).reshape(shape)
        if values is None
        else np.asarray(values, float).reshape(shape)
    )
    data = xr.Dataset(
        {
            "value": ((*dims, "example"), numbers[..., None], {"unit": "logits"}),
            "base_value": ("example", [base], {"unit": "logits"}),
            "source_value": ("example", [source]),
        },
        coords=coords,
        attrs={"site": site, "metric": "logit_diff"},
    )
    return Result(Provenance("sweep", {}, 0), data)


def parts(**options):
    coords = {"layer": [1], "pos": [6], "part": ["h0", "h1", "mlp"], "token": ("pos", ["bread"])}
    return placed(("layer", "pos", "part"), {"layer": 1, "pos": 1, "part": 3}, coords, "a head or the MLP", **options)


def inputs():
    coords = {"layer": [1], "pos": [0, 1], "part": ["q", "k", "v"], "token": ("pos", ["<bos>", "bread"])}
    return placed(("layer", "pos", "part"), {"layer": 1, "pos": 2, "part": 3}, coords, "q, k or v of head 2")


def neurons(n=40):
    return placed(
        ("layer", "pos", "neuron"),
        {"layer": 1, "pos": 1, "neuron": n},
        {"layer": [1], "pos": [6], "neuron": range(n)},
        "mlp_post",
    )


def estimates(of, values):
    value = of.data["value"]
    data = xr.Dataset(
        {"score": (value.dims, np.asarray(values, float).reshape(value.shape), {"unit": "logits"})},
        coords={d: value[d] for d in value.dims},
    )
    return Result(Provenance("cell_attribution", {}, 0), data)


def test_parts_lie_side_by_side_and_say_where_they_are():
    found = grid(parts())
    assert found.cols == ["h0", "h1", "mlp"] and found.rows == ["1.6"] and found.x_title == "Part"
    assert found.cells[0][1] == {"layer": 1, "pos": 6, "part": "h1"}
    np.testing.assert_allclose(found.values, [[0, 0.25, 0.5]])
    assert where(parts()) == "layer 1, position 6 (bread)"
    assert (
        patch_grid(parts()).layout.title.text
        == "Share of the logit_diff gap closed when a head or the MLP is replaced, layer 1, position 6 (bread)"
    )


def test_inputs_of_a_head_go_down_and_positions_across():
    found = grid(inputs())
    assert found.rows == ["q", "k", "v"] and found.cols == ["0 <bos>", "1 bread"]
    assert found.cells[2][1] == {"layer": 1, "pos": 1, "part": "v"}
    np.testing.assert_allclose(found.values, np.array([[0, 3], [1, 4], [2, 5]]) / 4)


def test_neurons_are_folded_and_every_one_is_found_again():
    found = grid(neurons(40))
    assert found.values.shape == (3, 16) and found.rows == ["0", "16", "32"]
    for number in range(40):
        row, col = divmod(number, 16)
        assert found.cells[row][col]["neuron"] == number and found.values[row, col] == number / 4
    assert np.isnan(found.values[2, 8:]).all() and found.cells[2][8:] == [None] * 8


@pytest.mark.parametrize("dims", [("layer", "pos"), ("layer", "head"), ("layer", "pos", "head")])
def test_every_cell_of_a_grid_names_its_number(dims):
    found, shown = grid(result(dims)), change(result(dims))
    for row, cells in enumerate(found.cells):
        for col, cell in enumerate(cells):
            assert found.values[row, col] == float(shown.sel(cell))


def test_a_single_layer_by_position_still_has_positions_across():
    coords = {"layer": [3], "pos": [0, 1]}
    found = grid(placed(("layer", "pos"), {"layer": 1, "pos": 2}, coords))
    assert found.rows == ["3"] and found.cols == ["0", "1"] and found.y_title == "Layer"


# ---- the two ends ----


def test_a_baseline_names_both_runs_and_the_gap_whichever_is_the_source():
    ends = Baseline("logit_diff", "logits", base=-2.0, source=3.0)
    assert ends.text("clean") == "logit_diff: clean 3 logits, corrupted -2 logits, gap 5 logits"
    assert ends.text("corrupted") == "logit_diff: clean -2 logits, corrupted 3 logits, gap -5 logits"
    assert baseline(parts()) == Baseline("logit_diff", "logits", 0.0, 4.0) and baseline(result(source=False)) is None


@pytest.mark.parametrize(
    ("base", "source", "is_degenerate"),
    [(5.0, 5.0, True), (5.0, 5.04, True), (5.0, 5.1, False), (0.0, 0.0, True), (0.0, 1e-4, False), (-5.0, 5.0, False)],
)
def test_a_degenerate_gap_is_said_and_never_divided_by(base, source, is_degenerate):
    found = parts(base=base, source=source, values=[base, base + 1, base - 1])
    assert baseline(found).is_degenerate is is_degenerate
    assert ("no share of the gap can be formed" in baseline(found).text()) is is_degenerate
    assert change(found).attrs["unit"] == ("logits" if is_degenerate else "share of source - base")
    np.testing.assert_allclose(
        change(found).values.ravel(), np.array([0, 1, -1]) / (1 if is_degenerate else source - base)
    )


def test_rounding_is_not_painted_as_an_effect():
    still = parts(base=10.0, source=14.0, values=[10.0, 10.0 + 1e-6, 10.0 - 1e-6])
    assert limit(still) == 1.0 and "moved the metric in no cell beyond rounding" in warnings(still)[0]
    moved = parts(base=10.0, source=14.0, values=[10.0, 10.1, 10.0])
    assert limit(moved) == pytest.approx(0.025) and warnings(moved) == []


# ---- estimates beside exact values ----


def test_estimates_are_drawn_on_the_exact_scale_and_compared():
    exact = inputs()
    attributed = estimates(exact, [0, 1, 2, 3, 4, 50])
    assert agreement(exact, attributed) == (pytest.approx(1.0), 5)
    heat, own = attributed_grid(exact, attributed).data[0], patch_grid(exact).data[0]
    assert (heat.zmin, heat.zmax) == (own.zmin, own.zmax) == (-1.25, 1.25)
    np.testing.assert_allclose(heat.z, np.array([[0, 3], [1, 4], [2, 50]]) / 4)
    figure = attribution_scatter(exact, attributed)
    points = figure.data[1]
    assert sorted(zip(points.x, points.y, strict=True)) == [
        (0, 0),
        (0.25, 0.25),
        (0.5, 0.5),
        (0.75, 0.75),
        (1, 1),
        (12.5, 1.25),
    ]
    assert (
        "rank correlation 1.00 over 5 cells" in figure.layout.title.text
        and "largest exact change 1.25, attributed there 12.5" in figure.layout.meta["alt"]
        and figure.layout.xaxis.title.text == "Attributed (share of source - base)"
    )


def test_a_reversed_estimate_has_the_opposite_rank():
    exact = inputs()
    assert agreement(exact, estimates(exact, [5, 4, 3, 2, 1, 0]))[0] == pytest.approx(-1.0)


def test_cells_where_nothing_happens_do_not_flatter_the_estimate():
    dims, sizes, coords = ("layer", "pos"), {"layer": 1, "pos": 50}, {"layer": [0], "pos": range(50)}
    values = np.zeros(50)
    values[:3] = 1, 2, 3
    exact = placed(dims, sizes, coords, values=values)
    rho, n = agreement(exact, estimates(exact, [3, 1, 2] + [0] * 47))
    assert n == 3 and rho == pytest.approx(-0.5)
    nothing = placed(dims, sizes, coords, values=np.zeros(50))
    assert (
        np.isnan(agreement(nothing, estimates(nothing, np.zeros(50)))[0])
        and "not defined" in attribution_scatter(nothing, estimates(nothing, np.zeros(50))).layout.title.text
    )


# ---- the table ----


def test_the_table_has_every_cell_with_the_drawn_number_largest_first():
    exact = inputs()
    table = cells_table(exact, estimates(exact, [0, 1, 2, 3, 4, 50]))
    assert list(table.columns) == ["layer", "pos", "part", "cell", "value", "change", "shown", "attributed"]
    assert table["cell"][0] == "pos 1 bread part v" and table["change"].abs().is_monotonic_decreasing
    found = grid(exact)
    drawn = {
        (cell["pos"], cell["part"]): found.values[r, c]
        for r, row in enumerate(found.cells)
        for c, cell in enumerate(row)
    }
    assert {(row.pos, row.part): row.shown for row in table.itertuples()} == drawn


def test_missing_cells_come_last_and_break_nothing():
    partial = parts(values=[1.0, np.nan, 2.0])
    assert cells_table(partial)["part"].tolist() == ["mlp", "h0", "h1"]
    assert np.isnan(patch_grid(partial).data[0].z).sum() == 1
    empty = parts(values=[np.nan] * 3)
    assert "no cell has been measured" in patch_grid(empty).layout.meta["alt"] and limit(empty) == 1.0


def test_the_pair_of_prompts_marks_what_differs_and_escapes_it():
    page = token_pair({"clean": ["<bos>", "a&b", "c"], "corrupted": ["<bos>", "x", "c", "d"]})
    assert "&lt;bos&gt;" in page and "a&amp;b" in page and "<bos>" not in page
    assert page.count("differs") == 2
