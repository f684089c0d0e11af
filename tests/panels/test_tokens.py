"""The tokens panel without a browser: drawn tokens, bars, tables and files hold one Result's numbers, for one prompt
and for two side by side.
"""

import threading

import numpy as np
import pytest
import torch
from models.families import FAMILIES
from redraw import assert_quick, settings

from workbench.core.errors import WorkbenchError
from workbench.datasets.bigram_backcopy import VOCABULARY
from workbench.models import load
from workbench.organisms.tokenizer import word_tokenizer
from workbench.panels import Tokens
from workbench.panels.tokens import TokensState
from workbench.primitives.read.predictions import predictions
from workbench.views import predictions as views

WORDS = "apple beach bread brick apple beach bread"
OTHER = "apple beach bread cabin apple beach bread"


@pytest.fixture(scope="module")
def model():
    return load("organism:induction")


@pytest.fixture(scope="module")
def made(model):
    """{row of ids: Result}, so that tests share their forwards."""
    return {}


@pytest.fixture
def compute(made):
    def cached(model, rows, **options):
        key = (model.name, *rows[0])
        if key not in made:
            made[key] = predictions(model, rows, **options)
        return made[key]

    return cached


@pytest.fixture
def panel(model, compute):
    return Tokens(model, WORDS, compute=compute).run().wait(60)


@pytest.fixture
def two(model, compute):
    return Tokens(model, WORDS, other_prompt=OTHER, compute=compute).run().wait(60)


def colours(strip) -> np.ndarray:
    return np.frombuffer(strip.values, np.float32)


def bars(panel) -> list:
    (output,) = panel.bars.outputs
    return output["data"]["application/vnd.plotly.v1+json"]["data"]


# ---- one prompt ----


def test_made_it_shows_controls_and_computes_nothing(model):
    panel = Tokens(model, WORDS, compute=lambda *_, **__: pytest.fail("computed"))
    assert (
        panel.prompt.value == WORDS
        and panel.state.result is None
        and panel.table().empty
        and panel.choices().empty
        and panel.figures() == {}
    )
    with pytest.raises(WorkbenchError, match="Tokens and predictions has nothing to save"):
        panel.save("x.html")


def test_every_control_has_a_label_and_a_tooltip(model):
    panel = Tokens(model)
    controls = (panel.prompt, panel.other_prompt, panel.chat, panel.colour, panel.top_k, panel.start, panel.stop)
    assert (
        all(control.description and control.tooltip for control in controls) and panel.top_k.continuous_update is False
    )


def test_tokens_ids_and_losses_are_drawn_and_tabled_alike(panel, model):
    strip, table = panel.strips[0], panel.table()
    ids = model.to_rows(WORDS)[0]
    assert strip.ids == ids == table.token_id.tolist() and strip.tokens == model.to_strings(ids) == table.token.tolist()
    by_hand = torch.nn.functional.cross_entropy(
        model.forward(torch.tensor([ids]))[0, :-1], torch.tensor(ids[1:]), reduction="none"
    )
    assert np.isnan(colours(strip)[0]) and np.allclose(colours(strip)[1:], by_hand, atol=1e-5), (
        "a token's colour is what that very token cost"
    )
    assert np.array_equal(colours(strip), table.loss.astype(np.float32), equal_nan=True)
    assert np.array_equal(panel.figures()["token_loss"].data[0].y, colours(strip), equal_nan=True)
    assert (strip.low, strip.unit, strip.signed) == (0, "nats", False) and strip.high == pytest.approx(
        np.nanmax(colours(strip))
    )


def test_after_a_run_the_last_position_is_looked_at(panel, model):
    assert panel.state.pos == panel.strips[0].selected == len(model.to_rows(WORDS)[0]) - 1
    assert not panel.choices().actual.any(), "nothing follows the last token"


def test_a_click_lists_and_draws_what_is_expected_there(panel, model):
    panel.strips[0].selected = 6
    ids = model.to_rows(WORDS)[0]
    probs = model.forward(torch.tensor([ids]))[0, 6].softmax(-1)
    choices = panel.choices()
    assert panel.state.pos == 6 and len(choices) == 10
    assert (
        np.allclose(choices.probability, probs.topk(10).values, atol=1e-6)
        and choices.token_id.tolist() == probs.topk(10).indices.tolist()
    )
    assert choices[choices.actual].token.tolist() == ["bread"]
    assert np.allclose(panel.figures()["next_tokens"].data[0].x, choices.probability)
    assert np.allclose(_decoded(bars(panel)[0]["x"]), choices.probability), "the live bars are the report's"
    assert all(f"<td>{i}</td>" in panel.lists[0].value for i in choices.token_id)


