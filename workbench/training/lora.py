"""Low-rank adapters through peft: add, train with `finetune`, take out the factors, merge, save, read.

The update of a weight is dW = scale * B A with A [r, in] and B [out, r]; A starts random, B at zero, so the seed of A
is a setting of its own (`init_seed`) beside the seed of the data: two adapters that start from one A share its row
space. Factors are read without the base model, and norms come from r x r matrices, so the full matrix need never be
formed.
Cost: memory of the factors.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from workbench.core import files
from workbench.core.errors import BadData, BadSpec, ModelNotFound, UnsupportedModel
from workbench.core.spec import Spec, param
from workbench.weights.factors import Factors

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
ADAPTER_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class LoraSpec(Spec):
    """Shape and start of an adapter."""

    rank: int = param(8, "rank r of each update", ge=1)
    alpha: float = param(16.0, "numerator of the scale", ge=0)
    rank_stabilised: bool = param(False, "scale alpha / sqrt(r) instead of alpha / r")
    targets: tuple[str, ...] = param(ATTENTION + MLP, "last parts of the names of the linear modules that are adapted")
    init_seed: int = param(0, "draws A; not the seed of the data", ge=0)

    @property
    def scale(self) -> float:
        """What multiplies B A."""
        return self.alpha / (sqrt(self.rank) if self.rank_stabilised else self.rank)


def add_lora(module: Any, spec: LoraSpec) -> Any:
    """Put an adapter into `module` and freeze the rest of it; B is zero, so nothing it says changes yet.

    Args:
        module: Hugging Face causal model, changed in place (copy it first if the bare one is still needed).

    Returns:
        The PeftModel around it, for `finetune`.

    Raises:
        BadSpec: if no module has one of the names in `targets`.
    """
    from peft import LoraConfig, get_peft_model

    ends = {name.rsplit(".", 1)[-1] for name, part in module.named_modules() if isinstance(part, torch.nn.Linear)}
    if missing := sorted(set(spec.targets) - ends):
        raise BadSpec(
            f"LoraSpec.targets names {', '.join(missing)}, and the linear modules of {type(module).__name__} are"
            f" {', '.join(sorted(ends))}"
        )
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        use_rslora=spec.rank_stabilised,
        target_modules=list(spec.targets),
        task_type="CAUSAL_LM",
    )  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(spec.init_seed)
        return get_peft_model(module, config)


def factors(adapted: Any) -> dict[str, Factors]:
    """{name of the adapted module in the bare model: its factors}, as copies.

    Raises:
        BadData: if there is no LoRA adapter in it.
    """
    found = {}
    for name, part in adapted.named_modules():
        if hasattr(part, "lora_A") and "default" in part.lora_A:
            a, b = part.lora_A["default"].weight, part.lora_B["default"].weight
            found[name.removeprefix("base_model.model.")] = Factors(
                a.detach().clone(), b.detach().clone(), float(part.scaling["default"])
            )
    if not found:
        raise BadData(f"{type(adapted).__name__} has no LoRA adapter; add one with add_lora or load_adapter")
    return found


def merge(adapted: Any) -> Any:
    """The bare module with the updates added to its weights; the PeftModel is used up."""
    return adapted.merge_and_unload()


def save_adapter(adapted: Any, folder: Path | str, base: str) -> Path:
    """Write a PEFT adapter directory that `load` and `load_adapter` read.

    Args:
        base: the base model as `load` knows it (hub id or organism:NAME), kept in the adapter's config.
    """
    with files.new_folder(folder, (CONFIG_FILE, "*.safetensors", "recipe.json")) as new:
        adapted.peft_config["default"].base_model_name_or_path = base
        adapted.save_pretrained(str(new), save_embedding_layers=False)
        (new / "README.md").unlink(missing_ok=True)  # peft's card is a form to be filled in
    return Path(folder)


def load_adapter(module: Any, folder: Path | str, *, trainable: bool = False) -> Any:
    """The PeftModel of `module` (changed in place) and a saved adapter.

    Raises:
        ModelNotFound, UnsupportedModel: as `read_factors`.
    """
    from peft import PeftModel

    _settings(Path(folder))
    return PeftModel.from_pretrained(module, str(folder), is_trainable=trainable)


def read_factors(folder: Path | str) -> dict[str, Factors]:
    """{module name: factors} of an adapter directory, without a base model. See `stream_factors` for large ones."""
    return dict(stream_factors(folder))


def stream_factors(folder: Path | str) -> Iterator[tuple[str, Factors]]:
    """One module at a time: (name in the bare model, factors), in order of name; float32 or wider.

    Raises:
        ModelNotFound: if the directory holds no adapter. UnsupportedModel: if it is not a plain LoRA whose update is
            scale * B A.
    """
    settings = _settings(Path(folder))
    rank, alpha, stabilised = settings["r"], settings["lora_alpha"], bool(settings.get("use_rslora"))
    ranks, alphas = settings.get("rank_pattern") or {}, settings.get("alpha_pattern") or {}
    if ranks or alphas:
        raise UnsupportedModel(
            f"the adapter {Path(folder).name!r} has its own rank or alpha for some modules, which is not read here;"
            " load it with load_adapter and use factors()"
        )
    with safe_open(str(Path(folder) / ADAPTER_FILE), framework="pt") as handle:
        names = sorted(k.removesuffix(".lora_A.weight") for k in handle.keys() if k.endswith(".lora_A.weight"))
        for name in names:
            a, b = (handle.get_tensor(f"{name}.lora_{part}.weight") for part in "AB")
            a, b = (t.float() if t.itemsize < 4 else t for t in (a, b))
            yield name.removeprefix("base_model.model."), Factors(a, b, alpha / (sqrt(rank) if stabilised else rank))


def _settings(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG_FILE).is_file():
        raise ModelNotFound(f"{folder.name!r} holds no {CONFIG_FILE}, so it is no adapter directory")
    if not (folder / ADAPTER_FILE).is_file():
        raise UnsupportedModel(f"the adapter {folder.name!r} has no {ADAPTER_FILE} (pickled adapters are not read)")
    settings = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    if settings.get("peft_type") != "LORA" or settings.get("use_dora"):
        kind = "DoRA" if settings.get("use_dora") else settings.get("peft_type")
        raise UnsupportedModel(
            f"the adapter {folder.name!r} is of kind {kind}, and only plain LoRA updates are scale * B A"
        )
    return settings
