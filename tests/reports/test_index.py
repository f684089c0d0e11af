"""Generated text: the committed files say what the notebooks say; a stale one is found; the gallery asks for
nothing.
"""

from pathlib import Path

import nbformat
import pytest

from workbench.core.errors import BadData
from workbench.reports import index

ROOT = Path(__file__).parents[2]
PNG = "iVBORw0KGgo="


@pytest.fixture
def project(tmp_path):
    """A project with one published notebook."""
    new = nbformat.v4
    folder = tmp_path / "notebooks" / "attention"
    folder.mkdir(parents=True)
    outputs = [
        new.new_output(
            "stream",
            name="stdout",
            text="claim: a\n    -> holds\nclaim: b\n    -> does not hold\ncontrol: c\n    -> fails, as it must\n",
        )
    ]
    picture = [new.new_output("display_data", data={"image/png": PNG, "text/plain": "A <line>."})]
    cells = [
        new.new_markdown_cell("# Inactive heads\n\nText."),
        new.new_code_cell("1", outputs=picture),
        new.new_code_cell("2", outputs=outputs, metadata={"tags": ["nbval-check-output"]}),
    ]
    nbformat.write(new.new_notebook(cells=cells), folder / "attention_sinks.ipynb")
    (tmp_path / "README.md").write_text(f"# Title\n\n{index.START}\nwritten long ago\n{index.END}\n\nRest.\n")
    return tmp_path


def test_what_is_written_comes_from_the_notebook(project):
    entry = index.entries(project)[0]
    assert (
        entry.title == "Inactive heads"
        and entry.checked == "1 of 2 claims hold; 1 of 1 controls fail as they must"
        and entry.pictures == (("A <line>.", PNG),)
    )
    assert index.stale(project) == ["README.md", "notebooks/README.md"]
    index.write_index(project)
    readme = (project / "README.md").read_text()
    assert readme.startswith("# Title\n") and readme.endswith("Rest.\n") and "long ago" not in readme
    assert (
        "(notebooks/attention/attention_sinks.ipynb): 1 of 2 claims hold" in readme
        and "[Inactive heads](attention/attention_sinks.ipynb)" in (project / "notebooks" / "README.md").read_text()
    )
    assert index.stale(project) == []
    (project / "notebooks" / "README.md").write_text("mine")
    assert index.stale(project) == ["notebooks/README.md"]


def test_a_readme_without_a_place_for_the_table_is_refused(project):
    (project / "README.md").write_text("# Title\n")
    with pytest.raises(BadData, match="lacks the line"):
        index.stale(project)


def test_the_gallery_shows_every_picture_and_asks_for_nothing(project):
    page = index.write_gallery(project / "gallery.html", project).read_text()
    assert (
        f"data:image/png;base64,{PNG}" in page
        and "A &lt;line&gt;." in page
        and "http" not in page.replace("http-equiv", "")
    )


def test_the_committed_files_are_up_to_date():
    assert index.stale(ROOT) == [], "run `workbench index`"
