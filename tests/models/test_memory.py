"""What a model needs is known before it is read: for folders, for hub ids in the cache, and for untrained twins."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as tf
from models.families import FAMILIES, GQA, NO_SPECIAL

from workbench.core.errors import NoRoom
from workbench.models import load, memory


def own_bytes(module: torch.nn.Module) -> int:
    return sum(p.numel() * p.itemsize for p in module.parameters())


def cached(folder: Path, root: Path) -> str:
    """A folder as the hub's cache would hold it; its id."""
    repo = root / "models--someone--model"
    shutil.copytree(folder, repo / "snapshots" / "c0ffee")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("c0ffee")
    return "someone/model"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_are_those_of_the_module(family, dtype):
    assert memory.module_bytes(lambda: FAMILIES[family]().to(dtype), dtype) == own_bytes(FAMILIES[family]().to(dtype))


def test_a_tied_table_counts_once_and_nothing_is_drawn_or_made():
    state = torch.get_rng_state()
    config = tf.LlamaConfig(**GQA | NO_SPECIAL | {"hidden_size": 8192, "num_hidden_layers": 40, "vocab_size": 10**6})
    sizes = {}
    for tied in (False, True):
        config.tie_word_embeddings = tied
        sizes[tied] = memory.module_bytes(lambda: tf.LlamaForCausalLM(config), torch.float32)
    assert sizes[False] - sizes[True] == 4 * 8192 * 10**6
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "width"),
    [
        ({}, 4),
        ({"dtype": "bfloat16"}, 2),
        ({"untrained_seed": 1}, 4),
        ({"untrained_seed": 1, "dtype": "bfloat16"}, 4),  # drawn in the config's float32, then made narrow
    ],
)
@pytest.mark.parametrize("where", ["folder", "hub"])
def test_what_does_not_fit_by_one_byte_is_refused(where, options, width, tmp_path, tiny_models, monkeypatch):
    name = str(tiny_models["llama"])
    if where == "hub":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        name = cached(tiny_models["llama"], tmp_path)
    need = width * sum(p.numel() for p in FAMILIES["llama"]().parameters())
    monkeypatch.setattr("workbench.models.memory.available_bytes", lambda device: need)
    assert load(name, **options).n_layers == 2
    monkeypatch.setattr("workbench.models.memory.available_bytes", lambda device: need - 1)
    with pytest.raises(NoRoom, match=f"in {options.get('dtype', 'float32')} needs about .* GB on cpu"):
        load(name, **options)


def test_a_hub_id_in_the_cache_is_the_model_of_its_folder(tmp_path, tiny_models, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = load(cached(tiny_models["llama"], tmp_path))
    assert model.weights_hash == load(str(tiny_models["llama"])).weights_hash
    assert model.provenance()["revision"] == "c0ffee"


def test_a_config_alone_is_enough_to_refuse(tmp_path, tiny_models):
    """The weights of a model that cannot fit are not even looked for."""
    config = json.loads((tiny_models["llama"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 10**9, "hidden_size": 8192}))
    with pytest.raises(NoRoom, match=r"needs about 65\d{3}\.\d GB on cpu"):
        load(str(tmp_path), untrained_seed=0)
