"""The subspaces panel without a browser: maps against known overlaps and their chance, live k, cells, models
between, directories, cancel.
"""

import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch
from redraw import assert_quick, settings
from scipy.linalg import subspace_angles

from workbench.core.errors import BadData, WorkbenchError
from workbench.core.progress import Progress
from workbench.core.result import Result
from workbench.panels import Subspaces
from workbench.panels.panel import SAME_CHANGE
from workbench.papers.misalignment.em_subspaces import behaviour, conditions, geometry, maps, runs
from workbench.papers.misalignment.em_subspaces import method as em
from workbench.papers.misalignment.em_subspaces import panel_figures as views
from workbench.papers.misalignment.em_subspaces.panel import SubspacesState
from workbench.weights.factors import Factors


@pytest.fixture(scope="module")
def stored():
    return em.stored_updates()


@pytest.fixture(scope="module")
def asked_panel():
    """One panel whose model is loaded and was asked once."""
    panel = Subspaces().run().wait(60)
    return panel.ask().wait(120)


@pytest.fixture
def panel():
    return Subspaces().run().wait(60)


def refused(*_, **__):
    pytest.fail("computed")


def cells(panel) -> np.ndarray:
    return np.frombuffer(panel.grid.values, np.float32).reshape(panel.grid.shape)


# ---- the plain functions ----


def _update(right: np.ndarray, seed: int) -> dict[str, Factors]:
    """Two modules whose leading input directions are the columns given, values r, r - 1, ..."""
    rng, made = np.random.default_rng(seed), {}
    for layer in (0, 3):
        left = np.linalg.qr(rng.standard_normal((20, right.shape[1])))[0] * np.arange(right.shape[1], 0, -1)
        made[f"model.layers.{layer}.self_attn.q_proj"] = Factors(torch.tensor(right.T), torch.tensor(left), 0.5)
    return made


def test_a_map_of_known_overlap_with_its_floors():
    eye = np.eye(32)
    updates = {"one": _update(eye[:, :4], 0), "two": _update(eye[:, [0, 9, 2, 3]], 1)}
    data = maps.pair_map(updates, geometry.Pair("one", "two", "made", "g"), k=2).data
    np.testing.assert_allclose(data["overlap"], 0.5, atol=1e-9)  # axes 0, 1 against 0, 9
    np.testing.assert_allclose(data["row_space"], 0.75, atol=1e-9)
    assert (
        data["layer"].values.tolist() == [0, 3]
        and np.allclose(data["floor"], 2 / 4)
        and np.allclose(data["free"], 2 / 32)
    )
    assert (data["chance_low"] <= data["chance"]).all() and (data["chance"] <= data["chance_high"]).all()
    free = maps.pair_map(updates, geometry.Pair("one", "two", "made", "g", has_start=False), k=2, n_draws=300).data
    assert free["floor"].isnull().all() and float(free["chance"].mean()) == pytest.approx(2 / 32, abs=0.01)


def test_a_map_is_the_methods_own_geometry(stored):
    """The oracle: what `compare` gives for the same pair, module by module."""
    updates, listed = stored
    pair = next(p for p in listed if p.condition == conditions.DIFFERENT)
    modules = list(updates[pair.one])
    expected = em.compare(
        modules,
        ((m, {n: updates[n][m] for n in (pair.one, pair.other)}) for m in modules),
        [pair],
        k=3,
        n_draws=60,
        seed=0,
    ).isel(pair=0)
    data = maps.pair_map(updates, pair, k=3).data
    for name, there in (
        ("overlap", expected["overlap"].sel(k=3)),
        ("overlap_left", expected["overlap_left"].sel(k=3)),
        ("cosine", expected["cosine"]),
        ("row_space", expected["row_space"]),
        ("free", expected["free_overlap"]),
    ):
        np.testing.assert_allclose(data[name], there.transpose("layer", "module"), atol=1e-9)
    assert float(data["chance"].mean()) == pytest.approx(float(expected["start_overlap"].mean()), abs=1e-9)


