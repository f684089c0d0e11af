"""The units panel without a browser: sliders relabel and re-count, a click opens a unit with its tokens, Prune runs
the plain function and can be cancelled.
"""

import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch
from papers.safety import small_run
from redraw import assert_quick, settings

from workbench.core.errors import BadData
from workbench.core.result import Result
from workbench.models import load
from workbench.panels import Units
from workbench.panels.panel import SAME_CHANGE
from workbench.papers.safety.safety_units import method as su
from workbench.papers.safety.safety_units import panel as panel_module
from workbench.papers.safety.safety_units import panel_figures as views
from workbench.papers.safety.safety_units.claims import SCORES
from workbench.papers.safety.safety_units.panel import UnitsState
from workbench.primitives.read.top_activations import top_activations
from workbench.primitives.score.unit_importance import LABELS, Ratios, label_units, units_removed
from workbench.runs.stored import load_runs

SMALL = small_run.SMALL.replace(n_forbidden=4, n_utility=6, n_probe=0)


@pytest.fixture(scope="module")
def chat():
    return load("organism:chat")


@pytest.fixture(scope="module")
def result(chat):
    return su.run(SMALL, model=chat)


@pytest.fixture(scope="module")
def pruned(chat, result):
    return panel_module.prune_at(result, Ratios(0.02, 0.04, 0.3), model=chat, n_random=1)


def refused(*_, **__):
    pytest.fail("computed")


@pytest.fixture
def panel(result, chat, pruned):
    return Units(result, chat, compute=lambda *_, **__: pruned)


def groups(panel) -> np.ndarray:
    return np.frombuffer(panel.scatter.groups, np.uint8)


def test_made_it_shows_the_run_and_computes_nothing(result, chat):
    panel = Units(result, chat, compute=refused, compute_top=refused)
    run = result.data.isel(run=0)
    assert (
        (groups(panel) == run["label"].values).all()
        and panel.safety.value == pytest.approx(3.0)
        and not panel.state.running
        and panel.state.error == ""
    )
    assert (
        "0 of 1568 units have another label" in panel.counts.value
        and panel.bars.outputs
        and not panel.bars_here.outputs
    )


def test_every_control_has_a_label_and_a_tooltip(panel):
    controls = (
        panel.run_box,
        panel.scale,
        panel.safety,
        panel.utility,
        panel.redundant,
        panel.reset,
        panel.prune,
        panel.layer,
        panel.module,
        panel.index,
        panel.open_button,
        panel.stop,
    )
    assert all(control.description and control.tooltip for control in controls)


def test_sliders_relabel_and_count_by_the_plain_function(panel, result):
    panel.safety.value, panel.utility.value, panel.redundant.value = 5.0, 10.0, 25.0
    values = result.data["importance"].isel(run=0).sel(scale="raw").astype(float)
    expected = label_units(values.sel(set="safety").values, values.sel(set="utility").values, Ratios(0.05, 0.1, 0.25))
    assert (groups(panel) == expected).all() and (panel.labels() == expected).all()
    counts = views.count_table(result.data.isel(run=0), expected).set_index("label")["units"]
    assert counts.to_dict() == {
        name: int((expected == LABELS.index(name)).sum()) for name in ("SCU", "UCU", "CU", "RU")
    }
    assert (
        all(f">{n}</td>" in panel.counts.value for n in counts)
        and counts["SCU"] == 78
        and f"{counts['SCU']} safety-critical" in panel.scatter.alt
    )
    panel.reset.click()
    assert (groups(panel) == result.data["label"].values[0]).all()


def test_the_scale_moves_the_points_and_the_labels(panel, result):
    raw = panel.scatter.x
    panel.scale.value = "standard"
    x = np.frombuffer(panel.scatter.x, np.float32)
    assert (
        panel.scatter.x != raw
        and not panel.scatter.log
        and np.allclose(x, result.data["importance"].isel(run=0).sel(scale="standard", set="utility"))
    )
    assert (
        "standard deviations" in panel.scatter.x_title and not (groups(panel) == result.data["label"].values[0]).all()
    )


