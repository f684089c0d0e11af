"""The circuit graph without a browser: state drives what is drawn, what is drawn is the table and the figure,
faithfulness is of what is shown, and the file of a layout comes back as it was or is refused with the reason."""

import json
import threading

import numpy as np
import pytest
import torch
import xarray as xr

from workbench import panels
from workbench.core.errors import BadData, WorkbenchError
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.models import load
from workbench.panels import graph_file
from workbench.primitives.explain.attribution import attribute_edges
from workbench.primitives.explain.circuits import faithfulness
from workbench.primitives.score.metrics import logit_diff
from workbench.views.circuit_graph import edge_id, edges_above


@pytest.fixture(scope="module")
def model():
    return load("organism:induction")


@pytest.fixture(scope="module")
def texts(model):
    """Two prompts of eight words whose third is said again at the end, their twins, the answers and wrong ones."""
    words = model.to_strings(range(3, 43))
    sets = words[:20], words[20:]
    clean = "\n".join(" ".join([*w[:8], w[3]]) for w in sets)
    corrupted = "\n".join(" ".join([*w[:3], w[9], *w[4:8], w[3]]) for w in sets)
    return clean, corrupted, "\n".join(w[4] for w in sets), "\n".join(w[6] for w in sets)


@pytest.fixture(scope="module")
def pair(model, texts):
    """The same as token ids and a metric."""
    clean, corrupted = (torch.tensor(model.to_rows(text.splitlines())) for text in texts[:2])
    answers, others = ([model.to_rows(w, bos=False)[0][0] for w in text.splitlines()] for text in texts[2:])
    return clean, corrupted, logit_diff(answers, others)


@pytest.fixture(scope="module")
def scores(model, pair):
    return attribute_edges(model, *pair, steps=5, mode="activations")


@pytest.fixture
def panel(model, pair, scores):
    """With scores to show; nothing was run for it."""
    clean, corrupted, metric = pair
    return panels.CircuitGraph(
        model, clean, corrupted, metric=metric, result=scores, compute=lambda *_, **__: pytest.fail("ran")
    )


def no_hooks(model):
    return not any(point.fwd_hooks or point.bwd_hooks for point in model.live.hook_dict.values())


# ---- scores ----


def test_nothing_is_computed_when_it_is_made(model, texts):
    made = panels.CircuitGraph(model, *texts, compute=lambda *_, **__: pytest.fail("ran"))
    assert made.state.result is None and made.table().empty and made.figures() == {} and made.faithful.disabled
    with pytest.raises(WorkbenchError, match="nothing to save yet"):
        made.save("x.html")


def test_run_scores_the_prompts_of_the_boxes(model, texts, scores):
    made = panels.CircuitGraph(model, *texts).run().wait(60)
    assert made.state.error == "" and not made.state.running and not made.faithful.disabled
    xr.testing.assert_allclose(made.state.result.data["score"], scores.data["score"], atol=1e-5)
    assert made.start.disabled is False and no_hooks(model)


def test_the_method_chosen_is_the_one_that_runs(model, texts, scores):
    seen = {}

    def compute(*_, progress, **settings):
        seen.update(settings)
        return scores

    made = panels.CircuitGraph(model, *texts, compute=compute)
    made.method.value = "EAP (1 step)"
    made.run().wait(20)
    assert seen == {"steps": 1, "mode": "inputs"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"corrupted": "apple beach"}, "there are 2 clean prompts and 1 corrupted"),
        ({"answer": "zebrazebra unheard"}, "must be one"),
        ({"clean": "", "corrupted": ""}, "the clean prompt is empty"),
        ({"answer": "beach\nhoney\nbread"}, "2 prompts and 3"),
    ],
    ids=["twins", "answer", "empty", "answers"],
)
def test_bad_prompts_are_one_sentence(model, texts, change, said):
    made = panels.CircuitGraph(model, *texts)
    for name, value in change.items():
        setattr(made.state, name, value)
    made.run().wait(20)
    assert said in made.state.error and made.state.result is None and not made.state.running


