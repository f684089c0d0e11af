"""A Result comes back from its folder as it was saved; a damaged folder is refused; a failed save changes nothing."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workbench.core.claims import Claim, check
from workbench.core.errors import BadData, BrokenResult, WorkbenchError
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
    with pytest.raises(
        BrokenResult, match=r"result.json in r (has no checksum of (data.nc|tables/rows.parquet)|lacks sha256)"
    ):
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
@pytest.mark.parametrize("file", ["data.nc", "rows.parquet", "result.json"])
@pytest.mark.parametrize("is_there", [True, False], ids=["over an old one", "fresh"])
def test_a_failed_save_changes_nothing(tmp_path, monkeypatch, file, error, is_there):
    folder = tmp_path / "out" / "r"
    if is_there:
        small(1.0).save(folder)
    before = contents(tmp_path)
    write = Path.write_bytes

    def fail(self, content):
        write(self, bytes(content)[: len(content) // 2])
        if file in self.name:
            raise error
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(type(error)):
        small(9.0).save(folder)
    assert contents(tmp_path) == before
    assert [p.name for p in folder.parent.iterdir()] == (["r"] if is_there else [])


SAVE_ON_A_FULL_DISK = """
import resource, signal, sys
import numpy as np, xarray as xr
from workbench.core.provenance import Provenance
from workbench.core.result import Result

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
result = Result(Provenance("s", {}, 0), xr.Dataset({"a": ("x", np.random.default_rng(0).normal(size=100_000))}))
for limit in sys.argv[2:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    try:
        result.save(sys.argv[1])
    except OSError as found:
        print(found.strerror, found.filename)
"""


def test_a_disk_that_fills_up_under_the_arrays_is_an_error_and_not_the_end_of_the_process(tmp_path):
    """Not simulated: the system's own limit on a file's size, at several places of the file."""
    pytest.importorskip("resource", reason="the limit on file sizes is set with the module resource")
    small().save(tmp_path / "r")
    before = contents(tmp_path)
    command = [sys.executable, "-c", SAVE_ON_A_FULL_DISK, str(tmp_path / "r"), "1", "100", "4096", "50000", "500000"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert [line.startswith("File too large") and "data.nc" in line for line in done.stdout.splitlines()] == [True] * 5
    assert contents(tmp_path) == before


def test_what_a_kill_in_the_middle_of_a_save_left_is_found_by_load(tmp_path):
    small().save(tmp_path / "r")
    (tmp_path / "r").rename(tmp_path / ".r.1-0123abcd.tmp")
    assert Result.load(tmp_path / "r").stem == "attention_sinks"
    assert [p.name for p in tmp_path.iterdir()] == ["r"]


def test_a_folder_with_other_work_in_it_is_not_replaced(tmp_path):
    folder = small().save(tmp_path / "r")
    (folder / "thesis.tex").write_text("years")
    before = contents(tmp_path)
    with pytest.raises(WorkbenchError, match=r"r holds thesis\.tex, which would be replaced"):
        small(9.0).save(folder)
    assert contents(tmp_path) == before


# ---- folders that somebody made up ----


def rewrite(folder: Path, **changed) -> Path:
    """Change result.json, with checksums to fit the files."""
    about = json.loads((folder / "result.json").read_text()) | changed
    sums = {n: hashlib.sha256(c).hexdigest() for n, c in contents(folder).items() if n != "result.json"}
    (folder / "result.json").write_text(json.dumps({**about, "sha256": changed.get("sha256", sums)}))
    return folder


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/b", "..", "a\\b", "a\0b", "", 3, None, ["rows"]])
def test_a_table_outside_the_folder_is_refused(tmp_path, name):
    folder = small().save(tmp_path / "deep" / "er" / "r")
    secret = pd.DataFrame({"secret": [1]})
    secret.to_parquet(tmp_path / "deep" / "x.parquet")
    digest = hashlib.sha256((tmp_path / "deep" / "x.parquet").read_bytes()).hexdigest()
    sums = {"data.nc": hashlib.sha256((folder / "data.nc").read_bytes()).hexdigest(), f"tables/{name}.parquet": digest}
    rewrite(folder, tables=[name], sha256=sums)
    with pytest.raises(BadData, match="a table of a Result is called by a plain name"):
        Result.load(folder)
    with pytest.raises(BadData, match="plain name"):
        Result(provenance(), tables={name if isinstance(name, str) else str([name]) + "/": secret})


@pytest.mark.parametrize("file", ["data.nc", "tables/rows.parquet"])
def test_a_link_out_of_the_folder_is_not_followed(tmp_path, file):
    folder = small().save(tmp_path / "r")
    (folder / file).rename(tmp_path / "elsewhere")
    (folder / file).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadData, match=f"{file} in r is a link to somewhere else"):
        Result.load(folder)


@pytest.mark.parametrize("kind", ["external link", "soft link", "external storage", "virtual", "group"])
def test_arrays_that_lie_outside_data_nc_are_refused(tmp_path, kind):
    folder = small().save(tmp_path / "r")
    other = small(7.0).save(tmp_path / "other") / "data.nc"
    with h5py.File(folder / "data.nc", "a") as held:
        if kind == "external link":
            held["more"] = h5py.ExternalLink(str(other), "/loss")
        elif kind == "soft link":
            held["more"] = h5py.SoftLink("/loss")
        elif kind == "external storage":
            held.create_dataset("more", (4,), "u1", external=[(str(other), 0, 4)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((3,), "f8")
            layout[:] = h5py.VirtualSource(str(other), "loss", (3,))
            held.create_virtual_dataset("more", layout)
        else:
            held.create_group("more")
    with pytest.raises(BadData, match=r"'more' in data\.nc of r is no array of that file"):
        Result.load(rewrite(folder))


@pytest.mark.parametrize(
    "changed",
    [
        {"provenance": {"stem": "x", "colour": "red"}},
        {"provenance": []},
        {"sha256": ["data.nc"]},
        {"sha256": {}},
        {"tables": "rows"},
        {"tables": ["other"]},
        {"warnings": 3},
        {"partial": "no"},
    ],
    ids=lambda changed: str(changed)[:40],
)
def test_an_index_of_other_types_is_refused_in_a_sentence(tmp_path, changed):
    with pytest.raises(BrokenResult, match=r"^(r|result\.json in r) [^\n]*run the analysis again$"):
        Result.load(rewrite(small().save(tmp_path / "r"), **changed))


@pytest.mark.parametrize("file", ["data.nc", "tables/rows.parquet"])
def test_a_file_of_another_kind_with_a_true_checksum_is_refused_in_a_sentence(tmp_path, file):
    folder = small().save(tmp_path / "r")
    (folder / file).write_bytes(b"neither of the two")
    with pytest.raises(BrokenResult, match=r"^r cannot be read \([^\n]*run the analysis again$"):
        Result.load(rewrite(folder))


def test_saving_again_replaces_the_whole_folder(tmp_path):
    small(1.0).save(tmp_path / "r")
    Result(provenance(), small(9.0).data).save(tmp_path / "r")
    loaded = Result.load(tmp_path / "r")
    assert loaded.data["loss"].values[-1] == 9.0 and loaded.tables == {}
    assert set(contents(tmp_path)) == {"r/data.nc", "r/result.json"}
