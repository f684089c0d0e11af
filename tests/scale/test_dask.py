"""A real Dask cluster of two workers: the same answers, and a worker killed in mid-shard changes nothing."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scale import scale_tasks as tasks

from workbench.core.errors import BadSpec
from workbench.primitives.read.reduce import reduce_store
from workbench.primitives.read.reductions import Covariance, Moments, Quantiles, Together, TopK
from workbench.primitives.read.store import Store, write_store
from workbench.scale import executors
from workbench.scale.executors import WorkerDied, dask, run_all, slurm_cluster
from workbench.scale.grid import cells_of, sweep

distributed = pytest.importorskip("distributed", reason='dask is not installed: pip install -e ".[test]" runs this')
pytestmark = pytest.mark.slow

SITES = ["resid_post", "mlp_out"]
HOW = {"batch_size": 8, "shard_mb": 1.0}


@pytest.fixture(scope="module")
def cluster():
    with dask(n_workers=2) as executor:
        yield executor


@pytest.fixture(scope="module")
def rows():
    return torch.randint(6, 64, (400, 40), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(scope="module")
def inline(tmp_path_factory, organism, rows) -> Store:
    return write_store(organism, rows, SITES, folder=tmp_path_factory.mktemp("inline") / "s", **HOW)


def test_who_has_not_the_certificates_of_this_process_does_not_get_in(cluster, monkeypatch):
    """Another user of the machine reaches its loopback; what a scheduler is sent it runs."""
    address = cluster.client.scheduler.address
    assert address.startswith("tls://127.0.0.1:")
    monkeypatch.setattr(executors, "_certificates", {})
    with pytest.raises(BadSpec, match="no Dask scheduler answered at 'tls://"):
        dask(address)


def lock_holder(path) -> int | None:
    """The process that holds the lock on a file, as Linux lists it."""
    try:
        inode = path.stat().st_ino
    except FileNotFoundError:
        return None
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines() if " FLOCK " in line]
    return next((int(words[4]) for words in lines if words[5].endswith(f":{inode}")), None)


def equal(a: Store, b: Store) -> bool:
    pairs = [(pa.shard_path(i), pb.shard_path(j)) for (pa, i), (pb, j) in zip(a.shards, b.shards, strict=True)]
    return all(
        x.name == y.name and all(torch.equal(t, load_file(y)[name]) for name, t in load_file(x).items())
        for x, y in pairs
    )


def test_tasks_errors_and_the_dashboard(cluster):
    assert run_all(cluster, tasks.double, [(n,) for n in range(5)]) == [0, 2, 4, 6, 8]
    assert run_all(cluster, tasks.fail_if_odd, [(0,), (1,)], on_error=lambda number, error: str(error)) == [
        0,
        "task 1 is no good",
    ]
    assert cluster.dashboard.startswith("http://127.0.0.1") and cluster.dashboard in cluster._repr_html_()


def test_a_second_client_attaches_by_address(cluster):
    with dask(cluster.client.scheduler.address) as other:
        assert run_all(other, tasks.double, [(3,)]) == [6]
    assert run_all(cluster, tasks.double, [(4,)]) == [8], "closing the guest leaves the cluster"


def test_no_scheduler_there():
    with pytest.raises(BadSpec, match="no Dask scheduler answered"):
        dask("tcp://127.0.0.1:9")


@pytest.mark.skipif(
    not Path("/proc/locks").is_file(), reason="finds the worker to kill by its lock in /proc/locks: runs on Linux"
)
def test_a_worker_killed_in_mid_shard_changes_nothing(cluster, tmp_path, organism, rows, inline):
    folder, killed = tmp_path / "s", []

    def kill_one():
        deadline = time.monotonic() + 240
        while not killed and time.monotonic() < deadline:
            for partial in folder.glob("shards/*.partial"):
                holder = lock_holder(partial)
                if holder and holder != os.getpid() and partial.exists() and partial.stat().st_size > 0:
                    os.kill(holder, signal.SIGKILL)
                    killed.append((holder, partial.with_suffix(".safetensors")))
                    return

    killer = threading.Thread(target=kill_one)
    killer.start()
    store = write_store(organism, rows, SITES, folder=folder, executor=cluster, **HOW)
    killer.join()
    ((holder, shard),) = killed
    assert holder not in cluster.client.run(os.getpid).values() and shard.exists()
    assert store.is_complete and store.verify().empty and not list(folder.glob("shards/*.partial"))
    assert equal(store, inline)


def test_reductions_are_the_same_to_the_last_bit(cluster, inline):
    what = Together(
        {"moments": Moments(), "covariance": Covariance(), "top": TopK(5), "quantiles": Quantiles((0.1, 0.5))}
    )
    here = reduce_store(inline, "mlp_out", 2, what)
    there = reduce_store(inline, "mlp_out", 2, what, executor=cluster)
    assert here.identical(there)
    assert not list(inline.folder.glob(".reduce-*"))


def test_a_model_made_in_memory_cannot_be_sent(cluster, tmp_path, rows):
    import transformers as tf

    from workbench.models import load

    model = load(
        tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, n_positions=48)),
        tokenizer=False,
    )
    with pytest.raises(BadSpec, match="save it with save_pretrained"):
        write_store(model, rows[:4], ["resid_post"], folder=tmp_path / "s", executor=cluster)


def test_a_sweep_keeps_failures_as_rows(cluster, tmp_path):
    table = sweep("scale.scale_tasks:run", cells_of({"a": [1, 2], "seed": [0, 2]}), tmp_path, executor=cluster)
    assert table["status"].tolist() == ["ok", "failed", "ok", "failed"] and table["score"].tolist()[::2] == [10, 20]


def test_a_task_that_kills_its_workers_is_named(cluster):
    answers = run_all(cluster, tasks.die_if_three, [(n,) for n in range(5)], on_error=lambda number, error: error)
    assert [a for a in answers if isinstance(a, int)] == [0, 1, 2, 4] and isinstance(answers[3], WorkerDied)


def test_slurm_jobs_hold_one_worker_each():
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed: pip install dask-jobqueue runs this")
    cluster = slurm_cluster({"queue": "gpu", "walltime": "02:00:00", "job_extra_directives": ["--gres=gpu:1"]})
    try:
        script = cluster.job_script()
    finally:
        cluster.close()
    assert "#SBATCH -p gpu" in script and "--gres=gpu:1" in script and "--nthreads 1" in script
    with pytest.raises(BadSpec, match="does not take"):
        slurm_cluster({"memory": "1GB", "qeue": "gpu"})
