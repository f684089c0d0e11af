"""What a store is made of: its identity, and the rows that were given to it.

    FOLDER/store.json          identity: weights and processing of the model, sites, positions, number format, code
    versions FOLDER/parts/000.parquet   one set of rows, in the order they lie in shards: row, tokens, n_tokens, and the
    caller's columns FOLDER/shards/*.safetensors

A part is registered whole before any of its activations are made, so what is missing is always known, and a lost shard
can be made again from the store alone. The same rows given again find their part; other rows make another one.
Cost: a part takes about 2 bytes a token on disk.
"""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from workbench.core import files
from workbench.core.errors import BadData
from workbench.core.provenance import versions
from workbench.models.inputs import Rows
from workbench.models.model import Model
from workbench.primitives.read.capture import Key

from .shards import SUFFIX, BrokenStore, Field, OtherStore, locked

FORMAT = 1
OWN_COLUMNS = ("row", "tokens", "n_tokens", "example", "part", "shard", "pos", "token", "text")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


# ---- identity ----


@dataclass(frozen=True)
class Place:
    """One stored site of one layer: its tensor's name and the shape and axes of one token's values."""

    site: str
    layer: int | None
    shape: tuple[int, ...]
    dims: tuple[str, ...]

    @property
    def key(self) -> Key:
        return self.site, self.layer

    @property
    def name(self) -> str:
        return self.site if self.layer is None else f"{self.site}.{self.layer}"


@dataclass(frozen=True)
class Identity:
    """What every number of a store depends on beside its rows."""

    model: dict[str, Any]
    places: tuple[Place, ...]
    positions: tuple[int, ...] | None
    dtype: str
    batch_size: int
    code: dict[str, str]

    @classmethod
    def of(
        cls, model: Model, places: Sequence[Place], positions: Sequence[int] | None, dtype: str, batch_size: int
    ) -> "Identity":
        found = versions()
        code = {"store": str(FORMAT)} | {name: found[name] for name in ("transformer-lens", "transformers")}
        return cls(
            model_facts(model), tuple(places), None if positions is None else tuple(positions), dtype, batch_size, code
        )

    def facts(self) -> dict[str, str]:
        """{what: its value}, each fit to be shown beside another store's."""
        shown = {
            "sites": ", ".join(f"{p.name}{list(p.shape)}" for p in self.places),
            "positions": "all" if self.positions is None else str(list(self.positions)),
        }
        shown |= {"stored dtype": self.dtype, "batch size": str(self.batch_size)} | {
            f"{k} version": v for k, v in self.code.items()
        }
        return {f"model {k}": str(v) for k, v in self.model.items()} | shown

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.facts(), sort_keys=True).encode()).hexdigest()[:16]

    def fields(self, n_rows: int, n_tokens: int) -> list[Field]:
        """The tensors of a shard of this many rows and stored tokens."""
        own = [Field("row", torch.int64, (n_rows,)), Field("offset", torch.int64, (n_rows + 1,))]
        own += [Field("token", torch.int32, (n_tokens,)), Field("pos", torch.int32, (n_tokens,))]
        return own + [Field(p.name, DTYPES[self.dtype], (n_tokens, *p.shape)) for p in self.places]

    def refuse_other(self, other: "Identity", folder: Path) -> None:
        """Raises OtherStore, naming everything that differs between this store and what is wanted of it."""
        mine, theirs = self.facts(), other.facts()
        if different := [
            f"{k}: {mine.get(k, 'none')} in the store, {theirs.get(k, 'none')} now"
            for k in dict.fromkeys([*mine, *theirs])
            if mine.get(k) != theirs.get(k)
        ]:
            raise OtherStore(
                f"{folder.name} holds other activations ({'; '.join(different)}). Use the same model and settings, or"
                " another folder"
            )


