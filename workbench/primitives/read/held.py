"""What is held: models and captures alive in this process, stores on disk; how large each is, where it lies, how to let
go of it.

Nothing has to be registered: live models and captures are found by the garbage collector's list, which costs some 0.2 s
for half a million objects, and are remembered by weak references, so that looking keeps nothing alive. Of a store,
`store.json` and the parts' footers are read, and one example when a site is opened.
"""

import gc
import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import xarray as xr

from workbench.core.errors import BadData, UnknownSite, WorkbenchError
from workbench.core.hooks import SITES
from workbench.core.places import cache_folder
from workbench.models.model import Model
from workbench.primitives.read.capture import Capture, Key
from workbench.primitives.read.store import BrokenStore, Store

Kind = Literal["model", "capture", "store"]


@dataclass(frozen=True)
class HeldSite:
    """One captured or stored place: its key, the names of its axes (example first), sizes, number format, device and
    bytes.
    """

    key: Key
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    device: str
    n_bytes: int


@dataclass(frozen=True, eq=False)
class Holding:
    """A model, a capture or a store. key: tells it from all others. where: its devices, or "disk". n_examples: rows to
    open.

    problem: why it cannot be opened, "" if it can. find: the object itself, or None if it is gone.
    """

    kind: Kind
    key: str
    name: str
    about: str
    where: str
    dtype: str
    n_bytes: int
    sites: tuple[HeldSite, ...]
    n_examples: int
    problem: str
    find: Callable[[], Any]

    def site(self, key: Key) -> HeldSite:
        """The site of this key; UnknownSite with those that are held."""
        for site in self.sites:
            if site.key == key:
                return site
        raise UnknownSite.among("held site", site_name(key), [site_name(site.key) for site in self.sites])


def site_name(key: Key) -> str:
    """A site as people write it: "resid_post 3"."""
    return key[0] if key[1] is None else f"{key[0]} {key[1]}"


def size_text(n_bytes: float) -> str:
    """Bytes as people read them: "12.3 MB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes:.0f} bytes"


# ---- looking ----


def held_now(names: Mapping[str, Any] | None = None, folders: Iterable[Path | str] = ()) -> list[Holding]:
    """Everything that is held: loaded models, captures that have tensors, stores in the user's cache and in `folders`.

    Args:
        names: {name: object} by which models and captures are called, such as a notebook's variables.
        folders: stores, or folders of stores.

    Raises:
        BadData: if one of `folders` is not there.
    """
    called: dict[int, list[str]] = {}
    for name, value in (names or {}).items():
        if type(value) in (Model, Capture) and not name.startswith("_"):
            called.setdefault(id(value), []).append(name)
    alive = [
        found for found in gc.get_referrers(Model, Capture) if type(found) in (Model, Capture)
    ]  # an object refers to its class
    models = [_model(m, called.get(id(m), [])) for m in alive if isinstance(m, Model) and m.bridge is not None]
    captures = [_capture(c, called.get(id(c), [])) for c in alive if isinstance(c, Capture) and c.tensors]
    del alive
    return [*models, *captures, *(_store(folder) for folder in _store_folders(folders))]


def model_bytes(model: Model) -> dict[str, int]:
    """{device: bytes} of a model's parameters and buffers; shared ones count once."""
    found: dict[str, int] = {}
    if model.bridge is None:
        return found
    module = model.live.original_model if model.runner is model.bridge else model.runner
    assert isinstance(module, torch.nn.Module)
    seen: set[tuple[str, int]] = set()
    for tensor in [*module.parameters(), *module.buffers()]:
        storage, device = tensor.untyped_storage(), str(tensor.device)
        if (device, storage.data_ptr()) not in seen:
            seen.add((device, storage.data_ptr()))
            found[device] = found.get(device, 0) + storage.nbytes()
    return found


