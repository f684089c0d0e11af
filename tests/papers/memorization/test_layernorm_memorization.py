"""LayerNorm and memorisation: scores by hand, arms that do what they say, stored runs, any family, resume."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf
import xarray as xr

from workbench.core.claims import NOT_SHOWN, Measured, check
from workbench.core.errors import BadData, BadSpec, BrokenResult, ModelNotFound, NotFired, NoTokenizer
from workbench.core.places import data_folder
from workbench.core.progress import Progress
from workbench.core.result import Result
from workbench.datasets import feelings
from workbench.models import ModelSpec, load
from workbench.organisms.tokenizer import word_tokenizer
from workbench.papers.memorization.layernorm_memorization import claims, method
from workbench.papers.memorization.layernorm_memorization.arms import ARMS, WITH_GRADIENTS
from workbench.papers.memorization.layernorm_memorization.claims import CLAIMS
from workbench.papers.memorization.layernorm_memorization.runs import check_untouched
from workbench.papers.memorization.layernorm_memorization.scores import SCORES, combine, runs_of, tables_of, with_scores
from workbench.runs.seeds import Seeds
from workbench.runs.stored import HERE, STORED
from workbench.training.pretrained_classifier import load_classifier
from workbench.weights import layer_norms as ln

N_WORDS, WIDE = len(feelings.VOCABULARY), {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
SIZE = WIDE | {"vocab_size": N_WORDS, "intermediate_size": 32, "max_position_embeddings": 24, "pad_token_id": 0}
NEO = {"hidden_size": 16, "num_layers": 3, "num_heads": 2, "attention_types": [[["global", "local", "global"], 1]]}
NEO |= {"vocab_size": N_WORDS, "max_position_embeddings": 24, "bos_token_id": 1, "eos_token_id": 1}
IMAGE = {"intermediate_size": 32, "image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10}
MODELS = {
    "bert": lambda: tf.BertForMaskedLM(tf.BertConfig(**SIZE)),
    "gpt_neo": lambda: tf.GPTNeoForCausalLM(tf.GPTNeoConfig(**NEO)),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**SIZE, num_key_value_heads=1)),
    "vit": lambda: tf.ViTForImageClassification(tf.ViTConfig(**WIDE, **IMAGE)),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Small random checkpoints whose norms are off 1 and 0, as pretraining leaves them."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name, make in MODELS.items():
        torch.manual_seed(5)
        module = make()
        with torch.no_grad():
            for norm in ln.norms(module):
                norm.gain.add_(torch.randn_like(norm.gain) * 0.3)
        module.save_pretrained(root / name)
        if name != "vit":
            word_tokenizer(feelings.VOCABULARY, add_bos=True).save_pretrained(root / name)
    return {name: root / name for name in MODELS}


def small(folder: Path, **changes) -> method.Spec:
    plain = {"n_train": 60, "n_test": 20, "epochs": 2, "seeds": (0, 1), "n_gradient": 6, "lr": 1e-3}
    plain["arms"] = ("kept", "removed", "early", "placebo")
    return method.Spec.small(str(folder)).replace(**plain | changes)


@pytest.fixture(scope="module")
def result(models) -> Result:
    return method.run(small(models["bert"], arms=tuple(ARMS), beside=(str(models["gpt_neo"]),)))


# ---- scores ----


def rows(**changes) -> xr.Dataset:
    """One run of 3 epochs on 6 training samples, the last three noisy, and 4 test samples."""
    train = [[0, 1, 2, 0, 0, 0], [0, 1, 2, 1, 2, 0], [0, 1, 2, 2, 0, 1]]
    plain = {
        "predicted_train": (("run", "epoch", "train"), np.array([train], np.int16)),
        "true_label": (("run", "train"), np.array([[0, 1, 2, 2, 2, 2]], np.int16)),
        "trained_label": (("run", "train"), np.array([[0, 1, 2, 1, 0, 1]], np.int16)),
        "predicted_test": (("run", "epoch", "test"), np.array([[[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 2, 0]]], np.int16)),
        "test_label": (("run", "test"), np.array([[0, 1, 2, 2]], np.int16)),
    }
    return xr.Dataset(plain | changes)


def test_scores_by_hand():
    """Noisy samples: true 2 2 2, trained on 1 0 1. Predicted 0 0 0, then 1 2 0, then 2 0 1."""
    scored = with_scores(rows()).isel(run=0)
    np.testing.assert_allclose(scored["memorisation"], np.array([1, 1, 2]) / 3 * 100, rtol=1e-5)
    np.testing.assert_allclose(scored["recovery"], np.array([0, 1, 1]) / 3 * 100, rtol=1e-5)
    np.testing.assert_allclose(scored["random"], np.array([2, 1, 0]) / 3 * 100, rtol=1e-5)
    np.testing.assert_allclose(scored["learning"], [25, 50, 75])
    np.testing.assert_allclose(scored["train_accuracy"], np.array([4, 4, 5]) / 6 * 100, rtol=1e-5)
    np.testing.assert_allclose(scored["overfit_gap"], scored["train_accuracy"] - scored["learning"], rtol=1e-5)


def test_without_noise_scores_are_undefined_and_not_zero():
    clean = rows(trained_label=rows()["true_label"])
    scored = with_scores(clean)
    assert all(scored[name].isnull().all() for name in ("memorisation", "recovery", "random"))
    assert scored["learning"].notnull().all() and scored["train_accuracy"].notnull().all()


def test_padding_counts_nowhere():
    """The same run beside a longer one with more samples scores the same."""
    numbered = lambda part: part.assign_coords({d: range(n) for d, n in part.sizes.items() if d != "run"})  # noqa: E731
    more = [{d: (0, 2) for d in dims if d != "run"} for dims in (v.dims for v in rows().data_vars.values())]
    longer = xr.Dataset({n: rows()[n].pad(by, constant_values=1) for n, by in zip(rows().data_vars, more, strict=True)})
    both = combine([numbered(rows()), numbered(longer)])
    scored, alone = with_scores(both), with_scores(rows())
    for name in SCORES:
        np.testing.assert_allclose(scored[name][0, :3], alone[name][0], rtol=1e-5)
        assert scored[name][0, 3:].isnull().all()
    xr.testing.assert_identical(combine([both.isel(run=[0])]), combine([numbered(rows())]))  # its padding falls away


# ---- arms ----


def of(result: Result, arm: str, **which) -> xr.Dataset:
    return runs_of(result.data, arm=arm, origin=HERE, **which)


def test_every_arm_ran_for_every_model_and_seed(result):
    counts = pd.DataFrame({n: result.data[n].values for n in ("model", "arm")}).value_counts()
    expected = {(m, a): 1 if a == "clean" else 2 for m in ("bert", "gpt_neo") for a in ARMS}
    assert not result.partial and counts.to_dict() == expected
    assert set(result.data["placement"].values[result.data["model"].values == "bert"]) == {"post"}
    assert set(result.data["placement"].values[result.data["model"].values == "gpt_neo"]) == {"pre"}


def test_removal_moves_a_pretrained_model_before_training_and_not_a_fresh_one(result):
    assert all((of(result, arm)["effect"] > 1e-4).all() for arm in ("removed", "early", "whole"))
    still = ("kept", "placebo", "scratch_kept", "scratch_removed", "clean")
    assert all((of(result, arm)["effect"] == 0).all() for arm in still)
    kept, removed = of(result, "scratch_kept"), of(result, "scratch_removed")
    np.testing.assert_array_equal(kept["predicted_train"][:, 0], removed["predicted_train"][:, 0])
    np.testing.assert_array_equal(kept["predicted_test"][:, 0], removed["predicted_test"][:, 0])


def test_what_is_removed_is_counted(result):
    bert = {arm: int(of(result, arm, model="bert")["n_removed"][0]) for arm in ARMS}
    assert bert["removed"] == bert["whole"] == bert["placebo"] == 2 * 16 * 7  # embedding norm and two a block
    assert bert["early"] == bert["middle"] == bert["late"] == 2 * 16 * 2 and bert["kept"] == bert["clean"] == 0


def test_arms_of_a_seed_share_noise_and_head(result):
    for model in ("bert", "gpt_neo"):
        noisy = [of(result, arm, model=model)["trained_label"] for arm in ("kept", "removed", "early", "placebo")]
        assert all((n.values == noisy[0].values).all() for n in noisy)
        assert (noisy[0][0] != noisy[0][1]).any()
        kept, placebo = (of(result, arm, model=model)["predicted_test"][:, 0] for arm in ("kept", "placebo"))
        np.testing.assert_array_equal(kept, placebo)


def test_the_table_of_runs_says_what_each_ended_with(result):
    table = result.tables["runs"]
    assert len(table) == result.data.sizes["run"] and (table["memorisation"].isna() == (table["arm"] == "clean")).all()
    np.testing.assert_allclose(table["learning"], result.data["learning"].isel(epoch=2), rtol=1e-6)


def test_gradients_are_measured_at_every_norm_for_all_groups(result):
    for arm in WITH_GRADIENTS:
        found = of(result, arm)["gradient_norm"].sel(epoch=[0, 1, 2])
        assert found.sizes["layer"] == 3 and found.sizes["norm"] == 2 and bool((found > 0).all())
    assert of(result, "early")["gradient_norm"].isnull().all()


def test_an_arm_that_moved_what_it_should_not_is_an_error():
    module = torch.nn.Linear(2, 2)
    frozen = {"weight": module.weight.detach().clone()}
    check_untouched(module, frozen, {})
    with torch.no_grad():
        module.weight[0, 0] += 1
    with pytest.raises(NotFired, match="weight was to be left out"):
        check_untouched(module, frozen, {})
    held = {"weight": torch.tensor([[False, True], [True, True]])}
    check_untouched(module, frozen, held)


def test_followers_train_as_long_as_the_arm_they_follow(models):
    spec = small(models["bert"], epochs=40, overtrain=0.25, arms=("removed", "kept"), seeds=(0,), n_train=24, lr=1e-2)
    found = method.run(spec.replace(noise_rate=0.1, n_gradient=0))
    kept, removed = of(found, "kept"), of(found, "removed")
    fitted = int(np.flatnonzero(kept["train_accuracy"].values[0] >= 100)[0])
    assert int(kept["n_epochs"][0]) == int(np.ceil(1.25 * fitted)) == int(removed["n_epochs"][0]) < 40
    table = found.tables["summary"].query("table == 'first_fit'").set_index(["arm", "score"])["mean"]
    assert table["kept", "train_accuracy"] == 100
    assert table["removed", "memorisation"] == pytest.approx(float(removed["memorisation"][0, fitted]))


# ---- claims ----


def changed(result: Result, data: xr.Dataset) -> Result:
    """The result with other data, and its tables made again from them."""
    return Result(result.provenance, data, result.tables | tables_of(data))


def relabelled(result: Result, origin: str) -> Result:
    n = result.data.sizes["run"]
    return changed(result, result.data.assign_coords(origin=("run", [origin] * n)).assign(start_ships=("run", [1] * n)))


def doctored(result: Result, **finals: float) -> Result:
    """The result with scores written over: {"post_removed_memorisation": 20.0} sets the last epoch of those runs."""
    data = result.data.copy(deep=True)
    for name, value in finals.items():
        placement, arm, score = name.split("_", 2)
        for i in np.flatnonzero((data["placement"].values == placement) & (data["arm"].values == arm)):
            data[score].values[i, int(data["n_epochs"].values[i])] = value
    return changed(result, data)


def verdict(result: Result, part: str) -> tuple[float, bool | None]:
    line = next(line for line in check(result, CLAIMS).lines if part in line.claim.text)
    return line.measured, line.ok


def test_lines_are_measured_on_the_stored_runs_where_there_are_any(result):
    stored = relabelled(doctored(result, post_kept_learning=50.0, post_removed_learning=40.0), STORED)
    both = changed(result, xr.concat([stored.data.drop_vars("start_ships"), result.data], "run"))
    here, kept, joined = (verdict(r, "5 points of test accuracy")[0] for r in (result, stored, both))
    assert here != kept == joined == 10.0


def test_every_line_but_those_of_stored_runs_can_be_tested_on_your_own_runs(result):
    untested = {line.claim.text for line in check(result, CLAIMS).lines if np.isnan(line.measured)}
    assert untested == {claim.text for claim in CLAIMS if "stored" in claim.text} and len(untested) == 3
    assert {c.kind for c in CLAIMS if "stored" not in c.text} == {"claim", "ours", "control"}


def test_the_least_favourable_data_set_is_shown_with_the_worst_ends_of_all_intervals(result):
    values = {"a": Seeds(pd.Series([16.0, 16.0])), "b": Seeds(pd.Series([18.0, 30.0])), "c": None}
    two = Result(result.provenance, tables={"runs": pd.DataFrame({"data": list(values)})})
    low, high = values["b"].interval
    assert claims.least(lambda r, name: values[name])(two) == Measured(16.0, low, 16.0)
    assert claims.most(lambda r, name: values[name])(two) == Measured(24.0, 16.0, high)
    assert claims.least(lambda r, name: None)(two) is None


def test_claims_need_no_torch():
    code = "import sys, workbench as wb; wb.method('layernorm_memorization').CLAIMS; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_papers_pattern_would_be_seen(result):
    """Written-over scores with the paper's numbers for BERT and GPT-Neo: the claims hold. With none, not."""
    seen = {
        "post_kept_memorisation": 100.0, "post_removed_memorisation": 20.6, "post_removed_recovery": 76.3,
        "post_early_memorisation": 50.0, "post_middle_memorisation": 90.0, "post_late_memorisation": 95.0,
        "post_kept_learning": 91.7, "post_removed_learning": 92.0, "pre_removed_recovery": 16.6,
        "pre_kept_learning": 91.4, "pre_removed_learning": 84.9,
        "pre_kept_overfit_gap": 8.6, "pre_removed_overfit_gap": 15.1,
    }  # fmt: skip
    quiet = {"post_placebo_memorisation": 100.0, "pre_placebo_memorisation": 0.0, "pre_kept_memorisation": 0.0}
    paper = doctored(result, **seen, **quiet)
    assert verdict(paper, "lowers memorisation by 15") == (pytest.approx(79.4, abs=0.01), True)
    assert verdict(paper, "costs at most 5 points") == (pytest.approx(-0.3, abs=0.01), True)
    assert verdict(paper, "15 points higher in Post-LN") == (pytest.approx(59.7, abs=0.01), True)
    assert verdict(paper, "widens the overfit gap") == (pytest.approx(6.5, abs=0.01), True)
    assert verdict(paper, "early third matters most") == (pytest.approx(40, abs=0.01), True)
    same = {"post_kept_memorisation": 100.0, "post_removed_memorisation": 100.0}
    nothing = doctored(result, **same, post_removed_recovery=0.0, pre_removed_recovery=0.0)
    assert verdict(nothing, "lowers memorisation by 15") == (0.0, False)
    assert verdict(nothing, "15 points higher") == (0.0, False)


