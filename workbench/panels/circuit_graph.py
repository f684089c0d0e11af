"""Circuit graph panel: the edges of a model above a threshold; click for scores, pin, group, name, and test what is
shown.

Plain functions behind it: `primitives.explain.attribution.attribute_edges` for the scores,
`primitives.explain.edge_sets.edges_faithfulness` for the test of the edges on show; drawing: views/circuit_graph; the
file of a layout: graph_file. The scores are estimates by gradients, which is why the button Faithfulness is there: it
replaces every edge that is not shown, exactly.
Cost: as `attribute_edges`; Faithfulness runs 5 forwards per batch of 8 prompts for the circuit and for each random one.
"""

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import traitlets

from workbench.core.errors import BadData, WorkbenchError
from workbench.core.progress import Progress
from workbench.core.result import Result
from workbench.models.model import Model
from workbench.primitives.explain.attribution import attribute_edges
from workbench.primitives.explain.edge_sets import edges_faithfulness
from workbench.primitives.score.metrics import Metric
from workbench.primitives.score.prompt_metrics import aligned_pair, metric_named
from workbench.views import circuit_graph as views

from . import graph_file
from .graph_view import GraphView
from .panel import Panel, PanelState, draw, labelled, link, plot_area, row

METHODS = {
    "EAP-IG, activations (5 steps)": {"steps": 5, "mode": "activations"},
    "EAP-IG, inputs (5 steps)": {"steps": 5, "mode": "inputs"},
    "EAP (1 step)": {"steps": 1, "mode": "inputs"},
}
N_AT_FIRST, LEAST_AT_FIRST = (
    30,
    0.01,
)  # shown before the threshold is moved: at most so many edges, of at least this share of the largest
DECADES = 4  # the slider reaches down to the largest score / 10^4
Pair = tuple[torch.Tensor, torch.Tensor, Metric]


class CircuitState(PanelState):
    """threshold: least |score| shown, in the metric's unit. names, groups, pins, positions: what a person did to the
    graph.

    clean, corrupted, answer, other: texts, one prompt a line. method: a key of METHODS. selected: nodes clicked; edge:
    edge clicked. file: where the layout is kept. faithful: what Faithfulness found for the edges on show, or None.
    """

    clean = traitlets.Unicode()
    corrupted = traitlets.Unicode()
    answer = traitlets.Unicode()
    other = traitlets.Unicode()
    method = traitlets.Unicode(next(iter(METHODS)))
    threshold = traitlets.Float(0.0, min=0.0)
    paths_only = traitlets.Bool(False)
    selected = traitlets.List()
    edge = traitlets.Unicode()
    names = traitlets.Dict()
    groups = traitlets.Dict()
    pins = traitlets.List()
    positions = traitlets.Dict()
    file = traitlets.Unicode("circuit.json")
    faithful = traitlets.Instance(Result, allow_none=True)


