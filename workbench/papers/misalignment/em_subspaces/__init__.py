"""Emergent-misalignment subspaces: do fine-tunes on different bad data move the weights in the same few directions?

Source: Arturi et al., "Shared Parameter Subspaces and Cross-Task Linearity in Emergently Misaligned Behavior" (arXiv
    2511.02022); convergent direction: Soligo et al. 2025 (arXiv 2506.11618). Departures: an organism with advice in six
    domains stands in for an
8B model, and answers are judged by their log-probability and as exact text, not by a model. The published adapters come
from a trainer whose seed is the same for every data set, so they share the A they start from (inferred: from its
default settings), and B A must read from the row space of A. So everything is measured four times: one seed, different
seeds, full rank without any A, and a benign task of the same seed; with the chance level of each (`_em_geometry`)
beside it.
Cost: `tiny()` about half a minute on one core: geometry of 20 stored updates, their answers, and one of them trained
again.
"""

from workbench.core.lazy import lazy

__getattr__, __dir__ = lazy(
    __name__, {"method": "Spec run", "claims": "CLAIMS verdict", "runs": "", "figures": "", "panel": "Subspaces"}
)