def test_an_error_in_the_middle_leaves_no_hooks(model, texts):
    def compute(model, *_, **__):
        model.forward(torch.tensor([[1, 2]]), hook_fns=[("blocks.0.hook_resid_pre", lambda tensor, hook: 1 / 0)])

    made = panels.CircuitGraph(model, *texts, compute=compute).run().wait(20)
    assert made.state.error.startswith("ZeroDivisionError") and no_hooks(model)


def test_cancel_keeps_the_prompts_that_were_finished(model, texts):
    at_work, go_on = threading.Event(), threading.Event()

    def compute(*args, progress, **settings):
        at_work.set()
        assert go_on.wait(20)
        return attribute_edges(*args, batch_size=1, progress=progress, **settings)

    made = panels.CircuitGraph(model, *texts, compute=compute).run()
    assert at_work.wait(20) and made.state.running and made.start.disabled
    made.stop.click()  # noticed at the first report, after one of two prompts
    go_on.set()
    made.wait(60)
    assert (
        made.state.result.partial
        and made.state.result.data.attrs["n_examples"] == 1
        and "cancelled" in made.state.notice
    )


def test_without_a_model_a_result_can_be_looked_at_and_nothing_run(scores):
    made = panels.CircuitGraph(result=scores)
    assert len(made.table()) and made.start.disabled and made.faithful.disabled
    made.run().wait(20)
    assert "opened without its model" in made.state.error


def test_ids_need_a_metric(model, pair):
    with pytest.raises(WorkbenchError, match="a metric is needed"):
        panels.CircuitGraph(model, *pair[:2])


def test_a_result_of_something_else_is_refused(model):
    with pytest.raises(BadData, match="attribute_edges"):
        panels.CircuitGraph(model, result=Result(Provenance("lens", {}, 0)))


# ---- what is shown ----


def test_what_is_drawn_is_the_table_and_the_figure(panel):
    for threshold in (panel.state.threshold, 0.5):
        panel.state.threshold = threshold
        table = panel.table()
        assert [e["id"] for e in panel.view.edges] == [
            edge_id(w, r) for w, r in zip(table["writer"], table["reader"], strict=True)
        ]
        np.testing.assert_allclose([e["score"] for e in panel.view.edges], table["score"])
        drawn = next(t for t in panel.figures()["circuit"].data if t.name == "edges")
        np.testing.assert_allclose(drawn.customdata, table["score"])
        assert (table["score"].abs() >= threshold).all()
        assert {n["id"] for n in panel.view.nodes} == {e[end] for e in panel.view.edges for end in ("source", "target")}


def test_the_slider_is_the_threshold_and_says_how_much_is_shown(panel, scores):
    before = len(panel.view.edges)
    panel.threshold.value = 2 * panel.state.threshold
    assert panel.state.threshold == panel.threshold.value and 0 < len(panel.view.edges) < before
    size = scores.tables["edges"]["score"].abs()
    assert f"{int((size >= panel.state.threshold).sum())} of {len(size)} edges" in panel.caption.value
    assert 10**panel.threshold.max == pytest.approx(size.max(), rel=1e-6)


def test_too_many_edges_are_pruned_and_said(panel, monkeypatch):
    monkeypatch.setattr(
        "workbench.panels.circuit_graph.views.edges_above",
        lambda result, threshold, paths_only: edges_above(result, threshold, paths_only=paths_only, max_edges=5),
    )
    panel.state.threshold = 0.01
    assert (
        len(panel.view.edges) == 5
        and "too many to draw: the 5 largest are shown" in panel.state.notice
        and "too many" in panel.says.value
    )


def test_only_paths_is_a_checkbox(panel):
    panel.state.threshold = panel.state.threshold / 100
    panel.paths_only.value = True
    assert panel.state.paths_only and len(panel.view.edges) <= len(panel._shown.edges)
    targets = {e["target"] for e in panel.view.edges}
    assert "logits" in targets and all(
        e["target"] == "logits" or e["target"] in {f["source"] for f in panel.view.edges} for e in panel.view.edges
    )


