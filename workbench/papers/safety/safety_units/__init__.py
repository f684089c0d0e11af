"""Safety units: are refusals carried by a few units that can be found, pruned, frozen, and spared when a model is
tuned?

Source: Li & Kim, "Superficial Safety Alignment Hypothesis" (ICLR 2026, arXiv 2410.10862); SCU and UCU are ESU and EUU
    in its first version. Importance on a safety set and a utility set gives every unit one of four labels; the labels
    are tested by pruning, by
fine-tuning with units frozen, and by aligning a base model through its redundant units alone.
Departures: sizes are picked on training prompts by the card's own thresholds, and shown on held-out ones; labels are
taken on the raw scale, because standardising per module calls heads of the organism redundant that it needs (pilot,
seed 50), and both are pruned; nothing but units is trained where units are frozen; no bias is put in the place of what
was pruned (inferred). Runs that ship are loaded with their provenance and marked "stored"; they are never shown as if
just computed.
Cost: a seed with all arms about 105 s on one core of its own; forward-only runs of other models about 60 passes.
"""

from workbench.core.lazy import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {
        "method": "Spec run make_prompts",
        "claims": "CLAIMS",
        "figures": "",
        "panel": "Units prune_at",
        "workbench.runs.stored": "HERE STORED",
    },
)
