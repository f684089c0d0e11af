"""Ablation panel without a browser: clicks and threshold choose, buttons measure, curves are cancelled and finished,
nothing stale is shown as new.
"""

import threading

import numpy as np
import pytest
import torch
import xarray as xr
from redraw import assert_quick

from workbench import panels
from workbench.core.errors import BadData
from workbench.core.progress import Progress
from workbench.models import load
from workbench.primitives.replace import ablation_curves as curves
from workbench.primitives.replace.ablation_bench import Bench
from workbench.primitives.replace.ablation_scores import score_units
from workbench.primitives.score.metrics import sequence_loss

PROMPTS = [
    "apple beach bread apple beach bread apple",
    "chair cloud copper chair cloud copper chair",
    "corn brick cabin corn brick cabin corn",
]
ANSWERS, OTHERS = ["beach", "cloud", "brick"], ["bread", "copper", "cabin"]


@pytest.fixture(scope="module")
def model():
    return load("organism:induction")


@pytest.fixture
def panel(model):
    return panels.Ablation(model, PROMPTS)


def bench(model, **options):
    rows = model.to_rows(PROMPTS)
    return Bench(model, rows, sequence_loss(rows), **options)


def drawn(widget):
    return np.frombuffer(widget.values, np.float32).reshape(widget.shape)


def shown(panel):
    return panel.drawing.outputs[0]["data"]["application/vnd.plotly.v1+json"]


# ---- before anything is run ----


def test_it_is_one_line_and_computes_nothing_on_its_own(model, monkeypatch):
    monkeypatch.setattr(type(model), "forward", lambda *a, **k: pytest.fail("a forward was run"))
    bare = panels.Ablation(model)
    assert (bare.state.running, bare.state.error) == (False, "") and bare.table().empty and bare.figures() == {}
    assert bare.grid.shape == [2, 4] and np.isnan(drawn(bare.grid)).all(), "an empty map can be clicked"
    for kind, labels in (("layers", ["attention", "MLP"]), ("norms", ["ln1", "ln2"])):
        bare.state.kind = kind
        assert bare.grid.col_labels == labels and bare.state.error == ""
    bare.state.kind = "neurons"
    assert "Score shows them" in bare.counts.value and bare.state.error == ""


def test_every_control_has_a_label_and_a_tip(panel):
    for control in (
        panel.prompts,
        panel.answers,
        panel.others,
        panel.kind,
        panel.value,
        panel.metric,
        panel.score,
        panel.side,
        panel.n_random,
        panel.seed,
        panel.threshold,
    ):
        assert control.description and control.tooltip
    assert (
        all(button.tooltip for button in (panel.find, panel.start, panel.sweep, panel.clear))
        and panel.threshold.continuous_update is False
    )


def test_the_metric_follows_what_was_given(model):
    assert panels.Ablation(model, PROMPTS).state.metric == "next_token_loss"
    assert panels.Ablation(model, PROMPTS, ANSWERS).state.metric == "loss"
    assert panels.Ablation(model, PROMPTS, ANSWERS, OTHERS).state.metric == "logit_diff"
    assert panels.Ablation(model, "\n".join(PROMPTS)).state.prompts == panels.Ablation(model, PROMPTS).state.prompts


# ---- choosing ----


def test_a_click_takes_a_unit_in_and_out(panel):
    panel.grid.click(0, 1)
    panel.grid.click(1, 2)
    assert panel.state.chosen == [[0, 1], [1, 2]] and [list(m) for m in panel.grid.marked] == [[0, 1], [1, 2]]
    assert "2 of 8" in panel.counts.value
    panel.grid.click(0, 1)
    assert panel.state.chosen == [[1, 2]]
    panel.clear.click()
    assert panel.state.chosen == [] and panel.grid.marked == []


@pytest.mark.parametrize(("side", "is_beyond"), [("high", np.greater), ("low", np.less)], ids=["high", "low"])
def test_the_threshold_chooses_what_lies_beyond_it(panel, side, is_beyond):
    panel.find.click()
    panel.wait(60)
    panel.side.value = side
    values = panel.state.scores.data["score"].values
    np.testing.assert_allclose(drawn(panel.grid), values)
    assert panel.state.chosen == [] and not panel.threshold.disabled, "at first it stands where nothing is beyond it"
    assert panel.threshold.value == pytest.approx(values.max() if side == "high" else values.min())
    middle = float(np.median(values))
    panel.threshold.value = middle
    np.testing.assert_array_equal(panel.state.chosen, np.argwhere(is_beyond(values, middle)))
    assert panel.table().query("chosen")["score"].map(lambda v: is_beyond(v, middle)).all()
    assert len(panel.figures()["score_map"].data[1].x) == len(panel.state.chosen) == len(panel.grid.marked)