def test_controls_can_hold(result):
    """A placebo that 'works', a fresh model that forgets and defined scores without noise are all reported."""
    broken = doctored(
        result, post_kept_memorisation=100.0, post_removed_memorisation=50.0, post_placebo_memorisation=80.0,
        pre_placebo_memorisation=0.0, pre_kept_memorisation=0.0,
    )  # fmt: skip
    assert verdict(broken, "random other parameters") == (20.0, False)
    guarded = next(line for line in check(broken, CLAIMS).lines if "lowers memorisation" in line.claim.text)
    assert guarded.measured == 50.0 and guarded.verdict == NOT_SHOWN
    data = result.data.copy(deep=True)
    data["memorisation"].values[data["arm"].values == "clean"] = 0.0
    assert verdict(changed(result, data), "still a number")[1] is False
    assert verdict(result, "still a number") == (0.0, True)
    assert verdict(result, "changes nothing before training") == (0.0, True)


def test_the_gradient_ratio_by_hand(result):
    data = result.data.copy(deep=True)
    for i in np.flatnonzero(data["arm"].values == "kept"):
        at = data["gradient_norm"].values[i, int(data["n_epochs"].values[i])]
        at[0], at[1], at[2] = 6.0, 2.0, 12.0
        at[0, 1, 1] = 5.0
    other = changed(result, data)
    assert verdict(other, "at least mem-norm") == (2.5, True)
    assert verdict(other, "CLEAN training samples") == (pytest.approx(5 / 12, rel=1e-5), True)  # fails, as it must


