"""The store beside a plain safetensors dump, torch.save shards and recomputing (GPT-2-small shape, random weights):
pytest tests/benchmarks --benchmark-only

Peers alternate within a round, so that a busy machine slows all of them; ratios are medians over rounds. Activations
that stand in for the model's are handed to the store's own writer, so that writing is timed without the model.
"""

import cProfile
import functools
import os
import pstats
import shutil
import statistics
import subprocess
import sys
import time

import pytest
import torch
from benchmarks.shapes import SHAPES, model_of
from safetensors.torch import load_file, save_file

from workbench.models import load
from workbench.primitives.read.reduce import reduce_store
from workbench.primitives.read.reductions import Covariance, Moments, Quantiles, TopK
from workbench.primitives.read.store import Store, compare_cost, plan_store, repair_store, write_store, writing
from workbench.primitives.read.stream import Piece

N_POS = 128


@functools.cache
def noise(n: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(0)).to(dtype)


def fake_stream(model, rows, keys, *, positions=None, dtype=None, batch_size=32):
    """Pieces of the right shapes without a forward."""
    values = dict.fromkeys(keys, noise(batch_size * N_POS, model.d_model, dtype))
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        n = len(some) * N_POS
        yield Piece(
            {k: v[:n] for k, v in values.items()},
            torch.arange(start, start + len(some)),
            torch.tensor(some).flatten(),
            torch.arange(N_POS).repeat(len(some)),
        )


@pytest.fixture(scope="module")
def gpt2():
    return model_of("gpt2")


def rows_of(n: int) -> list[list[int]]:
    return torch.randint(100, 30000, (n, N_POS), generator=torch.Generator().manual_seed(1)).tolist()


def timed(work) -> float:
    os.sync()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def on_disk(work) -> tuple[float, float]:
    """Seconds until the call returns (the operating system holds the bytes), and until they are on the disk."""
    returned = timed(work)
    started = time.perf_counter()
    os.sync()
    return returned, returned + time.perf_counter() - started


def test_writing(benchmark, gpt2, tmp_path, monkeypatch):
    """Shards, checksummed and indexed, beside dumping tensors that lie in memory. The plan (one forward of one row)
    is made before.
    """
    monkeypatch.setattr(writing, "stream", fake_stream)
    store = write_store(gpt2, rows_of(128), ["resid_post"], folder=tmp_path / "s", dtype="float16")
    tensors = {f"resid_post.{i}": torch.randn(128 * N_POS, 768).half() for i in range(12)}
    n_bytes = sum(t.nbytes for t in tensors.values())
    took: dict[str, list[tuple[float, float]]] = {"ours": [], "safetensors": [], "torch.save": []}

    def once():
        for path in (*store.folder.glob("shards/*"), *tmp_path.glob("dump.*")):
            path.unlink()
        took["safetensors"].append(on_disk(lambda: save_file(tensors, tmp_path / "dump.safetensors")))
        took["torch.save"].append(on_disk(lambda: torch.save(tensors, tmp_path / "dump.pt")))
        took["ours"].append(on_disk(lambda: repair_store(store.folder, gpt2)))

    benchmark.pedantic(once, rounds=11, warmup_rounds=1)
    for i, what in enumerate(("returned", "on disk")):
        speeds = {
            name: round(n_bytes / 1e6 / statistics.median(seconds[i] for seconds in took[name][1:])) for name in took
        }
        ratio = statistics.median(s[i] / o[i] for s, o in zip(took["safetensors"][1:], took["ours"][1:], strict=True))
        benchmark.extra_info[what] = {"MB_per_s": speeds, "share_of_safetensors_dump": round(ratio, 2)}
        print(f"\nwrote {n_bytes / 1e6:.0f} MB, {what}: MB/s {speeds}; {ratio:.0%} of a plain safetensors dump")


