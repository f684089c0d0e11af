"""Circuits: do the best edges suffice, is anything left without them, and how far are attribution scores to be believed?

Everything here is exact runs: `faithfulness` replaces all edges but the k best (or only those), `calibrate` sets nodes to
their clean value one by one beside what attribution said of them.
Source: Hanna et al. 2024 (arXiv 2403.17806); Wang et al. 2022 (arXiv 2211.00593) for completeness.
Cost: per batch 3 + 2 forwards per circuit size; 2 forwards and one per node for `calibrate`.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr

from workbench.core.errors import DegenerateBaseline, NotFired, WorkbenchError
from workbench.core.progress import SILENT, Cancelled, Progress
from workbench.core.result import Result
from workbench.models.model import Hook, Model

from .attribution import begin
from .metrics import Metric
from .residual_graph import Graph, Port, check_pair, read_run

Ablation = Literal["corrupted", "zero", "mean"]


def patch_edges(model: Model, graph: Graph, tokens: torch.Tensor, replacement: torch.Tensor, dropped: np.ndarray) -> torch.Tensor:
    """Run with some edges replaced: a reader sees, for its dropped writers, `replacement` in place of their output.

    Exact: writers are re-read in this very run, so what earlier replaced edges did to them is included. One forward, and
    the projections of the readers concerned once more per layer.

    Args:
        tokens: [batch, pos]. replacement: [batch, writer, pos, d_model] float32, as `Run.writes` gives it.
        dropped: [writer, reader] bool; entries that are no edge are ignored.

    Returns:
        [batch, pos, d_vocab] logits.
    """
    gap = torch.zeros_like(replacement)  # replacement minus what was written in this run, filled as writers fire
    drop = torch.as_tensor(dropped & graph.exists(), device=replacement.device)
    streams: dict[str, torch.Tensor] = {}
    fired: list[Port] = []

    def wrote(site: str, layer: int, which: slice) -> Hook:
        def see(tensor: torch.Tensor, hook: object) -> None:
            own = torch.einsum("bphe,hed->bhpd", tensor.float(), model.W_O(layer).detach().float()) if site == "z" else tensor.float().unsqueeze(1)
            gap[:, which] = replacement[:, which] - own

        return model.hook_name(site, layer), see

    def stream(name: str) -> Hook:
        return name, lambda tensor, hook: streams.update({name: tensor})

    def correct(port: Port) -> Hook:
        edges = drop[: port.n_before, port.readers].float()

        def edit(tensor: torch.Tensor, hook: object) -> torch.Tensor:
            fired.append(port)
            shift = torch.einsum("bwpd,wr->bprd", gap[:, : port.n_before], edges)
            return tensor + port.change(streams[port.stream], shift).to(tensor.dtype)

        return port.hook, edit

    hook_fns = [wrote("resid_pre", 0, slice(0, 1)), *map(stream, dict.fromkeys(port.stream for port in graph.ports))]
    for layer in range(graph.n_layers):
        heads = graph.heads(layer)
        hook_fns += [wrote("z", layer, heads), wrote("mlp_out", layer, slice(heads.stop, heads.stop + 1))]
    changed = [port for port in graph.ports if bool(drop[: port.n_before, port.readers].any())]
    logits = model.forward(tokens, hook_fns=hook_fns + [correct(port) for port in changed])
    if len(fired) != len(changed):
        raise NotFired(f"{len(changed) - len(fired)} of {len(changed)} readers' hooks never fired in {model.name}, so their edges were not replaced")
    return logits


def faithfulness(
    model: Model,
    clean: torch.Tensor,
    corrupted: torch.Tensor,
    metric: Metric,
    scores: Result,
    ks: Sequence[int],
    *,
    ablate: Ablation = "corrupted",
    batch_size: int = 8,
    progress: Progress = SILENT,
) -> Result:
    """What the k best edges do alone, and what is left without them; exact.

    The run is clean; every edge outside the circuit is replaced. With m(empty) the run with all edges replaced, which is
    metric(corrupted) if `ablate="corrupted"`:
    faithfulness = (m(k best) - m(empty)) / (m(clean) - m(empty)): 1 means that they suffice, 0 that they do nothing.
    completeness = (m(all but the k best) - m(empty)) / (same): 0 means that nothing of the behaviour is left without them.

    Args:
        scores: from `attribute_edges`; edges rank by |score|. ks: circuit sizes, in edges.
        ablate: replace a writer by its output in the corrupted run, by zero, or by its mean over the corrupted rows.

    Returns:
        Result with `faithfulness` and `completeness` [k] (ratios of means over rows), `circuit` and `rest` [k, example],
        `clean` and `empty` [example]. Forwards: per batch 3 + 2 len(ks); a check; one more per batch for "mean".

    Raises:
        DegenerateBaseline: if clean and empty differ by less than 1e-6. WorkbenchError: if scores are not of this model.

    Source: Hanna et al. 2024; Wang et al. 2022 for completeness. TransformerLens has the first (one row, one k at a time).
    """
    check_pair(clean, corrupted)
    since, provenance = begin("faithfulness", model, metric, ablate=ablate, ks=list(ks), scores=scores.spec)
    if ablate not in ("corrupted", "zero", "mean") or not ks or min(ks) < 0:
        raise WorkbenchError(f"ablate must be corrupted, zero or mean and ks numbers of edges, got {ablate!r} and {list(ks)}")
    with model.alone():
        graph = Graph.of(model, clean)
        sets = [np.ones(graph.exists().shape, bool)] + [drop for k in ks for drop in _circuit(graph, scores, k)]
        batches = torch.arange(len(clean)).split(batch_size)
        fill = _replacements(model, graph, corrupted, batches, ablate)
        values: list[torch.Tensor] = []
        try:
            for rows in batches:
                found = [metric(model.forward(clean[rows]), rows)]
                found += [metric(patch_edges(model, graph, clean[rows], replacement, drop), rows) for replacement in [fill(rows)] for drop in sets]
                values.append(torch.stack(found).cpu())
                progress.update(len(values), len(batches))
        except Cancelled:
            pass  # the rows done so far are kept
    m = torch.cat(values, 1).double().numpy()  # [clean, empty, then circuit and rest of each k; example]
    gap = m[0].mean() - m[1].mean()
    if abs(gap) < 1e-6:
        raise DegenerateBaseline(f"clean and fully replaced runs agree in {metric.name} within 1e-6, so no share of their difference exists")
    share = {"unit": "share of clean - empty"}
    unit = {"unit": metric.unit}
    data = xr.Dataset(
        {
            "faithfulness": ("k", (m[2::2].mean(1) - m[1].mean()) / gap, share | {"long_name": "Faithfulness of the k best edges"}),
            "completeness": ("k", (m[3::2].mean(1) - m[1].mean()) / gap, share | {"long_name": "Left without the k best edges"}),
            "circuit": (("k", "example"), m[2::2], unit | {"long_name": f"{metric.name} of the k best edges alone"}),
            "rest": (("k", "example"), m[3::2], unit | {"long_name": f"{metric.name} without the k best edges"}),
            "clean": ("example", m[0], unit | {"long_name": f"{metric.name} of the clean run"}),
            "empty": ("example", m[1], unit | {"long_name": f"{metric.name} with every edge replaced"}),
        },
        {"k": list(ks)},
        {"n_edges": int(graph.exists().sum())},
    )
    return Result(provenance.finish(since), data, partial=m.shape[1] < len(clean))


def _replacements(model: Model, graph: Graph, corrupted: torch.Tensor, batches: Sequence[torch.Tensor], ablate: Ablation) -> Callable[[torch.Tensor], torch.Tensor]:
    """rows -> what their writers are replaced by, [batch, writer, pos, d_model]."""

    def written(rows: torch.Tensor) -> torch.Tensor:
        return read_run(model, graph, corrupted[rows]).writes(model, graph, range(len(graph.writers)))

    if ablate == "corrupted":
        return written
    if ablate == "zero":
        return lambda rows: torch.zeros_like(written(rows))
    mean = torch.zeros(())
    for rows in batches:
        mean = mean.to(model.device) + written(rows).sum(0) / len(corrupted)
    return lambda rows: mean.expand(len(rows), -1, -1, -1)


def _circuit(graph: Graph, scores: Result, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges to drop so that only the k best stay, and so that only they go: [writer, reader] bool each."""
    score = scores.data["score"]
    if score.dims != ("writer", "reader") or tuple(score["writer"].values) != graph.writers or tuple(score["reader"].values) != graph.readers:
        raise WorkbenchError("scores must be the Result of attribute_edges on a model of this shape")
    order = np.argsort(-np.nan_to_num(np.abs(score.values.ravel()), nan=-1), kind="stable")
    best = np.zeros(score.size, bool)
    best[order[:k]] = True
    best = best.reshape(score.shape)
    return ~best, best


