"""Changes of modules: planted updates are found with their rank, size and angles; noise is at chance; what does not
correspond is refused.
"""

import copy

import numpy as np
import pytest
import torch
from models.families import FAMILIES, GQA, NO_SPECIAL
from scipy.linalg import subspace_angles
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.core.errors import BadData, UnsupportedModel
from workbench.core.progress import Progress
from workbench.core.result import Result
from workbench.models import load
from workbench.organisms.tokenizer import word_tokenizer
from workbench.primitives.replace.module_changes import module_changes
from workbench.weights.subspaces import expected_overlap, singular_of_factors, singular_of_matrix

WORDS = ["<pad>", "<bos>", "<unk>", *[f"w{i}" for i in range(61)]]
UP = "mlp.up_proj"


def fresh(seed=0, **other):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**GQA | NO_SPECIAL | other)).eval()


def factors(rank, out, inn, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rank, inn, generator=draw), torch.randn(out, rank, generator=draw)


def planted(base, updates):
    """A copy of `base` with updates {(layer, module): matrix} added, computed in double."""
    twin = copy.deepcopy(base)
    for (layer, module), update in updates.items():
        weight = twin.model.layers[layer].get_submodule(module).weight
        weight.data = (weight.data.double() + update.double()).float()
    return twin


@pytest.fixture(scope="module")
def base():
    return fresh()


@pytest.fixture(scope="module")
def low_rank(base):
    """A rank-2 update of one matrix, its factors and the Result."""
    A, B = factors(2, 64, 32, 1)
    tuned = planted(base, {(1, UP): 0.01 * B @ A})
    return A, B, module_changes(load(copy.deepcopy(base), tokenizer=False), load(tuned, tokenizer=False), k=2)


def test_a_planted_update_is_found_with_its_size_rank_spectrum_and_angles(low_rank, base):
    A, B, found = low_rank
    at, whole = {"layer": 1, "module": UP}, singular_of_factors(A, B, 0.01)
    weight = base.model.layers[1].mlp.up_proj.weight.detach()
    cell = found.data.sel(at)
    assert float(cell.change) == pytest.approx(np.sqrt((whole.values**2).sum()), rel=1e-4)
    assert float(cell.relative) == pytest.approx(float(cell.change) / float(weight.norm()), rel=1e-4)
    assert int(cell["rank"]) == 2 and float(cell.share) == pytest.approx(1, abs=1e-6)
    spectrum = found.tables["spectrum"].query("layer == 1 and module == @UP")
    np.testing.assert_allclose(spectrum["change"].to_numpy()[:2], whole.values, rtol=1e-4)
    np.testing.assert_allclose(spectrum["weights"], singular_of_matrix(weight).values)
    assert (spectrum["change"].to_numpy()[2:] < float(cell.rounding)).all() and len(spectrum) == 32
    weights = singular_of_matrix(weight)
    for side, one, other in (
        ("right", whole.right_basis(2), weights.right_basis(2)),
        ("left", whole.left_basis(2), weights.left_basis(2)),
    ):
        np.testing.assert_allclose(
            cell.angle.sel(against="weights", side=side), np.degrees(np.sort(subspace_angles(one, other))), atol=0.01
        )
    assert (
        float(cell.expected_overlap.sel(side="right")) == 2 / 32
        and float(cell.expected_overlap.sel(side="left")) == 2 / 64
    )


def test_nothing_else_has_moved(low_rank):
    _, _, found = low_rank
    moved = found.data["change"] > 0
    assert int(moved.sum()) == 1 and bool(moved.sel(layer=1, module=UP))
    assert np.isnan(found.data["overlap"]).sum() == found.data["overlap"].size - 2  # both sides of the one module
    assert "rank" in found.data and (found.data["rank"].fillna(0) > 0).sum() == 1


def test_modules_are_named_as_in_the_checkpoint_and_what_lies_outside_the_blocks_is_listed(low_rank):
    _, _, found = low_rank
    assert found.data.module.values[:2].tolist() == [
        "self_attn.q_proj",
        "self_attn.k_proj",
    ] and found.data.layer.values.tolist() == [0, 1]
    table = found.tables["parameters"]
    assert set(table[table.layer == -1].parameter) == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
    }
    assert len(table) == len(found.data.layer) * len(found.data.module) + 3


