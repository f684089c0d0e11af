"""What others wrote in HTML: text and tables stay, what runs or loads goes, pictures come from the folder alone."""

import base64

import pytest
from bleach._vendor import html5lib

from workbench.reports.cleaning import clean_html

PNG = b"\x89PNG\r\n\x1a\n"


def parsed(text):
    """[(element, attributes)] of a browser's reading."""
    tree = html5lib.parse(clean_html(text), treebuilder="etree", namespaceHTMLElements=False).find("body")
    return [(e.tag, dict(e.attrib)) for e in tree.iter() if e is not tree]


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<style>@import 'http://x'</style>",
        "<iframe src='file:///etc/passwd'></iframe>",
        "<object data='x'></object><embed src='x'>",
        "<svg/onload=alert(1)>",
        "<base href='http://x'><meta http-equiv=refresh content='0;url=x'><link rel=stylesheet href='x'>",
        "<form action='http://x'><input name=a></form>",
        "<!--<script>--><!-- --!>",
        "<noscript><p title='</noscript><script>1</script>'></noscript>",
    ],
)
def test_nothing_that_runs_or_loads_is_left(text):
    assert {tag for tag, _ in parsed(text)} <= {"p"}


@pytest.mark.parametrize(
    "href",
    ["javascript:alert(1)", " java\nscript:alert(1)", "&#106;avascript:alert(1)", "data:text/html,x", "file:///"],
)
def test_links_lead_to_pages_alone(href):
    assert parsed(f'<a href="{href}" onclick="x">y</a>') == [("a", {})]
    assert parsed('<a href="https://x">y</a><a href="#z">y</a>') == [
        ("a", {"href": "https://x"}),
        ("a", {"href": "#z"}),
    ]


def test_tables_keep_their_look_and_lose_what_lifts_or_loads():
    style = "text-align:right;color:#d8432f;font-weight:600;position:fixed;background:url(http://x)"
    kept = clean_html(f"<table class=dataframe><tr><td colspan=2 style='{style}'>1 &lt;b&gt; &amp;</td></tr></table>")
    assert 'style="text-align:right;color:#d8432f;font-weight:600;"' in kept
    assert 'colspan="2"' in kept and "1 &lt;b&gt; &amp;" in kept


def test_an_unknown_tag_is_shown_as_the_text_it_is():
    assert clean_html("after <bos> comes") == "after &lt;bos&gt; comes"


def test_a_drawing_becomes_a_picture():
    [(tag, attributes)] = parsed("<svg viewBox='0 0 1 1'><script>alert(1)</script><circle r='1'/></svg>")
    kind, data = attributes["src"].split(",")
    assert tag == "img" and kind == "data:image/svg+xml;base64"
    assert b'xmlns="http://www.w3.org/2000/svg"' in base64.b64decode(data)


@pytest.fixture
def folder(tmp_path):
    """A notebook's folder with a picture and other files, and a picture and a secret outside it."""
    inside = tmp_path / "notebooks"
    (inside / "parts").mkdir(parents=True)
    for path in ("notebooks/dot.png", "notebooks/parts/a b.png", "notebooks/keys.txt", "outside.png", "secret"):
        (tmp_path / path).write_bytes(PNG)
    (inside / "link.png").symlink_to(tmp_path / "secret")
    return inside


@pytest.mark.parametrize("name", ["dot.png", "parts/a%20b.png", "./parts/../dot.png"])
@pytest.mark.parametrize("quote", ['"', "'", ""])
def test_a_picture_of_the_folder_is_put_into_the_page(folder, name, quote):
    found = clean_html(f"<img alt=a src={quote}{name}{quote}>", folder)
    assert found == f'<img alt="a" src="data:image/png;base64,{base64.b64encode(PNG).decode()}">'


@pytest.mark.parametrize(
    "name",
    [
        "../outside.png",
        "{folder}/../outside.png",
        "{folder}/../secret",
        "file://{folder}/dot.png",
        "link.png",
        "keys.txt",
        "none.png",
        "parts",
        "http://x/y.png",
        "//x/y.png",
        "data:text/html;base64,AAAA",
        "a" * 5000 + ".png",
        "nul%00.png",
    ],
)
def test_no_other_file_is_read_and_the_gap_is_named(folder, name):
    found = clean_html(f'<p><img src="{name.format(folder=folder)}"></p>', folder)
    assert "<img" not in found and "base64,iVBOR" not in found and "[no picture '" in found


def test_without_a_folder_no_file_is_read(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert "<img" not in clean_html("<img src=dot.png>")
