"""Fine-tuning with units held exactly: what protects refusals, which units change their part, and aligning through few units.

A frozen unit keeps its rows of gate and up (or of the queries) and its column of the output projection. A head's keys and values
are frozen with it; under grouped queries they belong to several heads and are frozen as soon as one of these is (inferred). In
every arm but "full" and "lora" nothing but units is trained: embeddings, norms and the unembedding stay as they were.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from workbench.core.errors import UnsupportedModel
from workbench.models import load
from workbench.models.chat import Pair
from workbench.models.model import Model
from workbench.primitives.score.unit_importance import LABELS
from workbench.training import lora
from workbench.training.finetune import FinetuneSpec, answer_loss, finetune
from workbench.training.freezing import Frozen

ARMS = {
    "full": "everything trained",
    "units": "all units trained, nothing else",
    "lora": "LoRA on all projections",
    "i": "SCU and top CU frozen",
    "ii": "SCU and all CU frozen",
    "random_i": "as many random units frozen as in (i)",
    "random_ii": "as many random units frozen as in (ii)",
    "new_task": "everything trained, on a format never met",
}
TWICE = ("i", "ii", "random_i", "random_ii")  # epochs doubled, so that the loss is no worse
LORA_LR_FACTOR = 6.0


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model, how it went, and how many weights were held."""

    model: Model
    steps: int
    loss: float
    n_frozen: int


def frozen_weights(module: Any, units: xr.DataArray, held: np.ndarray) -> dict[str, torch.Tensor]:
    """Masks for `Frozen`: the weights of the held units of a Llama-shaped module, True where frozen.

    Raises:
        UnsupportedModel: if the module's projections are not named and shaped as Llama's.
    """
    config = module.config
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_group = config.num_attention_heads // config.num_key_value_heads
    names, masks = dict(module.named_parameters()), {}
    for layer in range(config.num_hidden_layers):
        here = units["layer"].values == layer
        mlp = torch.from_numpy(held[here & (units["module"].values == "mlp")])
        of_attention = torch.from_numpy(held[here & (units["module"].values == "attention")])
        channels = of_attention.repeat_interleave(d_head) if len(of_attention) == config.num_attention_heads else of_attention
        shared = channels.reshape(-1, per_group, d_head).any(1).reshape(-1)  # rows of k and v, which several heads use
        at = f"model.layers.{layer}"
        rows = {f"{at}.mlp.gate_proj": mlp, f"{at}.mlp.up_proj": mlp, f"{at}.self_attn.q_proj": channels, f"{at}.self_attn.k_proj": shared, f"{at}.self_attn.v_proj": shared}
        columns = {f"{at}.mlp.down_proj": mlp, f"{at}.self_attn.o_proj": channels}
        if missing := [n for n in (*rows, *columns) if f"{n}.weight" not in names]:
            raise UnsupportedModel(f"freezing units needs Llama's projections, and {type(module).__name__} has no {missing[0]}")
        for name, mask in rows.items():
            masks[f"{name}.weight"] = mask.unsqueeze(1)
            if f"{name}.bias" in names:
                masks[f"{name}.bias"] = mask
        masks |= {f"{name}.weight": mask.unsqueeze(0) for name, mask in columns.items()}
    return masks


def held_units(arm: str, importance: xr.DataArray, scale: str, labels: np.ndarray, top_complex: float, random_like: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """bool [unit] what an arm freezes. Top CU are those of the largest importance on the safety set (inferred)."""
    held = labels == LABELS.index("SCU")
    if arm in ("full", "units", "lora", "new_task"):
        return np.zeros(len(labels), bool)
    if arm.endswith("ii"):
        held = held | (labels == LABELS.index("CU"))
    else:
        complex_units = np.flatnonzero(labels == LABELS.index("CU"))
        key = importance.sel(scale=scale, set="safety").values[complex_units]
        held[complex_units[np.argsort(-key, kind="stable")][: round(top_complex * len(labels))]] = True
    return random_like(held) if arm.startswith("random") else held


def tune(module: Any, tokenizer: Any, pairs: Sequence[Pair], spec: FinetuneSpec, *, units: xr.DataArray, held: np.ndarray, only_units: bool, as_lora: bool = False, on_step: Any = None) -> Tuned:
    """Fine-tune a copy of `module` with some units held, and wrap it.

    Args:
        held: bool [unit] frozen. only_units: train units and nothing else. as_lora: train an adapter instead, then merge it.
    """
    own = copy.deepcopy(module)
    frozen = None
    if as_lora:
        own = lora.add_lora(own, lora.LoraSpec(init_seed=spec.seed))
    elif only_units:
        masks = frozen_weights(own, units, held)
        for name, parameter in own.named_parameters():
            parameter.requires_grad_(name in masks)
        frozen = Frozen(own, masks)
    given = {} if on_step is None else {"progress": on_step}
    finetune(own, pairs, spec, frozen=frozen, log_every=spec.steps, **given)
    own = lora.merge(own) if as_lora else own
    with torch.no_grad():
        loss = float(answer_loss(own, list(pairs[:128])))
    return Tuned(load(own.requires_grad_(False), tokenizer=tokenizer), spec.steps, loss, 0 if frozen is None else frozen.n_frozen)


def transfer(before: np.ndarray, after: np.ndarray) -> pd.DataFrame:
    """Flow of units between labels: T[a, b] = share of all units, in percent, that was a and became b."""
    n = len(before)
    rows = [(a, b, int(((before == i) & (after == j)).sum())) for i, a in enumerate(LABELS) for j, b in enumerate(LABELS)]
    return pd.DataFrame(rows, columns=["before", "after", "n_units"]).assign(share=lambda t: 100 * t["n_units"] / n)