def test_an_update_along_the_weights_own_directions_has_no_angle_to_them(base):
    weight = base.model.layers[0].mlp.up_proj.weight.detach()
    own = singular_of_matrix(weight)
    reads = torch.as_tensor(own.right_basis(3))
    tuned = planted(base, {(0, UP): 0.05 * factors(3, 64, 32, 4)[1].double() @ reads.T})
    found = module_changes(load(copy.deepcopy(base), tokenizer=False), load(tuned, tokenizer=False), k=3).data.sel(
        layer=0, module=UP
    )
    assert float(found.overlap.sel(against="weights", side="right")) == pytest.approx(1, abs=1e-4)
    assert (
        float(found.overlap.sel(against="weights", side="left"))
        < float(found.chance_overlap_high.sel(side="left")) * 1.5
    )
    assert float(found.mean_angle.sel(against="weights", side="right")) < 1


def test_a_random_change_is_at_chance(base):
    """The control: a change that knows nothing of the weights leaves the band in about one cell of twenty."""
    shapes = {
        (layer, name): part.weight.shape
        for layer in (0, 1)
        for name, part in base.model.layers[layer].named_modules()
        if type(part).__name__ == "Linear"
    }
    outside, total = 0, 0
    for seed in range(4):
        noise = {
            place: 0.01 * torch.randn(shape, generator=torch.Generator().manual_seed(100 * seed + i))
            for i, (place, shape) in enumerate(shapes.items())
        }
        data = module_changes(
            load(copy.deepcopy(base), tokenizer=False), load(planted(base, noise), tokenizer=False), k=3, seed=seed
        ).data
        measured = data["overlap"].sel(against="weights").where(data["rank"].notnull())
        outside += int(((measured > data["chance_overlap_high"]) | (measured < data["chance_overlap_low"])).sum())
        total += int(measured.notnull().sum())
    assert total == 4 * 2 * 7 * 2 and outside / total < 0.12


def test_a_third_checkpoint_gives_the_cosine_and_the_overlap_of_two_changes_and_the_floor_of_a_shared_start(base):
    A, B = factors(4, 64, 32, 1)
    _, other_B = factors(4, 64, 32, 2)
    one, other = 0.02 * B @ A, 0.02 * other_B @ A
    models = [
        load(m, tokenizer=False)
        for m in (copy.deepcopy(base), planted(base, {(1, UP): one}), planted(base, {(1, UP): other}))
    ]
    found = module_changes(*models, k=2)
    cell = found.data.sel(layer=1, module=UP)
    assert float(cell.cosine_changes) == pytest.approx(float((one * other).sum() / one.norm() / other.norm()), abs=1e-3)
    expected = (
        np.square(singular_of_factors(A, B).right_basis(2).T @ singular_of_factors(A, other_B).right_basis(2)).sum() / 2
    )
    assert float(cell.overlap.sel(against="other change", side="right")) == pytest.approx(expected, abs=1e-3)
    assert float(cell.same_space_floor) == 2 / 4 and float(cell.expected_overlap.sel(side="right")) == 2 / 32
    assert np.isnan(found.data.cosine_changes.sel(layer=0, module=UP))
    same = module_changes(models[0], models[1], models[1], k=2).data.sel(layer=1, module=UP)
    assert float(same.cosine_changes) == pytest.approx(1) and float(
        same.overlap.sel(against="other change", side="left")
    ) == pytest.approx(1)


def test_full_rank_changes_have_no_shared_start_to_allow_for(base):
    noise = [{(0, UP): 0.01 * torch.randn(64, 32, generator=torch.Generator().manual_seed(seed))} for seed in (1, 2)]
    found = module_changes(
        load(copy.deepcopy(base), tokenizer=False), *(load(planted(base, n), tokenizer=False) for n in noise), k=2
    )
    assert np.isnan(found.data.same_space_floor).all()


def test_inputs_and_outputs_keep_their_side_where_weights_are_stored_the_other_way_round():
    torch.manual_seed(0)
    module = FAMILIES["gpt2"]()
    twin = copy.deepcopy(module)
    twin.transformer.h[0].mlp.c_fc.weight.data[5] += 0.3 * torch.randn(
        128, generator=torch.Generator().manual_seed(1)
    )  # [in, out]: input 5
    cell = module_changes(load(module, tokenizer=False), load(twin, tokenizer=False), k=1).data.sel(
        layer=0, module="mlp.c_fc"
    )
    assert (
        int(cell["rank"]) == 1
        and float(cell.expected_overlap.sel(side="right")) == expected_overlap(1, 32)
        and float(cell.expected_overlap.sel(side="left")) == expected_overlap(1, 128)
    )
    weight = module.transformer.h[0].mlp.c_fc._original_component.weight.detach()
    assert float(cell.overlap.sel(against="weights", side="right")) == pytest.approx(
        float(singular_of_matrix(weight.T).right[5, 0] ** 2), abs=1e-4
    )


