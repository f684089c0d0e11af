"""The lens panel without a browser: what is drawn, listed and saved are the numbers of one Result; errors and
cancels leave a working panel.
"""

import threading

import numpy as np
import pytest
from redraw import assert_quick, settings

from workbench.core.errors import WorkbenchError
from workbench.models import load
from workbench.panels import Lens
from workbench.panels.lens import LensState
from workbench.primitives.read.lenses import logit_lens
from workbench.views import lenses as views

WORDS = "apple beach bread brick apple beach bread"


@pytest.fixture(scope="module")
def model():
    return load("organism:induction")


@pytest.fixture(scope="module")
def result(model):
    return logit_lens(model, model.to_rows(WORDS)[0])


@pytest.fixture
def panel(model, result):
    """Run on a prompt, with a compute that hands out the Result made once."""
    return Lens(model, WORDS, compute=lambda *_, **__: result).run().wait(60)


def cells(panel) -> np.ndarray:
    return np.frombuffer(panel.grid.values, np.float32).reshape(panel.grid.shape)


def test_made_it_shows_controls_and_computes_nothing(model):
    panel = Lens(model, WORDS, compute=lambda *_, **__: pytest.fail("computed"))
    assert panel.prompt.value == WORDS and not panel.state.running and panel.state.result is None
    assert panel.table().empty and panel.figures() == {} and panel.grid.shape == [0, 0]
    with pytest.raises(WorkbenchError, match="nothing to save"):
        panel.save("x.html")


def test_every_control_has_a_label_and_a_tooltip(model):
    panel = Lens(model)
    assert all(
        control.description and control.tooltip
        for control in (panel.prompt, panel.follow, panel.quantity, panel.start, panel.stop)
    )


def test_run_calls_the_plain_function_with_the_prompt(model, result):
    seen = {}

    def compute(given, tokens, targets=None):
        seen.update(model=given, tokens=tokens, targets=targets)
        return result

    panel = Lens(model, compute=compute)
    panel.prompt.value, panel.follow.value = "apple beach", " bread "
    panel.start.click()
    panel.wait(60)
    assert seen == {
        "model": model,
        "tokens": model.to_rows("apple beach")[0],
        "targets": model.to_rows("bread", bos=False)[0],
    }


def test_drawn_cells_the_figure_and_the_table_are_the_same_numbers(panel, result):
    figure = panel.figures()["logit_lens"]
    assert np.allclose(cells(panel), figure.data[0].z) and np.allclose(
        cells(panel), views.lens_values(result, "probability")
    )
    assert (
        panel.grid.texts
        == result.data["token"].isel(rank=0).values.ravel().tolist()
        == np.ravel(figure.data[0].text).tolist()
    )
    table = panel.table().pivot(index="layer", columns="pos", values="probability")
    assert np.allclose(cells(panel), table.values)
    assert panel.grid.row_labels[0] == "embed" and panel.grid.col_labels[1] == "1 apple" and not panel.grid.signed


def test_the_last_row_is_the_model(panel, model):
    import torch

    probs = model.forward(torch.tensor(model.to_rows(WORDS)))[0].softmax(-1)
    assert np.allclose(cells(panel)[-1], probs.max(-1).values.numpy(), atol=1e-5)


def test_the_colour_changes_picture_unit_and_figure_without_a_new_run(panel, result):
    panel._compute = lambda *_, **__: pytest.fail("computed again")
    before = panel.grid.version
    panel.quantity.value = "entropy"
    assert (
        panel.grid.version > before and panel.grid.unit == "nats" and np.allclose(cells(panel), result.data["entropy"])
    )
    assert np.allclose(panel.figures()["logit_lens"].data[0].z, cells(panel))


def test_a_click_lists_that_cells_tokens(panel, result):
    panel.grid.click(1, 4)
    assert (panel.state.layer, panel.state.pos) == (1, 4) and panel.table().equals(views.cell_table(result, 1, 4))
    assert "after block 1, position 4 brick" in panel.cell.value and all(
        str(t) in panel.cell.value for t in panel.table().token_id
    )


