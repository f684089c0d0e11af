"""The run panel without a browser: forms follow the Spec, state drives compute and view, errors, cancels and reviews
are right.
"""

import dataclasses
import json
import threading
import types
from datetime import date

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
import xarray as xr

from workbench import panels
from workbench.core import spec as core_spec
from workbench.core.claims import Claim, check
from workbench.core.errors import BadSpec, WorkbenchError
from workbench.core.progress import Cancelled
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.core.spec import param
from workbench.panels.forms import SpecForm
from workbench.panels.run_method import Run, review_folder
from workbench.papers.attention.attention_sinks import method as sinks
from workbench.papers.attention.attention_sinks.claims import CLAIMS
from workbench.reports.review import write_review
from workbench.views import figures
from workbench.views.theme import finish


@dataclasses.dataclass(frozen=True)
class Inner(core_spec.Spec):
    dtype: str = param("float32", "number format", choices=("float32", "bfloat16"))


@dataclasses.dataclass(frozen=True)
class Spec(core_spec.Spec):
    n: int = param(3, "how many", ge=1, le=9)
    share: float = param(0.5, "what part", unit="share")
    flag: bool = param(True, "on or off")
    names: tuple[str, ...] = param(("a", "b"), "some <names>")
    seed: int | None = param(None, "draws")
    model: Inner = param(Inner(), "nested")

    @classmethod
    def tiny(cls):
        return cls()


# ---- forms ----


def test_form_reads_back_the_spec_it_was_made_from_and_every_change():
    form = SpecForm(Spec())
    assert form.spec() == Spec()
    form.controls["n"].value = 7
    form.controls["share"].value = 0.25
    form.controls["flag"].value = False
    form.controls["names"].value = "x, y, z"
    form.controls["seed"].value = "4"
    form.controls["model.dtype"].value = "bfloat16"
    assert form.spec() == Spec(
        n=7, share=0.25, flag=False, names=("x", "y", "z"), seed=4, model=Inner(dtype="bfloat16")
    )


def test_form_has_bounds_units_and_help():
    form = SpecForm(Spec())
    assert form.controls["n"].max == 9 and form.controls["share"].description == "share (share)"
    assert (
        form.controls["names"].tooltip == "some <names>"
        and form.controls["n"].tooltip == "how many; at least 1 and at most 9"
    )
    meaning = form.meaning.children[0].value
    assert "some &lt;names&gt;" in meaning and "one of float32, bfloat16" in meaning


def test_form_leaves_out_what_is_not_asked_for():
    assert list(SpecForm(Spec(), only=("n", "model.dtype")).controls) == ["n", "model.dtype"]
    form = SpecForm(Spec(), without=("model", "flag"))
    assert set(form.controls) == {"n", "share", "names", "seed"} and form.spec() == Spec()


def test_form_of_the_real_method_round_trips():
    assert SpecForm(sinks.Spec.tiny()).spec() == sinks.Spec.tiny()


def test_form_refuses_what_the_spec_refuses():
    form = SpecForm(Spec())
    form.controls["seed"].value = "four"
    with pytest.raises(BadSpec, match="seed must be of type int"):
        form.spec()


# ---- the panel, on a method that only counts ----

CLAIM = Claim("it ran", "here", lambda r: float(r.data["n"]), ">", 0.0, "made for this test")


def _result(spec, n=1.0, partial=False, warnings=()):
    return Result(
        Provenance("counting", spec.to_dict(), 0),
        xr.Dataset({"n": ((), n, {"unit": "steps"})}),
        partial=partial,
        warnings=warnings,
    )


def _count(spec, *, model, progress):
    progress.update(1, 1, "done")
    return _result(spec, spec.n)


def _figures(result):
    n = float(result.data["n"])
    drawn = {name: go.Figure(go.Scatter(x=[0, 1], y=[n, i])) for i, name in enumerate(("first", "second_one"))}
    return {name: finish(figure, name, f"the figure {name}", result.provenance) for name, figure in drawn.items()}


