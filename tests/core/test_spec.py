"""A Spec is checked on construction, survives JSON, and is changed by dotted names or by the texts of a command
line.
"""

import json
import math
from dataclasses import FrozenInstanceError, dataclass, fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.core.errors import BadSpec, UnknownName, WorkbenchError
from workbench.core.spec import Spec, param


@dataclass(frozen=True)
class Inner(Spec):
    name: str = param("organism:none", "which model")
    dtype: str = param("float32", "precision", choices=("float32", "bfloat16"))
    scale: float | None = param(None, "multiplier", ge=0, le=1)


@dataclass(frozen=True)
class Outer(Spec):
    model: Inner = param(Inner(), "the model")
    twin: Inner | None = param(None, "another model")
    n_inputs: int = param(8, "how many inputs", unit="inputs", ge=1, le=100)
    seed: int | None = param(None, "seed")
    rate: float = param(0.5, "rate", ge=0.0, le=1.0)
    offset: float = param(0.0, "unbounded")
    fast: bool = param(True, "skip a step")
    note: str | None = param(None, "free text")
    words: tuple[str, ...] = param((), "words")
    layers: tuple[int, ...] = param((0, 1), "layers", ge=0)
    shares: tuple[float, ...] = param((0.1,), "shares", ge=0.0, le=1.0)
    kinds: tuple[str, ...] = param(("a",), "kinds", choices=("a", "b"))


SETTINGS = settings(max_examples=60, deadline=None, database=None)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
SHARE = st.floats(0, 1)
WORD = st.text(min_size=1).filter(lambda t: "," not in t and t == t.strip() and t.lower() not in ("none", "null"))
INNERS = st.builds(Inner, name=WORD, dtype=st.sampled_from(["float32", "bfloat16"]), scale=st.none() | SHARE)
OUTERS = st.builds(
    Outer,
    model=INNERS,
    twin=st.none() | INNERS,
    n_inputs=st.integers(1, 100),
    seed=st.none() | st.integers(),
    rate=SHARE,
    offset=FINITE,
    fast=st.booleans(),
    note=st.none() | WORD,
    words=st.lists(WORD).map(tuple),
    layers=st.lists(st.integers(0)).map(tuple),
    shares=st.lists(SHARE).map(tuple),
    kinds=st.lists(st.sampled_from("ab")).map(tuple),
)


def as_text(value) -> str:
    """What a user would type for this value."""
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ",".join(as_text(v) for v in value)
    return str(value)


@SETTINGS
@given(OUTERS)
def test_a_round_trip_through_json_gives_the_same_spec(spec):
    assert Outer.from_json(spec.to_json()) == spec
    assert Outer.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert hash(Outer.from_dict(spec.to_dict())) == hash(spec)
    assert list(spec.to_dict()) == sorted(spec.to_dict()), "the JSON of equal specs is the same text"


@SETTINGS
@given(OUTERS, OUTERS)
def test_replace_by_dotted_names_turns_any_spec_into_any_other(one, other):
    changes = {
        name: getattr(other, name)
        for name in ("n_inputs", "seed", "rate", "offset", "fast", "note", "words", "layers", "shares", "kinds", "twin")
    }
    changes |= {f"model.{f.name}": getattr(other.model, f.name) for f in fields(Inner)}
    before = one.to_json()
    assert one.replace(**changes) == other
    assert one.to_json() == before and one.replace() == one


