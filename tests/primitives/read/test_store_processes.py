"""A store and real processes: one killed with SIGKILL in mid-shard, and two that write the same store at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from workbench.core.progress import Progress
from workbench.primitives.read.store import Store, write_store

N_ROWS, N_POS = 480, 40
HOW = {"batch_size": 8, "shard_mb": 0.9, "source": {"name": "the same for all"}}

WRITER = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
from workbench.models import load
from workbench.primitives.read.store import write_store, writing
torch.set_num_threads(1)
folder, how = sys.argv[1], json.loads(sys.argv[2])
model, made, real = load("organism:attention-sink"), [], writing._write_shard
writing._write_shard = lambda *a: (real(*a), made.append(a[3]))
rows = torch.randint(6, 64, (480, 40), generator=torch.Generator().manual_seed(0)).tolist()
print("ready", flush=True)
sys.stdin.readline()
write_store(model, rows, ["resid_post", "z"], folder=folder, **how)
print(json.dumps(made))
"""


def start(folder: Path) -> subprocess.Popen:
    """A writer that waits for `go`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, folder, json.dumps(HOW)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def go(*writers: subprocess.Popen) -> None:
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()


def write(folder: Path, organism, **more) -> Store:
    rows = torch.randint(6, 64, (N_ROWS, N_POS), generator=torch.Generator().manual_seed(0)).tolist()
    return write_store(organism, rows, ["resid_post", "z"], folder=folder, **HOW, **more)


def contents(store: Store) -> dict[str, torch.Tensor]:
    return {
        f"{path.name} {name}": t
        for path in (p.shard_path(n) for p, n in store.shards)
        for name, t in load_all(path).items()
    }


def load_all(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, organism) -> Store:
    """The store as it should be: written in one go."""
    return write(tmp_path_factory.mktemp("whole") / "s", organism)


def same(a: Store, b: Store) -> bool:
    first, second = contents(a), contents(b)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_killed_in_mid_shard_it_loses_one_shard_and_goes_on(tmp_path, organism, whole):
    folder = tmp_path / "s"
    writer = start(folder)
    go(writer)
    deadline = time.monotonic() + 300
    while not (
        len(list(folder.glob("shards/*.safetensors"))) >= 3
        and any(p.stat().st_size > 0 for p in folder.glob("shards/*.partial"))
    ):
        assert writer.poll() is None and time.monotonic() < deadline, "the writer ended before it could be killed"
    writer.send_signal(signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL
    left = Store(folder)
    finished = {p.name: p.stat().st_mtime_ns for p in folder.glob("shards/*.safetensors")}
    assert 3 <= len(finished) < len(left.shards)
    assert len(list(folder.glob("shards/*.partial"))) <= 1, "one writer leaves one unfinished shard at most"
    assert set(left.verify()["is_damaged"]) == {False}, "what is there is whole"
    n_missing = sum(part.sizes(n)[1] for part, n in left.shards if part.shard_path(n).name not in finished)
    progress = Progress()
    resumed = write(folder, organism, progress=progress)
    assert progress.total == n_missing, "only what was missing is run"
    assert {p.name: p.stat().st_mtime_ns for p in folder.glob("shards/*.safetensors") if p.name in finished} == finished
    assert resumed.is_complete and resumed.verify().empty and not list(folder.glob("shards/*.partial"))
    assert same(resumed, whole)


@pytest.mark.slow
def test_two_processes_write_one_store_at_once(tmp_path, whole):
    folder = tmp_path / "s"
    writers = [start(folder), start(folder)]
    go(*writers)
    made = [json.loads(writer.communicate(timeout=300)[0].splitlines()[-1]) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert sorted(made[0] + made[1]) == list(range(len(whole.shards))) and made[0] and made[1], (
        "each shard is made once, and both worked"
    )
    both = Store(folder)
    assert len(both.parts) == 1 and both.verify().empty and same(both, whole)