def _panel(compute=_count, **options):
    method = types.SimpleNamespace(__name__="tests.counting", Spec=Spec, run=compute, CLAIMS=(CLAIM,))
    return Run(method, views=_figures, **options)


def _drawn(panel):
    return panel.drawing.outputs[0]["data"]["application/vnd.plotly.v1+json"]["data"][0]["y"]


def test_nothing_is_computed_when_it_is_made():
    panel = _panel(compute=lambda *_, **__: pytest.fail("ran"))
    assert panel.state.result is None and panel.table().empty and panel.figures() == {} and panel.keep.disabled
    with pytest.raises(WorkbenchError, match="nothing to save yet"):
        panel.save("x.html")


def test_it_computes_in_another_thread_and_shows_claims_and_every_figure():
    seen = {}

    def compute(spec, *, model, progress):
        seen.update(thread=threading.current_thread(), model=model)
        return _count(spec, model=model, progress=progress)

    panel = _panel(compute)
    panel.form.controls["n"].value = 5
    panel.start.click()
    panel.wait(20)
    assert seen == {"thread": panel._thread, "model": None} and panel._thread is not threading.main_thread()
    assert (
        "it ran" in panel.claims.value and not panel.state.running and panel.stop.disabled and not panel.start.disabled
    )
    assert panel.figure.options == (("first", "first"), ("second one", "second_one")) and panel.state.figure == "first"
    assert _drawn(panel) == [5.0, 0]
    panel.figure.value = "second_one"
    assert _drawn(panel) == [5.0, 1] == list(panel.figures()["second_one"].data[0].y)
    assert list(panel.figures()) == ["second_one", "first"]
    assert panel.table().equals(check(panel.state.result, (CLAIM,)).frame()) and panel.table().measured[0] == 5.0


def test_the_figure_chosen_stays_chosen_when_it_runs_again():
    panel = _panel().run().wait(20)
    panel.state.figure = "second_one"
    panel.form.controls["n"].value = 4
    panel.run().wait(20)
    assert panel.state.figure == "second_one" and _drawn(panel) == [4.0, 1]


def test_errors_are_one_sentence():
    def compute(spec, *, model, progress):
        raise BadSpec("no such thing <here>; try another\nand more")

    panel = _panel(compute).run().wait(20)
    assert panel.state.error == "no such thing <here>; try another" and "&lt;here&gt;" in panel.says.value
    assert not panel.state.running and not panel.start.disabled and panel.keep.disabled


def test_a_form_that_the_spec_refuses_is_an_error_too():
    panel = _panel(compute=lambda *_, **__: pytest.fail("ran"))
    panel.form.controls["seed"].value = "four"
    panel.run().wait(20)
    assert "seed must be of type int" in panel.state.error


def test_warnings_of_the_result_are_shown():
    panel = _panel(lambda spec, **_: _result(spec, warnings=("few inputs",))).run().wait(20)
    assert panel.state.notice == "few inputs" and "few inputs" in panel.says.value


class _Slow:
    """Counts to 100,000 unless it is cancelled; can go on."""

    def __init__(self):
        self.at_work, self.resumed_from = threading.Event(), None

    def __call__(self, spec, *, model, progress, resume=None):
        self.resumed_from = resume
        if resume is not None:
            return _result(spec, 100_000)
        try:
            for step in range(100_000):
                progress.update(step, 100_000, "working")
                if step > 2:
                    self.at_work.set()
                threading.Event().wait(0.001)
        except Cancelled:
            return _result(spec, step, partial=True)
        raise AssertionError("was not cancelled")


def _cancelled():
    slow = _Slow()
    panel = _panel(slow).run()
    assert slow.at_work.wait(20)
    assert panel.start.disabled and panel.keep.disabled and "of 100000 working" in panel.stage.value
    panel.stop.click()
    return slow, panel.wait(20)


def test_it_cancels_and_keeps_the_partial_result():
    _, panel = _cancelled()
    assert panel.state.result.partial and "cancelled" in panel.state.notice and "cancelled" in panel.says.value
    assert panel.table().ok.isna().all() and _drawn(panel)[0] == float(panel.state.result.data["n"])


