"""A Result comes back from its folder as it was saved; a damaged folder is refused; a failed save changes nothing."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workbench.core.claims import Claim, check
from workbench.core.errors import BrokenResult
from workbench.core.provenance import Provenance
from workbench.core.result import Result

SETTINGS = settings(
    max_examples=25, deadline=None, database=None, phases=[Phase.explicit, Phase.generate]
)  # no shrinking: each try writes files
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=6)
DTYPES = ("float32", "float64", "int64", "int32", "bool")
ATTRS = st.dictionaries(
    st.sampled_from(["unit", "long_name", "note"]),
    TEXT | st.integers(-(2**31), 2**31) | st.floats(allow_nan=False),
    max_size=3,
)
COLUMNS = {
    "str": st.none() | TEXT,
    "Int64": st.none() | st.integers(-(2**63), 2**63 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float64": st.floats(),
    "float32": st.floats(width=32),
    "bool": st.booleans(),
}


@st.composite
def datasets(draw) -> xr.Dataset:
    sizes = {dim: draw(st.integers(0, 3)) for dim in ("layer", "head", "token")}
    coords = {
        "layer": np.arange(sizes["layer"]),
        "head": draw(hnp.arrays("float32", sizes["head"], elements=st.floats(-9, 9, width=32))),
        "token": draw(
            st.lists(TEXT, min_size=sizes["token"], max_size=sizes["token"]).map(lambda t: np.array(t, dtype=str))
        ),
    }
    values = {}
    for number, dtype in enumerate(draw(st.lists(st.sampled_from(DTYPES), max_size=4))):
        dims = draw(st.permutations(list(sizes)))[: draw(st.integers(0, 3))]
        array = draw(hnp.arrays(dtype, tuple(sizes[d] for d in dims)))
        values[f"v{number}"] = (tuple(dims), array, draw(ATTRS))
    return xr.Dataset(values, coords={k: (k, v) for k, v in coords.items()}, attrs=draw(ATTRS))


@st.composite
def tables(draw) -> pd.DataFrame:
    n_rows = draw(st.integers(0, 4))
    kinds = draw(st.lists(st.sampled_from(list(COLUMNS)), min_size=1, max_size=4))
    cells = {
        f"c{i}": (kind, draw(st.lists(COLUMNS[kind], min_size=n_rows, max_size=n_rows))) for i, kind in enumerate(kinds)
    }
    return pd.DataFrame({name: pd.Series(cell, dtype=kind) for name, (kind, cell) in cells.items()})


def provenance() -> Provenance:
    return Provenance(
        "attention_sinks", {"seed": 1, "layers": [0, 1], "model": {"name": "x"}}, 1, model={"name": "x"}, seconds=0.5
    )


def small(value: float = 1.0) -> Result:
    data = xr.Dataset({"loss": ("step", [3.0, 2.0, value], {"unit": "nats"})}, coords={"step": [0, 1, 2]})
    rows = pd.DataFrame({"text": ["a", None], "n": pd.array([1, None], dtype="Int64")})
    return Result(provenance(), data, {"rows": rows, "more": rows}, warnings=("small",))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@SETTINGS
@given(
    datasets(),
    st.dictionaries(st.sampled_from(["rows", "curve"]), tables(), max_size=2),
    st.booleans(),
    st.lists(TEXT, max_size=2),
)
def test_a_round_trip_gives_the_same_result(tmp_path_factory, data, frames, partial, warnings):
    saved = Result(provenance(), data, frames, partial, tuple(warnings))
    loaded = Result.load(saved.save(tmp_path_factory.mktemp("results") / "one"))
    assert loaded.provenance == saved.provenance and loaded.partial == partial and loaded.warnings == saved.warnings
    assert loaded.data.identical(data)
    for name, variable in data.variables.items():
        kind = loaded.data[name].dtype.kind if variable.dtype.kind == "U" else loaded.data[name].dtype
        assert kind == ("U" if variable.dtype.kind == "U" else variable.dtype), f"{name} changed its type"
    assert list(loaded.tables) == list(frames)
    for name, frame in frames.items():
        pd.testing.assert_frame_equal(loaded.tables[name], frame)


def test_ragged_rows_keep_their_lists_and_gaps(tmp_path):
    frame = pd.DataFrame(
        {"input": [0, 1, 2], "tokens": [["a", "b"], ["c"], []], "first": pd.array([4, None, 2], dtype="Int64")}
    )
    loaded = Result.load(Result(provenance(), tables={"rows": frame}).save(tmp_path / "r")).tables["rows"]
    assert [list(row) for row in loaded["tokens"]] == frame["tokens"].tolist()
    assert loaded["first"].isna().tolist() == [False, True, False] and loaded["first"].dtype == "Int64"


def test_a_loaded_result_gives_the_same_claims_table(tmp_path):
    claims = [
        Claim("loss falls", "s1", lambda r: r.data["loss"].values[-1] - r.data["loss"].values[0], "<", 0, "card"),
        Claim(
            "loss is nought", "s2", lambda r: r.data["loss"].min().item(), "<=", 0, "card", kind="control", unit="nats"
        ),
        Claim("rows are whole", "s3", lambda r: r.tables["rows"]["n"].notna().mean(), ">=", 1, "card"),
        Claim("no accuracy here", "s4", lambda r: math.nan, ">", 0, "card"),
    ]
    saved = small()
    loaded = Result.load(saved.save(tmp_path / "r"))
    assert check(loaded, claims).rows() == check(saved, claims).rows()
    assert str(check(loaded, claims)) == str(check(saved, claims))
    assert loaded.stem == saved.stem == "attention_sinks" and loaded.spec == saved.spec


def test_the_folder_lists_a_checksum_of_every_other_file(tmp_path):
    folder = small().save(tmp_path / "r")
    about = json.loads((folder / "result.json").read_text())
    assert (
        set(about["sha256"])
        == set(contents(folder)) - {"result.json"}
        == {"data.nc", "tables/rows.parquet", "tables/more.parquet"}
    )


@pytest.mark.parametrize("name", ["data.nc", "tables/rows.parquet"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = small().save(tmp_path / "r")
    (folder / name).unlink()
    with pytest.raises(BrokenResult, match=f"r lacks {name}"):
        Result.load(folder)


@pytest.mark.parametrize("empty", [{}, None, [], "", {"data.nc": ""}, {"tables/rows.parquet": None}])
def test_a_checksum_that_is_not_there_is_not_one_that_agrees(tmp_path, empty):
    folder = small().save(tmp_path / "r")
    about = json.loads((folder / "result.json").read_text())
    about["sha256"] = about["sha256"] | empty if isinstance(empty, dict) and empty else empty
    (folder / "result.json").write_text(json.dumps(about))
    (folder / "tables/rows.parquet").write_bytes((folder / "tables/more.parquet").read_bytes())
    with pytest.raises(BrokenResult, match=r"result.json in r has no checksum of (data.nc|tables/rows.parquet)"):
        Result.load(folder)


@settings(SETTINGS, max_examples=15)
@given(
    name=st.sampled_from(["data.nc", "tables/rows.parquet"]),
    where=st.floats(0, 1, exclude_max=True),
    flip=st.integers(1, 255),
)
def test_one_altered_byte_is_noticed(tmp_path_factory, name, where, flip):
    folder = small().save(tmp_path_factory.mktemp("altered") / "r")
    content = bytearray((folder / name).read_bytes())
    content[int(where * len(content))] ^= flip
    (folder / name).write_bytes(content)
    with pytest.raises(BrokenResult, match=f"{name} in r is not what was saved"):
        Result.load(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", b'{"format": 1}', b'{"format": 99}', b'{"format": "1"}'],
    ids=[
        "empty",
        "cut short",
        "a list",
        "null",
        "not text",
        "no format",
        "nothing but a format",
        "a later format",
        "format as text",
    ],
)
def test_a_result_json_that_cannot_be_read_is_refused(tmp_path, content):
    folder = small().save(tmp_path / "r")
    (folder / "result.json").write_bytes(content)
    with pytest.raises(BrokenResult):
        Result.load(folder)


def test_a_later_format_is_named(tmp_path):
    folder = small().save(tmp_path / "r")
    about = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(BrokenResult, match="r has format 99, this version reads format 1"):
        Result.load(folder)


@pytest.mark.parametrize("what", ["nowhere", "an empty folder", "a file"])
def test_what_is_no_result_folder_is_refused_without_its_path(tmp_path, what):
    path = tmp_path / "thing"
    if what == "an empty folder":
        path.mkdir()
    elif what == "a file":
        path.write_text("x")
    with pytest.raises(BrokenResult, match=r"thing holds no readable result\.json") as found:
        Result.load(path)
    assert str(tmp_path) not in str(found.value)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["OSError", "KeyboardInterrupt"])
@pytest.mark.parametrize(
    ("kind", "method"), [(pd.DataFrame, "to_parquet"), (xr.Dataset, "to_netcdf")], ids=["table", "arrays"]
)
@pytest.mark.parametrize("is_there", [True, False], ids=["over an old one", "fresh"])
def test_a_failed_save_changes_nothing(tmp_path, monkeypatch, kind, method, error, is_there):
    folder = tmp_path / "out" / "r"
    if is_there:
        small(1.0).save(folder)
    before = contents(tmp_path)

    def fail(self, path, *args, **kwargs):
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(kind, method, fail)
    with pytest.raises(type(error)):
        small(9.0).save(folder)
    assert contents(tmp_path) == before
    assert [p.name for p in folder.parent.iterdir()] == (["r"] if is_there else [])


def test_saving_again_replaces_the_whole_folder(tmp_path):
    small(1.0).save(tmp_path / "r")
    Result(provenance(), small(9.0).data).save(tmp_path / "r")
    loaded = Result.load(tmp_path / "r")
    assert loaded.data["loss"].values[-1] == 9.0 and loaded.tables == {}
    assert set(contents(tmp_path)) == {"r/data.nc", "r/result.json"}