def calibrate(
    model: Model,
    clean: torch.Tensor,
    corrupted: torch.Tensor,
    metric: Metric,
    scores: Result,
    *,
    n_top: int = 10,
    n_random: int = 20,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Result:
    """Attributed node effects beside exact ones: each node's clean output at all positions set in the corrupted run.

    Args:
        scores: from `attribute_nodes` (summed over positions) or `attribute_edges` (a writer's edges summed).
        n_top: the nodes of largest |score|. n_random: others, drawn by `seed`.

    Returns:
        Result with tables["nodes"] (node, chosen as "top" or "random", approx, exact: means over rows in the metric's unit)
        and `spearman`: rank correlation of approx and exact over all of them, and over the random ones alone. The top ones
        were picked by size, which flatters a correlation; nan below 3 nodes. Forwards: 2 + n_top + n_random.
    """
    check_pair(clean, corrupted)
    since, provenance = begin("calibration", model, metric, n_top=n_top, n_random=n_random, seed=seed, scores=scores.spec)
    score = scores.data["score"]
    totals = score.mean("example").sum("pos") if "node" in score.dims else score.sum("reader")
    approx = dict(zip(map(str, totals[totals.dims[0]].values), totals.values.tolist(), strict=True))
    ranked = sorted(approx, key=lambda name: -abs(approx[name]))
    rest = ranked[n_top:]
    drawn = np.random.default_rng(seed).choice(len(rest), min(n_random, len(rest)), replace=False)
    chosen = [(name, "top") for name in ranked[:n_top]] + [(rest[i], "random") for i in sorted(drawn)]
    table = []
    with model.alone():
        base = metric(model.forward(corrupted))
        values = _record(model, clean, [_place(model, name)[0] for name, _ in chosen])
        try:
            for name, how in chosen:
                table.append((name, how, approx[name], float((metric(_set_node(model, corrupted, values, name)) - base).mean())))
                progress.update(len(table), len(chosen))
        except Cancelled:
            pass  # the nodes done so far are kept
    nodes = pd.DataFrame(table, columns=["node", "chosen", "approx", "exact"])
    parts = [nodes, nodes[nodes["chosen"] == "random"]]
    rho = [float(part["approx"].corr(part["exact"], method="spearman")) if len(part) > 2 else np.nan for part in parts]
    attrs = {"unit": "rank correlation", "long_name": "Spearman correlation of attributed and exact node effects"}
    return Result(provenance.finish(since), xr.Dataset({"spearman": ("over", rho, attrs)}, {"over": ["all", "random"]}), {"nodes": nodes}, partial=len(table) < len(chosen))


def _place(model: Model, node: str) -> tuple[str, int | None]:
    """The hook that holds a node's output, and which head of it."""
    if node == "embed":
        return model.hook_name("resid_pre", 0), None
    layer, _, head = node[1:].partition(".h")
    return model.hook_name("z" if head else "mlp_out", int(layer)), int(head) if head else None


def _record(model: Model, tokens: torch.Tensor, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """{hook: its tensor} of one run."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Hook:
        return name, lambda tensor, hook: seen.update({name: tensor})

    model.forward(tokens, hook_fns=[keep(name) for name in dict.fromkeys(names)])
    return seen


def _set_node(model: Model, tokens: torch.Tensor, values: dict[str, torch.Tensor], node: str) -> torch.Tensor:
    """Logits with one node's output taken from `values`.

    Raises:
        NotFired: if its hook never ran.
    """
    name, head = _place(model, node)
    fired = []

    def edit(tensor: torch.Tensor, hook: object) -> torch.Tensor:
        fired.append(node)
        if head is None:
            return values[name]
        tensor = tensor.clone()
        tensor[:, :, head] = values[name][:, :, head]
        return tensor

    logits = model.forward(tokens, hook_fns=[(name, edit)])
    if not fired:
        raise NotFired(f"the hook of {node} never fired in {model.name}")
    return logits