def test_a_change_of_rounding_size_has_no_directions(base):
    a = load(copy.deepcopy(base), tokenizer=False)
    jitter = planted(
        base,
        {
            (0, UP): (
                base.model.layers[0].mlp.up_proj.weight.detach()
                * 1e-7
                * torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
            )
        },
    )
    found = module_changes(a, load(jitter, tokenizer=False), k=2)
    assert float(found.data.change.sel(layer=0, module=UP)) > 0 and int(found.data["rank"].sel(layer=0, module=UP)) == 0
    assert (
        np.isnan(found.data.overlap).all()
        and "1 of 1 changed matrices have fewer than 2 directions above rounding" in found.warnings[0]
    )


def test_half_precision_checkpoints_raise_the_floor(base):
    half, A_B = copy.deepcopy(base).bfloat16(), factors(1, 64, 32, 3)
    tuned = copy.deepcopy(half)
    tuned.model.layers[0].mlp.up_proj.weight.data += (0.05 * A_B[1] @ A_B[0]).bfloat16()
    found = module_changes(load(half, tokenizer=False), load(tuned, tokenizer=False), k=1).data.sel(layer=0, module=UP)
    assert int(found["rank"]) == 1, "bfloat16 makes the change full rank, and all but one direction of it is rounding"


def test_a_model_and_itself_have_nothing_between_them(base):
    model = load(copy.deepcopy(base), tokenizer=False)
    found = module_changes(model, model)
    assert (
        not found.data.relative.any()
        and np.isnan(found.data.overlap).all()
        and found.warnings[0].startswith("no parameter differs")
    )


def test_vectors_and_experts_have_norms_and_no_spectrum(tiny_models):
    a, b = (load(str(tiny_models["mixtral"])) for _ in range(2))
    experts = dict(b.live.original_model.named_parameters())
    next(p for n, p in experts.items() if "experts.down_proj" in n and ".0." in n).data.mul_(1.1)
    found = module_changes(a, b, k=2)
    assert float(found.data.relative.sel(layer=0, module="mlp.experts.down_proj")) == pytest.approx(0.1, rel=1e-3)
    assert np.isnan(
        found.data["rank"].sel(layer=0, module="mlp.experts.down_proj")
    ) and "mlp.experts.down_proj" not in set(found.tables["spectrum"].module)


def test_what_does_not_correspond_is_refused_saying_where(base):
    a = load(copy.deepcopy(base), tokenizer=word_tokenizer(WORDS, add_bos=True))
    swapped = word_tokenizer([*WORDS[:5], WORDS[6], WORDS[5], *WORDS[7:]], add_bos=True)
    with pytest.raises(BadData, match=r"part at token 5 of row 0: 'w2' \(id 5\) and 'w3' \(id 5\)"):
        module_changes(a, load(copy.deepcopy(base), tokenizer=swapped))
    with pytest.raises(UnsupportedModel, match="n_layers is 2 and 3"):
        module_changes(a, load(fresh(num_hidden_layers=3), tokenizer=False))
    with pytest.raises(UnsupportedModel, match=r"gate_proj.weight has shape \(64, 32\) and \(48, 32\)"):
        module_changes(a, load(fresh(intermediate_size=48), tokenizer=False))
    with pytest.raises(UnsupportedModel, match="d_vocab is 64 and 70"):
        module_changes(a, a, load(fresh(vocab_size=70), tokenizer=False))
    with pytest.raises(BadData, match="k=0"):
        module_changes(a, a, k=0)


class StopAfter(Progress):
    def __init__(self, n):
        super().__init__()
        self.n = n

    def show(self):
        if self.done >= self.n:
            self.cancel()


def test_cancelled_it_keeps_all_norms_and_the_matrices_it_reached_and_survives_the_disk(base, tmp_path):
    tuned = planted(
        base,
        {(layer, UP): 0.01 * torch.randn(64, 32, generator=torch.Generator().manual_seed(layer)) for layer in (0, 1)},
    )
    models = load(copy.deepcopy(base), tokenizer=False), load(tuned, tokenizer=False)
    found = module_changes(*models, k=2, progress=StopAfter(7))
    assert found.partial and found.data.relative.notnull().all()
    assert found.data["rank"].sel(layer=0, module=UP).notnull() and np.isnan(found.data["rank"].sel(layer=1, module=UP))
    again = Result.load(found.save(tmp_path / "r"))
    assert again.data.equals(found.data) and again.tables["parameters"].equals(found.tables["parameters"])
    none = module_changes(*models, k=2, progress=StopAfter(0))
    assert none.partial and none.data.relative.notnull().all()
    Result.load(none.save(tmp_path / "none"))
