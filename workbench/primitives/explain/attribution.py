"""Attribution: what each node or edge is worth by gradients; primitives/explain/circuits.py says how far to believe it.

Sign, everywhere here: a score estimates metric(corrupted run with this node or edge at its clean value) -
metric(corrupted); positive means that restoring it raises the metric. Nodes are TransformerLens's `attribution_patch`.
Edges are ours: that function refuses grouped-query attention and steps, and keeps one Python entry per edge and
position (GPT-2's shape at 24
tokens: 9 s and 216 MB, here 0.7 s and 75 MB, tests/benchmarks/test_attribution_cost.py); where it accepts a model the
two agree (tests/primitives/explain/test_attribution.py).
Source: Syed et al. 2023 (arXiv 2310.10348) for edges; Hanna et al. 2024, "Have Faith in Faithfulness" (arXiv
    2403.17806). Cost of edges, per batch of rows: two forwards, and one forward and backward per point (`steps` of
    them, or in "activations"
mode 1 + (2 layers + 1)(steps - 1)). Memory: the writers' outputs [batch, writer, pos, d_model] in float32 twice, a
layer's readers' gradients at a time and the score table; nothing is kept per edge and position.
"""

import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr
from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, Node, attribution_patch

from workbench.core.errors import UnsupportedModel, WorkbenchError
from workbench.core.progress import SILENT, Cancelled, Progress
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.models.inputs import Inputs
from workbench.models.model import Hook, Model
from workbench.primitives.explain.residual_graph import Graph, Port, Run, read_run, token_pair
from workbench.primitives.score.metrics import Metric

Mode = Literal["inputs", "activations"]
Point = tuple[slice, list[Hook]]  # which writers it scores, and what is replaced on the way


# ---- nodes ----


def attribute_nodes(
    model: Model, clean: Inputs, corrupted: Inputs, metric: Metric, *, progress: Progress = SILENT
) -> Result:
    """Score the embedding, every head and every MLP at every position: (clean - corrupted activation) . gradient at
    corrupted.

    Args:
        clean, corrupted: prompts of one length (texts, rows, [batch, pos] ids or a Batch). metric: differentiable, of
            the rows in their order.
        progress: per row; a cancelled call keeps the rows it has.

    Returns:
        Result with `score` [example, node, pos] in the metric's unit. Two forwards and a backward per row.

    Raises:
        UnsupportedModel: with TransformerLens's reason. WorkbenchError: if the metric has no gradient. BadData: on
            shapes.

    Source: Nanda 2023, "Attribution patching"; computed by transformer_lens.tools.analysis.attribution_patch.
    """
    model.require("causal-lm", "node attribution")
    clean, corrupted = token_pair(model, clean, corrupted)
    since, provenance = begin("nodes", model, metric)
    clean, corrupted = clean.to(model.device), corrupted.to(model.device)
    rows: list[dict[Node, float]] = []
    try:
        for i in range(len(clean)):
            with model.alone(), torch.enable_grad():
                rows.append(
                    attribution_patch(
                        model.live,
                        clean[i : i + 1],
                        corrupted[i : i + 1],
                        _scalar(metric, [i]),
                        EdgeAttributionConfig("node"),
                    ).node_scores
                )
            progress.update(i + 1, len(clean))
    except Cancelled:
        pass  # the rows done so far are kept
    except WorkbenchError:
        raise
    except ValueError as found:
        raise UnsupportedModel(f"TransformerLens cannot attribute nodes of {model.name}: {found}") from found
    names = list(dict.fromkeys(_node_name(node) for node in rows[0]))
    score = np.zeros((len(rows), len(names), clean.shape[1]), np.float32)
    place = {name: i for i, name in enumerate(names)}
    for row, scores in enumerate(rows):
        for node, value in scores.items():
            score[row, place[_node_name(node)], node.position] = value
    attrs = {"unit": metric.unit, "long_name": f"Attributed change of {metric.name}, corrupted to clean"}
    data = xr.Dataset(
        {"score": (("example", "node", "pos"), score, attrs)}, {"node": names, "pos": range(clean.shape[1])}
    )
    return Result(provenance.finish(since), data, partial=len(rows) < len(clean))


def _node_name(node: Node) -> str:
    return "embed" if node.layer is None else f"m{node.layer}" if node.head is None else f"a{node.layer}.h{node.head}"


