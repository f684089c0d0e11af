"""The HTML page and the pictures: readable offline in a real browser, without paths of this machine, whatever is
missing.
"""

import json

import plotly.graph_objects as go
import pytest
from browser import page, require_browser

from workbench.core.claims import Claim, check
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.reports import images
from workbench.reports.page import write_page
from workbench.views import theme


@pytest.fixture
def result():
    spec = {"model": {"name": "/somewhere/private/my-model"}, "n": 3}
    return Result(
        Provenance("attention_sinks", spec, 0, model={"name": "my-model"}),
        warnings=("units were replaced & <nothing> moved",),
    )


@pytest.fixture
def figures(result):
    return {
        "first": theme.finish(
            go.Figure(go.Scatter(x=[1, 2], y=[3, 4])), "One", "A line from 3 to 4.", result.provenance
        )
    }


TABLE = check(
    None,
    [
        Claim("one < two", "arithmetic", lambda _: 1.0, "<", 2.0, "known"),
        Claim("two < one", "arithmetic", lambda _: 2.0, "<", 1.0, "known", kind="control"),
    ],
)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_paints_offline_and_asks_for_nothing(tmp_path, result, figures, scheme):
    path = write_page(tmp_path / "report.html", result, TABLE, figures)
    asked = []
    with page(offline=True, color_scheme=scheme) as tab:
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(path.as_uri())
        tab.wait_for_selector(".main-svg")
        assert tab.locator(".scatterlayer path.js-line").count() == 1
        assert "fails, as it must" in tab.inner_text("body")
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_page_escapes_text_and_hides_paths(tmp_path, result, figures):
    text = write_page(tmp_path / "report.html", result, TABLE, figures).read_text()
    assert "replaced &amp; &lt;nothing&gt; moved" in text
    assert "/somewhere/private" not in text and "my-model" in text


def test_partial_result_says_so(tmp_path, result):
    cancelled = Result(result.provenance, partial=True)
    assert "was cancelled" in write_page(tmp_path / "r.html", cancelled, TABLE, {}).read_text()


@pytest.mark.browser
@pytest.mark.slow
def test_pngs_are_drawn_at_the_figures_size(tmp_path, figures):
    require_browser()
    written, trouble = images.write_pngs(figures, tmp_path, scale=1.0)
    assert trouble == "" and [p.name for p in written] == ["first.png"]
    header = written[0].read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")) == (theme.WIDTH, theme.HEIGHT)


def test_without_a_browser_everything_else_goes_on(tmp_path, figures, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))
    written, trouble = images.write_pngs(figures, tmp_path / "out")
    assert written == [] and "needs Chromium" in trouble


def test_a_hanging_browser_is_left(tmp_path, figures, monkeypatch):
    monkeypatch.setattr(images, "find_browser", lambda: "/bin/true")
    monkeypatch.setattr(images, "_draw", lambda *_: __import__("time").sleep(1.0))
    assert "drawing first.png took longer than 0 s" in images.write_pngs(figures, tmp_path, timeout=0.1)[1]


def test_claims_rows_are_what_the_page_shows(tmp_path, result):
    text = write_page(tmp_path / "r.html", result, TABLE, {}).read_text()
    for row in json.loads(json.dumps(TABLE.rows())):
        assert row["text"].replace("<", "&lt;") in text or row["text"] in text


def test_pictures_are_drawn_without_a_script_of_the_network(figures, monkeypatch):
    import kaleido

    asked = {}
    monkeypatch.setattr(kaleido, "start_sync_server", lambda **options: asked.update(options))
    monkeypatch.setattr(kaleido, "calc_fig_sync", lambda *_, **__: b"png")
    assert images._draw(figures["first"], "png", 1.0) == b"png" and asked["mathjax"] is False
