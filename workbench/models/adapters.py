"""A PEFT adapter merged into its base, which makes an ordinary model with ordinary hooks.

Every key of the adapter has to land in the base and every module it adds has to be filled; tables that share one
tensor are taken apart before one of them is changed; tables of new tokens grow by the adapter's own rows. What is
merged is held against PEFT's own forward, in which nothing is merged.
Cost: the adapter twice, and two forwards of a probe.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from workbench.core.errors import UnsupportedModel

from .checkpoint import first_sentence, refuse_damaged
from .finite import refuse_weights
from .probe import difference, probe

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
IN_BASE = "base_model.model."  # before the names of the base's modules
TOLERANCE = 1e-3  # of the largest output; at 16 bits merged weights are rounded once more, 32 steps of the format


def merge(base: nn.Module, folder: Path, kind: str) -> tuple[nn.Module, dict[str, Any]]:
    """The base with an adapter in its weights.

    Args:
        base: Hugging Face module; changed in place.
        folder: with adapter_config.json and adapter_model.safetensors.
        kind: of the base, as in `model.Kind`.

    Returns:
        The merged module, and for provenance the largest difference of its outputs on a fixed probe from PEFT's own
        (`adapter_parity_max_abs_diff`) and from the base's (`adapter_max_abs_change`; None where the vocabulary grew).

    Raises:
        UnsupportedModel: if the adapter is of another base, lacks weights, brings some that go nowhere, cannot be
            merged, or gives other outputs once merged; the sentence names the keys.
    """
    from peft import PeftModel

    refuse_damaged(folder / WEIGHTS)
    weights = load_file(folder / WEIGHTS)
    refuse_weights(weights.items(), folder.name)
    base.eval()
    before = probe(base, kind)
    n_before = _resize(base, weights, folder.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of lost keys and of tied tables; both are dealt with below
        try:
            wrapped: Any = PeftModel.from_pretrained(base, str(folder))
        except (ValueError, RuntimeError, KeyError) as found:
            raise UnsupportedModel(
                f"the adapter {folder.name!r} does not fit its base, a {type(base).__name__} ({first_sentence(found)});"
                " pass base='DIR or hub id' of the model it was trained on"
            ) from found
        if not hasattr(wrapped, "merge_and_unload"):
            method = wrapped.peft_config["default"].peft_type.value
            raise UnsupportedModel(
                f"the adapter {folder.name!r} ({method}) cannot be merged into weights, so it cannot be hooked"
            )
        _refuse_losses(wrapped, folder, weights)
        wanted = probe(wrapped.eval(), kind)
        _untie(wrapped)
        merged = wrapped.merge_and_unload()
    _refuse_unknown_rows(merged, n_before, folder.name)
    found = probe(merged, kind)
    apart, size = difference(found, wanted), float(wanted.abs().max())
    step = max(torch.finfo(p.dtype).eps for p in merged.parameters() if p.is_floating_point())
    if not apart <= max(TOLERANCE, 32 * step) * size:  # NaN is not below anything
        raise UnsupportedModel(
            f"the adapter {folder.name!r} merged into its base gives outputs that differ by {apart:.3g} from PEFT's own"
            f" (of size {size:.3g}), so the merged model is not the adapted one; merge it where it was trained and save"
            " that"
        )
    change = difference(found, before) if found.shape == before.shape else None
    return merged, {"adapter_parity_max_abs_diff": apart, "adapter_max_abs_change": change}


# ---- tables of tokens ----


def _tables(module: Any) -> dict[str, nn.Module]:
    """{name: module} of the embedding and of the unembedding, where there are such."""
    ends = {id(end) for end in (module.get_input_embeddings(), module.get_output_embeddings()) if end is not None}
    return {name: part for name, part in module.named_modules() if id(part) in ends and hasattr(part, "weight")}


def _resize(base: Any, weights: dict[str, torch.Tensor], label: str) -> int:
    """Give the base's tables as many rows as the adapter's have. Returns how many there were.

    Rows that come new are NaN: the adapter has to fill them, and what it does not fill is found afterwards.
    """
    tables = _tables(base)
    if not isinstance(base.get_input_embeddings(), nn.Embedding):
        return 0
    n_before = base.get_input_embeddings().num_embeddings
    rows = {
        weight.shape[-1] if key.endswith("lora_embedding_A") else weight.shape[0]
        for name in tables
        for key, weight in weights.items()
        if key.startswith(f"{IN_BASE}{name}.") and key.endswith((".weight", "lora_embedding_A"))
        if weight.ndim == 2 and "lora_A" not in key and not ("lora_B" in key and name != _unembedding(base))
    }
    if rows <= {n_before}:
        return n_before
    if len(rows) > 1:
        raise UnsupportedModel(
            f"the adapter {label!r} has tables of {' and '.join(map(str, sorted(rows)))} tokens for"
            f" {' and '.join(tables)}, and a model has one vocabulary; save the adapter again"
        )
    base.resize_token_embeddings(rows.pop(), mean_resizing=False)
    for table in _tables(base).values():
        for parameter in table.parameters(recurse=False):
            parameter.data[n_before:] = float("nan")
    return n_before


def _unembedding(base: Any) -> str | None:
    end = base.get_output_embeddings()
    return next((name for name, part in base.named_modules() if part is end), None)


def _refuse_unknown_rows(merged: Any, n_before: int, label: str) -> None:
    for name, table in _tables(merged).items():
        rows = table.weight.detach()[n_before:]
        if rows.numel() and not bool(torch.isfinite(rows).all()):
            raise UnsupportedModel(
                f"the adapter {label!r} adds {len(rows)} tokens and brings no rows of {name} for them, so they would be"
                f" random; save it with modules_to_save naming {name}, or merge it where it was trained and save that"
            )


def _untie(wrapped: Any) -> None:
    """Give each module a tensor of its own where several share one and the adapter changes one of them.

    PEFT's forward adds the adapter's part in the module it was put on, and merging adds it to the tensor, where the
    other holder would get it too.
    """
    holders: dict[int, list[tuple[str, nn.Module, str]]] = defaultdict(list)
    for name, module in wrapped.named_modules():
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            holders[id(parameter)].append((name, module, key))
    for shared in holders.values():
        if len(shared) > 1 and any("base_layer" in name.split(".") for name, *_ in shared):
            for _, module, key in shared[1:]:
                setattr(module, key, nn.Parameter(getattr(module, key).detach().clone(), requires_grad=False))
            wrapped.config.get_text_config().tie_word_embeddings = wrapped.config.tie_word_embeddings = False


# ---- keys ----


def _refuse_losses(wrapped: Any, folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """A weight that the adapter has and the model has not, or the reverse, is an error and not a warning."""
    result = wrapped.load_adapter(str(folder), "default")  # once more, because from_pretrained keeps this to itself
    if result.missing_keys:
        raise UnsupportedModel(
            f"the adapter {folder.name!r} lacks weights for modules that its {CONFIG} names, and random or zero ones"
            f" would go by its name: {_few(result.missing_keys)}; it is cut short, or of another base: pass base=..."
        )
    # PEFT saves tables of new tokens under two or three names and reads one: nothing is lost where the values are the
    # same.
    taken = [value for key, value in weights.items() if key not in result.unexpected_keys]
    if lost := [
        key
        for key in result.unexpected_keys
        if key not in weights or not any(torch.equal(value, weights[key]) for value in taken)
    ]:
        raise UnsupportedModel(
            f"the adapter {folder.name!r} has weights that go nowhere in its base: {_few(lost)}; save it with"
            " PEFT's save_pretrained, or pass base='DIR or hub id' of the model it was trained on"
        )


def _few(keys: Iterable[str]) -> str:
    keys = sorted(key.replace(".default", "") for key in keys)
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
