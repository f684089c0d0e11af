"""The heads panel without a browser: state in, grid, words, table and figures out; nothing is run."""

import numpy as np
import pytest

from workbench.papers.attention.attention_sinks import method as sinks
from workbench.papers.attention.attention_sinks.claims import flagged
from workbench.papers.attention.attention_sinks.panel import Heads, heads_off


@pytest.fixture(scope="module")
def result(organism):
    spec = sinks.Spec.tiny().replace(n_inputs=10, scores=("awft", "ahon_ln"), n_random=1, controls=False, length=48)
    return sinks.run(spec, model=organism)


def test_it_follows_its_state(result):
    panel = Heads(result)
    before = panel.grid.values
    panel.state.score = "awft"
    assert panel.score.value == "awft" and panel.grid.values != before
    panel.share.value = 0.3
    assert panel.state.share == 0.3 and panel.state.error == ""
    table = panel.table()
    assert table.off.sum() == flagged(result.data, "awft", 0.3)[0].sum() == len(panel.grid.marked)
    assert f"{table.off.sum()} of 24" in panel.summary.value
    assert panel.drawing.outputs[0]["data"]["application/vnd.plotly.v1+json"]["data"]


def test_what_is_drawn_is_the_table_and_the_figure(result):
    panel = Heads(result)
    panel.input.value = 4
    shown = np.frombuffer(panel.grid.values, np.float32).reshape(panel.grid.shape)
    np.testing.assert_allclose(shown, panel.table().pivot(index="layer", columns="head", values="value"), rtol=1e-6)
    figures = panel.figures()
    np.testing.assert_allclose(shown, figures["heads_off"].data[0].z, rtol=1e-6)
    crosses = figures["heads_off"].data[1]
    assert {(y, x) for y, x in zip(crosses.y, crosses.x, strict=True)} == {tuple(at) for at in panel.grid.marked}
    assert list(figures) == ["heads_off", "score_histogram"]


def test_a_click_on_a_head_says_how_often_it_is_off(result):
    panel = Heads(result)
    assert panel.cell.value == ""
    panel.grid.click(2, 3)
    assert (panel.state.layer, panel.state.head) == (2, 3)
    assert f"off on {flagged(result.data, 'ahon_ln', 0.15)[:, 2, 3].mean():.0%} of the 10 inputs" in panel.cell.value


def test_a_score_that_is_not_there_is_an_error_in_words(result):
    panel = Heads(result)
    panel.state.input = 99
    assert panel.state.error != "" or panel.state.input == 9  # the slider holds it within the Result


def test_page_has_the_numbers(result, tmp_path):
    panel = Heads(result)
    page = panel.save(tmp_path / "heads.html").read_text("utf-8")
    assert "24 rows" in page and f"{panel.table().value[0]:.5g}" in page


def test_heads_off_is_a_plain_function(result):
    table = heads_off(result, "ahon_ln", 0.15, input=3)
    assert list(table.columns) == ["layer", "head", "value", "threshold", "off"] and len(table) == 24
    assert (table.off == (table.value < table.threshold)).all()
