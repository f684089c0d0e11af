"""The reports as a user meets them: one small run becomes a page, bundles, a reproduction, a comparison."""

import json
from pathlib import Path

import pandas as pd
import pytest
from cli_runner import workbench

SETTINGS = ("n_inputs=12", "scores=awft,ahon_ln", "n_random=1", "length=24", "controls=false")
SMALL_RUN = ("run", "attention_sinks", *(word for setting in SETTINGS for word in ("--set", setting)))


@pytest.fixture(scope="module", autouse=True)
def no_browser():
    """Pictures are the business of tests/reports; these commands must work without them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BROWSER_PATH", "/nowhere/chromium")
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """Two small runs that differ in their seed."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        workbench(*SMALL_RUN, "--set", f"seed={seed}", "--out", str(folder / str(seed)))
    return folder / "0", folder / "1"


@pytest.fixture(scope="module")
def bundles(runs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bundles")
    code, text, problem = workbench("bundle", str(runs[0]), "--out", str(out))
    assert code == 0 and "needs Chromium" in problem and "accuracy_vs_share" in text
    return out


def test_a_result_becomes_a_page(runs, tmp_path):
    code, text, _ = workbench("report", str(runs[0]), "--out", str(tmp_path))
    page = (tmp_path / "attention_sinks.html").read_text()
    assert code == 0 and str(tmp_path / "attention_sinks.html") in text
    claims = json.loads((runs[0] / "claims.json").read_text())
    assert all(claim["text"].replace("<", "&lt;").replace(">", "&gt;") in page for claim in claims)
    assert "://" not in page.split("plotly", 1)[0]


def test_several_become_one_document_with_a_front_page(runs, tmp_path):
    code, _, _ = workbench("report", *map(str, runs), "--out", str(tmp_path))
    page = next(tmp_path.iterdir()).read_text()
    assert code == 0 and "2 analyses" in page and page.count('<section class=stem id="part-') == 2


def test_bundles_reproduce_to_the_last_bit(bundles):
    data = pd.read_csv(bundles / "accuracy_vs_share" / "data.csv")
    assert {"trace", "x", "y"} <= set(data.columns) and len(data) > 10
    code, text, _ = workbench("reproduce", str(bundles / "accuracy_vs_share"))
    assert code == 0 and f"same: all {len(data)} drawn rows" in text


def test_a_bundle_of_another_seed_differs(bundles, runs, tmp_path):
    about = json.loads((bundles / "accuracy_vs_share" / "provenance.json").read_text())
    about["provenance"]["spec"]["seed"] = 1
    copy = tmp_path / "other"
    copy.mkdir()
    (copy / "data.csv").write_bytes((bundles / "accuracy_vs_share" / "data.csv").read_bytes())
    (copy / "provenance.json").write_text(json.dumps(about))
    code, text, _ = workbench("reproduce", str(copy))
    assert code == 1 and ("differs" in text or "different" in text)


def test_two_runs_are_compared(runs, tmp_path):
    code, text, _ = workbench("compare", *map(str, runs), "--out", str(tmp_path), "--json")
    found = json.loads(text)
    assert code == 0 and "spec.seed: 0 in A, 1 in B" in found["notes"] and Path(found["report"]).is_file()
    claims = [json.loads((run / "claims.json").read_text()) for run in runs]
    for row, one, other in zip(found["claims"], *claims, strict=True):
        for side, claim in (("A", one), ("B", other)):
            assert row[side] is None if claim["measured"] is None else row[side] == pytest.approx(claim["measured"])


def test_index_check_and_gallery(tmp_path):
    assert workbench("index", "--check")[0] == 0
    code, _, _ = workbench("gallery", "--out", str(tmp_path / "gallery.html"))
    assert code == 0 and "Key figures" in (tmp_path / "gallery.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("report", "attention_sink"), "is no stem of `workbench list`, no notebook and no result folder"),
        (("report", "epic"), "epic has no notebook yet"),
        (("report", "attention_sinks", "--to", "docx"), "--to must be html, slides, pdf"),
        (("reproduce", "nowhere"), "holds no readable provenance.json"),
        (("compare", "a", "b"), "holds no readable result.json"),
        (("publish", "epic"), "epic has no notebook yet"),
        (("publish", "what"), "no stem of `workbench list` and no notebook"),
    ],
    ids=["unknown", "not ready", "format", "no bundle", "no result", "publish planned", "publish unknown"],
)
def test_mistakes_become_one_sentence(arguments, says):
    code, _, error = workbench(*arguments)
    assert code == 2 and says in error and "Traceback" not in error and error.count("\n") == 1


ASKS = {"n": 1, "model": {"name": "x", "trust_remote_code": True}, "other": {"name": "y", "trust_remote_code": False}}


@pytest.mark.parametrize("trusted", [False, True])
def test_a_bundle_cannot_say_that_code_is_run(tmp_path, monkeypatch, trusted):
    import dataclasses

    from workbench import papers
    from workbench.core.provenance import Provenance
    from workbench.models import ModelSpec
    from workbench.reports import bundle

    @dataclasses.dataclass(frozen=True)
    class Spec(type(ModelSpec()).__mro__[1]):
        n: int = 0
        model: ModelSpec = ModelSpec()
        other: ModelSpec = ModelSpec()

    ran = []
    paper = type("paper", (), {"Spec": Spec, "run": staticmethod(lambda spec, **_: ran.append(spec))})
    monkeypatch.setattr(papers, "method", lambda stem: paper)
    monkeypatch.setattr("workbench.views.figures", lambda result: {})
    about = {"figure": "f", "provenance": Provenance("attention_sinks", ASKS, 0).to_dict()}
    monkeypatch.setattr(bundle, "_read", lambda folder: (about, pd.DataFrame()))
    _, _, said = workbench("reproduce", str(tmp_path), *(["--trust-remote-code"] if trusted else []))
    assert [spec.model.trust_remote_code for spec in ran] == [trusted] and not ran[0].other.trust_remote_code
    assert ran[0].model.name == "x" and ("give --trust-remote-code" in said) == (not trusted)
