"""Circuits: do the best edges suffice, is anything left without them, is each needed, and how far are scores to be
believed?

Everything here is exact runs: `faithfulness` replaces all edges but the k best (or only those), `minimality` one edge
of a circuit after the other, `calibrate` sets nodes to their clean value one by one beside what attribution said of
them.
Source: Hanna et al. 2024 (arXiv 2403.17806); Wang et al. 2022 (arXiv 2211.00593) for completeness and minimality; Shi
    et al. 2024 (arXiv 2410.13032) for random paths as the measure of a needed edge.
Cost: per batch 3 + 2 forwards per circuit size; 4, one per edge and 2 per random path for `minimality`; 2 forwards and
one per node for `calibrate`.
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
from workbench.models.inputs import Inputs
from workbench.models.model import Hook, Model
from workbench.primitives.explain.attribution import begin
from workbench.primitives.explain.residual_graph import Graph, Port, read_run, token_pair
from workbench.primitives.score.metrics import Metric

Ablation = Literal["corrupted", "zero", "mean"]


def patch_edges(
    model: Model, graph: Graph, tokens: torch.Tensor, replacement: torch.Tensor, dropped: np.ndarray
) -> torch.Tensor:
    """Run with some edges replaced: a reader sees, for its dropped writers, `replacement` in place of their output.

    Exact: writers are re-read in this very run, so what earlier replaced edges did to them is included. One forward,
    and the projections of the readers concerned once more per layer.

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
            own = (
                torch.einsum("bphe,hed->bhpd", tensor.float(), model.W_O(layer).detach().float())
                if site == "z"
                else tensor.float().unsqueeze(1)
            )
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
        raise NotFired(
            f"{len(changed) - len(fired)} of {len(changed)} readers' hooks never fired in {model.name}, so their edges"
            " were not replaced"
        )
    return logits


def faithfulness(
    model: Model,
    clean: Inputs,
    corrupted: Inputs,
    metric: Metric,
    scores: Result,
    ks: Sequence[int],
    *,
    ablate: Ablation = "corrupted",
    batch_size: int = 8,
    progress: Progress = SILENT,
) -> Result:
    """What the k best edges do alone, and what is left without them; exact.

    The run is clean; every edge outside the circuit is replaced. With m(empty) the run with all edges replaced, which
    is metric(corrupted) if `ablate="corrupted"`:
    faithfulness = (m(k best) - m(empty)) / (m(clean) - m(empty)): 1 means that they suffice, 0 that they do nothing.
    completeness = (m(all but the k best) - m(empty)) / (same): 0 means that nothing of the behaviour is left without
    them.

    Args:
        scores: from `attribute_edges`; edges rank by |score|. ks: circuit sizes, in edges.
        ablate: replace a writer by its output in the corrupted run, by zero, or by its mean over the corrupted rows.

    Returns:
        Result with `faithfulness` and `completeness` [k] (ratios of means over rows), `circuit` and `rest` [k,
        example], `clean` and `empty` [example]. Forwards: per batch 3 + 2 len(ks); a check; one more per batch for
        "mean".

    Raises:
        DegenerateBaseline: if clean and empty differ by less than 1e-6. WorkbenchError: if scores are not of this
            model.
        Cancelled: before the first batch was finished; later, the Result has the rows that were.

    Source: Hanna et al. 2024; Wang et al. 2022 for completeness. TransformerLens has the first (one row, one k at a
        time).
    """
    since, provenance = begin("faithfulness", model, metric, ablate=ablate, ks=list(ks), scores=scores.spec)
    if not ks or min(ks) < 0:
        raise WorkbenchError(f"ks must be numbers of edges, got {list(ks)}")
    with model.alone():
        clean, corrupted = token_pair(model, clean, corrupted)
        graph = Graph.of(model, clean)
        sets = [drop for best in (_best(graph, scores, k) for k in ks) for drop in (~best, best)]
        m = _replaced(model, graph, clean, corrupted, metric, sets, ablate, batch_size, progress)
    gap = _gap(m, metric)
    share = {"unit": "share of clean - empty"}
    unit = {"unit": metric.unit}
    data = xr.Dataset(
        {
            "faithfulness": (
                "k",
                (m[2::2].mean(1) - m[1].mean()) / gap,
                share | {"long_name": "Faithfulness of the k best edges"},
            ),
            "completeness": (
                "k",
                (m[3::2].mean(1) - m[1].mean()) / gap,
                share | {"long_name": "Left without the k best edges"},
            ),
            "circuit": (("k", "example"), m[2::2], unit | {"long_name": f"{metric.name} of the k best edges alone"}),
            "rest": (("k", "example"), m[3::2], unit | {"long_name": f"{metric.name} without the k best edges"}),
            "clean": ("example", m[0], unit | {"long_name": f"{metric.name} of the clean run"}),
            "empty": ("example", m[1], unit | {"long_name": f"{metric.name} with every edge replaced"}),
        },
        {"k": list(ks)},
        {"n_edges": int(graph.exists().sum())},
    )
    return Result(provenance.finish(since), data, partial=m.shape[1] < len(clean))


