"""Writing a store: size predicted and refused where it will not fit, shards made in turn, resumed and repaired.

    store = write_store(model, rows, ["resid_post"], layers=[3, 5])    # again after a kill: goes on; other rows:
    appended

Whoever calls it with the same rows helps: writers in other processes take other shards. With an executor the shards are
made by its workers, which are told where the store is and which model to load, and give back paths.
Cost: one forward per row up to the highest layer; while one batch runs, the one before is hashed and written.
"""

import errno
import functools
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from workbench.core.errors import BadData, BadSpec, NoRoom
from workbench.core.places import cache_folder
from workbench.core.progress import SILENT, Cancelled, Progress
from workbench.core.provenance import git_state, versions
from workbench.datasets.prompts import Tokenised
from workbench.models import ModelSpec, load, memory
from workbench.models.inputs import Rows, rows_of
from workbench.models.model import Model
from workbench.primitives.read.capture import plan_capture
from workbench.primitives.read.stream import Piece, check_rows, flat_ids, lengths_of, site_keys, stream, unit_dims
from workbench.scale.executors import Executor, run_all

from .parts import (
    DTYPES,
    OWN_COLUMNS,
    Cuts,
    Identity,
    Part,
    Place,
    about_of,
    cut,
    read_identity,
    read_parts,
    register,
    table_of,
    write_identity,
)
from .reading import Store
from .shards import ShardWriter, claim, damage

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, eq=False)
class StorePlan:
    """What a store of these rows will take, before anything is run."""

    identity: Identity
    cuts: Cuts
    n_bytes: int
    batch_bytes: int

    @property
    def n_tokens(self) -> int:
        return int(self.cuts.first_token[-1])

    @property
    def n_shards(self) -> int:
        return len(self.cuts.first_row) - 1

    def __str__(self) -> str:
        sites = f"{len(self.identity.places)} site{'s' * (len(self.identity.places) != 1)}"
        return (
            f"{sites} x {self.n_tokens:,} tokens as {self.identity.dtype}: {self.n_bytes / 1e6:,.1f} MB in"
            f" {self.n_shards} shards; {self.batch_bytes / 1e6:.0f} MB of memory while running"
        )


def plan_store(
    model: Model,
    rows: Rows | Tokenised,
    sites: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    dtype: str | None = None,
    batch_size: int = 32,
    shard_mb: float = 128,
) -> StorePlan:
    """Predict the size of a store and check everything that could fail later; arguments as `write_store`.

    Cost: one forward of one row.
    """
    rows = rows.rows if isinstance(rows, Tokenised) else rows_of(model, rows)
    dtype = dtype or model.dtype_name
    if dtype not in DTYPES:
        raise BadSpec(f"a store keeps {', '.join(DTYPES)}; got dtype {dtype!r}")
    keys = site_keys(model, sites, layers)
    check_rows(model, rows, keys, positions)
    lengths = lengths_of(rows)
    longest = int(lengths.max())
    shape_plan = plan_capture(
        model,
        batch_size,
        longest,
        sites,
        layers=layers,
        positions=positions,
        dtype=DTYPES[dtype],
        batch_size=batch_size,
    )
    places = []
    for key in keys:
        dims, shape = unit_dims(model, key), shape_plan.shapes[key][1:]
        # A pattern is [head, query_pos, key_pos]: its query axis is the token, so it is taken out wherever it stands.
        shape = (shape[0], *shape[2:]) if "key_pos" in dims else shape[1:]
        places.append(
            Place(
                *key, tuple(shape), dims if len(dims) == len(shape) else tuple(f"axis_{i}" for i in range(len(shape)))
            )
        )
    identity = Identity.of(model, places, positions, dtype, batch_size)
    token_bytes = sum(f.n_bytes for f in identity.fields(0, 1) if f.name not in ("row", "offset"))
    cuts = cut(
        lengths, None if positions is None else len(positions), batch_size, max(1, int(shard_mb * 1e6 / token_bytes))
    )
    headers = (len(cuts.first_row) - 1) * (1500 + 200 * len(places))
    n_bytes = token_bytes * int(cuts.first_token[-1]) + 16 * len(rows) + headers + 2 * int(lengths.sum())
    return StorePlan(identity, cuts, n_bytes, shape_plan.peak_bytes)


