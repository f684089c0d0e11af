"""The registry of model organisms: what each is for, how it is made, and what it must be measured to do.

`build` trains one and writes an ordinary Hugging Face directory with a README card; `verify` measures its declared
behaviour again. Nothing here places a phenomenon by hand: a recipe is an architecture, a language and a training run.
"""

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from workbench.core import files, places
from workbench.core.claims import Claim, ClaimsTable, check
from workbench.core.errors import UnknownName
from workbench.core.progress import SILENT, Progress

# Modules that register organisms, by name, so that listing them does not import torch-heavy recipes.
_MODULES = {
    "attention-sink": "attention_sink",
    "attention-sink-nobos": "attention_sink",
    "induction": "induction",
    "chat-base": "chat",
    "chat": "chat",
    "advice": "advice",
    "digits-postln": "norm_placement",
    "digits-preln": "norm_placement",
    "feelings-postln": "norm_placement",
    "feelings-preln": "norm_placement",
}

# All that the directory of an organism holds; the recipe, which no other model has, is written last.
OURS = (
    "recipe.json",
    "README.md",
    "training.csv",
    "*config.json",
    "*.jinja",
    "model*.safetensors",
    "special_tokens_map.json",
    "tokenizer*.json",
)


@dataclass(frozen=True)
class Built:
    """What a recipe returns: the trained module, its tokenizer, the training log and the settings that made it."""

    module: Any
    tokenizer: Any
    log: pd.DataFrame
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Organism:
    """A small model that shows one phenomenon.

    `measure` maps a loaded Model to named numbers; `declared` are inequalities on that mapping.
    """

    name: str
    paper: str
    summary: str
    limits: str
    make: Callable[[Progress], Built]
    measure: Callable[[Any], Mapping[str, float]]
    declared: tuple[Claim, ...]


def names() -> list[str]:
    return sorted(_MODULES)


def organism(name: str) -> Organism:
    """The organism of this name; UnknownName with the closest otherwise."""
    if name not in _MODULES:
        raise UnknownName.among("organism", name, _MODULES, "`workbench organisms list` shows all.")
    return importlib.import_module(f"{__package__}.{_MODULES[name]}").ORGANISMS[name]


def verify(name: str) -> ClaimsTable:
    """Measure an organism's declared behaviour on the files that are here."""
    from workbench.models import load

    entry = organism(name)
    with load(f"organism:{name}") as model:
        return check(entry.measure(model), entry.declared)


def build(name: str, out: Path | str | None = None, progress: Progress = SILENT) -> tuple[Path, ClaimsTable]:
    """Train an organism and write its directory, into the user's cache unless `out` is given.

    One thread, so that the weights do not depend on how many cores there are. The directory appears only when whole.

    Returns:
        The directory and the table of its declared behaviour, measured on the files just written.

    Raises:
        WorkbenchError: before training, if `out` cannot be written or holds anything but an organism.
    """
    from workbench.models import load

    entry = organism(name)
    folder = Path(out) if out is not None else places.cache_folder() / "organisms" / name
    files.check_place(folder, OURS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        built = entry.make(progress)
    finally:
        torch.set_num_threads(threads)
    with files.new_folder(folder, OURS) as new:
        built.module.save_pretrained(new)
        built.tokenizer.save_pretrained(new)
        built.log.to_csv(new / "training.csv", index=False, float_format="%.6g")
        with load(str(new)) as model:
            table = check(entry.measure(model), entry.declared)
        files.write_text(new / "README.md", _card(entry, built, table))
        files.write_text(new / "recipe.json", json.dumps(built.recipe, indent=1) + "\n")
    return folder, table


def _card(entry: Organism, built: Built, table: ClaimsTable) -> str:
    """The organism's README, from what was just trained and measured."""
    n_parameters = sum(p.numel() for p in built.module.parameters())
    dtype = str(next(built.module.parameters()).dtype).removeprefix("torch.")
    curve = built.log.iloc[
        [i for i in range(len(built.log)) if i % max(1, len(built.log) // 8) == 0] + [len(built.log) - 1]
    ]
    curve_rows = "\n".join(f"| {int(r.step)} | {r.loss:.3f} |" for r in curve.drop_duplicates("step").itertuples())
    behaviour = "\n".join(
        f"| {r['text']} | {'-' if r['measured'] is None else format(float(r['measured']), '.3g')} | `{r['expected']}` |"
        f" {r['verdict']} |"
        for r in table.rows()
    )
    return f"""# {entry.name}

{entry.summary}

Made by `workbench organisms build {entry.name}`; `workbench organisms verify {entry.name}` measures it again.
{n_parameters:,} parameters, {dtype}, safetensors; Apache-2.0 like the project, and trained only on text the project generates.

## Behaviour

| declared | measured | must be | verdict |
|---|---|---|---|
{behaviour}

## What it cannot show

{entry.limits}

## Recipe

```json
{json.dumps(built.recipe, indent=1)}
```

| step | training loss (nats) |
|---|---|
{curve_rows}
"""