def test_own_scores_are_used_as_they_are(model):
    own = xr.DataArray(
        [[5.0, 1, 1, 1], [1, np.nan, 3, 1]],
        dims=("layer", "head"),
        attrs={"long_name": "Sink rate", "unit": "share of inputs"},
    )
    panel = panels.Ablation(model, PROMPTS, scores=own)
    assert panel.state.score == "given" and panel.state.error == "" and panel.grid.shape == [2, 4]
    panel.side.value = "high"
    panel.threshold.value = 2.0
    assert panel.state.chosen == [[0, 0], [1, 2]]
    panel.run().wait(60)
    assert (
        panel.state.result.data.attrs["n_units"] == 7
        and "sink rate" in shown(panel)["layout"]["xaxis"]["title"]["text"]
    )
    panel.state.kind = "layers"
    assert panel.state.score == "size" and "given" not in dict(panel.score.options).values()
    with pytest.raises(BadData, match=r"shape \(3, 4\)"):
        panels.Ablation(model, PROMPTS, scores=np.zeros((3, 4)))


def test_neurons_are_clicked_in_blocks_and_named_so(panel, monkeypatch):
    monkeypatch.setattr("workbench.views.ablation.blocks.__defaults__", (32,))
    panel.state.kind = "neurons"
    panel.score_units().wait(60)
    assert panel.grid.shape == [2, 32] and panel.grid.col_labels[1] == "4-7" and "4 a cell" in panel.grid.x_title
    panel.grid.click(1, 2)
    assert panel.state.chosen == [[1, 8], [1, 9], [1, 10], [1, 11]] and "4 of 256" in panel.counts.value
    panel.grid.click(1, 2)
    assert panel.state.chosen == []


# ---- a chosen set ----


def test_the_chosen_set_is_ablated_beside_random_ones_with_exact_counts(panel, model):
    panel.grid.click(0, 1)
    panel.grid.click(1, 2)
    panel.start.click()
    panel.wait(60)
    mask = np.zeros((2, 4), bool)
    mask[0, 1] = mask[1, 2] = True
    wanted = curves.ablate_set(bench(model), mask, n_random=5, seed=0)
    np.testing.assert_allclose(panel.state.measured.data["value"], wanted.data["value"], atol=1e-5)
    assert panel.state.error == "" and "2 of 8 heads set to zero on 3 prompts" in panel.effect.value
    assert (
        "entries replaced: 6" in panel.effect.value
        and "Hook calls: 2" in panel.effect.value
        and "5 random sets" in panel.effect.value
    )
    assert panel.table()["set"].tolist() == ["none", "chosen"]
    panel.grid.click(0, 0)
    assert panel.state.measured is None and panel.effect.value == "", "the sentence was of another choice"


@pytest.mark.parametrize("kind", ["heads", "layers", "norms"])
@pytest.mark.parametrize("value", ["zero", "mean", "resample"])
def test_every_kind_and_replacement_runs_from_a_click(panel, kind, value):
    panel.state.kind, panel.state.value, panel.state.n_random = kind, value, 1
    panel.grid.click(1, 0)
    panel.ablate_chosen().wait(60)
    assert panel.state.error == "" and panel.state.measured.data["n_replaced"].values.tolist() == [0, 3]


def test_nothing_chosen_is_said(panel):
    panel.start.click()
    assert "no unit is chosen" in panel.state.error and not panel.state.running


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prompts": " \n"}, "there are no prompts"),
        ({"metric": "loss"}, "needs one answer for each prompt, and there are 3 prompts and 0"),
        ({"metric": "loss", "answers": "beach\ncloud\nbrick cabin"}, "2 tokens"),
        ({"value": "resample", "prompts": "apple beach\nchair cloud copper"}, "the only one of 3 tokens"),
    ],
    ids=["no prompts", "no answers", "two tokens", "no twin"],
)
def test_bad_settings_become_one_sentence(panel, change, sentence):
    for name, value in change.items():
        setattr(panel.state, name, value)
    panel.grid.click(0, 0)
    panel.ablate_chosen().wait(60)
    assert sentence in panel.state.error and panel.state.measured is None and not panel.state.running


def test_no_hook_is_left_after_an_error(model):
    def broken(bench, mask, **options):
        bench.model.forward(torch.tensor([[1, 8]]), hook_fns=[(bench.places[0][0], lambda tensor, hook: 1 / 0)])

    panel = panels.Ablation(model, PROMPTS, ablate=broken)
    panel.grid.click(0, 0)
    panel.ablate_chosen().wait(60)
    assert panel.state.error.startswith("ZeroDivisionError")
    assert all(not point.fwd_hooks for point in model.live.hook_dict.values())


def test_an_ablation_that_moves_nothing_is_said(panel):
    panel.state.prompts, panel.state.value = f"{PROMPTS[0]}\n{PROMPTS[0]}", "resample"
    panel.grid.click(0, 0)
    panel.ablate_chosen().wait(60)
    assert "did not move" in panel.state.notice and "role='status'" in panel.says.value


# ---- the curve ----


