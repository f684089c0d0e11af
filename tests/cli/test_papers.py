"""The command line as a user meets it: exit codes, one sentence per mistake, files written, cancel, kill and resume."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_runner import workbench

SMALL = ("--set", "n_inputs=12", "--set", "scores=awft,ahon_ln", "--set", "n_random=1", "--set", "length=24")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[int, str, Path]:
    """One small run, written to a folder."""
    out = tmp_path_factory.mktemp("run") / "out"
    code, text, _ = workbench("run", "attention_sinks", *SMALL, "--out", str(out))
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
    _, text, _ = workbench("run", "attention_sinks", *SMALL, "--set", "controls=false", "--out", str(tmp_path / "o"), "--json")
    assert set(json.loads(text)) == {"partial", "passed", "claims", "warnings", "report"}


def test_exit_code_is_1_when_a_control_holds_or_a_claim_does_not(monkeypatch, tmp_path):
    from workbench.core.claims import Claim
    from workbench.papers import method

    module = method("attention_sinks")
    holding = Claim("a control that holds", "here", lambda r: 1.0, ">", 0.0, "made for this test", kind="control")
    monkeypatch.setattr(module, "CLAIMS", (holding,))
    code, text, _ = workbench("run", "attention_sinks", *SMALL, "--set", "controls=false", "--out", str(tmp_path / "o"))
    assert code == 1 and "CONTROL HOLDS" in text


def test_list_and_help_are_quick():
    """Measured on a quiet machine: 0.12 s and 0.25 s; the bound leaves room for a busy one."""
    command = Path(sys.executable).with_name("workbench")
    for argument in ("--help", "list"):
        seconds = []
        for _ in range(3):
            started = time.monotonic()
            assert subprocess.run([command, argument], capture_output=True, check=False).returncode == 0
            seconds.append(time.monotonic() - started)
        assert min(seconds) < 1.5
    assert "attention_sinks" in subprocess.run([command, "list"], capture_output=True, text=True, check=True).stdout


def test_list_json():
    _, text, _ = workbench("list", "--json")
    papers = json.loads(text)
    assert len(papers) == 63 and next(p for p in papers if p["stem"] == "attention_sinks")["ready"]


def test_doctor_sees_this_machine():
    code, text, _ = workbench("doctor")
    assert code == 0 and "all within the pins" in text and "offline by HF_HUB_OFFLINE" in text


def test_organisms_list_and_verify():
    assert "ships" in workbench("organisms", "list")[1]
    code, text, _ = workbench("organisms", "verify", "attention-sink")
    assert code == 0 and "2 of 2 claims hold" in text


def _start(out: Path, **environment: str) -> subprocess.Popen:
    command = Path(sys.executable).with_name("workbench")
    arguments = [command, "run", "attention_sinks", "--set", "n_inputs=60", "--set", "controls=false", "--out", out]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment)


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
    code, text, _ = workbench("run", "attention_sinks", "--set", "n_inputs=60", "--set", "controls=false", "--out", str(out), "--json")
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
    """No simulation of the disk: its own limit on the size of a file, between the result's files and the report's megabytes."""
    resource = pytest.importorskip("resource", reason="the limit on file sizes is set with the module resource: runs on Linux and macOS")
    from workbench.core.result import Result

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        code, text, errors = workbench("run", "attention_sinks", *SMALL, "--set", "controls=false", "--out", str(tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code in (0, 1) and "measured" in text and "Report with figures" not in text
    assert "the report could not be written (File too large)" in errors and "workbench report" in errors
    assert not Result.load(tmp_path / "out" / "result").partial and not (tmp_path / "out" / "report.html").exists()


def test_a_disk_that_fills_up_loses_nothing(tmp_path, monkeypatch):
    """Neither keeping in the middle nor saving at the end may lose the run; the last line says where everything went."""
    from workbench.core.result import Result

    real = Result.save

    def full(self, folder):
        if Path(folder).is_relative_to(tmp_path / "out"):
            raise OSError(28, "No space left on device")
        return real(self, folder)

    monkeypatch.setattr(Result, "save", full)
    monkeypatch.setenv("WORKBENCH_KEEP_SECONDS", "0")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, text, errors = workbench("run", "attention_sinks", *SMALL, "--set", "controls=false", "--out", str(tmp_path / "out"))
    assert code in (0, 1) and "measured" in text
    assert "the run goes on" in errors and "everything went to" in errors
    (saved,) = tmp_path.glob("workbench-*/result")
    assert not Result.load(saved).partial


def test_resuming_with_another_spec_is_refused(tmp_path, finished):
    from workbench.core.result import Result

    partial = Result.load(finished[2] / "result")
    Result(partial.provenance, partial.data, {}, True).save(tmp_path / "out" / "result")
    code, _, errors = workbench("run", "attention_sinks", *SMALL, "--set", "seed=5", "--out", str(tmp_path / "out"))
    assert code == 2 and "another spec" in errors


RUN = ("run", "attention_sinks")
WRONG = [
    (("run",), "Missing argument"),
    (("nosuch",), "No such command"),
    (("--nosuch",), "No such option"),
    (("list", "--jsn"), "No such option"),
    (("run", "atention_sinks"), "Closest: attention_sinks"),
    (("run", "epic"), "has no method yet. Ready: attention_sinks"),
    ((*RUN, "--scale", "big"), "must be tiny or paper, got 'big'"),
    ((*RUN, "--set", "n_inputs"), "wants FIELD=VALUE"),
    ((*RUN, "--set", "n_input=3"), "Closest: n_inputs"),
    ((*RUN, "--set", "n_inputs=0"), "at least 1 inputs, got 0"),
    ((*RUN, "--set", "n_inputs=many"), "must be of type int, got 'many'"),
    ((*RUN, "--set", "controls=maybe"), "must be true or false"),
    ((*RUN, "--set", "task=chess"), "must be one of bigram_backcopy, choices, text"),
    ((*RUN, "--set", "scores=ahon_ln"), "must contain awft"),
    ((*RUN, "--set", "scores=ahon_ln,awft,xyz"), "must be one of"),
    ((*RUN, "--set", "shares=0.1,0.2"), "must increase from 0"),
    ((*RUN, "--set", "shares=0,2"), "must be at most 1"),
    ((*RUN, "--set", "model.dtype=int8"), "must be one of float32"),
    ((*RUN, "--set", "model.device=tpu"), "device must be auto, cpu"),
    ((*RUN, "--set", "model.device=cuda"), "sees no CUDA GPU"),
    ((*RUN, "--model", "organism:attention-snk"), "Closest: attention-sink"),
    ((*RUN, "--model", "./nowhere"), "no directory './nowhere'"),
    ((*RUN, "--model", "no-one/no-model"), "hf download no-one/no-model"),
    ((*RUN, "--model", "{empty}"), "without config.json"),
    ((*RUN, "--model", "{bert}"), "needs a causal-lm"),
    ((*RUN, "--model", "{llama}", "--set", "source=nowhere.txt"), "could not be read"),
    ((*RUN, "--model", "{llama}", "--set", "task=bigram_backcopy", "--set", "model.name={wide}"), "96 tokens"),
    ((*RUN, "--model", "{llama}", "--set", "task=choices", "--set", "source={bad_jsonl}"), "bad.jsonl line 2"),
    ((*RUN, "--model", "{llama}", "--set", "task=choices", "--set", "source=missing.jsonl"), "no file 'missing.jsonl'"),
    ((*RUN, "--out", "{a_file}"), "cannot be written"),
    (("organisms", "build", "attention"), "Closest: attention-sink"),
    (("organisms", "verify", "nosuch"), "no organism called 'nosuch'"),
    (("lab", "--port", "99999999"), "Invalid value for '--port'"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_models) -> dict[str, str]:
    """Directories and files that the wrong calls point at."""
    import transformers as tf

    root = tmp_path_factory.mktemp("wrong")
    (root / "empty").mkdir()
    (root / "file").write_text("not a folder")
    (root / "bad.jsonl").write_text('{"question": "q", "choices": ["a", "b"], "answer": 0}\n{"question": "q", "choices": ["a"], "answer": 0}\n')
    config = tf.LlamaConfig(vocab_size=96, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    tf.LlamaForCausalLM(config).save_pretrained(root / "wide")
    named = {"empty": "empty", "a_file": "file", "bad_jsonl": "bad.jsonl", "wide": "wide"}
    return {k: str(root / v) for k, v in named.items()} | {k: str(tiny_models[k]) for k in ("bert", "llama")}


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="a machine without CUDA runs this: one row asks for it")
@pytest.mark.parametrize(("arguments", "says"), WRONG, ids=[" ".join(a)[:60] for a, _ in WRONG])
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, says, places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, errors = workbench(*(a.format(**places) for a in arguments))
    assert (code, out) == (2, "")
    assert says in errors and len(errors.strip().splitlines()) == 1 and "Traceback" not in errors


def test_lab_listens_on_loopback_with_a_token(monkeypatch):
    called = []
    monkeypatch.setattr(subprocess, "call", lambda command: called.append(command) or 0)
    assert workbench("lab", "--no-browser")[0] == 0
    assert "--ip=127.0.0.1" in called[0] and not any("token" in part and part.endswith("=") for part in called[0])