def test_shares_above_all_units_are_one_sentence_and_the_picture_stays(panel):
    before = panel.scatter.groups
    panel.utility.value = 30.0
    panel.redundant.value = 80.0
    assert (
        "add up to more than 1" in panel.state.error
        and "\n" not in panel.state.error
        and panel.scatter.groups != before
    )
    time.sleep(2 * SAME_CHANGE)  # a hand is slower than two observers of one change
    panel.redundant.value = 20.0
    assert panel.state.error == ""


def test_table_figure_and_widget_are_the_same_numbers(panel, result):
    panel.safety.value = 4.0
    table, figure = panel.table(), panel.figures()["units"]
    assert (table["label"] == np.array(LABELS)[groups(panel)]).all() and np.allclose(
        10 ** np.frombuffer(panel.scatter.x, np.float32), table["utility, raw"], rtol=1e-4
    )
    drawn = {trace.name: trace for trace in figure.data}
    red = table[(table["label"] == "SCU") & (table["module"] == "mlp")]
    assert (
        np.allclose(drawn["safety-critical (SCU)"].y, red["safety, raw"])
        and figure.layout.meta["alt"] == panel.scatter.alt
    )


def test_a_click_opens_the_unit_with_its_top_tokens(panel, chat):
    unit = 200
    panel.scatter.click(unit)
    panel.wait(60)
    assert (
        panel.state.error == ""
        and panel.state.unit == unit
        and "Layer 0, MLP channel 200" in panel.card.value
        and "<mark>" in panel.tokens.value
    )
    rows, _ = panel.prompt_rows()
    expected = top_activations(chat, rows, "neuron", 0, 200, k=panel_module.TOP_K).data
    table = panel.table()
    assert (
        np.allclose(table["activation"], expected["activation"])
        and table["token"].tolist() == expected["token"].values.tolist()
        and set(table["set"]) <= {"safety", "utility"}
    )
    assert (panel.layer.value, panel.module.value, panel.index.value) == (
        0,
        "mlp",
        200,
    ) and panel.scatter.selected == unit


def test_a_head_is_opened_from_the_boxes(panel):
    panel.layer.value, panel.module.value, panel.index.value = 2, "attention", 3
    panel.open_button.click()
    panel.wait(60)
    assert (
        "Layer 2, attention unit 3" in panel.card.value
        and panel.state.top.data.attrs["kind"] == "head"
        and "norm added to the stream" in panel.tokens.value
    )
    panel.index.value = 9
    panel.open_button.click()
    assert "has 8 units of kind attention unit" in panel.state.error


def test_a_channel_of_a_head_is_looked_up_as_one(chat):
    channels = su.run(SMALL.replace(attention="channel", ratios=(0.03, 0.03, 0.2)), model=chat)
    panel = Units(channels, chat)
    panel.layer.value, panel.module.value, panel.index.value = 1, "attention", 100
    panel.open_button.click()
    panel.wait(60)
    assert (
        panel.state.error == ""
        and panel.state.top.data.attrs["kind"] == "head channel"
        and panel.state.top.data.attrs["index"] == 100
        and len(panel.labels()) == 4 * (384 + 128)
    )


def test_prompts_of_your_own_are_looked_through(result, chat):
    panel = Units(result, chat, prompts=["window road candle", "bread onion"])
    panel.scatter.click(3)
    panel.wait(60)
    assert set(panel.table()["set"]) == {"given"} and panel.state.top.data.attrs["n_prompts"] == 2


def test_a_unit_opened_meanwhile_is_the_one_that_is_answered(result, chat):
    started, go = threading.Event(), threading.Event()

    def slow(*given, **options):
        started.set()
        assert go.wait(30)
        return top_activations(*given, **options)

    panel = Units(result, chat, compute_top=slow)
    panel.scatter.click(10)
    assert started.wait(30)
    panel.scatter.click(20)
    assert panel.state.notice == "" and "Looking for" in panel.tokens.value
    go.set()
    panel.wait(60)
    assert panel.state.unit == 20 and panel.state.top.data.attrs["index"] == 20 and "MLP channel 20" in panel.card.value


def test_without_a_model_all_but_tokens_and_pruning_works(result):
    panel = Units(result)
    panel.safety.value = 6.0
    panel.scatter.click(5)
    assert (
        panel.state.error == ""
        and "need the model" in panel.tokens.value
        and panel.prune.disabled
        and "Needs the model" in panel.prune.tooltip
    )
    panel.run()
    assert "pruning needs the model" in panel.state.error and not panel.state.running
    assert set(panel.figures()) == {"units", "pruning_of_the_runs"}


