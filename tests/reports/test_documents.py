"""Review copies: nothing dropped, nothing asked of the network, figures painted, failures shown - as page, slides
and PDF, in a real browser.
"""

import re
import subprocess
import threading
import time
from pathlib import Path

import nbformat
import pytest
from browser import page

from workbench.core.claims import read_verdicts, said, tally
from workbench.core.errors import BadData
from workbench.core.progress import Cancelled, Progress
from workbench.reports import document, sections, slides

FIGURE = """
import plotly.graph_objects as go, plotly.io
plotly.io.renderers.default = "plotly_mimetype"
figure = go.Figure(go.Scatter(x=[1, 2], y=[3, 4]), layout={"title": "A line </script>", "width": 600, "height": 300, "meta": {"alt": "a line", "provenance": "toy - seed 0"}})
figure
"""  # noqa: E501
CLAIMS = (
    'print("claim: one is less than two\\n    -> holds\\ncontrol: two is less than one\\n    -> fails, as it'
    ' must\\nclaim: needs a GPU\\n    -> not testable at this scale\\n")'
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A notebook with a formula, a picture beside it, a figure, claims, a failing cell and one after it."""
    new = nbformat.v4
    folder = tmp_path_factory.mktemp("notebooks")
    (folder / "dot.png").write_bytes(
        bytes.fromhex(
            "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
            " 1f15c4890000000d49444154789c6360f8cf5000000301010018dd8db00000000049454e44ae426082".replace(" ", "")
        )
    )
    cells = [
        new.new_markdown_cell("# A toy & analysis\n\nWith $x^2$ and `$HOME` and 5 $ and 6 $.\n\n![dot](dot.png)"),
        new.new_code_cell(FIGURE),
        new.new_markdown_cell("## Claims"),
        new.new_code_cell(CLAIMS, metadata={"tags": ["nbval-check-output"]}),
        new.new_code_cell("raise ValueError('on <purpose>')"),
        new.new_code_cell("print('after the failure')"),
    ]
    target = folder / "toy.ipynb"
    nbformat.write(
        new.new_notebook(
            cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        ),
        target,
    )
    return target


@pytest.fixture(scope="module")
def section(path):
    before = path.read_bytes()
    found = sections.notebook_section(sections.execute(path), "toy", path.parent)
    assert path.read_bytes() == before, "running a notebook for a report must not touch its file"
    return found


def test_a_notebook_becomes_a_section_with_everything_in_it(section):
    assert section.title == "A toy & analysis" and section.n_failed == 1 and section.origins == ("toy - seed 0",)
    assert [b.kind for b in section.blocks] == [
        "text",
        "code",
        "figure",
        "text",
        "code",
        "output",
        "code",
        "failed",
        "code",
        "output",
    ]
    assert said(tally(section.verdicts)) == "1 of 2 claims hold (1 not testable); 1 of 1 controls fail as they must"
    text = section.blocks[0].html
    assert (
        "<math" in text
        and "x^2" not in re.sub(r"<annotation.*?</annotation>", "", text)
        and "$HOME" in text
        and "5 $ and 6 $" in text
    )
    assert 'src="data:image/png;base64,' in text
    assert "after the failure" in section.blocks[-1].html and "on &lt;purpose&gt;" in section.blocks[7].html


def test_the_front_page_is_as_loud_about_a_control_that_holds():
    def one(stem, *controls):
        return sections.Section(stem, stem, (), tuple({"kind": "control", "text": "x", "verdict": v} for v in controls))

    fails, holds, open_ = (
        "fails, as it must",
        "CONTROL HOLDS: the claim beside it proves nothing",
        "not testable at this scale",
    )
    page = document.page_html([one("a", fails, open_), one("b", fails, holds, open_), one("c", open_)])
    assert re.findall(r'<td class="(\w*)">(\d of \d[^<]*)</td>', page) == [
        ("ok", "1 of 2"),
        ("bad", "1 of 3; 1 hold"),
        ("", "0 of 1"),
    ]


def test_what_a_setup_cell_says_is_no_slide():
    new = nbformat.v4
    cell = new.new_code_cell(
        "1", metadata={"tags": ["setup"]}, outputs=[new.new_output("stream", text="versions")], execution_count=1
    )
    section = sections.notebook_section(new.new_notebook(cells=[new.new_markdown_cell("# T"), cell]), "toy")
    assert "versions" in document.page_html([section]) and not any(
        "versions" in piece for slide in slides._slides(section) for piece in slide
    )


def test_verdicts_are_read_back_as_they_were_written():
    from workbench.core.claims import Claim, check

    claims = [
        Claim(f"n{i}", "here", lambda _, v=v: v, "<", 2.0, "known", kind=kind)
        for i, (v, kind) in enumerate(
            [(1.0, "claim"), (3.0, "claim"), (float("nan"), "claim"), (3.0, "control"), (1.0, "control")]
        )
    ]
    table = check(None, claims)
    assert read_verdicts(table.verdicts()) == [
        {"kind": line.claim.kind, "text": line.claim.text, "verdict": line.words} for line in table.lines
    ]


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
        assert [tab.locator("section").nth(i).locator("path.js-line").count() for i in (0, 1)] == [
            1,
            1,
        ]  # both copies are drawn
        assert tab.locator("text=1 of 2").count() == 2 and tab.locator("text=1 failed").count() == 2  # the front page
        assert tab.locator("text=This cell failed: ValueError").first.is_visible()
        assert not tab.locator(".highlight").first.is_visible()
        tab.locator("details.code > summary").first.click()
        assert tab.locator(".highlight").first.is_visible()


def test_verdicts_printed_before_a_claims_table_are_folded_away_and_no_slide():
    new = nbformat.v4
    said = "claim: one is less than two\n    -> holds\n"
    printed = new.new_code_cell(
        "print",
        metadata={"tags": ["nbval-check-output"]},
        outputs=[new.new_output("stream", text=said)],
        execution_count=1,
    )
    table = new.new_code_cell(
        "table",
        outputs=[
            new.new_output(
                "execute_result", data={"text/html": "<table><tr><th>verdict</th></tr></table>", "text/plain": "t"}
            )
        ],
        execution_count=2,
    )
    alone, both = (
        sections.notebook_section(new.new_notebook(cells=cells), "toy") for cells in ([printed], [printed, table])
    )
    assert [b.kind for b in alone.blocks] == ["code", "output"] and [b.kind for b in both.blocks] == [
        "code",
        "aside",
        "code",
        "output",
    ]
    assert both.blocks[1].html.startswith("<details>") and "one is less than two" in both.blocks[1].html
    assert alone.verdicts == both.verdicts == ({"kind": "claim", "text": "one is less than two", "verdict": "holds"},)


@pytest.mark.browser
def test_slides_turn_offline(section, tmp_path):
    target = slides.write_slides(tmp_path / "slides.html", [section])
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
    assert (
        content.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", content)) >= 3
    )  # front page and two sections
    assert list(tmp_path.iterdir()) == [target]


def test_long_tables_and_prints_go_on_over_several_slides_and_pictures_have_their_own():
    rows = [f"<tr><td>claim</td><td>statement {i} {'of many words ' * (i % 12)}</td></tr>" for i in range(70)]
    table = (
        f"<div class=out><table><thead><tr><th>kind</th></tr></thead><tbody>{''.join(rows)}</tbody></table><p>8 of 70"
        " hold</p></div>"
    )
    short = "<div class=out><table><thead></thead><tbody><tr><td>1</td></tr></tbody></table></div>"
    blocks = [
        sections.Block("text", "<h2>Notice</h2><p>that</p>\n<p><img src='x' alt='y'></p>\n<p>after it</p>", 2),
        sections.Block("output", table), sections.Block("output", short),
        sections.Block("output", "<pre class='stdout'>" + "".join(f"line {i}\n" for i in range(60)) + "</pre>"),
    ]  # fmt: skip
    made = slides._slides(sections.Section("toy", "toy", tuple(blocks)))
    assert [slide[0][:17] for slide in made[:3]] == [
        "<div class=text><",
        "<div class=figure",
        "<div class=text>\n",
    ] and len(made[1]) == 1
    with_heading = slides._slides(
        sections.Section(
            "toy", "toy", (sections.Block("text", "<h2>Every arm</h2>\n", 2), sections.Block("figure", "<img src='x'>"))
        )
    )
    assert with_heading == [
        ["<div class=text><h2>Every arm</h2>\n</div>", "<div class='figure titled'><img src='x'></div>"]
    ]
    tables = [piece for slide in made for piece in slide if "<th>kind</th>" in piece]
    assert len(tables) > 2 and all(
        piece.count("<div") == piece.count("</div>") and "</table>" in piece for piece in tables
    )
    assert re.findall(r"statement (\d+)", "".join(tables)) == [str(i) for i in range(70)], (
        "no row is lost, none is said twice"
    )
    assert ["8 of 70 hold" in piece for piece in tables] == [False] * (len(tables) - 1) + [True], (
        "what stands under the table stays under its end"
    )
    prints = [piece for slide in made for piece in slide if "<pre" in piece]
    assert len(prints) == 3 and re.findall(r"line (\d+)", "".join(prints)) == [str(i) for i in range(60)]
    assert sum(short in piece for slide in made for piece in slide) == 1


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize(
    "stem",
    [
        "attention/attention_sinks",
        "memorization/layernorm_memorization",
        "safety/safety_units",
        "backdoors/backdoor_signatures",
        "misalignment/em_subspaces",
    ],
)
def test_slides_of_a_paper_fit_the_screen(tmp_path, stem):
    notebook = Path(__file__).parents[2] / "notebooks" / f"{stem}.ipynb"
    target = slides.write_slides(
        tmp_path / "slides.html",
        [sections.notebook_section(sections.read_notebook(notebook), "paper", notebook.parent)],
    )
    with page(offline=True) as tab:
        tab.set_viewport_size({"width": 1300, "height": 900})
        tab.goto(target.as_uri())
        tab.wait_for_selector("body[data-ready]", timeout=60_000)
        n = tab.evaluate("document.querySelectorAll('.slides > section').length")
        too_high = []
        for i in range(n):
            tab.evaluate(f"Reveal.slide({i})")
            tab.wait_for_timeout(60)
            high, wide = tab.evaluate("[Reveal.getCurrentSlide().scrollHeight, Reveal.getCurrentSlide().scrollWidth]")
            if high > 770 or wide > 1200:
                too_high.append((i, high, wide, tab.evaluate("Reveal.getCurrentSlide().innerText")[:60]))
        assert n > 20 and too_high == []


def test_slides_without_reveal_say_what_to_install(section, monkeypatch):
    monkeypatch.setattr(slides.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install .*slides"):
        slides.slides_html([section])


def test_a_browser_that_prints_nothing_is_said(section, tmp_path, monkeypatch):
    monkeypatch.setattr(document, "find_browser", lambda: "/bin/true")
    with pytest.raises(Exception, match="printed nothing"):
        document.write_pdf(tmp_path / "x.pdf", [section])
    monkeypatch.setattr(document, "find_browser", lambda: None)
    with pytest.raises(Exception, match="a PDF needs Chromium"):
        document.write_pdf(tmp_path / "x.pdf", [section])
    monkeypatch.setattr(document, "find_browser", lambda: "/bin/sleep")
    monkeypatch.setattr(
        document.subprocess, "run", lambda *a, **k: (_ for _ in ()).throw(subprocess.TimeoutExpired("x", 1))
    )
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


def _of(*cells, folder=None):
    return sections.notebook_section(nbformat.v4.new_notebook(cells=list(cells)), "toy", folder)


@pytest.mark.parametrize("formula", [r"$\frac{$", r"$$\frac{a}{$$", r"$\left($", r"$\begin{x}$"])
def test_a_formula_that_cannot_be_read_stands_as_it_was_written(formula):
    text = _of(nbformat.v4.new_markdown_cell(f"# T\n\nbefore {formula} after $x^2$")).blocks[0].html
    assert "before" in text and "after" in text and "<msup>" in text
    assert f"<code>{formula}</code>" in text or "<math" in text.split("after")[0]


def test_a_formula_is_text_between_its_own_elements():
    text = _of(nbformat.v4.new_markdown_cell(r"$\text{<script>alert(1)</script>} < y$")).blocks[0].html
    assert "<script" not in text and "&lt;script&gt;" in text and "<mo>&lt;</mo>" in text


def test_the_browser_that_prints_reaches_no_network(section, tmp_path, monkeypatch):
    asked = []

    def run(command, **_):
        asked.extend(command)
        next(Path(part.partition("=")[2]) for part in command if part.startswith("--print-to-pdf")).write_bytes(b"%PDF")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(document, "find_browser", lambda: "/bin/browser")
    monkeypatch.setattr(document.subprocess, "run", run)
    document.write_pdf(tmp_path / "x.pdf", [section])
    assert {"--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-bypass-list=<-loopback>"} <= set(asked)


HOSTILE_HTML = (
    "<p id=seen>kept</p><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
    "<a href=\"javascript:document.title='run'\">link</a><iframe src='file:///etc/passwd'></iframe>"
    "<svg onload=\"document.title='run'\"></svg><link rel=stylesheet href='http://127.0.0.1:9/x.css'>"
)


@pytest.mark.browser
def test_a_page_runs_no_script_but_its_own_whatever_gets_into_it(tmp_path):
    """The policy holds even where the cleaning is left out, and one bad figure costs no other."""
    bad = nbformat.v4.new_output("display_data", data={"application/vnd.plotly.v1+json": {"data": 5, "layout": {}}})
    good = {"data": [{"type": "bar", "y": [1, float("nan")]}], "layout": {"meta": {"alt": "two words <b>"}}}
    shown = nbformat.v4.new_output("display_data", data={"application/vnd.plotly.v1+json": good})
    cell = nbformat.v4.new_code_cell("1", outputs=[bad, shown], execution_count=1)
    section = _of(cell)
    raw = sections.Section("t", "t", (*section.blocks, sections.Block("output", HOSTILE_HTML)))
    target = document.write_html(tmp_path / "page.html", [raw])
    came = []
    with page() as tab:
        tab.on("requestfinished", lambda request: came.append(request.url))
        tab.goto(target.as_uri())
        tab.wait_for_selector("body[data-ready]", state="attached")
        tab.wait_for_selector(".main-svg")
        tab.locator("text=link").click()
        assert tab.title() == "t" and tab.inner_text("#seen") == "kept"
        assert tab.get_by_role("img", name="two words <b>").count() == 1, "the whole sentence is the figure's name"
    assert [url for url in came if not url.startswith(("data:", "blob:"))] == [target.as_uri()]


class _StopsLater(Progress):
    def show(self):
        threading.Timer(2, self.cancel).start()


@pytest.mark.parametrize(
    "cell", ["time.sleep(60)", "while True:\n    try:\n        time.sleep(60)\n    except BaseException:\n        pass"]
)
def test_a_cancel_does_not_wait_for_a_long_cell(tmp_path, cell, monkeypatch):
    monkeypatch.setattr(sections, "INTERRUPTS", 2)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(f"import time\n{cell}")])
    nbformat.write(notebook, tmp_path / "long.ipynb")
    started = time.monotonic()
    with pytest.raises(Cancelled):
        sections.execute(tmp_path / "long.ipynb", progress=_StopsLater())
    assert time.monotonic() - started < 40
