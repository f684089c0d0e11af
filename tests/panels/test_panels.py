"""Panels without a browser: forms follow the Spec, state drives compute and view, errors and cancels are shown."""

import dataclasses
import threading
import types

import pytest

from workbench.core import spec as core_spec
from workbench.core.claims import Claim
from workbench.core.errors import BadSpec
from workbench.core.progress import Cancelled
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.core.spec import param
from workbench.methods.attention import attention_sinks as sinks
from workbench.panels.forms import SpecForm
from workbench.panels.heads import HeadsPanel, heads_off
from workbench.panels.run import RunPanel


@dataclasses.dataclass(frozen=True)
class Inner(core_spec.Spec):
    dtype: str = param("float32", "number format", choices=("float32", "bfloat16"))


@dataclasses.dataclass(frozen=True)
class Spec(core_spec.Spec):
    n: int = param(3, "how many", ge=1, le=9)
    share: float = param(0.5, "what part", unit="share")
    flag: bool = param(True, "on or off")
    names: tuple[str, ...] = param(("a", "b"), "some names")
    seed: int | None = param(None, "draws")
    inner: Inner = param(Inner(), "nested")

    @classmethod
    def tiny(cls):
        return cls()


def test_form_reads_back_the_spec_it_was_made_from_and_every_change():
    form = SpecForm(Spec())
    assert form.spec() == Spec()
    form.controls["n"].value = 7
    form.controls["share"].value = 0.25
    form.controls["flag"].value = False
    form.controls["names"].value = "x, y, z"
    form.controls["seed"].value = "4"
    form.controls["inner.dtype"].value = "bfloat16"
    assert form.spec() == Spec(n=7, share=0.25, flag=False, names=("x", "y", "z"), seed=4, inner=Inner(dtype="bfloat16"))


def test_form_has_bounds_units_and_help():
    form = SpecForm(Spec())
    assert form.controls["n"].max == 9 and form.controls["share"].description == "share (share)"
    assert form.controls["names"].tooltip == "some names"


def test_form_of_the_real_method_round_trips():
    assert SpecForm(sinks.Spec.tiny()).spec() == sinks.Spec.tiny()


def test_form_refuses_what_the_spec_refuses():
    form = SpecForm(Spec())
    form.controls["seed"].value = "four"
    with pytest.raises(BadSpec, match="seed must be of type int"):
        form.spec()


def _method(run):
    claim = Claim("it ran", "here", lambda r: 1.0, ">", 0.0, "made for this test")
    return types.SimpleNamespace(Spec=Spec, run=run, CLAIMS=(claim,))


def test_run_panel_computes_in_another_thread_and_shows_claims(monkeypatch):
    monkeypatch.setattr("workbench.panels.run.figures_of", lambda result: {})
    seen = {}

    def run(spec, *, model, progress):
        seen.update(spec=spec, thread=threading.current_thread())
        progress.update(1, 1, "done")
        return Result(Provenance("s", spec.to_dict(), 0))

    panel = RunPanel(_method(run))
    panel.form.controls["n"].value = 5
    panel.start.click()
    assert panel.wait(20) is not None
    assert seen["spec"].n == 5 and seen["thread"] is not threading.main_thread()
    assert "it ran" in panel.claims.value and not panel.state.running and panel.stop.disabled


def test_run_panel_shows_errors(monkeypatch):
    def run(spec, *, model, progress):
        raise BadSpec("no such thing; try another")

    panel = RunPanel(_method(run))
    panel.run()
    panel.wait(20)
    assert "BadSpec: no such thing" in panel.state.error and "no such thing" in panel.says.value
    assert not panel.state.running and not panel.start.disabled


def test_run_panel_cancels_and_keeps_the_partial_result(monkeypatch):
    monkeypatch.setattr("workbench.panels.run.figures_of", lambda result: {})
    at_work = threading.Event()

    def run(spec, *, model, progress):
        try:
            for step in range(100_000):
                progress.update(step, 100_000, "working")
                at_work.set()
                threading.Event().wait(0.001)
        except Cancelled:
            return Result(Provenance("s", {}, 0), partial=True)
        raise AssertionError("was not cancelled")

    panel = RunPanel(_method(run))
    panel.run()
    assert at_work.wait(20)
    panel.stop.click()
    assert panel.wait(20).partial and "cancelled" in panel.says.value


@pytest.fixture(scope="module")
def result(organism):
    spec = sinks.Spec.tiny().replace(n_inputs=10, scores=("awft", "ahon_ln"), n_random=1, controls=False, length=48)
    return sinks.run(spec, model=organism)


def test_heads_panel_follows_its_state(result):
    panel = HeadsPanel(result)
    before = panel.grid.value
    panel.state.score = "awft"
    assert panel.score.value == "awft" and panel.grid.value != before
    panel.share.value = 0.3
    assert panel.state.share == 0.3
    table = panel.table()
    assert table.off.sum() == sinks.flagged(result.data, "awft", 0.3)[0].sum()
    assert panel.grid.value.count(" off</td>") == int(table.off.sum())
    assert panel.drawing.outputs[0]["data"]["application/vnd.plotly.v1+json"]["data"]


def test_heads_off_is_a_plain_function(result):
    table = heads_off(result, "ahon_ln", 0.15, input=3)
    assert list(table.columns) == ["layer", "head", "value", "threshold", "off"] and len(table) == 24
    assert (table.off == (table.value < table.threshold)).all()
