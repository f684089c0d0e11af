"""Ablation figures and tables from small Results: the curve, its random band, the chosen set, the map with its
crosses; no model.
"""

import numpy as np
import pytest
import xarray as xr

from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.views import figures
from workbench.views.ablation import blocks, curve_figure, curve_table, score_map, score_table, set_text, table

VALUE = np.array([[1.0, 3.0], [4.0, 6.0], [9.0, 9.0]])  # [share, example]: means 2, 5, 9
RANDOM = np.array([[[1.0, 3.0], [3.0, 3.0], [9.0, 9.0]], [[1.0, 3.0], [7.0, 9.0], [9.0, 9.0]]])  # means 2, 3 and 8, 9


def curve(value=VALUE, random=RANDOM, counts=(0, 1, 2), n_units=2, score=((1.0, 2.0),), kind="heads", **spec):
    about = {"unit": "nats"}
    data = xr.Dataset(
        {
            "value": (("share", "example"), np.array(value, float), about),
            "random_value": (("draw", "share", "example"), np.array(random, float), about),
            "n_ablated": ("share", list(counts)),
            "threshold": ("share", [np.nan, *range(1, len(counts))]),
            "firings": ("share", np.array(counts, float)),
            "n_replaced": ("share", 2.0 * np.array(counts)),
            "effect": ("share", 0.5 * np.array(counts)),
            "score": (
                ("layer", "unit"),
                np.array(score, float),
                {"unit": "activation units", "long_name": "Mean output norm"},
            ),
        },
        coords={
            "share": np.array(counts) / n_units,
            "layer": range(len(score)),
            "unit": [str(i) for i in range(len(score[0]))],
        },
        attrs={"metric": "loss", "kind": kind, "value": "zero", "n_units": n_units},
    )
    return Result(Provenance("ablation", {"side": "low", "score": "Mean output norm", "kind": kind} | spec, 0), data)


def chosen():
    return curve(VALUE[:2], RANDOM[:, :2], (0, 1), score=((1.0, 0.0),))


def test_rows_are_means_over_prompts_and_the_range_is_over_draws():
    rows = curve_table(curve())
    assert (
        rows["value"].tolist() == [2, 5, 9]
        and rows["share"].tolist() == [0, 0.5, 1]
        and rows["set"].tolist() == ["none", "by score", "by score"]
    )
    assert (
        rows["random_mean"].tolist() == [2, 5.5, 9]
        and rows["random_low"].tolist() == [2, 3, 9]
        and rows["random_high"].tolist() == [2, 8, 9]
    )
    assert rows["n_replaced"].tolist() == [0, 2, 4] and rows["firings"].tolist() == [0, 1, 2]


def test_the_curve_draws_its_table_with_the_band_behind():
    figure, rows = curve_figure(curve()), curve_table(curve())
    low, high, mean, own = figure.data
    assert (
        list(own.y) == rows["value"].tolist()
        and list(own.x) == rows["share"].tolist()
        and own.name == "lowest score first"
    )
    assert (
        list(low.y) == rows["random_low"].tolist()
        and list(high.y) == rows["random_high"].tolist()
        and high.fill == "tonexty"
    )
    assert list(mean.y) == rows["random_mean"].tolist() and "2 draws" in mean.name
    assert figure.layout.shapes[0].y0 == 2
    assert (
        figure.layout.yaxis.title.text == "loss (nats)"
        and figure.layout.xaxis.title.text == "Share of 2 heads ablated, ordered by mean output norm"
    )
    assert "from 2 with none to 9 with 100% ablated" in figure.layout.meta["alt"]
    assert curve_figure(curve(side="high")).data[-1].name == "highest score first"


def test_a_chosen_set_is_a_diamond_on_the_curve_or_stands_alone_with_its_random_sets():
    on = curve_figure(curve(), chosen())
    assert (
        len(on.data) == 5
        and (list(on.data[4].x), list(on.data[4].y)) == ([0.5], [5])
        and on.data[4].marker.symbol == "diamond"
    )
    alone = curve_figure(None, chosen())
    bars, own = alone.data
    assert (
        list(bars.y) == [5.5]
        and list(bars.error_y.array) == [2.5]
        and list(bars.error_y.arrayminus) == [2.5]
        and list(own.y) == [5]
    )
    assert alone.layout.shapes[0].y0 == 2


