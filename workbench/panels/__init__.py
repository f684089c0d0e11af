"""Panels: ipywidgets made of three parts - state (traitlets), compute (injected) and view (pure).

`workbench.panels.Lens(model)` in a cell shows one. Nothing is computed when a panel is made; every panel also has a plain
function behind it that works in a script, a `table()`, and `save("x.html")`.
"""

import importlib
from typing import Any

_HOMES = {
    "Tokens": "tokens",
    "Attention": "attention",
    "Lens": "lens",
    "Attribution": "attribution",
    "Patching": "patching",
    "Ablation": "ablation",
    "Steering": "steering",
    "CircuitGraph": "circuit_graph",
    "TwoCheckpoints": "two_checkpoints",
    "Cache": "cache",
    "Heads": "heads",
    "NoisyLabels": "noisy_labels",
    "Units": "units",
    "Subspaces": "subspaces",
    "Signatures": "signatures",
    "run": "run_method",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no panel {name!r}; it has {', '.join(sorted(_HOMES))}")


def __dir__() -> list[str]:
    return sorted(_HOMES)
