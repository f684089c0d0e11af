"""The 13 head scores and two appendix variants agree with slow loops written from the paper's table, padded or not,
MHA or GQA.
"""

import math

import numpy as np
import pytest
import torch

from workbench.core.errors import UnknownName
from workbench.primitives.score.head_scores import MAIN, SCORES, head_scores, score_named, sink_weight

BATCH, HEADS, D_HEAD, D_MODEL, POS = 3, 4, 5, 11, 9
LENGTHS = {None: (9, 9, 9), "right": (9, 5, 2), "left": (9, 5, 2)}
CASES = [(n_kv, side) for n_kv in (HEADS, 2, 1) for side in (None, "right", "left")]

# The card's table: number -> (key, inactive side).
TABLE = {
    1: ("awft", ">"),
    2: ("awft_ln", ">"),
    3: ("aeqd", "<"),
    4: ("aeqd_ln", "<"),
    5: ("ftvvn", "<"),
    6: ("ftvvn_ln", "<"),
    7: ("avvn", "<"),
    8: ("avvn_ln", "<"),
    9: ("ahon", "<"),
    10: ("ahon_ln", "<"),
    11: ("lthon", "<"),
    12: ("lthon_ln", "<"),
    13: ("lthon_hn", "<"),
}
ALL = (*(key for key, _ in TABLE.values()), "apon", "apon_ln")


def real_mask(side: str | None) -> torch.Tensor:
    """[batch, pos] with the lengths of LENGTHS, the padding on `side`."""
    mask = torch.zeros(BATCH, POS, dtype=torch.bool)
    for row, length in enumerate(LENGTHS[side]):
        mask[row, slice(POS - length, None) if side == "left" else slice(0, length)] = True
    return mask


def random_case(n_kv: int, side: str | None, seed: int = 0) -> dict[str, torch.Tensor]:
    """Causal attention over real keys, values, outputs and W_O; what stands at padding is large and arbitrary."""
    generator = torch.Generator().manual_seed(seed)
    mask = real_mask(side)
    scores = 3 * torch.randn(BATCH, HEADS, POS, POS, generator=generator)
    allowed = torch.ones(POS, POS, dtype=torch.bool).tril() & mask[:, None, None, :]
    pattern = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    pattern = torch.where(mask[:, None, :, None], pattern, torch.rand(pattern.shape, generator=generator))
    value = torch.randn(BATCH, POS, n_kv, D_HEAD, generator=generator)
    output = torch.randn(BATCH, POS, HEADS, D_HEAD, generator=generator)
    for tensor in (value, output):
        tensor[~mask] *= 100
    return {
        "pattern": pattern,
        "value": value,
        "output": output,
        "mask": mask,
        "W_O": torch.randn(HEADS, D_HEAD, D_MODEL, generator=generator),
    }


