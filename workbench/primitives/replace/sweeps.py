"""Exact sweeps: replace one site at a time, in every layer x position (x head, x neuron), and measure what it does.

Sources of the replacement: another run (denoising: a clean run into a corrupted one; noising: the reverse), zero, a
mean over a reference set, another example. Cells with neighbouring positions, of all layers, go through one batch that
each row joins at its own layer (models/resumed.py); logits are computed only where the metric reads them. Two random
cells, in two layers, are also run the plain way, from the first token of the first block with a hook, and the
difference is kept; where an architecture does not allow the short way, or the two disagree, every cell is run the plain
way and a warning says so.
Cost: `plan` (primitives/replace/sweep_plan.py) tells before anything runs. Source of the method: Zhang & Nanda (arXiv
2309.16042).
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from workbench.core.errors import BadData, NoRoom, UnsupportedModel
from workbench.core.hooks import SITES
from workbench.core.progress import SILENT, Cancelled, Progress
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.models.inputs import Batch, Inputs, by_length
from workbench.models.model import Hook, Model
from workbench.models.resumed import BaseRun
from workbench.primitives.replace.sweep_plan import Axis, Cell, Group, Job, plan_job, settle_all
from workbench.primitives.replace.sweep_sources import FromRun, Mean, Resample, Source, Zero, source_of, source_values
from workbench.primitives.score.metrics import Metric

__all__ = ["FromRun", "Mean", "Resample", "Source", "Zero", "denoise", "noise", "sweep"]

TOLERANCE = {
    torch.float32: 1e-3,
    torch.float64: 1e-6,
}  # largest |short - plain| of the checked cells; half precision: 5e-2


# ---- the sweep ----


def sweep(
    model: Model,
    base: Inputs,
    source: Source,
    metric: Metric,
    *,
    site: str,
    axes: Sequence[Axis] = ("pos",),
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    units: Sequence[int] | None = None,
    cells: Sequence[Cell] | None = None,
    budget_bytes: float | None = None,
    n_check: int = 2,
    seed: int = 0,
    progress: Progress = SILENT,
    resume: Result | None = None,
) -> Result:
    """The metric of every run in which one cell of `site` was replaced.

    Args:
        model: a causal language model (others run the plain way).
        base: tokens of the run that is patched: [example, pos], or rows of any lengths, which are swept a length at a
            time.
        source: what is put in: FromRun(tokens), Zero(), Mean(tokens), Resample(seed).
        metric: made for these examples (primitives.score.metrics).
        site: a per-layer site of core.hooks.SITES.
        axes: ("pos",) every position, all units of it at once; ("unit",) every head or neuron, at all positions at
            once; ("pos", "unit") both. Layers are always an axis.
        layers, positions, units: which; all if not given. Negative positions count from the end of each example: with
            rows of unequal length the axis then lines them up at their ends, and at their beginnings otherwise.
        cells: a list of places instead of every combination: (layer, pos), (layer, unit) or (layer, pos, unit), as
            `axes` says.
        budget_bytes: most memory for rows in flight; half of what is free if not given.
        n_check: how many random cells (of each length) are also run the plain way.
        seed: draws those cells.
        progress: per forward; a cancelled sweep returns what it has, marked partial, nan elsewhere.
        resume: a partial Result of the same call, whose finished cells are not run again.

    Returns:
        Result whose data has `value` [layer, (pos), (head | kv_head | neuron), example] in the metric's unit, nan past
        the end of a shorter example - or [cell, example] with the coordinates of each cell, if a list was given -
        `base_value` [example], `source_value` [example] for FromRun, and attrs `check_max_abs_diff`, `engine`.

    Raises:
        UnknownSite, BadData, NoRoom, UnsupportedModel: before anything is swept.
    """
    started = time.monotonic()
    parts = by_length(model, base)
    sources = [source_of(model, source, part, base) for part in parts]
    cells = None if cells is None else [[int(n) for n in cell] for cell in cells]
    jobs = settle_all(model, parts, site, axes, layers, positions, units, cells)
    settings = {
        "site": site,
        "axes": list(axes),
        "metric": metric.name,
        "source": type(source).__name__,
        "layers": list(jobs[0].layers),
        "positions": _asked(jobs, positions),
        "seed": seed,
    }
    if cells is not None:
        settings["cells"] = cells
    digest = _digest([part.tokens for part in parts])
    n_examples = sum(len(part.tokens) for part in parts)
    longest = {"n_examples": n_examples, "n_pos": jobs[-1].n_pos, "base": digest}
    provenance = Provenance.start("sweep", settings, seed, model=model.provenance(), data=longest)
    taken = None if resume is None else _values_of(resume, provenance)
    warnings: list[str] = []
    found: list[xr.Dataset] = []
    partial = False
    total = sum(job.n_examples * job.n_pos**2 for job in jobs)
    before = 0
    for part, given, job in zip(parts, sources, jobs, strict=True):
        share = _Share(progress, before, job.n_examples * job.n_pos**2, total) if len(parts) > 1 else progress
        data, partial = _one_length(
            model, part, given, metric.of(part.index.numpy()), job, taken, budget_bytes, n_check, seed, share, warnings
        )
        from_end = len(parts) > 1 and positions is not None and "pos" in job.axes and min(positions) < 0
        found.append(data.assign_coords(pos=data.pos - job.n_pos) if from_end else data)
        before += job.n_examples * job.n_pos**2
        if partial:
            break
    data = found[0] if len(parts) == 1 else _joined(found, n_examples)
    if cells is not None:
        names = ("layer", *(jobs[0].unit_axis if axis == "unit" else axis for axis in ("pos", "unit") if axis in axes))
        labels: dict[str, Any] = {"cell": [".".join(map(str, cell)) for cell in cells]} | {
            name: ("cell", [cell[i] for cell in cells]) for i, name in enumerate(names)
        }
        data = data.assign_coords(labels)
    moved = np.abs(data["value"].values - data["base_value"].values)
    rounding = 1e-6 * (
        1 + float(np.nanmax(np.abs(data["base_value"].values)))
    )  # the two ways of one forward differ by that much
    if not partial and float(np.nanmax(moved)) <= rounding:
        warnings.append(
            f"replacing {site} moved the metric in no cell: source and base agree there, or nothing downstream reads it"
        )
    return Result(provenance.finish(started), data, partial=partial, warnings=tuple(dict.fromkeys(warnings)))


def _one_length(
    model: Model,
    part: Batch,
    source: Source,
    metric: Metric,
    job: Job,
    taken: xr.DataArray | None,
    budget_bytes: float | None,
    n_check: int,
    seed: int,
    progress: Progress,
    warnings: list[str],
) -> tuple[xr.Dataset, bool]:
    """The sweep of examples of one length, and whether it was cancelled before its end."""
    base = part.tokens.to(model.device)
    values, source_logits = source_values(model, base, source, job.site, job.layers)
    run, base_logits = _base_run(model, base, warnings)
    data = _empty(model, job, metric, base, part.index.numpy())
    data["base_value"].values[:] = metric(base_logits, torch.arange(len(base), device=base.device)).cpu().numpy()
    if isinstance(source, FromRun):
        assert source_logits is not None
        data["source_value"] = ("example", metric(source_logits).cpu().numpy(), data["base_value"].attrs)
    cells = _Cells(model, job, metric, values, base, run, data["base_value"].values)
    cells.choose_engine(n_check, seed, data, warnings)
    if taken is not None:
        there = taken
        if "pos" in there.dims:  # numbered from the end, or from the beginning and past this length's end
            there = there.isel(pos=(there.pos.values >= -job.n_pos) & (there.pos.values < job.n_pos))
            there = there.assign_coords(pos=there.pos % job.n_pos)
        data["value"].values[:] = there.reindex_like(data["value"]).transpose(*data["value"].dims).values
    groups = plan_job(model, job, metric, cells.run, budget_bytes).groups
    flat = data["value"].values.reshape(-1)  # a view: the order of `Job.rows` is that of the values
    try:
        for done, group in enumerate(groups):
            progress.update(done, len(groups), f"{job.site}, positions from {group.start}")
            if np.isnan(flat[group.index]).any():
                flat[group.index] = cells.measure(group)
        progress.update(len(groups), len(groups), "done")
    except Cancelled:
        return data, bool(np.isnan(data["value"].values).any())  # cancelled after the last forward, nothing is missing
    return data, False


def denoise(model: Model, clean: Inputs, corrupted: Inputs, metric: Metric, **options: Any) -> Result:
    """Patch the clean run into the corrupted one: which places suffice to restore the behaviour. Options as `sweep`."""
    return sweep(model, corrupted, FromRun(clean), metric, **options)


def noise(model: Model, clean: Inputs, corrupted: Inputs, metric: Metric, **options: Any) -> Result:
    """Patch the corrupted run into the clean one: which places the behaviour needs. Options as `sweep`."""
    return sweep(model, clean, FromRun(corrupted), metric, **options)


def _base_run(model: Model, base: torch.Tensor, warnings: list[str]) -> tuple[BaseRun | None, torch.Tensor]:
    try:
        run = BaseRun(model, base)
        return run, run.logits
    except UnsupportedModel as found:
        warnings.append(f"every cell was run the plain way, from the start of a whole forward: {found}")
        return None, model.forward(base)


def _empty(model: Model, job: Job, metric: Metric, base: torch.Tensor, index: np.ndarray) -> xr.Dataset:
    sizes: dict[str, Any] = {"cell": list(range(len(job.listed)))} if job.listed else {"layer": list(job.layers)}
    if "pos" in job.axes and not job.listed:
        sizes["pos"] = list(job.positions)
    if "unit" in job.axes and not job.listed:
        sizes[job.unit_axis] = list(job.units)
    sizes["example"] = index.tolist()
    coords: dict[str, Any] = dict(sizes)
    if "pos" in sizes and job.n_examples == 1:
        coords["token"] = ("pos", [model.to_strings(base[0].tolist())[p] for p in job.positions])
    about = {"unit": metric.unit, "long_name": f"{metric.name} with {job.site} replaced"}
    shape = [len(v) for v in sizes.values()]
    variables = {
        "value": (tuple(sizes), np.full(shape, np.nan, np.float32), about),
        "base_value": (
            ("example",),
            np.full(job.n_examples, np.nan, np.float32),
            {"unit": metric.unit, "long_name": f"{metric.name} of the base run"},
        ),
    }
    return xr.Dataset(variables, coords=coords, attrs={"site": job.site, "metric": metric.name})


def _digest(tokens: Sequence[torch.Tensor]) -> str:
    import hashlib

    return hashlib.sha256(b"".join(t.cpu().numpy().tobytes() for t in tokens)).hexdigest()[:16]


# ---- prompts of several lengths ----


def _asked(jobs: Sequence[Job], positions: Sequence[int] | None) -> list[int]:
    return (
        list(jobs[0].positions)
        if len(jobs) == 1
        else list(range(jobs[-1].n_pos))
        if positions is None
        else list(positions)
    )


def _joined(parts: Sequence[xr.Dataset], n_examples: int) -> xr.Dataset:
    """Sweeps of several lengths as one, in the order of the examples; nan past an end and where nothing was run."""
    parts = [
        part.drop_vars("token", errors="ignore") for part in parts
    ]  # words name a position only where there is one prompt
    data = (
        xr.concat(parts, dim="example", join="outer", coords="minimal", combine_attrs="drop_conflicts")
        .reindex(example=range(n_examples))
        .transpose(*parts[0]["value"].dims)
    )
    data.attrs["check_max_abs_diff"] = float(np.max([part.attrs["check_max_abs_diff"] for part in parts]))
    data.attrs["engine"] = " and ".join(sorted({part.attrs["engine"] for part in parts}))
    return data


class _Share(Progress):
    """The progress of one length as part of the whole, weighed by tokens x positions."""

    def __init__(self, whole: Progress, before: int, size: int, total: int):
        super().__init__()
        self._whole, self._before, self._size, self._of = whole, before, size, total

    def update(self, done: int, total: int, text: str = "") -> None:
        self._whole.update(self._before + round(self._size * done / max(1, total)), self._of, text)


def _values_of(resume: Result, provenance: Provenance) -> xr.DataArray:
    before = resume.provenance
    same = (
        before.spec == provenance.spec
        and before.model.get("weights") == provenance.model.get("weights")
        and before.data == provenance.data
    )
    if not same:
        raise BadData(
            "the partial result is of another sweep, other weights or other tokens, so its cells cannot be reused"
        )
    value = resume.data["value"]
    return value.assign_coords(cell=range(value.sizes["cell"])) if "cell" in value.dims else value


class _Cells:
    """Measures groups of cells, the short way where it can."""

    def __init__(
        self,
        model: Model,
        job: Job,
        metric: Metric,
        values: dict[int, torch.Tensor],
        base: torch.Tensor,
        run: BaseRun | None,
        base_value: np.ndarray,
    ):
        self.model, self.job, self.metric, self.values, self.base, self.run = model, job, metric, values, base, run
        self.base_value = base_value
        self.read = None if metric.positions is None else tuple(p % job.n_pos for p in metric.positions)

    def choose_engine(self, n_check: int, seed: int, data: xr.Dataset, warnings: list[str]) -> None:
        """Run some random cells both ways, the short way all in one batch; keep it only if they agree."""
        data.attrs["check_max_abs_diff"] = float("nan")
        if self.run is not None and n_check:
            group = self._random_cells(n_check, seed)
            plain = self._plain(group)
            try:
                worst = float(np.abs(self._short(group) - plain).max())
            except (RuntimeError, ValueError, KeyError, AttributeError, TypeError, IndexError) as found:
                worst = float("inf")
                warnings.append(
                    f"the short way failed on {self.model.name} ({type(found).__name__}:"
                    f" {(str(found) or 'without a word').splitlines()[0][:120]})"
                )
            data.attrs["check_max_abs_diff"] = worst
            if not worst <= TOLERANCE.get(self.model.dtype, 5e-2):
                self.run = None
                warnings.append(
                    f"every cell was run the plain way: the short way differed by {worst:.2g} on {n_check} random cells"
                )
        data.attrs["engine"] = "plain" if self.run is None else "resumed"

    def _random_cells(self, n: int, seed: int) -> Group:
        """Cells of as many layers as there are, so that rows join the batch at several blocks as in the sweep."""
        rng = np.random.default_rng([seed, 3])
        rows = self.job.rows
        layers = np.sort(np.resize(rng.permutation(np.unique(rows[:, 0])), n))
        index = np.array([rng.choice(np.flatnonzero(rows[:, 0] == layer)) for layer in layers])
        start = 0 if "pos" not in self.job.axes else int(rows[index, 1].min())
        return Group(rows[index, 0], start, rows[index, 1:], index)

    def measure(self, group: Group) -> np.ndarray:
        """[row] metric values. Out of memory halves the rows, down to one."""
        try:
            return self._short(group) if self.run is not None else self._plain(group)
        except (torch.OutOfMemoryError, NoRoom) as found:
            if group.n_rows == 1:
                raise NoRoom(
                    f"{self.model.name} ran out of memory on a single row of {self.job.n_pos} tokens; use shorter"
                    " prompts or a smaller dtype"
                ) from found
        half = group.n_rows // 2
        return np.concatenate([self.measure(group.part(rows)) for rows in (slice(half), slice(half, None))])

    def _short(self, group: Group) -> np.ndarray:
        """From the group's layer and position on."""
        assert self.run is not None
        example = torch.from_numpy(group.cells[:, 2].copy()).to(self.base.device)
        read = tuple(range(self.job.n_pos)) if self.read is None else self.read
        late = tuple(p for p in read if p >= group.start)
        if not late:  # the metric reads only before the patch, where a causal model cannot have changed
            return self.base_value[group.cells[:, 2]]
        last, site = self.model.n_layers - 1, self.job.site
        entry, hooked = group.layer, np.unique(group.layer)
        if site in (
            "resid_pre",
            "resid_post",
        ):  # the stream entering a block is what the row enters with; no hook is needed
            entry, hooked = (
                (group.layer, [])
                if site == "resid_pre"
                else (np.minimum(group.layer + 1, last), [last] if last in group.layer else [])
            )
        patched_entry = site == "resid_pre", site == "resid_post"

        def residual(block: int, rows: slice) -> torch.Tensor:
            stream = self.run.resid_pre[block][example[rows], group.start :]  # type: ignore[union-attr]
            layer = block - patched_entry[1]
            here = slice(*np.searchsorted(group.layer, [layer, layer + 1]))
            if not any(patched_entry) or here.start == here.stop:
                return stream
            return torch.cat(
                [self._patched(stream[: here.stop - here.start], group, here), stream[here.stop - here.start :]]
            )

        def hook_for(layer: int) -> Hook:
            here = slice(*np.searchsorted(group.layer, [layer, layer + 1]))
            return self.model.hook_name(site, layer), lambda tensor, hook: self._patch_rows(tensor, group, here)

        hook_fns = [hook_for(int(layer)) for layer in hooked]
        logits = self.run.run(entry.tolist(), group.start, example, residual=residual, hook_fns=hook_fns, read=late)
        if len(late) < len(read):
            early = [p for p in read if p < group.start]
            logits = torch.cat([self.run.logits[example][:, early], logits], 1)[
                :, np.argsort(np.argsort(read)).tolist()
            ]
        return self.metric.at_read(logits, example).cpu().numpy()

    def _plain(self, group: Group) -> np.ndarray:
        """Whole forwards with a hook, a layer at a time."""
        found = np.empty(group.n_rows, np.float32)
        for layer in np.unique(group.layer):
            here = slice(*np.searchsorted(group.layer, [layer, layer + 1]))
            part = group.part(here, start=0)
            example = torch.from_numpy(part.cells[:, 2].copy()).to(self.base.device)
            fn = (
                self.model.hook_name(self.job.site, int(layer)),
                lambda tensor, hook, part=part: self._patched(tensor, part, slice(0, part.n_rows)),
            )
            found[here] = self.metric(self.model.forward(self.base[example], hook_fns=[fn]), example).cpu().numpy()
        return found

    def _patch_rows(self, tensor: torch.Tensor, group: Group, rows: slice) -> torch.Tensor:
        """The site's tensor of all rows in flight, with the cells of `rows` replaced."""
        new = tensor.clone()
        new[rows] = self._patched(tensor[rows], group, rows)
        return new

    def _patched(self, tensor: torch.Tensor, group: Group, rows: slice) -> torch.Tensor:
        """A copy of the tensor of `rows`, all of one layer (positions from group.start on), with each row's cell
        replaced.
        """
        new, source, cells = tensor.clone(), self.values[int(group.layer[rows.start])], group.cells[rows]
        row = torch.arange(len(cells), device=tensor.device)
        pos, unit, example = (torch.from_numpy(cells[:, i].copy()).to(tensor.device) for i in range(3))
        heads_first = "query_pos" in SITES[self.job.site].dims
        by_pos, by_unit = "pos" in self.job.axes, "unit" in self.job.axes
        here = pos - group.start
        if heads_first:
            if by_pos and by_unit:
                new[row, unit, here] = source[example, unit, pos]
            elif by_unit:
                new[row, unit] = source[example, unit]
            else:
                new[row, :, here] = source[example, :, pos]
        elif by_pos and by_unit:
            new[row, here, unit] = source[example, pos, unit]
        elif by_unit:
            new[row, :, unit] = source[example, :, unit]
        else:
            new[row, here] = source[example, pos]
        return new
