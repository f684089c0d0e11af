"""The inactive-heads method: thresholds, the sweep against a slow oracle, baselines, controls, other models, resume."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers as tf

from workbench.core.claims import check
from workbench.core.errors import BadData, UnsupportedModel
from workbench.core.progress import Progress
from workbench.models import ModelSpec, load
from workbench.papers.attention.attention_sinks import method as sinks
from workbench.papers.attention.attention_sinks.claims import CLAIMS, flagged, max_share
from workbench.primitives.score import head_scores as hs

SPEC = sinks.Spec.tiny().replace(
    n_inputs=20,
    length=32,
    scores=("awft", "aeqd_ln", "ftvvn", "ahon_ln", "lthon_hn"),
    shares=(0.0, 0.15, 0.3),
    n_random=2,
    controls=False,
    batch_size=8,
)


@pytest.fixture(scope="module")
def result(organism):
    return sinks.run(SPEC, model=organism)


def test_share_zero_is_the_untouched_model(result, organism):
    task = sinks.make_task(SPEC, organism)
    untouched = task.score(organism.forward(torch.tensor(task.rows)), torch.arange(task.n_inputs))
    for score in SPEC.scores:
        np.testing.assert_allclose(result.data["accuracy"].sel(score=score, share=0.0), untouched, atol=1e-6)
    np.testing.assert_allclose(result.data["random_accuracy"].sel(share=0.0, draw=0), untouched, atol=1e-6)
    assert (
        float(result.data["realised"].sel(share=0.0).max()) == 0
        and float(result.data["effect"].sel(share=0.0).max()) == 0
    )


def test_every_other_share_moves_the_output(result):
    assert float(result.data["effect"].sel(share=[0.15, 0.3]).min()) > 0
    assert float(result.data["realised"].sel(share=0.3).min()) > 0


def test_thresholds_flag_the_target_share_on_the_untouched_model(result):
    for score in SPEC.scores:
        # <bos> has the same value vector on every input, so that score has one value a head and moves in steps of 1/24.
        assert abs(flagged(result.data, score, 0.15).mean() - 0.15) < (1 / 24 if score == "ftvvn" else 0.01)


@pytest.mark.parametrize("score", ["awft", "ahon_ln", "lthon_hn"])
def test_dynamic_zeroing_equals_a_layer_by_layer_oracle(result, organism, score):
    """Oracle: run layer 0 alone, decide, run again with that decision fixed, decide layer 1, and so on; one input at
    a time.
    """
    task = sinks.make_task(SPEC, organism)
    threshold = float(result.data["threshold"].sel(score=score, share=0.3))
    for row in range(3):
        tokens = torch.tensor([task.rows[row]])
        decided: dict[int, torch.Tensor] = {}
        for layer in range(organism.n_layers):
            seen = {}
            hooks = [
                *_zeroing(organism, decided),
                *((organism.hook_name(s, layer), _keep(seen, s)) for s in ("pattern", "v", "z")),
            ]
            organism.forward(tokens, hook_fns=hooks)
            values = hs.head_scores(seen["pattern"], seen["v"], seen["z"], keys=(score,))[score][0]
            decided[layer] = values < threshold if hs.SCORES[score].inactive == "<" else values > threshold
        logits = organism.forward(tokens, hook_fns=_zeroing(organism, decided))
        expected = task.score(logits, torch.tensor([row]))
        np.testing.assert_allclose(
            result.data["accuracy"].sel(score=score, share=0.3).values[row], expected[0], atol=1e-6
        )


def _zeroing(model, decided):
    """Hooks that set the decided heads of each layer to zero."""
    return [
        (model.hook_name("z", layer), lambda t, hook, off=off: t * (~off)[None, None, :, None])
        for layer, off in decided.items()
    ]


def _keep(seen, site):
    return lambda t, hook: seen.__setitem__(site, t.clone())


def test_random_masks_have_the_asked_share_and_are_seeded(organism):
    masks = sinks.random_masks(400, organism, 0.15, seed=(0, 1))
    assert abs(float(masks.float().mean()) - 0.15) < 0.01
    assert torch.equal(masks, sinks.random_masks(400, organism, 0.15, seed=(0, 1)))
    assert not torch.equal(masks, sinks.random_masks(400, organism, 0.15, seed=(0, 2)))


def test_batch_size_does_not_change_the_answer(result, organism):
    other = sinks.run(SPEC.replace(batch_size=20), model=organism)
    np.testing.assert_allclose(other.data["value"], result.data["value"], rtol=1e-4, atol=1e-6)
    assert (
        float(abs(other.data["accuracy"] - result.data["accuracy"]).mean()) < 0.01
    )  # a tie at a threshold may fall either way


def test_max_share_is_the_last_crossing_by_hand(result):
    data = result.data.copy(deep=True)
    data["realised"].loc[{"score": "ahon_ln"}] = [0.0, 0.2, 0.4]
    data["accuracy"].loc[{"score": "ahon_ln"}] = np.array([0.9, 0.9, 0.8])[:, None]
    assert max_share(data, "ahon_ln") == pytest.approx(22.0)  # 90 -> 80 over 20 % of heads; 1 point is a tenth of it


def test_overlap_is_symmetric_with_ones_on_the_diagonal(result):
    overlap = result.data["overlap"].values
    np.testing.assert_allclose(overlap, overlap.T)
    np.testing.assert_allclose(np.diag(overlap), 1)


def test_a_control_can_hold(organism):
    """An untrained twin in the place of the model: its 'best' score is no better than random, and the table says so."""
    spec = dataclasses.replace(SPEC, model=ModelSpec(untrained_seed=0))
    lines = {line.claim.text: line for line in check(sinks.run(spec), CLAIMS).lines}
    assert not lines["some head gives the first token more than half of its attention"].ok
    assert lines["zeroing 15 % of heads at random also costs at most 1 point"].ok is False


def test_cancelled_run_resumes_to_the_same_numbers(result, organism):
    class StopAfter(Progress):
        def update(self, done, total, text=""):
            if done == 7:
                self.cancel()
            super().update(done, total, text)

    partial = sinks.run(SPEC, model=organism, progress=StopAfter())
    assert partial.partial and 0 < int(partial.data["accuracy"].notnull().any("input").sum()) < 15
    assert all(line.ok is None for line in check(partial, CLAIMS).lines)
    whole = sinks.run(SPEC, model=organism, resume=partial)
    np.testing.assert_array_equal(whole.data["accuracy"], result.data["accuracy"])
    np.testing.assert_array_equal(whole.data["random_accuracy"], result.data["random_accuracy"])


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "mixtral"])
def test_runs_on_any_local_causal_model(tiny_models, family, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(["river stone lamp again lamp bread salt sand ship echo ship snow"] * 3))
    spec = sinks.Spec.small(str(tiny_models[family])).replace(
        source=str(texts), length=12, shares=(0.0, 0.15), n_random=1
    )
    assert sinks.run(spec).data["realised"].sel(share=0.15).notnull().all()


def test_multiple_choice_on_a_local_model(tiny_models, tmp_path):
    """Letters A-D as answers; the random model must do what its own logits say, computed here without the method."""
    from workbench.organisms.tokenizer import word_tokenizer

    words = [
        "<pad>",
        "<bos>",
        "<unk>",
        "A",
        "B",
        "C",
        "D",
        "A.",
        "B.",
        "C.",
        "D.",
        "Answer:",
        *(f"w{i}" for i in range(52)),
    ]
    model = load(str(tiny_models["llama"]), tokenizer=word_tokenizer(words, add_bos=True))
    spec = sinks.Spec.small("any").replace(
        task="choices", n_shots=1, n_inputs=30, source=str(_questions(tmp_path)), shares=(0.0, 0.15), n_random=1
    )
    result = sinks.run(spec, model=model)
    task = sinks.make_task(spec, model)
    for i, prompt in enumerate(task.rows):
        logits = model.forward(torch.tensor([prompt]))[0, -1]
        assert float(result.data["accuracy"].sel(score="awft", share=0.0)[i]) == float(
            int(logits[task.options[i]].argmax()) == task.answers[i]
        )


def _questions(folder):
    path = folder / "questions.jsonl"
    path.write_text(
        "\n".join(
            f'{{"question": "w{i} w{i + 1}", "choices": ["w1", "w2", "w3", "w4"], "answer": {i % 4}}}'
            for i in range(12)
        )
    )
    return path


def test_scores_on_an_encoder_and_an_image_classifier(tiny_models):
    bert = load(str(tiny_models["bert"]))
    scores = sinks.score_heads(bert, torch.randint(3, 64, (4, 12)))
    assert (
        scores.dims == ("score", "input", "layer", "head")
        and scores.shape == (13, 4, 2, 4)
        and bool(scores.notnull().all())
    )
    vit = load(str(tiny_models["vit"]))
    assert sinks.score_heads(vit, torch.rand(3, 1, 8, 8), keys=("awft",)).shape == (1, 3, 2, 4)


def test_encoders_cannot_be_zeroed_by_accuracy(tiny_models):
    with pytest.raises(UnsupportedModel, match="needs a causal-lm"):
        sinks.run(SPEC, model=load(str(tiny_models["bert"])))


def test_the_organisms_language_needs_its_vocabulary(tmp_path):
    config = tf.LlamaConfig(
        vocab_size=96, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    with pytest.raises(BadData, match="96 tokens"):
        sinks.run(SPEC, model=load(tf.LlamaForCausalLM(config), tokenizer=False))


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "mixtral"])
def test_no_more_than_one_layers_pattern_is_alive(family):
    """8B models are scored layer by layer: while a layer is looked at, the patterns of the others must be gone."""
    import gc
    import weakref

    alive: list[weakref.ref] = []
    most = 0

    def spy(tensor, hook):
        nonlocal most
        alive.append(weakref.ref(tensor))
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))

    model = load(_deeper(family), tokenizer=False)
    hooks = [(model.hook_name("pattern", layer), spy) for layer in range(model.n_layers)]
    with model.alone(), model.live.hooks(fwd_hooks=hooks):
        sinks.score_heads(model, torch.randint(6, 64, (2, 16)))
    assert len(alive) == model.n_layers == 5 and most <= 2


def _deeper(family):
    from models.families import FAMILIES

    shallow = FAMILIES[family]()
    setattr(shallow.config, "n_layer" if family == "gpt2" else "num_hidden_layers", 5)
    return type(shallow)(shallow.config)