def test_capturing_to_disk(benchmark, gpt2, tmp_path):
    """Every layer's residual stream to disk, and layer 5's alone, beside the bare Hugging Face forward (eager
    attention).
    """
    bare = SHAPES["gpt2"]().eval().to(gpt2.device)
    bare.set_attn_implementation("eager")
    rows = rows_of(24)
    parts = torch.tensor(rows, device=gpt2.device).split(8)
    took: dict[str, list[float]] = {"bare": [], "all": [], "one": []}

    def forward():
        with torch.no_grad():
            for part in parts:
                bare(part)

    def store(name, layers):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        write_store(gpt2, rows, ["resid_post"], layers=layers, folder=tmp_path / name, dtype="float16", batch_size=8)

    def once():
        took["bare"].append(timed(forward))
        took["all"].append(timed(lambda: store("all", None)))
        took["one"].append(timed(lambda: store("one", [5])))

    benchmark.pedantic(once, rounds=7, warmup_rounds=1)
    share = {
        name: statistics.median(b / o for b, o in zip(took["bare"][1:], took[name][1:], strict=True))
        for name in ("all", "one")
    }
    benchmark.extra_info.update({f"throughput_over_bare_{name}": round(value, 2) for name, value in share.items()})
    print(
        f"\nthroughput over the bare forward: all layers {share['all']:.0%}, layer 5 alone {share['one']:.0%};"
        f" {compare_cost(Store(tmp_path / 'all'))}"
    )


@pytest.mark.parametrize("n_shards", [10, 1000])
def test_first_batch(benchmark, n_shards, tmp_path):
    """From opening the folder to the first batch, by number of shards; bytes do not matter to a mapping."""
    model = load("organism:attention-sink")
    rows = torch.randint(6, 64, (n_shards, 16)).tolist()
    write_store(model, rows, ["resid_post"], layers=[0], folder=tmp_path / "s", batch_size=1, shard_mb=1e-6)
    assert len(Store(tmp_path / "s").shards) == n_shards

    def first():
        return next(Store(tmp_path / "s").batches("resid_post", 0, seed=0)).values.sum()

    benchmark.pedantic(first, rounds=20, warmup_rounds=2)
    benchmark.extra_info.update(n_shards=n_shards, first_batch_ms=round(1000 * benchmark.stats.stats.median, 1))
    print(f"\n{n_shards} shards: first batch after {1000 * benchmark.stats.stats.median:.1f} ms")


