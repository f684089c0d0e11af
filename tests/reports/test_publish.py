"""Publishing: static pictures of bounded size, nothing alive left, the same bytes the second time, nothing written
after an error.
"""

import base64
import io
import json

import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest
from browser import require_browser
from reports.test_documents import CLAIMS, FIGURE

from workbench.core.errors import WorkbenchError
from workbench.core.provenance import Provenance
from workbench.reports import images, publish, sections

new = nbformat.v4
PANEL = "import ipywidgets\nfrom IPython.display import display\nslider = ipywidgets.IntSlider()\nslider"


def notebook(tmp_path, *sources):
    cells = [new.new_markdown_cell("# Toy"), *(new.new_code_cell(s) for s in sources)]
    path = tmp_path / "toy.ipynb"
    nbformat.write(
        new.new_notebook(
            cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        ),
        path,
    )
    return path


@pytest.mark.browser
@pytest.mark.slow
def test_figures_become_pictures_and_nothing_stays_alive(tmp_path):
    require_browser()
    path = notebook(tmp_path, FIGURE, CLAIMS, PANEL, "import sys; print('noise', file=sys.stderr)")
    assert publish.publish(path) == ""
    first = path.read_bytes()
    book = json.loads(first)
    left = json.dumps([c["outputs"] for c in book["cells"] if c["cell_type"] == "code"])
    assert (
        not any(word in left for word in ("vnd.plotly", "widget-view", "noise")) and "widgets" not in book["metadata"]
    )
    picture = book["cells"][1]["outputs"][0]["data"]
    png = base64.b64decode(picture["image/png"])
    assert png[:4] == b"\x89PNG" and len(png) <= images.MAX_BYTES and "".join(picture["text/plain"]) == "a line"
    assert "one is less than two" in json.dumps(book["cells"][2]["outputs"]) and book["cells"][3]["outputs"] == []
    assert [c["execution_count"] for c in book["cells"] if c["cell_type"] == "code"] == [1, 2, 3, 4]
    assert publish.publish(path) == "" and path.read_bytes() == first


SHOWN = """
import plotly.graph_objects as go
from workbench.panels.panel import Panel
from workbench.views import theme
from workbench.core.provenance import Provenance
class Toy(Panel):
    title = "Toy panel"
    def figures(self):
        return {"line": theme.finish(go.Figure(go.Scatter(y=[1, 2])), "A line", "a line", Provenance.start("toy", {}, 3))}
toy = Toy()
toy.frame()
toy
"""  # noqa: E501


@pytest.mark.browser
@pytest.mark.slow
def test_a_panel_in_the_last_cell_leaves_its_picture_and_a_figure_where_it_came_from(tmp_path):
    require_browser()
    path = notebook(
        tmp_path,
        SHOWN,
        "toy.figures()['line']",
        "import time\nfor i in range(3):\n    print(i, flush=True)\n    time.sleep(0.3)",
    )
    assert publish.publish(path) == ""
    cells = json.loads(path.read_text())["cells"]
    assert [o["text"] for o in cells[3]["outputs"]] == [["0\n", "1\n", "2\n"]], (
        "what was printed bit by bit is one output"
    )
    assert len(cells) == 4 and [next(iter(o["data"])) for o in cells[1]["outputs"]] == ["text/html", "image/png"]
    assert cells[2]["outputs"][0]["metadata"] == {"provenance": "toy · no model · seed 3"}
    section = sections.notebook_section(sections.read_notebook(path), "toy")
    assert section.origins == ("toy · no model · seed 3",)
    first = path.read_bytes()
    assert publish.publish(path) == "" and path.read_bytes() == first, (
        "the panel has another identity in every kernel, and one in print"
    )


def test_a_failed_cell_leaves_the_file_as_it_was(tmp_path):
    path = notebook(tmp_path, "1 + 1", "raise KeyError('gone')")
    before = path.read_bytes()
    with pytest.raises(WorkbenchError, match=r"cell 2 failed with KeyError: 'gone'"):
        publish.publish(path)
    assert path.read_bytes() == before


def test_without_a_browser_the_rest_is_still_published(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "find_browser", lambda: None)
    path = notebook(tmp_path, FIGURE, CLAIMS)
    assert "needs Chromium" in publish.publish(path)
    book = json.loads(path.read_text())
    assert (
        "image/png" not in json.dumps(book)
        and "a line" in json.dumps(book["cells"][1]["outputs"])
        and "one is less" in json.dumps(book["cells"][2]["outputs"])
    )


@pytest.mark.browser
def test_a_picture_keeps_its_size_and_its_colours_in_a_palette():
    require_browser()
    from PIL import Image

    from workbench.views import theme

    lines = [
        go.Scatter(y=np.random.default_rng(i).normal(size=12), line={"color": c})
        for i, c in enumerate((theme.BLUE, theme.ORANGE, theme.GREEN, theme.RED))
    ]
    figure = theme.finish(go.Figure(lines), "Noise", "four lines", Provenance.start("toy", {}, 0))
    whole = images.pictures({"figure": figure}, scale=1.0)[0]["figure", "png"]
    content, problem = images.small_picture(figure)
    before, after = (Image.open(io.BytesIO(c)).convert("RGB") for c in (whole, content))
    assert (
        problem == ""
        and len(content) < 0.6 * len(whole)
        and after.size == before.size == (figure.layout.width, figure.layout.height)
    )
    assert np.abs(np.asarray(before, int) - np.asarray(after, int)).mean() < 1


def test_a_picture_too_large_is_made_smaller(monkeypatch):
    asked = []

    def fake(figures, forms=("png",), *, scale):
        asked.append(scale)
        return {("figure", "png"): b"x" * int(100_000 * scale)}, ""

    monkeypatch.setattr(images, "in_palette", lambda png: png)
    monkeypatch.setattr(images, "pictures", fake)
    content, problem = images.small_picture(go.Figure())
    assert len(content) == 40_000 and problem == "" and asked == list(images.SCALES)
    monkeypatch.setattr(images, "pictures", lambda *a, scale, **k: ({("figure", "png"): b"x" * 10**6}, ""))
    assert images.small_picture(go.Figure())[0] == b"" and "larger than 44 kB" in images.small_picture(go.Figure())[1]