def minimality(
    model: Model,
    clean: Inputs,
    corrupted: Inputs,
    metric: Metric,
    scores: Result,
    k: int,
    *,
    n_random: int = 20,
    seed: int = 0,
    ablate: Ablation = "corrupted",
    batch_size: int = 8,
    progress: Progress = SILENT,
) -> Result:
    """What each of the k best edges adds to the circuit they make, beside random edges from outside it; exact.

    effect of an edge = (m(circuit) - m(circuit without it)) / (m(clean) - m(empty)). A random edge is put into the
    circuit with a random path through it, from the embeddings to the logits: alone it would carry nothing, since
    nothing clean reaches it. An edge is needed where taking it out moves the metric further than it does for random
    ones. An edge for which another stands in shows no effect alone: that is what the sets of Wang et al. 2022 are for.

    Args:
        scores: from `attribute_edges`; edges rank by |score|. k: the circuit's size. n_random: edges outside, drawn by
            `seed`.
        ablate: as `faithfulness`.

    Returns:
        Result with tables["edges"] (writer, reader, chosen as "circuit" or "random", score, effect, needed: whether
        |effect| exceeds all random ones, path: the edges put in with a random one), `effect` [edge, example] in the
        metric's unit, and `needed`, the share of the circuit's edges. Forwards: per batch 4 + k + 2 n_random.

    Raises:
        DegenerateBaseline, WorkbenchError: as `faithfulness`; WorkbenchError if no edge is outside the circuit.

    Source: Wang et al. 2022, with single edges for sets; Shi et al. 2024 for random paths. Inferred: the edge is drawn
        first and the path through it, both uniformly; they test each edge against quantiles, here it is set beside all
        that were drawn.
    """
    since, provenance = begin(
        "minimality", model, metric, ablate=ablate, k=k, n_random=n_random, scores=scores.spec, seed=seed
    )
    with model.alone():
        clean, corrupted = token_pair(model, clean, corrupted)
        graph = Graph.of(model, clean)
        best, exists = _best(graph, scores, k), graph.exists()
        inside, outside = np.argwhere(best & exists), np.argwhere(~best & exists)
        if not len(inside) or not len(outside) or n_random < 1:
            raise WorkbenchError(
                f"a circuit of {k} of {exists.sum()} edges with {n_random} random ones beside it has nothing to"
                " compare; take fewer edges, and at least one random one"
            )
        drawn = outside[
            np.sort(np.random.default_rng(seed).choice(len(outside), min(n_random, len(outside)), replace=False))
        ]
        sets, paths = (
            [~best],
            [_path_through(graph, exists, (int(w), int(r)), seed + i) for i, (w, r) in enumerate(drawn)],
        )
        for edge in inside:
            sets.append(~best)
            sets[-1][tuple(edge)] = True
        for edge, path in zip(drawn, paths, strict=True):
            inflated = ~best
            inflated[tuple(np.array(path).T)] = False
            sets += [inflated, inflated.copy()]
            sets[-1][tuple(edge)] = True
        m = _replaced(model, graph, clean, corrupted, metric, sets, ablate, batch_size, progress)
    alone, inflated = np.split(m[3:], [len(inside)])
    effect = np.concatenate([m[2] - alone, inflated[::2] - inflated[1::2]])
    mean = effect.mean(1) / _gap(m, metric)
    beyond = np.abs(mean) > np.abs(mean[len(inside) :]).max()
    edges = pd.DataFrame(
        [(graph.writers[w], graph.readers[r]) for w, r in (*inside, *drawn)], columns=["writer", "reader"]
    )
    edges["chosen"] = ["circuit"] * len(inside) + ["random"] * len(drawn)
    edges["score"] = [float(scores.data["score"].values[w, r]) for w, r in (*inside, *drawn)]
    edges["effect"], edges["needed"] = mean, beyond
    edges["path"] = [""] * len(inside) + [
        "; ".join(f"{graph.writers[w]} -> {graph.readers[r]}" for w, r in path) for path in paths
    ]
    data = xr.Dataset(
        {
            "effect": (
                ("edge", "example"),
                effect,
                {"unit": metric.unit, "long_name": f"{metric.name} that the edge adds to the circuit"},
            ),
            "needed": (
                (),
                float(beyond[: len(inside)].mean()),
                {"unit": "share of the circuit's edges", "long_name": "Edges that add more than any random one"},
            ),
        },
        {"edge": [f"{w} -> {r}" for w, r in zip(edges["writer"], edges["reader"], strict=True)]},
        {"n_edges": int(exists.sum())},
    )
    return Result(provenance.finish(since), data, {"edges": edges}, partial=m.shape[1] < len(clean))


