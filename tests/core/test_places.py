"""Organisms are found in the data that ships and in the cache, wherever the environment puts them."""

from pathlib import Path

import pytest

from workbench.core import places
from workbench.core.errors import ModelNotFound, UnknownName


@pytest.fixture
def roots(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """Empty data and cache folders, set by the environment."""
    data, cache = tmp_path / "data", tmp_path / "cache"
    monkeypatch.setenv("WORKBENCH_DATA", str(data))
    monkeypatch.setenv("WORKBENCH_CACHE", str(cache))
    return data, cache


def make(root: Path, name: str, file: str = "config.json") -> Path:
    folder = root / "organisms" / name
    folder.mkdir(parents=True)
    (folder / file).write_text("{}")
    return folder


def test_the_environment_moves_both_places(roots):
    assert (places.data_folder(), places.cache_folder()) == roots


@pytest.mark.parametrize("empty", [None, ""])
def test_without_it_data_is_the_checkouts_and_the_cache_the_users(monkeypatch, tmp_path, empty):
    for name in ("WORKBENCH_DATA", "WORKBENCH_CACHE"):
        monkeypatch.delenv(name, raising=False) if empty is None else monkeypatch.setenv(name, empty)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert places.data_folder() == Path(places.__file__).parents[2] / "data"
    assert places.cache_folder() == tmp_path / "workbench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert places.cache_folder() == tmp_path / "home" / ".cache" / "workbench"


def test_organisms_of_both_places_are_found_and_the_one_that_ships_wins(roots):
    data, cache = roots
    ships, built = make(data, "both"), make(cache, "mine")
    make(cache, "both")
    make(data, "unfinished", "recipe.json")
    assert places.organism_folders() == {"both": ships, "mine": built}
    assert places.organism_folder("mine") == built and places.organism_folder("both") == ships


def test_an_unknown_organism_names_the_closest(roots):
    make(roots[0], "attention-sink")
    with pytest.raises(
        UnknownName,
        match=r"no organism called 'attention-snik'\. Closest: attention-sink\. .*workbench organisms build",
    ) as found:
        places.organism_folder("attention-snik")
    assert str(roots[0]) not in str(found.value)


@pytest.mark.parametrize("name", ["../organisms/one", "", ".", "one/"])
def test_only_a_name_is_a_name(roots, name):
    make(roots[0], "one")
    with pytest.raises(UnknownName):
        places.organism_folder(name)


def test_none_at_all_says_that_the_data_did_not_come_along(roots):
    with pytest.raises(ModelNotFound, match=r"no organisms found.*pip install -e \.`.*WORKBENCH_DATA"):
        places.organism_folder("attention-sink")


def test_the_checkout_ships_its_organism(monkeypatch, tmp_path):
    monkeypatch.delenv("WORKBENCH_DATA", raising=False)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    assert places.organism_folder("attention-sink").is_relative_to(places.data_folder())
