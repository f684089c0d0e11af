"""Comparing two runs: numbers by hand, intervals that cover, overlays that hold both runs' marks."""

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr

from workbench.core.claims import Claim
from workbench.core.errors import BadData
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.reports import document
from workbench.reports.compare import compare, comparison_section, numbers
from workbench.views import theme
from workbench.views.drawn_data import drawn_data

CLAIMS = [
    Claim("loss is small", "here", lambda r: float(r.data["loss"].mean()), "<", 1.0, "known"),
    Claim("loss is tiny", "here", lambda r: float(r.data["loss"].mean()), "<", 0.1, "known", kind="control"),
]


def result(values, stem="toy", **spec):
    data = xr.Dataset(
        {
            "loss": ("input", values, {"unit": "nats"}),
            "scores": (("input", "head"), np.outer(values, [1, 2]), {"unit": ""}),
            "total": ((), float(np.sum(values))),
        },
        coords={"input": range(len(values)), "head": [0, 1]},
    )
    return Result(Provenance(stem, spec, 0, model={"name": "m", "weights": "w"}), data)


def figures(r, kind="line"):
    line = go.Figure(go.Scatter(x=r.data.input.values, y=r.data.loss.values, name="loss"))
    heat = go.Figure(go.Heatmap(z=r.data.scores.values, x=[0, 1], y=r.data.input.values))
    return {
        "line": theme.finish(line, "Loss", "a line", r.provenance),
        "heat": theme.finish(heat, "Scores", "a map", r.provenance),
    }


def test_claims_and_numbers_side_by_side():
    rng = np.random.default_rng(0)
    x = rng.normal(0.5, 0.3, 40)
    a, b = result(x, n=1), result(x + 1, n=2)
    found = compare(a, b, CLAIMS, figures(a), figures(b))
    assert found.claims["B - A"].tolist() == pytest.approx([1, 1]) and found.claims["agree"].tolist() == [False, True]
    loss = found.numbers.set_index("variable").loc["loss"]
    assert (
        loss.difference == pytest.approx(1)
        and loss.low == pytest.approx(1)
        and loss.high == pytest.approx(1)
        and loss.paired
    )  # the same inputs, so the difference is exact
    assert found.numbers.set_index("variable").loc["scores"].difference == pytest.approx(1.5)
    assert np.isnan(found.numbers.set_index("variable").loc["total"].low)
    assert found.notes[0] == "spec.n: 1 in A, 2 in B"


def test_unpaired_intervals_cover_the_true_difference_about_as_often_as_they_say():
    rng, covered = np.random.default_rng(1), 0
    for _ in range(60):
        a, b = rng.normal(0, 1, 40), rng.normal(0.5, 1, 30)
        row = (
            numbers(result(a).data.drop_dims("head"), result(b).data.drop_dims("head"))
            .set_index("variable")
            .loc["loss"]
        )
        covered += row.low <= 0.5 <= row.high
        assert not row.paired
    assert 50 <= covered <= 60


def test_overlays_hold_the_marks_of_both():
    a, b = result([1.0, 2.0], n=1), result([3.0, 5.0], n=2)
    found = compare(a, b, CLAIMS, figures(a), figures(b))
    line = drawn_data(found.figures["line"])
    assert line.y.tolist() == [1, 2, 3, 5] and line.trace.tolist() == ["A: loss", "A: loss", "B: loss", "B: loss"]
    heat = found.figures["heat"]
    np.testing.assert_allclose(np.asarray(heat.data[0].z), [[2, 4], [3, 6]])
    assert heat.data[0].zmin == -heat.data[0].zmax == -6
    assert any(note.text.startswith("A toy") and "<br>B toy" in note.text for note in heat.layout.annotations)


def test_maps_of_other_places_are_not_subtracted():
    a, b = result([1.0, 2.0]), result([1.0, 2.0, 3.0])
    found = compare(a, b, CLAIMS, figures(a), figures(b))
    assert "B alone" in found.figures["heat"].layout.title.text
    page = document.page_html([comparison_section(found)])
    assert "loss is small" in page and page.count("class=plotly") == 2


def test_other_analyses_are_refused():
    with pytest.raises(BadData, match="A is a result of toy and B of other"):
        compare(result([1.0]), result([1.0], stem="other"), CLAIMS, {}, {})
