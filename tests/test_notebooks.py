"""Every notebook can be checked by nbval and read by a stranger: a stored claims cell, no widget state, no error, no
path.
"""

import copy
import json
import re
from pathlib import Path

import pytest

from workbench.core.catalogue import FAMILIES

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(?:home|root|tmp|work|Users)/")
REMOTE_SCRIPT = re.compile(r"<script[^>]*\bsrc\s*=\s*[\"']?\s*(?:https?:)?//", re.IGNORECASE)
MAX_BYTES, MAX_LINES = 1_000_000, 25


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def text(value) -> str:
    """A notebook's text, which is a string, a list of strings, or (in an output's data) JSON."""
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return "".join(value)
    return value if isinstance(value, str) else json.dumps(value)


def shown(cell: dict) -> str:
    """All that a cell's stored outputs show, of every kind."""
    parts = [output.get("text", "") for output in cell["outputs"]]
    parts += [value for output in cell["outputs"] for value in output.get("data", {}).values()]
    parts += [output.get("traceback", []) for output in cell["outputs"]]
    return "\n".join(text(part) for part in parts)


def problems(notebook: dict, n_bytes: int, is_paper: bool) -> list[str]:
    """What is wrong with a notebook, a line each."""
    code = [(i, cell) for i, cell in enumerate(notebook["cells"]) if cell["cell_type"] == "code"]
    checked = [(i, cell) for i, cell in code if "nbval-check-output" in tags(cell)]
    found = [] if checked else ["no cell is tagged nbval-check-output, so nbval-lax would only prove that it runs"]
    found += [
        f"cell {i}: checked, but has no stored execution count and output"
        for i, cell in checked
        if cell["execution_count"] is None or not cell["outputs"]
    ]
    if "widgets" in notebook["metadata"]:
        found.append("widget state is stored")
    if n_bytes >= MAX_BYTES:
        found.append(f"{n_bytes} bytes")
    if notebook["metadata"].get("kernelspec", {}).get("name") != "python3":
        found.append("the kernel is not python3")
    n_parameters = sum("parameters" in tags(cell) for _, cell in code)
    if is_paper and n_parameters != 1:
        found.append(f"{n_parameters} cells are tagged parameters")
    for i, cell in code:
        if any(output["output_type"] == "error" for output in cell["outputs"]):
            found.append(f"cell {i}: an error is stored")
        if MACHINE_PATH.search(shown(cell)):
            found.append(f"cell {i}: a path of some machine is stored")
        if REMOTE_SCRIPT.search(shown(cell)):
            found.append(f"cell {i}: loads a script from the network")
        if len(text(cell["source"]).splitlines()) > MAX_LINES:
            found.append(f"cell {i}: more than {MAX_LINES} lines")
    return found


def good() -> dict:
    """A notebook with nothing wrong."""

    def cell(tag: str, source: str) -> dict:
        output = {
            "output_type": "execute_result",
            "data": {"text/plain": ["claim: holds"]},
            "metadata": {},
            "execution_count": 1,
        }
        return {
            "cell_type": "code",
            "metadata": {"tags": [tag]},
            "source": [source],
            "execution_count": 1,
            "outputs": [output],
        }

    markdown = {"cell_type": "markdown", "metadata": {}, "source": ["# Title"]}
    return {
        "cells": [markdown, cell("parameters", "spec = 1"), cell("nbval-check-output", "wb.check()")],
        "metadata": {"kernelspec": {"name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def test_there_are_notebooks():
    assert ROOT / "notebooks" / "tour.ipynb" in NOTEBOOKS and any(p.parent.name in FAMILIES for p in NOTEBOOKS)


def test_notebooks_lie_where_the_plan_says():
    assert {p.relative_to(ROOT / "notebooks").parent.as_posix() for p in NOTEBOOKS} <= {".", "guides", *FAMILIES}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT / "notebooks").as_posix())
def test_a_notebook_is_checkable_and_clean(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert problems(notebook, path.stat().st_size, path.parent.name in FAMILIES) == []


def test_a_good_notebook_has_no_problems():
    assert problems(good(), 10_000, is_paper=True) == []


def _untag(nb):
    nb["cells"][2]["metadata"]["tags"] = []


def _stream(content):
    return lambda nb: nb["cells"][1]["outputs"].append({"output_type": "stream", "name": "stderr", "text": content})


def _html(content):
    return lambda nb: nb["cells"][1]["outputs"].append(
        {"output_type": "display_data", "data": {"text/html": content}, "metadata": {}}
    )


def _json(content):
    return lambda nb: nb["cells"][1]["outputs"].append(
        {"output_type": "display_data", "data": {"application/json": content}, "metadata": {}}
    )


PLANTED = {
    "no checked cell": (_untag, "no cell is tagged nbval-check-output"),
    "no count": (lambda nb: nb["cells"][2].update(execution_count=None), "cell 2: checked, but"),
    "no output": (lambda nb: nb["cells"][2].update(outputs=[]), "cell 2: checked, but"),
    "widgets": (lambda nb: nb["metadata"].update(widgets={}), "widget state"),
    "another kernel": (lambda nb: nb["metadata"]["kernelspec"].update(name="my-env"), "the kernel is not python3"),
    "no kernel": (lambda nb: nb["metadata"].clear(), "the kernel is not python3"),
    "no parameters": (lambda nb: nb["cells"][1]["metadata"].clear(), "0 cells are tagged parameters"),
    "two parameters": (lambda nb: nb["cells"].append(copy.deepcopy(nb["cells"][1])), "2 cells are tagged parameters"),
    "error": (
        lambda nb: nb["cells"][1]["outputs"].append(
            {"output_type": "error", "ename": "E", "evalue": "", "traceback": []}
        ),
        "cell 1: an error is stored",
    ),
    "path in a stream": (_stream(["warn\n", "/tmp/ipykernel_1/2.py:3: W"]), "cell 1: a path"),
    "path in html": (_html("<a href='/home/ann/x'>x</a>"), "cell 1: a path"),
    "path in json": (_json({"layout": {"title": "/root/x"}}), "cell 1: a path"),
    "remote script": (
        _html(["<script charset='utf-8' ", 'src="https://cdn.plot.ly/p.js"></script>']),
        "cell 1: loads a script",
    ),
    "unquoted remote script": (_html("<SCRIPT src=http://x/p.js>"), "cell 1: loads a script"),
    "long cell": (
        lambda nb: nb["cells"][1].update(source=["x = 1\n"] * (MAX_LINES + 1)),
        f"cell 1: more than {MAX_LINES} lines",
    ),
}


@pytest.mark.parametrize(("plant", "said"), PLANTED.values(), ids=PLANTED)
def test_a_planted_problem_is_found_and_nothing_else(plant, said):
    notebook = good()
    plant(notebook)
    found = problems(notebook, 10_000, is_paper=True)
    assert len(found) == 1 and found[0].startswith(said)


def test_size_counts_and_only_papers_need_parameters():
    assert problems(good(), MAX_BYTES, is_paper=True) == [f"{MAX_BYTES} bytes"]
    guide = good()
    del guide["cells"][1]
    assert problems(guide, 10_000, is_paper=False) == [] and len(problems(guide, 10_000, is_paper=True)) == 1