def test_a_click_on_a_node_shows_its_edges_and_on_an_edge_its_score(panel, scores):
    panel.view.click("a1.h0")
    assert panel.state.selected == ["a1.h0"] and "all edges out of it sum to" in panel.cell.value
    out = scores.data["score"].sel(writer="a1.h0")
    assert f"{float(out.sum()):+.3g} logits" in panel.cell.value and "a1.h0&lt;k&gt;" in panel.cell.value
    writer, reader, score = panel.table().loc[0, ["writer", "reader", "score"]]
    panel.view.click_edge(writer, reader)
    assert (
        panel.state.edge == edge_id(writer, reader)
        and f"{score:+.4g}" in panel.cell.value
        and panel.state.selected == []
    )
    panel.view.click()
    assert panel.cell.value == ""


def test_a_selection_that_is_gone_is_dropped(panel):
    last = panel.table().iloc[-1]
    panel.view.click_edge(last["writer"], last["reader"])
    panel.state.threshold = 1.01 * abs(float(last["score"]))
    assert panel.state.edge == "" and panel.cell.value == ""


# ---- what a person does ----


def _node(panel, name):
    return next(n for n in panel.view.nodes if n["id"] == name)


def test_a_drag_pins_and_a_pinned_node_stays(panel):
    weakest = next(w for w in panel.table()["writer"][::-1] if w.startswith("a1"))
    panel.view.drag(weakest, 0.25, 0.75)
    assert panel.state.positions[weakest] == [0.25, 0.75] and panel.state.pins == [weakest]
    panel.state.threshold = 10**panel.threshold.max * 0.99
    assert (_node(panel, weakest)["x"], _node(panel, weakest)["pinned"]) == (0.25, True)
    panel.view.press_pin(weakest)
    assert panel.state.pins == [] and panel.state.positions == {} and weakest not in {n["id"] for n in panel.view.nodes}


def test_pin_keeps_where_it_is(panel):
    at = _node(panel, "a1.h0")
    panel.view.click("a1.h0")
    panel.pin_selected()
    assert (
        panel.state.positions["a1.h0"] == pytest.approx([at["x"], at["y"]], abs=1e-3)
        and _node(panel, "a1.h0")["pinned"]
    )


def test_names_and_groups(panel):
    panel.view.click("a1.h0")
    panel.name.value = "induction <head>"
    panel.name_selected()
    assert _node(panel, "a1.h0")["label"] == "induction <head>" and "induction &lt;head&gt;" in panel.cell.value
    n_edges = len(panel.table())
    panel.view.click("a0.h0", "a0.h3")
    panel.name.value = "early"
    panel.group_selected()
    assert panel.state.groups == {"early": ["a0.h0", "a0.h3"]} and panel.state.selected == ["early"]
    assert _node(panel, "early")["kind"] == "group" and panel.table()["n_edges"].sum() == n_edges
    assert (panel.table()["writer"] == "embed").sum() >= 1 and not {"a0.h0", "a0.h3"} & set(panel.table()["writer"])
    panel.name.value = "copy the word before"
    panel.name_selected()
    assert list(panel.state.groups) == ["copy the word before"] and panel.state.selected == ["copy the word before"]
    panel.ungroup_selected()
    assert panel.state.groups == {} and len(panel.table()) == n_edges


@pytest.mark.parametrize(
    ("select", "name", "act", "said"),
    [
        ((), "x", "group_selected", "select nodes first"),
        (("a1.h0",), "", "group_selected", "a group needs a name"),
        (("a1.h0",), "m0", "group_selected", "'m0' is the name of a node already"),
        (("a1.h0", "m1"), "x", "name_selected", "2 nodes are selected"),
        (("a1.h0",), "x", "ungroup_selected", "a1.h0 is no group"),
    ],
    ids=["nothing", "no name", "taken", "two", "no group"],
)
def test_what_cannot_be_done_is_said(panel, select, name, act, said):
    panel.view.click(*select)
    panel.name.value = name
    button = next(
        b
        for b in panel._tools.children
        if getattr(b, "description", "")
        == {"group_selected": "Group", "name_selected": "Name it", "ungroup_selected": "Ungroup"}[act]
    )
    button.click()
    assert said in panel.state.error and panel.state.groups == {} and panel.state.names == {}


