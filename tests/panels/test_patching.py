"""Patching panel without a browser: settings in, map out; a click descends, Up returns, a cancelled map is finished,
estimates lie beside.
"""

import threading

import numpy as np
import pytest
import torch
from redraw import assert_quick

from workbench import panels
from workbench.core.errors import BadData, UnsupportedModel
from workbench.core.progress import Cancelled, Progress
from workbench.models import load
from workbench.primitives.replace import sweep_descent as descent
from workbench.primitives.score.prompt_metrics import metric_named
from workbench.views import sweep as views

WORDS = "apple beach bread brick cabin candle chair cloud copper corn".split()
CLEAN = " ".join([*WORDS, "cabin"])
CORRUPTED = CLEAN.replace("cabin", "maple", 1)  # the last word is now said for the first time
ANSWER, OTHER = "candle", "bread"


@pytest.fixture(scope="module")
def model():
    return load("organism:induction")


@pytest.fixture
def panel(model):
    return panels.Patching(model, CLEAN, CORRUPTED, ANSWER, OTHER)


@pytest.fixture(scope="module")
def ran(model):
    """A panel with its map; tests that change it make their own."""
    return panels.Patching(model, CLEAN, CORRUPTED, ANSWER, OTHER).run().wait(60)


def drawn(widget):
    return np.frombuffer(widget.values, np.float32).reshape(widget.shape)


def test_it_is_one_line_and_computes_nothing_on_its_own(model, monkeypatch):
    monkeypatch.setattr(type(model), "forward", lambda *a, **k: pytest.fail("a forward was run"))
    bare = panels.Patching(model)
    assert (
        (bare.state.running, bare.state.error, bare.state.plan) == (False, "", "")
        and bare.table().empty
        and bare.figures() == {}
    )
    ready = panels.Patching(model, CLEAN, CORRUPTED, ANSWER, OTHER)
    assert ready.state.result is None and ready.state.plan.startswith("24 cells in ") and " s," not in ready.state.plan
    assert ready._below.layout.display == "none"


def test_every_control_has_a_label_and_a_tip(panel):
    for control in (
        panel.clean,
        panel.corrupted,
        panel.answer,
        panel.other,
        panel.metric,
        panel.site,
        panel.direction,
        panel.memory,
    ):
        assert control.description and control.tooltip
    assert all(button.tooltip for button in (panel.start, panel.time, panel.estimate, panel.up))


def test_run_draws_what_the_sweep_says(ran, model):
    clean, corrupted = (torch.tensor(model.to_rows(text)) for text in (CLEAN, CORRUPTED))
    metric = metric_named(model, "logit_diff", clean.tolist(), [ANSWER], [OTHER])
    exact = descent.measure(model, corrupted, clean, metric, descent.site_cells("resid_pre"))
    np.testing.assert_allclose(drawn(ran.grid), views.change(exact).values, atol=1e-4)
    assert ran.state.error == "" and ran.state.path == [] and not ran.state.running
    ends = [float(metric(model.forward(tokens))) for tokens in (clean, corrupted)]
    assert (
        ran.state.baseline
        == f"logit_diff: clean {ends[0]:.4g} logits, corrupted {ends[1]:.4g} logits, gap {ends[0] - ends[1]:.4g} logits"
    )
    assert ran.state.baseline in ran.says_baseline.value


def test_the_known_circuit_is_seen(ran):
    """Patching the stream helps where the changed word stands at first, and one place later from layer 1 on."""
    share = views.change(ran.state.result)
    assert int(share.sel(layer=0).argmax()) == 5 and int(share.sel(layer=1).argmax()) == 6
    assert float(share.max()) == pytest.approx(1.0, abs=0.02)


def test_drawn_table_and_figure_are_the_same_numbers(ran):
    table = ran.table().set_index(["layer", "pos"])["shown"]
    figure = ran.figures()["patch_grid"].data[0]
    for layer in range(2):
        for pos in range(12):
            assert (
                table[layer, pos]
                == pytest.approx(float(figure.z[layer][pos]))
                == pytest.approx(float(drawn(ran.grid)[layer, pos]))
            )
    assert ran.grid.high == pytest.approx(figure.zmax) and ran.grid.low == -ran.grid.high


