"""Panels: ipywidgets made of three parts - state (traitlets), compute (injected) and view (pure).

`workbench.panels.Lens(model)` in a cell shows one. Nothing is computed when a panel is made; every panel also has a
plain function behind it that works in a script, a `table()`, and `save("x.html")`.
"""

from workbench.core.lazy import lazy

_PAPERS = "workbench.papers"
__getattr__, __dir__ = lazy(
    __name__,
    {
        "tokens": "Tokens",
        "attention": "Attention",
        "lens": "Lens",
        "attribution": "Attribution",
        "patching": "Patching",
        "ablation": "Ablation",
        "steering": "Steering",
        "circuit_graph": "CircuitGraph",
        "two_checkpoints": "TwoCheckpoints",
        "cache": "Cache",
        "run_method": "run",
        f"{_PAPERS}.attention.attention_sinks.panel": "Heads",
        f"{_PAPERS}.memorization.layernorm_memorization.panel": "NoisyLabels",
        f"{_PAPERS}.safety.safety_units.panel": "Units",
        f"{_PAPERS}.misalignment.em_subspaces.panel": "Subspaces",
        f"{_PAPERS}.backdoors.backdoor_signatures.panel": "Signatures",
    },
)
