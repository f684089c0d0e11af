"""Top activations: the stream finds what holding every activation finds, for neurons, heads and channels."""

import numpy as np
import pytest
import torch

from workbench.core.errors import BadData
from workbench.core.progress import Progress
from workbench.core.result import Result
from workbench.primitives.read.top_activations import top_activations


@pytest.fixture(scope="module")
def rows():
    """40 rows that begin with 40 different tokens: rows that begin alike are equal at position 0, and rounding would
    rank them.
    """
    generator = torch.Generator().manual_seed(2)
    firsts = (6 + torch.randperm(58, generator=generator)[:40]).tolist()
    lengths = torch.randint(2, 14, (40,), generator=generator)
    return [
        [first, *torch.randint(6, 64, (int(n) - 1,), generator=generator).tolist()]
        for first, n in zip(firsts, lengths, strict=True)
    ]


def held(model, rows, layer: int, site: str) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Every activation of a site, row by row, and whose it is."""
    kept, whose = [], []
    for i, row in enumerate(rows):
        model.forward(
            torch.tensor([row]),
            hook_fns=[(f"blocks.{layer}.{site}", lambda tensor, hook: kept.append(tensor[0].clone()))],
        )
        whose += [(i, pos) for pos in range(len(row))]
    return torch.cat(kept), whose


@pytest.mark.parametrize(
    ("kind", "layer", "index"), [("neuron", 1, 7), ("neuron", 2, 0), ("head", 1, 3), ("head channel", 0, 13)]
)
def test_it_is_what_holding_everything_gives(organism, rows, kind, layer, index):
    found = top_activations(organism, rows, kind, layer, index, k=12, batch_size=4)
    values, whose = held(organism, rows, layer, "mlp.hook_post" if kind == "neuron" else "attn.hook_z")
    if kind == "head":
        values = torch.stack([values[t, index] @ organism.W_O(layer)[index].detach() for t in range(len(values))]).norm(
            dim=1
        )
    else:
        values = values.flatten(1)[:, index]
    order = sorted(range(len(values)), key=lambda t: (-abs(float(values[t])), t))[:12]
    data = found.data
    np.testing.assert_allclose(data["activation"], values[order].numpy(), rtol=1e-4, atol=1e-6)
    assert [*zip(data["example"].values.tolist(), data["pos"].values.tolist(), strict=True)] == [
        whose[t] for t in order
    ]
    assert data.attrs["mean_size"] == pytest.approx(float(values.abs().mean()), rel=1e-4) and data.attrs[
        "n_tokens"
    ] == len(values)
    example, pos = int(data["example"][0]), int(data["pos"][0])
    assert str(data["token"].values[0]) == organism.to_strings(rows[example])[pos]
    assert str(data["after"].values[0]).split() == organism.to_strings(rows[example][pos + 1 : pos + 7])


def test_negative_activations_count_by_size(organism, rows):
    """Some neuron of a gated or smooth MLP is larger below zero than above; its top tokens are those."""
    values, _ = held(organism, rows, 1, "mlp.hook_post")
    index = int((values.amin(0).abs() / values.amax(0).clamp_min(1e-3)).argmax())
    top = top_activations(organism, rows, "neuron", 1, index, k=3).data["activation"].values
    expected = values[:, index][values[:, index].abs().topk(3).indices]
    np.testing.assert_allclose(top, expected.numpy(), rtol=1e-4, atol=1e-6)
    assert expected[0] < 0


def test_the_batch_size_changes_nothing_and_few_tokens_are_all_kept(organism, rows):
    one, other = (top_activations(organism, rows, "neuron", 1, 5, k=5, batch_size=b).data for b in (1, 64))
    assert one["pos"].equals(other["pos"]) and one["example"].equals(other["example"])
    assert top_activations(organism, rows[:1], "neuron", 1, 5, k=50).data.sizes["rank"] == len(rows[0])


@pytest.mark.parametrize(
    ("asked", "said"),
    [(("neuron", 1, 10**6), "no number 1000000"), (("head", 1, -1), "no number -1"), (("expert", 1, 0), "'expert'")],
    ids=["neuron", "head", "kind"],
)
def test_a_unit_that_is_not_there_is_named(organism, rows, asked, said):
    with pytest.raises(BadData, match=said):
        top_activations(organism, rows, *asked)


def test_cancelled_it_keeps_the_prompts_it_has_seen(organism, rows, tmp_path):
    class Stop(Progress):
        def update(self, done, total, text=""):
            super().update(done, total, text)
            if done >= 8:
                self.cancel()

    found = top_activations(organism, rows, "head", 0, 1, batch_size=2, progress=Stop())
    assert found.partial and 8 <= found.data.attrs["n_prompts"] < len(rows)
    back = Result.load(found.save(tmp_path / "top"))
    assert back.data["token"].values.tolist() == found.data["token"].values.tolist()
    assert not any(point.fwd_hooks for point in organism.live.hook_dict.values())