# ---- faithfulness ----


def test_faithfulness_is_of_the_edges_on_show(panel, model, pair, scores):
    panel.faithful.click()
    panel.wait(60)
    assert panel.state.error == ""
    n = len(panel.table())
    plain = faithfulness(model, *pair, scores, [n])
    found = panel.state.faithful.data
    assert float(found["faithfulness"].sel(circuit="shown")) == pytest.approx(
        float(plain.data["faithfulness"][0]), abs=1e-4
    )
    assert float(found["completeness"].sel(circuit="shown")) == pytest.approx(
        float(plain.data["completeness"][0]), abs=1e-4
    )
    assert float(found["faithfulness"].sel(circuit="shown")) > 0.5 > float(found["faithfulness"][1:].max()), (
        "random edges do not carry the behaviour"
    )
    assert (
        f"These {n} edges alone keep" in panel.verdict.value
        and list(panel.figures()) == ["circuit", "faithfulness"]
        and no_hooks(model)
    )
    panel.state.names = {"m0": "a name"}
    assert panel.state.faithful is not None
    panel.state.threshold *= 3
    assert panel.state.faithful is None and panel.verdict.value == "" and list(panel.figures()) == ["circuit"]


def test_an_answer_of_a_graph_that_changed_meanwhile_is_dropped(panel, scores):
    started, go_on = threading.Event(), threading.Event()

    def test(*_, progress, **__):
        started.set()
        assert go_on.wait(20)
        return Result(scores.provenance, xr.Dataset())

    panel._test = test
    panel.test_shown()
    assert started.wait(20)
    panel.state.threshold *= 2
    go_on.set()
    panel.wait(20)
    assert panel.state.faithful is None and "the graph changed while it was tested" in panel.state.notice


# ---- the file ----


def _arranged(panel):
    state = panel.state
    state.threshold, state.paths_only = 0.2, True
    panel.view.click("a0.h0", "a0.h3")
    panel.name.value = "early heads"
    panel.group_selected()
    panel.view.drag("early heads", 0.3, 0.2)
    panel.view.drag("a1.h0", 0.8, 0.61)
    state.names = {"a1.h0": "induction"}
    return {
        "threshold": state.threshold,
        "paths_only": True,
        "groups": dict(state.groups),
        "names": dict(state.names),
        "pins": list(state.pins),
        "positions": dict(state.positions),
    }


def test_a_layout_round_trips(panel, model, pair, scores, tmp_path):
    kept = _arranged(panel)
    path = panel.save_state(tmp_path / "c.json")
    assert path.stat().st_size < 2000 and "saved in c.json" in panel.state.notice
    other = panels.CircuitGraph(model, *pair[:2], metric=pair[2], result=scores)
    other.load_state(path)
    assert {name: getattr(other.state, name) for name in kept} == kept and "other scores" not in other.state.notice
    assert other.view.nodes == panel.view.nodes and other.view.edges == panel.view.edges
    again = other.save_state(tmp_path / "again.json")
    assert again.read_text("utf-8") == path.read_text("utf-8")


def test_other_scores_of_the_same_model_are_taken_and_said(panel, model, pair, tmp_path):
    _arranged(panel)
    path = panel.save_state(tmp_path / "c.json")
    one_step = attribute_edges(model, *pair)
    other = panels.CircuitGraph(model, *pair[:2], metric=pair[2], result=one_step)
    other.load_state(path)
    assert other.state.names == {"a1.h0": "induction"} and "made of other scores" in other.state.notice