def _scalar(metric: Metric, example: Sequence[int]) -> Any:
    """logits -> the metric's sum over the rows `example`; refuses a metric that gradients cannot pass."""

    def value(logits: torch.Tensor) -> torch.Tensor:
        total = metric(logits, torch.as_tensor(example, device=logits.device)).sum()
        if logits.requires_grad and not total.requires_grad:
            raise WorkbenchError(
                f"metric {metric.name} has no gradient, so nothing can be attributed by it; use logit_diff,"
                " probability, answer_loss or kl_div"
            )
        return total

    return value


def begin(what: str, model: Model, metric: Metric, **settings: Any) -> tuple[float, Provenance]:
    """(time.monotonic() now, provenance of an attribution or circuit run with these settings)."""
    seed = settings.get("seed", 0)
    return time.monotonic(), Provenance.start(
        "attribution", {"what": what, "metric": metric.name} | settings, seed=seed, model=model.provenance()
    )


# ---- edges ----


def attribute_edges(
    model: Model,
    clean: Inputs,
    corrupted: Inputs,
    metric: Metric,
    *,
    steps: int = 1,
    mode: Mode = "inputs",
    batch_size: int = 8,
    progress: Progress = SILENT,
) -> Result:
    """Score every writer -> reader edge: (clean - corrupted output of the writer) . gradient at the reader's own input.

    `steps=1` is EAP: the gradient of the corrupted run. More steps average the gradient over a path to clean (EAP-IG):

    - mode "inputs": the embeddings are corrupted + k/steps (clean - corrupted), k = 0 .. steps-1. The scores of the
      edges out of "embed" then sum to metric(clean) - metric(corrupted) as steps grow (not in a mixture of experts,
      whose choice of experts jumps along the path).
    - mode "activations": one group of writers at a time (the embeddings; a layer's heads together; an MLP) moves
      likewise in an otherwise corrupted run, and its gradients score that group alone. A group's scores sum to the
      effect of patching it.

    Args:
        clean, corrupted: prompts of one length (texts, rows, [batch, pos] ids or a Batch). metric: differentiable, of
            the rows in their order.
        batch_size: rows run together; changes memory, not scores.
        progress: per batch; a cancelled call has the mean over the rows done.

    Returns:
        Result with `score` and `sem` [writer, reader]: mean over rows and its standard error, in the metric's unit, nan
        where there is no edge; `clean` and `corrupted` [example] metrics; tables["edges"] sorted by |score|.

    Raises:
        UnsupportedModel, BadData, WorkbenchError: as for `Graph.of`, `token_pair`, a metric without gradient or bad
            settings.

    Source: Hanna et al. 2024. The points k = 0 .. steps-1 are those of the authors' code (hannamw/EAP-IG,
        "EAP-IG-inputs").
    Inferred: in "activations" the base run is the corrupted one, each group scores itself only and the points start at
    0, so that one sign convention holds; their code moves groups in the clean run, k = 1 .. steps, and averages over
    groups.
    """
    clean, corrupted = token_pair(model, clean, corrupted)
    if steps < 1 or mode not in ("inputs", "activations"):
        raise WorkbenchError(f"steps must be at least 1 and mode 'inputs' or 'activations', got {steps} and {mode!r}")
    since, provenance = begin("edges", model, metric, steps=steps, mode=mode)
    n_done, ends = 0, []
    with model.alone():
        graph = Graph.of(model, clean)
        mean, square = torch.zeros(2, len(graph.writers), len(graph.readers), dtype=torch.float64)
        try:
            for rows in torch.arange(len(clean)).split(batch_size):
                source, base = read_run(model, graph, clean[rows]), read_run(model, graph, corrupted[rows])
                ends.append(torch.stack([metric(run.logits, rows) for run in (source, base)]).cpu())
                found = (
                    _edge_scores(
                        model, graph, source, base, corrupted[rows], _scalar(metric, rows.tolist()), steps, mode
                    )
                    .cpu()
                    .double()
                )
                mean, square, n_done = mean + found.sum(0), square + found.square().sum(0), n_done + len(rows)
                progress.update(n_done, len(clean))
        except Cancelled:
            pass  # the rows done so far are kept
    mean, square = mean / n_done, square / n_done
    sem = (
        ((square - mean.square()).clamp_min(0) / (n_done - 1)).sqrt()
        if n_done > 1
        else torch.full_like(mean, torch.nan)
    )
    exists, end, dims = torch.as_tensor(graph.exists()), torch.cat(ends, 1).numpy(), ("writer", "reader")
    unit = {"unit": metric.unit}
    data = xr.Dataset(
        {
            "score": (
                dims,
                mean.where(exists, torch.nan).float().numpy(),
                unit | {"long_name": f"Attributed change of {metric.name}, corrupted to clean"},
            ),
            "sem": (
                dims,
                sem.where(exists, torch.nan).float().numpy(),
                unit | {"long_name": "Standard error over rows"},
            ),
            "clean": ("example", end[0], unit | {"long_name": f"{metric.name} of the clean run"}),
            "corrupted": ("example", end[1], unit | {"long_name": f"{metric.name} of the corrupted run"}),
        },
        {"writer": list(graph.writers), "reader": list(graph.readers)},
        {"n_examples": n_done},
    )
    warnings = (
        ()
        if np.abs(end[0] - end[1]).mean() > 1e-6
        else (f"clean and corrupted hardly differ in {metric.name}, so there is nothing to explain",)
    )
    return Result(
        provenance.finish(since),
        data,
        {"edges": edge_table(data["score"])},
        partial=n_done < len(clean),
        warnings=warnings,
    )


