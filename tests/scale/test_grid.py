"""A sweep: one row per cell, finished rows are not run again, failures are rows, a damaged row is run again."""

import contextlib
import threading

import pandas as pd
import pytest
from scale import scale_tasks

from workbench.core import files
from workbench.core.errors import BadSpec
from workbench.core.progress import Progress
from workbench.scale import grid
from workbench.scale.executors import Processes
from workbench.scale.grid import cells_of, parse_grid, save_table, sweep

RUN = "scale.scale_tasks:run"
CELLS = cells_of({"a": [1, 2], "seed": [0, 1, 2]})


def calls(folder) -> int:
    return sum(len(p.read_text().splitlines()) for p in folder.glob("runs/*/calls"))


def test_cells_are_every_combination_the_last_field_fastest():
    assert cells_of({"a": [1, 2], "seed": [0, 1]}) == [
        {"a": 1, "seed": 0},
        {"a": 1, "seed": 1},
        {"a": 2, "seed": 0},
        {"a": 2, "seed": 1},
    ]
    assert cells_of({}) == [{}]
    with pytest.raises(BadSpec, match="no values for seed"):
        cells_of({"a": [1], "seed": []})


@pytest.mark.parametrize(
    ("texts", "grid"),
    [
        (["model=a, b"], {"model": ["a", "b"]}),
        (["seed=0..4"], {"seed": ["0", "1", "2", "3", "4"]}),
        (["seed=-1..1"], {"seed": ["-1", "0", "1"]}),
        (["shares=0,0.1|0,0.2"], {"shares": ["0,0.1", "0,0.2"]}),
        (["x=0.1..0.2"], {"x": ["0.1..0.2"]}),
        (["a=1", "model=./m=1"], {"a": ["1"], "model": ["./m=1"]}),
    ],
    ids=["list", "range", "negative", "bars", "no range", "two"],
)
def test_a_grid_from_words(texts, grid):
    assert parse_grid(texts) == grid


@pytest.mark.parametrize(
    "texts", [["seed"], ["=1"], ["a="], ["a=1,,2"], ["a=3..1"], ["a=1", "a=2"]], ids=lambda t: " ".join(t)
)
def test_a_grid_that_is_none(texts):
    with pytest.raises(BadSpec, match="--grid"):
        parse_grid(texts)


def test_one_row_a_cell_with_failures_as_rows(tmp_path):
    progress = Progress()
    table = sweep(RUN, CELLS, tmp_path, progress=progress)
    assert table[["a", "seed"]].to_dict("records") == CELLS and progress.done == 6
    assert table["status"].tolist() == ["ok", "ok", "failed"] * 2
    assert (
        table["score"].tolist()[:2] == [10, 11] and table["error"].tolist()[2] == "RuntimeError: seed 2 does not work"
    )
    assert (table["seconds"] >= 0).all()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "sweep.parquet"), table, check_dtype=False)


def test_what_is_finished_is_not_run_again(tmp_path):
    first = sweep(RUN, CELLS, tmp_path)
    assert calls(tmp_path) == 6
    pd.testing.assert_frame_equal(sweep(RUN, CELLS, tmp_path), first)
    assert calls(tmp_path) == 6
    sweep(RUN, CELLS, tmp_path, retry_failed=True)
    assert calls(tmp_path) == 8, "the two failures"
    (tmp_path / first["folder"][0] / "row.json").write_text('{"status": "o')
    assert sweep(RUN, CELLS, tmp_path)["score"][0] == 10 and calls(tmp_path) == 9
    more = sweep(RUN, [*CELLS, {"a": 3, "seed": 0}], tmp_path)
    assert len(more) == 7 and calls(tmp_path) == 10


def test_a_cancelled_sweep_says_what_did_not_run_and_goes_on(tmp_path):
    class Stop(Progress):
        def show(self) -> None:
            if self.done == 1:  # noticed at the next report
                self.cancel()

    table = sweep(RUN, CELLS, tmp_path, progress=Stop())
    assert table["status"].tolist() == ["ok", "ok", *["not run"] * 4]
    assert sweep(RUN, CELLS, tmp_path)["status"].tolist() == ["ok", "ok", "failed"] * 2 and calls(tmp_path) == 6


def test_a_run_that_kills_its_worker_is_a_row_too(tmp_path):
    with Processes(1) as executor:
        table = sweep(
            "scale.scale_tasks:run_and_die", cells_of({"a": [1], "seed": [0, 1]}), tmp_path, executor=executor
        )
    assert table["status"].tolist() == ["ok", "failed"] and "WorkerDied" in table["error"][1]


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ("scale.scale_tasks:not_json", "TypeError"),
        ("scale.scale_tasks:nothing", "AttributeError"),
        ("no.such.module:run", "ModuleNotFoundError"),
    ],
)
def test_a_function_that_cannot_be_used_is_a_failed_row(run, says, tmp_path):
    table = sweep(run, [{"a": 1}], tmp_path)
    assert table["status"].tolist() == ["failed"] and table["error"][0].startswith(says)


def test_a_table_of_mixed_cells_is_written(tmp_path):
    save_table(pd.DataFrame({"x": [1, "a", None], "y": [1, 2, 3]}), tmp_path / "t.parquet")
    assert pd.read_parquet(tmp_path / "t.parquet")["x"].tolist() == ["1", "a", "None"] and [
        p.name for p in tmp_path.iterdir()
    ] == ["t.parquet"]


def test_the_spec_of_a_cell_is_what_the_function_is_given(tmp_path):
    table = sweep(RUN, [{"name": "one"}], tmp_path, specs=[{"a": 7}])
    assert table["score"].tolist() == [70] and table["name"].tolist() == ["one"] and scale_tasks.double(1) == 2


def test_two_sweeps_of_one_folder_share_the_cells_and_both_give_the_whole_table(tmp_path):
    tables = []
    cells = [cell for cell in CELLS if cell["seed"] != 2]
    both = [
        threading.Thread(target=lambda: tables.append(sweep("scale.scale_tasks:run_slowly", cells, tmp_path)))
        for _ in range(2)
    ]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert calls(tmp_path) == len(cells)
    assert [table["status"].tolist() for table in tables] == [["ok"] * len(cells)] * 2


def test_a_cell_whose_sweep_ended_without_a_row_is_done_by_the_one_that_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "WAIT_SECONDS", 0.05)
    sweep(RUN, CELLS[:1], tmp_path)
    (home,) = (tmp_path / "runs").iterdir()
    (home / "row.json").unlink()
    with contextlib.ExitStack() as other:
        assert other.enter_context(files.claimed(home / ".lock"))
        tables = []
        waiting = threading.Thread(target=lambda: tables.append(sweep(RUN, CELLS[:1], tmp_path)))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive() and calls(tmp_path) == 1
    waiting.join(30)
    assert tables[0]["status"].tolist() == ["ok"] and calls(tmp_path) == 2


def test_a_cell_that_failed_meanwhile_is_tried_again_only_where_that_was_asked(tmp_path):
    sweep(RUN, CELLS[:3], tmp_path)
    (home,) = (p.parent for p in tmp_path.glob("runs/*/row.json") if '"failed"' in p.read_text())
    assert grid.run_cell(RUN, {"a": 1, "seed": 2}, str(home)) == str(home) and calls(tmp_path) == 3
    grid.run_cell(RUN, {"a": 1, "seed": 2}, str(home), True)
    assert calls(tmp_path) == 3 + 1