def test_a_repeated_run_is_compared_with_its_own_twin(result):
    here, stored = result.data.isel(run=[0]), relabelled(result, STORED).data.copy(deep=True)
    others = stored["arm"].values != here["arm"].item()
    stored["predicted_train"].values[others] = (stored["predicted_train"].values[others] + 1) % 6  # all others differ
    joined = combine([stored, here])

    def lines(is_same: int) -> list[tuple[float, bool | None]]:
        joined.attrs["same_recipe"] = is_same
        return [(line.measured, line.ok) for line in check(replace(result, data=joined), [claims.REPEATS]).lines]

    assert lines(1) == [(100.0, True), (0.0, True)]
    assert all(np.isnan(measured) and ok is None for measured, ok in lines(0))


# ---- any model ----


@pytest.mark.parametrize("family", ["gpt_neo", "qwen2", "vit"])
def test_other_families_run(models, family):
    found = method.run(small(models[family], seeds=(0,), arms=("kept", "removed", "middle"), epochs=1, data=None))
    assert set(found.data["placement"].values) == {"pre"}
    assert set(found.data["data"].values) == {"digits" if family == "vit" else "feelings"}
    per_norm = 16 if family == "qwen2" else 32  # RMSNorm has no bias to lose
    assert [int(of(found, arm)["n_removed"][0]) for arm in ("removed", "middle")] == [per_norm * 7, per_norm * 2]
    assert float(of(found, "removed")["effect"][0]) > 1e-4