def test_tokens_of_both_prompts_are_shown_with_what_differs(panel, monkeypatch):
    monkeypatch.setattr("workbench.panels.panel.SAME_CHANGE", 0.0)  # changes follow each other faster here than by hand
    assert (
        panel.tokens.value.count("differs") == 1
        and "maple" in panel.tokens.value
        and "&lt;bos&gt;" in panel.tokens.value
    )
    panel.state.corrupted = CORRUPTED + " apple"
    assert "clean has 12 tokens and corrupted 13" in panel.state.error and "Clean: <bos>|apple" in panel.state.error
    assert "&lt;bos&gt;|apple" in panel.says.value and panel.state.plan == ""
    panel.state.corrupted = CORRUPTED
    assert panel.state.error == "" and panel.state.plan


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"answer": "candle chair"}, "2 tokens"),
        ({"corrupted": CLEAN}, "the same 12 tokens"),
        ({"other": ANSWER}, "both 'candle'"),
        ({"clean": ""}, "the clean prompt is empty"),
    ],
    ids=["two tokens", "same prompts", "same answers", "no prompt"],
)
def test_bad_settings_become_one_sentence_and_no_run(panel, change, sentence):
    for name, value in change.items():
        setattr(panel.state, name, value)
    panel.start.click()
    assert (
        sentence in panel.state.error
        and sentence.replace("'", "&#x27;") in panel.says.value
        and not panel.state.running
    )
    with pytest.raises(BadData, match=sentence):
        panel.run()


def test_controls_drive_the_state_and_the_plan_follows(panel):
    before = panel.state.plan
    panel.memory.value = 0.2
    assert panel.state.plan != before and panel.state.memory == 0.2
    panel.metric.value = "probability"
    panel.other.value = ""
    assert panel.state.error == "" and panel.state.plan
    panel.metric.value = "logit_diff"
    assert "other answer is missing" in panel.state.plan


def test_time_the_plan_names_seconds_and_the_two_runs(panel):
    panel.time.click()
    panel.wait(60)
    assert (
        "about" in panel.state.plan
        and " s, at most" in panel.state.plan
        and "gap" in panel.state.plan
        and panel.state.result is None
    )


def test_noise_is_the_other_way_round(panel, ran):
    panel.state.direction = "noise"
    panel.run().wait(60)
    assert panel.state.baseline == ran.state.baseline
    data, other = panel.state.result.data, ran.state.result.data
    np.testing.assert_allclose(data["base_value"], other["source_value"], atol=1e-4)
    assert "cabin" in str(data["token"].values) and "maple" not in str(data["token"].values)


def test_the_map_of_earlier_settings_is_called_so_and_is_what_a_click_means(panel):
    panel.run().wait(60)
    panel.state.direction = "noise"
    assert "still shows the earlier settings" in panel.state.plan
    panel.grid.click(1, 6)
    panel.wait(60)
    assert panel.state.result.data["base_value"].item() == pytest.approx(
        panel._known[()].data["base_value"].item(), abs=1e-4
    )


# ---- down and up ----


def test_a_click_leads_to_heads_then_to_q_k_v_and_up_leads_back(panel):
    panel.run().wait(60)
    top = drawn(panel.grid).copy()
    panel.grid.click(1, 11)
    panel.wait(60)
    assert panel.state.path == [{"layer": 1, "pos": 11}] and panel.grid.col_labels == ["h0", "h1", "h2", "h3", "mlp"]
    assert "layer 1, position 11 (cabin)" in panel.crumbs.value and not panel.up.disabled
    head = int(np.abs(drawn(panel.grid))[0, :4].argmax())
    panel.grid.click(0, head)
    panel.wait(60)
    assert panel.state.path[1] == {"part": f"h{head}"} and panel.grid.row_labels == ["q", "k", "v"]
    share = views.change(panel.state.result)
    assert share.sel(part="k").isel(layer=0).argmax() == 6, (
        "an induction head reads its key one place after the first copy"
    )
    panel.grid.click(1, 6)
    assert "as far down as it goes" in panel.state.notice and not panel.state.running
    panel.up.click()
    panel.up.click()
    assert panel.state.path == [] and panel.up.disabled
    np.testing.assert_array_equal(drawn(panel.grid), top)


