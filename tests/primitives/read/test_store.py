"""A store gives back what was captured, by example and position; it resumes, appends, refuses what does not fit, and
names damage.
"""

import errno
import json
import os
import threading
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

from workbench.core import files
from workbench.core.errors import BadData, BadSpec, NoRoom, UnknownSite
from workbench.core.progress import Progress
from workbench.datasets.prompts import read_prompts
from workbench.models import load
from workbench.primitives.read.capture import capture
from workbench.primitives.read.store import (
    BrokenStore,
    OtherStore,
    Store,
    compare_cost,
    plan_store,
    reading,
    repair_store,
    shards,
    write_store,
    writing,
)
from workbench.primitives.read.store.parts import cut

LENGTHS = (5, 9, 5, 2, 9, 5, 7, 2, 12, 5, 9, 3)
SITES, LAYERS = ["resid_post", "z"], [0, 2]


def rows_of(*lengths: int, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(6, 64, (n,), generator=generator).tolist() for n in lengths]


ROWS = rows_of(*LENGTHS)
COLUMNS = pd.DataFrame({"label": [f"l{i % 3}" for i in range(len(ROWS))], "tag": [list(range(n)) for n in LENGTHS]})
HOW = {"layers": LAYERS, "batch_size": 2, "shard_mb": 0.008}


def write(folder, organism, rows=ROWS, **how) -> Store:
    return write_store(organism, rows, SITES, folder=folder, **(HOW | how))


@pytest.fixture(scope="module")
def store(tmp_path_factory, organism) -> Store:
    return write(tmp_path_factory.mktemp("store") / "s", organism, columns=COLUMNS, source={"name": "made here"})


def contents(store: Store) -> dict[str, bytes]:
    """Every tensor of every shard, as bytes."""
    found = {}
    for path in sorted((store.folder / "shards").glob("*.safetensors")):
        with safe_open(path, framework="pt") as handle:
            found |= {
                f"{path.name} {name}": handle.get_tensor(name).flatten().view(torch.uint8).numpy().tobytes()
                for name in handle.keys()
            }
    return found


class Stopping(Progress):
    """Cancels itself after so many updates; remembers the totals."""

    def __init__(self, after: int | None = None):
        super().__init__()
        self.after, self.steps = after, 0

    def show(self) -> None:
        self.steps += 1
        if self.steps == self.after:
            self.cancel()


# ---- what is read is what was captured ----


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_example_equals_its_own_capture(site, layer, store, organism):
    for i, row in enumerate(ROWS):
        alone = capture(organism, [row], [site], layers=[layer])[site, layer][0]
        torch.testing.assert_close(store.read(site, layer, examples=[i]), alone, atol=1e-5, rtol=0)


def test_examples_and_positions_are_chosen_in_the_order_asked(store):
    some = store.read("z", 2, examples=[8, 0, 8], positions=[-1, 1])
    for k, (example, pos) in enumerate([(8, 11), (8, 1), (0, 4), (0, 1), (8, 11), (8, 1)]):
        assert torch.equal(some[k], store.read("z", 2, examples=[example])[pos])
    assert store.read("z", 2, examples=[]).shape == (0, 8, 8)


def test_tokens_say_whose_each_value_is(store, organism):
    frame = store.tokens()
    whole = store.read("resid_post", 0)
    assert len(frame) == len(whole) == store.n_tokens == sum(LENGTHS)
    assert frame["token"].tolist() == [t for row in ROWS for t in row]
    assert frame["example"].tolist() == [i for i, n in enumerate(LENGTHS) for _ in range(n)]
    assert frame["text"].tolist() == organism.to_strings([t for row in ROWS for t in row])
    assert frame["label"].tolist() == [f"l{i % 3}" for i in frame["example"]]
    assert frame["tag"].tolist() == frame["pos"].tolist(), "a list as long as its row is per token"
    last = store.tokens([3, 1], [-1])
    assert last["pos"].tolist() == [1, 8] and last["token"].tolist() == [ROWS[3][-1], ROWS[1][-1]]


