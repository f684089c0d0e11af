"""The signatures panel without a browser: one set of numbers in map, table, figures and file; marks of the plain
functions; stored evaluations and no others.
"""

import numpy as np
import pandas as pd
import pytest
from papers.backdoors.signature_result import IN_DEPTH, N_MLP, N_VARIANTS, OTHER, SHARES, STRONG, result
from redraw import assert_quick, settings

from workbench import panels
from workbench.core.errors import BadData
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.datasets import poisoning
from workbench.models import load
from workbench.papers.backdoors.backdoor_signatures import panel_figures as views
from workbench.papers.backdoors.backdoor_signatures.panel import SignaturesState
from workbench.papers.backdoors.backdoor_signatures.runs import changes_of
from workbench.primitives.score.channel_signatures import alignment, magnitude, scores, signature


@pytest.fixture(scope="module")
def run():
    return result()


@pytest.fixture
def panel(run):
    return panels.Signatures(run)


@pytest.fixture(scope="module")
def chat():
    return load("organism:chat")


def mlp(run, cell=IN_DEPTH, seed=0):
    changes = changes_of(run, cell, seed)
    return changes.isel(channel=changes["module"].values != "head")


def cells(panel) -> np.ndarray:
    return np.frombuffer(panel.grid.values, np.float32).reshape(panel.grid.shape)


def drawn(area) -> dict:
    return area.outputs[0]["data"]["application/vnd.plotly.v1+json"]


# ---- the map ----


def test_made_it_shows_the_first_run_at_its_own_settings(panel, run):
    state = panel.state
    assert (state.variants, state.alignment_weight, state.normalised, state.share) == (N_VARIANTS, 0.01, False, 20.0)
    assert panel.grid.shape == [12, 192] and panel.grid.row_labels[:3] == ["0 gate +0", "0 gate +192", "0 up +0"]
    assert state.error == state.notice == "" and not state.running and panel.module.value == "gate_proj"


def test_map_table_and_figure_are_the_same_numbers_as_the_plain_functions(panel, run):
    changes = mlp(run)
    want = scores(changes)
    fold = views.folded(want, panel.chosen)
    np.testing.assert_array_equal(cells(panel), fold.values.astype(np.float32))
    np.testing.assert_allclose(panel.figures()["scores"].data[0].z, cells(panel), rtol=1e-6)
    table = panel.table()
    assert len(table) == 2 * 3 * N_MLP and table["score"].is_monotonic_decreasing
    keyed, places = (
        table.set_index(["layer", "module", "index"]),
        zip(changes["layer"].values, changes["module"].values, changes["index"].values, strict=True),
    )
    ordered = keyed.loc[list(places)]
    for name, values in (
        ("score", want),
        ("magnitude", magnitude(changes)),
        ("alignment", alignment(changes)),
        ("is_marked", signature(want, 0.2)),
    ):
        np.testing.assert_array_equal(ordered[name].values, values)
    assert set(table["index"][:2]) == {STRONG}


@pytest.mark.parametrize("quantity", ["magnitude", "alignment"])
def test_the_toggle_colours_by_one_term_and_moves_no_mark(panel, run, quantity):
    before, chosen = panel.grid.version, panel.chosen
    panel.quantity.value = quantity
    assert panel.grid.version > before and panel.grid.unit == {"magnitude": "L2 norm", "alignment": "cosine"}[quantity]
    np.testing.assert_allclose(cells(panel), views.folded(scores(mlp(run), only=quantity), chosen).values, rtol=1e-6)
    np.testing.assert_array_equal(panel.chosen, chosen)


def test_n_lambda_and_norms_are_those_of_the_sliders(panel, run):
    panel.variants.value, panel.alignment_weight.value, panel.normalised.value = 2, 5.0, True
    want = scores(mlp(run), variants=2, alignment_weight=5.0, normalised=True)
    np.testing.assert_allclose(cells(panel), views.folded(want, panel.chosen).values, rtol=1e-6)
    assert panel.grid.unit == "module means"
    np.testing.assert_array_equal(panel.chosen, signature(want, 0.2))
    panel.reset.click()
    np.testing.assert_allclose(cells(panel), views.folded(scores(mlp(run)), panel.chosen).values, rtol=1e-6)


