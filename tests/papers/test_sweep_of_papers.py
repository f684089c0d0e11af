"""A paper's method over a grid: a row per run with its claims, the Result beside it, and the command that does it."""

import pandas as pd
import pytest
from cli_runner import workbench

from workbench.core.claims import check
from workbench.core.errors import BadSpec, UnknownName
from workbench.core.result import Result
from workbench.papers import method
from workbench.papers.sweep import spec_of, sweep

FAST = {"n_inputs": [12], "scores": ["awft,ahon_ln"], "n_random": [1], "length": [24], "controls": [False]}
FAST_WORDS = (
    "--set",
    "n_inputs=12",
    "--set",
    "scores=awft,ahon_ln",
    "--set",
    "n_random=1",
    "--set",
    "length=24",
    "--set",
    "controls=false",
)


def test_a_row_per_run_with_every_claims_number(tmp_path):
    table = sweep(
        "attention_sinks",
        {**FAST, "model": ["organism:attention-sink", "organism:induction", "./nowhere"], "seed": [0]},
        folder=tmp_path,
    )
    assert (
        table["status"].tolist() == ["ok", "ok", "failed"]
        and "ModelNotFound: no directory './nowhere'" in table["error"][2]
    )
    assert table["model_name"].tolist()[:2] == ["organism:attention-sink", "organism:induction"]
    module = method("attention_sinks")
    for i in range(2):
        result = Result.load(tmp_path / table["folder"][i] / "result")
        checked = check(result, module.CLAIMS)
        assert result.spec == spec_of(module, {k: table[k][i] for k in (*FAST, "model", "seed")}).to_dict()
        n_settled = sum(line.ok is not None for line in checked.lines)
        assert table["passed"][i] == checked.passed and table["holds"][i].endswith(f"of {n_settled}")
        for line in checked.lines:
            if line.ok is not None:
                assert table[f"{line.claim.kind}: {line.claim.text}"][i] == line.measured


def test_a_wrong_field_or_value_is_found_before_the_first_run(tmp_path):
    for grid, error, says in [
        ({"n_input": [3]}, UnknownName, "Closest: n_inputs"),
        ({"n_inputs": [3, 0]}, BadSpec, "at least 1"),
        ({"model": ["a"], "model.name": ["b"]}, BadSpec, "the same field"),
        ({"seed": []}, BadSpec, "no values"),
    ]:
        with pytest.raises(error, match=says):
            sweep("attention_sinks", grid, folder=tmp_path)
    with pytest.raises(UnknownName, match="Closest"):
        sweep("attention_sink", {}, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_cells_may_be_words_or_values():
    module = method("attention_sinks")
    assert spec_of(module, {"seed": "3", "shares": "0,0.1"}) == spec_of(module, {"seed": 3, "shares": (0.0, 0.1)})
    assert spec_of(module, {"model.dtype": "bfloat16"}).model.dtype == "bfloat16"


def test_the_command_writes_a_table_and_goes_on(tmp_path):
    out = str(tmp_path / "out")
    call = ("sweep", "attention_sinks", *FAST_WORDS, "--grid", "seed=0..1", "--out", out)
    code, text, _ = workbench(*call)
    table = pd.read_parquet(tmp_path / "out" / "sweep.parquet")
    assert code == 0 and table["status"].tolist() == ["ok", "ok"] and table["seed"].tolist() == ["0", "1"]
    assert "passed" in text and "sweep.parquet" in text and "claim: " not in text
    before = [(tmp_path / "out" / f / "row.json").stat().st_mtime_ns for f in table["folder"]]
    code, _, _ = workbench(*call[:-2], "--grid", "model=organism:attention-sink,./nowhere", "--out", out)
    assert code == 1, "a run failed"
    assert workbench(*call)[0] == 0 and before == [
        (tmp_path / "out" / f / "row.json").stat().st_mtime_ns for f in table["folder"]
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--grid", "seed"), "--grid wants FIELD=VALUE"),
        (("--grid", "sed=1"), "Closest: seed"),
        (("--grid", "seed=1", "--workers", "0"), "--workers"),
        (("--grid", "seed=1", "--dask", "here"), "tcp:// address"),
        (("--grid", "seed=1", "--scale", "big"), "must be tiny or paper"),
        ((), "--grid"),
    ],
    ids=["no value", "field", "workers", "dask", "scale", "no grid"],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, errors = workbench("sweep", "attention_sinks", *arguments)
    assert (code, out) == (2, "") and says in errors and len(errors.strip().splitlines()) == 1
