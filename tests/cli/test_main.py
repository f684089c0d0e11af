"""The command line as a whole: `--help` and `list` are quick, and a mistake is one sentence with exit code 2."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_runner import workbench


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


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "workbench.cli", "list"]
    assert "attention_sinks" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


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
    ((*RUN, "--model", "{quantised}"), "are quantised (awq)"),
    ((*RUN, "--model", "{pointer}"), "run `git lfs pull`"),
    ((*RUN, "--model", "{other_shape}"), "weights of another shape"),
    ((*RUN, "--model", "{odd_entry}"), "could not be loaded"),
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
    questions = [{"question": "q", "choices": choices, "answer": 0} for choices in (["a", "b"], ["a"])]
    (root / "bad.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=96, **size)).save_pretrained(root / "wide")
    damaged = {"quantised": {"quantization_config": {"quant_method": "awq"}}, "pointer": {}}
    damaged |= {"other_shape": {"intermediate_size": 31}, "odd_entry": {"rms_norm_eps": [1]}}
    for name, entries in damaged.items():
        shutil.copytree(tiny_models["llama"], root / name)
        config = json.loads((root / name / "config.json").read_text()) | entries
        (root / name / "config.json").write_text(json.dumps(config))
    (root / "pointer" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    named = {"empty": "empty", "a_file": "file", "bad_jsonl": "bad.jsonl", "wide": "wide"} | {n: n for n in damaged}
    return {k: str(root / v) for k, v in named.items()} | {k: str(tiny_models[k]) for k in ("bert", "llama")}


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="one row asks for CUDA where there is none")
@pytest.mark.parametrize(("arguments", "says"), WRONG, ids=[" ".join(a)[:60] for a, _ in WRONG])
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, says, places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, errors = workbench(*(a.format(**places) for a in arguments))
    assert (code, out) == (2, "")
    assert says in errors and len(errors.strip().splitlines()) == 1 and "Traceback" not in errors


def test_a_reader_that_stops_reading_is_no_failed_claim():
    """The pipe is closed before the first line, as `| head` may close it before the last."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "workbench.cli", "list"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert done.returncode == 141 and not done.stderr


def test_a_name_that_is_no_utf8_is_refused_in_one_sentence(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    code, _, errors = workbench("run", "attention_sinks", "--out", name)
    assert (code, errors.count("\n")) == (2, 1) and "is not UTF-8; give a name that is" in errors
    assert not list(tmp_path.iterdir())


def test_an_account_without_a_home_is_one_sentence(monkeypatch):
    for name in ("XDG_CACHE_HOME", "WORKBENCH_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    code, _, errors = workbench("organisms", "list")
    assert (code, errors.count("\n")) == (2, 1) and "set WORKBENCH_CACHE to a folder" in errors
    monkeypatch.setenv("WORKBENCH_CACHE", "elsewhere")
    assert workbench("organisms", "list")[0] == 0
