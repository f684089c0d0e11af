"""Weights of checkpoints, one tensor at a time: modules in memory, directories of safetensors, LoRA adapters as
factors.

For comparisons of many checkpoints that must never lie in memory together. Nothing is kept: a file is opened for each
tensor and mapped, not read whole. An adapter is read as (A, B) with its scale in B, so that its update is B A.
Cost: the tensor asked for.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from workbench.core.errors import ModelNotFound, UnsupportedModel
from workbench.core.places import organism_folder
from workbench.models.checkpoint import our_errors, weight_files
from workbench.weights.factors import Factors

Source = torch.nn.Module | Mapping[str, Factors] | Path | str
LowRank = tuple[torch.Tensor, torch.Tensor]  # A [r, in] and B [out, r], whose product B A is the update

ADAPTER_FILE, ADAPTER_CONFIG, CONFIG = "adapter_model.safetensors", "adapter_config.json", "config.json"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Names of the weights, and the way to one of them. `read` gives float32 or wider; of an adapter, `factors`
    gives A and B.
    """

    label: str
    names: frozenset[str]
    settings: Mapping[str, Any]  # of the model's config; empty where there is none
    is_adapter: bool
    read: Callable[[str], torch.Tensor]
    factors: Callable[[str], LowRank]


def open_checkpoint(source: Source) -> Checkpoint:
    """A checkpoint to read tensor by tensor.

    Args:
        source: a Hugging Face module, `organism:NAME`, a directory of safetensors or of a PEFT adapter, or {module
            name: Factors}.

    Raises:
        ModelNotFound: if there are no weights to read. UnsupportedModel: on adapters that are no plain LoRA; later, on
            weights that are not floating point.
    """
    if isinstance(source, torch.nn.Module):
        return _of_module(source)
    if isinstance(source, Mapping):
        return _of_factors(source)
    folder = (
        organism_folder(source.removeprefix("organism:"))
        if isinstance(source, str) and source.startswith("organism:")
        else Path(source)
    )
    return _of_adapter(folder) if (folder / ADAPTER_CONFIG).is_file() else _of_folder(folder)


def _of_module(module: torch.nn.Module) -> Checkpoint:
    if hasattr(module, "peft_config"):
        raise UnsupportedModel(
            f"{type(module).__name__} holds its adapter apart; give training.lora.factors(it), or"
            " training.lora.merge(it)"
        )
    parameters: dict[str, torch.Tensor] = {name: p.detach() for name, p in module.named_parameters()}
    config = getattr(module, "config", None)
    settings = config.get_text_config().to_dict() if config is not None else {}
    return Checkpoint(
        type(module).__name__,
        frozenset(parameters),
        settings,
        False,
        lambda name: _wide(parameters[name], name),
        _no_factors,
    )


def _of_factors(found: Mapping[str, Factors]) -> Checkpoint:
    def factors(name: str) -> LowRank:
        each = found[name.removesuffix(".weight")]
        return _wide(each.A.detach(), name), each.scale * _wide(each.B.detach(), name)

    return Checkpoint("factors", frozenset(f"{name}.weight" for name in found), {}, True, _no_weights, factors)


def _of_folder(folder: Path) -> Checkpoint:
    if not any(folder.glob("*.safetensors")):
        raise ModelNotFound(
            f"{folder.name!r} holds no *.safetensors; give a local directory saved with save_pretrained, or of a PEFT"
            " adapter"
        )
    with our_errors(folder.name):
        settings = _json(folder / CONFIG)
        files = weight_files(folder, settings.get("transformers_weights"))
        where = {name: file for file in files for name in _keys(file)}

    def read(name: str) -> torch.Tensor:
        with safe_open(str(where[name]), framework="pt") as handle:
            return _wide(handle.get_tensor(name), name)

    return Checkpoint(folder.name, frozenset(where), settings, False, read, _no_factors)


def _of_adapter(folder: Path) -> Checkpoint:
    file, settings = folder / ADAPTER_FILE, _json(folder / ADAPTER_CONFIG)
    if not file.is_file():
        raise UnsupportedModel(f"the adapter {folder.name!r} has no {ADAPTER_FILE} (pickled adapters are not read)")
    odd = [key for key in ("use_dora", "rank_pattern", "alpha_pattern") if settings.get(key)]
    if settings.get("peft_type") != "LORA" or odd:
        raise UnsupportedModel(
            f"the adapter {folder.name!r} ({settings.get('peft_type')}{''.join(', ' + key for key in odd)}) is no plain"
            " LoRA with one rank and one scale"
        )
    scale = settings["lora_alpha"] / (sqrt(settings["r"]) if settings.get("use_rslora") else settings["r"])
    before = "base_model.model."
    names = frozenset(
        key.removesuffix(".lora_A.weight").removeprefix(before) + ".weight"
        for key in _keys(file)
        if key.endswith(".lora_A.weight")
    )

    def factors(name: str) -> LowRank:
        with safe_open(str(file), framework="pt") as handle:
            a, b = (
                _wide(handle.get_tensor(f"{before}{name.removesuffix('.weight')}.lora_{part}.weight"), name)
                for part in "AB"
            )
        return a, scale * b

    return Checkpoint(folder.name, names, {}, True, _no_weights, factors)


def _wide(tensor: torch.Tensor, name: str) -> torch.Tensor:
    if not tensor.is_floating_point() or tensor.itemsize < 2:
        raise UnsupportedModel(
            f"{name} is stored as {tensor.dtype}: quantised weights cannot be subtracted without their scales; give a"
            " checkpoint in 16 or 32 bits"
        )
    return tensor.float() if tensor.itemsize < 4 else tensor


def _keys(file: Path) -> list[str]:
    with safe_open(str(file), framework="pt") as handle:
        return list(handle.keys())


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _no_weights(name: str) -> torch.Tensor:
    raise UnsupportedModel(f"{name} of an adapter is known by its factors only")


def _no_factors(name: str) -> LowRank:
    raise UnsupportedModel(f"{name} is a whole weight and has no factors")
