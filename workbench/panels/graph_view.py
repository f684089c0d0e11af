"""The drawn graph of panels: nodes to click, drag and pin, edges to click, as one small inline anywidget of SVG.

Like the other drawn widgets it holds what to draw and reports what a person did; what is drawn, and how much of it, is
decided in Python (views/circuit_graph). No network: the script is in the widget. Cost: some 150 bytes a node or edge.
"""

import anywidget
import traitlets

from workbench.views.circuit_graph import Circuit, edge_id

from .drawn import script

ROW_HEIGHT, LEAST, MOST = 78, 260, 1100  # pixels


class GraphView(anywidget.AnyWidget):
    """`selected`: nodes clicked last, several with Shift or Ctrl. `edge`: the edge clicked last, "" for none.

    `event`: what was done with a node, {"type": "move", "node", "x", "y", "n"} or {"type": "pin", "node", "n"}; n
    counts.
    """

    _esm = traitlets.Unicode(script("graph")).tag(sync=True)
    nodes = traitlets.List().tag(sync=True)
    edges = traitlets.List().tag(sync=True)
    links = traitlets.List().tag(sync=True)
    unit = traitlets.Unicode().tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)
    height = traitlets.Int(LEAST).tag(sync=True)
    selected = traitlets.List().tag(sync=True)
    edge = traitlets.Unicode().tag(sync=True)
    event = traitlets.Dict().tag(sync=True)
    version = traitlets.Int(0).tag(sync=True)

    def show(self, circuit: Circuit, alt: str) -> None:
        """Draw a circuit; what was selected and is gone is selected no more."""
        top = float(circuit.edges["score"].abs().max()) if len(circuit.edges) else 1.0
        with self.hold_sync():
            self.nodes = [
                {
                    "id": n.node,
                    "label": n.label,
                    "kind": n.kind,
                    "x": round(n.x, 4),
                    "y": round(n.y, 4),
                    "pinned": bool(n.is_pinned),
                    "in": n.in_score,
                    "out": n.out_score,
                    "n_in": n.n_in,
                    "n_out": n.n_out,
                }
                for n in circuit.nodes.itertuples()
            ]
            self.edges = [
                {
                    "id": edge_id(e.writer, e.reader),
                    "source": e.source,
                    "target": e.target,
                    "port": e.port,
                    "score": e.score,
                    "sem": e.sem if e.sem == e.sem else None,
                    "n": int(e.n_edges),
                    "width": round(abs(e.score) / (top or 1.0), 4),
                }
                for e in circuit.edges.itertuples()
            ]
            self.links = [list(pair) for pair in circuit.links]
            self.unit, self.alt, self.height = (
                circuit.unit,
                alt,
                max(LEAST, min(MOST, 60 + ROW_HEIGHT * circuit.n_rows)),
            )
            known = {n["id"] for n in self.nodes}
            self.selected = [n for n in self.selected if n in known]
            if self.edge not in {e["id"] for e in self.edges}:
                self.edge = ""
            self.version += 1

    def click(self, *nodes: str) -> None:
        """What clicks on nodes in the browser do; for scripts and tests."""
        with self.hold_sync():
            self.selected, self.edge = list(nodes), ""

    def click_edge(self, writer: str, reader: str) -> None:
        """What a click on an edge does."""
        with self.hold_sync():
            self.selected, self.edge = [], edge_id(writer, reader)

    def drag(self, node: str, x: float, y: float) -> None:
        """What dragging a node to (x, y), 0 to 1 right and up, does."""
        self._tell({"type": "move", "node": node, "x": x, "y": y})

    def press_pin(self, node: str) -> None:
        """What the key P on a node does."""
        self._tell({"type": "pin", "node": node})

    def _tell(self, event: dict) -> None:
        self.event = event | {"n": self.event.get("n", 0) + 1}