def test_drawn_curve_table_and_figure_are_the_numbers_of_the_function(panel, model):
    panel.state.score = "alone"
    panel.sweep.click()
    panel.wait(60)
    own = bench(model)
    wanted = curves.ablation_curve(own, score_units(own, "alone").data["score"])
    table, traces = panel.table(), shown(panel)["data"]
    np.testing.assert_allclose(table["value"], wanted.data["value"].mean("example"), atol=1e-5)
    np.testing.assert_allclose(table["random_low"], wanted.data["random_value"].mean("example").min("draw"), atol=1e-5)
    figure = panel.figures()["ablation_curve"]
    assert list(figure.data[3].y) == table["value"].tolist()
    assert len(traces) == len(figure.data) == 4 and panel.state.scores is not None, (
        "the curve shows the scores it went by"
    )


def test_a_chosen_set_lies_on_the_curve_only_if_it_was_measured_alike(panel):
    panel.run().wait(60)
    panel.grid.click(0, 1)
    panel.ablate_chosen().wait(60)
    assert len(shown(panel)["data"]) == 5 and panel.table()["set"].iloc[-1] == "chosen"
    panel.state.metric = "next_token_accuracy"
    assert "Of earlier settings: the curve and the chosen set" in panel.effect.value
    panel.ablate_chosen().wait(60)
    assert len(shown(panel)["data"]) == 4 and "chosen" not in panel.table()["set"].tolist()
    assert "Of earlier settings: the curve." in panel.effect.value and "next_token_accuracy" in panel.effect.value


def test_scores_of_other_prompts_are_computed_again_for_the_curve(model):
    asked = []

    def scored(*args, **options):
        asked.append(args[1])
        return score_units(*args, **options)

    panel = panels.Ablation(model, PROMPTS, score=scored)
    panel.score_units().wait(60)
    panel.run().wait(60)
    assert asked == ["size"]
    panel.state.prompts = "\n".join(PROMPTS[:2])
    panel.run().wait(60)
    assert asked == ["size", "size"] and panel.state.result.data.sizes["example"] == 2


def test_cancel_keeps_the_curve_so_far_and_it_is_finished(model):
    at_work, cancelled = threading.Event(), threading.Event()
    runs = []

    def slow(bench, score, *, progress, resume, **options):
        class Watched(Progress):
            def update(self, done, total, text=""):
                runs.append(done)
                if done == 5 and not cancelled.is_set():
                    at_work.set()
                    assert cancelled.wait(20)
                progress.update(done, total, text)

        return curves.ablation_curve(bench, score, progress=Watched(), resume=resume, **options)

    panel = panels.Ablation(model, PROMPTS, curve=slow)
    panel.sweep.click()
    assert at_work.wait(20) and panel.state.running and not panel.stop.disabled
    panel.stop.click()
    cancelled.set()
    panel.wait(60)
    half = panel.table()
    assert (
        panel.state.result.partial
        and "runs are not made yet" in panel.state.notice
        and panel.sweep.description == "Curve, go on"
    )
    assert 0 < half["value"].isna().sum() < len(half) and len(shown(panel)["data"][-1]["y"]) > 0
    n_first = len(runs)
    panel.sweep.click()
    panel.wait(60)
    assert (
        not panel.state.result.partial
        and panel.table()["value"].notna().all()
        and panel.sweep.description == "Curve"
        and panel.state.notice == ""
    )
    kept = half["value"].notna()
    assert panel.table()["value"][kept].tolist() == half["value"][kept].tolist() and len(runs) - n_first < 30


def test_a_cancel_while_scoring_keeps_the_scores_and_draws_no_curve(model):
    def stopped(bench, by, *, progress):
        progress.cancel()
        return score_units(bench, by, progress=progress)

    panel = panels.Ablation(model, PROMPTS, score=stopped)
    panel.state.score = "alone"
    panel.run().wait(60)
    assert panel.state.result is None and "8 of 8 units have no score" in panel.state.notice and not panel.state.running


def test_another_kind_starts_afresh(panel):
    panel.score_units().wait(60)
    panel.grid.click(0, 0)
    panel.ablate_chosen().wait(60)
    panel.kind.value = "norms"
    assert panel.state.chosen == [] and panel.state.scores is None and panel.state.measured is None
    panel.run().wait(60)
    assert (
        panel.state.error == ""
        and panel.state.result.data.attrs["kind"] == "norms"
        and panel.table()["n_ablated"].tolist() == [0, 1, 2, 3, 4]
    )


# ---- files ----


def test_save_opens_as_a_file_with_the_numbers_in_it(panel, tmp_path):
    panel.run().wait(60)
    page = panel.save(tmp_path / "ablation.html").read_text(encoding="utf-8")
    assert (
        f"{panel.table()['value'][1]:.5g}" in page
        and "lowest score first" in page
        and "Provenance" in page
        and 'src="http' not in page
    )


def test_redraw_of_computed_data_is_quick(panel):
    panel.run().wait(60)
    assert_quick(*[panel._draw] * 4)
    assert_quick(*[panel._new_scores] * 4)