def write_store(
    model: Model,
    rows: Rows | Tokenised,
    sites: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    dtype: str | None = None,
    folder: Path | str | None = None,
    columns: pd.DataFrame | None = None,
    source: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    shard_mb: float = 128,
    executor: Executor | None = None,
    progress: Progress = SILENT,
) -> Store:
    """Keep activations on disk; finish what an earlier call began, or append other rows.

    Args:
        model: any Model that reads tokens.
        rows: token ids per row, any lengths, or what `read_prompts(...).tokenise(model)` gives, with its columns and
            source.
        sites, layers, positions: as for `capture`; positions must lie in every row.
        dtype: "float32", "float16" or "bfloat16" on disk; the model's own if not given.
        folder: where; a folder of the user's cache named by the store's key if not given.
        columns: a row per row of `rows`: labels and the like. A cell that is a list as long as its row is per token.
        source: where the rows came from (data set, revision); kept, and part of what tells one set of rows from
            another.
        batch_size: rows a forward; the last bits of activations depend on it, so one store has one.
        shard_mb: size of a shard; what a kill can lose at most.
        executor: from workbench.scale; workers load the model themselves. In this process if not given.
        progress: per batch, or per shard with an executor; a cancelled call gives the store as far as it came.

    Raises:
        NoRoom: before the first forward if disk or memory would not hold it; in the middle if the disk filled up
            (finished shards are kept). OtherStore: if the folder holds activations of another model or other settings,
            saying which, or these rows with other columns. BadData: on rows that cannot be run.
    """
    if isinstance(rows, Tokenised):
        columns, source, rows = rows.columns if columns is None else columns, source or rows.source, rows.rows
    rows = rows_of(model, rows)
    plan = plan_store(
        model, rows, sites, layers=layers, positions=positions, dtype=dtype, batch_size=batch_size, shard_mb=shard_mb
    )
    where = cache_folder() / "stores" / plan.identity.key if folder is None else Path(folder)
    if (where / "store.json").exists():
        read_identity(where)[0].refuse_other(plan.identity, where)
    table = table_of(rows, _checked(columns, rows), plan.cuts, _strings(model, rows), dict(source or {}))
    _refuse_no_room(plan, where, model, table)
    write_identity(where, plan.identity, {"model": model.provenance(), "git": git_state()})
    part = register(where, plan.identity, table)
    return _complete(model, where, [part], executor, progress)


def repair_store(
    folder: Path | str, model: Model, *, executor: Executor | None = None, progress: Progress = SILENT
) -> Store:
    """Make again what is missing from a store or damaged (see `Store.verify`), and nothing else.

    Needs no rows: the store knows them. Damaged shards are deleted first.

    Raises:
        OtherStore: if the model is not the one that made the store.
    """
    where = Path(folder)
    store = Store(where)
    store.require(model)
    for part in store.parts:
        for number in range(part.n_shards):
            path = part.shard_path(number)
            if path.exists() and damage(path, store.identity.fields(*part.sizes(number)), part.shard_key(number)):
                path.unlink()
    return _complete(model, where, store.parts, executor, progress)


def write_shards(folder: str, part_name: str, numbers: list[int], model_spec: dict[str, Any]) -> list[str]:
    """What a worker does: make the shards of a part that are not there, and say where they are. Safe to run twice."""
    where = Path(folder)
    identity, _ = read_identity(where)
    part = next(p for p in read_parts(where, identity) if p.path.name == part_name)
    if any(not part.shard_path(n).exists() for n in numbers):
        model = _loaded(json.dumps(model_spec, sort_keys=True))
        Store(where).require(model)
        _write_missing(model, identity, [(part, n) for n in numbers], SILENT)
    return [str(part.shard_path(n)) for n in numbers]


@functools.lru_cache(maxsize=1)
def _loaded(spec: str) -> Model:
    """One model a worker process, loaded once."""
    return load(ModelSpec.from_json(spec), tokenizer=False)


# ---- before ----


def _checked(columns: pd.DataFrame | None, rows: Rows) -> pd.DataFrame | None:
    if columns is None:
        return None
    if len(columns) != len(rows):
        raise BadData(f"columns has {len(columns)} rows for {len(rows)} rows of tokens; give one each")
    if taken := [str(c) for c in columns.columns if c in OWN_COLUMNS]:
        raise BadData(f"columns may not be called {', '.join(taken)}: the store has columns of that name")
    return columns.reset_index(drop=True)


def _strings(model: Model, rows: Rows) -> dict[int, str]:
    ids = np.unique(flat_ids(rows)).tolist()
    return dict(zip(ids, model.to_strings(ids), strict=True))