def model_facts(model: Model) -> dict[str, Any]:
    """What of a model decides its activations: the hash of its weights, how they are processed, and their number
    format.
    """
    return {"weights": model.weights_hash, "processing": model.spec.processing, "dtype": model.dtype_name}


def write_identity(folder: Path, identity: Identity, made_of: Mapping[str, Any]) -> None:
    """Create a store's folder, or check that the one that is there is the same."""
    with locked(folder / ".lock"):
        if (folder / "store.json").exists():
            read_identity(folder)[0].refuse_other(identity, folder)
            return
        about = {
            "format": FORMAT,
            "key": identity.key,
            "identity": {**vars(identity), "places": [vars(p) for p in identity.places]},
            "made_of": dict(made_of),
        }
        for name in ("parts", "shards"):
            (folder / name).mkdir(exist_ok=True)
        files.write_text(folder / "store.json", json.dumps(about, indent=1))


def read_identity(folder: Path) -> tuple[Identity, dict[str, Any]]:
    """The identity of a store and what else its store.json says.

    Raises:
        BrokenStore: if the folder is no store, of another format, or its store.json was changed.
    """
    try:
        about = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise BrokenStore(
                f"{folder.name} is a store of format {about['format']}; this version reads format {FORMAT}"
            )
        found = about["identity"]
        places = tuple(Place(p["site"], p["layer"], tuple(p["shape"]), tuple(p["dims"])) for p in found["places"])
        positions = None if found["positions"] is None else tuple(found["positions"])
        identity = Identity(found["model"], places, positions, found["dtype"], found["batch_size"], found["code"])
    except (OSError, ValueError, KeyError, TypeError) as trouble:
        if isinstance(trouble, BrokenStore):
            raise
        raise BrokenStore(
            f"{folder.name} holds no readable store.json ({type(trouble).__name__}); a store is a folder made by"
            " write_store"
        ) from None
    if identity.key != about["key"]:
        raise BrokenStore(
            f"store.json in {folder.name} was changed: it is of store {about['key']} and describes {identity.key}"
        )
    return identity, about


# ---- parts ----


@dataclass(frozen=True, eq=False)
class Part:
    """One set of rows. first_row, first_token: [shard + 1] where each shard begins among the rows as they lie, and
    ends.

    base_example, base_token, base_shard: how many examples, stored tokens and shards the parts before it have.
    """

    path: Path
    store_key: str
    digest: str
    rows_digest: str
    source: dict[str, Any]
    first_row: np.ndarray
    first_token: np.ndarray
    base_example: int
    base_token: int
    base_shard: int

    @property
    def n_shards(self) -> int:
        return len(self.first_row) - 1

    @property
    def n_examples(self) -> int:
        return int(self.first_row[-1])

    @property
    def n_tokens(self) -> int:
        """Stored tokens."""
        return int(self.first_token[-1])

    def shard_key(self, number: int) -> str:
        return hashlib.sha256(f"{self.store_key}:{self.digest}:{number}".encode()).hexdigest()[:16]

    def shard_path(self, number: int) -> Path:
        return self.path.parents[1] / "shards" / f"{self.path.stem}-{number:05d}-{self.shard_key(number)}{SUFFIX}"

    def sizes(self, number: int) -> tuple[int, int]:
        """Rows and stored tokens of a shard."""
        return int(self.first_row[number + 1] - self.first_row[number]), int(
            self.first_token[number + 1] - self.first_token[number]
        )

    def rows_of(self, number: int) -> tuple[list[int], list[list[int]]]:
        """Numbers and token ids of a shard's rows."""
        table = self._file().read_row_group(number, columns=["row", "tokens"])
        return table["row"].to_pylist(), table["tokens"].to_pylist()

    def column(self, *names: str) -> pd.DataFrame:
        """Columns of all rows, as they lie."""
        return self._file().read(columns=list(names)).to_pandas()

    @cached_property
    def caller_columns(self) -> list[str]:
        return [name for name in self._file().schema_arrow.names if name not in OWN_COLUMNS]

    @cached_property
    def strings(self) -> dict[int, str]:
        """The text of every token id that occurs."""
        ids, texts = json.loads((self._file().schema_arrow.metadata or {})[b"strings"])
        return dict(zip(ids, texts, strict=True))

    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.path, page_checksum_verification=True, memory_map=True)

    def damage(self) -> str:
        """What is wrong with the part's file; empty if it holds the rows that were given."""
        try:
            found = digest_of(self._file().read(), self.source)
        except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as trouble:
            return f"it cannot be read ({type(trouble).__name__})"
        return "" if found == self.digest else "checksum of its rows differs"


