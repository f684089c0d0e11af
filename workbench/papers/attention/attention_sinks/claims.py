"""What the numbers of the inactive heads say, and the claims on them."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from workbench.core.claims import Claim
from workbench.core.result import Result
from workbench.primitives.score import head_scores as hs
from workbench.primitives.score.statistics import intersection_over_union, last_crossing, normalised_auc
from workbench.runs import lines

BEST, FIRST_TOKEN = "ahon_ln", "awft"  # the paper's best score, and the one it argues against


def share_near(data: xr.Dataset, wanted: float) -> float:
    """The share of the spec nearest to `wanted`."""
    return float(data.share.sel(share=wanted, method="nearest"))


def baseline_accuracy(data: xr.Dataset) -> float:
    """Accuracy of the untouched model, in percent: the pass at share 0, in which nothing is flagged."""
    return float(data["accuracy"].sel(score=BEST, share=0.0).mean()) * 100


def loss_at(data: xr.Dataset, variable: str, share: float = 0.15, **select: Any) -> float:
    """Accuracy points lost at `share` against the untouched model."""
    here = data[variable].sel(share=share_near(data, share), **select)
    return baseline_accuracy(data) - float(here.mean()) * 100


def max_share(data: xr.Dataset, key: str) -> float:
    """Largest realised share, in percent of heads, at which accuracy is still within the tolerance: the last
    crossing.
    """
    accuracy = data["accuracy"].sel(score=key).mean("input").values * 100
    level = baseline_accuracy(data) - float(data.attrs["tolerance"])
    return last_crossing(data["realised"].sel(score=key).values * 100, accuracy, level)


def summary(data: xr.Dataset) -> pd.DataFrame:
    """One row per score, best first: largest share within the tolerance (% of heads), points lost at 15 %, mean height
    of the curve (normalised area, % right), rank among the paper's 13 (empty for the appendix scores)."""
    rows = []
    for key in map(str, data.score.values):
        accuracy = data["accuracy"].sel(score=key).mean("input").values * 100
        rows.append(
            {
                "score": key,
                "title": hs.SCORES[key].title,
                "max_share": max_share(data, key),
                "lost_at_15": loss_at(data, "accuracy", score=key),
                "mean_accuracy": normalised_auc(data["realised"].sel(score=key).values, accuracy),
                "rank": rank_of(data, key) if hs.SCORES[key].number is not None else None,
            }
        )
    return pd.DataFrame(rows).sort_values("max_share", ascending=False, ignore_index=True).astype({"rank": "Int64"})


def rank_of(data: xr.Dataset, key: str) -> int:
    """1 if no other score of the paper's 13 reaches a larger share within the tolerance."""
    shares = {str(k): max_share(data, str(k)) for k in data.score.values if hs.SCORES[str(k)].number is not None}
    return 1 + sum(value > shares[key] for name, value in shares.items() if name != key)


def flagged(data: xr.Dataset, key: str, share: float = 0.15) -> np.ndarray:
    """bool [input, layer, head] heads that a score calls inactive on the untouched model."""
    threshold = float(data["threshold"].sel(score=key, share=share_near(data, share)))
    return hs.SCORES[key].flags(data["value"].sel(score=key).values, threshold)


def iou_matrix(data: xr.Dataset, share: float = 0.15) -> xr.DataArray:
    """[score, score_b] intersection over union of the flagged sets; 1 on the diagonal."""
    sets = [flagged(data, str(k), share) for k in data.score.values]
    values = np.array([[intersection_over_union(a, b) for b in sets] for a in sets])
    coords = {"score": data.score.values, "score_b": data.score.values}
    return xr.DataArray(
        values, dims=("score", "score_b"), coords=coords, attrs={"long_name": "Overlap of flagged heads", "unit": "IoU"}
    )


def sink_rate(weights: xr.DataArray, threshold: float) -> float:
    """Share of (input, layer, head) whose attention to the first token is above the threshold; nan if not measured."""
    return float((weights > threshold).mean()) if bool(weights.notnull().all()) else float("nan")


def uniform_weight(n_pos: int) -> float:
    """First-token weight of uniform causal attention: H_S / S."""
    return float((1 / np.arange(1, n_pos + 1)).mean())