def _decoded(values) -> np.ndarray:
    """plotly writes arrays as base64 with their dtype."""
    import base64

    return (
        np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])
        if isinstance(values, dict)
        else np.asarray(values)
    )


def test_top_k_and_colour_redraw_without_a_new_run(panel):
    panel._compute = lambda *_, **__: pytest.fail("computed again")
    panel.top_k.value = 3
    assert len(panel.choices()) == 3 and len(_decoded(bars(panel)[0]["x"])) == 3
    before = panel.strips[0].version
    panel.colour.value = "entropy"
    assert panel.strips[0].version > before and np.allclose(colours(panel.strips[0]), panel.table().entropy)
    assert "token_entropy" in panel.figures() and "Entropy" in panel.legend.value


def test_a_shorter_prompt_after_a_longer_one(panel):
    panel.prompt.value = "apple beach"
    panel.run().wait(60)
    assert panel.state.error == "" and panel.state.pos == panel.strips[0].selected == 2 and len(panel.table()) == 3


def test_the_same_length_again_draws_the_new_prompt(panel):
    before = panel.choices()
    panel.prompt.value = OTHER.replace("bread", "candle")
    panel.run().wait(60)
    assert (
        panel.state.pos == 7
        and not panel.choices().equals(before)
        and np.allclose(_decoded(bars(panel)[0]["x"]), panel.choices().probability)
    )


def test_the_second_column_shows_only_in_a_comparison(panel):
    assert [c.layout.display for c in panel._columns.children] == [None, "none"]
    panel.other_prompt.value = OTHER
    panel.run().wait(60)
    assert panel._columns.children[1].layout.display == "" and len(panel.results) == 2
    panel.other_prompt.value = ""
    panel.run().wait(60)
    assert (
        panel._columns.children[1].layout.display == "none" and len(panel.results) == 1 and "side" not in panel.table()
    )


# ---- two prompts, two models ----


def test_two_prompts_stand_side_by_side_on_one_scale(two):
    assert [s.tokens for s in two.strips] == [["<bos>", *WORDS.split()], ["<bos>", *OTHER.split()]]
    assert (two.strips[0].low, two.strips[0].high) == (two.strips[1].low, two.strips[1].high)
    assert (
        two.table().side.unique().tolist() == ["first prompt", "second prompt"] == two.choices().side.unique().tolist()
    )
    assert len(bars(two)) == 2 and len(two.figures()["token_loss"].data) == 2
    assert "differ in 1 place: position 4 brick against position 4 cabin" in two.state.notice


def test_a_click_on_one_side_finds_the_same_token_on_the_other(model, compute):
    panel = Tokens(model, WORDS, other_prompt="cabin " + WORDS, compute=compute).run().wait(60)
    panel.strips[0].selected = 3
    assert (panel.state.pos, panel.state.other_pos) == (3, 4) and panel.strips[1].selected == 4
    panel.strips[1].selected = 2
    assert (panel.state.pos, panel.state.other_pos) == (1, 2) and panel.strips[0].selected == 1
    panel.strips[1].selected = 1
    assert (panel.state.pos, panel.state.other_pos) == (1, 1), "what only one side has moves only that side"


def test_the_change_of_the_loss_is_signed_and_blank_where_tokens_differ(two):
    two.colour.value = "change"
    first, second = two.state.result.data["loss"].values[0], two.state.other.data["loss"].values[0]
    for strip in two.strips:
        assert strip.signed and strip.low == -strip.high
        assert np.isnan(colours(strip)[[0, 4]]).all() and np.allclose(
            colours(strip)[5:], (second - first)[4:-1], atol=1e-6
        )
    assert np.array_equal(two.figures()["token_change"].data[1].y, colours(two.strips[1]), equal_nan=True)


def test_change_is_offered_only_in_a_comparison_and_falls_back(two):
    two.colour.value = "change"
    two.other_prompt.value = ""
    two.run().wait(60)
    assert (
        two.state.colour == "loss"
        and [v for _, v in two.colour.options] == ["loss", "entropy"]
        and two.state.error == ""
    )


def test_two_models_read_one_prompt(model, organism, compute):
    panel = Tokens(model, WORDS, other_model=organism, compute=compute).run().wait(60)
    assert (
        panel.state.error == ""
        and panel.state.notice == ""
        and panel.table().side.unique().tolist() == ["organism:induction", "organism:attention-sink"]
    )
    ids = organism.to_rows(WORDS)[0]
    by_hand = torch.nn.functional.cross_entropy(
        organism.forward(torch.tensor([ids]))[0, :-1], torch.tensor(ids[1:]), reduction="none"
    )
    assert np.allclose(colours(panel.strips[1])[1:], by_hand, atol=1e-5)
    assert "organism:attention-sink" in panel.heads[1].value


