"""Fine-tuning loop: learns, records everything, freezes what is frozen, stops when fitted, survives a kill, takes
any family.
"""

import numpy as np
import pytest
import torch
import transformers as tf

from workbench.core.errors import BadData, BadSpec
from workbench.core.progress import Cancelled
from workbench.training.classifier import ClassifierSpec, Inputs, first_fit, predict, train_classifier

CONFIG = {
    "vocab_size": 24,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 12,
    "num_labels": 3,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
SPEC = ClassifierSpec(epochs=6, batch_size=8, lr=5e-3, seed=4)


def gpt2(dropout: float = 0.0):
    torch.manual_seed(0)
    return tf.GPT2ForSequenceClassification(
        tf.GPT2Config(**CONFIG, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
    )


def task(n: int = 48) -> tuple[Inputs, np.ndarray]:
    """Rows of two lengths; the class is the first token's."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 24, 5 + i % 2).tolist() for i in range(n)]
    return Inputs(rows), np.array([row[0] % 3 for row in rows])


def run(module, spec=SPEC, **options):
    inputs, labels = task()
    return train_classifier(
        module, inputs, labels, spec, record={"train": inputs, "test": Inputs(inputs.rows[:5])}, **options
    )


def weights(module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_it_learns_and_records_every_sample_and_epoch():
    module, (inputs, labels) = gpt2(), task()
    untrained = predict(module.eval(), inputs, 8)
    log = run(module, SPEC.replace(epochs=15))
    assert log.n_epochs == 15 and len(log.loss) == 16 and np.isnan(log.loss[0]) and log.loss[-1] < 0.5 * log.loss[1]
    assert [p.shape for p in log.predictions["train"]] == [(48,)] * 16 and [
        p.shape for p in log.predictions["test"]
    ] == [(5,)] * 16
    np.testing.assert_array_equal(log.predictions["train"][0], untrained)
    np.testing.assert_array_equal(log.predictions["train"][-1], predict(module, inputs, 3))
    assert np.mean(log.predictions["train"][-1] == labels) > 0.9 and not module.training


def test_one_step_is_adam_by_hand():
    """Oracle: one batch, one epoch; Adam's first step moves every number by lr against the sign of its gradient."""
    module, (inputs, labels) = gpt2(), task()
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    loss = torch.nn.functional.cross_entropy(
        module(**inputs.batch(np.arange(48), torch.device("cpu"))).logits, torch.from_numpy(labels)
    )
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in module.named_parameters()}
    log = run(module, ClassifierSpec(epochs=1, batch_size=48, lr=1e-3, clip=1e9))
    assert log.loss[1] == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, p in module.named_parameters():
        clear = gradients[name].abs() > 1e-5
        torch.testing.assert_close(
            (before[name] - p.detach())[clear], 1e-3 * gradients[name].sign()[clear], rtol=2e-2, atol=1e-6
        )


def test_the_same_seed_gives_the_same_run_and_leaves_the_callers_random_state():
    modules = [gpt2(0.1) for _ in range(3)]
    state = torch.random.get_rng_state()
    for module, seed in zip(modules, (4, 4, 5), strict=True):
        run(module, SPEC.replace(seed=seed))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(weights(modules[0]), weights(modules[1])) and not torch.equal(
        weights(modules[0]), weights(modules[2])
    )


def test_what_is_frozen_stays_to_the_bit():
    module = gpt2()
    for p in module.transformer.h[0].parameters():
        p.requires_grad_(False)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    run(module)
    same = {n for n, p in module.named_parameters() if torch.equal(p, before[n])}
    assert same == {n for n in before if n.startswith("transformer.h.0.")}


def test_it_stops_when_fitted_and_goes_on_for_the_share_asked():
    labels = task()[1]
    whole = run(gpt2(), SPEC.replace(epochs=60))
    fitted = first_fit(whole.predictions["train"], labels, 1.0)
    assert fitted is not None and 1 < fitted < 40
    assert run(gpt2(), SPEC.replace(epochs=60, stop_at=1.0)).n_epochs == fitted
    longer = run(gpt2(), SPEC.replace(epochs=60, stop_at=1.0, overtrain=0.5))
    assert longer.n_epochs == int(np.ceil(1.5 * fitted))
    np.testing.assert_array_equal(longer.predictions["train"][-1], whole.predictions["train"][longer.n_epochs])
    assert first_fit(whole.predictions["train"][:1], labels, 1.0) is None


@pytest.mark.parametrize("dropout", [0.0, 0.1], ids=["plain", "dropout"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path, dropout):
    def stop(step: int, steps: int) -> None:
        assert steps == 36
        if step == 20:  # in the middle of epoch 3
            raise Cancelled("killed")

    def measure(epoch, module):
        return np.array([epoch, float(weights(module).sum())])

    whole, killed, resumed = gpt2(dropout), gpt2(dropout), gpt2(dropout)
    expected = run(whole, each_epoch=measure)
    with pytest.raises(Cancelled):
        run(killed, each_epoch=measure, checkpoint=tmp_path / "c", on_step=stop)
    steps = []
    log = run(resumed, each_epoch=measure, checkpoint=tmp_path / "c", on_step=lambda step, _: steps.append(step))
    assert steps[0] == 18 and torch.equal(weights(whole), weights(resumed))
    np.testing.assert_array_equal(log.loss, expected.loss)
    for name in ("train", "test"):
        np.testing.assert_array_equal(np.stack(log.predictions[name]), np.stack(expected.predictions[name]))
    assert log.measured.keys() == expected.measured.keys() == set(range(7))
    np.testing.assert_array_equal(
        np.stack([log.measured[e] for e in range(7)]), np.stack([expected.measured[e] for e in range(7)])
    )
    assert not (tmp_path / "c").exists()


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    def stop(step: int, _: int) -> None:
        if step == 8:
            raise Cancelled("killed")

    with pytest.raises(Cancelled):
        run(gpt2(), checkpoint=tmp_path / "c", on_step=stop)
    with pytest.raises(BadSpec, match="holds a run of other settings"):
        run(gpt2(), SPEC.replace(lr=1e-4), checkpoint=tmp_path / "c")


def test_frozen_parameters_travel_in_the_checkpoint(tmp_path):
    """A resumed run takes all its weights from the checkpoint, so it does not matter what it is handed."""

    def stop(step: int, _: int) -> None:
        if step == 8:
            raise Cancelled("killed")

    modules = [gpt2(), gpt2()]
    for module in modules:
        module.transformer.ln_f.weight.requires_grad_(False)
    with torch.no_grad():
        modules[0].transformer.ln_f.weight.fill_(2.0)
    with pytest.raises(Cancelled):
        run(modules[0], checkpoint=tmp_path / "c", on_step=stop)
    run(modules[1], checkpoint=tmp_path / "c")
    assert (modules[1].transformer.ln_f.weight == 2).all()


def test_padding_does_not_change_a_prediction():
    module = gpt2().eval()
    inputs, _ = task()
    alone = np.concatenate([predict(module, Inputs([row]), 1) for row in inputs.rows])
    np.testing.assert_array_equal(predict(module, inputs, 48), alone)
    batch = inputs.batch(np.arange(2), torch.device("cpu"))
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [1] * 6]


def test_mixed_precision_trains_in_bfloat16_and_keeps_float32_weights():
    module, seen = gpt2(), set()
    module.transformer.h[0].mlp.c_fc.register_forward_hook(lambda m, a, out: seen.add(out.dtype))
    log = run(module, SPEC.replace(epochs=15, autocast="bfloat16"))
    assert seen == {torch.bfloat16} and {p.dtype for p in module.parameters()} == {torch.float32}
    assert log.loss[-1] < 0.6 * log.loss[1]
    plain = gpt2()
    run(plain, SPEC.replace(epochs=1))
    other = gpt2()
    run(other, SPEC.replace(epochs=1, autocast="none"))
    assert torch.equal(weights(plain), weights(other))  # "auto" on a CPU is float32


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs CUDA: runs on any machine where torch.cuda.is_available()"
)
def test_on_cuda_auto_is_bfloat16_and_a_kill_is_survived(tmp_path):
    def stop(step: int, _: int) -> None:
        if step == 20:
            raise Cancelled("killed")

    whole, killed, resumed, seen = gpt2().cuda(), gpt2().cuda(), gpt2().cuda(), set()
    whole.transformer.h[0].mlp.c_fc.register_forward_hook(lambda m, a, out: seen.add(out.dtype))
    run(whole)
    assert seen == {torch.bfloat16}
    with pytest.raises(Cancelled):
        run(killed, checkpoint=tmp_path / "c", on_step=stop)
    run(resumed, checkpoint=tmp_path / "c")
    torch.testing.assert_close(weights(resumed), weights(whole), atol=1e-3, rtol=1e-2)


def test_images_are_inputs_too():
    torch.manual_seed(0)
    module = tf.ViTForImageClassification(
        tf.ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=4,
            patch_size=2,
            num_channels=1,
            num_labels=2,
        )
    )
    pixels = np.random.default_rng(0).normal(size=(24, 1, 4, 4)).astype(np.float32)
    labels = (pixels.mean((1, 2, 3)) > 0).astype(int)
    inputs = Inputs(pixels)
    log = train_classifier(module, inputs, labels, SPEC.replace(epochs=20), record={"train": inputs})
    assert np.mean(log.predictions["train"][-1] == labels) > 0.9


def test_labels_must_fit_the_inputs():
    with pytest.raises(BadData, match="48 training samples and 47 labels"):
        train_classifier(gpt2(), task()[0], task()[1][:-1], SPEC, record={})