def _refuse_no_room(plan: StorePlan, where: Path, model: Model, table: pa.Table) -> None:
    mine = [p for p in read_parts(where, plan.identity) if p.digest == about_of(table.schema)["digest"]]
    have = [part.shard_path(n) for part in mine for n in range(part.n_shards)]
    there = sum(path.stat().st_size for path in have if path.exists())
    free = free_bytes(where)
    if plan.n_bytes - there > free:
        raise NoRoom(
            f"this store needs {plan.n_bytes / 1e9:.3f} GB on disk and {free / 1e9:.3f} GB are free in {where.name}'s"
            " file system. Name fewer sites, layers or positions, store dtype='float16', or reduce on the way"
            " (reduce_activations)"
        )
    memory.require(
        plan.batch_bytes,
        model.device,
        f"a batch of {plan.identity.batch_size} rows",
        "Use a smaller batch_size, fewer sites or layers.",
    )


def free_bytes(folder: Path) -> int:
    """Free room where `folder` is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


# ---- doing it ----


def _complete(model: Model, where: Path, parts: Sequence[Part], executor: Executor | None, progress: Progress) -> Store:
    identity, _ = read_identity(where)
    todo = [(part, number) for part in parts for number in range(part.n_shards) if not part.shard_path(number).exists()]
    try:
        if executor is None:
            _write_missing(model, identity, todo, progress)
        elif todo:
            spec = _shippable(model)
            run_all(
                executor,
                write_shards,
                [(str(where.resolve()), part.path.name, [number], spec) for part, number in todo],
                progress=progress,
                text="shards",
            )
    except Cancelled:
        pass
    return Store(where)


def _shippable(model: Model) -> dict[str, Any]:
    """The model's spec as a worker elsewhere can load it."""
    spec = model.spec
    if Path(spec.name).is_dir():
        spec = spec.replace(name=str(Path(spec.name).resolve()))
    elif not spec.name.startswith("organism:") and "revision" not in model.about:
        raise BadSpec(
            f"{model.name} was made in memory, so workers cannot load it: save it with save_pretrained and load it from"
            " there"
        )
    # Each worker has its own GPU and sees only that one.
    return (spec if spec.device == "cpu" else spec.replace(device="auto")).to_dict()


def _write_missing(model: Model, identity: Identity, todo: list[tuple[Part, int]], progress: Progress) -> None:
    """Make shards in turn; those that another writer is at come last, in case it dies."""
    total = sum(part.sizes(number)[1] for part, number in todo)
    done, left = 0, list(todo)
    while left:
        others = []
        for part, number in left:
            path = part.shard_path(number)
            handle = claim(path)
            if handle is None and not path.exists():
                others.append((part, number))
                continue
            if handle is not None:
                _write_shard(
                    model,
                    identity,
                    part,
                    number,
                    handle,
                    lambda n, before=done: progress.update(before + n, total, "storing tokens"),
                )
            done += part.sizes(number)[1]
        if len(others) == len(left):
            progress.update(done, total, "waiting for another writer")
            time.sleep(0.1)
        left = others


def _write_shard(model: Model, identity: Identity, part: Part, number: int, handle: int, tell: Any) -> None:
    row_numbers, rows = part.rows_of(number)
    about = {
        "store": identity.key,
        "key": part.shard_key(number),
        "versions": _versions(),
        "git": git_state().get("commit", ""),
        "device": model.device,
    }
    writer = ShardWriter(handle, part.shard_path(number), identity.fields(*part.sizes(number)), about)
    seconds, n_done = 0.0, 0
    try:
        writer.reserve()
        n_kept = [len(r) if identity.positions is None else len(identity.positions) for r in rows]
        writer.put("row", torch.tensor(row_numbers))
        writer.put("offset", torch.from_numpy(np.concatenate([[0], np.cumsum(n_kept)]).astype(np.int64)))
        with ThreadPoolExecutor(1) as beside:
            before: Future[None] | None = None
            pieces = stream(
                model,
                rows,
                [p.key for p in identity.places],
                positions=identity.positions,
                dtype=DTYPES[identity.dtype],
                batch_size=identity.batch_size,
            )
            while True:
                started = time.perf_counter()
                piece = next(pieces, None)
                seconds += time.perf_counter() - started
                if before is not None:
                    before.result()
                if piece is None:
                    break
                before = beside.submit(_put, writer, identity, piece)
                n_done += len(piece.token)
                tell(n_done)
        writer.finish(seconds)
    except BaseException as trouble:
        writer.discard()
        if isinstance(trouble, OSError) and trouble.errno in NO_ROOM:
            raise NoRoom(
                f"the disk filled up while {part.shard_path(number).name} was written ({trouble.strerror}); the shards"
                " before it are kept. Make room and call write_store again: it goes on from there"
            ) from trouble
        raise


_versions = functools.cache(versions)


def _put(writer: ShardWriter, identity: Identity, piece: Piece) -> None:
    writer.put("token", piece.token.int())
    writer.put("pos", piece.pos.int())
    for place in identity.places:
        writer.put(place.name, piece.values[place.key])
