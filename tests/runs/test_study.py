"""A study done, cancelled, resumed, killed and put beside stored runs gives the same numbers each time."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from workbench.core import spec as core_spec
from workbench.core.errors import BadData
from workbench.core.progress import Progress
from workbench.core.provenance import Provenance
from workbench.core.result import Result
from workbench.core.spec import param
from workbench.runs.seeds import summary
from workbench.runs.stored import HERE, STORED
from workbench.runs.study import Part, Unit, by_origin, study


@dataclass(frozen=True)
class Spec(core_spec.Spec):
    factor: float = param(2.0, "what the seed is multiplied with")
    seeds: tuple[int, ...] = param((0, 1, 2), "seeds", ge=0)


class Stopping(Progress):
    """Cancels itself before the n-th unit ends; keeps what it is offered."""

    def __init__(self, after: int = 10**9):
        super().__init__()
        self.after, self.seen, self.kept = after, [], []

    def show(self):
        self.seen.append((self.done, self.total, self.text))
        if self.done >= self.after:
            self.cancel()

    def keep(self, partial):
        self.kept.append(partial())


def units(spec):
    return [Unit(seed, {"arm": arm}) for seed in spec.seeds for arm in ("plain", "wide")]


def made(spec, progress=None, resume=None, stored=None, done=None, **more):
    """A study whose score is factor x seed + 100 in arm wide, which reads the plain run before it."""

    def do(unit, steps):
        done.append(str(unit)) if done is not None else None
        steps.at(0, "work", until=80)
        for i in range(4):
            steps.update(i, 4)
        before = steps.done_before(Unit(unit.seed, {"arm": "plain"}))
        score = spec.factor * unit.seed if unit.axes["arm"] == "plain" else before["score"].item() + 100
        steps.at(90, "writing")
        size = 2 if unit.axes["arm"] == "plain" else 3
        data = xr.Dataset({"score": ((), score), "curve": ("step", np.full(size, score))}, {"step": range(size)})
        tables = {"scores": pd.DataFrame({"score": [score, score + 2], "draw": [0, 1]})}
        return Part(data, tables, {"names": pd.DataFrame({"number": [0, 1], "name": ["a", "b"]})})

    def derive(data, tables):
        return data, tables | {"summary": summary(tables, {"scores": ["arm"]}, ["score"])}

    about = {"name": "m", "weights": "w"} | more.pop("about", {})
    return study(
        "x",
        spec,
        units(spec),
        do,
        about=about,
        progress=progress or Progress(),
        resume=resume,
        stored=stored,
        derive=derive,
        **more,
    )


def same(a: Result, b: Result) -> bool:
    for name in a.tables:
        columns = sorted(a.tables[name].columns)
        pd.testing.assert_frame_equal(a.tables[name][columns], b.tables[name][columns])
    xr.testing.assert_identical(a.data, b.data)
    return a.tables.keys() == b.tables.keys()


def test_every_run_and_row_names_its_unit():
    found = made(Spec())
    assert not found.partial and found.data.sizes == {"run": 6, "step": 3}
    assert found.data["arm"].values.tolist() == ["plain", "wide"] * 3 and found.data["seed"].values.tolist() == [
        0,
        0,
        1,
        1,
        2,
        2,
    ]
    assert found.data["score"].values.tolist() == [0, 100, 2, 102, 4, 104] and set(found.data["origin"].values) == {
        HERE
    }
    rows = found.tables["scores"]
    assert len(rows) == 12 and {"arm", "seed", "origin", "draw"} <= set(rows) and (rows["origin"] == HERE).all()
    assert len(found.tables["names"]) == 2, "a shared table is kept once"
    assert np.isnan(found.data["curve"].sel(step=2).values[::2]).all()
    means = found.tables["summary"].set_index("arm")["mean"]
    assert means["plain"] == 3.0 and means["wide"] == 103.0  # (0 + 2 + 4) / 3 + 1


@pytest.mark.parametrize("after", [1, 130, 250, 590])
def test_a_cancelled_study_goes_on_where_it_stopped(after, tmp_path):
    progress = Stopping(after)
    half = made(Spec(), progress)
    n_done = 6 if after == 590 else after // 100  # cancelled at its last step, the last unit still ends
    assert half.partial is (n_done < 6) and half.data.sizes.get("run", 0) == n_done
    if half.data.sizes.get("run"):
        half.save(tmp_path / "half")
        half = Result.load(tmp_path / "half")
    done: list[str] = []
    whole = made(Spec(), resume=half, done=done)
    assert same(whole, made(Spec())) and len(done) == 6 - n_done and not whole.partial


def test_what_a_killed_study_kept_can_be_resumed():
    progress = Stopping()
    made(Spec(), progress)
    assert [len(kept.tables["scores"]) for kept in progress.kept] == [2, 4, 6, 8, 10, 12] and all(
        kept.partial for kept in progress.kept
    )
    assert same(made(Spec(), resume=progress.kept[2]), made(Spec()))


def test_progress_counts_a_hundred_steps_a_unit_and_never_goes_back():
    progress = Stopping()
    made(Spec(seeds=(3,)), progress)
    steps = [done for done, _, _ in progress.seen]
    assert steps == sorted(steps) and steps[-1] == 200 and {total for _, total, _ in progress.seen} == {200}
    assert (20, 200, "plain, seed 3: work") in progress.seen and (190, 200, "wide, seed 3: writing") in progress.seen


def test_a_resumed_study_may_choose_other_seeds_and_takes_only_its_own():
    done: list[str] = []
    found = made(Spec(seeds=(1, 5)), resume=made(Spec(seeds=(0, 1))), done=done)
    assert done == ["plain, seed 5", "wide, seed 5"] and found.data["seed"].values.tolist() == [1, 1, 5, 5]
    assert same(found, made(Spec(seeds=(1, 5))))


@pytest.mark.parametrize(
    ("spec", "about", "said"),
    [(Spec(factor=3.0), {}, r"another spec \(factor\)"), (Spec(), {"weights": "other"}, "other weights")],
)
def test_a_partial_result_of_something_else_is_refused(spec, about, said):
    with pytest.raises(BadData, match=f"partial result is of {said}.*another output folder"):
        made(spec, resume=made(Spec()), about=about)


def stored_result():
    kept = made(Spec())
    tables = {n: t.assign(origin=STORED) if "origin" in t else t for n, t in kept.tables.items()}
    return Result(kept.provenance, kept.data.assign_coords(origin=("run", [STORED] * 6)), tables)


def test_stored_runs_stand_in_front_and_are_not_taken_for_ones_own():
    found = made(Spec(seeds=(0,)), stored=stored_result())
    assert found.data["origin"].values.tolist() == [STORED] * 6 + [HERE] * 2
    assert found.data["score"].values.tolist() == [0, 100, 2, 102, 4, 104, 0, 100]
    assert "6 of 8 runs are stored" in found.warnings[0] and found.provenance.data["stored"]["n_runs"] == 6
    assert set(found.tables["summary"]["origin"]) == {HERE, STORED} and len(found.tables["names"]) == 2
    mine = by_origin(found, HERE)
    assert mine.data.sizes["run"] == 2 and len(mine.tables["scores"]) == 4


def test_a_resumed_study_with_stored_runs_has_them_once():
    stored = stored_result()
    half = made(Spec(seeds=(0,)), Stopping(110), stored=stored)
    assert half.partial and half.data.sizes["run"] == 7
    assert same(made(Spec(seeds=(0,)), resume=half, stored=stored), made(Spec(seeds=(0,)), stored=stored))


def test_nothing_done_is_an_empty_partial_result():
    found = made(Spec(), Stopping(0))
    assert found.partial and not found.tables and not found.data.sizes
    assert same(made(Spec(), resume=found), made(Spec()))


def test_a_unit_without_arrays_is_done_when_it_has_rows():
    def do(unit, steps):
        return Part(tables={"gate": pd.DataFrame({"asr": [float(unit.seed)]})})

    ask = {"about": {"weights": "w"}, "progress": Progress()}
    first = study("x", Spec(), [Unit(0, {"cell": "a"})], do, **ask)
    more = study(
        "x",
        Spec(),
        [Unit(0, {"cell": "a"}), Unit(0, {"cell": "b"})],
        lambda u, s: do(u, s) if u.axes["cell"] == "b" else 1 / 0,
        resume=first,
        **ask,
    )
    assert more.tables["gate"]["cell"].tolist() == ["a", "b"] and not more.data.sizes


def test_provenance_and_warnings_are_of_the_new_run():
    found = made(Spec(seeds=(2, 1)), warn=lambda data, tables: [f"{data.sizes['run']} runs"])
    assert found.warnings == ("4 runs",) and found.provenance.seed == 1 and found.provenance.model["weights"] == "w"
    assert isinstance(found.provenance, Provenance) and found.spec["seeds"] == [2, 1]