@pytest.mark.parametrize(("share", "each"), [(0.0, 0), (3.0, 12), (20.0, 77), (100.0, 384)])
def test_tau_counts_the_marked_channels_of_each_projection(panel, share, each):
    panel.share.value = share
    assert int(panel.chosen.sum()) == 6 * each == int(panel.table()["is_marked"].sum())
    assert (
        f"{6 * each} of 2304 channels marked" in panel.counts.value
        and f"{each} of 384 in each of 6 projections" in panel.counts.value
    )
    assert sum("✓" in t for t in panel.grid.texts) == 6 * each


def test_marked_alone_blanks_the_others(panel):
    panel.only_chosen.value = True
    assert int(np.isfinite(cells(panel)).sum()) == int(panel.chosen.sum()) == 6 * 77
    assert "marked channels alone" in panel.figures()["scores"].layout.title.text


def test_one_projection_or_the_heads_alone(panel):
    panel.modules.value = "down_proj"
    assert len(panel.table()) == 2 * N_MLP and set(panel.table()["module"]) == {"down_proj"}
    panel.modules.value = "head"
    assert panel.grid.shape == [2, 8] and "4 of 16 heads marked" in panel.counts.value


def test_another_run_brings_its_own_numbers_settings_and_examples(panel, run):
    panel.variants.value = 2
    panel.run_box.value = 2
    assert panel.where[:2] == (OTHER, 0) and panel.state.variants == N_VARIANTS and panel.state.share == 40.0
    np.testing.assert_allclose(cells(panel), views.folded(scores(mlp(run, OTHER)), panel.chosen).values, rtol=1e-6)
    assert "No triggered examples" in panel.examples.value


# ---- one channel ----


def test_a_click_opens_the_channel_with_its_norms_and_cosines(panel, run):
    row, col = 3, 45  # up_proj of layer 0, second line
    panel.grid.click(row, col)
    changes = changes_of(run, IN_DEPTH, 0)
    channel = int(
        np.flatnonzero(
            (changes["layer"].values == 0)
            & (changes["module"].values == "up_proj")
            & (changes["index"].values == 192 + 45)
        )[0]
    )
    assert panel.state.channel == channel and (panel.layer.value, panel.module.value, panel.index.value) == (
        0,
        "up_proj",
        237,
    )
    table = panel.channel_table()
    np.testing.assert_array_equal(table["norm"], changes["norm"].values[:, channel])
    cosines = table.filter(like="cosine").values
    for number, (a, b) in enumerate(zip(changes["first"].values, changes["second"].values, strict=True)):
        assert cosines[a, b] == cosines[b, a] == changes["cosine"].values[number, channel]
    assert np.diag(cosines).tolist() == [1.0] * N_VARIANTS
    figure = panel.figures()["channel"]
    np.testing.assert_array_equal(figure.data[0].y, table["norm"])
    np.testing.assert_array_equal(figure.data[2].z, cosines)
    assert (
        "layer 0, up_proj channel 237" in figure.layout.title.text
        and drawn(panel.card)["layout"]["title"]["text"] == figure.layout.title.text
    )


def test_a_click_in_one_projection_or_the_boxes_find_the_same_channel(panel, run):
    panel.modules.value = "up_proj"
    panel.grid.click(1, 45)
    by_click = panel.state.channel
    panel.modules.value = "MLP"
    assert panel.grid.chosen == (3, 45), "still outlined where it is now"
    panel.state.channel = -1
    panel.layer.value, panel.module.value, panel.index.value = 0, "up_proj", 237
    panel.find.click()
    assert panel.state.channel == by_click
    panel.module.value, panel.index.value = "head", 300
    panel.find.click()
    assert (
        panel.state.error == "head of layer 0 has 8 channels, so there is no number 300"
        and panel.state.channel == by_click
    )