def _model(model: Model, names: Sequence[str]) -> Holding:
    sizes = model_bytes(model)
    about = (
        f"{model.kind}, {model.n_layers} layers x {model.n_heads} heads, {model.n_parameters / 1e6:,.2f} M parameters"
    )
    called = " = ".join([*names, model.name])
    return Holding(
        "model",
        f"model:{id(model)}",
        called,
        about,
        ", ".join(sizes) or "nowhere",
        model.dtype_name,
        sum(sizes.values()),
        (),
        0,
        "",
        weakref.ref(model),
    )


def _capture(capture: Capture, names: Sequence[str]) -> Holding:
    sites = []
    for key, tensor in capture.tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        sites.append(
            HeldSite(
                key,
                capture_dims(key, tensor.ndim),
                tuple(tensor.shape),
                dtype,
                str(tensor.device),
                tensor.untyped_storage().nbytes(),
            )
        )
    done = f"{capture.n_done} of {capture.n_rows} examples" if capture.partial else f"{capture.n_rows} examples"
    where, dtype = (", ".join(dict.fromkeys(getattr(s, what) for s in sites)) for what in ("device", "dtype"))
    name = " = ".join(names) or f"capture without a name ({site_name(sites[0].key)}{', ...' if len(sites) > 1 else ''})"
    about = f"{len(sites)} site{'s' * (len(sites) != 1)}, {done}"
    return Holding(
        "capture",
        f"capture:{id(capture)}",
        name,
        about,
        where,
        dtype,
        sum(s.n_bytes for s in sites),
        tuple(sites),
        capture.n_done,
        "",
        weakref.ref(capture),
    )


def capture_dims(key: Key, n_dims: int) -> tuple[str, ...]:
    """Names of a captured tensor's axes; positions that were reduced away are missing, other axes have numbers for
    names.
    """
    own = SITES[key[0]].dims if key[0] in SITES else ()
    reduced = tuple(d for d in own if d not in ("pos", "query_pos"))
    for dims in (own, reduced):
        if dims and len(dims) == n_dims - 1:
            return ("example", *dims)
    return ("example", *(f"axis_{i}" for i in range(1, n_dims)))


def _store_folders(folders: Iterable[Path | str]) -> list[Path]:
    found = []
    for root in [cache_folder() / "stores", *map(Path, folders)]:
        if root.is_dir():
            inside = [root] if (root / "store.json").is_file() else sorted(p.parent for p in root.glob("*/store.json"))
            found += [p.resolve() for p in inside]
        elif root != cache_folder() / "stores":
            raise BadData(f"there is no folder {root}; give a store, or a folder with stores in it")
    return list(dict.fromkeys(found))


def _store(folder: Path) -> Holding:
    key, on_disk = f"store:{folder}", sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    try:
        store = Store(folder)
        about = store.about()
    except BrokenStore as found:
        return Holding("store", key, folder.name, "", "disk", "", on_disk, (), 0, str(found), lambda: folder)
    value_bytes = getattr(torch, about["dtype"]).itemsize
    sites = tuple(
        HeldSite(
            place.key,
            ("token", *place.dims),
            (store.n_tokens, *place.shape),
            about["dtype"],
            "disk",
            store.n_tokens * math.prod(place.shape) * value_bytes,
        )
        for place in store.places
    )
    there = (
        ""
        if about["shards_there"] == about["shards"]
        else f", {about['shards_there']} of {about['shards']} shards there"
    )
    text = (
        f"{len(sites)} site{'s' * (len(sites) != 1)} of {about['model']}, {about['examples']:,} examples,"
        f" {about['tokens']:,} tokens{there}"
    )
    return Holding(
        "store", key, folder.name, text, "disk", about["dtype"], on_disk, sites, store.n_examples, "", lambda: store
    )


# ---- opening ----