def test_a_file_of_another_graph_is_refused_and_changes_nothing(panel, model, pair, tmp_path):
    _arranged(panel)
    path = panel.save_state(tmp_path / "c.json")
    twin = load("organism:induction", untrained_seed=0)
    other = panels.CircuitGraph(twin, *pair[:2], metric=pair[2], result=attribute_edges(twin, *pair))
    other.state.file = str(path)
    before = dict(other.state.trait_values())
    next(b for b in other._tools.children if getattr(b, "description", "") == "Load layout").click()
    assert "c.json is of another graph: organism:induction (weights" in other.state.error
    changed = {
        k for k, v in other.state.trait_values().items() if k != "error" and v is not before[k] and v != before[k]
    }
    assert changed == set()


def _break(change):
    def apply(found):
        change(found)
        return json.dumps(found)

    return apply


BROKEN = {
    "no json": (lambda _: "{", "is no JSON"),
    "another file": (lambda _: '{"cells": []}', "no file of a circuit graph: its schema is None"),
    "a list": (lambda _: "[1]", "its schema is a list"),
    "version": (_break(lambda f: f.update(version=2)), r"version should be 1 .* and is 2"),
    "a field less": (_break(lambda f: f.pop("pins")), "lacks pins; the fields are"),
    "a field more": (_break(lambda f: f.update(colour="red")), "has unknown fields colour"),
    "threshold": (
        _break(lambda f: f["thresholds"].update(score=-1)),
        r"thresholds.score should be a number from 0, and is -1",
    ),
    "nan": (_break(lambda f: f["thresholds"].update(score=float("nan"))), r"thresholds.score should be a number"),
    "flag": (_break(lambda f: f["thresholds"].update(paths_only=1)), "paths_only should be true or false"),
    "place": (
        _break(lambda f: f["positions"].update({"a1.h0": [0.2, 7]})),
        r"positions\['a1.h0'\] should be two numbers from 0 to 1, and is \[0.2, 7\]",
    ),
    "pins": (_break(lambda f: f.update(pins=["m0", "m0"])), "pins should be a list of node names, each once"),
    "group": (_break(lambda f: f["groups"].update(empty=[])), r"groups\['empty'\] should be a list of one or more"),
    "two groups": (_break(lambda f: f["groups"].update(again=["a0.h0"])), "is in group 'early heads' already"),
    "name": (_break(lambda f: f["names"].update({"m0": ""})), r"names\['m0'\] should be a text"),
    "node": (_break(lambda f: f["names"].update({"a9.h9": "far"})), "names a9.h9, which this graph does not have"),
    "taken": (_break(lambda f: f["groups"].update({"m0": ["m1"]})), "groups has 'm0', which is the name of a node"),
    "graph": (_break(lambda f: f["graph"].pop("weights")), "graph should be an object of model, weights"),
}


@pytest.mark.parametrize(("spoil", "said"), BROKEN.values(), ids=list(BROKEN))
def test_a_broken_file_is_refused_with_the_place(panel, tmp_path, spoil, said):
    _arranged(panel)
    path = panel.save_state(tmp_path / "c.json")
    path.write_text(spoil(json.loads(path.read_text("utf-8"))), "utf-8")
    with pytest.raises(BadData, match=said):
        panel.load_state(path)


def test_only_files_of_this_kind_are_replaced(panel, tmp_path):
    mine = tmp_path / "thesis.json"
    mine.write_text('{"chapter": 1}', "utf-8")
    with pytest.raises(BadData, match="no file of a circuit graph"):
        panel.save_state(mine)
    assert mine.read_text("utf-8") == '{"chapter": 1}'
    with pytest.raises(BadData, match="cannot be read"):
        panel.load_state(tmp_path / "nowhere.json")
    assert list(graph_file.identity(panel.state.result, panel._nodes)) == [
        "model",
        "weights",
        "nodes",
        "names",
        "scores",
    ]


def test_page_opens_as_a_file_with_the_numbers(panel, tmp_path):
    page = panel.save(tmp_path / "x.html").read_text("utf-8")
    assert (
        f"{len(panel.table())} rows" in page and f"{panel.table()['score'][0]:.5g}" in page and "a0.h0&lt;v&gt;" in page
    )
