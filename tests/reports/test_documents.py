"""Review copies: nothing dropped, nothing asked of the network, figures painted, failures shown - as page, slides and PDF, in a real browser."""

import re
import subprocess

import nbformat
import pytest
from browser import page

from workbench.core.claims import read_verdicts
from workbench.core.errors import BadData
from workbench.core.progress import Cancelled, Progress
from workbench.reports import document, sections

FIGURE = """
import plotly.graph_objects as go, plotly.io
plotly.io.renderers.default = "plotly_mimetype"
figure = go.Figure(go.Scatter(x=[1, 2], y=[3, 4]), layout={"title": "A line </script>", "width": 600, "height": 300, "meta": {"alt": "a line", "provenance": "toy - seed 0"}})
figure
"""
CLAIMS = 'print("claim: one is less than two\\n    -> holds\\ncontrol: two is less than one\\n    -> fails, as it must\\nclaim: needs a GPU\\n    -> not testable at this scale\\n")'


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A notebook with a formula, a picture beside it, a figure, claims, a failing cell and one after it."""
    new = nbformat.v4
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "dot.png").write_bytes(bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001000000010806000000 1f15c4890000000d49444154789c6360f8cf5000000301010018dd8db00000000049454e44ae426082".replace(" ", "")))
    cells = [
        new.new_markdown_cell("# A toy & analysis\n\nWith $x^2$ and `$HOME` and 5 $ and 6 $.\n\n![dot](dot.png)"),
        new.new_code_cell(FIGURE),
        new.new_markdown_cell("## Claims"),
        new.new_code_cell(CLAIMS, metadata={"tags": ["nbval-check-output"]}),
        new.new_code_cell("raise ValueError('on <purpose>')"),
        new.new_code_cell("print('after the failure')"),
    ]
    target = folder / "toy.ipynb"
    nbformat.write(new.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}), target)
    return target


@pytest.fixture(scope="module")
def section(path):
    before = path.read_bytes()
    found = sections.notebook_section(sections.execute(path), "toy", path.parent)
    assert path.read_bytes() == before, "running a notebook for a report must not touch its file"
    return found


def test_a_notebook_becomes_a_section_with_everything_in_it(section):
    assert section.title == "A toy & analysis" and section.n_failed == 1 and section.origins == ("toy - seed 0",)
    assert [b.kind for b in section.blocks] == ["text", "code", "figure", "text", "code", "output", "code", "failed", "code", "output"]
    assert sections.tally(section.verdicts) == {"claims": 2, "hold": 1, "do not hold": 0, "not testable": 1, "controls": 1, "controls fail as they must": 1, "controls hold": 0}
    text = section.blocks[0].html
    assert "<math" in text and "x^2" not in re.sub(r"<annotation.*?</annotation>", "", text) and "$HOME" in text and "5 $ and 6 $" in text
    assert 'src="data:image/png;base64,' in text
    assert "after the failure" in section.blocks[-1].html and "on &lt;purpose&gt;" in section.blocks[7].html


def test_the_front_page_is_as_loud_about_a_control_that_holds():
    def one(stem, *controls):
        return sections.Section(stem, stem, (), tuple({"kind": "control", "text": "x", "verdict": v} for v in controls))

    fails, holds, open_ = "fails, as it must", "CONTROL HOLDS: the claim beside it proves nothing", "not testable at this scale"
    page = document.page_html([one("a", fails, open_), one("b", fails, holds, open_), one("c", open_)])
    assert re.findall(r"<td class=(\w*)>(\d of \d[^<]*)</td>", page) == [("ok", "1 of 2"), ("bad", "1 of 3; 1 hold"), ("", "0 of 1")]


def test_what_a_setup_cell_says_is_no_slide():
    new = nbformat.v4
    cell = new.new_code_cell("1", metadata={"tags": ["setup"]}, outputs=[new.new_output("stream", text="versions")], execution_count=1)
    section = sections.notebook_section(new.new_notebook(cells=[new.new_markdown_cell("# T"), cell]), "toy")
    assert "versions" in document.page_html([section]) and not any("versions" in piece for slide in document._slides(section) for piece in slide)


def test_verdicts_are_read_back_as_they_were_written():
    from workbench.core.claims import Claim, check

    claims = [Claim(f"n{i}", "here", lambda _, v=v: v, "<", 2.0, "known", kind=kind) for i, (v, kind) in enumerate([(1.0, "claim"), (3.0, "claim"), (float("nan"), "claim"), (3.0, "control"), (1.0, "control")])]
    table = check(None, claims)
    assert read_verdicts(table.verdicts()) == [{"kind": line.claim.kind, "text": line.claim.text, "verdict": line.words} for line in table.lines]


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_paints_offline_and_asks_for_nothing(section, tmp_path, scheme):
    target = document.write_html(tmp_path / "report.html", [section, section])
    asked, errors = [], []
    with page(offline=True, color_scheme=scheme) as tab:
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(target.as_uri())
        tab.wait_for_selector("body[data-ready]", state="attached")
        assert asked == [target.as_uri()] and errors == []
        assert [tab.locator("section").nth(i).locator("path.js-line").count() for i in (0, 1)] == [1, 1]  # both copies are drawn
        assert tab.locator("text=1 of 2").count() == 2 and tab.locator("text=1 failed").count() == 2  # the front page
        assert tab.locator("text=This cell failed: ValueError").first.is_visible()
        assert not tab.locator(".highlight").first.is_visible()
        tab.locator("details.code > summary").first.click()
        assert tab.locator(".highlight").first.is_visible()


def test_verdicts_printed_before_a_claims_table_are_folded_away_and_no_slide():
    new = nbformat.v4
    said = "claim: one is less than two\n    -> holds\n"
    printed = new.new_code_cell("print", metadata={"tags": ["nbval-check-output"]}, outputs=[new.new_output("stream", text=said)], execution_count=1)
    table = new.new_code_cell("table", outputs=[new.new_output("execute_result", data={"text/html": "<table><tr><th>verdict</th></tr></table>", "text/plain": "t"})], execution_count=2)
    alone, both = (sections.notebook_section(new.new_notebook(cells=cells), "toy") for cells in ([printed], [printed, table]))
    assert [b.kind for b in alone.blocks] == ["code", "output"] and [b.kind for b in both.blocks] == ["code", "aside", "code", "output"]
    assert both.blocks[1].html.startswith("<details>") and "one is less than two" in both.blocks[1].html
    assert alone.verdicts == both.verdicts == ({"kind": "claim", "text": "one is less than two", "verdict": "holds"},)


@pytest.mark.browser
def test_slides_turn_offline(section, tmp_path):
    target = document.write_slides(tmp_path / "slides.html", [section])
    asked, errors = [], []
    with page(offline=True) as tab:
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(target.as_uri())
        tab.wait_for_selector("body[data-ready]", state="attached")
        n = tab.evaluate("Reveal.getTotalSlides()")
        seen = []
        for i in range(n):
            tab.evaluate(f"Reveal.slide({i})")
            seen.append(tab.locator("section.present").inner_text())
        assert asked == [target.as_uri()] and errors == []
        assert "A toy & analysis" in seen[0] and tab.locator("path.js-line").count() == 1
        assert any("one is less than two" in text for text in seen) and any("This cell failed" in text for text in seen)


@pytest.mark.browser
@pytest.mark.slow
def test_the_pdf_has_the_text_and_the_pages(section, tmp_path):
    target = document.write_pdf(tmp_path / "report.pdf", [section, section])
    content = target.read_bytes()
    assert content.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", content)) >= 3  # front page and two sections
    assert list(tmp_path.iterdir()) == [target]


def test_slides_without_reveal_say_what_to_install(section, monkeypatch):
    monkeypatch.setattr(document.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install .*slides"):
        document.slides_html([section])


def test_a_browser_that_prints_nothing_is_said(section, tmp_path, monkeypatch):
    monkeypatch.setattr(document, "find_browser", lambda: "/bin/true")
    with pytest.raises(Exception, match="printed nothing"):
        document.write_pdf(tmp_path / "x.pdf", [section])
    monkeypatch.setattr(document, "find_browser", lambda: None)
    with pytest.raises(Exception, match="a PDF needs Chromium"):
        document.write_pdf(tmp_path / "x.pdf", [section])
    monkeypatch.setattr(document, "find_browser", lambda: "/bin/sleep")
    monkeypatch.setattr(document.subprocess, "run", lambda *a, **k: (_ for _ in ()).throw(subprocess.TimeoutExpired("x", 1)))
    with pytest.raises(Exception, match="did not print"):
        document.write_pdf(tmp_path / "x.pdf", [section])
    assert not (tmp_path / "x.pdf").exists()


def test_files_that_are_no_notebook(tmp_path):
    (tmp_path / "bad.ipynb").write_text("not json")
    with pytest.raises(BadData, match=r"bad\.ipynb is no Jupyter notebook"):
        sections.execute(tmp_path / "bad.ipynb")
    with pytest.raises(BadData, match="cannot be read"):
        sections.read_notebook(tmp_path / "none.ipynb")


class _StopsAtOnce(Progress):
    def show(self):
        self.cancel()


def test_running_a_notebook_can_be_cancelled(path):
    with pytest.raises(Cancelled):
        sections.execute(path, progress=_StopsAtOnce())
