"""The noisy-labels panel without a browser: state in, map, bars, words and the clicked sample out; nothing is run."""

import time

import numpy as np
import pytest
import xarray as xr
from papers.memorization.layernorm_runs import N_EPOCHS, N_NOISY, made_result, stored

from workbench.core.errors import BadData
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.panels.panel import SAME_CHANGE
from workbench.papers.memorization.layernorm_memorization import panel_figures as views
from workbench.papers.memorization.layernorm_memorization.panel import NoisyLabels


@pytest.fixture(scope="module")
def result():
    return made_result()


@pytest.fixture
def panel(result):
    return NoisyLabels(result)


def shown(panel) -> np.ndarray:
    return np.frombuffer(panel.map.values, np.float32).reshape(panel.map.shape)


def drawn(area) -> dict:
    return area.outputs[0]["data"]["application/vnd.plotly.v1+json"]


def test_it_opens_on_stored_runs_at_the_last_epoch_and_says_so(panel, result):
    assert (panel.state.data, panel.state.origin, panel.state.epoch) == (
        "digits",
        "stored",
        N_EPOCHS,
    ) and panel.state.error == ""
    np.testing.assert_array_equal(shown(panel), views.fates(stored(result, "removed", "post").isel(run=0))[1])
    assert "Stored runs" in panel.summary.value and f"of {N_NOISY} noisy samples" in panel.summary.value
    assert "stored runs" in drawn(panel.bars)["layout"]["title"]["text"]


def test_the_epoch_moves_bars_words_and_table(panel, result):
    panel.epoch.value = 1
    run = stored(result, "removed", "post").isel(run=0)
    bar = next(t for t in drawn(panel.bars)["data"] if t.get("name") == "memorisation")
    assert "After epoch 1" in drawn(panel.bars)["layout"]["title"]["text"] and bar["type"] == "bar"
    assert (panel.table()["became"] == "memorised").sum() == round(float(run["memorisation"][1]) * N_NOISY / 100)


def test_another_third_placement_seed_or_run_is_another_map(panel, result):
    panel.arm.value = "late"
    np.testing.assert_array_equal(shown(panel), views.fates(stored(result, "late", "post").isel(run=0))[1])
    panel.placement.value = "pre"
    panel.seed.value = 1
    np.testing.assert_array_equal(shown(panel), views.fates(stored(result, "late", "pre").isel(run=1))[1])
    panel.look.value = "kept"
    np.testing.assert_array_equal(shown(panel), views.fates(stored(result, "kept", "pre").isel(run=1))[1])
    panel.data.value = "feelings"
    np.testing.assert_array_equal(shown(panel), views.fates(stored(result, "kept", "pre", "feelings").isel(run=1))[1])


def test_runs_made_here_are_offered_apart(panel):
    assert tuple(panel.origin.options) == ("stored", "run here")
    panel.placement.value = "pre"
    panel.origin.value = "run here"
    assert (
        [arm for _, arm in panel.arm.options] == ["early"]
        and panel.state.placement == "post"
        and panel.state.error == ""
    )
    assert "Run here" in panel.summary.value
    panel.look.value = "kept"
    assert "no kept run" in panel.state.error
    time.sleep(2 * SAME_CHANGE)  # a hand is slower than two observers of one change
    panel.look.value = "arm"
    panel.data.value = "feelings"
    assert tuple(panel.origin.options) == ("stored",) and panel.state.error == ""


def test_a_click_shows_the_sample(panel, result):
    assert panel.card.value == ""
    panel.map.click(3, 2)
    assert (panel.state.sample, panel.state.epoch) == (3, 2) and panel.epoch.value == 2
    row = panel.table().query("sample == 3").iloc[0]
    assert "text 3" in panel.card.value and f"true label: <b>{row.true}</b>" in panel.card.value
    assert (
        f"predicted after epoch 2: <b>{row.predicted}</b>" in panel.card.value
        and f"noisy label: <b>{row.noisy}</b>" in panel.card.value
    )
    assert "Sample 3" in drawn(panel.history)["layout"]["title"]["text"]
    panel.epoch.value = 0
    assert "predicted after epoch 0" in panel.card.value


def test_reports_and_files_have_what_is_shown(panel, tmp_path):
    assert list(panel.figures()) == ["outcome", "samples"]
    panel.map.click(0, 0)
    assert list(panel.figures()) == ["outcome", "samples", "sample"]
    page = panel.save(tmp_path / "x.html").read_text("utf-8")
    assert "What became of the noisy labels" in page and f"{N_NOISY} rows" in page


def test_a_result_without_runs_is_refused():
    with pytest.raises(BadData, match="holds no runs"):
        NoisyLabels(Result(Provenance("layernorm_memorization", {}, 0), xr.Dataset(), {}, True))