def test_prune_hands_the_shares_over_and_draws_what_came_back(result, chat, pruned):
    calls = []
    panel = Units(result, chat, compute=lambda *given, **options: (calls.append((given, options)), pruned)[1])
    panel.safety.value, panel.utility.value, panel.redundant.value = 2.0, 4.0, 30.0
    panel.prune.click()
    panel.wait(60)
    (of, ratios), options = calls.pop()
    assert (
        of is result
        and (ratios.safety, ratios.utility, ratios.redundant) == pytest.approx((0.02, 0.04, 0.3))
        and options["model"] is chat
        and options["scale"] == "raw"
    )
    figure, rows = panel.figures()["pruning_at_chosen_shares"], pruned.tables["pruning"]
    assert "SCU 2.0, UCU 4.0, RU 30.0 %" in figure.layout.title.text and panel.table().equals(rows)
    utility = next(t for t in figure.data if t.offsetgroup == "utility group")
    assert dict(zip(utility.x, utility.y, strict=True))["UCU"] == pytest.approx(
        float(rows.query("group == 'UCU' and arm == 'group'")["utility"].iloc[0])
    )
    assert (
        panel.bars_here.outputs[0]["data"]["text/plain"] == figure.layout.meta["alt"]
        and "no real control" in panel.state.notice
    )


def test_pruning_at_the_sizes_of_the_run_gives_the_runs_own_numbers(result, chat):
    """The oracle: the same prompts, groups and random draws as the run itself."""
    one = result.data.isel(run=0)
    again = panel_module.prune_at(
        result, Ratios(float(one["r_scu"]), float(one["r_ucu"]), float(one["r_ru"])), model=chat, n_random=1
    ).tables["pruning"]
    for of in (again, result.tables["pruning"]):
        of["key"] = of["group"] + " " + of["arm"]
    both = again.merge(result.tables["pruning"], on="key", suffixes=("", " run"))
    assert len(both) == 7
    for score in (*SCORES, "n_units", "effect"):
        assert np.allclose(both[score], both[f"{score} run"], atol=1e-4), score


def test_an_empty_group_changes_nothing_and_all_of_a_group_are_gone(result, chat):
    table = (
        panel_module.prune_at(result, Ratios(0.0, 0.0, 1.0), model=chat, n_random=1)
        .tables["pruning"]
        .set_index(["group", "arm"])
    )
    assert table.loc[("SCU", "group"), "effect"] == 0 and table.loc[("SCU", "group"), "n_units"] == 0
    units = result.data["importance"].isel(run=0)
    row = torch.tensor([[2, 30, 31]])
    with units_removed(chat, np.ones(units.sizes["unit"], bool), units):
        bare = chat.forward(row)
    assert table.loc[("RU", "group"), "n_shared"] == table.loc[("RU", "random"), "n_shared"] == 1568
    assert float((bare - chat.forward(row)).abs().max()) > 0.1


def test_a_unit_opened_while_pruning_says_what_to_do(result, chat, pruned):
    started, go = threading.Event(), threading.Event()

    def slow(*_, **__):
        started.set()
        assert go.wait(30)
        return pruned

    panel = Units(result, chat, compute=slow).run()
    assert started.wait(30)
    panel.scatter.click(10)
    assert (
        "Pruning is under way; open the unit again" in panel.tokens.value
        and "still working" in panel.state.notice
        and "MLP channel 10" in panel.card.value
    )
    go.set()
    panel.wait(60)
    panel.open_button.click()
    panel.wait(60)
    assert panel.state.pruned is pruned and panel.state.top.data.attrs["index"] == 10


def test_another_model_and_an_empty_result_are_refused(result, organism):
    with pytest.raises(BadData, match="other weights"):
        Units(result, organism)
    with pytest.raises(BadData, match="other weights"):
        panel_module.prune_at(result, Ratios(0.1, 0.1, 0.1), model=organism)
    with pytest.raises(BadData, match="no scored units"):
        Units(Result(result.provenance, partial=True))