def test_models_that_tokenise_differently_say_where(model):
    torch.manual_seed(1)
    bare = load(FAMILIES["gpt2"](), tokenizer=word_tokenizer(VOCABULARY, add_bos=False))
    panel = Tokens(model, "apple beach", other_model=bare).run().wait(60)
    assert (
        panel.state.error == ""
        and "the two token lists differ in 1 place: position 0 <bos> against nothing" in panel.state.notice
    )
    assert "BOS in front" in panel.heads[0].value and "BOS none in front" in panel.heads[1].value
    assert (panel.state.pos, panel.state.other_pos) == (2, 1)


def test_the_same_words_under_other_ids_are_said(model):
    torch.manual_seed(1)
    turned = load(
        FAMILIES["gpt2"](), tokenizer=word_tokenizer([*VOCABULARY[:3], *reversed(VOCABULARY[3:])], add_bos=True)
    )
    panel = Tokens(model, "apple beach", other_model=turned).run().wait(60)
    assert "have other ids: the two vocabularies differ" in panel.state.notice


def test_comparing_a_prompt_with_itself_says_that_nothing_differs(model, compute):
    panel = Tokens(model, WORDS, other_prompt=WORDS, compute=compute).run().wait(60)
    assert "exactly the same predictions" in panel.state.notice


def test_model_and_prompt_at_once_is_said_to_confound(model, organism, compute):
    panel = Tokens(model, WORDS, other_model=organism, other_prompt=OTHER, compute=compute).run().wait(60)
    assert "model and prompt both differ" in panel.state.notice and "differ in 1 place" in panel.state.notice


# ---- kinds of models and prompts ----


def test_a_model_without_a_tokenizer_reads_ids(tiny_models):
    panel = Tokens(load(str(tiny_models["gemma2"])), "1 5, 7").run().wait(60)
    assert (
        panel.state.error == ""
        and panel.strips[0].tokens == ["1", "5", "7"]
        and "no tokenizer" in panel.prompt.tooltip
        and panel.chat.disabled
    )
    panel.prompt.value = "apple"
    assert "write token ids such as '1 5 7'" in panel.run().wait(60).state.error


def test_a_masked_model_says_how_it_was_asked():
    tokenizer = word_tokenizer(VOCABULARY, add_bos=True)
    tokenizer.mask_token = "tower"
    panel = Tokens(load(FAMILIES["bert_mlm"](), tokenizer=tokenizer), "lamp river lamp").run().wait(60)
    assert panel.state.error == "" and "predicted from both sides" in panel.state.notice
    assert np.isfinite(colours(panel.strips[0])).all() and panel.choices().actual.sum() <= 1
    assert "masked" in panel.figures()["next_tokens"].layout.title.text


def test_an_encoder_is_refused_in_one_sentence(tiny_models):
    panel = Tokens(load(str(tiny_models["bert"])), "lamp").run().wait(60)
    assert "is of kind encoder" in panel.state.error and not panel.state.running and panel.table().empty


def test_too_long_a_prompt_is_one_sentence_and_the_last_result_stays(panel):
    before = panel.table()
    panel.prompt.value = " ".join(["apple"] * 70)
    panel._compute = predictions
    panel.run().wait(60)
    assert "71 tokens, more than the context of organism:induction (64)" in panel.state.error and panel.table().equals(
        before
    )


def test_the_chat_template_is_used_only_where_ticked(tiny_models):
    model = load(str(tiny_models["llama"]))
    model.tokenizer.chat_template = (
        "{% for m in messages %}again {{ m.content }} {% endfor %}{% if add_generation_prompt %}echo{% endif %}"
    )
    panel = Tokens(model, "lamp river").run().wait(60)
    assert panel.strips[0].tokens == ["<bos>", "lamp", "river"] and not panel.chat.disabled
    panel.chat.value = True
    panel.run().wait(60)
    assert panel.strips[0].tokens[-4:] == ["again", "lamp", "river", "echo"]


def test_without_a_template_the_box_cannot_be_ticked(model):
    panel = Tokens(model)
    assert panel.chat.disabled and "No chat template" in panel.chat.tooltip


def test_tokens_that_look_like_markup_are_text(tiny_models):
    model = load(str(tiny_models["gemma2"]))
    model.to_strings = lambda ids: [f"<img src=x>{i}" for i in ids]
    panel = Tokens(model, "1 5 7").run().wait(60)
    assert panel.state.error == "" and "<img" not in panel.lists[0].value + panel.all_tokens[
        0
    ].value + panel._static_table(panel.table())
    assert "<img" not in panel.figures()["token_loss"].layout.xaxis.ticktext[0]


# ---- cancel, errors, files ----


