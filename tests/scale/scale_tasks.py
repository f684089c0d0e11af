"""Functions that tests hand to workers: importable by name, light, and telling of themselves through files."""

import os
import signal
import time
from pathlib import Path


def double(n: int) -> int:
    return 2 * n


def who(n: int) -> dict:
    return {
        "n": n,
        "pid": os.getpid(),
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
    }


def seat(n: int) -> str:
    time.sleep(0.3)  # long enough for the other worker to take one too
    return os.environ.get("CUDA_VISIBLE_DEVICES", "")


def fail(n: int) -> int:
    raise ValueError(f"task {n} is no good")


def fail_if_odd(n: int) -> int:
    return fail(n) if n % 2 else n


def die(n: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return n


def die_once(n: int, folder: str) -> int:
    """Killed in the middle of the first attempt at task 2."""
    mark = Path(folder) / f"{n}.began"
    if n == 2 and not mark.exists():
        mark.touch()
        die(n)
    with mark.open("a") as handle:
        handle.write("done\n")
    return n


def die_if_three(n: int) -> int:
    return die(n) if n == 3 else n


# ---- runs of a sweep: function(spec, folder) -> row ----


def run(spec: dict, folder: str) -> dict:
    Path(folder).mkdir(parents=True, exist_ok=True)
    with (Path(folder) / "calls").open("a") as handle:
        handle.write("called\n")
    if spec.get("seed") == 2:
        raise RuntimeError("seed 2 does not work")
    return {"score": spec["a"] * 10 + spec.get("seed", 0)}


def run_and_die(spec: dict, folder: str) -> dict:
    return die(0) if spec["seed"] == 1 else run(spec, folder)


def not_json(spec: dict, folder: str) -> dict:
    return {"score": object()}


def run_slowly(spec: dict, folder: str) -> dict:
    time.sleep(0.3)
    return run(spec, folder)


def sleep_and_touch(path: str) -> str:
    """Says that it began, and, if nobody ends it, that it went on."""
    Path(path).with_suffix(".began").write_text(str(os.getpid()))
    time.sleep(8)
    Path(path).touch()
    return path