def table_of(
    rows: Rows, columns: pd.DataFrame | None, cuts: "Cuts", strings: Mapping[int, str], source: Mapping[str, Any]
) -> pa.Table:
    """The part as a table, rows as they will lie; what else is known of it in the schema's metadata."""
    flat = np.fromiter(itertools.chain.from_iterable(rows[i] for i in cuts.order), np.int32, sum(len(r) for r in rows))
    lengths = np.array([len(rows[i]) for i in cuts.order], np.int32)
    tokens = pa.LargeListArray.from_arrays(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), flat)
    own = {"row": pa.array(cuts.order.astype(np.int64)), "tokens": tokens, "n_tokens": pa.array(lengths)}
    frame = pd.DataFrame() if columns is None else columns
    for name in frame.columns:
        try:
            own[str(name)] = pa.array(frame[name].iloc[cuts.order], from_pandas=True)
        except (pa.ArrowException, TypeError) as found:
            raise BadData(f"column {name!r} cannot be kept: {str(found).splitlines()[0]}") from None
    table = pa.table(own)
    about = {
        "digest": digest_of(table, source),
        "rows": digest_of(table.select(["row", "tokens", "n_tokens"]), {}),
        "source": dict(source),
        "first_row": cuts.first_row.tolist(),
        "first_token": cuts.first_token.tolist(),
    }
    return table.replace_schema_metadata(
        {
            b"workbench": json.dumps(about).encode(),
            b"strings": json.dumps([list(strings), list(strings.values())]).encode(),
        }
    )


def about_of(schema: pa.Schema) -> dict[str, Any]:
    """What a part's schema says of it."""
    return json.loads((schema.metadata or {})[b"workbench"])


def digest_of(table: pa.Table, source: Mapping[str, Any]) -> str:
    """SHA-256 over token ids, the caller's columns and where they came from."""
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode())
    for name in ("row", "n_tokens"):
        digest.update(table[name].to_numpy().tobytes())
    for chunk in table["tokens"].chunks:
        digest.update(chunk.flatten().to_numpy().tobytes())
    for name in table.column_names:
        if name not in OWN_COLUMNS:
            digest.update(json.dumps([name, table[name].to_pylist()], default=str).encode())
    return digest.hexdigest()[:32]


def register(folder: Path, identity: Identity, table: pa.Table) -> Part:
    """Write down the rows of a part, or find the part that has them already."""
    about = about_of(table.schema)
    with locked(folder / ".lock"):
        for part in read_parts(folder, identity):
            if part.digest == about["digest"]:
                return part
            if part.rows_digest == about["rows"]:
                raise OtherStore(
                    f"these rows are in {folder.name} already (part {part.path.stem}), with other columns or another"
                    f" source: {part.source}. Give the same ones to go on with it, or another folder"
                )
        there, known = read_parts(folder, identity), known_parts(folder)
        taken = known | {part.path.stem: part.digest for part in there}
        mine = about["digest"]  # rows whose part was lost go back to their own name, where their shards are
        names = (f"{n:03d}" for n in itertools.count())
        name = next((n for n in known if known[n] == mine), None) or next(n for n in names if n not in taken)
        content = pa.BufferOutputStream()
        with pq.ParquetWriter(content, table.schema, write_page_checksum=True) as writer:
            for start, stop in itertools.pairwise(about["first_row"]):
                writer.write_table(table.slice(start, stop - start), row_group_size=stop - start)
        path = files.write_bytes(folder / "parts" / f"{name}.parquet", memoryview(content.getvalue()))
        whole = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        whole["parts"] = taken | {name: mine}
        files.write_text(folder / "store.json", json.dumps(whole, indent=1))
        return next(part for part in read_parts(folder, identity) if part.path == path)


