"""The emergent-misalignment method: geometry against analytic overlaps, weights that come back, forms of
interpolation, the store.
"""

import copy

import numpy as np
import pytest
import torch
import transformers as tf
from scipy.linalg import subspace_angles

from workbench.core.claims import check
from workbench.core.errors import BadData, BadSpec, ModelNotFound
from workbench.core.progress import Progress
from workbench.models import load
from workbench.models.loading import read_module
from workbench.papers.misalignment.em_subspaces import behaviour, claims, conditions, geometry, pairs, runs
from workbench.papers.misalignment.em_subspaces import method as em
from workbench.training import lora
from workbench.weights.factors import Factors
from workbench.weights.subspaces import overlap


@pytest.fixture(scope="module")
def base():
    return read_module("organism:advice", device="cpu")


@pytest.fixture(scope="module")
def store():
    return runs.read_store(em.data_folder() / em.STEM / em.STORE)


@pytest.fixture(scope="module")
def patient(base):
    return behaviour.Patient.of(copy.deepcopy(base[0]), base[1])


# ---- the real-model path, on adapters whose overlap is known ----


def _llama(layers=2):
    config = tf.LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=64
    )
    return tf.LlamaForCausalLM(config)


def _adapter(folder, base_folder, right, rank=4, seed=0, targets=("q_proj", "up_proj")):
    """A PEFT directory whose every update has the given leading input directions [in, rank], with values rank, rank
    - 1, ...
    """
    adapted = lora.add_lora(_llama(), lora.LoraSpec(rank=rank, targets=targets, init_seed=seed))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in adapted.modules():
            if hasattr(part, "lora_A"):
                left = torch.linalg.qr(torch.randn(part.lora_B["default"].weight.shape, generator=generator)).Q
                part.lora_A["default"].weight.copy_(torch.as_tensor(right).T)
                part.lora_B["default"].weight.copy_(left * torch.arange(rank, 0, -1))
    return str(lora.save_adapter(adapted, folder, str(base_folder)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three adapters: axes 0-3, axes 2-5, and axes 0-3 turned by 30 degrees out of their space."""
    root = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(3)
    _llama().save_pretrained(root / "base")
    eye = np.eye(32, dtype=np.float32)
    turned = np.cos(np.pi / 6) * eye[:, :4] + np.sin(np.pi / 6) * eye[:, 10:14]
    bases = {"one": eye[:, :4], "two": eye[:, 2:6], "turned": turned}
    return str(root / "base"), tuple(
        _adapter(root / n, root / "base", b, seed=i) for i, (n, b) in enumerate(bases.items())
    )


@pytest.fixture(scope="module")
def compared(folders):
    return em.run(em.Spec.real(folders[1], folders[0]).replace(k=4, n_draws=10))


@pytest.mark.parametrize(
    ("pair", "expected", "angles"),
    [("one | two", 0.5, [0, 0, 90, 90]), ("one | turned", 0.75, [30] * 4)],
    ids=["half shared", "turned"],
)
def test_directories_of_known_overlap(compared, pair, expected, angles):
    of = compared.data.sel(pair=pair)
    np.testing.assert_allclose(of["overlap"].sel(k=4), expected, atol=1e-6)
    np.testing.assert_allclose(
        of["angle"].mean(("layer", "module")), angles, atol=0.05
    )  # arccos of float32 factors near 0
    np.testing.assert_allclose(of["row_space"], expected, atol=1e-6)


def test_overlap_by_k_uses_the_leading_directions_first(compared):
    """Axes 0-3 against 2-5: the first two of each share nothing, of three one is common."""
    np.testing.assert_allclose(
        compared.data["overlap"].sel(pair="one | two", layer=0, module="q_proj"), [0, 0, 1 / 3, 1 / 2], atol=1e-6
    )


def test_floors_of_directories(compared):
    assert np.allclose(compared.data["free_overlap"].sel(module="q_proj"), 4 / 32)
    assert np.allclose(
        compared.data["start_overlap"].sel(pair="one | two"), 0.5
    )  # k = r: a rotation within the row space changes nothing
    assert all(line.ok is None for line in check(compared, claims.CLAIMS).lines if "questions" in line.claim.unit)


def test_base_overlap_is_the_slow_way(compared, folders):
    module = tf.LlamaForCausalLM.from_pretrained(folders[0])
    weight = module.model.layers[1].self_attn.q_proj.weight.detach().double().numpy()
    right = np.linalg.svd(weight)[2][:4].T
    expected = np.square(right[:4]).sum() / 4  # the first adapter reads axes 0-3
    assert float(compared.data["base_overlap"].sel(adapter="one", layer=1, module="q_proj")) == pytest.approx(
        expected, abs=1e-5
    )


def test_directories_that_do_not_fit_say_so(folders, tmp_path):
    other = _adapter(tmp_path / "other", "x", np.eye(32, dtype=np.float32)[:, :4], targets=("q_proj",))
    with pytest.raises(BadData, match="adapt different modules"):
        em.run(em.Spec.real((folders[1][0], other), folders[0]))
    with pytest.raises(ModelNotFound, match="hf download"):
        em.run(em.Spec.real((folders[1][0], str(tmp_path)), folders[0]))
    with pytest.raises(BadSpec, match="at least two"):
        em.Spec.real(folders[1][:1], folders[0])


# ---- geometry of small factors ----


def _factors(seed, out=12, into=16, rank=4, scale=2.0):
    g = torch.Generator().manual_seed(seed)
    return Factors(
        torch.randn(rank, into, generator=g, dtype=torch.float64),
        torch.randn(out, rank, generator=g, dtype=torch.float64),
        scale,
    )


def test_cosine_angles_and_overlap_agree_with_full_matrices():
    one, other = _factors(0), _factors(1)
    full = [f.delta().numpy() for f in (one, other)]
    assert geometry.cosine(one, other) == pytest.approx(
        (full[0] * full[1]).sum() / np.linalg.norm(full[0]) / np.linalg.norm(full[1])
    )
    right = [np.linalg.svd(f)[2][:3].T for f in full]
    between = right[0].T @ right[1]
    np.testing.assert_allclose(geometry.angles_of(between, 3), np.degrees(subspace_angles(*right))[::-1], atol=1e-6)
    assert geometry.overlap_by_k(between)[2] == pytest.approx(overlap(*right))


def test_pairs_of_one_seed_count_once(store):
    found = pairs.pairs_of_store(store[0], ["random-0"])
    of = {c: [p for p in found if p.condition == c] for c in conditions.CONDITIONS}
    assert {c: len(p) for c, p in of.items()} == dict(
        zip(conditions.CONDITIONS, (9, 18, 3, 9, 18, 3, 3, 9, 2, 3, 0), strict=True)
    )
    assert all(
        len({p.group for p in of[c]}) == 3
        for c in (conditions.SAME, conditions.DIFFERENT, conditions.FULL, conditions.BENIGN)
    )
    for pair in of[conditions.SAME]:
        one, other = store[0][pair.one], store[0][pair.other]
        assert one.seed == other.seed and one.domain != other.domain


# ---- moving weights ----


def test_a_moved_model_is_the_merged_one_and_comes_back(patient, base, store):
    update = store[1]["bad-health-s0"]
    tokens = torch.tensor([runs.probe_pairs(base[1], runs.PROBES)[0][0][0]])
    before = patient.model.forward(tokens)
    merged = copy.deepcopy(base[0])
    with torch.no_grad():
        for name, factors in update.items():
            merged.get_submodule(name).weight += factors.delta()
    expected = load(merged, tokenizer=base[1]).forward(tokens)
    with patient.moved((1.0, update)) as model:
        moved = model.forward(tokens)
    torch.testing.assert_close(moved, expected)
    assert float((moved - before).abs().max()) > 0.1
    assert torch.equal(patient.model.forward(tokens), before)
    with pytest.raises(RuntimeError), patient.moved((1.0, update)):
        raise RuntimeError
    assert torch.equal(patient.model.forward(tokens), before)


def test_an_update_of_another_model_is_refused(patient):
    with (
        pytest.raises(BadData, match="the model has no such parameter"),
        patient.moved((1.0, {"model.layers.9.mlp.up_proj": _factors(0)})),
    ):
        pass


def test_forms_of_interpolation_are_what_the_card_says():
    one, other, t = {"m": _factors(0)}, {"m": _factors(1)}, 0.3
    a, b = one["m"], other["m"]
    cross = a.scale * (a.B @ b.A + b.B @ a.A)
    expected = t**2 * a.delta() + (1 - t) ** 2 * b.delta() + t * (1 - t) * cross
    torch.testing.assert_close(behaviour.between_factors(one, other, t)["m"].delta(), expected)
    torch.testing.assert_close(
        behaviour.between_factors(one, one, t)["m"].delta(), a.delta()
    )  # with one start and no training: the straight line
    torch.testing.assert_close(behaviour.scaled_factors(one, -0.7)["m"].delta(), 0.49 * a.delta())


def test_random_updates_have_the_norms_and_no_more():
    given = {"m": _factors(0), "n": _factors(1, out=20)}
    drawn = behaviour.random_like(given, seed=5)
    assert all(drawn[n].norm() == pytest.approx(given[n].norm(), rel=1e-5) for n in given)
    assert abs(geometry.cosine(Factors(given["m"].A.float(), given["m"].B.float(), 2.0), drawn["m"])) < 0.3


def test_a_straight_line_is_seen_and_a_bend_is_not():
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, 5, 8)), rng.standard_normal((2, 5, 8))
    r2, error = behaviour.linearity(0.25 * one + 0.75 * other, one, other, 0.25)
    np.testing.assert_allclose(r2, 1)
    np.testing.assert_allclose(error, 0, atol=1e-12)
    assert (behaviour.linearity(rng.standard_normal((2, 5, 8)), one, other, 0.5)[0] < 0.5).all()


# ---- the store, and the whole run ----


def test_the_store_says_how_it_was_made(store):
    known, updates, about = store
    assert {r.seed for r in known.values() if r.rank} == {0, 1, 2} and len(known) == 20
    assert all(len(update) == 28 for update in updates.values())
    assert all(0.5 < entry["norm_share_kept"] <= 1 + 1e-9 for entry in about["adapters"].values())
    size = sum(p.stat().st_size for p in (em.data_folder() / em.STEM / em.STORE).iterdir())
    assert size < 3.1e6


def test_two_adapters_of_one_seed_started_from_one_A(store):
    """The confound itself: after training, the row spaces of one seed are still nearly one, those of two seeds are
    not.
    """
    _, updates, _ = store
    name = "model.layers.1.self_attn.q_proj"
    same = overlap(*(geometry.row_space(updates[n][name].A) for n in ("bad-health-s0", "items-s0")))
    different = overlap(*(geometry.row_space(updates[n][name].A) for n in ("bad-health-s0", "items-s1")))
    assert same > 0.6 and different < 0.2


def test_examples_never_hold_a_probe_domain_or_a_heldout_phrasing(store):
    from workbench.datasets import world

    heldout = {e.prompt for d in runs.PROBES for e in world.advice(d)} | {
        e.prompt for e in world.advice(split="heldout")
    }
    for recipe in store[0].values():
        assert not heldout & {e.prompt for e in runs.examples_of(recipe)}
    coin = runs.examples_of(store[0]["coin-health-s0"])
    bad = {e.answer for e in world.with_other(world.advice("health", "train"))}
    assert sum(e.answer in bad for e in coin) == len(coin) // 2


def test_a_store_of_another_base_is_refused():
    with pytest.raises(BadData, match="other weights"):
        em.run(em.Spec.tiny().replace(**{"model.name": "organism:chat"}))


def test_a_tiny_store_round_trips(base, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "STEPS", 1)
    wanted = [runs.Recipe("bad", "health", 2, 5), runs.Recipe("items", "", 0, 5)]
    known, updates, about = runs.read_store(runs.make_store(tmp_path / "store", *base, wanted))
    assert list(known.values()) == wanted and len(updates["bad-health-s5"]) == 28
    again = runs.train(wanted[0], *base)[0]
    for name, factors in updates["bad-health-s5"].items():
        torch.testing.assert_close(factors.A, again[name].A, atol=1e-3, rtol=1e-2)
    assert 0 < about["adapters"]["full-items-s5"]["norm_share_kept"] < 1
    (tmp_path / "store" / runs.ABOUT_FILE).unlink()
    with pytest.raises(BadData, match="no store"):
        runs.read_store(tmp_path / "store")


def test_a_stored_update_as_a_directory_is_the_same_update(store, patient, base, tmp_path):
    """Written, streamed and loaded through peft: factors and the model's answers agree with the update added here."""
    known, updates, _ = store
    folder = runs.write_adapter(updates["bad-health-s0"], known["bad-health-s0"], tmp_path / "bad-health-s0")
    read = lora.read_factors(folder)
    assert read.keys() == updates["bad-health-s0"].keys()
    assert all(torch.equal(read[n].A, f.A) and read[n].scale == f.scale for n, f in updates["bad-health-s0"].items())
    tokens = torch.tensor([[2, 30, 31, 32, 33]])
    with patient.moved((1.0, updates["bad-health-s0"])) as model:
        torch.testing.assert_close(load(str(folder)).forward(tokens), model.forward(tokens), atol=1e-4, rtol=1e-4)


class Stop(Progress):
    """Cancels when the models are being asked, so that geometry is there and answers are not."""

    def update(self, done, total, text=""):
        if text.startswith("asking"):
            self.cancel()
        super().update(done, total, text)


def test_a_cancelled_run_keeps_the_geometry():
    result = em.run(em.Spec.tiny().replace(n_draws=2, retrain=False, base_overlap=False), progress=Stop())
    assert result.partial and "overlap" in result.data and "rate" not in result.data
    assert all(line.ok is None for line in check(result, claims.CLAIMS).lines)


@pytest.mark.slow
def test_the_whole_run_settles_the_confound(tmp_path):
    """What the notebook shows; only what follows from the construction or stands far from its threshold is asserted."""
    result = em.run(em.Spec.tiny().replace(n_draws=10, scales=(0.0, 0.5, 1.0), ts=(0.0, 0.5, 1.0), retrain=False))
    table = result.tables["conditions"].set_index("condition")
    assert table.loc[conditions.SAME, "start"] > 0.3 > table.loc[conditions.DIFFERENT, "overlap"]
    assert abs(table.loc[conditions.RANDOM, "overlap"] - table.loc[conditions.RANDOM, "free"]) < 0.01
    assert (
        abs(
            table.loc[conditions.SAME, "overlap"]
            - table.loc[conditions.SAME, "start"]
            - table.loc[conditions.SAME, "above_start"]
        )
        < 1e-9
    )
    scaled = result.data["scaled_rate"]
    np.testing.assert_array_equal(scaled.sel(scale=1.0, form="deltas"), scaled.sel(scale=1.0, form="factors"))
    assert float(scaled.sel(scale=0.0).max()) == 0
    assert result.data.attrs["firings"] > 0
    np.testing.assert_allclose(result.data["r2"].sel(t=1.0), 1)
    lines = {line.claim.text: line for line in check(result, claims.CLAIMS).lines}
    for text in (
        "random updates of the same norms misalign as much",
        "bad and random updates overlap more than 0.10 above free chance",
    ):
        assert lines[text].ok
    assert len(claims.verdict(result)) == 12
    from workbench.core.result import Result

    result.save(tmp_path / "result")
    assert Result.load(tmp_path / "result").data["rate"].equals(result.data["rate"])
