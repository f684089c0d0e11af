"""The attention panel without a browser: state in, state out; what is drawn is the table; switched-off heads are
measured, never assumed.
"""

import threading

import numpy as np
import pytest

from workbench import panels
from workbench.core.errors import NotFired
from workbench.models import load
from workbench.panels.attention import Attention, AttentionState
from workbench.panels.head_grid import HeadGrid, toggled
from workbench.primitives.read import attention_patterns as ap
from workbench.views import attention as views

WORDS = "apple beach bread brick cabin candle chair cloud"
PROMPT = f"{WORDS} {WORDS}"


@pytest.fixture(scope="module")
def model():
    return load("organism:induction")


@pytest.fixture
def panel(model) -> Attention:
    return Attention(model, PROMPT).run().wait(30)


def n_hooks(model) -> int:
    return sum(len(point.fwd_hooks) for point in model.live.hook_dict.values())


def drawn_weights(panel) -> np.ndarray:
    return np.frombuffer(panel.large.values, np.float32).reshape(panel.large.shape)


# ---- idle, running, error ----


def test_nothing_is_computed_before_run(model):
    def refuse(*_, **__):
        raise AssertionError("computed in the constructor")

    panel = panels.Attention(model, PROMPT, compute=refuse, switch=refuse)
    assert (
        panel.state.result is None
        and panel.table().empty
        and panel.figures() == {}
        and panel.found.layout.display == "none"
    )
    assert not panel.state.running and panel.stop.disabled


def test_run_reads_the_patterns_in_another_thread_and_opens_the_strongest_head(model):
    seen = []

    def compute(model, tokens):
        seen.append(threading.current_thread())
        return ap.attention_patterns(model, tokens)

    panel = Attention(model, PROMPT, compute=compute).run().wait(30)
    assert (
        seen
        and seen[0] is not threading.main_thread()
        and panel.state.error == ""
        and panel.found.layout.display == "flex"
    )
    scores = panel.state.result.data["scores"].sel(score="first_token").values
    assert (panel.state.layer, panel.state.head) == tuple(
        int(i) for i in np.unravel_index(scores.argmax(), scores.shape)
    )


def test_while_it_runs_the_button_of_cancel_is_live_and_a_second_run_is_refused(model):
    go, entered = threading.Event(), threading.Event()

    def compute(model, tokens):
        entered.set()
        go.wait(20)
        return ap.attention_patterns(model, tokens)

    panel = Attention(model, PROMPT, compute=compute).run()
    assert entered.wait(20) and panel.state.running and not panel.stop.disabled
    panel.run()
    assert "still working" in panel.state.notice
    go.set()
    panel.wait(30)
    assert not panel.state.running and panel.state.result is not None


def test_errors_are_one_sentence_and_leave_no_hook(model, monkeypatch):
    before = n_hooks(model)

    def broken(*_):
        raise RuntimeError("in a hook")

    monkeypatch.setattr(ap, "pattern_scores", broken)
    panel = Attention(model, PROMPT).run().wait(30)
    assert panel.state.error == "RuntimeError: in a hook" and n_hooks(model) == before and panel.table().empty
    monkeypatch.undo()
    assert panel.run().wait(30).state.error == "" and not panel.table().empty


def test_a_model_without_a_tokenizer_says_what_would_work(tiny_models):
    panel = Attention(load(str(tiny_models["qwen2"])), PROMPT).run().wait(30)
    assert "tokenizer" in panel.state.error and "Traceback" not in panel.says.value


# ---- what is drawn ----


def test_drawn_bytes_are_the_table_and_the_figures(panel):
    result, state = panel.state.result, panel.state
    np.testing.assert_array_equal(
        np.frombuffer(panel.grid.patterns, np.uint8).reshape(2, 4, 17, 17), views.thumbnails(result)
    )
    np.testing.assert_allclose(np.frombuffer(panel.grid.scores, np.float32), panel.table()["first_token"])
    figure = panel.figures()["attention_pattern"]
    np.testing.assert_allclose(drawn_weights(panel), np.asarray(figure.data[0].z, np.float32))
    assert (panel.large.low, panel.large.high) == (figure.data[0].zmin, figure.data[0].zmax)
    np.testing.assert_allclose(panel.pattern_table().weight, drawn_weights(panel)[np.isfinite(drawn_weights(panel))])
    matrix = np.frombuffer(panel.tokens.matrix, np.float32).reshape(17, 17)
    np.testing.assert_array_equal(matrix, drawn_weights(panel))
    assert panel.tokens.tokens == ["<bos>", *PROMPT.split()] and f"L{state.layer}H{state.head}" in panel.hint.value


