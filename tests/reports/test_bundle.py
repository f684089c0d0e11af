"""Figure bundles: exported numbers are the drawn ones, for every kind of trace; running again says same, or by how
much not.
"""

import json
import shutil

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from browser import require_browser

from workbench.core.errors import BrokenResult, WorkbenchError
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.reports import bundle, images
from workbench.views import theme
from workbench.views.drawn_data import drawn_data


def result(seed=0, **model):
    return Result(Provenance("toy", {"n": 3}, seed, model={"name": "m", **model}, versions={"numpy": np.__version__}))


def figures(scale=1.0):
    line = go.Figure(
        [
            go.Scatter(
                x=[1, 2],
                y=np.array([3.0, 4.0]) * scale,
                name="a",
                error_y={"array": [0.1, 0.2], "arrayminus": [0.3, 0.4]},
            ),
            go.Bar(x=["p", "q"], y=[5, 6], name="b"),
        ]
    )
    heat = go.Figure(go.Heatmap(z=np.array([[1.0, np.nan], [3.0, 4.0]]) * scale, x=["u", "v"], y=[0, 1]))
    return {
        name: theme.finish(f, name, f"{name} alt", result().provenance) for name, f in (("line", line), ("heat", heat))
    }


def test_what_is_exported_is_what_is_drawn():
    shown = figures()
    line = drawn_data(shown["line"])
    assert line.trace.tolist() == ["a", "a", "b", "b"] and line.type.tolist() == ["scatter"] * 2 + ["bar"] * 2
    assert (
        line.y.tolist() == [3, 4, 5, 6]
        and line.error_minus.tolist()[:2] == [0.3, 0.4]
        and line.x.tolist() == [1, 2, "p", "q"]
    )
    heat = drawn_data(shown["heat"])
    assert heat.x.tolist() == ["u", "v", "u", "v"] and heat.y.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(heat.z, [1, np.nan, 3, 4])


@pytest.mark.parametrize(
    ("trace", "rows"),
    [
        (
            go.Sankey(node={"label": ["SCU", "CU"]}, link={"source": [0, 1], "target": [1, 0], "value": [2, 3]}),
            [("SCU", "CU", 2), ("CU", "SCU", 3)],
        ),
        (go.Histogram(x=[1, 1, 2]), None),
        (go.Scatter(y=[7, 8]), None),
    ],
    ids=["sankey", "histogram", "line without x"],
)
def test_other_traces(trace, rows):
    data = drawn_data(go.Figure(trace))
    if rows:
        assert list(data[["source", "target", "value"]].itertuples(index=False, name=None)) == rows
    elif trace.type == "histogram":
        assert data.x.tolist() == [1, 1, 2]
    else:
        assert data.x.tolist() == [0, 1] and data.y.tolist() == [7, 8]
    assert drawn_data(go.Figure()).empty


def test_the_same_numbers_come_through_the_json_of_a_page():
    """plotly packs arrays as base64 there; a figure read back draws the same."""
    for figure in figures().values():
        pd.testing.assert_frame_equal(
            drawn_data(go.Figure(json.loads(figure.to_json()))), drawn_data(figure), check_dtype=False
        )


@pytest.mark.browser
def test_a_bundle_holds_every_format(tmp_path):
    require_browser()
    written, problem = bundle.write_bundles(figures(), result(), tmp_path)
    assert problem == "" and [p.name for p in written] == ["line", "heat"]
    for folder in written:
        assert {p.name for p in folder.iterdir()} == {
            "figure.png",
            "figure.svg",
            "figure.pdf",
            "figure.html",
            "data.csv",
            "data.parquet",
            "provenance.json",
        }
        assert (folder / "figure.png").read_bytes()[:4] == b"\x89PNG" and (folder / "figure.pdf").read_bytes()[
            :4
        ] == b"%PDF"
        assert (
            "<svg" in (folder / "figure.svg").read_text()[:200] and "toy · m" in (folder / "figure.svg").read_text()
        )  # the caption is drawn
        assert len(pd.read_csv(folder / "data.csv")) == len(pd.read_parquet(folder / "data.parquet")) == 4


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "find_browser", lambda: None)
    folders, problem = bundle.write_bundles(figures(), result(weights="aaaa"), tmp_path)
    assert "needs Chromium" in problem and not (folders[0] / "figure.png").exists()  # the rest is there
    return {p.name: p for p in folders}


@pytest.mark.parametrize("name", ["line", "heat"])
def test_reproduce_says_same_or_by_how_much(written, name):
    asked = []

    def run(stem, spec, progress, scale=1.0, **model):
        asked.append((stem, spec))
        return result(**({"weights": "aaaa"} | model)), figures(scale)

    same = bundle.reproduce(written[name], run)
    assert same.same and "same: all 4" in str(same) and asked == [("toy", {"n": 3})]
    other = bundle.reproduce(written[name], lambda *a: run(*a, scale=1.01, weights="bbbb"))
    assert not other.same and other.largest == pytest.approx(0.04) and other.moved == {"line": 2, "heat": 3}[name]
    assert "weights were aaaa, are bbbb" in str(other)


def test_other_places_are_not_called_a_small_difference(written):
    def run(stem, spec, progress):
        shown = figures()
        shown["heat"].data[0].x = ["u", "w"]
        shown["line"].data = shown["line"].data[:1]
        return result(), shown

    for name in ("line", "heat"):
        found = bundle.reproduce(written[name], run)
        assert np.isnan(found.largest) and not found.same and "different" in str(found)


def test_broken_bundles_are_refused(written, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(written["line"], copy)
    (copy / "data.csv").write_text("trace,x\na,1\n")
    with pytest.raises(BrokenResult, match="checksum"):
        bundle.reproduce(copy, lambda *_: (result(), figures()))
    with pytest.raises(BrokenResult, match="no readable provenance"):
        bundle.reproduce(tmp_path, lambda *_: (result(), figures()))
    with pytest.raises(WorkbenchError, match="draws no figure 'line' any more"):
        bundle.reproduce(written["line"], lambda *_: (result(), {"else": go.Figure()}))