def _trigger_ratio(r: Result) -> float:
    dormant = r.data["dormant"].values > 0.5
    return float(np.median(r.data["trigger_ratio"].values[dormant])) if dormant.any() else float("nan")


def _untrained_advantage(r: Result) -> float:
    kept = r.data["untrained_accuracy"].mean("input") * 100
    return float(kept.sel(arm=BEST) - kept.sel(arm="random"))


def _awft(r: Result) -> float:
    return float(r.data["value"].sel(score=FIRST_TOKEN).mean("input").max())


CARD, PAPER = "paper card, embedded targets", "the paper's number"
TUNED = "needs base and tuned checkpoints of one model"
claim = partial(lines.claim, where="arXiv 2504.03889, main results")
control = partial(lines.control, where="paper card, controls")

FOR_LOSS = (
    control(
        "zeroing 15 % of heads at random also costs at most 1 point",
        lambda r: loss_at(r.data, "random_accuracy"),
        "<=",
        1.0,
        CARD,
        unit="points",
    ),
    control(
        "zeroing the LARGEST output norms costs no more than random heads",
        lambda r: loss_at(r.data, "reversed_accuracy") - loss_at(r.data, "random_accuracy"),
        "<=",
        0.0,
        CARD,
        unit="points",
    ),
)
FOR_SINKS = (
    control(
        "an untrained twin has a head above 1.5 x uniform first-token weight",
        lambda r: float(r.data["untrained_weight"].max()) / uniform_weight(int(r.data.attrs["n_pos"])),
        ">",
        1.5,
        CARD,
        unit="x uniform",
    ),
    control(
        "the twin trained without BOS has a sink rate of 0.1 or more",
        lambda r: sink_rate(r.data["nobos_sink_weight"], float(r.data.attrs["sink_threshold"])),
        ">=",
        0.1,
        CARD,
        unit="share",
    ),
)
FOR_SHARE = control("on the untrained twin AHON (LN) keeps 2 points more than random", _untrained_advantage,
                    ">=", 2.0, "card: the gap of its two targets", unit="points")  # fmt: skip

CLAIMS: tuple[Claim, ...] = lines.lines(
    claim("some head gives the first token more than half of its attention", _awft, ">", 0.5, CARD, controls=FOR_SINKS),
    claim(
        "zeroing 15 % of heads by AHON (LN) costs at most 1 point",
        lambda r: loss_at(r.data, "accuracy", score=BEST),
        "<=",
        1.0,
        CARD,
        unit="points",
        controls=FOR_LOSS,
    ),
    claim(
        "zeroing 15 % of heads at random costs at least 3 points",
        lambda r: loss_at(r.data, "random_accuracy"),
        ">=",
        3.0,
        CARD,
        unit="points",
    ),
    claim(
        "at least 12.18 % of heads can be zeroed within 1 point (AHON (LN))",
        lambda r: max_share(r.data, BEST),
        ">=",
        12.18,
        PAPER,
        unit="% of heads",
        controls=[FOR_SHARE],
    ),
    claim(
        "AHON (LN) finds more such heads than first-token weight",
        lambda r: max_share(r.data, BEST) - max_share(r.data, FIRST_TOKEN),
        ">",
        0.0,
        f"{PAPER} is 7.56",
        unit="% of heads",
    ),
    claim(
        "AHON (LN) is among the three best of 13 scores",
        lambda r: rank_of(r.data, BEST),
        "<=",
        3,
        f"{PAPER} (13 of 14 models)",
        unit="rank",
    ),
    claim(
        "AHON (LN) and first-token weight flag different heads",
        lambda r: float(iou_matrix(r.data).sel(score=BEST, score_b=FIRST_TOKEN)),
        "<=",
        0.58,
        f"{PAPER}, largest IoU",
        unit="IoU",
    ),
    claim(
        "heads dormant without triggers speak at triggers (median norm ratio)",
        _trigger_ratio,
        ">=",
        2.0,
        CARD,
        unit="ratio",
    ),
    claim("fine-tuning hardly moves the score distributions", lambda r: None, "<=", 0.0, TUNED),
)