def open_site(holding: Holding, key: Key, example: int = 0) -> xr.DataArray:
    """The values of one site, in float32 on the CPU.

    Args:
        example: which row; a captured site of one value a row (reduced over positions) is given whole.

    Returns:
        Named axes; coords `token` along pos where the store knows the words.

    Raises:
        UnknownSite, BadData: on a site or example that is not held. BrokenStore: if a shard is missing.
    """
    site, thing = holding.site(key), _there(holding)
    if not 0 <= example < holding.n_examples:
        raise BadData(f"{holding.name} has examples 0 to {holding.n_examples - 1}; asked for {example}")
    coords: dict[str, Any] = {}
    if isinstance(thing, Store):
        values, dims = thing.read(*key, examples=[example]), ("pos", *site.dims[1:])
        labels = thing.tokens(examples=[example])
        coords = {"pos": labels["pos"].to_numpy(), "token": ("pos", labels["text"].to_numpy(object))}
    elif len(site.shape) > 2:
        values, dims = thing[key][example], site.dims[1:]
    else:
        values, dims = thing[key][: holding.n_examples], site.dims
    unit = "share of attention" if key[0] == "pattern" else "activation units"
    return xr.DataArray(
        values.detach().float().cpu().numpy(),
        coords,
        dims,
        site_name(key),
        {"unit": unit, "long_name": f"{site_name(key)} of {holding.name}"},
    )


def _there(holding: Holding) -> Any:
    thing = holding.find()
    if (
        thing is None
        or (isinstance(thing, Capture) and not thing.tensors)
        or (isinstance(thing, Model) and thing.bridge is None)
    ):
        raise WorkbenchError(f"{holding.name} is not held any more; look again")
    return thing


# ---- letting go ----


def let_go(holding: Holding, *, from_disk: bool = False) -> str:
    """Unload a model, drop a capture's tensors, or delete a store's files.

    Args:
        from_disk: must be True for a store, which cannot be got back without running its model again.

    Returns:
        A sentence that says what was given back, and what of it something else still holds.
    """
    if holding.problem:
        raise WorkbenchError(
            f"{holding.name} cannot be read as a store ({holding.problem}), so nothing in it is deleted; look at the"
            " folder yourself"
        )
    thing = _there(holding)
    size = size_text(holding.n_bytes)
    if isinstance(thing, Model):
        parts = [weakref.ref(p) for p in thing.live.original_model.parameters()]
        thing.unload()
        return f"unloaded {holding.name}: {size} on {holding.where}{_still(parts, 'its weights')}"
    if isinstance(thing, Capture):
        parts = [weakref.ref(t) for t in thing.tensors.values()]
        thing.tensors.clear()
        return f"dropped {holding.name}: {size} on {holding.where}{_still(parts, 'its tensors')}"
    if not from_disk:
        raise WorkbenchError(
            f"{holding.name} is a store of {size} on disk; say that it may be deleted from there (making it again takes"
            " its model)"
        )
    return f"deleted {holding.name}: {size} on disk{_remove_store(thing.folder)}"


def drop_site(holding: Holding, key: Key) -> str:
    """Drop one site of a capture and keep the others; returns a sentence like `let_go`."""
    site, thing = holding.site(key), _there(holding)
    if not isinstance(thing, Capture):
        raise WorkbenchError(f"{holding.name} is a {holding.kind}; single sites can be dropped from a capture only")
    part = [weakref.ref(thing.tensors.pop(key))]
    return f"dropped {site_name(key)} of {holding.name}: {size_text(site.n_bytes)} on {site.device}{_still(part, 'it')}"


def _still(parts: Sequence[weakref.ref], what: str) -> str:
    """Who else holds on, in words; memory is given back only when nobody does."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    alive = sum(part() is not None for part in parts)
    return (
        f"; {what if len(parts) == 1 else f'{alive} of {what}'} stayed, because something else refers to"
        f" {'it' if alive == 1 else 'them'}"
        if alive
        else ""
    )


def _remove_store(folder: Path) -> str:
    """Delete what a store is made of and nothing else that lies in its folder."""
    for pattern in ("shards/*.safetensors", "shards/*.partial", "parts/*.parquet", "store.json", ".lock"):
        for path in folder.glob(pattern):
            path.unlink()
    for place in (folder / "shards", folder / "parts", folder):
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()
    return "; other files in its folder were left" if folder.exists() else ""
