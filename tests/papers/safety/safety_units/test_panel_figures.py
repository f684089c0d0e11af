"""Views of the units panel on made-up units: axes with units, counts, bars with the right heights, words that say
the same.
"""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from workbench.core.errors import BadData
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.papers.safety.safety_units import panel_figures as views

PROVENANCE = Provenance("safety_units", {}, 0)


@pytest.fixture
def result():
    """Four units: three channels and a head, one of each label."""
    values = np.array([[[[4.0, 1, 2, 0.1], [1, 4, 2, 0.1]], [[1.0, 0, 0, -1], [-1, 1, 0, -1]]]])
    coords = {
        "origin": ("run", ["stored"]),
        "seed": ("run", [0]),
        "scale": ["raw", "standard"],
        "set": ["safety", "utility"],
        "layer": ("unit", [0, 0, 1, 1]),
        "module": ("unit", ["mlp", "mlp", "mlp", "attention"]),
        "index": ("unit", [0, 1, 0, 0]),
    }
    data = xr.Dataset(
        {"importance": (("run", "scale", "set", "unit"), values), "label": (("run", "unit"), [[2, 3, 1, 0]])},
        coords=coords,
    )
    return Result(PROVENANCE, data)


LABEL = np.array([2, 3, 1, 1])


def test_counts_and_the_table_are_of_the_given_labels(result):
    run = result.data.isel(run=0)
    counts = views.count_table(run, LABEL).set_index("label")
    assert (
        counts["units"].to_dict() == {"SCU": 1, "UCU": 1, "CU": 2, "RU": 0}
        and counts.loc["CU", "attention"] == 1
        and counts.loc["RU", "in the run"] == 1
    )
    table = views.unit_table(run, LABEL)
    assert (
        table["label"].tolist() == ["SCU", "UCU", "CU", "CU"]
        and table["label_of_run"].tolist() == ["SCU", "UCU", "CU", "RU"]
        and table["safety, raw"].tolist() == [4, 1, 2, 0.1]
    )
    assert "1 of 4 units have another label" in views.counts_html(views.count_table(run, LABEL), 1)


def test_the_scatter_has_units_on_its_axes_and_says_the_counts(result):
    figure = views.scatter(result, 0, LABEL)
    assert (
        "activation² x weight²" in figure.layout.xaxis.title.text
        and figure.layout.xaxis.type == "log"
        and "2 complex (CU)" in figure.layout.meta["alt"]
    )
    assert views.scatter(result, 0, LABEL, "standard").layout.yaxis.type == "linear"


def test_a_unit_is_ranked_by_safety_minus_utility(result):
    said = views.unit_html(views.unit_table(result.data.isel(run=0), LABEL), 0)
    assert "Layer 0, MLP channel 0" in said and "1 of 4" in said and "safety-critical" in said


def test_bars_stand_beside_their_random_match():
    pruned = pd.DataFrame(
        [
            ["nothing", "untouched", 0, 0, 0, 100],
            ["SCU", "group", 40, 50, 10, 90],
            ["SCU", "random", 0, 0, 0, 80],
            ["SCU", "random", 0, 0, 0, 100],
        ],
        columns=["group", "arm", "asr_first_token", "asr_phrase", "complied", "utility"],
    )
    rows = views.pruned_here(Result(PROVENANCE, tables={"pruning": pruned}))
    figure = views.pruning_groups(rows, "made up", Result(PROVENANCE))
    drawn = {trace.offsetgroup: trace for trace in figure.data}
    assert (
        list(drawn["utility group"].y) == [100, 90]
        and drawn["utility random"].y[1] == 90
        and drawn["utility random"].error_y.array[1] == 10
    )
    assert (
        drawn["asr_first_token group"].y[1] == 40
        and not drawn["asr_first_token group"].error_y.visible
        and "%" in figure.layout.yaxis.title.text
    )
    assert "SCU: not refused by first token 40 %, utility 90 %" in figure.layout.meta["alt"]


def test_a_result_without_units_is_refused():
    with pytest.raises(BadData, match="no scored units"):
        views.run_names(Result(PROVENANCE))