def _path_through(graph: Graph, exists: np.ndarray, edge: tuple[int, int], seed: int) -> list[tuple[int, int]]:
    """Edges (writer, reader) of a random path from the embeddings to the logits that goes through `edge`, in order."""
    rng = np.random.default_rng([seed, 7])
    reads = [graph.readers_of(writer) for writer in range(len(graph.writers))]
    path = [edge]
    while path[0][0]:  # back to the embeddings, which are the first writer
        reader = int(rng.choice(reads[path[0][0]]))
        path.insert(0, (int(rng.choice(np.flatnonzero(exists[:, reader]))), reader))
    while nodes := [
        writer for writer, into in enumerate(reads) if path[-1][1] in into
    ]:  # a key/value head belongs to several
        writer = int(rng.choice(nodes))
        path.append((writer, int(rng.choice(np.flatnonzero(exists[writer])))))
    return path


def _replaced(
    model: Model,
    graph: Graph,
    clean: torch.Tensor,
    corrupted: torch.Tensor,
    metric: Metric,
    sets: Sequence[np.ndarray],
    ablate: Ablation,
    batch_size: int,
    progress: Progress,
) -> np.ndarray:
    """The metric [clean, every edge replaced, then each set of edges replaced; example]. Cancelled, the batches that
    were finished; with none, Cancelled goes on to the caller."""
    if ablate not in ("corrupted", "zero", "mean"):
        raise WorkbenchError(f"ablate must be corrupted, zero or mean, got {ablate!r}")
    batches = torch.arange(len(clean)).split(batch_size)
    fill = _replacements(model, graph, corrupted, batches, ablate)
    drops = [np.ones(graph.exists().shape, bool), *sets]
    values: list[torch.Tensor] = []
    try:
        for done, rows in enumerate(batches):
            found, replacement = [metric(model.forward(clean[rows]), rows)], fill(rows)
            for drop in drops:
                found.append(metric(patch_edges(model, graph, clean[rows], replacement, drop), rows))
                progress.update(done * len(drops) + len(found) - 1, len(batches) * len(drops))
            values.append(torch.stack(found).cpu())
    except Cancelled:
        if not values:
            raise
    return torch.cat(values, 1).double().numpy()


def _gap(m: np.ndarray, metric: Metric) -> float:
    gap = float(m[0].mean() - m[1].mean())
    if abs(gap) < 1e-6:
        raise DegenerateBaseline(
            f"clean and fully replaced runs agree in {metric.name} within 1e-6, so no share of their difference exists"
        )
    return gap


def _replacements(
    model: Model, graph: Graph, corrupted: torch.Tensor, batches: Sequence[torch.Tensor], ablate: Ablation
) -> Callable[[torch.Tensor], torch.Tensor]:
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


def _best(graph: Graph, scores: Result, k: int) -> np.ndarray:
    """[writer, reader] bool: the k edges of largest |score|."""
    score = scores.data["score"]
    if (
        score.dims != ("writer", "reader")
        or tuple(score["writer"].values) != graph.writers
        or tuple(score["reader"].values) != graph.readers
    ):
        raise WorkbenchError("scores must be the Result of attribute_edges on a model of this shape")
    order = np.argsort(-np.nan_to_num(np.abs(score.values.ravel()), nan=-1), kind="stable")
    best = np.zeros(score.size, bool)
    best[order[:k]] = True
    return best.reshape(score.shape)


def calibrate(
    model: Model,
    clean: Inputs,
    corrupted: Inputs,
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
        Result with tables["nodes"] (node, chosen as "top" or "random", approx, exact: means over rows in the metric's
        unit) and `spearman`: rank correlation of approx and exact over all of them, and over the random ones alone. The
        top ones were picked by size, which flatters a correlation; nan below 3 nodes. Forwards: 2 + n_top + n_random.
    """
    clean, corrupted = token_pair(model, clean, corrupted)
    since, provenance = begin(
        "calibration", model, metric, n_top=n_top, n_random=n_random, seed=seed, scores=scores.spec
    )
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
                table.append(
                    (name, how, approx[name], float((metric(_set_node(model, corrupted, values, name)) - base).mean()))
                )
                progress.update(len(table), len(chosen))
        except Cancelled:
            pass  # the nodes done so far are kept
    nodes = pd.DataFrame(table, columns=["node", "chosen", "approx", "exact"])
    parts = [nodes, nodes[nodes["chosen"] == "random"]]
    rho = [float(part["approx"].corr(part["exact"], method="spearman")) if len(part) > 2 else np.nan for part in parts]
    attrs = {"unit": "rank correlation", "long_name": "Spearman correlation of attributed and exact node effects"}
    return Result(
        provenance.finish(since),
        xr.Dataset({"spearman": ("over", rho, attrs)}, {"over": ["all", "random"]}),
        {"nodes": nodes},
        partial=len(table) < len(chosen),
    )


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
