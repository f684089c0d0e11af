"""Reading a store: memory-mapped tensors of chosen examples and positions, batches, labels, and what is there.

    store = Store(folder)
    store.read("resid_post", 3, positions=[-1])       # [token, d_model] tensor; store.tokens(positions=[-1]) says whose
    for batch in store.batches("resid_post", 3, seed=0): ...

Opening reads store.json and the parts' footers, not the shards. The first time a tensor of a shard is read, all of it
is compared with its checksum: a store that was damaged, or whose files changed places, says so and gives no number.
An example is a row that was given, counted over all parts; a token's `number` says where it lies, and is what
reductions keep of it. Cost: the first read of a shard's tensor pages in all of it, for any token of it; `read` of
tokens that lie together copies nothing.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from workbench.core.errors import BadData, NoRoom, UnknownSite
from workbench.models import memory
from workbench.models.model import Model

from .lazy import LazyTensor
from .parts import DTYPES, Part, Place, model_facts, read_identity, read_parts, refuse_lost
from .shards import BrokenStore, Damaged, OtherStore, Shard, damage

POOL = 4  # shards whose tokens are shuffled together


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """values: [token, ...]. example, pos, token, number: [token] whose they are, where, which id, and where they
    lie.
    """

    values: torch.Tensor
    example: torch.Tensor
    pos: torch.Tensor
    token: torch.Tensor
    number: torch.Tensor

    def __len__(self) -> int:
        return len(self.values)


class Store:
    """A folder of activations. Reading needs no model; everything but `read`, `batches` and `verify` is cheap."""

    def __init__(self, folder: Path | str):
        """Open a store.

        Raises:
            BrokenStore: if the folder holds none, its store.json or a part cannot be read, or a part is gone.
        """
        self.folder = Path(folder)
        self.identity, self._about = read_identity(self.folder)
        self.parts = read_parts(self.folder, self.identity)
        refuse_lost(self.folder, self.parts)
        self._open = lru_cache(maxsize=POOL + 1)(self._open_shard)
        self._known: dict[int, set[str]] = {}  # names of the tensors of each shard that were compared with their sums

    def __repr__(self) -> str:
        about = self.about()
        state = "complete" if self.is_complete else f"{about['shards_there']} of {about['shards']} shards there"
        model = about["model"]
        return (
            f"Store({self.folder.name}: {', '.join(about['sites'])} of {model}, {about['examples']:,} examples,"
            f" {about['tokens']:,} tokens as {about['dtype']}, {about['bytes'] / 1e6:,.1f} MB, {state})"
        )

    # ---- what it is ----

    @property
    def key(self) -> str:
        return self.identity.key

    @property
    def places(self) -> tuple[Place, ...]:
        return self.identity.places

    @property
    def n_examples(self) -> int:
        return sum(part.n_examples for part in self.parts)

    @property
    def n_tokens(self) -> int:
        """Tokens that the store holds when it is complete."""
        return sum(part.n_tokens for part in self.parts)

    @cached_property
    def shards(self) -> list[tuple[Part, int]]:
        """(part, number in it) of every shard, there or not, in the order they lie."""
        return [(part, number) for part in self.parts for number in range(part.n_shards)]

    @cached_property
    def _first_token(self) -> np.ndarray:
        """[shard + 1] number of the token each shard begins with."""
        return np.concatenate(
            [*(part.first_token[:-1] + part.base_token for part in self.parts), [self.n_tokens]]
        ).astype(np.int64)

    def missing(self) -> list[str]:
        """Names of shards that are not written yet, or were removed; asks the disk each time."""
        have = {p.name for p in (self.folder / "shards").glob("*.safetensors")}
        return [name for part, number in self.shards if (name := part.shard_path(number).name) not in have]

    @property
    def is_complete(self) -> bool:
        return not self.missing()

    def about(self) -> dict[str, Any]:
        """What is in it, for people and panels."""
        missing = self.missing()
        sites: dict[str, list[int | None]] = {}
        for place in self.places:
            sites.setdefault(place.site, []).append(place.layer)
        return {
            "folder": self.folder.name,
            "key": self.key,
            "model": self._about["made_of"].get("model", {}).get("name", ""),
            "sites": sites,
            "dtype": self.identity.dtype,
            "positions": "all" if self.identity.positions is None else list(self.identity.positions),
            "examples": self.n_examples,
            "tokens": self.n_tokens,
            "shards": len(self.shards),
            "shards_there": len(self.shards) - len(missing),
            "bytes": sum(p.stat().st_size for p in (self.folder / "shards").glob("*.safetensors")),
            "sources": [part.source for part in self.parts],
        }

    def table(self) -> pd.DataFrame:
        """One row per stored site and layer: axes and shape of its values, number format, megabytes when complete."""
        size = DTYPES[self.identity.dtype].itemsize
        rows = [
            {
                "site": p.site,
                "layer": p.layer,
                "dims": ("token", *p.dims),
                "shape": (self.n_tokens, *p.shape),
                "dtype": self.identity.dtype,
                "MB": round(self.n_tokens * int(np.prod(p.shape)) * size / 1e6, 3),
            }
            for p in self.places
        ]
        return pd.DataFrame(rows).astype({"layer": "Int64"})

    @cached_property
    def examples(self) -> pd.DataFrame:
        """One row per example: its part, its number of tokens, and the caller's columns."""
        frames = []
        for part in self.parts:
            frame = part.column("row", "n_tokens", *part.caller_columns).sort_values("row")
            frame.insert(0, "example", frame.pop("row") + part.base_example)
            frame.insert(1, "part", part.path.stem)
            frames.append(frame)
        empty = pd.DataFrame({"example": [], "part": [], "n_tokens": []})
        return pd.concat(frames, ignore_index=True) if frames else empty

    def require(self, model: Model) -> None:
        """Raises OtherStore, saying what differs, unless this model made the store."""
        now = model_facts(model)
        if different := [
            f"{k}: {v} in the store, {now.get(k)} in {model.name}"
            for k, v in self.identity.model.items()
            if v != now.get(k)
        ]:
            raise OtherStore(f"{self.folder.name} holds activations of another model ({'; '.join(different)})")

    # ---- reading ----

    def read(
        self,
        site: str,
        layer: int | None = None,
        *,
        examples: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Stored values of chosen examples and positions.

        Args:
            site, layer: as stored; see `table`.
            examples: which; all if not given, in the order of `examples`.
            positions: places in their rows, negative from the end; all that are stored if not given.

        Returns:
            [token, ...]: the tokens of the first example in the order asked, then of the next; `tokens` gives their
            labels in the same order. Memory-mapped where they lie together (writing to it changes no file), else a
            copy.

        Raises:
            BadData: if an example has no such position. BrokenStore: if a shard is missing. NoRoom: if it would not
                fit.
        """
        place = self.place(site, layer)
        return self.gather(place.name, self._numbers(examples, positions))

    def tokens(self, examples: Sequence[int] | None = None, positions: Sequence[int] | None = None) -> pd.DataFrame:
        """One row per token that `read` gives: example, pos, token id, text, and the caller's columns."""
        return self.locate(self._numbers(examples, positions))

    def locate(self, numbers: np.ndarray | torch.Tensor) -> pd.DataFrame:
        """The tokens of these numbers: example, pos, token id, text, and the caller's columns."""
        numbers = np.asarray(numbers, np.int64)
        example, pos, token = (self.gather(name, numbers).numpy() for name in ("example", "pos", "token"))
        strings: dict[int, str] = {}
        for part in self.parts:
            strings |= part.strings
        frame = pd.DataFrame(
            {"example": example, "pos": pos, "token": token, "text": [strings.get(int(t), "") for t in token]}
        )
        about = self.examples.set_index("example").loc[example]
        for name in dict.fromkeys(n for part in self.parts for n in part.caller_columns):
            per_token = [
                isinstance(v, (list, np.ndarray)) and len(v) == n
                for v, n in zip(about[name], about["n_tokens"], strict=True)
            ]
            frame[name] = [v[p] if per else v for v, p, per in zip(about[name], pos, per_token, strict=True)]
        return frame

    def batches(
        self,
        site: str,
        layer: int | None = None,
        *,
        batch_size: int = 4096,
        seed: int | None = None,
        examples: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
    ) -> Iterator[TokenBatch]:
        """Go over the tokens once.

        Without a seed in the order they lie (rows sorted by length, part by part); with one, shuffled: the shards in
        random order, and the tokens of four shards together. Of chosen examples or positions, all tokens are shuffled
        together.
        Memory: a batch, or with a seed four shards.
        """
        place = self.place(site, layer)
        rng = None if seed is None else np.random.default_rng(seed)
        if examples is not None or positions is not None:
            pools = iter([self._numbers(examples, positions)])
        else:
            order = np.arange(len(self.shards)) if rng is None else rng.permutation(len(self.shards))
            step = 1 if rng is None else POOL
            spans = (order[i : i + step] for i in range(0, len(order), step))
            pools = (
                np.concatenate([np.arange(int(self._first_token[s]), int(self._first_token[s + 1])) for s in span])
                for span in spans
            )
        for numbers in pools:
            if rng is not None:
                numbers = rng.permutation(numbers)
            for start in range(0, len(numbers), batch_size):
                some = numbers[start : start + batch_size]
                yield TokenBatch(
                    self.gather(place.name, some),
                    self.gather("example", some),
                    self.gather("pos", some),
                    self.gather("token", some),
                    torch.from_numpy(some),
                )

    def shard_batches(self, site: str, layer: int | None, index: int, batch_size: int) -> Iterator[TokenBatch]:
        """The tokens of one shard, as they lie; the mapped file is let go at the end."""
        place, read = self.place(site, layer), self._open_shard(index)
        values, example, pos, tokens = read(place.name), read("example"), read("pos"), read("token")
        first = int(self._first_token[index])
        for start in range(0, len(tokens), batch_size):
            cells = slice(start, start + batch_size)
            token = tokens[cells]
            yield TokenBatch(
                values[cells],
                example[cells],
                pos[cells],
                token,
                torch.arange(first + start, first + start + len(token)),
            )

    def lazy(self, site: str, layer: int | None = None) -> xr.DataArray:
        """The values as an xarray that reads from disk what is selected of it: `store.lazy("z", 0)[1000:1010].load()`.

        Dims: token (as they lie) and the site's axes; coords example, pos and token_id, read when used. bfloat16, which
        numpy does not have, is read as float32.
        """
        place = self.place(site, layer)
        coords = {
            name: ("token", LazyTensor(self.gather, of, (self.n_tokens,), dtype).indexed())
            for name, of, dtype in (
                ("example", "example", "int64"),
                ("pos", "pos", "int32"),
                ("token_id", "token", "int32"),
            )
        }
        stored = "float32" if self.identity.dtype == "bfloat16" else self.identity.dtype
        values = xr.Variable(
            ("token", *place.dims), LazyTensor(self.gather, place.name, (self.n_tokens, *place.shape), stored).indexed()
        )
        return xr.DataArray(
            values,
            coords={n: xr.Variable(*v) for n, v in coords.items()},
            name=place.name,
            attrs={
                "unit": "activation",
                "long_name": f"{place.name} of {self._about['made_of'].get('model', {}).get('name', '')}",
            },
        )

    # ---- checking ----

    def verify(self) -> pd.DataFrame:
        """Read every byte and compare with its checksum.

        Returns:
            One row per piece that is not as it should be: `piece` (file), `is_damaged` (False: missing), `problem`.
            Empty if all is well; `repair_store` makes again what is named.
        """
        found = [(part.path.name, True, problem) for part in self.parts if (problem := part.damage())]
        for part, number in self.shards:
            path = part.shard_path(number)
            if not path.exists():
                found.append((path.name, False, "missing: not written yet, or removed"))
            elif problem := damage(path, self.identity.fields(*part.sizes(number)), part.shard_key(number)):
                found.append((path.name, True, problem))
        return pd.DataFrame(found, columns=["piece", "is_damaged", "problem"])

    # ---- inside ----

    def place(self, site: str, layer: int | None = None) -> Place:
        """The stored place of this site and layer; UnknownSite with the closest that are stored."""
        for place in self.places:
            if place.key == (site, layer):
                return place
        raise UnknownSite.among(
            "stored site",
            site if layer is None else f"{site} of layer {layer}",
            [p.site if p.layer is None else f"{p.site} of layer {p.layer}" for p in self.places],
        )

    def _open_shard(self, index: int) -> Callable[[str], torch.Tensor]:
        """What gives a shard's tensors by name, mapped; also `example`: of each token, counted over all parts."""
        part, number = self.shards[index]
        path = part.shard_path(number)
        fields, key = self.identity.fields(*part.sizes(number)), part.shard_key(number)
        shard = self._whole(path, lambda: Shard(path, fields, key, self._known.setdefault(index, set())))

        @cache
        def read(name: str) -> torch.Tensor:
            if name == "example":
                return torch.repeat_interleave(read("row") + part.base_example, read("offset").diff())
            return self._whole(path, lambda: shard[name])

        return read

    def _whole(self, path: Path, read: Callable[[], Any]) -> Any:
        """What `read` gives of a shard's file; BrokenStore if it is not there or not what was written."""
        try:
            return read()
        except FileNotFoundError:
            raise BrokenStore(
                f"{path.name} is not there: {len(self.missing())} of {len(self.shards)} shards are missing; call"
                " write_store again, or repair_store"
            ) from None
        except Damaged as found:
            raise BrokenStore(
                f"{path.name} is damaged ({found}); verify() names all that is, repair_store makes it again"
            ) from None

    def gather(self, name: str, numbers: np.ndarray) -> torch.Tensor:
        """Rows of a tensor ("resid_post.3", "example", "pos", "token") by token number; a view of the file where they
        lie together in one shard."""
        if len(numbers) == 0:
            field = next(f for f in self.identity.fields(0, 0) if f.name == ("row" if name == "example" else name))
            return torch.empty((0, *field.shape[1:]), dtype=field.dtype)
        shard = np.searchsorted(self._first_token, numbers, side="right") - 1
        if (
            shard[0] == shard[-1]
            and len(numbers) - 1 == numbers[-1] - numbers[0]
            and bool((np.diff(numbers) == 1).all())
        ):
            start = int(numbers[0] - self._first_token[shard[0]])
            return self._open(int(shard[0]))(name)[start : start + len(numbers)]
        order = np.argsort(shard, kind="stable")
        edges = np.flatnonzero(np.diff(shard[order], prepend=-1, append=-2))
        out: torch.Tensor | None = None
        for start, stop in itertools.pairwise(edges.tolist()):
            where, index = order[start:stop], int(shard[order[start]])
            source = self._open(index)(name)
            if out is None:
                need = len(numbers) * source[:1].numel() * source.element_size()
                if need > 0.8 * memory.available_bytes("cpu"):
                    raise NoRoom(
                        f"{len(numbers):,} tokens of {name} are {need / 1e9:.1f} GB, more than fits in memory; go over"
                        " them with batches(), or reduce_store"
                    )
                out = torch.empty((len(numbers), *source.shape[1:]), dtype=source.dtype)
            out[torch.from_numpy(where)] = source[torch.from_numpy(numbers[where] - self._first_token[index])]
        assert out is not None
        return out

    @cached_property
    def _layout(self) -> tuple[np.ndarray, np.ndarray]:
        """[example] number of its first stored token, and its row's length."""
        first, length = np.zeros(self.n_examples, np.int64), np.zeros(self.n_examples, np.int64)
        for part in self.parts:
            lying = part.column("row", "n_tokens")
            kept = (
                lying["n_tokens"].to_numpy(np.int64)
                if self.identity.positions is None
                else np.full(len(lying), len(self.identity.positions))
            )
            where = lying["row"].to_numpy() + part.base_example
            first[where] = part.base_token + np.concatenate([[0], np.cumsum(kept)[:-1]])
            length[where] = lying["n_tokens"]
        return first, length

    def _numbers(self, examples: Sequence[int] | None, positions: Sequence[int] | None) -> np.ndarray:
        """Where the chosen tokens lie."""
        first, length = self._layout
        chosen = np.arange(self.n_examples) if examples is None else np.asarray(examples, np.int64).reshape(-1)
        if len(outside := chosen[(chosen < 0) | (chosen >= self.n_examples)]):
            raise BadData(f"the store has examples 0 to {self.n_examples - 1}; asked for {int(outside[0])}")
        first, length = first[chosen], length[chosen]
        stored = self.identity.positions
        if positions is None:
            kept = length if stored is None else np.full(len(chosen), len(stored))
            total = int(kept.sum())
            within = np.arange(total) - np.repeat(np.cumsum(kept) - kept, kept)
            return np.repeat(first, kept) + within
        columns = []
        for position in positions:
            at = length + position if position < 0 else np.full(len(chosen), position)
            if stored is None:
                at = np.where((at >= 0) & (at < length), at, -1)
            else:
                have = np.stack([length + p if p < 0 else np.full(len(chosen), p) for p in stored], 1)
                at = np.where((have == at[:, None]).any(1), (have == at[:, None]).argmax(1), -1)
            if (at < 0).any():
                bad = int(np.flatnonzero(at < 0)[0])
                what = f"{int(length[bad])} tokens" + (
                    "" if stored is None else f", of which positions {list(stored)} are stored"
                )
                raise BadData(
                    f"example {int(chosen[bad])} has no position {position}: its row has {what}; choose examples by"
                    " store.examples"
                )
            columns.append(first + at)
        return np.stack(columns, 1).reshape(-1) if columns else np.empty(0, np.int64)
