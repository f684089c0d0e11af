"""Weights read tensor by tensor: what transformers would load, and nothing from beside or outside the folder."""

import json

import pytest
import torch
from models.families import FAMILIES
from safetensors.torch import save_file

from workbench.core.errors import ModelNotFound, UnsupportedModel
from workbench.weights.checkpoint_weights import open_checkpoint


@pytest.fixture
def sharded(tmp_path):
    """A model saved in several files, and the module."""
    module = FAMILIES["llama"]()
    module.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    return module, tmp_path


def test_shards_give_the_tensors_of_the_module_and_a_file_beside_them_is_not_read(sharded):
    module, folder = sharded
    save_file(
        {"model.norm.weight": torch.full((32,), 7.0), "stray": torch.ones(1)}, folder / "consolidated.safetensors"
    )
    found, wanted = open_checkpoint(folder), dict(module.named_parameters())
    assert found.names == set(wanted) and not found.is_adapter and found.settings["model_type"] == "llama"
    assert all(torch.equal(found.read(name), wanted[name]) for name in found.names)


def test_an_index_that_names_a_file_elsewhere_or_a_pickle_is_refused(sharded, tmp_path_factory):
    _, folder = sharded
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    away = tmp_path_factory.mktemp("away") / "x.safetensors"
    save_file({"model.norm.weight": torch.ones(32)}, away)
    for name in (str(away), f"../{away.parent.name}/x.safetensors", "pytorch_model.bin"):
        index["weight_map"]["model.norm.weight"] = name
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises((UnsupportedModel, ModelNotFound)):
            open_checkpoint(folder)


def test_a_damaged_file_is_one_sentence(sharded):
    _, folder = sharded
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    shard.write_bytes(b"\xff" * 40)
    with pytest.raises(UnsupportedModel) as said:
        open_checkpoint(folder)
    assert shard.name in str(said.value) and "\n" not in str(said.value)


def test_a_folder_without_weights_says_what_would_do(tmp_path):
    with pytest.raises(ModelNotFound, match=r"holds no .*safetensors; give a local directory saved with"):
        open_checkpoint(tmp_path)