def is_mapped(tensor: torch.Tensor, path: Path) -> bool:
    """Whether a tensor's memory is a mapping of this file (Linux says which)."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= tensor.data_ptr() < stop:
            return line.endswith(path.name)
    return False


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="reads /proc/self/maps: runs on Linux")
def test_what_lies_together_is_mapped_and_not_copied(store):
    example = int(store.examples["n_tokens"].argmax())
    view = store.read("resid_post", 0, examples=[example])
    part, number = store.shards[-1]
    assert is_mapped(view, part.shard_path(number)) and not is_mapped(view.clone(), part.shard_path(number))
    before = view.clone()
    view.fill_(7)  # private to this process
    assert torch.equal(Store(store.folder).read("resid_post", 0, examples=[example]), before)


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize(
    "chosen", [{}, {"examples": [1, 4, 9]}, {"positions": [0, -1]}], ids=["all", "some examples", "two positions"]
)
def test_batches_give_every_token_once_with_its_own_values(seed, chosen, store):
    wanted = store.read("z", 0, **chosen)
    whose = store.tokens(**chosen)
    seen = [
        (int(e), int(p), v)
        for b in store.batches("z", 0, batch_size=7, seed=seed, **chosen)
        for e, p, v in zip(b.example, b.pos, b.values, strict=True)
    ]
    assert len(seen) == len(wanted)
    at = {(e, p): v for e, p, v in seen}
    assert len(at) == len({(e, p) for e, p in zip(whose["example"], whose["pos"], strict=True)})
    for value, example, pos in zip(wanted, whose["example"], whose["pos"], strict=True):
        assert torch.equal(at[example, pos], value)


def test_a_seed_decides_the_order_and_mixes_shards(store):
    def order(seed):
        return torch.cat([b.number for b in store.batches("z", 0, batch_size=5, seed=seed)]).tolist()

    assert order(1) == order(1) != order(2)
    assert order(None) == sorted(order(1)) == list(range(store.n_tokens))
    assert len({int(np.searchsorted(store._first_token, n, side="right")) for n in order(1)[:10]}) > 1


def test_a_batch_names_its_tokens(store):
    batch = next(store.batches("resid_post", 2, batch_size=6, seed=0))
    frame = store.locate(batch.number)
    assert frame["token"].tolist() == batch.token.tolist() and frame["example"].tolist() == batch.example.tolist()
    assert [ROWS[e][p] for e, p in zip(batch.example, batch.pos, strict=True)] == batch.token.tolist()


def test_xarray_reads_only_what_is_selected(store, monkeypatch):
    asked = []
    real = Store.gather
    monkeypatch.setattr(
        Store, "gather", lambda self, name, numbers: asked.append((name, len(numbers))) or real(self, name, numbers)
    )
    lazy = store.lazy("z", 2)
    assert lazy.dims == ("token", "head", "d_head") and lazy.shape == (sum(LENGTHS), 8, 8) and not asked
    part = lazy[10:20:3].isel(head=[1, 4]).isel(d_head=0)
    assert not asked
    values = part.values
    assert asked == [("z.2", 4)]
    whole = real(store, "z.2", np.arange(store.n_tokens)).numpy()
    np.testing.assert_array_equal(values, whole[10:20:3][:, [1, 4], 0])
    np.testing.assert_array_equal(lazy.isel(token=[5, 2], head=[0, 1]).values, whole[[5, 2]][:, [0, 1]])
    np.testing.assert_array_equal(lazy[7].values, whole[7])
    assert part.coords["pos"].shape == (4,)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_number_formats(dtype, tmp_path, organism):
    small = write(tmp_path / "s", organism, dtype=dtype)
    exact = capture(organism, [ROWS[1]], ["z"], layers=[2])["z", 2][0]
    found = small.read("z", 2, examples=[1])
    assert found.dtype == getattr(torch, dtype)
    torch.testing.assert_close(found.float(), exact.to(found.dtype).float(), atol=1e-5, rtol=1e-2)
    assert small.lazy("z", 2).values.dtype == ("float16" if dtype == "float16" else "float32")
    assert small.verify().empty


def test_only_some_positions_are_stored(tmp_path, organism):
    small = write(tmp_path / "s", organism, positions=[-1, 0])
    assert small.n_tokens == 2 * len(ROWS)
    for i, row in enumerate(ROWS):
        alone = capture(organism, [row], ["z"], layers=[0])["z", 0][0]
        torch.testing.assert_close(small.read("z", 0, examples=[i], positions=[0]), alone[:1], atol=1e-5, rtol=0)
        torch.testing.assert_close(small.read("z", 0, examples=[i]), alone[[-1, 0]], atol=1e-5, rtol=0)
    assert small.tokens([8], [11])["pos"].tolist() == [11], "the last position, under its other name"
    with pytest.raises(BadData, match=r"example 0 has no position 1.*positions \[-1, 0\] are stored"):
        small.read("z", 0, positions=[1])


def test_patterns_of_rows_of_one_length(tmp_path, organism):
    rows = rows_of(6, 6, 6)
    small = write_store(organism, rows, ["pattern", "logits"], layers=[1], folder=tmp_path / "s")
    pattern = capture(organism, rows, ["pattern"], layers=[1])["pattern", 1]
    torch.testing.assert_close(small.read("pattern", 1, examples=[2]), pattern[2].movedim(1, 0), atol=1e-6, rtol=0)
    assert small.table()["dims"].tolist() == [("token", "head", "key_pos"), ("token", "d_vocab")]
    with pytest.raises(OtherStore, match=r"pattern.1\[8, 6\]"):
        write_store(organism, rows_of(5, 5), ["pattern", "logits"], layers=[1], folder=tmp_path / "s")


def test_labels_may_be_missing_and_of_any_plain_kind(tmp_path, organism):
    labels = pd.DataFrame(
        {"s": ["a", None, "c"] * 4, "x": [1.5, None, 2] * 4, "n": range(12), "b": [True, False, True] * 4}
    )
    small = write(tmp_path / "s", organism, columns=labels)
    assert small.verify().empty and small.examples["s"].isna().tolist() == [False, True, False] * 4
    assert small.examples["n"].tolist() == list(range(12)) and small.tokens([4], [0])["b"].tolist() == [False]
    assert write(tmp_path / "s", organism, columns=labels).n_examples == 12, "found again"


def test_an_encoder_is_stored_too(tmp_path, tiny_models):
    bert = load(str(tiny_models["bert"]))
    small = write_store(bert, ROWS, ["resid_post"], folder=tmp_path / "s", batch_size=4)
    alone = capture(bert, [ROWS[4]], ["resid_post"], layers=[1])["resid_post", 1][0]
    torch.testing.assert_close(small.read("resid_post", 1, examples=[4]), alone, atol=1e-5, rtol=0)


def test_tokenised_prompts_bring_columns_and_source(tmp_path, organism):
    prompts = read_prompts([{"prompt": "river stone lamp", "label": 1}, {"prompt": "salt sand", "label": 0}]).tokenise(
        organism
    )
    small = write_store(organism, prompts, ["z"], folder=tmp_path / "s")
    assert small.examples["label"].tolist() == [1, 0] and small.about()["sources"][0]["name"] == "a list"
    assert small.tokens([1])["text"].tolist()[-1].strip() == "sand"


# ---- what is in it ----


def test_it_says_what_it_holds_without_reading_it(store, monkeypatch):
    monkeypatch.setattr(reading, "Shard", lambda *a, **k: pytest.fail("a shard was opened"))
    fresh = Store(store.folder)
    about, table = fresh.about(), fresh.table()
    assert (
        about["sites"] == {"resid_post": [0, 2], "z": [0, 2]}
        and about["examples"] == len(ROWS)
        and about["shards"] == about["shards_there"] > 3
    )
    assert about["bytes"] == sum(p.stat().st_size for p in (store.folder / "shards").iterdir())
    assert list(zip(table["site"], table["layer"], table["shape"], strict=True))[3] == ("z", 2, (sum(LENGTHS), 8, 8))
    assert "organism:attention-sink" in repr(fresh) and "complete" in repr(fresh)
    assert (
        fresh.examples["n_tokens"].tolist() == list(LENGTHS)
        and fresh.examples["label"].tolist() == COLUMNS["label"].tolist()
    )


def test_the_size_is_known_before(store, organism):
    plan = plan_store(organism, ROWS, SITES, **HOW)
    parts = sum(p.stat().st_size for p in (store.folder / "parts").iterdir())
    shards_bytes = store.about()["bytes"]
    values = sum(LENGTHS) * 4 * 64 * 4
    assert plan.n_tokens == sum(LENGTHS) and plan.n_shards == len(store.shards)
    assert values < plan.n_bytes and abs(plan.n_bytes - shards_bytes) < 2500 * plan.n_shards, (
        plan.n_bytes,
        shards_bytes,
        parts,
    )
    big = plan_store(organism, rows_of(*[40] * 400), SITES, layers=LAYERS)
    assert abs(big.n_bytes / (16000 * 4 * 64 * 4) - 1) < 0.05
    assert f"{plan.n_bytes / 1e6:,.1f} MB in {plan.n_shards} shards" in str(plan)


def test_shards_are_whole_batches_of_rows_sorted_by_length():
    lengths = np.array([4, 2, 4, 4, 2, 9, 4])
    cuts = cut(lengths, None, 2, 9)
    assert (
        cuts.order.tolist() == [1, 4, 0, 2, 3, 6, 5]
        and cuts.first_row.tolist() == [0, 2, 4, 6, 7]
        and cuts.first_token.tolist() == [0, 4, 12, 20, 29]
    )
    assert cut(lengths, 1, 2, 4).first_token.tolist() == [0, 4, 7]


def test_the_safetensors_library_reads_a_shard_alone(store):
    part, number = store.shards[0]
    with safe_open(part.shard_path(number), framework="np") as handle:
        assert set(handle.keys()) == {"row", "offset", "token", "pos", "resid_post.0", "resid_post.2", "z.0", "z.2"}
        assert json.loads(handle.metadata()["workbench"])["store"] == store.key
        n = handle.get_tensor("offset")[-1]
        assert handle.get_tensor("z.0").shape == (n, 8, 8)


def test_reading_and_recomputing_are_compared(store, organism):
    from_shards, measured = compare_cost(store), compare_cost(store, "z", 0, model=organism)
    assert from_shards.n_bytes == 4 * measured.n_bytes == sum(LENGTHS) * 4 * 64 * 4
    assert from_shards.recompute_seconds > 0 and measured.recompute_seconds > 0 and measured.read_mb_per_s > 0
    assert from_shards.cheaper in str(from_shards)
    slow_disk = type(measured)(10, 5.0, 1.0, 2.0, "by hand")
    assert slow_disk.cheaper == "recompute"


# ---- again, more, other ----


def test_the_same_rows_again_run_nothing(store, organism):
    before = {p.name: p.stat().st_mtime_ns for p in (store.folder / "shards").iterdir()}
    progress = Stopping()
    again = write(store.folder, organism, columns=COLUMNS, source={"name": "made here"}, progress=progress)
    assert progress.steps == 0 and len(again.parts) == 1
    assert {p.name: p.stat().st_mtime_ns for p in (store.folder / "shards").iterdir()} == before


def test_other_rows_are_appended(tmp_path, organism):
    write(tmp_path / "s", organism, ROWS[:5], columns=COLUMNS[:5])
    both = write(tmp_path / "s", organism, ROWS[5:], columns=COLUMNS[5:])
    assert both.n_examples == len(ROWS) and len(both.parts) == 2
    assert both.examples["label"].tolist() == COLUMNS["label"].tolist()
    for i in (0, 4, 5, 11):
        alone = capture(organism, [ROWS[i]], ["z"], layers=[2])["z", 2][0]
        torch.testing.assert_close(both.read("z", 2, examples=[i]), alone, atol=1e-5, rtol=0)
    assert both.read("z", 2, positions=[-1]).shape == (len(ROWS), 8, 8)
    assert sorted(torch.cat([b.example for b in both.batches("z", 2, seed=0)]).tolist()) == sorted(
        i for i, n in enumerate(LENGTHS) for _ in range(n)
    )


def test_the_same_rows_with_other_columns_are_not_taken_twice(store, organism):
    with pytest.raises(
        OtherStore, match=r"already .part 000., with other columns or another source: {'name': 'made here'}"
    ):
        write(store.folder, organism, source={"name": "elsewhere"})


def test_a_matrix_of_tokens_and_a_full_hook_name(tmp_path, organism):
    rows = torch.tensor(rows_of(6, 6, 6))
    small = write_store(organism, rows, ["blocks.1.attn.hook_z"], folder=tmp_path / "s")
    alone = capture(organism, rows.tolist(), ["z"], layers=[1])["z", 1]
    torch.testing.assert_close(small.read("blocks.1.attn.hook_z"), alone.flatten(0, 1), atol=1e-6, rtol=0)


def test_a_cancelled_write_keeps_its_shards_and_goes_on(tmp_path, organism, store):
    part = write(tmp_path / "s", organism, columns=COLUMNS, source={"name": "made here"}, progress=Stopping(after=4))
    assert not part.is_complete and 0 < part.about()["shards_there"] < len(part.shards) and "of" in repr(part)
    assert not list((tmp_path / "s" / "shards").glob("*.partial"))
    with pytest.raises(BrokenStore, match=r"is not there: \d+ of \d+ shards are missing"):
        part.read("z", 0)
    whole = write(tmp_path / "s", organism, columns=COLUMNS, source={"name": "made here"})
    assert whole.is_complete and contents(whole) == contents(store)


def test_the_default_folder_is_found_again_by_what_it_holds(tmp_path, organism, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    first, again = write(None, organism), write(None, organism)
    assert first.folder == again.folder == tmp_path / "stores" / first.key
    assert write(None, organism, layers=[1]).folder != first.folder


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layers": [1]}, "sites: resid_post.0"),
        ({"positions": [-1]}, r"positions: all in the store, \[-1\] now"),
        ({"dtype": "float16"}, "stored dtype: float32"),
        ({"batch_size": 3}, "batch size: 2 in the store, 3 now"),
    ],
    ids=["sites", "positions", "dtype", "batch size"],
)
def test_other_settings_are_refused_with_what_differs(change, says, store, organism):
    with pytest.raises(OtherStore, match=says):
        write(store.folder, organism, **change)


def test_another_model_is_refused_with_what_differs(store, organism):
    with load("organism:attention-sink", untrained_seed=0) as twin:
        for attempt in (
            lambda: write(store.folder, twin),
            lambda: repair_store(store.folder, twin),
            lambda: store.require(twin),
            lambda: compare_cost(store, model=twin),
        ):
            with pytest.raises(OtherStore, match=organism.weights_hash[:8]):
                attempt()


def test_another_version_of_the_code_is_refused(tmp_path, organism, monkeypatch):
    write(tmp_path / "s", organism)
    monkeypatch.setattr(
        "workbench.primitives.read.store.parts.versions", lambda: {"transformer-lens": "9.9", "transformers": "9.9"}
    )
    with pytest.raises(OtherStore, match=r"transformer-lens version: .* in the store, 9.9 now"):
        write(tmp_path / "s", organism)


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"dtype": "int8"}, BadSpec, "got dtype 'int8'"),
        ({"columns": COLUMNS[:3]}, BadData, "3 rows for 12"),
        ({"columns": pd.DataFrame({"token": range(12)})}, BadData, "may not be called token"),
        ({"columns": pd.DataFrame({"x": [1, "a"] * 6})}, BadData, "column 'x' cannot be kept"),
        ({"layers": [7]}, UnknownSite, "layers 0 to 2"),
        ({"positions": [4]}, BadData, "must lie inside every row"),
    ],
    ids=["dtype", "columns", "name taken", "odd column", "layer", "position"],
)
def test_a_mistake_leaves_nothing_behind(how, error, says, tmp_path, organism):
    with pytest.raises(error, match=says):
        write(tmp_path / "s", organism, **how)
    assert not (tmp_path / "s").exists()


def test_what_is_not_stored_is_named(store):
    with pytest.raises(UnknownSite, match="Closest: resid_post of layer"):
        store.read("resid_post", 1)
    with pytest.raises(BadData, match="examples 0 to 11; asked for 12"):
        store.read("z", 0, examples=[3, 12])
    with pytest.raises(BadData, match="example 3 has no position 4: its row has 2 tokens"):
        store.tokens(positions=[4])


def test_no_folder_or_no_store(tmp_path):
    with pytest.raises(BrokenStore, match=r"holds no readable store.json"):
        Store(tmp_path)


# ---- disk full ----


def test_a_store_that_will_not_fit_is_refused_before_the_first_forward(tmp_path, organism, monkeypatch):
    need = plan_store(organism, ROWS, SITES, **HOW).n_bytes
    monkeypatch.setattr(
        writing.shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(0, 0, need - 1)
    )
    progress = Stopping()
    with pytest.raises(NoRoom, match=r"are free in .*reduce on the way"):
        write(tmp_path / "s", organism, progress=progress)
    assert progress.steps == 0 and not (tmp_path / "s").exists()
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(0, 0, need))
    assert write(tmp_path / "s", organism).is_complete


def test_what_is_there_already_is_not_asked_for_again(tmp_path, organism, monkeypatch):
    done = write(tmp_path / "s", organism)
    path = done.shards[0][0].shard_path(0)
    path.unlink()
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda path: namedtuple("usage", "total used free")(0, 0, 30_000))
    assert write(tmp_path / "s", organism).is_complete


def test_a_disk_that_fills_up_keeps_the_shards_before(tmp_path, organism, monkeypatch, store):
    """The real error, from the call that writes."""
    real, left = os.pwrite, [20_000]

    def full(handle, data, at):
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data, at)

    monkeypatch.setattr(shards.os, "pwrite", full)
    with pytest.raises(NoRoom, match=r"filled up.*No space left on device.*the shards before it are kept"):
        write(tmp_path / "s", organism, columns=COLUMNS, source={"name": "made here"})
    monkeypatch.undo()
    part = Store(tmp_path / "s")
    assert 0 < part.about()["shards_there"] < len(part.shards) and not list(
        (tmp_path / "s" / "shards").glob("*.partial")
    )
    assert contents(write(tmp_path / "s", organism, columns=COLUMNS, source={"name": "made here"})) == contents(store)


def test_the_kernels_own_refusal_is_the_same_error(tmp_path, organism):
    """No simulation: a limit on the size of files, which the kernel answers as it does a full quota."""
    resource = pytest.importorskip(
        "resource", reason="the limit on file sizes is set with the module resource: runs on Linux and macOS"
    )
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(NoRoom, match="filled up"):
            write(tmp_path / "s", organism, rows=rows_of(*[40] * 8), shard_mb=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "s" / "shards").iterdir())
    assert write(tmp_path / "s", organism, rows=rows_of(*[40] * 8), shard_mb=1).verify().empty


def test_a_file_system_without_locks_is_refused(tmp_path, organism, monkeypatch):
    def no_locks(handle, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    with pytest.raises(BrokenStore, match="has no locks"):
        write(tmp_path / "s", organism)


# ---- damage ----


@pytest.fixture
def copy(tmp_path, store) -> Store:
    import shutil

    return Store(shutil.copytree(store.folder, tmp_path / "copy"))


@pytest.mark.parametrize("where", [3, 9, 60, 700, 1500, -1, -400], ids=lambda n: f"byte {n}")
def test_any_flipped_byte_is_found_and_only_its_shard_is_made_again(where, copy, organism, store):
    part, number = copy.shards[2]
    path = part.shard_path(number)
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    found = copy.verify()
    assert found["piece"].tolist() == [path.name] and found["is_damaged"].all() and found["problem"][0]
    before = {p.name: p.stat().st_mtime_ns for p in (copy.folder / "shards").iterdir()}
    progress = Stopping()
    mended = repair_store(copy.folder, organism, progress=progress)
    assert mended.verify().empty and contents(mended) == contents(store)
    after = {p.name: p.stat().st_mtime_ns for p in (copy.folder / "shards").iterdir()}
    assert {name for name in after if after[name] != before[name]} == {path.name}
    assert progress.total == part.sizes(number)[1], "no more tokens were run than the shard holds"


@pytest.mark.parametrize("how", ["shortened", "emptied", "removed", "another shard's bytes", "not a file of ours"])
def test_a_broken_shard_is_named_and_made_again(how, copy, organism, store):
    part, number = copy.shards[1]
    path = part.shard_path(number)
    data = path.read_bytes()
    changed = {
        "shortened": data[:-10],
        "emptied": b"",
        "another shard's bytes": copy.shards[2][0].shard_path(2).read_bytes(),
        "not a file of ours": b"hello world, hello",
    }
    path.unlink() if how == "removed" else path.write_bytes(changed[how])
    found = copy.verify()
    assert found["piece"].tolist() == [path.name] and found["is_damaged"].tolist() == [how != "removed"]
    assert contents(repair_store(copy.folder, organism)) == contents(store)


def test_damaged_rows_and_identity_are_named(copy):
    path = copy.parts[0].path
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    assert path.name in Store(copy.folder).verify()["piece"].tolist()
    path.write_bytes(b"nothing")
    with pytest.raises(BrokenStore, match="call write_store with its rows again"):
        Store(copy.folder)
    about = (copy.folder / "store.json").read_text()
    (copy.folder / "store.json").write_text(about.replace('"float32"', '"float16"', 1))
    with pytest.raises(BrokenStore, match="was changed"):
        Store(copy.folder)
    (copy.folder / "store.json").write_text(about.replace('"format": 1', '"format": 2'))
    with pytest.raises(BrokenStore, match="format 2"):
        Store(copy.folder)


def test_a_removed_part_given_again_finds_its_shards(copy, organism):
    copy.parts[0].path.unlink()
    progress = Stopping()
    again = write(copy.folder, organism, columns=COLUMNS, source={"name": "made here"}, progress=progress)
    assert again.is_complete and progress.steps == 0


# ---- several writers; what a killed one leaves ----


def test_two_threads_share_the_work_and_give_one_store(tmp_path, organism, store, monkeypatch):
    made, real = [], writing._write_shard

    def counting(model, identity, part, number, handle, tell):
        made.append((threading.get_ident(), number))
        return real(model, identity, part, number, handle, tell)

    monkeypatch.setattr(writing, "_write_shard", counting)
    gate, errors = threading.Barrier(2), []

    def work():
        try:
            gate.wait()
            write(tmp_path / "s", organism, columns=COLUMNS, source={"name": "made here"})
        except Exception as found:
            errors.append(found)

    threads = [threading.Thread(target=work) for _ in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not errors
    assert sorted(n for _, n in made) == list(range(len(store.shards))), "each shard is made once"
    assert len({who for who, _ in made}) == 2
    both = Store(tmp_path / "s")
    assert len(both.parts) == 1 and contents(both) == contents(store)


def test_two_appenders_at_once_make_two_parts(tmp_path, organism):
    threads = [threading.Thread(target=write, args=(tmp_path / "s", organism, rows)) for rows in (ROWS[:6], ROWS[6:])]
    [t.start() for t in threads]
    [t.join() for t in threads]
    both = Store(tmp_path / "s")
    assert both.is_complete and both.n_examples == len(ROWS) and both.verify().empty


def test_what_a_killed_writer_leaves_is_taken_over(copy, organism, store):
    part, number = copy.shards[0]
    path = part.shard_path(number)
    path.unlink()
    path.with_suffix(".partial").write_bytes(b"half of something" * 5000)
    (copy.folder / "parts" / ".001.parquet.dead.tmp").write_bytes(b"half a part")
    again = write(copy.folder, organism, columns=COLUMNS, source={"name": "made here"})
    assert (
        again.is_complete
        and contents(again) == contents(store)
        and not list((copy.folder / "shards").glob("*.partial"))
    )


def test_a_shard_that_another_writer_holds_is_waited_for(copy, organism):
    part, number = copy.shards[0]
    path = part.shard_path(number)
    data = path.read_bytes()
    path.unlink()
    handle = shards.claim(path)
    assert handle is not None and shards.claim(path) is None

    def finish():
        os.pwrite(handle, data, 0)
        os.replace(path.with_suffix(".partial"), path)
        os.close(handle)

    threading.Timer(0.5, finish).start()
    progress = Stopping()
    assert write(copy.folder, organism, columns=COLUMNS, source={"name": "made here"}, progress=progress).is_complete
    assert progress.text == "waiting for another writer"
    assert shards.claim(path) is None and not path.with_suffix(".partial").exists()


# ---- lost and exchanged files ----


def test_lost_rows_are_named_and_come_back_with_their_shards(tmp_path, organism):
    more = rows_of(4, 6, seed=2)
    write(tmp_path / "s", organism)
    before = contents(write(tmp_path / "s", organism, more))
    values = Store(tmp_path / "s").read("resid_post", 2)
    for path in (tmp_path / "s" / "parts").iterdir():
        path.unlink()
    with pytest.raises(BrokenStore, match=r"s has lost the rows of part 000, 001 .*write_store with these rows again"):
        Store(tmp_path / "s")
    with pytest.raises(BrokenStore, match="lost the rows of part 000 "):
        write(tmp_path / "s", organism, more)  # the others are still lost, and the first name is not theirs
    assert contents(write(tmp_path / "s", organism)) == before
    assert torch.equal(Store(tmp_path / "s").read("resid_post", 2), values)


def test_lost_rows_of_a_store_that_lists_none_are_known_by_its_shards(tmp_path, organism):
    write(tmp_path / "s", organism)
    about = json.loads((tmp_path / "s" / "store.json").read_text())
    del about["parts"]
    (tmp_path / "s" / "store.json").write_text(json.dumps(about))
    assert Store(tmp_path / "s").n_examples == len(ROWS)
    (tmp_path / "s" / "parts" / "000.parquet").unlink()
    with pytest.raises(BrokenStore, match="lost the rows of part 000 "):
        Store(tmp_path / "s")


def test_shards_that_changed_places_are_not_read(tmp_path, organism):
    store = write(tmp_path / "s", organism, rows_of(*[6] * 24))
    one, other = (store.folder / "shards" / store.shards[i][0].shard_path(i).name for i in (0, 1))
    assert one.stat().st_size == other.stat().st_size
    one.rename(tmp_path / "x"), other.rename(one), (tmp_path / "x").rename(other)
    with pytest.raises(BrokenStore, match=r"is damaged \(it holds shard"):
        Store(tmp_path / "s").read("z", 0)


@pytest.mark.parametrize("name", ["z.0", "resid_post.2", "token", "row"])
def test_a_changed_byte_is_found_by_the_first_read_of_its_tensor(tmp_path, organism, name):
    store = write(tmp_path / "s", organism)
    part, number = store.shards[0]
    content = bytearray(part.shard_path(number).read_bytes())
    size = int.from_bytes(content[:8], "little")
    start, _ = json.loads(content[8 : 8 + size])[name]["data_offsets"]
    content[8 + size + start] ^= 1
    part.shard_path(number).write_bytes(content)
    fresh = Store(tmp_path / "s")
    with pytest.raises(BrokenStore, match=rf"is damaged .checksum of {name} differs.*repair_store makes it again"):
        list(fresh.batches("z" if name == "z.0" else "resid_post", 0 if name == "z.0" else 2))
    if name == "z.0":
        assert len(fresh.read("resid_post", 0)), "the other tensors are whole"
    assert len(repair_store(tmp_path / "s", organism).read("z", 0))
