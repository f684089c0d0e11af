"""Backdoor signatures: do the channels that change whenever a backdoor is taught lead to one that is already there?

Source: Li & Kim, "Purifying Generative LLMs from Backdoors without Prior Knowledge or Clean Reference" (ICLR 2026), and
a reproduction by others on twelve models, both from the paper card. A defender fine-tunes the SUSPICIOUS model N times
with own keys and N times without; channels of the MLP that differ most and most alike are the signature, which is
overwritten; a short clean fine-tune repairs the rest. No clean reference is needed, clean data are.
Inferred: variants are trained from the suspicious model, an adapter's from where it is; a variant and its counterpart
take as many steps; utility is exact answers of six tasks. Departures: the share tau and all rates are from a pilot on
seed 50 (data/backdoor_signatures/README.md tells), heads are one arm more, pruning baselines are shown with and without
the recovery. Runs that ship are loaded with their provenance and marked "stored"; they are never shown as if just
computed, and claims are measured on them where they are loaded.
Cost: a purified cell and seed one to two minutes of one core; planting alone 15 s.
"""

from workbench.core.lazy import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {
        "spec": "Spec",
        "method": "run models_of",
        "runs": "changes_of",
        "claims": "CLAIMS",
        "figures": "",
        "panel": "Signatures",
        "workbench.runs.stored": "HERE STORED",
    },
)