@pytest.fixture(scope="module")
def big(gpt2, tmp_path_factory):
    """100,000 tokens of one layer of the GPT-2-small shape."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "stream", fake_stream)
        return write_store(
            gpt2,
            rows_of(782),
            ["resid_post"],
            layers=[5, 6],
            folder=tmp_path_factory.mktemp("big") / "s",
            dtype="float16",
            shard_mb=32,
        )


def test_reading(benchmark, big, tmp_path):
    """Every byte of the store once, in memory's hands already, beside the same values from a dump and from
    torch.save.
    """
    whole = {"resid_post.5": big.read("resid_post", 5).clone(), "resid_post.6": big.read("resid_post", 6).clone()}
    save_file(whole, tmp_path / "dump.safetensors")
    torch.save(whole, tmp_path / "dump.pt")
    n_bytes = sum(t.nbytes for t in whole.values())
    took: dict[str, list[float]] = {"ours": [], "safetensors": [], "torch.save": []}

    def ours():
        for layer in (5, 6):
            for batch in big.batches("resid_post", layer):
                batch.values.view(torch.int16).sum()

    def theirs(tensors):
        for tensor in tensors.values():
            for part in tensor.split(4096):
                part.view(torch.int16).sum()

    def once():
        took["ours"].append(timed(ours))
        took["safetensors"].append(timed(lambda: theirs(load_file(tmp_path / "dump.safetensors"))))
        took["torch.save"].append(
            timed(lambda: theirs(torch.load(tmp_path / "dump.pt", weights_only=True)))
        )  # the peer's own format, made above

    benchmark.pedantic(once, rounds=7, warmup_rounds=1)
    speeds = {name: round(n_bytes / 1e6 / statistics.median(seconds[1:])) for name, seconds in took.items()}
    benchmark.extra_info.update(MB_per_s=speeds)
    print(f"\nread {n_bytes / 1e6:.0f} MB; MB/s {speeds}; {compare_cost(big)}")


@pytest.mark.parametrize("reduction", [Moments(), Covariance(), TopK(10), Quantiles()], ids=lambda r: type(r).__name__)
def test_one_pass(benchmark, big, reduction):
    """One pass over 100k tokens: tokens a second, and the share of the time that is Python of ours (the loop over
    batches, looking up shards and tensors) and neither arithmetic nor opening and reading files."""
    profile = cProfile.Profile()
    benchmark.pedantic(lambda: reduce_store(big, "resid_post", 5, reduction), rounds=3, warmup_rounds=1)
    profile.runcall(reduce_store, big, "resid_post", 5, reduction)
    stats = pstats.Stats(profile).stats  # {(file, line, name): (calls, _, own seconds, total seconds, _)}
    total = sum(entry[2] for entry in stats.values())
    ours = sum(
        entry[2]
        for (file, _, _), entry in stats.items()
        if "primitives/read/store/" in file or file.endswith("primitives/read/reduce.py")
    )
    seconds = benchmark.stats.stats.median
    benchmark.extra_info.update(tokens_per_s=round(big.n_tokens / seconds), share_in_python=round(ours / total, 4))
    top = sorted(stats.items(), key=lambda kv: -kv[1][2])[:3]
    print(
        f"\n{type(reduction).__name__}: {big.n_tokens / seconds / 1e3:,.0f}k tokens/s; {ours / total:.2%} of the time"
        f" in Python of ours; most in {[(w[2][:40], round(e[2], 2)) for w, e in top]}"
    )


MEASURE = """
import sys, torch, warnings
warnings.simplefilter("ignore")
from benchmarks.shapes import model_of
from benchmarks.test_store_speed import fake_stream, rows_of
from workbench.primitives.read.store import write_store, writing
from workbench.primitives.read.reduce import reduce_store
from workbench.primitives.read.reductions import Covariance
writing.stream = fake_stream
model, n = model_of("gpt2"), int(sys.argv[2])
rows = rows_of(n)
def peak(work):
    now = int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1]) * 1024
    open("/proc/self/clear_refs", "w").write("5")
    out = work()
    return out, int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024 - now
store, written = peak(lambda: write_store(model, rows, ["resid_post"], layers=[4, 5], folder=sys.argv[1], dtype="float16", shard_mb=16))
_, reduced = peak(lambda: reduce_store(store, "resid_post", 5, Covariance()))
print(written, reduced)
"""  # noqa: E501


def test_memory_does_not_grow_with_the_rows(benchmark, tmp_path):
    """By the kernel's high-water mark (Linux), in processes of their own."""

    def once():
        found = {}
        for n in (160, 1600):
            fixed = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1048576", "PYTHONPATH": "."}
            out = subprocess.run(
                [sys.executable, "-c", MEASURE, str(tmp_path / str(n)), str(n)],
                capture_output=True,
                text=True,
                check=True,
                cwd="tests",
                env=fixed,
            )
            found[n] = [int(word) / 1e6 for word in out.stdout.split()[-2:]]
        return found

    for n, (written, reduced) in benchmark.pedantic(once, rounds=1).items():
        benchmark.extra_info[f"rows_{n}"] = {"writing_mb": round(written), "reducing_mb": round(reduced)}
        print(f"\n{n} rows: peak above the start {written:.0f} MB while writing, {reduced:.0f} MB while reducing")


def test_predicted_and_real_size(benchmark, gpt2, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "stream", fake_stream)
    rows = rows_of(256)
    plan = plan_store(gpt2, rows, ["resid_post"], dtype="float16", shard_mb=64)
    store = benchmark.pedantic(
        lambda: write_store(gpt2, rows, ["resid_post"], folder=tmp_path / "s", dtype="float16", shard_mb=64), rounds=1
    )
    real = sum(p.stat().st_size for p in store.folder.rglob("*") if p.is_file())
    benchmark.extra_info.update(predicted_mb=plan.n_bytes / 1e6, real_mb=real / 1e6)
    print(f"\npredicted {plan.n_bytes / 1e6:.3f} MB, on disk {real / 1e6:.3f} MB, ratio {plan.n_bytes / real:.4f}")
