"""Views of the subspaces panel on a made-up 2 x 2 map: crosses where chance reaches, floors as lines, words that say
the same.
"""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.papers.misalignment.em_subspaces import panel_figures as views

PROVENANCE = Provenance("em_subspaces", {}, 0)


def made(has_start: int) -> Result:
    values = {
        "overlap": [[0.9, 0.3], [0.4, 0.8]],
        "chance": [[0.5] * 2] * 2,
        "chance_low": [[0.4] * 2] * 2,
        "chance_high": [[0.6] * 2] * 2,
        "free": [[0.03] * 2] * 2,
        "floor": [[0.5 if has_start else np.nan] * 2] * 2,
        "row_space": [[0.95 if has_start else np.nan] * 2] * 2,
        "overlap_left": [[0.1] * 2] * 2,
        "cosine": [[0.2, -0.2]] * 2,
        "mean_angle": [[30.0] * 2] * 2,
    }
    attrs = {"k": 4, "one": "a", "other": "b", "condition": "made", "has_start": has_start, "level": 0.95}
    return Result(
        PROVENANCE,
        xr.Dataset(
            {n: (("layer", "module"), v) for n, v in values.items()},
            coords={"layer": [0, 1], "module": ["q", "up"]},
            attrs=attrs,
        ),
    )


def test_cells_that_chance_reaches_are_crossed():
    result = made(1)
    assert views.within_chance(result) == [(0, 1), (1, 0)] and views.within_chance(result, "cosine") == []
    assert views.texts(result) == ["0.90", "0.30 ×", "0.40 ×", "0.80"] and "2 of 4 cells are marked" in views.map_alt(
        result
    )
    figure = views.overlap_map(result)
    assert (
        figure.data[0].zmin == 0
        and figure.data[0].zmax == 1
        and figure.data[0].colorbar.title.text == "share"
        and figure.layout.yaxis.title.text == "Layer"
    )
    above = views.overlap_map(result, "above").data[0]
    np.testing.assert_allclose(above.z, [[0.4, -0.2], [-0.1, 0.3]])
    assert above.zmin == pytest.approx(-0.4) and above.zmax == pytest.approx(0.4)


@pytest.mark.parametrize(("has_start", "said"), [(1, "started from one A"), (0, "no drawn A")], ids=["a start", "none"])
def test_the_floor_is_drawn_and_told_only_where_there_is_a_start(has_start, said):
    result = made(has_start)
    names = {trace.name for trace in views.profile(result).data}
    assert ("k / r: one shared start" in names) == bool(has_start) and {"measured", "k / in: free directions"} <= names
    assert said in views.summary_html(result) and "<b>2 of 4 cells" in views.summary_html(result)
    assert views.summary(result).iloc[0]["above_chance"] == 2


def test_a_cell_shows_spectra_and_angles_with_their_band():
    table = pd.DataFrame(
        {
            "index": [1, 2, 3],
            "one": [3.0, 2, 1],
            "other": [2.0, 1, 0],
            "angle": [10.0, 80, np.nan],
            "chance_low": [30.0, 60, np.nan],
            "chance_high": [50.0, 85, np.nan],
        }
    )
    figure = views.cell_figure(table, made(1), 0, "q")
    drawn = {trace.name: trace for trace in figure.data}
    assert (
        list(drawn["measured angle"].y) == [10, 80]
        and list(drawn["a"].y) == [3, 2, 1]
        and np.isnan(drawn["b"].y[2])
        and "degrees" in figure.layout.yaxis2.title.text
    )
    assert "10 degrees, chance 30 to 50" in figure.layout.meta["alt"]


def test_the_curve_between_has_both_forms_in_order():
    visited = pd.DataFrame(
        {
            "t": [1.0, 0.0, 0.5, 0.5],
            "form": ["deltas", "deltas", "deltas", "factors"],
            "bad_share": [0.8, 0.9, 0.7, 0.2],
        }
    )
    figure = views.between_figure(visited, "a", "b", PROVENANCE)
    assert (
        list(figure.data[0].x) == [0, 0.5, 1]
        and list(figure.data[0].y) == [90, 70, 80]
        and list(figure.data[1].y) == [20]
        and "t (1: a; 0: b)" in figure.layout.xaxis.title.text
    )
