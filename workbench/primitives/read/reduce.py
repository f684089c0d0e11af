"""Reductions over a store, or over a model's activations on the way, without storing them.

    reduce_store(store, "mlp_post", 3, TopK(20))            # an xarray Dataset; here or on an executor's workers
    reduce_activations(model, rows, ["resid_post"], Moments())   # {(site, layer): Dataset}; nothing is written

Per shard the same sums are made and added in the order of the shards, so the answer is the same to the last bit whoever
made them and however many there were.
Cost: one pass over the bytes of one site and layer; or one forward per row.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from workbench.core.progress import SILENT, Progress
from workbench.models.inputs import Rows, rows_of
from workbench.models.model import Model
from workbench.primitives.read.capture import Key
from workbench.primitives.read.reductions import Reduction, load_reduction, project, save_reduction
from workbench.primitives.read.store.parts import cut
from workbench.primitives.read.store.reading import Store
from workbench.primitives.read.stream import check_rows, lengths_of, site_keys, stream, unit_dims
from workbench.scale.executors import Executor, Inline, run_all

CHUNK = 4096  # tokens an update; part of what makes the answer reproducible


def reduce_store(
    store: Store,
    site: str,
    layer: int | None,
    reduction: Reduction,
    *,
    executor: Executor | None = None,
    progress: Progress = SILENT,
) -> xr.Dataset:
    """One pass of a reduction over a stored site and layer.

    Args:
        reduction: what to measure; it is not changed. `Together` measures several things in one pass.
        executor: from workbench.scale; workers read the store and answer with small files in its folder.

    Returns:
        The reduction's result, over the axes of a unit. Where it names tokens (`number`), their example, pos and token
        id stand beside it; `store.locate(numbers)` gives their text and labels.

    Raises:
        BrokenStore: if a shard is missing. Cancelled: by `progress`; half a pass would be a number of half the tokens.
    """
    place = store.place(site, layer)
    total, n_shards = reduction.fresh(), len(store.shards)
    if executor is None or isinstance(executor, Inline):
        for index in range(n_shards):
            total.merge(_reduced(store, site, layer, index, reduction))
            progress.update(index + 1, n_shards, "shards")
        return _with_tokens(total.result(place.dims), store)
    with tempfile.TemporaryDirectory(prefix=".reduce-", dir=store.folder) as home:
        asked = str(save_reduction(total, Path(home).resolve() / "asked.safetensors"))
        tasks = [(str(store.folder.resolve()), site, layer, index, asked) for index in range(n_shards)]
        for answer in run_all(executor, reduce_shard, tasks, progress=progress, text="shards"):
            total.merge(load_reduction(Path(answer)))
    return _with_tokens(total.result(place.dims), store)


def reduce_shard(folder: str, site: str, layer: int | None, index: int, asked: str) -> str:
    """What a worker does: one shard's summary into a file beside `asked`, and where that is. Safe to run twice."""
    found = _reduced(Store(folder), site, layer, index, load_reduction(Path(asked)))
    return str(save_reduction(found, Path(asked).with_name(f"{index:06d}-{id(found):x}.safetensors")))


def _reduced(store: Store, site: str, layer: int | None, index: int, like: Reduction) -> Reduction:
    found = like.fresh()
    for batch in store.shard_batches(site, layer, index, CHUNK):
        found.update(batch.values, batch.number)
    return found


def _with_tokens(result: xr.Dataset, store: Store) -> xr.Dataset:
    for name in [str(v) for v in result.data_vars if str(v).endswith("number")]:
        numbers = result[name].values
        stem = name.removesuffix("number")
        for what in ("example", "pos", "token"):
            values = store.gather(what, numbers.reshape(-1)).numpy().reshape(numbers.shape)
            result[f"{stem}{what}"] = (result[name].dims, values, {"long_name": f"{what} of the token", "unit": what})
    return result


def reduce_activations(
    model: Model,
    rows: Rows,
    sites: Sequence[str],
    reduction: Reduction,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    batch_size: int = 32,
    progress: Progress = SILENT,
) -> dict[Key, xr.Dataset]:
    """One pass of a reduction over a model's activations, keeping none of them.

    Args:
        rows, sites, layers, positions, batch_size: as for `write_store`.
        reduction: measured of every site and layer apart; tokens are numbered as a store of the same rows would.

    Returns:
        {(site, layer): result}.

    Raises:
        BadData: before the first forward, on rows or positions that cannot be run. Cancelled: by `progress`.
    """
    rows, keys = rows_of(model, rows), site_keys(model, sites, layers)
    check_rows(model, rows, keys, positions)
    order = cut(lengths_of(rows), None if positions is None else len(positions), batch_size, 1).order
    found = {key: reduction.fresh() for key in keys}
    n_done, n_rows = 0, 0
    for piece in stream(model, [rows[i] for i in order], keys, positions=positions, batch_size=batch_size):
        numbers = torch.arange(n_done, n_done + len(piece.token))
        for key, values in piece.values.items():
            found[key].update(values.cpu(), numbers)
        n_done, n_rows = n_done + len(numbers), n_rows + len(piece.index)
        progress.update(n_rows, len(rows), "rows")
    return {key: one.result(unit_dims(model, key)) for key, one in found.items()}


def project_store(store: Store, site: str, layer: int | None, directions: torch.Tensor) -> xr.DataArray:
    """Every token's projection on directions: [token, direction], with the tokens' example and pos; 8 bytes a number in
    memory.

    Args:
        directions: [direction, unit...], not normalised here.
    """
    found = [
        (project(b.values, directions), b.example, b.pos)
        for i in range(len(store.shards))
        for b in store.shard_batches(site, layer, i, CHUNK)
    ]
    values, example, pos = (torch.cat(column).numpy() if found else np.empty(0) for column in zip(*found, strict=True))
    attrs = {"unit": "activation", "long_name": f"Projection of {store.place(site, layer).name}"}
    return xr.DataArray(
        values,
        dims=("token", "direction"),
        coords={"example": ("token", example), "pos": ("token", pos)},
        name="projection",
        attrs=attrs,
    )