def test_the_mlp_leads_to_its_neurons(panel):
    panel.run().wait(60)
    panel.descend(layer=1, pos=11).wait(60)
    panel.grid.click(0, 4)
    panel.wait(60)
    assert panel.state.path[1] == {"part": "mlp"} and panel.state.result.data.sizes["neuron"] == 128
    assert drawn(panel.grid).size == 128 and len(panel.table()) == 128


@pytest.mark.parametrize(
    ("site", "n_cells"), [("mlp_out", 128), ("k", 4), ("mlp_post", 128), ("z", 5), ("pattern", 4)], ids=lambda v: str(v)
)
def test_a_site_with_units_leads_to_them(panel, site, n_cells):
    panel.state.site = site
    panel.run().wait(60)
    panel.grid.click(1, 11)
    panel.wait(60)
    assert panel.state.error == "" and len(panel.table()) == n_cells


def test_a_place_that_is_known_is_not_run_again(model):
    calls = []

    def counted(*args, **options):
        calls.append(args[4].what)
        return descent.measure(*args, **options)

    panel = panels.Patching(model, CLEAN, CORRUPTED, ANSWER, OTHER, compute=counted).run().wait(60)
    for _ in range(2):
        panel.descend(layer=1, pos=11).wait(60)
        panel.go_up()
    assert calls == ["resid_pre", "a head or the MLP"]
    panel.state.metric = "loss"
    panel.run().wait(60)
    panel.descend(layer=1, pos=11).wait(60)
    assert len(calls) == 4, "another metric is another question"


def test_many_cells_wait_for_a_second_click(panel, monkeypatch):
    monkeypatch.setattr("workbench.panels.patching.MANY_CELLS", 3)
    panel.run().wait(60)
    panel.grid.click(1, 11)
    assert (
        "5 cells in" in panel.state.notice and "Click the cell again" in panel.state.notice and panel.state.path == []
    )
    panel.grid.click(1, 11)
    panel.wait(60)
    assert panel.state.path == [{"layer": 1, "pos": 11}]


def test_a_place_that_carries_nothing_says_so(panel):
    panel.run().wait(60)
    panel.descend(layer=1, pos=2).wait(60)
    assert "in no cell" in panel.state.notice and panel.grid.high == 1.0


def test_the_same_answer_to_both_prompts_is_a_degenerate_gap_and_said(panel):
    panel.state.corrupted, panel.state.metric = CLEAN.replace("corn", "maple"), "probability"
    panel.run().wait(60)
    assert "no share of the gap can be formed" in panel.state.baseline and panel.grid.unit == "probability"
    assert panel.figures()["patch_grid"].data[0].colorbar.title.text == "probability"


# ---- cancel and go on ----


def test_cancel_keeps_the_partial_map_and_run_goes_on(model):
    """A real sweep, cancelled from another thread after its first forward."""
    at_work, cancelled = threading.Event(), threading.Event()
    forwards = []

    def slow(*args, progress, **options):
        class Watched(Progress):
            def update(self, done, total, text=""):
                forwards.append(done)
                if done == 1 and not cancelled.is_set():
                    at_work.set()
                    assert cancelled.wait(20)
                progress.update(done, total, text)

        return descent.measure(*args, progress=Watched(), **options)

    panel = panels.Patching(model, CLEAN, CORRUPTED, ANSWER, OTHER, compute=slow)
    panel.memory.value = 0.1
    panel.start.click()
    assert at_work.wait(20) and panel.state.running and not panel.stop.disabled
    panel.stop.click()
    cancelled.set()
    panel.wait(60)
    missing = np.isnan(drawn(panel.grid))
    assert panel.state.result.partial and 0 < missing.sum() < missing.size
    assert (
        f"{missing.sum()} of 24 cells are not measured yet" in panel.state.notice
        and panel.start.description == "Run on"
    )
    kept = drawn(panel.grid).copy()
    panel.start.click()
    panel.wait(60)
    assert not np.isnan(drawn(panel.grid)).any() and panel.start.description == "Run" and not panel.state.result.partial
    np.testing.assert_array_equal(drawn(panel.grid)[~missing], kept[~missing])
    assert panel.state.notice == ""