def slow_scores(pattern, value, output, mask, W_O) -> dict[str, np.ndarray]:
    """The table, one input, head and token at a time, in float64."""
    A, V, out, real, W = (np.asarray(t.numpy(), dtype=np.float64) for t in (pattern, value, output, mask, W_O))
    group = HEADS // V.shape[2]
    found = {key: np.zeros((BATCH, HEADS)) for key in ALL}

    def length(vector) -> float:
        return math.sqrt(sum(float(x) ** 2 for x in vector))

    for b in range(BATCH):
        tokens = [t for t in range(POS) if real[b, t]]
        S, first, last = len(tokens), tokens[0], tokens[-1]
        for h in range(HEADS):
            at = dict.fromkeys(("awft", "aeqd", "avvn", "ahon", "apon"), 0.0)
            for t in tokens:
                at["awft"] += A[b, h, t, first]
                for s in tokens:
                    if A[b, h, t, s] > 0:
                        at["aeqd"] -= A[b, h, t, s] * math.log(A[b, h, t, s])
                at["avvn"] += length(V[b, t, h // group])
                at["ahon"] += length(out[b, t, h])
                at["apon"] += length([sum(out[b, t, h, i] * W[h, i, j] for i in range(D_HEAD)) for j in range(D_MODEL)])
            for key, total in at.items():
                found[key][b, h] = total / S
            found["ftvvn"][b, h] = length(V[b, first, h // group])
            found["lthon"][b, h] = length(out[b, last, h])
        for h in range(HEADS):
            for key in ("awft", "aeqd", "ftvvn", "avvn", "ahon", "apon"):
                found[f"{key}_ln"][b, h] = found[key][b, h] / (sum(found[key][b]) / HEADS)
            found["lthon_ln"][b, h] = found["lthon"][b, h] / (sum(found["ahon"][b]) / HEADS)
            found["lthon_hn"][b, h] = found["lthon"][b, h] / found["ahon"][b, h]
    return found


def max_differences(cases=CASES, seed: int = 0) -> dict[str, float]:
    """{score: largest |fast - slow|} over random cases with and without padding, MHA and GQA."""
    worst = dict.fromkeys(ALL, 0.0)
    for n_kv, side in cases:
        case = random_case(n_kv, side, seed)
        fast = head_scores(**case, keys=ALL)
        for key, slow in slow_scores(**case).items():
            worst[key] = float(np.maximum(worst[key], np.abs(fast[key].double().numpy() - slow).max()))  # nan stays nan
    return worst


def test_the_scores_agree_with_slow_loops_on_every_case():
    worst = max_differences()
    print("\nlargest |fast - slow|:", *(f"{key} {value:.1e}" for key, value in worst.items()))
    assert set(worst) == set(SCORES)
    assert all(value < 1e-5 for value in worst.values()), worst


@pytest.mark.parametrize(("n_kv", "side"), CASES)
def test_each_score_agrees(n_kv, side):
    assert all(value < 1e-5 for value in max_differences([(n_kv, side)], seed=1).values())


def test_numbers_and_sides_are_those_of_the_table():
    assert {s.number: (s.key, s.inactive) for s in SCORES.values() if s.number is not None} == TABLE
    assert tuple(key for key, _ in TABLE.values()) == MAIN


def test_no_mask_equals_a_mask_of_ones():
    case = random_case(2, None)
    without = head_scores(**case | {"mask": None}, keys=ALL)
    for key, score in head_scores(**case, keys=ALL).items():
        assert torch.equal(score, without[key]), key


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_stands_at_padding_does_not_matter_even_nan(side):
    case = random_case(2, side)
    broken = {key: tensor.clone() for key, tensor in case.items()}
    pad = ~case["mask"]
    broken["pattern"].movedim(2, 1)[pad] = torch.nan
    broken["value"][pad] = torch.nan
    broken["output"][pad] = torch.nan
    want, got = head_scores(**case, keys=ALL), head_scores(**broken, keys=ALL)
    for key in ALL:
        assert torch.equal(want[key], got[key]), key


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_scores_as_it_does_alone(side):
    case = random_case(2, side)
    padded = head_scores(**case, keys=ALL)
    for row in range(BATCH):
        keep = case["mask"][row]
        alone = {key: case[key][row : row + 1][:, keep] for key in ("value", "output")}
        alone |= {"pattern": case["pattern"][row : row + 1][:, :, keep][..., keep], "W_O": case["W_O"]}
        for key, score in head_scores(**alone, keys=ALL).items():
            torch.testing.assert_close(padded[key][row], score[0], atol=1e-5, rtol=1e-5, msg=key)


@pytest.mark.parametrize("n_pos", [1, 2, 17, 64])
def test_uniform_causal_attention_gives_harmonic_awft(n_pos):
    """mean over t of 1 / (t + 1) is H_S / S, not 1 / S; the entropy is the mean of ln(t + 1)."""
    pattern = torch.ones(n_pos, n_pos).tril()
    pattern = (pattern / pattern.sum(-1, keepdim=True)).expand(2, 3, n_pos, n_pos)
    nothing = torch.ones(2, n_pos, 3, 4)
    found = head_scores(pattern, nothing, nothing, keys=("awft", "aeqd"))
    harmonic = sum(1 / k for k in range(1, n_pos + 1)) / n_pos
    torch.testing.assert_close(found["awft"], torch.full((2, 3), harmonic))
    torch.testing.assert_close(found["aeqd"], torch.full((2, 3), sum(math.log(k) for k in range(1, n_pos + 1)) / n_pos))


@pytest.mark.parametrize("key", ALL)
def test_flags_are_strict_and_on_the_stated_side(key):
    score = torch.tensor([[1.0, 2.0, 3.0]])
    wanted = [True, False, False] if SCORES[key].inactive == "<" else [False, False, True]
    assert SCORES[key].flags(score, 2.0).tolist() == [wanted]


def test_layer_normalised_scores_average_to_one():
    case = random_case(2, "left")
    scores = head_scores(**case, keys=[key for key in ALL if key.endswith("_ln") and key != "lthon_ln"])
    for key, score in scores.items():
        torch.testing.assert_close(score.mean(-1), torch.ones(BATCH), msg=key)


@pytest.mark.parametrize("k", [0, 1, 4])
@pytest.mark.parametrize("side", [None, "left", "right"])
def test_sink_weight_agrees_with_loops(k, side):
    case = random_case(HEADS, side)
    found, compared = sink_weight(case["pattern"][:2], k, case["mask"][:2]), 0
    for b in range(2):
        tokens = [t for t in range(POS) if case["mask"][b, t]]
        for h in range(HEADS):
            received = [float(case["pattern"][b, h, t, tokens[k]]) for t in tokens if t >= tokens[k]]
            assert float(found[b, h]) == pytest.approx(sum(received) / len(received), abs=1e-6)
            compared += 1
    assert compared == 2 * HEADS


def test_an_unknown_score_names_the_closest():
    with pytest.raises(UnknownName, match=r"no head score called 'ahon_l'.*ahon_ln"):
        score_named("ahon_l")


def test_projected_norm_without_W_O_says_what_it_needs():
    case = random_case(HEADS, None)
    with pytest.raises(ValueError, match="need the layer's W_O"):
        head_scores(case["pattern"], case["value"], case["output"], keys=("apon",))
