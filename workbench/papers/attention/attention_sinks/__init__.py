"""Inactive heads: which attention heads can be zeroed, and which score finds them.

Source: Sandoval-Segura et al., "Identifying and Evaluating Inactive Heads in Pretrained LLMs" (arXiv 2504.03889).
Per input, heads whose score is beyond a threshold get their output set to zero in the same forward pass; accuracy
against the share of zeroed heads tells how good the score is. Departures: `tiny()` uses a small organism, and its
accuracy is that of the words only attention can know (after triggers), because on all positions 91 % of the answers
need no head at all and nothing done to heads could cost more than 9 points; `counted="all"` gives that too. "Within 1
%" is taken as one accuracy point, absolute (inferred: the paper's text was not read).
Cost: (n_scores + n_random + 1) x (n_shares - 1) forwards over the inputs, plus three for the controls.
"""

from workbench.core.lazy import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {
        "method": "Spec run make_task score_heads",
        "claims": (
            "CLAIMS baseline_accuracy flagged iou_matrix loss_at max_share rank_of sink_rate summary uniform_weight"
        ),
        "figures": "",
        "panel": "Heads",
    },
)
