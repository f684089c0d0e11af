"""The LayerNorm pairs: same blocks, norms in different places, gains moved by pretraining and by nothing else."""

import json

import numpy as np
import pytest
import torch

from workbench.core.claims import check
from workbench.core.places import organism_folders
from workbench.datasets import digits, feelings
from workbench.models import load
from workbench.organisms import norm_placement as pairs
from workbench.organisms import organism
from workbench.training.language_model import PretrainSpec
from workbench.weights.layer_norms import norms, placement, remove_gain_and_bias

LANGUAGES = {"digits": digits, "feelings": feelings}


@pytest.fixture(scope="module")
def shipped():
    return {name: load(f"organism:{name}") for name in pairs.ORGANISMS}


def shapes(model) -> list[tuple]:
    """Shapes of all parameters within blocks, by their role (sorted, since the families order them differently)."""
    outside = {id(p) for n in norms(model.live.original_model) if n.block is None for p in n.module.parameters()}
    return sorted(tuple(p.shape) for p in model.live.original_model.parameters() if id(p) not in outside)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_pair_has_the_same_parameters_but_for_the_final_norm(shipped, language):
    post, pre = shipped[f"{language}-postln"], shipped[f"{language}-preln"]
    assert shapes(post) == shapes(pre) and pre.n_parameters - post.n_parameters == 2 * pairs.D_MODEL
    assert post.n_parameters < 300_000


@pytest.mark.parametrize("name", pairs.ORGANISMS)
def test_norms_stand_where_the_name_says_and_were_moved(shipped, name):
    language = LANGUAGES[name.split("-")[0]]
    tokens = torch.from_numpy(language.sample(4, language.LENGTH, np.random.default_rng(0)))
    plain, _ = _plain(name)
    assert placement(plain, {"input_ids": tokens}) == name.split("-")[1].removesuffix("ln")
    removal = remove_gain_and_bias(plain)
    assert (
        removal.gain_moved > 0.05
        and removal.bias_moved > 0.02
        and removal.n_norms == (12 if name.endswith("postln") else 13)
    )


def _plain(name):
    from workbench.models import ModelSpec
    from workbench.training.pretrained_classifier import load_classifier

    return load_classifier(ModelSpec(name=f"organism:{name}"), 4, seed=0)


@pytest.mark.parametrize("name", pairs.ORGANISMS)
def test_an_untrained_twin_fails_what_is_declared(name):
    entry = organism(name)
    table = check(entry.measure(load(f"organism:{name}", untrained_seed=3)), entry.declared)
    assert [line.ok for line in table.lines] == [False, False, False]


@pytest.mark.parametrize("name", pairs.ORGANISMS)
def test_recipe_and_tokenizer_are_of_the_language(shipped, name):
    language = LANGUAGES[name.split("-")[0]]
    recipe = json.loads((organism_folders()[name] / "recipe.json").read_text())
    assert (
        PretrainSpec.from_dict(recipe["training"]) == pairs.spec_for(language)
        and recipe["language"]["module"] == name.split("-")[0]
    )
    row = language.sample(1, language.LENGTH, np.random.default_rng(1))[0]
    words = " ".join(language.VOCABULARY[t] for t in row[1:])
    assert shipped[name].to_rows(words) == [row.tolist()]


def test_pretraining_never_sees_what_is_measured_or_fine_tuned():
    parts = {part: set(digits.digits(part).index.tolist()) for part in digits.PARTS}
    assert not parts["pretraining"] & (parts["training"] | parts["test"])