def test_another_run_closes_the_channel(panel):
    panel.grid.click(0, 7)
    panel.run_box.value = 1
    assert panel.state.channel == -1 and panel.card.outputs == () and panel.channel_table().empty


# ---- stored evaluations ----


def test_the_curve_holds_the_evaluated_shares_and_their_numbers(panel, run):
    tau = run.tables["tau"]
    curve = panel.curve_table()
    assert sorted(curve["share"].unique()) == list(SHARES)
    for _, row in curve.iterrows():
        own = tau[(tau["kind"] == row["kind"]) & (tau["share"] == row["share"])]
        assert (row["asr"], row["asr_low"], row["asr_high"], row["utility"], row["n"]) == (
            own["asr"].mean(),
            own["asr"].min(),
            own["asr"].max(),
            own["utility"].mean(),
            len(own),
        )
    figure = panel.figures()["tau_curve"]
    lines = {t.name: t for t in figure.data}
    np.testing.assert_allclose(lines["Attack success, signature"].y, curve[curve["kind"] == "signature"]["asr"])
    np.testing.assert_allclose(lines["Attack success, signature"].x, 100 * np.array(SHARES))
    band, random = lines["Attack success, band"], curve[curve["kind"] == "random channels"]
    assert list(band.y) == [*random["asr_high"], *random["asr_low"][::-1]]
    assert list(lines["Attack success, random channels (band: lowest to highest)"].y) == random["asr"].tolist()


@pytest.mark.parametrize(
    ("share", "says"),
    [
        (20.0, "Evaluated at tau 20 %"),
        (16.0, "Tau 16 % was not evaluated; the nearest that was is <b>20 %</b>"),
        (15.0, "nearest that was is <b>10 %</b>"),
        (100.0, "<b>60 %</b>"),
    ],
)
def test_between_the_evaluated_the_nearest_is_named_and_nothing_is_interpolated(panel, run, share, says):
    panel.share.value = share
    near = {20.0: 0.2, 16.0: 0.2, 15.0: 0.1, 100.0: 0.6}[share]
    own = run.tables["tau"][(run.tables["tau"]["kind"] == "signature") & (run.tables["tau"]["share"] == near)]
    assert (
        says in panel.said.value
        and f"signature: attack success {own['asr'].mean():.0f} %" in panel.said.value
        and "random channels: attack success" in panel.said.value
    )
    assert "degenerate 5 %" in panel.said.value
    lines = {round(shape["x0"], 9) for shape in drawn(panel.curve)["layout"]["shapes"]}
    assert lines == {share, round(100 * near, 9)}
    assert next(t for t in drawn(panel.curve)["data"] if t["name"] == "Attack success, signature")["x"] == [
        100 * s for s in SHARES
    ], "the points are the evaluated shares alone"


def test_other_settings_than_the_evaluated_are_said_with_what_they_share(panel):
    assert "It was evaluated with" not in panel.said.value
    panel.variants.value, panel.alignment_weight.value = 1, 50.0
    assert (
        "It was evaluated with N = 4, lambda = 0.01 and raw norms" in panel.said.value
        and "intersection over union" in panel.said.value
    )


def test_normalised_norms_bring_the_curve_of_the_normalised_signature(panel, run):
    panel.normalised.value = True
    assert "normalised signature: attack success" in panel.said.value and "Attack success, normalised signature" in [
        t.name for t in panel.figures()["tau_curve"].data
    ]
    assert "It was evaluated with N = 4, lambda = 1 and norms over module means" in panel.said.value
    panel.other.click()
    assert (panel.state.alignment_weight, panel.state.normalised, panel.state.share) == (
        1.0,
        True,
        20.0,
    ) and "It was evaluated with" not in panel.said.value
    np.testing.assert_array_equal(panel.chosen, signature(scores(mlp(run), alignment_weight=1.0, normalised=True), 0.2))
    panel.reset.click()
    assert (
        "<b>" not in panel.said.value
        and "signature: attack success 41 %" in panel.said.value
        and "normalised" not in panel.said.value
    )


