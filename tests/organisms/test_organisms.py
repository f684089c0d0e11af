"""Organisms: what ships does what it declares, recipes are deterministic, cards say what was measured, cancel leaves
nothing.
"""

import json

import pytest
import torch

from workbench.core.errors import UnknownName
from workbench.core.places import data_folder, organism_folders
from workbench.core.progress import Cancelled, Progress
from workbench.datasets.bigram_backcopy import VOCABULARY, BigramBackcopy
from workbench.models import load
from workbench.organisms import attention_sink, build, names, organism, registry, verify
from workbench.organisms.tokenizer import word_tokenizer
from workbench.training.language_model import PretrainSpec


@pytest.mark.parametrize("name", names())
def test_every_organism_ships_and_does_what_it_declares(name):
    assert organism_folders()[name].is_relative_to(data_folder())
    table = verify(name)
    assert table.passed and table.n_untested == 0 and len(table.lines) >= 2


@pytest.mark.parametrize("name", names())
def test_shipped_files_are_what_their_recipe_says(name):
    folder = organism_folders()[name]
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "recipe.json", "training.csv"} <= {
        p.name for p in folder.iterdir()
    }
    card = (folder / "README.md").read_text()
    assert all(claim.text in card for claim in organism(name).declared) and "What it cannot show" in card
    assert sum(p.stat().st_size for p in folder.iterdir()) < 2_500_000


@pytest.mark.parametrize("name", ["attention-sink", "attention-sink-nobos", "induction"])
def test_small_languages_were_trained_as_the_code_says(name):
    recipe = json.loads((organism_folders()[name] / "recipe.json").read_text())
    assert PretrainSpec.from_dict(recipe["training"]) == (
        PretrainSpec(steps=1500) if name == "induction" else PretrainSpec()
    )
    assert recipe["language"].get("with_bos", True) == ("nobos" not in name)
    assert load(f"organism:{name}").n_parameters < 600_000


def test_the_two_twins_differ_in_bos_alone():
    one, other = (
        json.loads((organism_folders()[n] / "recipe.json").read_text())
        for n in ("attention-sink", "attention-sink-nobos")
    )
    assert one["training"] == other["training"]
    assert {k for k in one["language"] if one["language"][k] != other["language"][k]} == {"with_bos"}


def test_an_untrained_twin_fails_the_declared_behaviour():
    entry = organism("attention-sink")
    measured = entry.measure(load("organism:attention-sink", untrained_seed=0))
    assert measured["trigger_accuracy"] < 0.2 and measured["largest_first_token_weight"] < 0.5


SHORT = PretrainSpec(steps=12, batch_size=4, warmup_steps=2)


@pytest.fixture
def short(monkeypatch):
    """The real recipe, cut to a few steps."""
    entry = organism("attention-sink")
    quick = registry.Organism(
        entry.name,
        entry.paper,
        entry.summary,
        entry.limits,
        lambda progress: attention_sink._make(BigramBackcopy(), SHORT, progress),
        entry.measure,
        entry.declared,
    )
    monkeypatch.setitem(attention_sink.ORGANISMS, "attention-sink", quick)


def test_a_recipe_gives_the_same_weights_twice_whatever_the_threads(short, tmp_path):
    hashes = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        folder, _ = build("attention-sink", tmp_path / str(threads))
        assert torch.get_num_threads() == threads
        hashes.append(load(str(folder)).weights_hash)
    assert hashes[0] == hashes[1]


def test_build_goes_to_the_cache_and_is_found_there(short, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "no-data"))
    folder, table = build("attention-sink")
    assert (
        folder == tmp_path / "cache" / "organisms" / "attention-sink" and not table.passed
    )  # twelve steps teach nothing
    assert "does not hold" in (folder / "README.md").read_text()
    assert load("organism:attention-sink").d_vocab == 64


def test_a_cancelled_build_leaves_nothing(short, tmp_path):
    class Stop(Progress):
        def update(self, done, total, text=""):
            if done == 5:
                self.cancel()
            super().update(done, total, text)

    with pytest.raises(Cancelled):
        build("attention-sink", tmp_path / "o", Stop())
    assert list(tmp_path.iterdir()) == []


def test_unknown_organism_names_the_closest():
    with pytest.raises(UnknownName, match="Closest: attention-sink"):
        organism("attention-snk")


def test_word_tokenizer_round_trips_and_marks_what_it_does_not_know():
    tokenizer = word_tokenizer(VOCABULARY, add_bos=True, chat_template="{{ messages[0]['content'] }}")
    ids = tokenizer("river stone nonsense")["input_ids"]
    assert [VOCABULARY[i] for i in ids] == ["<bos>", "river", "stone", "<unk>"]
    assert tokenizer.decode(ids[1:3]) == "river stone"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "river"}], tokenize=False) == "river"
    assert word_tokenizer(VOCABULARY, add_bos=False)("river")["input_ids"] == [VOCABULARY.index("river")]
