"""Executors: `submit(fn, *args) -> future`, in this process, in worker processes, or on a Dask cluster.

Functions must be importable by name and take and give plain JSON values: specs go in, paths come out, never a model or
a tensor. They must be safe to run twice, because a task whose worker died is run again.

    with Processes(2) as executor:
        paths = run_all(executor, write_shards, [(folder, part, [n], spec) for n in range(8)])

Cost: a worker process imports torch and loads its model once (about 5 s); Dask adds about 1 ms a task.
"""

import logging
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, Self

from workbench.core.errors import BadSpec, WorkbenchError
from workbench.core.progress import SILENT, Progress

DASK_INSTALL = "pip install 'circuit-workbench[dask]'"
_certificates: dict[str, Any] = {}  # of the clusters that this process started, by address
MAX_DEATHS = 3  # of workers over one task, after which the task is to blame


class WorkerDied(WorkbenchError):
    """A task whose worker ended without an answer, again and again: killed, out of memory, or crashed."""


class Executor(Protocol):
    """What run_all and every caller needs. `at_once`: how many tasks to hand over before waiting for answers."""

    name: str
    at_once: int

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Start fn(*args) somewhere; the future has result(), done(), cancel() and add_done_callback(fn)."""
        ...

    def revive(self) -> None:
        """Make ready again after a worker died."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class _Closing:
    def close(self) -> None: ...

    def revive(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Inline(_Closing):
    """In this process, one after another: the default."""

    name, at_once = "inline", 1

    def submit(self, fn: Callable[..., Any], *args: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args))
        except Exception as found:
            future.set_exception(found)
        return future


class Processes(_Closing):
    """Fresh processes on this machine: one per GPU where there are GPUs (each sees only its own), else `n_workers`.

    In a script, start it under `if __name__ == "__main__":`, as every use of spawned processes needs.
    """

    name = "processes"

    def __init__(self, n_workers: int | None = None):
        gpus = visible_gpus()
        if n_workers is not None and n_workers < 1:
            raise BadSpec(f"processes needs at least one worker, got {n_workers}")
        self.n_workers = n_workers or len(gpus) or max(1, (os.cpu_count() or 2) // 2)
        self.at_once = 2 * self.n_workers
        self._gpus = gpus
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, fn: Callable[..., Any], *args: Any) -> "Future[Any]":
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            seats = context.Queue()
            for seat in range(self.n_workers):
                seats.put(seat)
            threads = max(1, (os.cpu_count() or 1) // self.n_workers)
            self._pool = ProcessPoolExecutor(
                self.n_workers, mp_context=context, initializer=_take_seat, initargs=(seats, self._gpus, threads)
            )
        return self._pool.submit(fn, *args)

    def revive(self) -> None:
        """A pool that lost a worker is no use any more; the next submit makes a new one."""
        self.close()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


def _take_seat(seats: Any, gpus: Sequence[str], threads: int) -> None:
    """In a new worker, before torch is imported: its GPU, its share of the cores, and an end with its parent."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[seats.get() % len(gpus)]
    os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(threads))


def _end_with_parent() -> None:
    """A parent that was killed closes no pool, and its workers would go on with what they are at for nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os._exit(1)


def visible_gpus() -> list[str]:
    """Names of the GPUs this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [g for g in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if g.strip() not in ("", "-1")]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


# ---- Dask ----


class Dask(_Closing):
    """A Dask client as an executor. Made by `dask`; `dashboard` is the address of its live view."""

    name = "dask"
    at_once = 1_000_000  # a cluster goes on with what it was given when the notebook is interrupted

    def __init__(self, client: Any, cluster: Any = None):
        self.client, self.cluster = client, cluster

    @property
    def dashboard(self) -> str:
        return self.client.dashboard_link

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.client.submit(fn, *args, pure=False, retries=0)

    def close(self) -> None:
        self.client.close()
        if self.cluster is not None:
            self.cluster.close()

    def __repr__(self) -> str:
        return f"Dask({len(self.client.scheduler_info()['workers'])} workers, dashboard {self.dashboard})"

    def _repr_html_(self) -> str:
        return (
            f"{len(self.client.scheduler_info()['workers'])} workers · <a href='{self.dashboard}'"
            " target='_blank'>dashboard</a>"
        )


def dask(address: str | None = None, *, n_workers: int | None = None, slurm: Mapping[str, Any] | None = None) -> Dask:
    """Work on a Dask cluster: this machine's, one that runs already, or one that SLURM starts.

    Args:
        address: of a running scheduler, as tcp://host:8786. It runs any code it is sent: use one on a private network.
        n_workers: processes here, or SLURM jobs; here one per GPU, or half the cores, if not given.
        slurm: keywords of dask_jobqueue.SLURMCluster: queue, cores, memory, walltime, job_extra_directives, ...

    Raises:
        ImportError: with the install line, if a package is missing. BadSpec: if both `address` and `slurm` are given.
    """
    if address is not None and slurm is not None:
        raise BadSpec("give the address of a running Dask cluster or what SLURM should start, not both")
    try:
        import distributed
    except ImportError as found:
        raise ImportError(f"Dask is not installed: {DASK_INSTALL}") from found
    if address is not None:
        try:
            return Dask(distributed.Client(address, timeout=10, security=_certificates.get(address)))
        except (OSError, ValueError, TypeError) as found:  # TypeError: an address that wants certificates
            raise BadSpec(
                f"no Dask scheduler answered at {address!r} ({type(found).__name__}); start one with `dask scheduler`"
                " and give its tcp:// address (a cluster that another process of yours started here keeps to it)"
            ) from None
    if slurm is not None:
        cluster = slurm_cluster(slurm)
        cluster.scale(jobs=n_workers or 1)
        return Dask(distributed.Client(cluster), cluster)
    gpus = visible_gpus()
    n_workers = n_workers or len(gpus) or max(1, (os.cpu_count() or 2) // 2)
    # Other users of this machine reach its loopback too, and a Dask scheduler runs what it is sent: TLS with
    # certificates that live in this process alone keeps them out.
    security = distributed.Security.temporary()
    cluster = distributed.LocalCluster(
        security=security,
        n_workers=n_workers,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.ERROR,
    )
    _certificates[cluster.scheduler_address] = security
    client = distributed.Client(cluster)
    if gpus:
        client.register_plugin(_pin(distributed, gpus))
    return Dask(client, cluster)


def slurm_cluster(settings: Mapping[str, Any]) -> Any:
    """A dask_jobqueue.SLURMCluster whose jobs hold one worker of one thread each, unless the settings say otherwise."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as found:
        raise ImportError(f"dask-jobqueue is not installed: {DASK_INSTALL}") from found
    try:
        return SLURMCluster(**({"processes": 1, "cores": 1, "memory": "16GB"} | dict(settings)))
    except (TypeError, ValueError) as found:
        raise BadSpec(f"dask_jobqueue.SLURMCluster does not take {dict(settings)}: {found}") from None


def _pin(distributed: Any, gpus: Sequence[str]) -> Any:
    """A worker plugin: worker number n of this machine sees GPU n only. Runs again when a worker is restarted."""

    class OneGpu(distributed.WorkerPlugin):
        name = "one-gpu"

        def setup(self, worker: Any) -> None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(worker.name) % len(gpus)]

    return OneGpu()


