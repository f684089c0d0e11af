"""The catalogue holds the 63 papers in scope, in the nine families, each stem once, and knows which are ready."""

import importlib
from pathlib import Path

import pytest

from workbench.core.catalogue import FAMILIES, PAPERS, Paper, paper
from workbench.core.errors import UnknownName

SIZES = {
    "attention": 3,
    "memorization": 11,
    "safety": 12,
    "backdoors": 7,
    "misalignment": 2,
    "unlearning": 6,
    "reasoning": 8,
    "adaptation": 10,
    "generative": 4,
}


def test_there_are_63_papers_in_nine_families():
    assert len(PAPERS) == 63 == sum(SIZES.values())
    assert {family: sum(p.family == family for p in PAPERS.values()) for family in FAMILIES} == SIZES


def test_every_stem_can_be_a_module_and_every_title_is_its_own():
    for stem, entry in PAPERS.items():
        assert entry.stem == stem and stem.isidentifier() and stem == stem.lower()
        assert entry.module == f"workbench.papers.{entry.family}.{stem}" and entry.title
    assert len({p.title for p in PAPERS.values()}) == len(PAPERS)


def test_ready_means_that_the_method_can_be_imported():
    ready = [p for p in PAPERS.values() if p.is_ready]
    assert "attention_sinks" in [p.stem for p in ready]
    for entry in ready:
        module = importlib.import_module(entry.module)
        assert module.Spec.tiny() and module.Spec.paper() and module.CLAIMS and callable(module.run)
        assert Path(module.__file__).parent.name == entry.stem
    assert not Paper("no_such_stem", "attention", "x").is_ready


@pytest.mark.parametrize(
    ("asked", "closest"),
    [
        ("attention_sink", "attention_sinks"),
        ("refusal_direction", "refusal_directions"),
        ("layernorm_memorisation", "layernorm_memorization"),
    ],
)
def test_an_unknown_stem_names_the_closest(asked, closest):
    with pytest.raises(UnknownName, match=f"no paper called '{asked}'.*workbench list") as found:
        paper(asked)
    assert closest in str(found.value).split("Closest: ")[1]


@pytest.mark.parametrize("stem", list(PAPERS))
def test_paper_gives_the_entry_of_its_stem(stem):
    assert paper(stem) is PAPERS[stem]