def edge_table(score: xr.DataArray) -> pd.DataFrame:
    """writer, reader, score of every edge of [writer, reader], the largest |score| first (ties in graph order)."""
    w, r = np.nonzero(~np.isnan(score.values))
    table = pd.DataFrame(
        {"writer": score["writer"].values[w], "reader": score["reader"].values[r], "score": score.values[w, r]}
    )
    return table.iloc[np.argsort(-table["score"].abs().to_numpy(), kind="stable")].reset_index(drop=True)


def _edge_scores(
    model: Model, graph: Graph, source: Run, base: Run, corrupted: torch.Tensor, scalar: Any, steps: int, mode: Mode
) -> torch.Tensor:
    """[example, writer, reader] scores of one batch, float32."""
    everyone = range(len(graph.writers))
    delta = (
        source.writes(model, graph, everyone).sub_(base.writes(model, graph, everyone)).flatten(2)
    )  # [batch, writer, pos * d_model]
    scores = delta.new_zeros(len(delta), len(graph.writers), len(graph.readers))
    for writers, hook_fns in _points(model, graph, source, base, steps, mode):
        at, gradients = _input_gradients(model, graph, corrupted, scalar, hook_fns)
        for port, gradient in gradients:
            scored = slice(writers.start, min(writers.stop, port.n_before))
            if scored.start < scored.stop:
                pulled = (
                    port.pull(at[port.stream], gradient).transpose(1, 2).flatten(2)
                )  # [batch, reader, pos * d_model]
                scores[:, scored, port.readers] += delta[:, scored] @ pulled.transpose(1, 2)
    return scores / steps


def _points(model: Model, graph: Graph, source: Run, base: Run, steps: int, mode: Mode) -> list[Point]:
    """The runs whose gradients are averaged. The first, the corrupted run itself, is shared by all writers."""

    def moved(site: str, layer: int, k: int) -> Hook:
        name = model.hook_name(site, layer)
        return name, lambda tensor, hook: torch.lerp(base.at[name], source.at[name], k / steps)

    every = slice(0, len(graph.writers))
    if mode == "inputs":
        groups = [(every, "resid_pre", 0)]
    else:
        groups = [(slice(0, 1), "resid_pre", 0)]
        for layer in range(graph.n_layers):
            heads = graph.heads(layer)
            groups += [(heads, "z", layer), (slice(heads.stop, heads.stop + 1), "mlp_out", layer)]
    return [
        (every, []),
        *((writers, [moved(site, layer, k)]) for writers, site, layer in groups for k in range(1, steps)),
    ]


def _input_gradients(
    model: Model, graph: Graph, tokens: torch.Tensor, scalar: Any, hook_fns: list[Hook]
) -> tuple[dict[str, torch.Tensor], list[tuple[Port, torch.Tensor]]]:
    """The activations of a run and the gradient of `scalar` at each port's hook.

    A zero added at the hook takes the gradient: that of the hook's tensor itself may hold other paths too (the final
    norm's input is the stream).
    """
    probes: dict[Port, torch.Tensor] = {}

    def probe(port: Port) -> Hook:
        def add(tensor: torch.Tensor, hook: object) -> torch.Tensor:
            probes[port] = torch.zeros_like(tensor, requires_grad=True)
            return tensor + probes[port]

        return port.hook, add

    with torch.enable_grad():
        run = read_run(model, graph, tokens, hook_fns=[*hook_fns, *map(probe, graph.ports)], grad=True)
        found = torch.autograd.grad(scalar(run.logits), list(probes.values()), allow_unused=True)
    return run.at, [(port, gradient) for port, gradient in zip(probes, found, strict=True) if gradient is not None]