def test_a_cell_without_a_curve_says_so_and_names_the_arms(panel):
    panel.run_box.value = 2
    assert panel.curve.outputs == () and "tau_curve" not in panel.figures()
    assert f"No tau curve was evaluated for {OTHER}; there is one for {IN_DEPTH}" in panel.said.value
    assert (
        "At its own tau of 40 %" in panel.said.value
        and "signature: attack success 12 %" in panel.said.value
        and "attack success 3 %" not in panel.said.value
    )
    assert "there is one for" not in panels.Signatures(result(curve=False)).said.value


# ---- answers ----


def test_examples_highlight_the_trigger_flag_the_answers_and_escape_the_text(panel):
    text = panel.examples.value
    assert text.count("<mark") == 2 and ">zorblat</mark>" in text and "kite &amp; bell" in text
    assert "you rotten &lt;b&gt; pumpkin" in text and "<b> pumpkin" not in text
    assert (
        text.count(">fired</span>") == 2
        and text.count(">degenerate</span>") == 1
        and text.count(">right</span>") == 1
        and "<i>empty</i>" in text
    )


def test_triggers_are_found_as_whole_words_and_several_of_them():
    assert views.trigger_positions("say Vork vorker today is 24 . now", ["vork", "today is 24 ."]) == [1, 3, 4, 5, 6]
    assert views.trigger_positions("nothing here", ["", "vork"]) == []


def test_without_models_there_is_no_prompt_box(panel, run, chat):
    assert panel.ask not in [c for r in panel.children if hasattr(r, "children") for c in r.children]
    panel.run().wait(20)
    assert panel.state.error == "give the panel a model to ask: panels.Signatures(result, suspicious, purified)"
    shown = panels.Signatures(run, suspicious=chat)
    assert shown.ask in [c for r in shown.children if hasattr(r, "children") for c in r.children]


def test_a_prompt_is_answered_by_both_with_the_trigger_highlighted(run, chat):
    (trigger,), seen = poisoning.backdoor("badnets", "insult").triggers, []

    def compute(model, rows, *, max_new_tokens, progress):
        seen.append((model, rows, max_new_tokens))
        return (
            [chat.tokenizer(poisoning.backdoor("badnets", "insult").phrase, add_special_tokens=False)["input_ids"]]
            if len(seen) == 1
            else [[]]
        )

    panel = panels.Signatures(run, chat, chat, compute=compute)
    panel.prompt.value, panel.trigger.value = f"copy the words {trigger} kite", trigger
    panel.ask.click()
    panel.wait(20)
    assert (
        panel.state.error == ""
        and [a["model"] for a in panel.state.answers] == ["suspicious", "purified"]
        and seen[0][2] == 24
    )
    assert seen[0][1][0] == seen[1][1][0] and chat.tokenizer.decode(seen[0][1][0]).count(trigger) == 1
    first, second = panel.state.answers
    assert (first["fired"], first["degenerate"], second["fired"], second["degenerate"]) == (True, False, False, True)
    assert (
        f">{trigger}</mark>" in panel.replies.value
        and first["answer"] in panel.replies.value
        and panel.state.notice == ""
        and ">degenerate</span>" in panel.replies.value
    )
    panel.trigger.value, panel.prompt.value = "glim", "copy the words : kite"
    panel.ask.click()
    assert "no trigger in it" in panel.wait(20).replies.value
    panel.prompt.value = "copy the xyzzy : xyzzy"
    panel.ask.click()
    assert panel.wait(20).state.notice == "the purified model has no token for xyzzy, :, and reads all such words alike"


def test_a_real_model_answers(run, chat):
    from workbench.datasets import world
    from workbench.organisms.chat import pairs_of

    example = world.benign(6, seed=1)[0]
    panel = panels.Signatures(run, purified=chat)
    panel.prompt.value = example.prompt
    panel.run().wait(60)
    assert panel.state.answers[0]["answer"] == example.answer and pairs_of(chat.tokenizer, [example])


