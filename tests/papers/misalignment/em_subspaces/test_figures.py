"""Figures of the emergent-misalignment analysis from a small made-up Result: drawn numbers, labels, floors; no
model.
"""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.papers.misalignment.em_subspaces import figures as views

PAIRS = ("bad, same seed", "bad, different seeds", "bad, full rank", "bad and benign, same seed")


def result(behaviour=True):
    rng = np.random.default_rng(0)
    place = ("layer", "module")
    variables = {
        "overlap": (("pair", "k", *place), rng.random((4, 2, 2, 2))),
        "angle": (("pair", "angle_index", *place), 90 * rng.random((4, 2, 2, 2))),
        "free_overlap": (("pair", *place), np.full((4, 2, 2), 0.1)),
    }
    coords = {
        "pair": list("abcd"),
        "condition": ("pair", list(PAIRS)),
        "k": [1, 2],
        "angle_index": [1, 2],
        "layer": [0, 1],
        "module": ["q_proj", "up_proj"],
    }
    if behaviour:
        variables |= {
            "rate": (("model", "domain"), np.array([[0.0, 0.0], [1.0, 0.5]])),
            "scaled_rate": (("form", "scaled", "scale"), rng.random((2, 1, 3))),
            "line_rate": (("line", "form", "t"), rng.random((2, 2, 3))),
            "r2": (("line", "state", "t", "layer"), rng.random((2, 2, 3, 2))),
            "without_rate": (("target", "layer", "arm"), rng.random((2, 2, 3))),
        }
        coords |= {
            "model": ["base", "bad-health"],
            "domain": ["health", "garden"],
            "trained_on": ("model", ["", "health"]),
            "rank": ("model", [-1, 4]),
            "form": ["deltas", "factors"],
            "scaled": ["bad-health"],
            "scale": [-1.0, 0.5, 1.0],
            "line": ["x", "y"],
            "line_condition": ("line", [PAIRS[0], PAIRS[3]]),
            "t": [0.0, 0.5, 1.0],
            "state": ["h", "h - h_base"],
            "target": ["m", "n"],
            "arm": ["untouched", "direction", "random 0"],
        }
    table = pd.DataFrame(
        {
            "condition": PAIRS,
            "overlap": [0.5, 0.1, 0.3, 0.4],
            "low": [0.4, 0.05, 0.2, np.nan],
            "high": [0.6, 0.15, 0.4, np.nan],
            "start": [0.45, 0.1, 0.1, 0.4],
            "free": 0.1,
        }
    )
    return Result(Provenance("em_subspaces", {}, 0), xr.Dataset(variables, coords=coords), {"conditions": table})


@pytest.fixture(scope="module")
def small():
    return result()


def test_every_figure_has_titles_and_says_what_it_shows(small):
    made = views.figures(small)
    assert set(made) == {
        "conditions",
        "overlap_map",
        "overlap_by_k",
        "angle_spectrum",
        "rates",
        "scaling",
        "lines",
        "linearity",
        "without",
    }
    for figure in made.values():
        assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text and len(figure.layout.meta["alt"]) > 20


def test_bars_carry_the_table_and_both_chance_levels(small):
    figure = views.conditions(small)
    np.testing.assert_allclose(figure.data[0].y, small.tables["conditions"]["overlap"])
    flat = [trace for trace in figure.data if trace.type == "scatter" and trace.mode == "lines"]
    assert [trace.y[0] for trace in flat] == [*small.tables["conditions"]["start"], *small.tables["conditions"]["free"]]
    dots = next(trace for trace in figure.data if trace.name == "each pair")
    np.testing.assert_allclose(dots.y, small.data["overlap"].sel(k=2).mean(("layer", "module")))


def test_the_map_is_centred_on_the_floor(small):
    heat = views.overlap_map(small, above="floor").data[0]
    np.testing.assert_allclose(heat.z, small.data["overlap"].sel(pair="a", k=2) - 2 / 4)
    assert heat.zmin == -heat.zmax and "k / r" in heat.colorbar.title.text
    plain = views.overlap_map(small).data[0]
    assert plain.zmin == 0 and "share" in plain.colorbar.title.text


def test_the_second_axis_of_scaling_is_the_square_for_factors(small):
    traces = [t for t in views.scaling(small).data if t.legendgroup == "factors"]
    np.testing.assert_allclose(traces[0].x, [-1, 0.5, 1])
    np.testing.assert_allclose(traces[1].x, [0.25, 1, 1])
    assert sorted(traces[0].y) == sorted(traces[1].y)


def test_the_cell_of_the_trained_domain_is_framed(small):
    (frame,) = views.rates(small).layout.shapes
    assert (frame.x0 + frame.x1) / 2 == 0 and (frame.y0 + frame.y1) / 2 == 1


def test_directories_without_answers_draw_their_geometry():
    assert set(views.figures(result(behaviour=False))) == {
        "conditions",
        "overlap_map",
        "overlap_by_k",
        "angle_spectrum",
    }