@SETTINGS
@given(OUTERS)
def test_the_texts_of_a_command_line_give_back_every_value(spec):
    texts = {}
    for name in Outer.dotted_fields():
        value = spec
        if name.startswith("twin."):
            continue  # it may be None, which has no fields to set
        for part in name.split("."):
            value = getattr(value, part)
        texts[name] = as_text(value)
    assert Outer(twin=spec.twin).with_strings(texts) == spec


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        *[("fast", t, True) for t in ("true", "True", "yes", "1")],
        *[("fast", t, False) for t in ("false", "FALSE", "no", "0")],
        ("note", "None", None),
        ("seed", "null", None),
        ("model.scale", "none", None),
        ("model.scale", "0.25", 0.25),
        ("model.dtype", "bfloat16", "bfloat16"),
        ("rate", "1", 1.0),
        ("rate", "1e-3", 0.001),
        ("words", "", ()),
        ("words", " a , b ,", ("a", "b")),
        ("layers", "3", (3,)),
        ("shares", "0,.5", (0.0, 0.5)),
    ],
)
def test_with_strings_reads_by_type(name, text, value):
    found = Outer().with_strings({name: text})
    for part in name.split("."):
        found = getattr(found, part)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("fast", "maybe", "fast must be true or false, got 'maybe'"),
        ("n_inputs", "many", "n_inputs must be of type int, got 'many'"),
        ("n_inputs", "1.5", "n_inputs must be of type int, got '1.5'"),
        ("layers", "1,x", "layers must be of type int, got 'x'"),
        ("rate", "nan", "rate must be a finite number"),
        ("rate", "inf", "rate must be a finite number"),
        ("model.dtype", "float8", "dtype must be one of float32, bfloat16; got 'float8'"),
        ("n_inputs", "none", "n_inputs must be of type int, got 'none'"),
    ],
)
def test_with_strings_says_what_it_wanted(name, text, sentence):
    with pytest.raises(BadSpec) as found:
        Outer().with_strings({name: text})
    assert sentence in str(found.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n_inputs": "8"}, "n_inputs must be of type int, got '8'"),
        ({"n_inputs": 8.0}, "n_inputs must be of type int, got 8.0"),
        ({"n_inputs": True}, "n_inputs must be of type int, got True"),
        ({"fast": 1}, "fast must be of type bool, got 1"),
        ({"rate": True}, "rate must be of type float, got True"),
        ({"rate": None}, "rate must be of type float, got None"),
        ({"words": "abc"}, "words must be a list of str, got 'abc'"),
        ({"words": 3}, "words must be a list of str, got 3"),
        ({"layers": [0, "x"]}, "layers[1] must be of type int, got 'x'"),
        ({"note": 3}, "note must be of type str, got 3"),
        ({"model": "gpt2"}, "model must be of type Inner, got 'gpt2'"),
        ({"n_inputs": 0}, "n_inputs must be at least 1 inputs, got 0"),
        ({"n_inputs": 101}, "n_inputs must be at most 100 inputs, got 101"),
        ({"rate": 1.01}, "rate must be at most 1.0, got 1.01"),
        ({"layers": (1, -1)}, "layers must be at least 0, got -1"),
        ({"kinds": ("a", "c")}, "kinds must be one of a, b; got 'c'"),
        ({"model": {"scale": 2}}, "scale must be at most 1, got 2.0"),
        ({"offset": math.nan}, "offset must be a finite number, got nan"),
        ({"offset": -math.inf}, "offset must be a finite number, got -inf"),
        ({"shares": (0.5, math.nan)}, "shares[1] must be a finite number, got nan"),
    ],
)
def test_a_bad_value_is_named_with_what_would_do(change, sentence):
    with pytest.raises(BadSpec) as found:
        Outer(**change)
    assert sentence in str(found.value)


def test_an_integer_too_large_for_a_float_is_a_bad_value():
    with pytest.raises(BadSpec, match="offset must be a finite number"):
        Outer(offset=10**400)


@pytest.mark.parametrize(
    ("make", "asked", "closest"),
    [
        (lambda: Outer().replace(n_input=3), "n_input", "n_inputs"),
        (lambda: Outer().replace(**{"modle.dtype": "float32"}), "modle.dtype", "model.dtype"),
        (lambda: Outer().replace(**{"model.dtyp": "float32"}), "dtyp", "dtype"),
        (lambda: Outer().with_strings({"model.dtyp": "float32"}), "model.dtyp", "model.dtype"),
        (lambda: Outer.from_dict({"n_inptus": 3}), "n_inptus", "n_inputs"),
        (lambda: Outer.from_dict({"model": {"dytpe": "float32"}}), "dytpe", "dtype"),
    ],
)
def test_an_unknown_field_names_the_closest(make, asked, closest):
    with pytest.raises(UnknownName) as found:
        make()
    assert f"no field called '{asked}'" in str(found.value)
    assert closest in str(found.value).split("Closest: ")[1]


def test_a_plain_field_has_no_inner_fields():
    with pytest.raises(BadSpec, match=r"rate has no fields of its own, so rate\.x cannot be set"):
        Outer().replace(**{"rate.x": 1})


def test_nothing_lossy_is_coerced_and_lossless_forms_are():
    spec = Outer(rate=1, layers=[1, 2], model={"dtype": "bfloat16"})
    assert spec == Outer(rate=1.0, layers=(1, 2), model=Inner(dtype="bfloat16"))
    assert isinstance(spec.rate, float) and isinstance(spec.layers, tuple) and isinstance(spec.model, Inner)


def test_a_spec_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        Outer().rate = 0.1


def test_dotted_fields_reach_nested_specs():
    names = Outer.dotted_fields()
    assert {"model.name", "model.dtype", "model.scale"} <= set(names) and "model" not in names
    assert names["model.dtype"] is str and names["rate"] is float


def test_bad_specs_are_the_callers_to_mend():
    assert issubclass(BadSpec, WorkbenchError) and issubclass(UnknownName, ValueError)