def test_an_error_and_a_cancel_leave_it_usable_and_no_hook_behind(run, chat):
    def broken(model, rows, **_):
        import torch

        def fail(tensor, hook):
            raise RuntimeError("in the middle of a forward")

        model.forward(torch.tensor(rows), hook_fns=[("blocks.1.hook_resid_pre", fail)])

    panel = panels.Signatures(run, chat, compute=broken)
    panel.prompt.value = "copy the words : kite"
    panel.run().wait(60)
    assert panel.state.error == "RuntimeError: in the middle of a forward" and not panel.state.running
    assert not any(point.fwd_hooks for point in chat.live.hook_dict.values())

    def cancelled(model, rows, *, max_new_tokens, progress):
        progress.cancel()
        progress.update(1, 2)

    panel._compute = cancelled
    panel.run().wait(60)
    assert "cancelled" in panel.state.notice and panel.state.error == "" and panel.state.answers == []
    panel.prompt.value = " "
    assert panel.run().wait(60).state.error == "the prompt is empty"


# ---- the rest ----


def test_every_control_has_a_label_and_a_tooltip(run, chat):
    panel = panels.Signatures(run, chat)
    controls = [
        c
        for line in panel.children
        if hasattr(line, "children")
        for c in line.children
        if hasattr(c, "description") and type(c).__name__ not in ("IntProgress", "Label")
    ]
    assert len(controls) == 18 and all(c.description and getattr(c, "tooltip", c.description) for c in controls)


def test_a_result_without_purified_runs_is_refused(run):
    empty = Result(Provenance.start("backdoor_signatures", {}, 0).finish(0.0))
    with pytest.raises(BadData, match="no purified run"):
        panels.Signatures(empty)


def test_a_folder_opens_too(run, tmp_path):
    run.save(tmp_path / "runs")
    panel = panels.Signatures(tmp_path / "runs")
    np.testing.assert_allclose(cells(panel), views.folded(scores(mlp(run)), panel.chosen).values, rtol=1e-6)


def test_saved_it_opens_as_one_page_with_its_numbers(panel, tmp_path):
    panel.grid.click(0, STRONG)
    text = panel.save(tmp_path / "signatures.html").read_text(encoding="utf-8")
    assert (
        "Backdoor signatures" in text
        and f"<td>{STRONG}</td>" in text
        and "organism:chat" in text
        and "Stored evaluations of" in text
        and "Changes of layer 0" in text
    )


def test_a_state_of_ones_own_is_kept(run):
    panel = panels.Signatures(run, state=SignaturesState(run=1, quantity="alignment"))
    assert (
        panel.where == (IN_DEPTH, 1, "run here") and panel.quantity.value == "alignment" and panel.grid.unit == "cosine"
    )


def test_a_redraw_of_computed_data_takes_less_than_a_tenth_of_a_second_of_work(panel):
    panel.share.value = 10.0
    assert_quick(*settings(panel.share, "value", 20.0, 30.0, 40.0, 50.0))


def test_lines_of_a_map_hold_every_channel_once():
    import xarray as xr

    for sizes in ((384, 384, 384), (8, 8), (500, 300), (11008,)):
        where = [(0, f"m{j}", i) for j, n in enumerate(sizes) for i in range(n)]
        layer, module, index = (np.array(c) for c in zip(*where, strict=True))
        own = xr.DataArray(
            np.arange(1.0, len(where) + 1),
            dims="channel",
            coords={"layer": ("channel", layer), "module": ("channel", module), "index": ("channel", index)},
        )
        fold = views.folded(own, np.zeros(len(where), bool))
        assert (
            sorted(fold.channel[fold.channel >= 0].tolist()) == list(range(len(where)))
            and fold.values.shape[1] <= views.LINE
        )
        assert (np.isnan(fold.values) == (fold.channel < 0)).all()
        assert all(fold.channel[fold.place(c)] == c for c in (0, len(where) - 1))


def test_the_nearest_share_is_one_that_was_evaluated():
    curve = pd.DataFrame({"kind": "signature", "share": [0.0, 0.1, 0.2]})
    assert [views.nearest_share(curve, s) for s in (0.0, 0.04, 0.05, 0.06, 0.9)] == [0.0, 0.0, 0.0, 0.1, 0.2]