def test_cancel_between_forwards_keeps_what_there_is(model):
    at_work, go_on = threading.Event(), threading.Event()

    def compute(given, rows, *, progress, **options):
        if at_work.is_set():
            progress.update(0, 1)
        result = predictions(given, rows, **options)
        at_work.set()
        assert go_on.wait(20)
        return result

    panel = Tokens(model, WORDS, other_prompt=OTHER, compute=compute).run()
    assert at_work.wait(20)
    panel.stop.click()
    go_on.set()
    panel.wait(20)
    assert (
        "cancelled" in panel.state.notice
        and panel.state.error == ""
        and panel.state.result is None
        and not panel.state.running
    )


def test_a_partial_result_is_shown_and_said_to_be(model, made, compute):
    import dataclasses

    whole = predictions(model, WORDS, top_k=20)
    half = dataclasses.replace(whole, data=whole.data.copy(deep=True), partial=True)
    half.data["loss"].values[:, 3:] = np.nan
    panel = Tokens(model, WORDS, compute=lambda *_, **__: half).run().wait(60)
    assert "cancelled: predictions are there up to where it stopped" in panel.state.notice and panel.strips[
        0
    ].tokens == ["<bos>", *WORDS.split()]


def test_an_error_leaves_no_hook_behind(model, compute):
    def broken(given, rows, **_):
        def fail(tensor, hook):
            raise RuntimeError("in the middle of a forward")

        given.forward(torch.tensor(rows), hook_fns=[("blocks.1.hook_resid_pre", fail)])

    panel = Tokens(model, WORDS, compute=broken).run().wait(60)
    assert panel.state.error == "RuntimeError: in the middle of a forward" and not any(
        p.fwd_hooks for p in model.live.hook_dict.values()
    )
    panel._compute = compute
    assert panel.run().wait(60).state.error == "" and len(panel.table()) == 8


def test_a_broken_drawing_is_said_and_mended_by_the_next(panel, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("cannot draw")

    monkeypatch.setattr(views, "token_values", broken)
    panel.prompt.value = OTHER
    assert panel.run().wait(60).state.error == "RuntimeError: cannot draw" and not panel.state.running
    monkeypatch.undo()
    monkeypatch.setattr("workbench.panels.panel.SAME_CHANGE", 0.0)  # changes follow each other faster here than by hand
    panel.top_k.value = 3
    assert panel.state.error == "" and panel.strips[0].tokens == ["<bos>", *OTHER.split()] and len(panel.choices()) == 3


def test_saved_it_opens_as_one_page_with_both_figures_and_the_numbers(two, tmp_path):
    text = two.save(tmp_path / "tokens.html").read_text(encoding="utf-8")
    row = two.table().iloc[6]
    assert f"<td>{row.token}</td>" in text and f"{row.loss:.5g}" in text and "differ in 1 place" in text
    assert 'id="token_loss"' in text and 'id="next_tokens"' in text and "<script src" not in text


def test_a_state_made_before_is_used(model, compute):
    panel = Tokens(model, state=TokensState(prompt=WORDS, top_k=4, colour="entropy"), compute=compute).run().wait(60)
    assert (
        len(panel.choices()) == 4
        and panel.colour.value == "entropy"
        and np.allclose(colours(panel.strips[0]), panel.table().entropy)
    )


def test_a_long_prompt_folds_only_its_first_rows_into_the_page(tiny_models):
    result = predictions(load(str(tiny_models["gemma2"])), [5] * 40)
    long = type(result)(result.provenance, result.data.isel(pos=np.arange(400) % 40).assign_coords(pos=range(400)))
    long.data["n_tokens"].values[:] = 400
    panel = Tokens(load(str(tiny_models["gemma2"])), "5", compute=lambda *_, **__: long).run().wait(60)
    assert (
        panel.state.error == ""
        and "the first 200 of 400" in panel.all_tokens[0].value
        and len(panel.table()) == 400 == len(panel.strips[0].tokens)
    )


@pytest.mark.parametrize("which", ["panel", "two"])
def test_a_redraw_of_computed_data_takes_less_than_a_tenth_of_a_second_of_work(which, request):
    panel = request.getfixturevalue(which)
    assert_quick(*settings(panel.strips[0], "selected", 1, 2, 3, 4))
    assert panel.choices().equals(_choices(panel))


def _choices(panel):
    """What the table of choices must be, from the plain views."""
    import pandas as pd

    tables = [
        views.choices(r, p, panel.state.top_k)
        for r, p in zip(panel.results, (panel.state.pos, panel.state.other_pos), strict=False)
    ]
    names = views.sides(panel.results)
    return pd.concat([t.assign(side=n) if n else t for t, n in zip(tables, names, strict=True)], ignore_index=True)