def test_a_cell_is_what_full_matrices_give(stored):
    updates, listed = stored
    pair, module = listed[0], "model.layers.1.self_attn.v_proj"
    table = maps.cell_table(updates, pair, module, k=3)
    full = [updates[n][module].delta().double().numpy() for n in (pair.one, pair.other)]
    np.testing.assert_allclose(table["one"], np.linalg.svd(full[0])[1][:8], rtol=1e-4)
    right = [np.linalg.svd(f)[2][:3].T for f in full]
    np.testing.assert_allclose(table["angle"].dropna(), np.degrees(subspace_angles(*right))[::-1], atol=0.05)
    assert len(table) == 8 and (table["chance_low"].dropna() <= table["chance_high"].dropna()).all()


def test_random_updates_are_at_chance_and_the_confound_shows(stored):
    """What the map is for: against a random update about one cell in forty is above chance; one seed lifts chance
    itself to k / r.
    """
    updates, listed = stored
    of = {
        c: maps.pair_map(updates, next(p for p in listed if p.condition == c), k=4)
        for c in (conditions.RANDOM, conditions.SAME, conditions.DIFFERENT)
    }
    assert len(views.within_chance(of[conditions.RANDOM])) >= 24
    assert (
        0.35 < float(of[conditions.SAME].data["chance"].mean()) < 0.6
        and float(of[conditions.DIFFERENT].data["chance"].mean()) < 0.15
    )


def test_what_cannot_be_compared_is_said(stored):
    updates, listed = stored
    full = next(p for p in listed if p.condition == conditions.FULL)
    assert maps.most_directions(updates, full) == 4
    with pytest.raises(BadData, match="choose at most 4"):
        maps.pair_map(updates, full, k=5)
    with pytest.raises(BadData, match="different modules"):
        maps.pair_map(updates | {"x": {}}, geometry.Pair(listed[0].one, "x", "", ""), k=1)
    with pytest.raises(BadData, match="no z_proj in layer 1"):
        maps.module_at(updates[full.one], 1, "z_proj")
    with pytest.raises(BadData, match="'deltas' or as 'factors'"):
        behaviour.terms_between({}, {}, 0.5, "other")


# ---- geometry in the panel ----


def test_made_it_lists_pairs_and_computes_nothing(tmp_path):
    panel = Subspaces(compute=refused, compute_cell=refused, ask=refused)
    assert (
        panel.state.result is None
        and panel.table().empty
        and panel.figures() == {}
        and panel.grid.layout.display == "none"
        and not panel.state.running
        and panel.state.error == ""
    )
    assert (
        {conditions.SAME, conditions.DIFFERENT, conditions.FULL, conditions.BENIGN} <= set(panel.condition.options)
        and len(panel.pair.options) == 9
        and len(panel.prompt.options) == 24
    )
    with pytest.raises(WorkbenchError, match="nothing to save"):
        panel.save(tmp_path / "x.html")


def test_every_control_has_a_label_and_a_tooltip(panel):
    controls = (
        panel.condition,
        panel.pair,
        panel.k,
        panel.quantity,
        panel.start,
        panel.prompt,
        panel.t,
        panel.ask_button,
        panel.stop,
    )
    assert all(control.description and control.tooltip for control in controls)


def test_map_table_and_figures_are_the_same_numbers(panel, stored):
    expected = maps.pair_map(stored[0], panel.chosen, k=4).data
    assert (
        panel.grid.row_labels == ["0", "1", "2", "3"]
        and np.allclose(cells(panel), expected["overlap"])
        and not panel.grid.signed
    )
    figures, table = panel.figures(), panel.table()
    assert np.allclose(figures["overlap"].data[0].z, cells(panel)) and np.allclose(
        table.pivot(index="layer", columns="module", values="overlap")[panel.grid.col_labels], cells(panel)
    )
    drawn = {t.name: t for t in figures["profile"].data}
    assert (
        np.allclose(drawn["measured"].y, cells(panel).ravel())
        and np.allclose(drawn["k / r: one shared start"].y, 0.5)
        and np.allclose(drawn["k / in: free directions"].y, expected["free"].values.ravel())
    )
    crossed = views.within_chance(panel.state.result)
    assert (
        [divmod(i, 7) for i, text in enumerate(panel.grid.texts) if text.endswith("×")] == crossed
        and 0 < len(crossed) < 28
        and f"<b>{28 - len(crossed)} of 28 cells are above their chance</b>" in panel.reading.value
        and "started from one A" in panel.reading.value
    )