def test_a_partial_map_of_other_settings_is_not_gone_on_with(model):
    given = []

    def once(*args, resume=None, progress=None, **options):
        given.append(resume)
        result = descent.measure(*args, **options)
        result.data["value"].values[0, 0] = np.nan
        return type(result)(result.provenance, result.data, partial=True)

    panel = panels.Patching(model, CLEAN, CORRUPTED, ANSWER, OTHER, compute=once).run().wait(60)
    first = panel.state.result
    panel.run().wait(60)
    panel.state.direction = "noise"
    assert panel.start.description == "Run"
    panel.run().wait(60)
    assert given[0] is None and given[1] is first and given[2] is None


def test_errors_and_bare_cancels_are_shown_and_leave_no_hook(model):
    def broken(m, *args, **options):
        m.forward(torch.tensor([[1, 8, 9]]), hook_fns=[(m.hook_name("z", 0), lambda tensor, hook: 1 / 0)])

    before = model.forward(torch.tensor([[1, 8, 9]]))
    panel = panels.Patching(model, CLEAN, CORRUPTED, ANSWER, OTHER, compute=broken).run().wait(60)
    assert panel.state.error.startswith("ZeroDivisionError") and not panel.state.running and panel.state.result is None
    assert torch.equal(model.forward(torch.tensor([[1, 8, 9]])), before)
    assert all(not point.fwd_hooks for point in model.live.hook_dict.values())

    def stopped(*args, **options):
        raise Cancelled("cancelled after 0 of 3 steps")

    panel = panels.Patching(model, CLEAN, CORRUPTED, ANSWER, OTHER, compute=stopped).run().wait(60)
    assert panel.state.notice == "cancelled after 0 of 3 steps" and panel.state.error == ""

    def unfit(*args, **options):
        raise UnsupportedModel("this one cannot")

    panel = panels.Patching(model, CLEAN, CORRUPTED, ANSWER, OTHER, compute=unfit).run().wait(60)
    assert panel.state.error == "this one cannot" and "role='alert'" in panel.says.value


# ---- attribution ----


def test_estimates_lie_beside_the_exact_cells(panel, model):
    panel.state.site = "z"
    panel.run().wait(60)
    panel.estimate.click()
    panel.wait(60)
    result, attributed = panel.state.result, panel.state.attributed
    np.testing.assert_allclose(drawn(panel.estimates), views.attributed_change(result, attributed).values, atol=1e-6)
    assert (panel.estimates.low, panel.estimates.high) == (panel.grid.low, panel.grid.high)
    figures, table = panel.figures(), panel.table()
    assert list(figures) == ["patch_grid", "attributed", "attribution_scatter"]
    points = figures["attribution_scatter"].data[1]
    np.testing.assert_allclose(points.x, table["attributed"])
    np.testing.assert_allclose(points.y, table["shown"])
    shown = panel.scatter.outputs[0]["data"]["application/vnd.plotly.v1+json"]
    assert "rank correlation" in shown["layout"]["title"]["text"] and len(shown["data"]) == 2


def test_estimates_belong_to_their_map(panel):
    panel.run().wait(60)
    panel.attribute().wait(60)
    top = panel.state.attributed
    panel.descend(layer=1, pos=11).wait(60)
    assert panel.state.attributed is None and panel.scatter.outputs == () and "attributed" not in panel.table()
    panel.attribute().wait(60)
    assert set(panel.state.attributed.data.dims) == {"layer", "pos", "part", "example"}
    panel.go_up()
    assert panel.state.attributed is top
    panel.state.metric = "loss"
    panel.run().wait(60)
    assert panel.state.attributed is None, "estimates of another question are gone"


def test_there_is_nothing_to_estimate_before_a_run(panel):
    panel.estimate.click()
    assert "no map to estimate yet" in panel.state.error


# ---- files ----


def test_save_opens_as_a_file_with_the_numbers_in_it(ran, tmp_path):
    page = ran.save(tmp_path / "patching.html").read_text(encoding="utf-8")
    assert "layer 1 pos 6 candle" in page and f"{ran.table()['value'][0]:.5g}" in page and "Provenance" in page
    assert 'src="http' not in page


def test_redraw_of_computed_data_is_quick(ran):
    assert_quick(*[ran._draw] * 4)
