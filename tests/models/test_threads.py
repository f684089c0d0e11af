"""Two threads that capture on one Model at the same time each get their own activations, every time."""

import sys
import threading

import pytest
import torch

from workbench.models import load
from workbench.primitives.read.capture import capture
from workbench.primitives.replace.ablation import ablate

# Why: JupyterLab runs widget callbacks in a second thread of the kernel (ipykernel 7 subshells), beside the running cell.  # noqa: E501
# A TransformerBridge keeps hooks on itself, so without the lock thread B's hooks fire in thread A's forward. To see it,
# give the model below a lock that locks nothing:
#     model.lock = contextlib.nullcontext()
# and this file fails, with tensors of the other thread's prompt or hooks that never fired, and mostly without an exception.  # noqa: E501

PER_THREAD = 150


@pytest.fixture
def eager_switching():
    """Switch threads far more often than the default 5 ms, so that a missing lock cannot go unnoticed."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_two_threads(work) -> list[BaseException]:
    """Run work(0) and work(1) side by side; the exceptions they raised."""
    raised: list[BaseException] = []
    barrier = threading.Barrier(2)

    def guarded(which: int) -> None:
        barrier.wait()
        try:
            work(which)
        except BaseException as found:
            raised.append(found)

    threads = [threading.Thread(target=guarded, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_captures_of_two_threads_do_not_mix(tiny_models, eager_switching):
    model = load(str(tiny_models["gpt2"]))
    prompts = torch.randint(6, 64, (2, 25, 6), generator=torch.Generator().manual_seed(1)).tolist()
    sites = (["z", "resid_post"], ["pattern", "resid_post"])
    alone = [[capture(model, [row], sites[which]).tensors for row in prompts[which]] for which in (0, 1)]
    found: list[list] = [[], []]

    def work(which: int) -> None:
        for turn in range(PER_THREAD):
            found[which].append(capture(model, [prompts[which][turn % 25]], sites[which]).tensors)

    assert in_two_threads(work) == []
    wrong = 0
    for which in (0, 1):
        assert len(found[which]) == PER_THREAD
        for turn, got in enumerate(found[which]):
            wanted = alone[which][turn % 25]
            assert set(got) == set(wanted)
            wrong += not all(torch.equal(got[key], wanted[key]) for key in wanted)
    assert wrong == 0, f"{wrong} of {2 * PER_THREAD} captures are not those of their own prompt"


def test_an_ablation_beside_a_clean_run_reaches_only_its_own(tiny_models, eager_switching):
    model = load(str(tiny_models["gpt2"]))
    tokens = torch.randint(6, 64, (2, 6), generator=torch.Generator().manual_seed(1))
    everything = torch.ones(2, 4, dtype=torch.bool)
    clean, ablated = model.forward(tokens), ablate(model, tokens, everything).output
    assert not torch.allclose(clean, ablated, atol=1e-4)
    outputs: list[list[torch.Tensor]] = [[], []]

    def work(which: int) -> None:
        for _ in range(40):
            outputs[which].append(
                ablate(model, tokens, everything, compare=False).output if which else model.forward(tokens)
            )

    assert in_two_threads(work) == []
    assert all(torch.equal(out, clean) for out in outputs[0])
    assert all(torch.equal(out, ablated) for out in outputs[1])
    assert (len(outputs[0]), len(outputs[1])) == (40, 40)