def test_a_cancelled_curve_draws_what_there_is():
    value, random = VALUE.copy(), RANDOM.copy()
    value[2], random[:, 2], random[1, 1] = np.nan, np.nan, np.nan
    partial = curve(value, random)
    figure = curve_figure(partial)
    assert list(figure.data[3].y) == [2, 5] and list(figure.data[2].y) == [2, 3]
    nothing = curve(np.full_like(VALUE, np.nan), np.full_like(RANDOM, np.nan))
    assert (
        "nothing measured yet" in curve_figure(nothing).layout.meta["alt"] and not curve_figure(nothing).layout.shapes
    )
    assert np.isnan(table(nothing, None)["value"]).all()


def test_without_draws_there_is_no_band():
    bare = curve(random=np.zeros((0, 3, 2)))
    assert (
        len(curve_figure(bare).data) == 1 and "random_mean" not in curve_table(bare) and "random" not in set_text(bare)
    )


def test_the_sentence_of_a_set_has_its_counts():
    assert (
        set_text(chosen())
        == "1 of 2 heads set to zero on 2 prompts: loss 2 before, 5 after (nats). 2 random sets of that size: 5.5 on"
        " average, from 3 to 8. Hook calls: 1, entries replaced: 2; the logits of the first batch moved by 0.5."
    )
    cut = chosen()
    cut.data["value"].values[1] = np.nan
    assert "cancelled before the set was run" in set_text(cut)


def test_one_table_holds_curve_and_set():
    both = table(curve(), chosen())
    assert both["set"].tolist() == ["none", "lowest score first", "lowest score first", "chosen"] and both[
        "value"
    ].tolist() == [2, 5, 9, 5]
    assert table(None, chosen())["set"].tolist() == ["none", "chosen"] and table(None, None).empty


def scores(values, kind="heads"):
    values = np.array(values, float)
    found = xr.DataArray(
        values,
        dims=("layer", "unit"),
        coords={"layer": range(len(values)), "unit": [str(i) for i in range(values.shape[1])]},
        attrs={"unit": "nats", "long_name": "Score"},
    )
    return Result(Provenance("ablation", {"kind": kind}, 0), found.to_dataset(name="score"))


def test_the_map_has_a_cross_on_every_chosen_unit():
    mask = np.array([[False, True], [True, False]])
    figure = score_map(scores([[1, 2], [3, 4]]), mask)
    heat, crosses = figure.data
    np.testing.assert_array_equal(heat.z, [[1, 2], [3, 4]])
    assert (
        sorted(zip(crosses.y, crosses.x, strict=True)) == [("0", "1"), ("1", "0")]
        and "2 of 4 heads chosen" in figure.layout.title.text
    )
    assert (
        heat.colorbar.title.text == "nats"
        and figure.layout.xaxis.title.text == "Head"
        and figure.layout.yaxis.title.text == "Layer"
    )


def test_the_table_of_scores_says_what_is_chosen():
    rows = score_table(scores([[1, 2], [np.nan, 4]]), np.array([[False, True], [True, False]]))
    assert (
        rows["score"].tolist()[:3] == [4, 2, 1]
        and rows["chosen"].tolist() == [False, True, False, True]
        and np.isnan(rows["score"][3])
    )


@pytest.mark.parametrize("n", [4, 5, 8, 9])
def test_wide_maps_are_cut_into_blocks_that_keep_the_highest(n):
    values = np.arange(2 * n, dtype=float).reshape(2, n) % 7
    values[1, 0] = np.nan
    found, names, step = blocks(scores(values).data["score"], most=4)
    assert (
        step == -(-n // 4)
        and found.shape == (2, len(names))
        and names[0] == ("0" if step == 1 else f"0-{step - 1}")
        and names[-1].split("-")[-1] == str(n - 1)
    )
    for layer in range(2):
        for block in range(len(names)):
            own = values[layer, block * step : (block + 1) * step]
            np.testing.assert_equal(found[layer, block], np.nanmax(own) if np.isfinite(own).any() else np.nan)


def test_found_by_stem():
    assert list(figures(curve())) == ["ablation_curve"] and list(figures(scores([[1, 2]]))) == ["score_map"]