def test_a_click_shows_a_head_large_and_a_score_colours_all(panel):
    before = panel.grid.scores
    panel.state.score = "previous"
    assert panel.grid.scores != before and panel.grid.title == "Attention to the previous token"
    panel.grid.click(0, 3)
    assert (panel.state.layer, panel.state.head) == (0, 3) and panel.grid.selected == [0, 3]
    np.testing.assert_allclose(
        drawn_weights(panel)[5, 4], panel.state.result.data["pattern"].sel(layer=0, head=3)[5, 4]
    )
    assert "previous token 0.9" in panel.says_head.value
    panel.state.score = "entropy"
    assert panel.grid.unit == "nats" and panel.grid.high == pytest.approx(panel.table().entropy.max())


def test_controls_and_state_are_one(panel):
    panel.score.value = "induction"
    assert panel.state.score == "induction"
    panel.grid.switch(1, 2)
    assert panel.state.off == [[1, 2]]
    panel.state.off = []
    assert panel.grid.off == []
    assert toggled([[0, 1]], 0, 1) == [] and toggled([[1, 0]], 0, 1) == [[0, 1], [1, 0]]


def test_a_prompt_without_repeats_says_that_induction_has_no_value(model):
    panel = Attention(model, WORDS, state=AttentionState(prompt=WORDS, score="induction")).run().wait(30)
    assert (
        "no token is said twice" in panel.state.notice
        and panel.table().induction.isna().all()
        and panel.state.error == ""
    )
    assert len(panel.figures()) == 3


def test_long_prompts_are_pooled_with_a_notice(model):
    panel = Attention(model, PROMPT, compute=lambda m, t: ap.attention_patterns(m, t, max_pos=6)).run().wait(30)
    assert (
        "largest weight of 3 x 3" in panel.state.notice
        and panel.large.shape == [6, 6]
        and panel.tokens.tokens == ["<bos>", "bread", "candle", "apple", "brick", "chair"]
    )


@pytest.mark.parametrize("family", ["bert", "llama", "bert_classifier"])
def test_encoders_and_grouped_queries(family, tiny_models, model):
    loaded = load(str(tiny_models[family]))
    loaded.tokenizer = loaded.tokenizer or model.tokenizer
    panel = Attention(loaded, "apple beach bread apple").run().wait(30)
    assert panel.state.error == "" and panel.grid.shape[:2] == [2, 4]
    assert np.isnan(drawn_weights(panel)).any() == (family == "llama")
    panel.grid.switch(1, 1)
    panel.run_effect().wait(30)
    assert panel.state.error == "" and "1 replaced" in panel.says_off.value
    assert ("heads_off" in panel.figures()) == (family != "bert") and ("Mean loss" in panel.says_off.value) == (
        family == "llama"
    )


# ---- heads off ----


def test_heads_switched_off_are_measured_and_the_numbers_agree(panel, model):
    panel.grid.switch(0, 0)
    panel.grid.switch(0, 3)
    assert "Not measured yet" in panel.says_off.value and panel.state.effect is None
    panel.measure.click()
    panel.wait(30)
    wanted = ap.switch_heads_off(model, panel.state.result.spec["tokens"], [(0, 0), (0, 3)])
    np.testing.assert_array_equal(panel.effect_table().heads_off, wanted.data.probability[1])
    on, off = wanted.data.loss.mean("pos").values
    assert (
        f"{on:.3f}" in panel.says_off.value
        and f"{off:.3f}" in panel.says_off.value
        and "2 replaced" in panel.says_off.value
    )
    drawn = panel.bars.outputs[0]["data"]["application/vnd.plotly.v1+json"]["data"]
    assert len(drawn) == 2 and panel.figures()["heads_off"].data[1].y[0] == pytest.approx(
        float(wanted.data.probability[1, 0])
    )
    assert panel.table().query("off")[["layer", "head"]].to_numpy().tolist() == [[0, 0], [0, 3]]

    whole = panel.table()
    panel.state.run = "off"
    assert panel.table().induction[4:].mean() < 0.5 < whole.induction[4:].mean(), (
        "layer 1 no longer finds the earlier copy"
    )
    np.testing.assert_array_equal(
        np.frombuffer(panel.grid.patterns, np.uint8).reshape(2, 4, 17, 17), views.thumbnails(wanted)
    )