def test_cancel_keeps_the_prunings_that_were_finished_and_no_hook(result, chat):
    panel = Units(result, chat)

    def stops(*given, progress, **options):
        class Stops:
            def __getattr__(self, name):
                return getattr(progress, name)

            def update(self, done, total, text=""):
                if done == 2:
                    panel.stop.click()
                progress.update(done, total, text)

        return panel_module.prune_at(*given, progress=Stops(), **options)

    panel._compute = stops
    panel.run().wait(120)
    assert (
        panel.state.pruned.partial
        and len(panel.state.pruned.tables["pruning"]) == 3
        and "cancelled: prunings finished: 2" in panel.state.notice
    )
    assert [*panel.figures()["pruning_at_chosen_shares"].data[0].x] == ["nothing", "SCU"]
    assert not any(point.fwd_hooks for point in chat.live.hook_dict.values())


def test_an_error_is_a_sentence_and_leaves_it_usable(result, chat, pruned):
    def broken(*_, **__):
        raise RuntimeError("in the middle\nof it")

    panel = Units(result, chat, compute=broken, compute_top=broken)
    panel.run().wait(60)
    assert panel.state.error == "RuntimeError: in the middle" and not panel.state.running
    panel.scatter.click(4)
    panel.wait(60)
    assert (
        panel.state.error == "RuntimeError: in the middle"
        and panel.state.top is None
        and "Open the unit again" in panel.tokens.value
    )
    panel._compute = lambda *_, **__: pruned
    assert panel.run().wait(60).state.error == "" and panel.state.pruned is pruned


def test_saved_it_is_one_page_with_its_numbers(panel, tmp_path):
    panel.scatter.click(200)
    panel.wait(60)
    text = panel.save(tmp_path / "units.html").read_text(encoding="utf-8")
    assert f"{panel.table()['activation'].iloc[0]:.5g}" in text and "Safety units" in text and "organism:chat" in text


def test_too_many_units_are_thinned_out_and_it_says_so(result, chat, monkeypatch):
    monkeypatch.setattr(panel_module, "MAX_POINTS", 300)
    panel = Units(result, chat, compute_top=refused)
    assert len(groups(panel)) == 300 and "too many to draw: 300 are shown" in panel.state.notice
    shown = panel._points
    assert (groups(panel) == result.data["label"].values[0][shown]).all() and set(
        np.flatnonzero(np.isin(result.data["label"].values[0], [2, 3]))
    ) <= set(shown)
    panel.safety.value = 5.0
    assert (
        len(groups(panel)) == 300 and (groups(panel) == LABELS.index("SCU")).sum() == 78 and len(panel.table()) == 1568
    )
    assert sum(len(trace.x) for trace in panel.figures()["units"].data if trace.mode == "markers") == 300


def test_state_given_beforehand_and_words_are_escaped(result):
    panel = Units(result, state=UnitsState(scale="standard", safety=7.0, utility=1.0, redundant=2.0, unit=3))
    assert (
        panel.scale.value == "standard"
        and panel.safety.value == 7.0
        and (groups(panel) == LABELS.index("SCU")).sum() == round(0.07 * 1568)
        and "MLP channel 3" in panel.card.value
    )
    table = pd.DataFrame(
        [{"activation": 1.0, "set": "a<b", "example": 0, "before": "<i>", "token": "<script>", "after": "&"}]
    )
    top = Result(
        result.provenance,
        result.data.isel(run=0)[["r_scu"]]
        .assign(activation=("rank", [1.0], {"unit": "u"}))
        .assign_attrs(n_tokens=1, n_prompts=1, mean_size=0.1),
    )
    assert "<script>" not in views.top_html(table, top) and "<i>" not in views.top_html(table, top)


def test_a_redraw_takes_less_than_a_tenth_of_a_second_of_work(panel):
    assert_quick(*settings(panel.safety, "value", 1.0, 2.0, 3.0, 4.0))


def test_the_stored_runs_open_by_themselves_marked_as_stored():
    panel = Units(load_runs("safety_units"))
    assert [name for name, _ in panel.run_box.options] == [
        f"stored, seed {n}" for n in range(3)
    ] and panel.state.error == ""
    before = panel.scatter.y
    panel.run_box.value = 2
    assert panel.scatter.y != before and panel.figures()["pruning_of_the_runs"].layout.title.text.startswith("Stored: ")
