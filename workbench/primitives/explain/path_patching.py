"""Path patching: what the direct paths from a sender to a receiver are worth, exactly.

Source: Wang et al. 2022 (arXiv 2211.00593); Goldowsky-Dill et al. 2023 (arXiv 2304.05969).
Cost: `plan_path_patch` counts the forwards; there is none for freezing (see `path_patch`).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from workbench.core.errors import NotFired
from workbench.core.progress import SILENT, Cancelled, Progress
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.models.inputs import Inputs
from workbench.models.model import Hook, Model
from workbench.primitives.explain.residual_graph import Graph, Port, Receiver, Run, Sender, read_run, token_pair
from workbench.primitives.score.metrics import Metric


@dataclass(frozen=True)
class PathPlan:
    """cells: (sender, receiver set) pairs that have a path, as places in the lists given. n_forwards: of the whole
    call.
    """

    cells: tuple[tuple[int, int], ...]
    n_forwards: int


def plan_path_patch(
    graph: Graph, senders: Sequence[Sender | list[Sender]], receivers: Sequence[Receiver | list[Receiver]]
) -> PathPlan:
    """Which cells will be run, and how many forwards that takes: one a cell, plus clean, corrupted and the graph's
    check.
    """
    exists, writers, readers = graph.exists(), _sets(graph.writer, senders), _sets(graph.reader, receivers)
    cells = [
        (i, j) for i, sent in enumerate(writers) for j, group in enumerate(readers) if exists[np.ix_(sent, group)].any()
    ]
    return PathPlan(tuple(cells), len(cells) + 3)


def _sets(place: Callable[[Any], int], names: Sequence[Any]) -> list[list[int]]:
    """Each entry, alone or a list, as places in the graph."""
    return [[place(name) for name in (entry if isinstance(entry, list) else [entry])] for entry in names]


def path_patch(
    model: Model,
    clean: Inputs,
    corrupted: Inputs,
    senders: Sequence[Sender | list[Sender]],
    receivers: Sequence[Receiver | list[Receiver]],
    metric: Metric,
    *,
    progress: Progress = SILENT,
) -> Result:
    """What the direct paths from each sender to each receiver are worth.

    The base run is `corrupted`. The sender's output takes its `clean` value while all other heads and MLPs are frozen
    to base, so a receiver's input moves by exactly what the sender's output moved (no forward is needed for that); the
    receiver's q, k, v or MLP input, recomputed through its norm, is then set in an otherwise free base run. Receivers
    of one list are set together, each to its frozen value, so patched receivers cannot affect each other (Wang et al.
    2022).

    Args:
        clean, corrupted: prompts of one length (texts, rows, [batch, pos] ids or a Batch).
        senders: "embed", "m3", "a5.h1" or (layer, head); a list of these is one set, sending together.
        receivers: "a5.h1<q>" or (layer, head, "q"), "m3", "logits"; a list of these is one set, patched together.
        metric: of the rows in their order.
        progress: per forward; a cancelled call has nan in the cells it did not run.

    Returns:
        Result with `effect` [sender, receiver, example] = metric(patched) - metric(corrupted), nan where the sender
        does not come before any receiver of the set, and `clean`, `corrupted` [example], all in the metric's unit.

    Raises:
        UnsupportedModel, UnknownName, BadData, NotFired: as their names say.

    Source: Wang et al. 2022, "Interpretability in the Wild" (path patching). That values are set at all positions, and
    that q, k and v count as separate receivers, follows Goldowsky-Dill et al. 2023 as far as it is not said there:
    inferred.
    """
    clean, corrupted = token_pair(model, clean, corrupted)
    since = time.monotonic()
    setting = {"senders": [str(s) for s in senders], "receivers": [str(r) for r in receivers], "metric": metric.name}
    provenance = Provenance.start("path_patching", setting, seed=0, model=model.provenance())
    with model.alone():
        graph = Graph.of(model, corrupted)
        plan, sent, read = (
            plan_path_patch(graph, senders, receivers),
            _sets(graph.writer, senders),
            _sets(graph.reader, receivers),
        )
        base, source = read_run(model, graph, corrupted), read_run(model, graph, clean)
        m_base, m_clean = metric(base.logits), metric(source.logits)
        effect = torch.full((len(sent), len(read), len(clean)), torch.nan)
        warnings = (
            []
            if float((m_clean - m_base).abs().mean()) > 1e-6
            else [f"clean and corrupted hardly differ in {metric.name}, so there is nothing to explain"]
        )
        n_done = 0
        try:
            for n_done, (i, j) in enumerate(plan.cells, 1):
                moved = source.writes(model, graph, sent[i]) - base.writes(model, graph, sent[i])
                logits = _set_inputs(
                    model, graph, corrupted, base, dict(zip(sent[i], moved.unbind(1), strict=True)), read[j]
                )
                effect[i, j] = (metric(logits) - m_base).cpu()
                if moved.any() and torch.equal(logits, base.logits):
                    warnings.append(
                        f"setting {setting['receivers'][j]} for {setting['senders'][i]} did not move the output"
                    )
                progress.update(n_done, len(plan.cells), f"{setting['senders'][i]} to {setting['receivers'][j]}")
        except Cancelled:
            pass  # the cells done so far are kept
    unit = {"unit": metric.unit}
    names = [
        ["+".join(known[place] for place in group) for group in sets]
        for known, sets in ((graph.writers, sent), (graph.readers, read))
    ]
    data = xr.Dataset(
        {
            "effect": (
                ("sender", "receiver", "example"),
                effect.numpy(),
                unit | {"long_name": f"{metric.name} of the patched run minus corrupted"},
            ),
            "clean": ("example", m_clean.cpu().numpy(), unit | {"long_name": f"{metric.name} of the clean run"}),
            "corrupted": ("example", m_base.cpu().numpy(), unit | {"long_name": f"{metric.name} of the corrupted run"}),
        },
        {"sender": names[0], "receiver": names[1]},
        {"n_forwards": plan.n_forwards},
    )
    return Result(provenance.finish(since), data, partial=n_done < len(plan.cells), warnings=tuple(warnings))


def _set_inputs(
    model: Model, graph: Graph, tokens: torch.Tensor, base: Run, moved: dict[int, torch.Tensor], readers: Sequence[int]
) -> torch.Tensor:
    """Logits of a run in which the given readers' inputs are those of `base` plus what the writers before them moved
    by, {writer: [batch, pos, d_model]}."""
    fired: list[Port] = []

    def setter(port: Port, chosen: list[int]) -> Hook:
        def edit(tensor: torch.Tensor, hook: object) -> torch.Tensor:
            fired.append(port)
            n = port.readers.stop - port.readers.start
            shift = torch.stack([change for place, change in moved.items() if place < port.n_before]).sum(0)
            value = base.at[port.hook] + port.change(base.at[port.stream], shift.unsqueeze(2).expand(-1, -1, n, -1)).to(
                tensor.dtype
            )
            if port.weight is None:
                return value
            tensor = tensor.clone()
            tensor[:, :, chosen] = value[:, :, chosen]
            return tensor

        return port.hook, edit

    by_port = {
        p: [r - p.readers.start for r in readers if p.readers.start <= r < p.readers.stop]
        for p in graph.ports
        if min(moved) < p.n_before
    }
    hook_fns = [setter(port, chosen) for port, chosen in by_port.items() if chosen]
    logits = model.forward(tokens, hook_fns=hook_fns)
    if len(fired) != len(hook_fns):
        raise NotFired(f"{len(hook_fns) - len(fired)} of {len(hook_fns)} receivers' hooks never fired in {model.name}")
    return logits
