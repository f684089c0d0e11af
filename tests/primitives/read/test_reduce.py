"""Passes over a store and over a model agree with each other and with everything read at once, inline and on
workers.
"""

import numpy as np
import pytest
import torch

from workbench.core.errors import BadData, UnknownSite
from workbench.core.progress import Cancelled, Progress
from workbench.primitives.read.reduce import project_store, reduce_activations, reduce_store
from workbench.primitives.read.reductions import Covariance, Moments, Quantiles, Together, TopK
from workbench.primitives.read.store import BrokenStore, Store, write_store
from workbench.scale.executors import Processes

WHAT = Together({"moments": Moments(), "top": TopK(3), "q": Quantiles((0.1, 0.9))})


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(2)
    return [
        torch.randint(6, 64, (int(n),), generator=generator).tolist()
        for n in torch.randint(2, 14, (40,), generator=generator)
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory, organism, rows) -> Store:
    return write_store(
        organism,
        rows,
        ["mlp_post", "z"],
        layers=[1],
        batch_size=4,
        shard_mb=0.05,
        folder=tmp_path_factory.mktemp("reduce") / "s",
    )


def test_a_pass_over_the_store_is_that_of_all_tokens(store, rows):
    found, whole, whose = reduce_store(store, "z", 1, WHAT), store.read("z", 1).double().numpy(), store.tokens()
    assert len(store.shards) > 3 and found["moments_mean"].dims == ("head", "d_head")
    np.testing.assert_allclose(found["moments_mean"], whole.mean(0), atol=1e-12)
    np.testing.assert_allclose(found["moments_variance"], whole.var(0), atol=1e-12)
    best = whole[:, 3, 5].argmax()
    assert float(found["top_value"][0, 3, 5]) == pytest.approx(whole[best, 3, 5])
    assert (int(found["top_example"][0, 3, 5]), int(found["top_pos"][0, 3, 5])) == (
        whose["example"][best],
        whose["pos"][best],
    )
    assert int(found["top_token"][0, 3, 5]) == rows[whose["example"][best]][whose["pos"][best]]
    assert (
        store.locate(found["top_number"][:, 3, 5].values)["token"].tolist()
        == found["top_token"][:, 3, 5].values.tolist()
    )


def test_on_the_way_gives_the_same_without_a_store(store, organism, rows):
    there = reduce_store(store, "mlp_post", 1, WHAT)
    here = reduce_activations(organism, rows, ["mlp_post"], WHAT, layers=[1], batch_size=4)["mlp_post", 1]
    np.testing.assert_array_equal(here["top_number"], there["top_number"])
    np.testing.assert_array_equal(here["q_quantile"], there["q_quantile"])
    np.testing.assert_allclose(here["moments_mean"], there["moments_mean"], atol=1e-12)


def test_on_the_way_of_some_positions(organism, rows):
    from workbench.primitives.read.capture import capture

    found = reduce_activations(
        organism, rows, ["z", "resid_post"], Moments(), layers=[0, 2], positions=[-1], batch_size=8
    )
    assert set(found) == {("z", 0), ("z", 2), ("resid_post", 0), ("resid_post", 2)}
    last = capture(organism, rows, ["z"], layers=[2], reduce="last")["z", 2]
    np.testing.assert_allclose(found["z", 2]["mean"], last.double().mean(0), atol=1e-6)


@pytest.mark.slow
def test_workers_give_the_same_to_the_last_bit(store):
    what = Together({"m": Moments(), "c": Covariance(), "t": TopK(2)})
    here = reduce_store(store, "mlp_post", 1, what)
    with Processes(2) as executor:
        assert here.identical(reduce_store(store, "mlp_post", 1, what, executor=executor))
    assert not list(store.folder.glob(".reduce-*"))


def test_projections_of_every_token(store):
    directions = torch.randn(2, 8, 8)
    found = project_store(store, "z", 1, directions)
    whose = store.tokens()
    at = {(e, p): i for i, (e, p) in enumerate(zip(whose["example"], whose["pos"], strict=True))}
    order = [at[e, p] for e, p in zip(found["example"].values, found["pos"].values, strict=True)]
    assert found.shape == (store.n_tokens, 2)
    np.testing.assert_allclose(found, np.einsum("nhd,mhd->nm", store.read("z", 1)[order], directions), atol=1e-5)


def test_a_pass_does_not_change_what_it_was_given(store):
    reduction = Moments()
    reduce_store(store, "z", 1, reduction)
    assert reduction.state == {}


def test_a_missing_shard_or_site_stops_it(store, organism, rows, tmp_path):
    with pytest.raises(UnknownSite):
        reduce_store(store, "z", 0, Moments())
    half = write_store(organism, rows, ["z"], layers=[1], batch_size=4, shard_mb=0.02, folder=tmp_path / "s")
    half.shards[1][0].shard_path(1).unlink()
    with pytest.raises(BrokenStore, match="is not there"):
        reduce_store(half, "z", 1, Moments())


def test_a_cancelled_pass_gives_no_number(store, organism, rows):
    class Stop(Progress):
        def show(self) -> None:
            self.cancel()

    with pytest.raises(Cancelled):
        reduce_store(store, "z", 1, Moments(), progress=Stop())
    with pytest.raises(Cancelled):
        reduce_activations(organism, rows, ["z"], Moments(), progress=Stop())


def test_bad_rows_are_refused_first(organism):
    with pytest.raises(BadData, match="row 0 has a token id outside"):
        reduce_activations(organism, [[999]], ["z"], Moments())
