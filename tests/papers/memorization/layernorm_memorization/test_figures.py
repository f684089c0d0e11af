"""Figures of the LayerNorm analysis: what is drawn are the Result's numbers; each says stored or run here."""

import numpy as np
import pytest
import xarray as xr
from papers.memorization.layernorm_runs import N_EPOCHS, made_result, stored

from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.papers.memorization.layernorm_memorization import figures as views
from workbench.views import figures


@pytest.fixture(scope="module")
def result() -> Result:
    return made_result()


def test_every_figure_has_titles_units_alt_text_provenance_and_origin(result):
    drawn = figures(result)
    assert next(iter(drawn)) == "outcome_digits_stored" and len(drawn) == 2 * 6 + 1
    for name, figure in drawn.items():
        assert figure.layout.xaxis.title.text or figure.layout.xaxis3.title.text, name
        assert any(unit in figure.layout.yaxis.title.text for unit in ("%", "points", "nats", "Class")), name
        assert len(figure.layout.meta["alt"]) > 20 and result.provenance.short() in [
            a.text for a in figure.layout.annotations
        ], name
        title = figure.layout.title.text
        assert ("stored runs" in title) is name.endswith("_stored"), name
        assert ("run here" in title) is name.endswith("_here"), name


def test_stacked_bars_are_the_means_over_seeds_and_sum_to_100(result):
    figure = views.outcome(result, "digits", "stored")
    bars = {(t.name, t.xaxis or "x"): dict(zip(t.x, t.y, strict=True)) for t in figure.data if t.type == "bar"}
    for axis, placement in (("x", "post"), ("x2", "pre")):
        expected = stored(result, "removed", placement)["memorisation"].values[:, N_EPOCHS].mean()
        assert bars["memorisation", axis]["removed"] == pytest.approx(expected, rel=1e-5)
        for arm in bars["random", axis]:
            assert sum(bars[part, axis][arm] for part in views.PARTS) == pytest.approx(100, rel=1e-5)
    assert "no noise" not in bars["random", "x"]  # its scores are undefined


def test_epochs_draw_every_epoch(result):
    figure = views.epochs(result, "feelings", "pre", ("kept", "early"))
    line = next(t for t in figure.data if t.name == "test accuracy" and t.xaxis == "x2")
    np.testing.assert_allclose(line.y, stored(result, "early", "pre", "feelings")["learning"].values.mean(0), rtol=1e-5)
    assert list(line.x) == list(range(N_EPOCHS + 1))


def test_thirds_are_paired_differences(result):
    figure = views.thirds(result, "digits", "stored")
    bar = next(t for t in figure.data if t.name == "Pre-LN" and (t.xaxis or "x") == "x")
    middle, kept = (stored(result, arm, "pre")["memorisation"].values[:, N_EPOCHS] for arm in ("middle", "kept"))
    at = list(bar.x).index("middle")
    assert bar.y[at] == pytest.approx((middle - kept).mean(), abs=1e-4)
    assert bar.error_y.array[at] == pytest.approx((middle - kept).max() - (middle - kept).mean(), abs=1e-4)


def test_gradients_draw_three_groups_and_the_ratios(result):
    figure = views.gradients(result, "digits", origin="stored")
    ratio = next(t for t in figure.data if t.name == "learn / mem" and t.xaxis == "x4")
    norms = stored(result, "kept", "pre")["gradient_norm"].values[:, N_EPOCHS].mean(0)
    np.testing.assert_allclose(ratio.y, (norms[0] / norms[1]).ravel(), rtol=1e-6)
    assert list(ratio.x) == ["0.1", "0.2", "1.1", "1.2", "2.1", "2.2"]
    assert {t.name for t in figure.data} >= {text for _, text in views.GROUPS.values()}


def test_the_confound_is_drawn_at_every_measured_epoch(result):
    figure = views.gradients_over_epochs(result, "digits", origin="stored")
    points = [t for t in figure.data if (t.xaxis or "x") == "x"]
    assert len(points) == 3 and all(len(t.x) == 2 * (N_EPOCHS + 1) for t in points)


def test_a_partial_result_without_runs_has_no_figures():
    assert figures(Result(Provenance("layernorm_memorization", {}, 0), xr.Dataset(), {}, True)) == {}
