"""LayerNorm and memorisation: fine-tune on noisy labels with LayerNorm's gain and bias kept or removed.

Source: Singhal & Kim 2025, "Impact of Layer Norm on Memorization and Generalization in Transformers"
(arXiv 2511.10566). "Removed" means that gain and bias are 1 and 0 DURING fine-tuning and the normalisation stays;
removing the whole LayerNorm is another arm.
Departures: a run ends a quarter as many epochs after its kept twin fits all labels, instead of after 40 or 70 epochs;
"all layers" includes norms before and after the blocks (inferred); the gradient at a norm's input is the total one
(inferred). Runs that ship are loaded with their provenance and marked "stored"; claims are measured on them.
Cost: one fine-tune per model, arm and seed (10 to 25 s on one core for the organisms); loading takes a second.
"""

from workbench.core.lazy import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {
        "method": "Spec run load_stored",
        "claims": "CLAIMS REPEATS",
        "workbench.runs.stored": "HERE STORED",
        "figures": "",
        "panel": "NoisyLabels",
    },
)
