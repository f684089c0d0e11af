"""Runs as a user meets them: exit codes, what is printed, files written, cancel, kill and resume."""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_runner import workbench

SETTINGS = ("--set", "n_inputs=12", "--set", "scores=awft,ahon_ln", "--set", "n_random=1", "--set", "length=24")
SMALL_RUN = ("run", "attention_sinks", *SETTINGS)
SLOW_RUN = ("run", "attention_sinks", "--set", "n_inputs=60", "--set", "controls=false")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[int, str, Path]:
    """One small run, written to a folder."""
    out = tmp_path_factory.mktemp("run") / "out"
    code, text, _ = workbench(*SMALL_RUN, "--out", str(out))
    return code, text, out


def test_run_prints_claims_and_writes_what_it_promises(finished):
    code, text, out = finished
    claims = json.loads((out / "claims.json").read_text())
    assert code == (0 if all(c["ok"] is not False for c in claims) else 1)
    for claim in claims:
        assert claim["text"] in text
    assert json.loads((out / "provenance.json").read_text())["spec"]["n_inputs"] == 12
    assert (out / "result" / "result.json").is_file()
    page = (out / "report.html").read_text()
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=.?https?:", page)
    if shutil.which("chromium"):
        assert (out / "figures" / "accuracy_vs_share.png").stat().st_size > 10_000


def test_a_saved_result_gives_the_same_claims(finished):
    from workbench.core.claims import check
    from workbench.core.result import Result
    from workbench.papers import method

    rows = check(Result.load(finished[2] / "result"), method("attention_sinks").CLAIMS).rows()
    assert rows == json.loads((finished[2] / "claims.json").read_text())


def test_json_output_is_json(tmp_path):
    _, text, _ = workbench(*SMALL_RUN, "--set", "controls=false", "--out", str(tmp_path / "o"), "--json")
    assert set(json.loads(text)) == {"partial", "passed", "claims", "warnings", "report"}


def test_exit_code_is_1_when_a_control_holds_or_a_claim_does_not(monkeypatch, tmp_path):
    from workbench.core.claims import Claim
    from workbench.papers import method

    module = method("attention_sinks")
    holding = Claim("a control that holds", "here", lambda r: 1.0, ">", 0.0, "made for this test", kind="control")
    monkeypatch.setattr(module, "CLAIMS", (holding,))
    code, text, _ = workbench(*SMALL_RUN, "--set", "controls=false", "--out", str(tmp_path / "o"))
    assert code == 1 and "CONTROL HOLDS" in text


def test_list_json():
    _, text, _ = workbench("list", "--json")
    papers = json.loads(text)
    assert len(papers) == 63 and next(p for p in papers if p["stem"] == "attention_sinks")["ready"]


def _start(out: Path, **environment: str) -> subprocess.Popen:
    command = Path(sys.executable).with_name("workbench")
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    pipe = subprocess.PIPE
    return subprocess.Popen([command, *SLOW_RUN, "--out", out], stdout=pipe, stderr=pipe, text=True, env=env)


def _wait_for(path: Path, running: subprocess.Popen) -> None:
    for _ in range(600):
        if path.is_file():
            return
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.05)
    raise AssertionError("nothing was kept within 30 s")


def _filled(out: Path) -> int:
    from workbench.core.result import Result

    return int(Result.load(out / "result").data["accuracy"].notnull().any("input").sum())


@pytest.mark.slow
def test_killed_run_resumes_from_what_was_kept(tmp_path):
    out = tmp_path / "out"
    running = _start(out, WORKBENCH_KEEP_SECONDS="0")
    _wait_for(out / "result" / "result.json", running)
    running.kill()
    running.wait()
    before = _filled(out)
    assert 0 < before < 15 * 7
    code, text, _ = workbench(*SLOW_RUN, "--out", str(out), "--json")
    assert not json.loads(text)["partial"] and code in (0, 1)
    assert _filled(out) == 15 * 7


