"""The attribution panel without a browser: parts add up to the logit shown, tokens are chosen by text, a head opens
its attention.
"""

import threading

import numpy as np
import pytest
import torch

from workbench import panels
from workbench.core.result import Result
from workbench.models import load
from workbench.panels.attention import Attention
from workbench.panels.attribution import N_NEURONS, Attribution
from workbench.primitives.read.lenses import direct_logit_attribution
from workbench.views import attribution as views

PROMPT = "apple beach bread brick cabin candle chair cloud apple beach bread"


@pytest.fixture(scope="module")
def model():
    return load("organism:induction")


@pytest.fixture
def panel(model) -> Attribution:
    return Attribution(model, PROMPT, other="chair").run().wait(30)


def n_hooks(model) -> int:
    return sum(len(point.fwd_hooks) for point in model.live.hook_dict.values())


def drawn(panel) -> np.ndarray:
    return np.frombuffer(panel.grid.values, np.float32).reshape(panel.grid.shape)


# ---- idle, running, error ----


def test_nothing_is_computed_before_run(model):
    def refuse(*_, **__):
        raise AssertionError("computed in the constructor")

    panel = panels.Attribution(model, PROMPT, compute=refuse)
    assert (
        panel.table().empty and panel.figures() == {} and panel.opened is None and panel.found.layout.display == "none"
    )


def test_parts_add_up_to_the_models_own_logit(panel, model):
    row = model.to_rows(PROMPT)
    logits = model.forward(torch.tensor(row))[0, -1]
    brick, chair = (model.to_rows(word, bos=False)[0][0] for word in ("brick", "chair"))
    assert int(logits.argmax()) == brick, "the organism's own choice stands where no answer was given"
    wanted = float(logits[brick] - logits[chair])
    table = panel.table()
    assert table.query("split == 'component'").logits.sum() == pytest.approx(wanted, abs=1e-4)
    assert f"<b>{wanted:.3f}</b>" in panel.sums.value and panel.sums.value.count(f"{wanted:.3f}") == 2
    assert "&#x27;brick&#x27; minus that of &#x27;chair&#x27;" in panel.sums.value


def test_drawn_cells_are_the_table_and_the_figures(panel, model):
    heads = panel.table().query("split == 'head'")
    np.testing.assert_allclose(drawn(panel).ravel(), heads.logits)
    figures = panel.figures()
    assert list(figures) == ["attribution_components", "attribution_heads", "attribution_neurons"]
    np.testing.assert_allclose(np.asarray(figures["attribution_heads"].data[0].z, np.float32), drawn(panel))
    np.testing.assert_allclose(
        figures["attribution_components"].data[0].y, panel.table().query("split == 'component'").logits
    )
    live = panel.bars.outputs[0]["data"]["application/vnd.plotly.v1+json"]
    assert live["layout"]["height"] < figures["attribution_components"].layout.height
    neurons = panel.table().query("split == 'neuron'")
    assert len(neurons) == N_NEURONS and all(f"{value:+.3f}" in panel.neuron_table.value for value in neurons.logits)
    whole = direct_logit_attribution(
        model,
        model.to_rows(PROMPT),
        [int(panel.state.result.spec["answers"][0])],
        [int(panel.state.result.spec["others"][0])],
        by="head",
    )
    np.testing.assert_allclose(drawn(panel), views.head_map(whole))


def test_another_token_changes_everything(panel):
    before = panel.sums.value, drawn(panel).copy()
    panel.state.other = ""
    panel.state.answer = "cabin"
    panel.run().wait(30)
    assert (
        "logit of &#x27;cabin&#x27; after" in panel.sums.value
        and panel.sums.value != before[0]
        and not np.allclose(drawn(panel), before[1])
    )


def test_neurons_can_be_left_out(model):
    calls = []

    def compute(*args, **options):
        calls.append(options["by"])
        return direct_logit_attribution(*args, **options)

    panel = Attribution(model, PROMPT, compute=compute)
    panel.by_neuron.value = False
    panel.run().wait(30)
    assert (
        calls == ["component", "head"]
        and panel.neuron_table.value == ""
        and "attribution_neurons" not in panel.figures()
    )


def test_a_model_without_neurons_says_so_and_shows_the_rest(tiny_models):
    panel = Attribution(load(str(tiny_models["mixtral"])), PROMPT).run().wait(60)
    assert panel.state.error == "" and "no split by neuron" in panel.state.notice and drawn(panel).shape == (2, 4)


