"""The training loop against plain torch by hand; several streams, an early end, going on, and what is frozen."""

import itertools

import pytest
import torch
from torch import nn

from workbench.core.errors import BadData
from workbench.training.freezing import Frozen
from workbench.training.loop import TrainSpec, adamw, draws, train

SPEC = TrainSpec(steps=8, batch_size=2, lr=0.1, warmup_steps=2, weight_decay=0.1, clip=0.5)


def line() -> nn.Linear:
    module = nn.Linear(3, 1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[0.5, -1.0, 2.0]]))
        module.bias.fill_(0.1)
    return module


def towards(value: float):
    """(module, x) -> mean squared distance of the outputs from `value`."""
    return lambda module, x: (module(x) - value).square().mean()


def inputs(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(2, 3, generator=generator) for _ in itertools.count())


def test_it_is_adamw_with_clipping_and_the_schedule_as_torch_has_them():
    module, other = line(), line()
    log = train(module, towards(1.0), [inputs(0)], SPEC, log_every=1)
    optimiser = torch.optim.AdamW(
        [{"params": [other.weight], "weight_decay": 0.1}, {"params": [other.bias], "weight_decay": 0.0}],
        lr=0.1,
        betas=(0.9, 0.98),
    )
    by_step = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 2 / 2.4, 1 / 2.4]  # falls over the last 30 %, 2.4 steps
    rate, losses, batches = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: by_step[min(k, 7)]), [], inputs(0)
    for _ in range(8):
        loss = towards(1.0)(other, next(batches))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        optimiser.step()
        rate.step()
        losses.append(loss.item())
    torch.testing.assert_close(module.weight, other.weight)
    torch.testing.assert_close(module.bias, other.bias)
    assert log["loss"].tolist() == pytest.approx(losses) and log["lr"].tolist() == pytest.approx(
        [0.1 * f for f in by_step]
    )


def test_an_objective_reads_one_batch_of_each_stream_and_logs_its_parts():
    def both(module, near, far):
        a, b = towards(1.0)(module, near), towards(-1.0)(module, far)
        return a - 0.5 * b, {"near": a, "far": b}

    module = line()
    log = train(module, both, [inputs(0), inputs(1)], SPEC.replace(lr=0.0), log_every=3)
    with torch.no_grad():
        near, far = (
            [float(towards(t)(module, x)) for x in itertools.islice(inputs(s), 8)] for s, t in ((0, 1.0), (1, -1.0))
        )
    assert list(log.columns) == ["step", "loss", "near", "far", "lr"] and log["step"].tolist() == [3, 6, 8]
    for name, each in (("near", near), ("far", far)):
        assert log[name].tolist() == pytest.approx([sum(each[:3]) / 3, sum(each[3:6]) / 3, sum(each[6:]) / 2])
    assert log["loss"].tolist() == pytest.approx((log["near"] - 0.5 * log["far"]).tolist())


def test_it_ends_where_it_is_told_to_and_goes_on_with_the_same_optimiser():
    whole, parts = line(), line()
    seen = []
    train(whole, towards(1.0), [inputs(0)], SPEC, every=lambda step: seen.append(step.number))
    assert seen == list(range(1, 9))
    optimiser, batches = adamw(parts, SPEC), inputs(0)
    train(parts, towards(1.0), [batches], SPEC, optimiser=optimiser, every=lambda step: step.number == 3)
    assert not torch.equal(parts.weight, whole.weight) and not parts.training
    train(parts, towards(1.0), [batches], SPEC, optimiser=optimiser, start=3)
    assert torch.equal(parts.weight, whole.weight) and torch.equal(parts.bias, whole.bias)


def test_frozen_entries_stay_and_do_not_count_in_the_norm_that_is_clipped():
    module, masked = line(), line()
    held = torch.tensor([[True, False, True]])
    train(module, towards(1.0), [inputs(0)], SPEC, frozen=Frozen(module, {"weight": held}))
    assert torch.equal(module.weight[held], masked.weight[held]) and module.weight[0, 1] != masked.weight[0, 1]
    free = [nn.Parameter(masked.weight.detach()[:, 1:2].clone()), masked.bias]
    optimiser = torch.optim.AdamW(
        [{"params": [free[0]], "weight_decay": 0.1}, {"params": [free[1]], "weight_decay": 0.0}],
        lr=0.1,
        betas=(0.9, 0.98),
    )
    by_step, batches = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 2 / 2.4, 1 / 2.4], inputs(0)
    for factor in by_step:
        x = next(batches)
        out = x[:, :1] * 0.5 + x[:, 1:2] @ free[0] + x[:, 2:] * 2.0 + free[1]
        optimiser.zero_grad()
        (out - 1.0).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(free, 0.5)
        for group in optimiser.param_groups:
            group["lr"] = 0.1 * factor
        optimiser.step()
    torch.testing.assert_close(module.weight[0, 1], free[0][0, 0])


def test_draws_gives_every_item_once_an_order_across_batches():
    drawn = list(itertools.chain(*itertools.islice(draws(range(5), 3, seed=0), 10)))
    orders = [drawn[i : i + 5] for i in range(0, 30, 5)]
    assert all(sorted(o) == [0, 1, 2, 3, 4] for o in orders) and len({tuple(o) for o in orders}) > 1
    assert drawn == list(itertools.chain(*itertools.islice(draws(range(5), 3, seed=0), 10)))
    with pytest.raises(BadData, match="at least one example"):
        draws([], 3, seed=0)


def test_a_module_without_gradients_is_refused():
    with pytest.raises(BadData, match="requires a gradient"):
        train(line().requires_grad_(False), towards(1.0), [inputs(0)], SPEC)