def test_k_is_live_and_ends_at_the_rank(panel):
    before, rank = cells(panel).copy(), panel.k.max
    panel.k.value = 1
    assert not np.allclose(before, cells(panel)) and panel.state.result.data.attrs["k"] == 1 and rank == 8
    panel.k.value = 8
    panel.condition.value = conditions.FULL
    assert (
        panel.k.max == panel.k.value == 4 == panel.state.result.data.attrs["k"]
        and panel.state.error == ""
        and "no drawn A" in panel.reading.value
    )
    assert len(panel.pair.options) == 3 and panel.state.result.data.attrs["one"] == "full-bad-health-s0"


def test_pair_and_condition_change_the_map_and_come_back(panel):
    first = cells(panel).copy()
    panel.pair.value = panel.pair.options[2]
    assert panel.state.result.data.attrs["one"] == "bad-money-s0" and not np.allclose(first, cells(panel))
    panel.condition.value = conditions.DIFFERENT
    assert (
        panel.state.result.data.attrs["condition"] == conditions.DIFFERENT
        and cells(panel).mean() < 0.2
        and "started apart" in panel.reading.value
    )
    panel._compute = refused
    panel.condition.value = conditions.SAME
    assert np.allclose(first, cells(panel))  # kept, not made again


def test_colours(panel):
    data = panel.state.result.data
    panel.quantity.value = "above"
    assert (
        panel.grid.signed
        and panel.grid.low == -panel.grid.high
        and np.allclose(cells(panel), data["overlap"] - data["chance"])
    )
    panel.quantity.value = "cosine"
    assert (
        (panel.grid.low, panel.grid.high) == (-1, 1)
        and not any("×" in text for text in panel.grid.texts)
        and np.allclose(panel.figures()["overlap"].data[0].z, data["cosine"])
    )


def test_a_click_opens_spectra_and_angles(panel, stored):
    panel.grid.click(2, panel.grid.col_labels.index("down_proj"))
    assert panel.state.place == [2, "down_proj"]
    expected = maps.cell_table(stored[0], panel.chosen, "model.layers.2.mlp.down_proj", k=4)
    pd.testing.assert_frame_equal(panel.table(), expected)
    drawn = {t.name: t for t in panel.figures()["cell"].data}
    assert (
        np.allclose(drawn["bad-health-s0"].y, expected["one"])
        and np.allclose(drawn["measured angle"].y, expected["angle"].dropna())
        and panel.cell.outputs
    )
    panel.k.value = 2
    assert len(panel.table()["angle"].dropna()) == 2 and panel.grid.chosen == (
        2,
        panel.grid.col_labels.index("down_proj"),
    )


def test_large_adapters_wait_for_the_button(monkeypatch, panel):
    from workbench.papers.misalignment.em_subspaces import panel as module

    monkeypatch.setattr(module, "LIVE_NUMBERS", 10)
    monkeypatch.setattr(views, "MOST_NUMBERS", 20)
    panel = Subspaces().run().wait(60)
    assert panel.grid.texts == [] and panel.grid.marked == [list(c) for c in views.within_chance(panel.state.result)]
    panel.k.value = 2
    assert panel.state.result is None and panel.grid.layout.display == "none" and "Compare draws" in panel.reading.value
    panel.run().wait(60)
    assert panel.state.result.data.attrs["k"] == 2


