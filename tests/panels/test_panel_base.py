"""What every panel does alike: idle, running and error states, cancel, one sentence for an error, files, and a
static view that cannot break it.
"""

import threading
import time

import ipywidgets as widgets
import pandas as pd
import plotly.graph_objects as go
import pytest

from workbench.core.errors import BadData, WorkbenchError
from workbench.core.progress import Cancelled
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.panels import panel as module
from workbench.panels.panel import Panel, PanelState, draw, labelled, link, names, plot_area, row, sentence
from workbench.views import theme

RESULT = Result(Provenance("made-here", {"n": 3}, 0, model={"name": "a model"}))


class Small(Panel):
    """The least panel: it shows the numbers it is given."""

    title = "Small <panel>"

    def __init__(self):
        super().__init__()
        self.numbers = pd.DataFrame()
        self.start = widgets.Button(description="Run")
        self.frame(row(self.start), widgets.HTML("below"))

    def table(self):
        return self.numbers

    def figures(self):
        if self.numbers.empty:
            return {}
        figure = go.Figure(go.Bar(x=self.numbers.word, y=self.numbers.value))
        return {"bars": theme.finish(figure, "Bars", "three bars", RESULT.provenance)}


@pytest.fixture
def panel():
    return Small()


@pytest.fixture
def full(panel):
    panel.numbers = pd.DataFrame({"word": ["<script>alert(1)</script>", "b & c"], "value": [0.25, 2.5]})
    panel.state.result = RESULT
    return panel


@pytest.fixture
def kernel(monkeypatch):
    """As if in a notebook: [(data, display id, whether it updates)] of everything displayed."""
    seen = []
    monkeypatch.setattr(module, "get_ipython", lambda: object())
    monkeypatch.setattr(
        module,
        "display",
        lambda data, raw=False, display_id=None, update=False: seen.append((data, display_id, update)),
    )
    monkeypatch.setattr(module.images, "small_picture", lambda figure: (b"picture", ""))
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.05)
    yield seen
    for waiting in threading.enumerate():  # a timer left over would draw with what was patched taken away again
        if isinstance(waiting, threading.Timer):
            waiting.cancel()
            waiting.join()


# ---- states ----


def test_idle_nothing_runs_and_nothing_is_said(panel):
    assert (
        not panel.state.running
        and panel.says.value == ""
        and panel.stop.disabled
        and panel._working.layout.display == "none"
    )
    assert panel.table().empty and panel.figures() == {} and panel.wait() is panel


def test_the_first_row_stands_above_progress_and_the_rest_below(panel):
    kinds = list(panel.children)
    first, second = (
        next(i for i, w in enumerate(kinds) if isinstance(w, widgets.HBox) and panel.start in w.children),
        kinds.index(panel._working),
    )
    assert first < second < kinds.index(panel.says) < len(kinds) - 1


def test_running_is_in_another_thread_and_shows_cancel_and_progress(panel):
    at_work, go_on, seen = threading.Event(), threading.Event(), {}

    def compute(progress):
        progress.update(3, 9, "cells")
        seen["thread"] = threading.current_thread()
        at_work.set()
        assert go_on.wait(20)
        return 7

    panel.work(compute, lambda found: seen.update(found=found, thread_done=threading.current_thread()))
    assert at_work.wait(20)
    assert panel.state.running and not panel.stop.disabled and panel._working.layout.display == "flex"
    assert (panel.bar.value, panel.bar.max) == (3, 9) and panel.stage.value.startswith("3 of 9 cells")
    go_on.set()
    panel.wait(20)
    assert (
        not panel.state.running
        and panel.stop.disabled
        and panel._working.layout.display == "none"
        and panel.stage.value == ""
    )
    assert seen["found"] == 7 and seen["thread"] is seen["thread_done"] is not threading.main_thread()


def test_work_while_running_is_refused_with_a_notice(panel):
    go_on, began = threading.Event(), []
    panel.work(lambda progress: began.append(1) or go_on.wait(20), lambda _: None)
    panel.work(lambda progress: began.append(2), lambda _: None)
    assert "still working" in panel.state.notice and "still working" in panel.says.value
    go_on.set()
    panel.wait(20)
    assert began == [1] and not panel.state.running


def test_waiting_too_long_is_a_timeout_with_the_panels_name(panel):
    go_on = threading.Event()
    panel.work(lambda progress: go_on.wait(20), lambda _: None)
    with pytest.raises(TimeoutError, match="Small <panel>: still working"):
        panel.wait(0.05)
    go_on.set()
    panel.wait(20)


# ---- errors ----