def csv_file(folder: Path) -> Path:
    path = folder / "mine.csv"
    drawn = feelings.draw(40, np.random.default_rng(3))
    moods = [feelings.CLASSES[k] for k in drawn.labels]
    pd.DataFrame({"sentence": drawn.texts(), "mood": moods}).to_csv(path, index=False)
    return path


def test_your_own_csv_from_the_command_line(models, tmp_path):
    from cli_runner import workbench

    data = csv_file(tmp_path)
    changes = ["arms=kept,removed", "seeds=0,1", "epochs=1", f"data={data}", "text_column=sentence"]
    changes += ["label_column=mood", "n_gradient=4", "noise_rate=0.1"]
    ask = ["--model", str(models["bert"]), "--out", str(tmp_path / "out"), "--json"]
    code, out, err = workbench("run", "layernorm_memorization", *ask, *(x for c in changes for x in ("--set", c)))
    assert code in (0, 1), err
    found = Result.load(tmp_path / "out" / "result")
    assert set(found.data["data"].values) == {"mine.csv"} and found.data.sizes["run"] == 4
    assert found.tables["classes"]["name"].tolist() == sorted(feelings.CLASSES)
    shown = json.loads(out)
    assert any(c["measured"] is not None for c in shown["claims"])
    assert str(tmp_path) not in json.dumps(found.data.coords.to_dataset().to_dict())


