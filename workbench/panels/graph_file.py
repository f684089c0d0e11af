"""The file of a circuit graph: a small JSON of what a person did to it, checked when it is read, refused for another
graph.

    {"schema": "workbench/circuit-graph", "version": 1,
     "graph": {"model": "...", "weights": "...", "nodes": 11, "names": "sha256 of all node names", "scores": "sha256 of
     all scores"}, "thresholds": {"score": 0.1, "paths_only": false},
     "positions": {"a0.h1": [0.2, 0.4]}, "pins": ["a0.h1"], "groups": {"early heads": ["a0.h0", "a0.h2"]}, "names":
     {"a0.h1": "previous token"}}

Positions are from 0 to 1, right and up. The same weights and nodes make the same graph; other scores of them (another
prompt, another metric) may be laid out by the same file, and the reader is told.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.core import files
from workbench.core.errors import BadData
from workbench.core.result import Result

SCHEMA, VERSION = "workbench/circuit-graph", 1
FIELDS = ("schema", "version", "graph", "thresholds", "positions", "pins", "groups", "names")
MAX_BYTES = 5_000_000  # a layout of every node of the largest models is far smaller


def identity(result: Result, nodes: Sequence[str]) -> dict[str, Any]:
    """What tells one graph from another, and its scores from others."""
    model, scores = result.provenance.model, result.data["score"].values
    return {
        "model": str(model.get("name", "")),
        "weights": str(model.get("weights", "")),
        "nodes": len(nodes),
        "names": hashlib.sha256("\n".join(nodes).encode()).hexdigest()[:16],
        "scores": hashlib.sha256(scores.tobytes()).hexdigest()[:16],
    }


def write(path: Path | str, graph: dict[str, Any], layout: dict[str, Any]) -> Path:
    """Write a layout (thresholds, positions, pins, groups, names) of this graph.

    Raises:
        BadData: if `path` holds something that is no such file; only files of this kind are replaced.
    """
    path = Path(path)
    if path.exists():
        _parsed(path)
    whole = {"schema": SCHEMA, "version": VERSION, "graph": graph} | layout
    _check(whole, path.name)
    return files.write_text(path, json.dumps(whole, indent=1))


def read(path: Path | str, graph: dict[str, Any], nodes: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The layout in a file, and a sentence if it was made of other scores of this graph, else "".

    Raises:
        BadData: if there is no such file, if it is malformed (saying which field, what was found and what should be
            there), or if it is of another graph.
    """
    path = Path(path)
    found = _parsed(path)
    _check(found, path.name)
    theirs = found["graph"]
    if different := [
        f"{what} {theirs[key]} and not {graph[key]}"
        for key, what in (("weights", "weights"), ("nodes", "number of nodes"), ("names", "node names"))
        if theirs[key] != graph[key]
    ]:
        raise BadData(
            f"{path.name} is of another graph: {theirs['model'] or 'a model without name'} ({'; '.join(different)})."
            " Load it beside the model it was made of"
        )
    known = set(nodes)
    listed = [
        *found["pins"],
        *(n for members in found["groups"].values() for n in members),
        *(n for n in found["positions"] if n not in found["groups"]),
        *found["names"],
    ]
    if strange := sorted({n for n in listed if n not in known}):
        raise BadData(
            f"{path.name} names {', '.join(strange[:4])}, which this graph does not have; its nodes are like"
            f" {', '.join(nodes[:3])}"
        )
    if clash := sorted(known & set(found["groups"])):
        raise BadData(f"{path.name}: groups has {clash[0]!r}, which is the name of a node; give the group another name")
    other = (
        ""
        if theirs["scores"] == graph["scores"]
        else (
            f"{path.name} was made of other scores of this model (another prompt, metric or method): names and places"
            " are taken over, and its threshold may keep other edges"
        )
    )
    return {key: found[key] for key in ("thresholds", "positions", "pins", "groups", "names")}, other


def _parsed(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadData(
                f"{path.name} has {path.stat().st_size:,} bytes, which is no file of a circuit graph (at most"
                f" {MAX_BYTES:,})"
            )
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as trouble:
        raise BadData(
            f"{path.name} cannot be read ({trouble.strerror or type(trouble).__name__}); give a file written by Save"
        ) from None
    except ValueError as trouble:
        raise BadData(f"{path.name} is no JSON ({trouble}); give a file written by Save") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        what = repr(found.get("schema")) if isinstance(found, dict) else f"a {type(found).__name__}"
        raise BadData(f"{path.name} is no file of a circuit graph: its schema is {what} and should be {SCHEMA!r}")
    return found


# ---- the schema ----


def _check(found: dict[str, Any], name: str) -> None:
    """Raises BadData at the first field that is not as it should be."""

    def want(holds: bool, where: str, should: str, value: Any) -> None:
        if not holds:
            raise BadData(f"{name}: {where} should be {should}, and is {json.dumps(value, default=str)[:80]}")

    want(
        found.get("version") == VERSION and not isinstance(found.get("version"), bool),
        "version",
        f"{VERSION} (this workbench reads no other)",
        found.get("version"),
    )
    missing, unknown = [f for f in FIELDS if f not in found], [f for f in found if f not in FIELDS]
    if missing or unknown:
        raise BadData(
            f"{name}: {'lacks ' + ', '.join(missing) if missing else 'has unknown fields ' + ', '.join(unknown)}; the"
            f" fields are {', '.join(FIELDS)}"
        )
    graph = found["graph"]
    want(
        isinstance(graph, dict) and set(graph) == {"model", "weights", "nodes", "names", "scores"},
        "graph",
        "an object of model, weights, nodes, names and scores",
        graph,
    )
    for key in graph:
        want(
            _is_count(graph[key]) if key == "nodes" else isinstance(graph[key], str),
            f"graph.{key}",
            "a count" if key == "nodes" else "a text",
            graph[key],
        )
    at = found["thresholds"]
    want(
        isinstance(at, dict) and set(at) == {"score", "paths_only"},
        "thresholds",
        "an object of score and paths_only",
        at,
    )
    want(_is_number(at["score"]) and at["score"] >= 0, "thresholds.score", "a number from 0", at["score"])
    want(isinstance(at["paths_only"], bool), "thresholds.paths_only", "true or false", at["paths_only"])
    for field in ("positions", "groups", "names"):
        want(isinstance(found[field], dict), field, "an object", found[field])
    for node, place in found["positions"].items():
        want(
            isinstance(place, list)
            and len(place) == 2
            and all(map(_is_number, place))
            and all(0 <= x <= 1 for x in place),
            f"positions[{node!r}]",
            "two numbers from 0 to 1",
            place,
        )
    want(_is_texts(found["pins"]), "pins", "a list of node names, each once", found["pins"])
    seen: dict[str, str] = {}
    for group, members in found["groups"].items():
        want(
            bool(group.strip()) and _is_texts(members) and bool(members),
            f"groups[{group!r}]",
            "a list of one or more node names, each once",
            members,
        )
        for node in members:
            want(
                node not in seen,
                f"groups[{group!r}]",
                f"without {node!r}, which is in group {seen.get(node)!r} already",
                members,
            )
            seen[node] = group
    for node, label in found["names"].items():
        want(isinstance(label, str) and bool(label.strip()), f"names[{node!r}]", "a text", label)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) and v for v in value) and len(set(value)) == len(value)