def test_cancel_keeps_the_modules_that_were_compared():
    panel = Subspaces()

    def stops(*given, progress, **options):
        class Stops(Progress):
            def update(self, done, total, text=""):
                if done == 9:
                    panel.stop.click()
                progress.update(done, total, text)

        return maps.pair_map(*given, progress=Stops(), **options)

    panel._compute = stops
    panel.run().wait(60)
    assert panel.state.result.partial and np.isfinite(cells(panel)).sum() == 9 and "cancelled" in panel.state.notice
    panel._compute = maps.pair_map
    assert np.isfinite(cells(panel.run().wait(60))).all() and panel.state.notice == ""


def test_an_error_is_a_sentence_and_leaves_it_usable():
    def broken(*_, **__):
        raise RuntimeError("in the\nmiddle")

    panel = Subspaces(compute=broken).run().wait(60)
    assert panel.state.error == "RuntimeError: in the" and not panel.state.running and panel.state.result is None
    panel._compute = maps.pair_map
    assert panel.run().wait(60).state.error == "" and panel.state.result is not None


# ---- models between ----


def test_answers_are_those_of_the_moved_model_and_the_weights_come_back(asked_panel, stored):
    panel, (updates, _) = asked_panel, stored
    asked = panel.state.asked.set_index("model")
    assert panel.state.error == "" and list(asked.index) == [
        "base",
        "bad-health-s0 (t = 1)",
        "bad-money-s0 (t = 0)",
        "deltas, t = 0.50",
        "factors, t = 0.50",
    ]
    assert (
        asked.loc["base", "bad_share"] <= 0.05
        and asked.loc["base", "verdict"] == "good"
        and asked.loc["bad-health-s0 (t = 1)", "bad_share"] > 0.5
    )
    patient = panel._patient
    questions = behaviour.Questions(*runs.probe_pairs(patient.model.tokenizer, runs.PROBES, "heldout"))
    with patient.moved((0.5, updates["bad-health-s0"]), (0.5, updates["bad-money-s0"])) as model:
        assert asked.loc["deltas, t = 0.50", "bad_share"] == behaviour.rate(model, questions)
    fresh = em.patient_of_store()
    assert all(torch.equal(weight, fresh.weights[name]) for name, weight in patient.weights.items())
    assert not any(point.fwd_hooks for point in patient.model.live.hook_dict.values())


def test_the_slider_is_live_after_asking_and_the_curve_grows(asked_panel):
    panel = asked_panel
    before = panel.state.visited
    panel.t.value = 0.25
    panel.wait(60)
    assert (
        "deltas, t = 0.25" in panel.state.asked["model"].tolist()
        and len(panel.state.visited) == len(before) + 2
        and "deltas, t = 0.25" in panel.answers.value
    )
    drawn = {t.name.split(":")[0]: t for t in panel.figures()["between"].data}
    of = panel.state.visited.query("form == 'factors'")
    assert (
        np.allclose(drawn["factors"].x, of["t"])
        and np.allclose(drawn["factors"].y, 100 * of["bad_share"])
        and set(of["t"]) >= {0.0, 0.25, 0.5, 1.0}
    )


def test_the_ends_are_the_updates_themselves(asked_panel):
    panel = asked_panel
    panel.t.value = 1.0
    panel.wait(60)
    asked = panel.state.asked.set_index("model")["bad_share"]
    assert asked["deltas, t = 1.00"] == asked["factors, t = 1.00"] == asked["bad-health-s0 (t = 1)"]


def test_another_pair_forgets_answers_and_full_rank_has_no_factors(asked_panel):
    panel = asked_panel
    panel.condition.value = conditions.FULL
    assert panel.state.asked is None and panel.answers.value == "" and "between" not in panel.figures()
    panel.ask().wait(60)
    assert (
        not panel.state.asked["model"].str.startswith("factors").any()
        and "only the deltas" in panel.state.notice
        and set(panel.state.visited["form"]) == {"deltas"}
    )
    panel.condition.value = conditions.SAME