def test_a_loaded_model_is_not_touched(models):
    model = load(str(models["bert"]))
    before = {n: p.detach().clone() for n, p in model.live.original_model.named_parameters()}
    found = method.run(small(models["gpt_neo"], seeds=(0,), arms=("removed",), epochs=1), model=model)
    assert set(found.data["model"].values) == {"bert"}  # the model that was handed over, not the one in the spec
    assert all(torch.equal(p, before[n]) for n, p in model.live.original_model.named_parameters())


# ---- bad input ----


def test_bad_input_says_what_would_work(models, tmp_path, monkeypatch):
    with pytest.raises(BadData, match=r"a rate up to 0\.\d+ works"):
        method.run(small(models["bert"], noise_rate=0.9))
    with pytest.raises(BadSpec, match="names something twice"):
        method.Spec(seeds=(1, 1))
    with pytest.raises(BadSpec, match="at least one of arms"):
        method.Spec(arms=())
    shutil.copytree(models["bert"], tmp_path / "mute", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(NoTokenizer, match="came without a tokenizer"):
        method.run(small(tmp_path / "mute"))
    with pytest.raises(BadSpec, match="given in memory"):
        method.run(small(models["bert"]), model=load(MODELS["bert"](), tokenizer=False))
    shutil.copytree(models["bert"], tmp_path / "bert")
    with pytest.raises(BadSpec, match="two of the models are called the same"):
        method.run(small(models["bert"], beside=(str(tmp_path / "bert"),)))
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    with pytest.raises(ModelNotFound, match="stored runs are not beside"):
        method.load_stored()


# ---- cancel, resume ----


class StopAt(Progress):
    def __init__(self, at: int):
        super().__init__()
        self.at, self.kept = at, []

    def update(self, done, total, text=""):
        if done >= self.at:
            self.cancel()
        super().update(done, total, text)

    def keep(self, partial):
        self.kept.append(partial())


def test_a_cancelled_run_keeps_its_finished_runs_and_goes_on_to_the_same_numbers(models, tmp_path):
    spec = small(models["bert"], arms=("kept", "early", "clean"), n_gradient=4)
    whole = method.run(spec)
    stop = StopAt(250)  # in the middle of the third of five runs
    partial = method.run(spec, progress=stop)
    assert partial.partial and partial.data.sizes["run"] == 2 == len(stop.kept) and stop.kept[0].data.sizes["run"] == 1
    assert all(line.ok is None for line in check(partial, CLAIMS).lines)
    again = method.run(spec, resume=Result.load(partial.save(tmp_path / "p")))
    for name in ("predicted_train", "predicted_test", "gradient_norm", *SCORES):
        np.testing.assert_array_equal(again.data[name], whole.data[name])
    timed = ("trained", "seconds", "cpu_seconds")
    xr.testing.assert_equal(again.data.drop_vars(timed), whole.data.drop_vars(timed))
    for name in ("samples", "classes", "sets", "first_fit", "summary"):
        pd.testing.assert_frame_equal(again.tables[name], whole.tables[name])
    one = method.run(spec.replace(seeds=(0,)), resume=whole)
    assert one.data["seed"].values.tolist() == [0, 0, 0] and len(one.tables["runs"]) == 3
    for changes, said in (({"lr": 1e-4}, "lr"), ({"arms": ("kept", "early")}, "arms")):
        with pytest.raises(BadData, match=rf"of another spec \({said}\)"):
            method.run(spec.replace(**changes), resume=partial)
    with pytest.raises(BadData, match=r"of another spec \(once, seeds\)"):  # without its kept run, an arm trains longer
        method.run(spec.replace(seeds=(0,), once=("kept",)), resume=partial)


def test_cancelled_before_anything_finished(models):
    partial = method.run(small(models["bert"]), progress=StopAt(0))
    assert partial.partial and not partial.data.sizes.get("run")
    assert all(line.ok is None for line in check(partial, CLAIMS).lines)
    assert method.run(small(models["bert"], arms=("kept",), seeds=(0,)), resume=None).data.sizes["run"] == 1


def test_a_half_trained_run_goes_on_from_its_checkpoint(models, tmp_path):
    spec = small(models["bert"], arms=("kept",), seeds=(0,), epochs=4, checkpoints=str(tmp_path / "c"))
    partial = method.run(spec, progress=StopAt(60))
    assert partial.partial and len(list((tmp_path / "c").iterdir())) == 1
    again = method.run(spec, resume=partial)
    whole = method.run(spec.replace(checkpoints=None))
    np.testing.assert_array_equal(again.data["predicted_train"], whole.data["predicted_train"])
    assert not list((tmp_path / "c").iterdir())


# ---- what ships ----


@pytest.fixture(scope="module")
def stored() -> Result:
    return method.load_stored()


def test_what_ships_is_whole_and_says_that_it_is_stored(stored):
    data, full = stored.data, method.Spec.full()
    assert set(data["origin"].values) == {STORED} and (data["start_ships"] == 1).all() and not stored.partial
    assert set(data["model"].values) == set(method.ORGANISMS)
    for model in method.ORGANISMS:
        for arm in ARMS:
            seeds = data["seed"].values[(data["model"].values == model) & (data["arm"].values == arm)]
            assert sorted(seeds) == ([0] if arm in full.once else [0, 1, 2]), (model, arm)
    assert method.Spec.from_dict(stored.spec) == full


@pytest.mark.parametrize("name", ["digits", "feelings"])
def test_what_the_stored_runs_measure_does_not_change(stored, name):
    """Each line on one data set alone; both together are the least favourable of the two."""
    tables = {key: table[table["data"] == name] for key, table in stored.tables.items()}
    one = check(replace(stored, data=runs_of(stored.data, data=name), tables=tables), CLAIMS)
    known = json.loads((Path(__file__).parent / "stored_numbers.json").read_text("utf-8"))
    found = {line.claim.text: line.measured for line in one.lines if line.claim.text in known[name]}
    assert found == pytest.approx(known[name], rel=1e-6, abs=1e-9)
    for line in check(stored, CLAIMS).lines:
        if line.claim.text in found:
            assert line.measured in (pytest.approx(known[n][line.claim.text], rel=1e-6, abs=1e-9) for n in known)


def test_stored_placements_differ_and_sizes_do_not():
    sizes = {}
    for name in method.ORGANISMS:
        module, _ = load_classifier(ModelSpec(name=name), 2, seed=0)
        outside = sum(norm.n_parameters for norm in ln.norms(module) if norm.block is None)
        sizes[name] = sum(p.numel() for p in module.parameters()) - outside
    for kind in ("digits", "feelings"):
        assert sizes[f"organism:{kind}-postln"] == sizes[f"organism:{kind}-preln"] < 300_000


def test_altered_stored_runs_are_refused(stored, tmp_path, monkeypatch):
    shutil.copytree(data_folder() / method.STEM, tmp_path / method.STEM)
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    file = tmp_path / method.STEM / "runs" / "data.nc"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(BrokenResult, match="checksum differs"):
        method.load_stored()
    better = stored.data.copy(deep=True)
    better["memorisation"].values[0] = 0.0  # a flattering score that its predictions do not give
    Result(stored.provenance, better.drop_vars("start_ships"), stored.tables).save(tmp_path / method.STEM / "runs")
    with pytest.raises(BadData, match="stored memorisation is not what the stored predictions say"):
        method.load_stored()


@pytest.mark.slow
def test_tiny_joins_stored_runs_with_one_trained_now(stored):
    found = method.run(method.Spec.tiny())
    data = found.data
    assert data.sizes["run"] == stored.data.sizes["run"] + 1 and (data["origin"].values == HERE).sum() == 1
    assert found.provenance.data["stored"]["n_runs"] == stored.data.sizes["run"] and "are stored" in found.warnings[0]
    lines = {line.claim.text: line for line in check(found, CLAIMS).lines}
    assert lines["all stored runs started from the weights that ship"].ok
    twin = lines["the run repeats its stored twin (predictions on noisy samples)"]
    other = lines["the run agrees as well with the stored run of another arm"]
    assert twin.measured >= 90 > 0 and other.measured < twin.measured  # whether the other stays under 90 is a finding
    for line in check(stored, CLAIMS).lines:
        if line.claim.text not in (twin.claim.text, other.claim.text):
            np.testing.assert_equal(lines[line.claim.text].measured, line.measured)