class CircuitGraph(Panel):
    """`panels.CircuitGraph(model, clean, corrupted, answer, other)` in a cell; Run scores the edges, a click shows
    scores.

    Args:
        clean, corrupted: prompts as text, one a line, or [batch, pos] ids; then `metric` says what is measured.
        answer, other: the right and a wrong next token of each prompt, one a line or one for all.
        result: scores to show at once, from `attribute_edges`; model and prompts are then needed for Faithfulness only.
    """

    title = "Circuit graph"

    def __init__(
        self,
        model: Model | None = None,
        clean: str | torch.Tensor = "",
        corrupted: str | torch.Tensor = "",
        answer: str = "",
        other: str = "",
        *,
        metric: Metric | None = None,
        result: Result | None = None,
        state: CircuitState | None = None,
        compute: Callable[..., Result] = attribute_edges,
        test: Callable[..., Result] = edges_faithfulness,
    ):
        self.state: CircuitState
        texts = (
            {}
            if isinstance(clean, torch.Tensor)
            else {"clean": clean, "corrupted": corrupted, "answer": answer, "other": other}
        )
        super().__init__(state or CircuitState(**texts))
        self.model, self._compute, self._test = model, compute, test
        if texts:
            self._given: Pair | None = None
        elif metric is None:
            raise WorkbenchError("with token ids a metric is needed, such as metrics.logit_diff(answers, others)")
        else:
            self._given = (clean, corrupted, metric)  # type: ignore[assignment]
        self._asked: Pair | None = self._given
        self._remarks: list[str] = []
        self._nodes: list[str] = []
        self._shown: views.Shown | None = None
        self._circuit: views.Circuit | None = None
        self._controls()
        self.view, self.caption, self.cell, self.verdict, self.drawing = (
            GraphView(),
            widgets.HTML(),
            widgets.HTML(),
            widgets.HTML(),
            plot_area(),
        )
        for name in ("selected", "edge"):
            traitlets.link((self.state, name), (self.view, name))
        self.view.observe(lambda _: self.attempt(self._act), names="event")
        self.state.observe(
            lambda _: self.attempt(self._draw),
            names=["result", "threshold", "paths_only", "names", "groups", "pins", "positions"],
        )
        self.state.observe(lambda _: self.attempt(self._draw_cell), names=["selected", "edge"])
        self.state.observe(lambda _: self.attempt(self._draw_verdict), names=["faithful"])
        self.state.observe(self._enable, names=["running", "result"])
        self.frame(
            self._first,
            row(self.threshold, self.paths_only, self.faithful),
            self.caption,
            self.view,
            self._tools,
            self.cell,
            self.verdict,
            self.drawing,
        )
        self._enable()
        if result is not None:
            self._take(result)

    def _controls(self) -> None:
        area, wide = {"rows": 2, "continuous_update": False}, "calc(min(100%, 940px) - 10px)"
        self.clean = labelled(widgets.Textarea, "Clean", "Prompts with the behaviour, one a line", wide, **area)
        self.corrupted = labelled(
            widgets.Textarea, "Corrupted", "Their twins without it, token for token as long, one a line", wide, **area
        )
        self.answer = labelled(
            widgets.Textarea,
            "Answer",
            "What should come next, one token a line, or one for all; a space in front counts",
            "220px",
            **area,
        )
        self.other = labelled(
            widgets.Textarea, "Other answer", "The token it is compared with, likewise", "250px", **area
        )
        self.method = labelled(
            widgets.Dropdown,
            "Scores by",
            "How edges are scored; all are estimates by gradients",
            "330px",
            options=list(METHODS),
        )
        self.start = self._button(
            "Run", "Score every edge of the model on these prompts", self.run, button_style="primary"
        )
        self.threshold = labelled(
            widgets.FloatLogSlider,
            "Threshold",
            "Least |score| of an edge that is shown",
            "420px",
            base=10,
            min=-DECADES,
            max=0,
            step=0.01,
            readout_format=".3g",
        )
        self.paths_only = labelled(
            widgets.Checkbox,
            "Only on paths from embed to logits",
            "Hide edges that lie on no path from the embedding to the logits",
            "300px",
            indent=False,
        )
        self.faithful = self._button(
            "Faithfulness",
            "Replace every edge that is not shown by its corrupted run; exact, beside random circuits of as many edges",
            self.test_shown,
        )
        self.name = labelled(
            widgets.Text, "Name", "What to call the nodes selected, or the group made of them", "260px"
        )
        self.file = labelled(widgets.Text, "File", "Where threshold, places, pins, groups and names are kept", "300px")
        tools = [
            self._button(
                "Name it",
                "Call the selected node by this name; an empty name takes it away",
                self.name_selected,
                width="80px",
            ),
            self._button("Group", "Draw the selected nodes as one, by this name", self.group_selected, width="70px"),
            self._button(
                "Ungroup", "Draw the nodes of the selected groups apart again", self.ungroup_selected, width="80px"
            ),
            self._button(
                "Pin",
                "Keep the selected nodes shown and in their place, or let go of them again",
                self.pin_selected,
                width="60px",
            ),
        ]
        keep = [
            self._button("Save layout", "Write the file; a graph's own file is replaced", self.save_state),
            self._button("Load layout", "Read the file", self.load_state),
        ]
        self._tools = row(self.name, *tools, self.file, *keep)
        state = {
            name: getattr(self, name)
            for name in ("clean", "corrupted", "answer", "other", "method", "threshold", "paths_only", "file")
        }
        link(self.state, **state)
        if self._given is None:
            self._first: widgets.Widget = widgets.VBox(
                [self.clean, self.corrupted, row(self.answer, self.other, self.method, self.start)]
            )
        else:
            clean, _, metric = self._given
            said = widgets.HTML(
                f"{len(clean)} pairs of prompts of {clean.shape[-1]} tokens, {html.escape(metric.name)}"
            )
            self._first = row(said, self.method, self.start)

    def _button(
        self, label: str, tip: str, act: Callable[[], object], width: str = "120px", **options: Any
    ) -> widgets.Button:
        made = widgets.Button(description=label, tooltip=tip, layout=widgets.Layout(width=width), **options)
        made.on_click(lambda _: self.attempt(act))
        return made

    # ---- scores ----

    def run(self) -> "CircuitGraph":
        """Score the edges in the worker thread."""
        settings = METHODS[self.state.method]

        def compute(progress: Progress) -> tuple[Result, Pair]:
            pair = self._pair()
            return self._compute(self._model(), *pair, **settings, progress=progress), pair

        def done(found: tuple[Result, Pair]) -> None:
            self._take(found[0])
            self._asked = found[1]

        self.work(compute, done)
        return self

    def _pair(self) -> Pair:
        """The prompts of the boxes, or those that were given."""
        if self._given is not None:
            return self._given
        state, model = self.state, self._model()
        clean, corrupted = (text.splitlines() or [""] for text in (state.clean, state.corrupted))
        if len(clean) != len(corrupted):
            raise BadData(
                f"there are {len(clean)} clean prompts and {len(corrupted)} corrupted ones; each line needs its twin"
            )
        pairs = [aligned_pair(model, one, other) for one, other in zip(clean, corrupted, strict=True)]
        if len(lengths := {a.shape[1] for a, _ in pairs}) > 1:
            raise BadData(
                f"prompts have {', '.join(map(str, sorted(lengths)))} tokens; edges are scored over prompts of one"
                " length"
            )
        words = [
            lines * len(pairs) if len(lines := text.splitlines()) == 1 else lines
            for text in (state.answer, state.other)
        ]
        tokens = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])
        return *tokens, metric_named(model, "logit_diff" if words[1] else "probability", tokens[0].tolist(), *words)

    def _model(self) -> Model:
        if self.model is None:
            raise WorkbenchError(
                "this graph was opened without its model; give it as panels.CircuitGraph(model, clean, corrupted, ...,"
                " result=...)"
            )
        return self.model

    def _take(self, result: Result) -> None:
        size = views.check_edges(result)["score"].abs()
        top = float(size.max()) if len(size) else 0.0
        if top == 0:
            raise BadData(
                "every edge has score 0: clean and corrupted runs do not differ in this metric; choose another pair of"
                " prompts"
            )
        self._nodes = views.graph_nodes(result)
        self._remarks = [
            *(["cancelled: scores are the mean over the prompts that were finished"] if result.partial else []),
            *result.warnings,
        ]
        self.threshold.max = 300.0
        self.threshold.min = np.log10(top) - DECADES
        self.threshold.max = float(np.log10(top))
        known = set(self._nodes)
        state = self.state
        with state.hold_trait_notifications():
            state.groups = {name: members for name, members in state.groups.items() if set(members) <= known}
            state.names = {node: name for node, name in state.names.items() if node in known}
            state.pins = [node for node in state.pins if node in known]
            state.positions = {
                node: place for node, place in state.positions.items() if node in known or node in state.groups
            }
            state.threshold = max(float(size.iloc[min(N_AT_FIRST, len(size)) - 1]), LEAST_AT_FIRST * top)
            state.faithful, state.result = None, result

    # ---- faithfulness ----

    def test_shown(self) -> "CircuitGraph":
        """Measure the faithfulness of the edges on show in the worker thread."""
        if self._shown is None:
            raise WorkbenchError("there are no scores yet: press Run first")
        shown, scores, remarks = self._shown, self.state.result, list(self._remarks)

        def done(found: Result) -> None:
            self._remarks = remarks
            if self._shown is not None and self._shown.edges.equals(shown.edges):
                self.state.faithful = found
                self._say()
            else:
                self.state.notice = (
                    "the graph changed while it was tested, so the answer was dropped; press Faithfulness again"
                )

        self.work(
            lambda progress: self._test(
                self._model(), *(self._asked or self._pair()), scores, shown.edges, progress=progress
            ),
            done,
        )
        return self

    # ---- what a person does to the graph ----

    def _selected(self) -> list[str]:
        if not self.state.selected:
            raise WorkbenchError("select nodes first: click them, several with Shift")
        return list(self.state.selected)

    def name_selected(self) -> None:
        """Call the selected node by the name in the box; a group gets a new name."""
        state, name = self.state, self.name.value.strip()
        if len(chosen := self._selected()) != 1:
            raise WorkbenchError(f"{len(chosen)} nodes are selected, and a name is of one; Group makes one of them")
        node = chosen[0]
        if node not in state.groups:
            rest = {n: label for n, label in state.names.items() if n != node}
            state.names = rest | ({node: name} if name else {})
            return
        self._check_group(name, but=node)
        with state.hold_trait_notifications():
            state.positions = {name if n == node else n: place for n, place in state.positions.items()}
            state.groups = {name if n == node else n: members for n, members in state.groups.items()}
        self.view.click(name)

    def group_selected(self) -> None:
        """Draw the selected nodes as one, by the name in the box; selected groups are merged into it."""
        state, name, chosen = self.state, self.name.value.strip(), self._selected()
        self._check_group(name)
        members = list(dict.fromkeys(node for c in chosen for node in state.groups.get(c, [c])))
        state.groups = {n: m for n, m in state.groups.items() if n not in chosen} | {name: members}
        self.view.click(name)

    def _check_group(self, name: str, but: str = "") -> None:
        if not name:
            raise WorkbenchError("a group needs a name: type one into the box Name")
        if name in self._nodes or (name in self.state.groups and name != but):
            raise WorkbenchError(
                f"{name!r} is the name of a {'node' if name in self._nodes else 'group'} already; give the group"
                " another one"
            )

    def ungroup_selected(self) -> None:
        """Draw the nodes of the selected groups apart again."""
        state, chosen = self.state, self._selected()
        if not (groups := [c for c in chosen if c in state.groups]):
            raise WorkbenchError(f"{', '.join(chosen)} is no group")
        with state.hold_trait_notifications():
            state.groups = {n: m for n, m in state.groups.items() if n not in groups}
            state.positions = {n: place for n, place in state.positions.items() if n not in groups}

    def pin_selected(self) -> None:
        """Keep the selected nodes shown and where they are; if all are pinned, let go of them."""
        self._pin(self._selected())

    def _pin(self, chosen: Sequence[str]) -> None:
        state = self.state
        held = [n for n in chosen if n in state.pins or n in state.positions]
        with state.hold_trait_notifications():
            if len(held) == len(chosen):
                state.pins = [n for n in state.pins if n not in held]
                state.positions = {n: place for n, place in state.positions.items() if n not in held}
            else:
                at = self._circuit.nodes.set_index("node")
                state.positions = state.positions | {
                    n: [float(at.x[n]), float(at.y[n])] for n in chosen if n not in held
                }
                state.pins = [*state.pins, *(n for n in chosen if n not in state.pins and n not in state.groups)]

    def _act(self) -> None:
        """A drag or a pin in the browser."""
        event, state = self.view.event, self.state
        if event["type"] == "pin":
            self._pin([event["node"]])
        else:
            with state.hold_trait_notifications():
                state.positions = state.positions | {event["node"]: [event["x"], event["y"]]}
                state.pins = [
                    *state.pins,
                    *(n for n in [event["node"]] if n not in state.pins and n not in state.groups),
                ]

    # ---- the file ----

    def save_state(self, path: Path | str | None = None) -> Path:
        """Write threshold, places, pins, groups and names to a small JSON file (schema: graph_file)."""
        state = self.state
        thresholds = {"score": state.threshold, "paths_only": state.paths_only}
        layout = {
            "thresholds": thresholds,
            "positions": dict(state.positions),
            "pins": list(state.pins),
            "groups": dict(state.groups),
            "names": dict(state.names),
        }
        written = graph_file.write(path or self._path(), self._graph(), layout)
        self._tell(f"saved in {written.name}")
        return written

    def load_state(self, path: Path | str | None = None) -> None:
        """Take over a file written by `save_state`; refused if it is malformed or of another graph, and nothing
        changes then.
        """
        found, other = graph_file.read(path or self._path(), self._graph(), self._nodes)
        state = self.state
        with state.hold_trait_notifications():
            state.names, state.groups, state.pins, state.positions = (
                found[key] for key in ("names", "groups", "pins", "positions")
            )
            state.threshold, state.paths_only = float(found["thresholds"]["score"]), found["thresholds"]["paths_only"]
        self._tell(other)

    def _path(self) -> Path:
        if not self.state.file.strip():
            raise WorkbenchError("give the file a name, such as circuit.json")
        return Path(self.state.file.strip())

    def _graph(self) -> dict[str, Any]:
        if self.state.result is None:
            raise WorkbenchError("there is no graph yet: press Run first")
        return graph_file.identity(self.state.result, self._nodes)

    # ---- what it shows ----

    def table(self) -> pd.DataFrame:
        """The edges on show, as drawn: writer, reader, score, its standard error, and how many edges a group's is
        the sum of.
        """
        return (
            pd.DataFrame()
            if self._circuit is None
            else self._circuit.edges[["writer", "reader", "score", "sem", "n_edges"]]
        )

    def figures(self) -> dict[str, go.Figure]:
        """The graph, and the faithfulness of it where it was tested."""
        state = self.state
        if self._circuit is None:
            return {}
        more = {} if state.faithful is None else {"faithfulness": views.faithfulness_bars(state.faithful)}
        return {"circuit": views.circuit_figure(self._circuit, state.result.provenance)} | more

    def _enable(self, _: object = None) -> None:
        busy = self.state.running or self.model is None
        self.start.disabled, self.faithful.disabled = busy, busy or self.state.result is None

    def _draw(self) -> None:
        state = self.state
        if state.result is None:
            return
        self._shown = views.edges_above(state.result, state.threshold, paths_only=state.paths_only)
        self._circuit = views.arrange(
            self._shown,
            state.result,
            names=state.names,
            groups=state.groups,
            pins=state.pins,
            positions=state.positions,
        )
        inside = f", {self._circuit.n_inside} of them inside groups" if self._circuit.n_inside else ""
        self.caption.value = (
            f"<p>{html.escape(self._shown.summary)}{inside}. Scores estimate the change of"
            f" {html.escape(self._circuit.metric)} in {html.escape(self._circuit.unit)} when an edge is restored.</p>"
        )
        self.view.show(
            self._circuit,
            f"Graph of {len(self._circuit.nodes)} nodes and {len(self._circuit.edges)} edges, {self._shown.summary}.",
        )
        if state.faithful is not None and not state.faithful.tables["edges"].equals(
            self._shown.edges[["writer", "reader"]]
        ):
            state.faithful = None
        self._say()
        self._draw_cell()

    def _say(self) -> None:
        dropped = [self._shown.dropped] if self._shown is not None and self._shown.dropped else []
        self.state.notice = ". ".join([*self._remarks, *dropped])

    def _tell(self, remark: str) -> None:
        """Show a remark until the next run or file."""
        self._remarks = [remark] if remark else []
        self._say()

    def _draw_cell(self) -> None:
        state = self.state
        if state.result is None or self._circuit is None:
            return
        unit = html.escape(self._circuit.unit)
        if state.edge:
            found = self._circuit.edges[
                [
                    views.edge_id(w, r) == state.edge
                    for w, r in zip(self._circuit.edges["writer"], self._circuit.edges["reader"], strict=True)
                ]
            ]
            self.cell.value = (
                "" if found.empty else f"<p><b>{html.escape(state.edge)}</b>: {_score(found.iloc[0])} {unit}</p>"
            )
            return
        if not state.selected:
            self.cell.value = ""
            return
        members = [node for chosen in state.selected for node in state.groups.get(chosen, [chosen])]
        edges = views.node_edges(state.result, members)
        shown = set(map(tuple, self._shown.edges[["writer", "reader"]].itertuples(index=False)))
        edges["shown"] = ["yes" if pair in shown else "" for pair in zip(edges["writer"], edges["reader"], strict=True)]
        called = ", ".join(f"{state.names[n]} ({n})" if n in state.names else n for n in state.selected)
        total = (
            f"; all edges out of it sum to {views.node_total(state.result, members):+.3g} {unit}"
            if (edges["direction"] == "out").any()
            else ""
        )
        rows = edges.to_html(index=False, border=0, justify="left", float_format=lambda x: f"{x:.3g}", na_rep="")
        self.cell.value = (
            f"<div style='line-height:1.35'><p><b>{html.escape(called)}</b>{total}. Its largest edges, shown or not"
            f" (rank 1 is the largest of all):</p>{rows}</div>"
        )

    def _draw_verdict(self) -> None:
        found = self.state.faithful
        if found is None:
            self.verdict.value = ""
            draw(self.drawing, None)
            return
        alone, left = found.data["faithfulness"].values, found.data["completeness"].values
        random = (
            f" Random circuits of as many edges: {', '.join(f'{v:.2f}' for v in alone[1:])} (seed"
            f" {found.data.attrs['seed']})."
            if len(alone) > 1
            else ""
        )
        cut = " Cancelled: only what was finished is shown." if found.partial else ""
        self.verdict.value = (
            f"<p>These {found.data.attrs['n_shown']} edges alone keep <b>{alone[0]:.2f}</b> of the behaviour (1: they"
            f" suffice); without them {left[0]:.2f} is left.{random}{cut}</p>"
        )
        draw(self.drawing, views.faithfulness_bars(found))


def _score(edge: pd.Series) -> str:
    spread = "" if np.isnan(edge["sem"]) else f" ± {edge['sem']:.3g}"
    return f"{edge['score']:+.4g}{spread}" + (f", the sum of {edge['n_edges']} edges" if edge["n_edges"] > 1 else "")