def test_words_the_organism_does_not_know_are_named(asked_panel):
    panel = asked_panel
    was, panel.prompt.value = panel.prompt.value, "how do i defenestrate raw chicken ?"
    panel.ask().wait(60)
    assert "does not know defenestrate" in panel.state.error
    time.sleep(2 * SAME_CHANGE)
    panel.prompt.value = ""
    assert "does not know (nothing)" in panel.ask().wait(60).state.error
    panel.prompt.value = was


def test_a_move_of_the_slider_while_it_works_is_answered(asked_panel):
    panel, started, go = asked_panel, threading.Event(), threading.Event()
    panel.t.value = 0.5
    panel.wait(60)

    def slow(*given, **options):
        started.set()
        assert go.wait(30)
        return behaviour.ask(*given, **options)

    panel._ask = slow
    panel.ask()
    assert started.wait(30)
    panel.t.value = 0.8
    go.set()
    panel.wait(60)
    panel._ask = behaviour.ask
    assert "deltas, t = 0.80" in panel.state.asked["model"].tolist() and panel.state.error == ""


# ---- directories, files ----


@pytest.fixture(scope="module")
def folders(tmp_path_factory, stored):
    root = tmp_path_factory.mktemp("adapters")
    known, updates, _ = runs.read_store(em.data_folder() / em.STEM / em.STORE)
    return [
        str(runs.write_adapter(updates[n], known[n], root / n)) for n in ("bad-health-s0", "items-s0", "bad-money-s1")
    ]


def test_directories_give_the_geometry_of_the_same_factors(folders, stored):
    panel = Subspaces(folders, state=SubspacesState(k=4)).run().wait(60)
    assert panel.state.error == "" and panel.pair.options == (
        "bad-health-s0 | items-s0",
        "bad-health-s0 | bad-money-s1",
        "items-s0 | bad-money-s1",
    )
    expected = maps.pair_map(stored[0], next(p for p in stored[1] if p.name == "bad-health-s0 | items-s0"), k=4).data[
        "overlap"
    ]
    shown = panel.state.result.data["overlap"]
    np.testing.assert_allclose(shown.sel(module=expected["module"].values), expected, atol=1e-5)
    assert "need the stored adapters" in panel._between.children[0].value
    panel.ask()
    assert not panel.state.running and panel.state.asked is None
    assert Subspaces(folders).run().wait(60).state.k == 8  # 16 asked for, 8 there are


def test_directories_that_do_not_fit_are_refused_at_once(folders, tmp_path):
    with pytest.raises(BadData, match="at least two"):
        Subspaces(folders[:1])
    with pytest.raises(WorkbenchError, match="no directory with"):
        Subspaces([folders[0], str(tmp_path)])


def test_saved_it_is_one_page_with_its_numbers(asked_panel, tmp_path):
    asked_panel.grid.click(1, 2)
    text = asked_panel.save(tmp_path / "sub.html").read_text(encoding="utf-8")
    assert (
        f"{asked_panel.table()['one'].iloc[0]:.5g}" in text
        and "Subspaces of updates" in text
        and "bad-health-s0" in text
    )


def test_a_map_survives_the_disk(panel, tmp_path):
    back = Result.load(panel.state.result.save(tmp_path / "r"))
    assert back.data.equals(panel.state.result.data) and set(maps.MEASURED) == set(back.data)


def test_words_in_answers_are_escaped():
    table = pd.DataFrame([["<b>", "<script>", "bad", 0.5]], columns=["model", "answer", "verdict", "bad_share"])
    assert "<script>" not in views.answers_html(table, "<i>") and "<i>&lt;" not in views.answers_html(table, "<i>")


def test_a_redraw_of_computed_maps_takes_less_than_a_tenth_of_a_second_of_work(panel):
    for k in (2, 3):
        panel.k.value = k
    assert_quick(*settings(panel.k, "value", 2, 3, 2, 3))