def test_another_run_forgets_the_cell(panel):
    panel.grid.click(1, 4)
    panel.run().wait(60)
    assert panel.state.layer == panel.state.pos == -1 and panel.cell.value == ""


def test_following_a_word_shows_its_rank(model):
    panel = Lens(model, WORDS, state=LensState(prompt=WORDS, follow="beach")).run().wait(60)
    assert (
        panel.state.error == ""
        and panel.state.quantity == panel.quantity.value == "rank"
        and panel.grid.unit == "log10(1 + rank)"
    )
    ranks = panel.state.result.data["target_rank"].isel(target=0).values
    assert np.allclose(cells(panel), np.log10(1 + ranks)) and ranks[-1, 5] == 0, (
        "after the second apple beach is on top"
    )
    panel.follow.value = ""
    panel.run().wait(60)
    assert panel.state.quantity == "probability" and "rank" not in [v for _, v in panel.quantity.options]


def test_a_word_of_several_tokens_cannot_be_followed_and_says_so(model):
    panel = Lens(model, WORDS, state=LensState(prompt=WORDS, follow="apple beach")).run().wait(60)
    assert panel.state.error == "'apple beach' is 2 tokens (apple|beach), and it must be one"


def test_an_error_leaves_the_panel_usable_and_no_hook_behind(model, result):
    def broken(given, tokens, targets=None):
        def fail(tensor, hook):
            raise RuntimeError("in the middle of a forward")

        import torch

        given.forward(torch.tensor([tokens]), hook_fns=[("blocks.1.hook_resid_pre", fail)])

    panel = Lens(model, WORDS, compute=broken).run().wait(60)
    assert panel.state.error == "RuntimeError: in the middle of a forward" and not panel.state.running
    assert not any(point.fwd_hooks for point in model.live.hook_dict.values())
    panel._compute = lambda *_, **__: result
    assert panel.run().wait(60).state.error == "" and panel.grid.shape == [3, 8]


def test_too_long_a_prompt_is_one_sentence(model):
    panel = Lens(model, " ".join(["apple"] * 70)).run().wait(60)
    assert "71 tokens are more than the context of organism:induction (64)" in panel.state.error


def test_a_model_that_is_no_language_model_is_one_sentence(tiny_models):
    panel = Lens(load(str(tiny_models["bert"])), "lamp").run().wait(60)
    assert "needs a causal-lm" in panel.state.error and not panel.state.running


def test_a_second_run_while_one_is_under_way_is_refused(model, result):
    go_on, calls = threading.Event(), []
    panel = Lens(model, WORDS, compute=lambda *_, **__: (calls.append(1), go_on.wait(20), result)[-1])
    panel.run().run()
    assert "still working" in panel.state.notice
    go_on.set()
    panel.wait(20)
    assert calls == [1] and panel.grid.shape == [3, 8]


def test_saved_it_opens_as_one_page_with_its_numbers(panel, tmp_path):
    panel.grid.click(2, 5)
    text = panel.save(tmp_path / "lens.html").read_text(encoding="utf-8")
    top = panel.table().iloc[0]
    assert (
        f"<td>{top.token}</td>" in text
        and f"{top.probability:.5g}" in text
        and "organism:induction" in text
        and "Logit lens" in text
    )


def test_a_redraw_of_computed_data_takes_less_than_a_tenth_of_a_second_of_work(panel):
    panel.quantity.value = "entropy"
    assert_quick(*settings(panel.quantity, "value", "probability", "entropy", "probability", "entropy"))


def test_another_colour_keeps_the_cell_that_is_listed(panel):
    panel.grid.click(1, 2)
    listed = panel.table()
    panel.state.quantity = "entropy"
    assert panel.grid.chosen == (1, 2) and panel.table().equals(listed) and listed["token"].iloc[0] in panel.cell.value