def known_parts(folder: Path) -> dict[str, str]:
    """{name: digest of its rows} of every part that was registered, whether its file is there or not."""
    return json.loads((folder / "store.json").read_text(encoding="utf-8")).get("parts", {})


def refuse_lost(folder: Path, parts: Sequence[Part]) -> None:
    """Raises BrokenStore if rows that were registered are gone, by store.json or by shards of a part that is not there:
    the examples after them would take their numbers.
    """
    there = {part.path.stem: part.digest for part in parts}
    lost = {name for name, digest in known_parts(folder).items() if there.get(name) != digest}
    lost |= {path.name.split("-")[0] for path in (folder / "shards").glob(f"*{SUFFIX}")} - set(there)
    if lost:
        raise BrokenStore(
            f"{folder.name} has lost the rows of part {', '.join(sorted(lost))} (parts/NAME.parquet): put it back,"
            " or call write_store with these rows again; shards are kept"
        )


def read_parts(folder: Path, identity: Identity) -> list[Part]:
    """The parts of a store, in order.

    Raises:
        BrokenStore: if one cannot be read.
    """
    found: list[Part] = []
    for path in sorted((folder / "parts").glob("*.parquet")):
        try:
            about = about_of(pq.read_schema(path))
            bases = (
                (
                    found[-1].base_example + found[-1].n_examples,
                    found[-1].base_token + found[-1].n_tokens,
                    found[-1].base_shard + found[-1].n_shards,
                )
                if found
                else (0, 0, 0)
            )
            found.append(
                Part(
                    path,
                    identity.key,
                    about["digest"],
                    about["rows"],
                    about["source"],
                    np.array(about["first_row"]),
                    np.array(about["first_token"]),
                    *bases,
                )
            )
        except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as trouble:
            raise BrokenStore(
                f"{path.name} in {folder.name} cannot be read ({type(trouble).__name__}): remove it and call"
                " write_store with its rows again; its shards are kept"
            ) from None
    return found


# ---- which rows go into which shard ----


@dataclass(frozen=True, eq=False)
class Cuts:
    """order: [row] rows as they lie. first_row, first_token: [shard + 1] where shards begin."""

    order: np.ndarray
    first_row: np.ndarray
    first_token: np.ndarray


def cut(lengths: np.ndarray, n_kept: int | None, batch_size: int, shard_tokens: int) -> Cuts:
    """Sort rows by length and cut them into shards of whole batches.

    Batches are the same whatever the size of a shard, because activations differ in their last bits with the batch.

    Args:
        lengths: [row] tokens of each row.
        n_kept: stored tokens of a row; its length if None.
        shard_tokens: stored tokens after which a shard is full; a batch larger than that is a shard of its own.
    """
    order = np.argsort(lengths, kind="stable")
    lying = lengths[order]
    first_row, first_token, filled, token = [0], [0], 0, 0
    start = 0
    while start < len(lying):
        same = int(np.searchsorted(lying, lying[start], side="right"))
        stop = min(start + batch_size, same)
        n = (stop - start) * (int(lying[start]) if n_kept is None else n_kept)
        if filled and filled + n > shard_tokens:
            first_row.append(start)
            first_token.append(token)
            filled = 0
        filled, token, start = filled + n, token + n, stop
    return Cuts(order, np.array([*first_row, len(lying)]), np.array([*first_token, token]))