def test_it_goes_on_from_a_cancelled_run_of_the_same_spec_and_of_no_other():
    slow, panel = _cancelled()
    partial = panel.state.result
    panel.run().wait(20)
    assert slow.resumed_from is partial and not panel.state.result.partial and panel.state.notice == ""
    slow, panel = _cancelled()
    panel.form.controls["n"].value = 8
    panel.run()
    slow.at_work.clear()
    assert slow.at_work.wait(20)
    panel.cancel()
    panel.wait(20)
    assert slow.resumed_from is None


# ---- what it writes ----


def test_page_holds_claims_and_figures(tmp_path):
    panel = _panel().run().wait(20)
    page = panel.save(tmp_path / "x.html").read_text("utf-8")
    assert "it ran" in page and "the figure second_one" in page and page.count("http-equiv") == 1


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr("workbench.reports.review.write_pngs", lambda figures, folder: ([], "no browser here"))


def test_review_folder_is_named_by_stem_and_date_and_never_overwrites(tmp_path, monkeypatch, no_pictures):
    monkeypatch.chdir(tmp_path)
    panel = _panel().run().wait(20)
    first = review_folder("counting")
    assert first.as_posix() == f"reviews/counting-{date.today():%Y-%m-%d}"
    for expected in (first, first.with_name(first.name + "-2")):
        panel.keep.click()
        panel.wait(60)
        assert (
            panel.state.error == ""
            and panel.state.saved == expected.as_posix()
            and f"saved in {expected}" in panel.state.notice
            and "no browser here" in panel.state.notice
        )
    again = Result.load(first / "result")
    assert float(again.data["n"]) == 3.0 and json.loads((first / "claims.json").read_text())[0]["measured"] == 3.0
    assert "it ran" in (first / "report.html").read_text("utf-8")


def test_a_folder_that_is_there_is_left_alone(tmp_path, no_pictures):
    taken = tmp_path / "mine"
    taken.mkdir()
    (taken / "notes.txt").write_text("dear diary")
    panel = _panel().run().wait(20)
    panel.state.folder = str(taken)
    assert panel.folder.value == str(taken)
    panel.save_review().wait(20)
    assert "is there already and is not overwritten" in panel.state.error and panel.state.saved == ""
    assert [p.name for p in taken.iterdir()] == ["notes.txt"]


def test_a_failed_review_leaves_nothing_behind(tmp_path, no_pictures):
    result = _result(Spec())
    with pytest.raises(AttributeError):
        write_review(result, check(result, (CLAIM,)), {"broken": None}, tmp_path / "review")
    assert list(tmp_path.iterdir()) == []


# ---- on the real method ----


def test_the_real_method_beside_a_cell_that_uses_the_same_model(organism):
    """Both get what they get alone, and no hook is left."""
    spec = sinks.Spec.tiny().replace(n_inputs=10, scores=("awft", "ahon_ln"), n_random=1, controls=False, length=48)
    tokens = torch.arange(3, 43).reshape(2, 20)
    alone, reference = sinks.run(spec, model=organism), organism.forward(tokens)
    panel = panels.run("attention_sinks", model=organism, spec=spec, only=("n_inputs", "seed"))
    assert panel.title.startswith("Identifying and Evaluating Inactive Heads") and list(panel.form.controls) == [
        "n_inputs",
        "seed",
    ]
    panel.run()
    while panel.state.running:
        torch.testing.assert_close(organism.forward(tokens), reference)
    panel.wait(60)
    assert panel.state.error == ""
    xr.testing.assert_allclose(panel.state.result.data["accuracy"], alone.data["accuracy"])
    assert list(panel.figures()) == list(figures(alone))
    pd.testing.assert_frame_equal(panel.table(), check(alone, CLAIMS).frame())
    assert not any(point.fwd_hooks for point in organism.live.hook_dict.values())


def test_a_given_model_takes_the_specs_model_out_of_the_form(organism):
    panel = panels.run("attention_sinks", model=organism)
    assert not any(name.startswith("model") for name in panel.form.controls) and "n_inputs" in panel.form.controls