def fails(found):
    def compute(*_):
        raise found

    return compute


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (BadData("two rows; give one"), "two rows; give one"),
        (KeyError("x"), "KeyError: 'x'"),
        (RuntimeError("first\nsecond"), "RuntimeError: first"),
        (ValueError(), "ValueError: no further word"),
    ],
    ids=["ours", "another's", "several lines", "no text"],
)
def test_an_error_is_one_sentence(panel, found, said):
    assert sentence(found) == said
    panel.work(fails(found), lambda _: None)
    panel.wait(20)
    assert panel.state.error == said and not panel.state.running and panel.stop.disabled


def test_an_error_of_what_follows_the_work_shows_too(panel):
    panel.work(lambda progress: 1, fails(BadData("cannot draw it")))
    assert panel.wait(20).state.error == "cannot draw it" and not panel.state.running


def test_an_error_in_an_observer_of_the_result_does_not_leave_it_running(panel):
    panel.state.observe(lambda _: panel.attempt(fails(BadData("broken drawing"))), names="result")
    panel.work(lambda progress: RESULT, lambda result: setattr(panel.state, "result", result))
    assert panel.wait(20).state.error == "broken drawing" and not panel.state.running and panel.state.result is RESULT


def test_errors_and_notices_are_escaped(panel):
    panel.state.error, panel.state.notice = "<img src=x onerror=alert(1)>", "<b>note</b>"
    assert "<img" not in panel.says.value and "<b>" not in panel.says.value and "&lt;img" in panel.says.value
    assert "role='alert'" in panel.says.value and "role='status'" in panel.says.value


def test_the_next_run_clears_error_and_notice(panel):
    panel.work(fails(BadData("no")), lambda _: None)
    panel.wait(20)
    panel.state.notice = "old"
    panel.work(lambda progress: 1, lambda _: None)
    assert panel.wait(20).state.error == "" and panel.state.notice == "" and panel.says.value == ""


def test_a_light_change_that_fails_is_a_sentence_and_the_next_clears_it(panel):
    panel.attempt(fails(BadData("no such cell")))
    assert panel.state.error == "no such cell"
    panel.attempt(lambda: None)  # another observer of the same change must not wipe it out
    assert panel.state.error == "no such cell"
    time.sleep(2 * module.SAME_CHANGE)
    panel.attempt(lambda: None)
    assert panel.state.error == ""


# ---- cancel ----


def test_cancel_stops_at_the_next_step(panel):
    at_work = threading.Event()

    def compute(progress):
        for step in range(100_000):
            progress.update(step, 100_000, "cells")
            at_work.set()
            time.sleep(0.001)

    panel.work(compute, fails(AssertionError("was not cancelled")))
    assert at_work.wait(20)
    panel.stop.click()
    panel.wait(20)
    assert not panel.state.running and panel.state.error == "" and "cancelled after" in panel.state.notice


def test_a_compute_that_keeps_its_part_hands_it_on(panel):
    at_work, taken = threading.Event(), []

    def compute(progress):
        try:
            while True:
                progress.update(1, 2)
                at_work.set()
                time.sleep(0.001)
        except Cancelled:
            return "half"

    panel.work(compute, taken.append)
    assert at_work.wait(20)
    panel.cancel()
    panel.wait(20)
    assert taken == ["half"]


def test_cancel_with_nothing_under_way_harms_nothing(panel):
    panel.cancel()
    panel.work(lambda progress: progress.update(1, 1), lambda _: None)
    panel.wait(20)
    panel.cancel()
    done = []
    panel.work(lambda progress: progress.update(1, 1), lambda _: done.append(1))
    panel.wait(20)
    assert done == [1] and panel.state.notice == ""


# ---- files ----


def test_with_nothing_to_show_there_is_nothing_to_save(panel, tmp_path):
    with pytest.raises(WorkbenchError, match="Small <panel> has nothing to save yet: run it first"):
        panel.save(tmp_path / "x.html")
    assert not list(tmp_path.iterdir())


def test_save_writes_one_page_with_numbers_notices_and_provenance(full, tmp_path):
    full.state.notice = "pooled <cells>"
    text = full.save(tmp_path / "x.html").read_text(encoding="utf-8")
    assert "0.25" in text and "pooled &lt;cells&gt;" in text and "a model" in text and "three bars" in text
    assert "<script>alert(1)</script></td>" not in text and "&lt;script&gt;alert(1)" in text
    assert "<title>Small &lt;panel&gt;</title>" in text and "Plotly.newPlot" in text and "<script src" not in text


# ---- the static view ----


def test_shown_in_a_notebook_it_displays_itself_a_table_and_a_place_for_a_picture(full, kernel):
    full._ipython_display_()
    (live, _, _), (table, table_id, _), (picture, picture_id, _) = kernel[:3]
    assert "application/vnd.jupyter.widget-view+json" in live and "text/html" in table and picture == {"text/plain": ""}
    assert table_id != picture_id and table_id.startswith(full._identity)
    assert full._identity in full._hides_static.value, "its own static view is hidden, and no other panel's"


