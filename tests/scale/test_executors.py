"""One seam, several places: the same answers in the same order, errors and deaths of workers told apart, nothing
left running.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scale import scale_tasks as tasks

from workbench.core.errors import BadSpec
from workbench.core.progress import Cancelled, Progress
from workbench.scale import executors
from workbench.scale.executors import Inline, Processes, WorkerDied, dask, open_executor, run_all


@pytest.fixture(scope="module")
def processes():
    with Processes(2) as executor:
        yield executor


@pytest.fixture(params=["inline", "processes"])
def executor(request, processes):
    return Inline() if request.param == "inline" else processes


class CancelAfter(Progress):
    def __init__(self, n: int):
        super().__init__()
        self.n = n

    def show(self) -> None:
        if self.done >= self.n:
            self.cancel()


def test_a_future_is_a_future(executor):
    future = executor.submit(tasks.double, 4)
    assert future.result(timeout=60) == 8 and future.done()
    with pytest.raises(ValueError, match="task 3 is no good"):
        executor.submit(tasks.fail, 3).result(timeout=60)


def test_answers_come_in_the_order_of_the_tasks(executor):
    told, progress = [], Progress()
    answers = run_all(
        executor,
        tasks.double,
        [(n,) for n in range(7)],
        on_done=lambda number, answer: told.append((number, answer)),
        progress=progress,
    )
    assert answers == [0, 2, 4, 6, 8, 10, 12]
    assert sorted(told) == list(enumerate(answers)) and (progress.done, progress.total) == (7, 7)
    assert run_all(executor, tasks.double, []) == []


def test_an_error_stops_everything_or_becomes_an_answer(executor):
    with pytest.raises(ValueError, match="is no good"):
        run_all(executor, tasks.fail_if_odd, [(n,) for n in range(4)])
    assert run_all(
        executor, tasks.fail_if_odd, [(n,) for n in range(4)], on_error=lambda number, error: f"{number}: {error}"
    ) == [0, "1: task 1 is no good", 2, "3: task 3 is no good"]


def test_a_cancel_is_noticed(executor):
    with pytest.raises(Cancelled):
        run_all(executor, tasks.double, [(n,) for n in range(50)], progress=CancelAfter(2))


def test_inline_runs_one_task_at_a_time_and_no_more_after_a_cancel():
    ran = []
    with pytest.raises(Cancelled):
        run_all(Inline(), lambda n: ran.append(n), [(n,) for n in range(50)], progress=CancelAfter(2))
    assert ran == [0, 1, 2], "cancelled while two were done, noticed at the next report"


def test_workers_are_other_processes_with_their_share_of_threads(processes, monkeypatch):
    found = run_all(processes, tasks.who, [(n,) for n in range(4)])
    assert os.getpid() not in {f["pid"] for f in found} and [f["n"] for f in found] == [0, 1, 2, 3]
    assert all(int(f["threads"]) >= 1 for f in found)


def test_each_worker_sees_one_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    with Processes() as executor:
        assert executor.n_workers == 2
        assert set(run_all(executor, tasks.seat, [(n,) for n in range(6)])) == {"5", "7"}


def test_a_killed_worker_changes_no_answer(tmp_path):
    with Processes(2) as executor:
        assert run_all(executor, tasks.die_once, [(n, str(tmp_path)) for n in range(6)]) == [0, 1, 2, 3, 4, 5]
    assert (tmp_path / "2.began").read_text() == "done\n"


def test_a_task_that_always_kills_its_worker_is_named_and_the_others_are_not_blamed():
    with Processes(2) as executor:
        answers = run_all(executor, tasks.die_if_three, [(n,) for n in range(6)], on_error=lambda number, error: error)
        assert [a for a in answers if isinstance(a, int)] == [0, 1, 2, 4, 5]
        assert isinstance(answers[3], WorkerDied) and "task 3 lost its worker 3 times" in str(answers[3])
        with pytest.raises(WorkerDied):
            run_all(executor, tasks.die, [(0,)])


def test_an_executor_from_words(monkeypatch):
    asked = []
    monkeypatch.setattr(executors, "dask", lambda address=None, n_workers=None: asked.append((address, n_workers)))
    assert (
        isinstance(open_executor(None), Inline)
        and isinstance(open_executor("inline"), Inline)
        and isinstance(open_executor(None, 1), Inline)
    )
    assert open_executor(None, 3).n_workers == 3 and open_executor("processes", 2).n_workers == 2
    open_executor("local", 4)
    open_executor("tcp://there:8786")
    assert asked == [(None, 4), ("tcp://there:8786", None)]
    with pytest.raises(BadSpec, match="inline, in processes, on dask"):
        open_executor("cloud")
    with pytest.raises(BadSpec, match="at least one worker"):
        Processes(0)


@pytest.mark.parametrize(("module", "call"), [("distributed", {}), ("dask_jobqueue", {"slurm": {"queue": "gpu"}})])
def test_a_missing_package_gives_the_install_line(module, call, monkeypatch):
    pytest.importorskip("distributed", reason='dask is not installed: pip install -e ".[test]" runs this')
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'circuit-workbench\[dask\]'"):
        dask(**call)


def test_dask_takes_one_place_only():
    with pytest.raises(BadSpec, match="not both"):
        dask("tcp://127.0.0.1:1", slurm={})


PARENT = """
import sys
from scale import scale_tasks
from workbench.scale.executors import Processes, run_all

if __name__ == "__main__":
    with Processes(1) as executor:
        run_all(executor, scale_tasks.sleep_and_touch, [(sys.argv[1],)])
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_workers_end_with_the_process_that_started_them(tmp_path, how):
    (tmp_path / "parent.py").write_text(PARENT)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    running = subprocess.Popen([sys.executable, tmp_path / "parent.py", tmp_path / "went.on"], env=env)
    began = tmp_path / "went.began"
    until = time.monotonic() + 60
    while not (began.exists() and began.read_text()):
        assert running.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    running.send_signal(getattr(signal, how))
    running.wait()
    worker, until = int(began.read_text()), time.monotonic() + 5
    while _lives(worker):
        assert time.monotonic() < until, "the worker outlives its parent"
        time.sleep(0.05)
    assert not (tmp_path / "went.on").exists()


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