def test_another_choice_makes_the_measured_effect_void(panel):
    panel.grid.switch(0, 0)
    panel.run_effect().wait(30)
    panel.state.run = "off"
    assert panel.state.effect is not None
    panel.grid.switch(1, 1)
    assert (
        panel.state.effect is None
        and panel.state.run == "on"
        and panel.bars.outputs == ()
        and "Not measured yet" in panel.says_off.value
    )
    panel.run_effect().wait(30)
    panel.state.replace = "mean"
    assert panel.state.effect is None
    panel.clear.click()
    assert panel.state.off == [] and panel.measure.disabled


def test_a_choice_changed_while_it_is_measured_is_not_shown(model):
    go, entered = threading.Event(), threading.Event()

    def switch(*args, **options):
        entered.set()
        go.wait(20)
        return ap.switch_heads_off(*args, **options)

    panel = Attention(model, PROMPT, switch=switch).run().wait(30)
    panel.grid.switch(0, 0)
    panel.run_effect()
    assert entered.wait(20)
    panel.grid.switch(0, 1)
    go.set()
    panel.wait(30)
    assert panel.state.effect is None and "measure again" in panel.state.notice


def test_nothing_fired_is_an_error_and_nothing_moved_a_notice(model):
    def silent(*_, **__):
        raise NotFired("no hook at z fired in m, so this is the untouched run")

    panel = Attention(model, PROMPT, switch=silent).run().wait(30)
    panel.grid.switch(0, 0)
    assert panel.run_effect().wait(30).state.error.startswith("no hook at z fired") and panel.state.effect is None

    def idle(*args, **options):
        found = ap.switch_heads_off(*args, **options)
        return type(found)(
            found.provenance,
            found.data,
            warnings=("1 units were replaced at z and the output did not move: nothing downstream reads them",),
        )

    panel = Attention(model, PROMPT, switch=idle).run().wait(30)
    panel.grid.switch(0, 0)
    assert "did not move" in panel.run_effect().wait(30).state.notice


def test_measuring_before_a_run_says_what_is_missing(model):
    panel = Attention(model, PROMPT)
    panel.state.off = [[0, 0]]
    assert "run the prompt first" in panel.run_effect().state.notice


# ---- opened from elsewhere, saved ----


def test_another_panel_can_open_a_head(model):
    runs = []

    def compute(*args):
        runs.append(args)
        return ap.attention_patterns(*args)

    panel = Attention(model, compute=compute)
    panel.show_head(1, 2, PROMPT).wait(30)
    panel.show_head(0, 1).wait(30)
    assert (
        len(runs) == 1
        and (panel.state.layer, panel.state.head, panel.state.prompt) == (0, 1, PROMPT)
        and panel.grid.selected == [0, 1]
    )
    panel.show_head(0, 1, WORDS).wait(30)
    assert len(runs) == 2 and panel.state.result.data.sizes["query_pos"] == 9


def test_saved_page_holds_what_is_shown(panel, tmp_path):
    panel.grid.switch(0, 0)
    panel.run_effect().wait(30)
    page = panel.save(tmp_path / "attention.html").read_text("utf-8")
    assert all(
        f"id={name}" in page or f'id="{name}"' in page
        for name in ("attention_grid", "attention_pattern", "head_scores", "heads_off")
    )
    assert f"{panel.table().entropy[0]:.5g}" in page and panel.state.result.provenance.short()[:30] in page


def test_the_grid_widget_alone():
    grid = HeadGrid()
    grid.show(np.zeros((2, 3, 4, 4), np.uint8), np.zeros((2, 3)), title="t", unit="u", limits=(0.0, 1.0), alt="a")
    assert grid.shape == [2, 3, 4] and len(grid.patterns) == 96 and grid.version == 1
    assert "https://" not in grid._esm and "http://" not in grid._esm