def test_the_static_table_is_escaped(full):
    text = full._static_table(full.table())
    assert (
        "<script>alert" not in text
        and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
        and "b &amp; c" in text
        and "Small &lt;panel&gt;" in text
    )


def test_the_static_view_says_what_a_reader_of_the_numbers_must_know(full):
    full.state.notice = "2 of 5 cells <are> missing"
    full.state.result = Result(Provenance("toy", {}, 0), partial=True, warnings=("the hook moved nothing",))
    text = full._static_table(full.table())
    assert "2 of 5 cells &lt;are&gt; missing" in text and "cancelled" in text and "the hook moved nothing" in text


def test_a_long_static_table_is_cut_and_says_so(panel):
    panel.numbers = pd.DataFrame({"word": [f"w{i}" for i in range(100)], "value": range(100)})
    text = panel._static_table(panel.table())
    assert "100 rows, the first 30 shown" in text and "w29" in text and "w30" not in text


def test_the_static_view_is_refreshed_with_table_and_picture(full, kernel):
    full._shown = True
    full.keep_static_view()
    (table, table_id, updates), (picture, picture_id, _) = kernel
    assert updates and "b &amp; c" in table["text/html"]
    assert picture == {"text/plain": "three bars", "image/png": "cGljdHVyZQ=="} and table_id != picture_id


def test_changes_settle_into_one_refresh(full, kernel):
    full._shown = True
    for _ in range(20):
        full.settle()
    full._settling.join(20)
    assert len(kernel) == 2, "one table and one picture"


def test_while_it_runs_the_static_view_waits(full, kernel):
    full._shown = full.state.running = True
    full.keep_static_view()
    assert kernel == []


def test_without_a_browser_the_table_stands_alone(full, kernel, monkeypatch):
    monkeypatch.setattr(module.images, "small_picture", lambda figure: (b"", "no PNG was drawn"))
    full._shown = True
    full.keep_static_view()
    assert kernel[1][0] == {"text/plain": "no PNG was drawn"}


def test_a_broken_figure_does_not_take_the_panel_down(full, kernel, monkeypatch):
    monkeypatch.setattr(full, "figures", fails(RuntimeError("plotly is unwell")))
    full._shown = True
    full.keep_static_view()
    assert "the static view was not refreshed: RuntimeError: plotly is unwell" in full.state.notice
    full.work(lambda progress: 1, lambda _: None)
    assert full.wait(20).state.error == "" and not full.state.running


def test_a_panel_shown_twice_is_one_panel(full, kernel):
    full._ipython_display_()
    full._ipython_display_()
    assert len({display_id for _, display_id, _ in kernel if display_id}) == 2


def test_outside_a_notebook_nothing_is_drawn(full, monkeypatch):
    monkeypatch.setattr(module, "display", fails(AssertionError("displayed")))
    full.settle()
    full.keep_static_view()
    assert full.state.notice == ""


# ---- pieces ----


def test_a_drawn_figure_is_plain_output_and_small(full):
    area = plot_area()
    draw(area, full.figures()["bars"])
    (output,) = area.outputs
    assert output["data"]["text/plain"] == "three bars" and len(str(output["data"])) < 30_000
    assert output["data"]["application/vnd.plotly.v1+json"]["layout"]["paper_bgcolor"] == "rgba(0,0,0,0)"
    draw(area, None)
    assert area.outputs == ()


def test_controls_have_label_and_tooltip_and_sliders_wait_until_let_go():
    slider = labelled(widgets.IntSlider, "Layer", "which block")
    text = labelled(widgets.Text, "Prompt")
    assert (slider.description, slider.tooltip, slider.continuous_update) == (
        "Layer",
        "which block",
        False,
    ) and text.tooltip == "Prompt"


def test_state_and_controls_are_linked_both_ways_and_the_state_wins_at_first(panel):
    control = labelled(widgets.Text, "Notice", value="from the control")
    panel.state.notice = "from the state"
    link(panel.state, notice=control)
    assert control.value == "from the state"
    control.value = "typed"
    assert panel.state.notice == "typed"


def test_equal_tokens_get_different_labels():
    assert names(["a", "a"]) == ["0 a", "1 a"]


def test_states_are_not_shared():
    assert PanelState() is not PanelState() and Small().state is not Small().state


def test_progress_says_how_much_time_is_left(panel):
    bar = module._Bar(panel.bar, panel.stage)
    bar.update(0, 10, "cells")
    assert panel.stage.value == "0 of 10 cells"
    time.sleep(0.02)
    bar.update(5, 10, "cells")
    assert panel.stage.value.startswith("5 of 10 cells, ") and panel.stage.value.endswith(" s left")
