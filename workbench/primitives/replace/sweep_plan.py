"""Planning a sweep: which cells share a forward, what that costs, and how long it will take on this machine.

Cells with neighbouring positions, of all layers, go into one batch that starts at the first of them: few wide batches
waste the suffix, many narrow ones the fixed cost of a forward. The cuts are found from the costs measured here.
Cost: with a probe, one pass over the base and four short timed passes.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from workbench.core.errors import BadData, NoRoom, UnknownSite, UnsupportedModel, WorkbenchError
from workbench.core.hooks import SITES
from workbench.models import memory
from workbench.models.inputs import Batch, Inputs, by_length
from workbench.models.model import Hook, Model
from workbench.models.resumed import BaseRun
from workbench.primitives.replace.ablation import UNITS
from workbench.primitives.score.metrics import Metric

Axis = Literal["pos", "unit"]
Cell = Sequence[int]  # (layer), then its position and its unit where these are axes
UNIT_AXIS = {"head": "head", "kv_head": "kv_head", "d_mlp": "neuron"}


@dataclass(frozen=True)
class Group:
    """Cells that share a forward, positions from `start` on.

    layer: [row] increasing. cells: [row, 3] of pos (-1: all), unit (-1: all), example. index: [row] their places in
    `Job.rows`.
    """

    layer: np.ndarray
    start: int
    cells: np.ndarray
    index: np.ndarray

    @property
    def n_rows(self) -> int:
        return len(self.cells)

    def part(self, rows: slice, start: int | None = None) -> "Group":
        """Some of its rows, from `start` on if given."""
        return Group(self.layer[rows], self.start if start is None else start, self.cells[rows], self.index[rows])


@dataclass(frozen=True)
class Plan:
    """What a sweep will cost.

    token_blocks: tokens x blocks that are computed; plain_token_blocks: the same one whole forward per cell would take.
    seconds: predicted from a timed pass of two and of eight rows; nan without a probe. peak_bytes: predicted.
    """

    groups: tuple[Group, ...]
    n_cells: int
    token_blocks: int
    plain_token_blocks: int
    peak_bytes: int
    seconds: float

    @property
    def n_forwards(self) -> int:
        return len(self.groups)

    def __str__(self) -> str:
        saved = self.plain_token_blocks / max(1, self.token_blocks)
        return (
            f"{self.n_cells} cells in {self.n_forwards} forwards of {sum(g.n_rows for g in self.groups)} rows,"
            f" {saved:.1f} x less work than one forward a cell; about {self.seconds:.1f} s and"
            f" {self.peak_bytes / 1e6:.0f} MB"
        )


@dataclass(frozen=True)
class Job:
    """A sweep's question, settled: what is patched where.

    listed: the cells (layer, pos or -1, unit or -1) of a list; empty where every combination of the axes is asked for.
    """

    site: str
    axes: tuple[Axis, ...]
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    units: tuple[int, ...]
    n_examples: int
    n_pos: int
    listed: tuple[tuple[int, int, int], ...] = ()

    @property
    def rows(self) -> np.ndarray:
        """[row, 4] of (layer, pos or -1, unit or -1, example) in the order of the values, examples fastest."""
        if self.listed:
            cells = np.array(self.listed)
            return np.column_stack(
                [np.repeat(cells, self.n_examples, 0), np.tile(np.arange(self.n_examples), len(cells))]
            )
        pos = self.positions if "pos" in self.axes else (-1,)
        unit = self.units if "unit" in self.axes else (-1,)
        grid = np.meshgrid(self.layers, pos, unit, np.arange(self.n_examples), indexing="ij")
        return np.stack([g.ravel() for g in grid], 1)

    @property
    def unit_axis(self) -> str:
        return UNIT_AXIS[UNITS[self.site]]


def settle(
    model: Model,
    base: torch.Tensor,
    site: str,
    axes: Sequence[Axis],
    layers: Any,
    positions: Any,
    units: Any,
    cells: Sequence[Cell] | None = None,
) -> Job:
    """The question of a sweep with its defaults filled in.

    Raises:
        UnknownSite, BadData, UnsupportedModel, WorkbenchError: on what cannot be swept, with what can.
    """
    if site not in SITES or not SITES[site].per_layer:
        raise UnknownSite.among("site to sweep", site, [s for s, entry in SITES.items() if entry.per_layer])
    if base.ndim != 2 or base.numel() == 0:
        raise BadData(f"base tokens must be [example, pos], got shape {tuple(base.shape)}")
    if set(axes) - {"pos", "unit"} or not axes:
        raise WorkbenchError(f"axes must be 'pos', 'unit' or both, got {tuple(axes)}")
    if "unit" in axes and site not in UNITS:
        raise WorkbenchError(f"{site} has no heads or neurons to sweep; sites that have: {', '.join(UNITS)}")
    if site in ("pattern", "attn_scores") and not model.pattern_is_live:
        raise UnsupportedModel(
            f"{model.name} shows its pattern after the fact, so patching it would change nothing; sweep z instead"
        )
    n_pos = base.shape[1]
    chosen = tuple(range(model.n_layers) if layers is None else layers)
    for layer in chosen:
        model.hook_name(site, layer)
    where = tuple(
        sorted(
            {
                p % n_pos if -n_pos <= p < n_pos else _outside(p, n_pos)
                for p in (range(n_pos) if positions is None else positions)
            }
        )
    )
    n_units = _n_units(model, base, site) if "unit" in axes else 0
    which = tuple(range(n_units) if units is None else units)
    if "unit" in axes and any(not 0 <= u < n_units for u in which):
        raise WorkbenchError(f"{site} of {model.name} has units 0 to {n_units - 1}, got {which[:8]}")
    listed = (
        ()
        if cells is None
        else tuple(
            (cell[0], cell[1] % n_pos if "pos" in axes else -1, cell[-1] if "unit" in axes else -1) for cell in cells
        )
    )
    return Job(site, tuple(axes), chosen, where, which, len(base), n_pos, listed)


def settle_listed(
    model: Model, parts: Sequence[Batch], site: str, axes: Sequence[Axis], cells: Sequence[Cell]
) -> list[Job]:
    """A list of cells as a Job for each length; all of them must be in the shortest prompt.

    Raises:
        BadData: on cells of another form than the axes say, or asked for twice. As `settle` on places that are not
            there.
    """
    form = ("layer", *(axis for axis in ("pos", "unit") if axis in axes))
    odd = [cell for cell in cells if len(cell) != len(form)]
    if odd or not len(cells):
        raise BadData(f"with axes {tuple(axes)} a cell is ({', '.join(form)}), got {odd[0] if odd else 'no cells'}")
    named = [tuple(int(n) for n in cell) for cell in cells]
    if len(set(named)) < len(named):
        raise BadData(f"cell {next(c for i, c in enumerate(named) if c in named[:i])} is asked for twice")
    layers, positions, units = (
        sorted({c[0] for c in named}),
        sorted({c[1] for c in named}) if "pos" in axes else None,
        sorted({c[-1] for c in named}) if "unit" in axes else None,
    )
    return [settle(model, part.tokens, site, axes, layers, positions, units, named) for part in parts]


def settle_all(
    model: Model,
    parts: Sequence[Batch],
    site: str,
    axes: Sequence[Axis],
    layers: Any,
    positions: Sequence[int] | None,
    units: Any,
    cells: Sequence[Cell] | None = None,
) -> list[Job]:
    """`settle` for prompts in sets of one length.

    Raises:
        BadData: if lengths differ and positions count partly from the beginning and partly from the end, or a length
            has none of them; if a list of cells comes with layers, positions or units, or is not one.
    """
    if cells is not None:
        if any(asked is not None for asked in (layers, positions, units)):
            raise BadData("cells already say which layers, positions and units: give either the list or those")
        return settle_listed(model, parts, site, axes, cells)
    if positions is None or len(parts) == 1:
        return [settle(model, part.tokens, site, axes, layers, positions, units) for part in parts]
    if min(positions) < 0 <= max(positions):
        raise BadData(
            f"prompts of {len(parts)} lengths line up at their beginnings or at their ends, not both: give positions of"
            f" one sign, got {list(positions)[:8]}"
        )
    jobs = []
    for part in parts:
        n_pos = part.tokens.shape[1]
        here = [p for p in positions if -n_pos <= p < n_pos]
        if not here:
            raise BadData(
                f"prompts of {n_pos} tokens have none of the positions asked for ({list(positions)[:8]}); leave"
                " them out"
            )
        jobs.append(settle(model, part.tokens, site, axes, layers, here, units))
    return jobs


def _n_units(model: Model, base: torch.Tensor, site: str) -> int:
    """Heads or neurons of a site, read off the tensor itself: some adapters record another MLP width than there is."""
    value = read_site(model, base[:1, :1], site, (0,))[0][0]
    return value.shape[1 + SITES[site].dims.index(UNITS[site])]


def _outside(pos: int, n_pos: int) -> int:
    raise WorkbenchError(f"position {pos} is outside prompts of {n_pos} tokens")


@dataclass(frozen=True)
class Cost:
    """What a forward costs on this machine: token_block in seconds, and in token-blocks a block and a whole forward
    besides.

    per_block: reading a block's weights, its launches. per_forward: embedding, unembedding, set-up.
    """

    token_block: float
    per_block: float
    per_forward: float

    def fixed(self, n_blocks: int) -> float:
        """The part of a forward through `n_blocks` that does not depend on its tokens, in token-blocks."""
        return self.per_block * n_blocks + self.per_forward


def group_cells(job: Job, n_layers: int, cost: Cost, max_rows: int) -> tuple[Group, ...]:
    """Batches of neighbouring positions, all layers together. Few wide groups waste the suffix and many narrow ones the
    fixed cost of a forward; the best cuts are found by dynamic programming, over steps of a hundredth of the positions
    where there are many. A batch of more than `max_rows` rows is split between layers."""
    rows = job.rows
    if "pos" not in job.axes:
        pieces = [(0, np.arange(len(rows)))]
    else:
        step = 1 + len(job.positions) // 100
        edges = np.array([*job.positions[::step], job.n_pos])
        piece_of = np.searchsorted(edges, rows[:, 1], side="right") - 1
        work = np.bincount(piece_of, weights=n_layers - rows[:, 0], minlength=len(edges) - 1)
        cuts = best_cuts((job.n_pos - edges[:-1]).tolist(), work.tolist(), cost.fixed(n_layers - min(job.layers)))
        order, first = np.argsort(piece_of, kind="stable"), np.searchsorted(np.sort(piece_of), np.arange(len(edges)))
        pieces = [(int(edges[a]), order[first[a] : first[b]]) for a, b in cuts]
    groups = []
    for start, here in pieces:
        here = here[np.argsort(rows[here, 0], kind="stable")]
        groups += [
            Group(rows[i, 0], start, rows[i, 1:], i)
            for i in (here[n : n + max_rows] for n in range(0, len(here), max_rows))
        ]
    return tuple(groups)


def best_cuts(suffix: Sequence[int], work: Sequence[float], fixed: float) -> list[tuple[int, int]]:
    """Contiguous pieces [a, b) of positions minimising sum of work[a:b] x suffix[a] + fixed. work: block-rows of
    each position.
    """
    n, total = len(suffix), np.concatenate([[0.0], np.cumsum(work)])
    best, back = [0.0] + [np.inf] * n, [0] * (n + 1)
    for b in range(1, n + 1):
        for a in range(b):
            cost = best[a] + (total[b] - total[a]) * suffix[a] + fixed
            if cost < best[b]:
                best[b], back[b] = cost, a
    cuts, b = [], n
    while b:
        cuts.append((back[b], b))
        b = back[b]
    return cuts[::-1]


def row_bytes(model: Model, n_pos: int, n_read: int) -> int:
    """Memory of one row in flight: its past, the widest intermediate of a block, its logits."""
    cfg, item = model.live.cfg, model.dtype.itemsize
    past = 2 * model.n_layers * n_pos * model.n_kv_heads * model.d_head
    block = (
        n_pos * (6 * model.d_model + 3 * (getattr(cfg, "d_mlp", None) or 4 * model.d_model))
        + 3 * model.n_heads * n_pos * n_pos
    )
    return (past + block + 3 * n_read * model.d_vocab) * item


def plan(
    model: Model,
    base: Inputs,
    metric: Metric,
    *,
    site: str,
    axes: Sequence[Axis] = ("pos",),
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    units: Sequence[int] | None = None,
    cells: Sequence[Cell] | None = None,
    budget_bytes: float | None = None,
    probe: bool = True,
) -> Plan:
    """What `sweep` with the same arguments will cost: forwards, rows, work, memory, seconds.

    With `probe`, one pass over `base` and four short timed passes of two and eight rows are run for it, for each
    length; where the architecture does not allow a forward to start in its middle, two whole ones of eight rows, and
    the plan is that of the plain way.
    """
    parts = by_length(model, base)
    jobs = settle_all(model, parts, site, axes, layers, positions, units, cells)
    plans = [
        _plan_part(model, part.tokens, job, metric, budget_bytes, probe) for part, job in zip(parts, jobs, strict=True)
    ]
    sums = {
        name: sum(getattr(p, name) for p in plans)
        for name in ("n_cells", "token_blocks", "plain_token_blocks", "seconds")
    }
    return Plan(tuple(g for p in plans for g in p.groups), peak_bytes=max(p.peak_bytes for p in plans), **sums)


def _plan_part(
    model: Model, tokens: torch.Tensor, job: Job, metric: Metric, budget_bytes: float | None, probe: bool
) -> Plan:
    """The plan of one length; of whole forwards, where nothing can be resumed."""
    if not probe:
        return plan_job(model, job, metric, None, budget_bytes)
    try:
        return plan_job(model, job, metric, BaseRun(model, tokens), budget_bytes)
    except UnsupportedModel:
        found = plan_job(model, job, metric, None, budget_bytes)
    rows, took = tokens[torch.arange(8) % job.n_examples], []
    for _ in range(2):
        started = time.perf_counter()
        model.forward(rows).cpu()  # waits for a GPU
        took.append(time.perf_counter() - started)
    seconds = found.n_cells * min(took) / len(rows)
    return replace(found, token_blocks=found.plain_token_blocks, seconds=seconds)


def plan_job(model: Model, job: Job, metric: Metric, run: BaseRun | None, budget_bytes: float | None) -> Plan:
    """`plan` of a settled job; `run` is what is timed (no seconds are predicted without it)."""
    n_read = job.n_pos if metric.positions is None else len(metric.positions)
    budget = 0.5 * memory.available_bytes(model.device) if budget_bytes is None else budget_bytes
    per_row = row_bytes(model, job.n_pos, n_read)
    if per_row > budget:
        raise NoRoom(
            f"one row of {job.n_pos} tokens needs {per_row / 1e6:.3g} MB, the budget is {budget / 1e6:.3g} MB; shorten"
            " the prompts or raise budget_bytes"
        )
    on_cpu = model.device == "cpu"
    max_rows = max(1, int(min(budget // per_row, (4096 if on_cpu else 65536) // job.n_pos + 1)))
    cost = (
        timed(run, job)
        if run is not None
        else Cost(float("nan"), 40.0 if on_cpu else 3000.0, 150.0 if on_cpu else 3000.0)
    )
    groups = group_cells(job, model.n_layers, cost, max_rows)
    work = sum(int((model.n_layers - g.layer).sum()) * (job.n_pos - g.start) for g in groups)
    n_cells = sum(g.n_rows for g in groups)
    seconds = cost.token_block * (work + sum(cost.fixed(model.n_layers - int(g.layer[0])) for g in groups))
    peak = max(g.n_rows for g in groups) * per_row
    return Plan(groups, n_cells, work, n_cells * model.n_layers * job.n_pos, int(peak), seconds)


def timed(run: BaseRun, job: Job) -> Cost:
    """Costs of a forward, from passes of two and of eight rows through the last quarter of the blocks and through the
    last block alone: seconds = per_forward + blocks x (per_block + rows x positions x token_block)."""
    n_layers, few = run.model.n_layers, 2 * job.n_pos
    deep = max(min(2, n_layers), n_layers // 4)

    def seconds(rows: int, n_blocks: int) -> float:
        took = []
        for _ in range(2):
            started = time.perf_counter()
            run.run(n_layers - n_blocks, 0, torch.arange(rows) % job.n_examples, read=(job.n_pos - 1,))
            if run.tokens.is_cuda:
                torch.cuda.synchronize()
            took.append(time.perf_counter() - started)
        return min(took)

    two, eight, shallow = seconds(2, deep), seconds(8, deep), seconds(2, 1)
    work = deep - 2 / 3  # in whole blocks: the last one's MLP runs where it is read only
    token_block = max((eight - two) / (work * 3 * few), 1e-9)
    per_block = max((two - shallow) / max(1, deep - 1) - few * token_block, 0.0)
    per_forward = max(two - work * (per_block + few * token_block), 0.0)
    return Cost(token_block, per_block / token_block, per_forward / token_block)


def read_site(
    model: Model, tokens: torch.Tensor, site: str, layers: Sequence[int]
) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
    """{layer: the site's tensor} and the logits of one run."""
    taken: dict[int, torch.Tensor] = {}

    def hook_for(layer: int) -> Hook:
        return model.hook_name(site, layer), lambda tensor, hook: taken.__setitem__(layer, tensor.detach())

    logits = model.forward(tokens, hook_fns=[hook_for(layer) for layer in layers])
    found = dict(taken)
    taken.clear()  # the hooks' closures live until the garbage collector comes by
    return found, logits