def open_executor(where: str | None, n_workers: int | None = None) -> Executor:
    """An executor from words: inline (or None), processes, dask, or the tcp:// address of a Dask scheduler."""
    if where is None:
        return Inline() if n_workers in (None, 1) else Processes(n_workers)
    if where == "inline":
        return Inline()
    if where == "processes":
        return Processes(n_workers)
    if where in ("dask", "local"):
        return dask(n_workers=n_workers)
    if "://" in where:
        return dask(where)
    raise BadSpec(
        f"work runs inline, in processes, on dask, or at the tcp:// address of a Dask scheduler; got {where!r}"
    )


# ---- running many ----


def run_all(
    executor: Executor,
    fn: Callable[..., Any],
    tasks: Sequence[tuple[Any, ...]],
    *,
    on_error: Callable[[int, Exception], Any] | None = None,
    on_done: Callable[[int, Any], None] | None = None,
    progress: Progress = SILENT,
    text: str = "tasks",
) -> list[Any]:
    """Run fn(*task) for every task and give the answers in the order of the tasks.

    A task whose worker died is handed over again, three times at most.

    Args:
        on_error: makes the answer of a task that raised; without it the first error stops everything and is raised.
        on_done: told (number of the task, answer) as each one ends.
        progress: per finished task; a cancel is noticed there, and tasks not begun are dropped.

    Raises:
        WorkerDied: if a task's worker died every time and there is no `on_error`.
    """
    answers: list[Any] = [None] * len(tasks)
    deaths, waiting, running = [0] * len(tasks), list(range(len(tasks)))[::-1], {}
    ended: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    n_done = 0
    try:
        while waiting or running:
            progress.update(n_done, len(tasks), text)
            # A pool that loses a worker fails everything it was at, so whoever was there is run again alone: only what
            # dies by itself is to blame.
            while (
                waiting
                and len(running) < executor.at_once
                and not (running and (deaths[waiting[-1]] or any(deaths[n] for n in running)))
            ):
                number = waiting.pop()
                try:
                    running[number] = future = executor.submit(fn, *tasks[number])
                except BrokenProcessPool:  # broken before the futures that broke with it were looked at
                    waiting.append(number)
                    if not running:
                        executor.revive()
                    break
                future.add_done_callback(lambda future, number=number: ended.put((number, future)))
            try:
                number, future = ended.get(timeout=0.2)
            except queue.Empty:
                continue
            del running[number]
            try:
                answers[number] = future.result()
            except Exception as found:
                if _is_death(found):
                    deaths[number] += 1
                    if not running:
                        executor.revive()
                    if deaths[number] < MAX_DEATHS:
                        waiting.append(number)
                        continue
                    found = WorkerDied(
                        f"task {number} lost its worker {MAX_DEATHS} times ({type(found).__name__}): it was killed, ran"
                        " out of memory or crashed"
                    )
                if on_error is None:
                    raise found from None
                answers[number] = on_error(number, found)
            n_done += 1
            if on_done is not None:
                on_done(number, answers[number])
    finally:
        for future in running.values():
            future.cancel()
    progress.update(n_done, len(tasks), text)
    return answers


def _is_death(error: Exception) -> bool:
    return isinstance(error, BrokenProcessPool) or type(error).__name__ == "KilledWorker"