@pytest.mark.slow
def test_ctrl_c_keeps_partial_results_and_says_so(tmp_path):
    out = tmp_path / "out"
    running = _start(out, WORKBENCH_KEEP_SECONDS="0")
    _wait_for(out / "result" / "result.json", running)
    running.send_signal(signal.SIGINT)
    text, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "goes on from there" in errors and "not testable" in text
    assert 0 < _filled(out) < 15 * 7


def test_a_report_that_finds_no_room_leaves_claims_and_result(tmp_path, monkeypatch):
    """Not simulated: the disk's own limit on a file's size, between the result's files and the report's megabytes."""
    why = "the limit on file sizes is set with the module resource: runs on Linux and macOS"
    resource = pytest.importorskip("resource", reason=why)
    from workbench.core.result import Result

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        code, text, errors = workbench(*SMALL_RUN, "--set", "controls=false", "--out", str(tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code in (0, 1) and "measured" in text and "Report with figures" not in text
    assert "the report could not be written (File too large)" in errors and "workbench report" in errors
    assert not Result.load(tmp_path / "out" / "result").partial and not (tmp_path / "out" / "report.html").exists()


def test_a_disk_that_fills_up_loses_nothing(tmp_path, monkeypatch):
    """Neither keeping in the middle nor saving at the end may lose the run; the last line says where it all went."""
    from workbench.core.result import Result

    real = Result.save

    def full(self, folder):
        if Path(folder).is_relative_to(tmp_path / "out"):
            raise OSError(28, "No space left on device")
        return real(self, folder)

    monkeypatch.setattr(Result, "save", full)
    monkeypatch.setenv("WORKBENCH_KEEP_SECONDS", "0")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, text, errors = workbench(*SMALL_RUN, "--set", "controls=false", "--out", str(tmp_path / "out"))
    assert code in (0, 1) and "measured" in text
    assert "the run goes on" in errors and "everything went to" in errors
    (saved,) = tmp_path.glob("workbench-*/result")
    assert not Result.load(saved).partial


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("is_partial", "changed"),
    [(False, ()), (False, ("--set", "seed=5")), (True, ("--set", "seed=5"))],  # the fourth goes on from its part
)
def test_a_result_is_not_replaced_by_another_run(tmp_path, monkeypatch, finished, is_partial, changed):
    from workbench.core.result import Result
    from workbench.papers import method

    monkeypatch.setattr(method("attention_sinks"), "run", lambda *_, **__: pytest.fail("it ran"))
    there = Result.load(finished[2] / "result")
    Result(there.provenance, there.data, {}, is_partial).save(tmp_path / "out" / "result")
    before = everything(tmp_path / "out" / "result")
    code, _, errors = workbench(*SMALL_RUN, *changed, "--out", str(tmp_path / "out"))
    state = "partial" if is_partial else "finished"
    assert code == 2 and errors.count("\n") == 1 and "give another folder, or --force" in errors
    assert (
        f"a {state} result of another spec (seed)" if changed else "the finished result of this very spec"
    ) in errors
    assert everything(tmp_path / "out" / "result") == before


def test_force_replaces_a_finished_result_by_a_finished_one_alone(tmp_path, monkeypatch, finished):
    from workbench.core.result import Result
    from workbench.papers import method

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKBENCH_KEEP_SECONDS", "0")
    shutil.copytree(finished[2], tmp_path / "out")
    before = everything(tmp_path / "out")
    module = method("attention_sinks")
    run, seen = module.run, []

    def cancelled(spec, *, progress, **how):
        keep = progress.keep

        def kept(partial):
            keep(partial)
            seen.append(everything(tmp_path / "out"))
            progress.cancel()

        progress.keep = kept
        return run(spec, progress=progress, **how)

    monkeypatch.setattr(module, "run", cancelled)
    again = (*SMALL_RUN, "--set", "seed=5", "--out", str(tmp_path / "out"), "--force")
    code, _, errors = workbench(*again)
    assert code == 130 and seen and all(held == before for held in seen) and everything(tmp_path / "out") == before
    (beside,) = (tmp_path / "workbench-out").iterdir()
    assert Result.load(beside / "result").partial and str(beside.name) in errors
    monkeypatch.setattr(module, "run", run)
    assert workbench(*again)[0] in (0, 1)
    assert Result.load(tmp_path / "out" / "result").spec["seed"] == 5
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["spec"]["seed"] == 5


def test_a_second_run_into_one_folder_waits_outside(tmp_path):
    from workbench.core import files

    with files.claimed(tmp_path / "out" / ".lock"):
        code, _, errors = workbench(*SMALL_RUN, "--out", str(tmp_path / "out"))
    assert (code, errors.count("\n")) == (2, 1) and "another run is writing to" in errors


def test_a_place_that_would_lose_something_is_refused_before_the_run(tmp_path, monkeypatch):
    from workbench.papers import method

    monkeypatch.setattr(method("attention_sinks"), "run", lambda *_, **__: pytest.fail("it ran"))
    (tmp_path / "out" / "result").mkdir(parents=True)
    (tmp_path / "out" / "result" / "thesis.tex").write_text("years")
    for force in ((), ("--force",)):
        code, _, errors = workbench(*SMALL_RUN, "--out", str(tmp_path / "out"), *force)
        assert (code, errors.count("\n")) == (2, 1) and "holds thesis.tex" in errors
    assert (tmp_path / "out" / "result" / "thesis.tex").read_text() == "years"


@pytest.mark.parametrize("seconds", ["abc", "-1", "nan", ""])
def test_keep_seconds_that_are_none_are_one_sentence(tmp_path, monkeypatch, seconds):
    monkeypatch.setenv("WORKBENCH_KEEP_SECONDS", seconds)
    code, _, errors = workbench(*SMALL_RUN, "--out", str(tmp_path / "out"))
    assert (code, errors.count("\n")) == (2, 1) and "WORKBENCH_KEEP_SECONDS must be a number of seconds" in errors


# ---- killed again and again ----

KILLS = 30 if os.environ.get("WORKBENCH_LONG_TESTS") else 6


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_numbers_of_one_that_was_not(tmp_path, monkeypatch, finished):
    """Each time it goes on from what was kept; in the end nothing of the kills is to be seen."""
    from workbench.core.result import Result

    out = tmp_path / "out"
    monkeypatch.setenv("WORKBENCH_KEEP_SECONDS", "0")
    server = multiprocessing.get_context("forkserver")  # imports once for all of them
    server.set_forkserver_preload(["cli_runner", "workbench.papers.attention.attention_sinks.method"])
    moments, n_killed, before = random.Random(0), 0, 0
    while n_killed < KILLS:
        running = server.Process(target=workbench, args=(*SMALL_RUN, "--out", str(out)))
        running.start()
        running.join(moments.uniform(0.5, 8))
        if running.is_alive():
            running.kill()
            running.join()
            n_killed += 1
        left = list(out.glob(".result.*"))
        assert len(left) <= 1, "the next one clears away what a kill left"
        if (out / "result").exists():
            result = Result.load(out / "result")
            assert result.data["accuracy"].notnull().sum() >= before, "never less than there was"
            before = int(result.data["accuracy"].notnull().sum())
            if not result.partial:
                _same(result, Result.load(finished[2] / "result"))
                shutil.rmtree(out)
                before = 0
    code, _, errors = workbench(*SMALL_RUN, "--out", str(out))
    assert code in (0, 1), errors
    _same(Result.load(out / "result"), Result.load(finished[2] / "result"))
    assert not list(out.glob(".result.*"))


def _same(one, other) -> None:
    """Bit for bit, but for the time it took."""
    assert not one.partial and one.data.drop_attrs().identical(other.data.drop_attrs())
    assert one.tables.keys() == other.tables.keys()
    assert all(one.tables[name].equals(other.tables[name]) for name in one.tables)
