"""What every paper owes, asked of all alike: a paper that is added is tested here before it has a test of its own.

No model is loaded: specs, claims, and, where a paper ships its runs, those.
"""

import dataclasses
import json
from pathlib import Path

import pytest

import workbench as wb
from workbench.core.catalogue import PAPERS
from workbench.core.claims import UNTESTED, check, read_verdicts
from workbench.core.places import data_folder
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.core.spec import Spec
from workbench.runs.stored import load_runs

STEMS = [stem for stem, paper in PAPERS.items() if paper.is_ready]
STORED = [stem for stem in STEMS if (data_folder() / stem / "runs").is_dir()]
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def specs(stem: str) -> dict[str, Spec]:
    own = wb.method(stem).Spec
    return {"tiny": own.tiny(), "paper": own.paper()}


@pytest.mark.parametrize("stem", STEMS)
def test_a_spec_comes_back_from_its_text_and_says_what_each_field_is(stem):
    for spec in specs(stem).values():
        assert type(spec).from_dict(json.loads(spec.to_json())) == spec
        for field in dataclasses.fields(spec):
            is_nested = isinstance(getattr(spec, field.name), Spec)
            assert is_nested or field.metadata.get("help"), f"{field.name} has no help: declare it with param()"


@pytest.mark.parametrize("stem", STEMS)
def test_claims_say_where_they_and_their_thresholds_come_from_and_stand_beside_controls(stem):
    claims = wb.method(stem).CLAIMS
    texts = [claim.text for claim in claims]
    assert len(set(texts)) == len(texts), "two claims of one text cannot be told apart"
    assert all(claim.source and claim.threshold_from for claim in claims)
    guards = {control for claim in claims for control in claim.controls}
    assert guards and all(control.kind == "control" for control in guards)
    assert any(claim.controls for claim in claims if claim.kind == "claim")


@pytest.mark.parametrize("stem", STEMS)
def test_half_a_run_and_an_empty_one_show_nothing(stem):
    claims = wb.method(stem).CLAIMS
    empty = Result(Provenance.start(stem, {}, 0).finish(0.0), partial=True)
    assert {line.verdict for line in check(empty, claims).lines} == {UNTESTED}


# ---- the runs that ship ----


@pytest.fixture(scope="module", params=STORED)
def shipped(request):
    """(stem, its stored runs, the claims checked on them)."""
    stored = load_runs(request.param)
    return request.param, stored, check(stored, wb.method(request.param).CLAIMS)


def test_stored_runs_saved_and_loaded_give_the_same_table(shipped, tmp_path):
    stem, stored, table = shipped
    stored.save(tmp_path / "r")
    again = check(Result.load(tmp_path / "r"), wb.method(stem).CLAIMS)
    assert [line.measured for line in again.lines if line.verdict != UNTESTED] == [
        line.measured for line in table.lines if line.verdict != UNTESTED
    ]
    assert again.verdicts().splitlines()[:-1] == table.verdicts().splitlines()[:-1]


def test_the_notebook_says_what_the_stored_runs_say(shipped):
    """No kernel runs: every verdict that needs the stored runs alone is compared with the text in the notebook."""
    stem, _, table = shipped
    notebook = json.loads((NOTEBOOKS / PAPERS[stem].family / f"{stem}.ipynb").read_text(encoding="utf-8"))
    checked = [c for c in notebook["cells"] if "nbval-check-output" in c["metadata"].get("tags", [])]
    text = "".join(part for cell in checked for output in cell["outputs"] for part in output.get("text", []))
    said = {row["text"]: row["verdict"] for row in read_verdicts(text)}
    here = {row["text"]: row["verdict"] for row in read_verdicts(table.verdicts())}
    assert said.keys() == here.keys(), "the notebook was published with other claims"
    settled = {text: verdict for text, verdict in here.items() if verdict != UNTESTED}
    assert len(settled) > len(here) / 2
    assert {text: said[text] for text in settled} == settled


def test_every_figure_of_the_stored_runs_can_be_drawn_and_says_what_it_shows(shipped):
    _, stored, _ = shipped
    figures = wb.figures(stored)
    assert figures
    for name, figure in figures.items():
        assert figure.data and (figure.layout.meta or {}).get("alt"), f"{name} has no words for those who cannot see it"
        if any("xaxis" in trace for trace in figure.data):  # a Sankey diagram has no axes
            axes = [*figure.select_xaxes(), *figure.select_yaxes()]
            assert any(axis.title.text for axis in axes), f"{name} has no axis with a title"
