"""Every primitive's Result has figures, found by its stem: real Results of the induction organism, drawn and
described.
"""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
import xarray as xr

from workbench.core.errors import BadData, UnknownName
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.models import load
from workbench.primitives.explain.attribution import attribute_edges, attribute_nodes
from workbench.primitives.explain.circuits import calibrate, faithfulness, minimality
from workbench.primitives.explain.path_patching import path_patch
from workbench.primitives.read.lenses import direct_logit_attribution
from workbench.primitives.read.top_activations import top_activations
from workbench.primitives.replace.sweep_descent import attribute, site_cells, unit_cells
from workbench.primitives.score.metrics import logit_diff
from workbench.views import charts, figures, theme

ABOUT = Provenance("x", {}, 0)


@pytest.fixture(scope="module")
def case():
    """(model, clean, corrupted, metric) of two short prompts."""
    model = load("organism:induction")
    clean = torch.tensor([[0, 5, 6, 7, 8, 5], [0, 9, 10, 11, 12, 9]])
    corrupted = clean.clone()
    corrupted[:, 1] = 20
    return model, clean, corrupted, logit_diff([6, 10], [7, 11])


@pytest.fixture(scope="module")
def edges(case):
    return attribute_edges(*case)


def made(name, case, edges):
    model, clean, corrupted, metric = case
    rows = clean.tolist()
    return {
        "edges": lambda: edges,
        "nodes": lambda: attribute_nodes(*case),
        "faithfulness": lambda: faithfulness(model, clean, corrupted, metric, edges, ks=[5, 20, 80]),
        "minimality": lambda: minimality(model, clean, corrupted, metric, edges, k=6, n_random=3),
        "calibration": lambda: calibrate(model, clean, corrupted, metric, attribute_nodes(*case), n_top=4, n_random=4),
        "paths": lambda: path_patch(model, clean, corrupted, ["embed", "m0"], ["m1", "logits"], metric),
        "cells": lambda: attribute(model, corrupted, clean, metric, site_cells("resid_pre")),
        "a row of cells": lambda: attribute(model, corrupted, clean, metric, unit_cells("z", 1, 5)),
        "parts": lambda: direct_logit_attribution(model, rows, [6, 10], [7, 11]),
        "heads": lambda: direct_logit_attribution(model, rows, [6, 10], [7, 11], by="head"),
        "neurons": lambda: direct_logit_attribution(model, rows, [6, 10], [7, 11], by="neuron"),
        "top activations": lambda: top_activations(model, rows, "neuron", 1, 3, k=5),
    }[name]()


NAMES = [
    "edges",
    "nodes",
    "faithfulness",
    "minimality",
    "calibration",
    "paths",
    "cells",
    "a row of cells",
    "parts",
    "heads",
    "neurons",
    "top activations",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_primitives_result_has_figures_with_titles_units_and_words(name, case, edges, tmp_path):
    result = made(name, case, edges)
    drawn = figures(Result.load(result.save(tmp_path / "r")))
    assert drawn
    for key, figure in drawn.items():
        assert isinstance(figure, go.Figure) and figure.data, key
        assert figure.layout.title.text and figure.layout.meta["alt"].endswith(".") and figure.layout.meta["provenance"]
        assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text, key


def test_an_unknown_result_or_kind_says_what_there_is():
    with pytest.raises(
        UnknownName, match="no figures for 'nosuch'; there are some for ablation, attention, attribution"
    ):
        figures(Result(Provenance("nosuch", {}, 0)))
    with pytest.raises(BadData, match="'guess' has no figures; there are some for edges, nodes"):
        figures(Result(Provenance("attribution", {"what": "guess"}, 0)))


def array(values, **attrs):
    return xr.DataArray(values, dims=("row", "column"), coords={"row": ["a", "b"], "column": [0, 1]}, attrs=attrs)


def test_a_map_of_one_sign_starts_at_zero_and_one_of_both_is_centred():
    plain = charts.grid(
        array([[0.5, 1.0], [2.0, 3.0]], long_name="Weight", unit="nats"), ABOUT, x_title="C", y_title="R"
    ).data[0]
    assert plain.zmin == 0 and plain.zmid is None and plain.colorbar.title.text == "nats"
    signed = charts.grid(array([[-0.5, 1.0], [2.0, -3.0]], long_name="Weight"), ABOUT, x_title="C", y_title="R")
    assert (signed.data[0].zmin, signed.data[0].zmax) == (-3.0, 3.0) and "-3  at b, 1" in signed.layout.meta["alt"]
    empty = charts.grid(array(np.full((2, 2), np.nan), long_name="Weight"), ABOUT, x_title="C", y_title="R")
    assert empty.layout.meta["alt"] == f"Map of weight by r and c. {theme.NOTHING}"


def test_bars_hatch_controls_and_keep_their_order():
    bar = charts.bars(
        pd.Series({"b": 1.0, "a": -2.0}), ABOUT, x_title="x", y_title="y", title="t", controls=["a"]
    ).data[0]
    assert (
        list(bar.x) == ["b", "a"]
        and list(bar.marker.pattern.shape) == ["", "/"]
        and bar.marker.color[0] != bar.marker.color[1]
    )


def test_lines_are_named_by_their_variables():
    values = [
        xr.DataArray([1.0, 2.0], dims="k", coords={"k": [3, 5]}, attrs={"long_name": name}) for name in ("one", "other")
    ]
    drawn = charts.lines(values, ABOUT, x_title="k", y_title="share", title="t")
    assert [line.name for line in drawn.data] == ["one", "other"] and list(drawn.data[0].x) == [3, 5]
    assert "one ends at 2; other ends at 2" in drawn.layout.meta["alt"]