def test_warnings_of_the_result_are_shown(model):
    def softcapped(*args, **options):
        found = direct_logit_attribution(*args, **options)
        return Result(found.provenance, found.data, warnings=("parts are of the logit before a softcap",))

    assert "before a softcap" in Attribution(model, PROMPT, compute=softcapped).run().wait(30).state.notice


@pytest.mark.parametrize(
    ("answer", "other", "said"),
    [
        ("apple beach", "", "is 2 tokens"),
        ("nonsense", "", "not in the vocabulary"),
        ("brick", "brick", "both 'brick'"),
        ("brick", "apple beach", "is 2 tokens"),
    ],
    ids=["two tokens", "unknown", "the same", "other of two"],
)
def test_what_is_no_token_is_said_in_one_sentence(answer, other, said, model):
    panel = Attribution(model, PROMPT, answer, other).run().wait(30)
    assert said in panel.state.error and panel.table().empty and panel.found.layout.display == "none"


def test_a_token_that_wants_a_space_is_told_so(model, monkeypatch):
    panel = Attribution(model, PROMPT, "paris")
    monkeypatch.setattr(type(model), "to_rows", lambda self, text, bos=None: [[9]] if text == " paris" else [[9, 10]])
    assert "' paris', with a space in front, is one" in panel.run().wait(30).state.error


def test_an_encoder_has_no_next_token(tiny_models, model):
    assert "needs a causal-lm" in Attribution(load(str(tiny_models["bert"])), PROMPT).run().wait(30).state.error


def test_errors_and_cancels_leave_no_hook_and_no_half_result(model):
    before = n_hooks(model)

    def broken(model, rows, answers, others=None, *, by):
        with model.alone(), model.hooked([(model.hook_name("z", 0), lambda tensor, hook: 1 / 0)]):
            model.forward(torch.tensor(rows))

    panel = Attribution(model, PROMPT, compute=broken).run().wait(30)
    assert panel.state.error.startswith("ZeroDivisionError") and n_hooks(model) == before

    reached, go, calls = threading.Event(), threading.Event(), []

    def slow(*args, **options):
        calls.append(options["by"])
        reached.set()
        go.wait(20)
        return direct_logit_attribution(*args, **options)

    panel = Attribution(model, PROMPT, compute=slow).run()
    assert reached.wait(20) and panel.state.running and not panel.stop.disabled
    panel.stop.click()
    go.set()
    panel.wait(30)
    assert calls == ["component"], "a cancel stops before the next split"
    assert (
        "cancelled after" in panel.state.notice
        and panel.state.result is None
        and panel.state.error == ""
        and n_hooks(model) == before
    )


# ---- descending to a head ----


def test_a_click_opens_the_heads_attention_beneath(panel):
    panel.prompt.value = "something typed but not run"
    panel.grid.click(1, 2)
    opened = panel.opened.wait(30)
    assert panel.inside.children == (opened,) and (panel.state.layer, panel.state.head) == (1, 2) == (
        opened.state.layer,
        opened.state.head,
    )
    assert (
        opened.state.prompt == PROMPT and opened.state.result.data.sizes["query_pos"] == 12 and opened.state.error == ""
    )
    kept = opened.state.result
    panel.grid.click(0, 1)
    assert panel.opened is opened and opened.wait(30).state.result is kept and opened.grid.selected == [0, 1]


def test_a_click_goes_to_the_panel_that_was_given(model):
    attention = Attention(model)
    panel = Attribution(model, PROMPT, attention=attention).run().wait(30)
    panel.grid.click(0, 3)
    attention.wait(30)
    assert (
        panel.opened is attention
        and panel.inside.children == ()
        and (attention.state.layer, attention.state.head) == (0, 3)
    )
    assert attention.state.result is not None


def test_a_new_run_forgets_the_head_that_was_clicked(panel):
    panel.grid.click(1, 2)
    panel.run().wait(30)
    assert (panel.state.layer, panel.state.head) == (-1, -1) and panel.grid.selected == []


def test_saved_page_holds_what_is_shown(panel, tmp_path):
    page = panel.save(tmp_path / "attribution.html").read_text("utf-8")
    assert (
        "attribution_neurons" in page
        and f"{panel.table().logits[0]:.5g}" in page
        and panel.state.result.provenance.short()[:30] in page
    )
