"""Spec: the frozen dataclass that holds everything a run depends on.

Fields are declared with `param(default, help, unit=..., ge=..., le=..., choices=...)`. From that metadata come the
checks below, the command line's `--set field=value`, and the forms of the panels; nobody writes a form by hand.
A Spec can hold another Spec (a model inside a method); dotted names reach into it: `model.dtype=bfloat16`.
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from .errors import BadSpec, UnknownName


def param(
    default: Any,
    help: str,
    *,
    unit: str = "",
    ge: float | None = None,
    le: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A Spec field: its default, a sentence of help, its unit, inclusive bounds `ge`/`le`, or the allowed `choices`."""
    meta = {"help": help, "unit": unit, "ge": ge, "le": le, "choices": choices}
    if isinstance(default, Spec):
        return dataclasses.field(default_factory=lambda: default, metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


@dataclass(frozen=True)
class Spec:
    """Base of all specs: checked on construction, hashable, and the same after a round trip through JSON."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            where = f"{type(self).__module__.rsplit('.', 1)[-1]}.{field.name}"
            value = _coerce(getattr(self, field.name), hints[field.name], where)
            _check_bounds(value, field.metadata, where)
            object.__setattr__(self, field.name, value)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; dotted names as keys of a dict reach nested specs:
        `replace(**{"model.dtype": ..})`.
        """
        nested: dict[str, dict[str, Any]] = {}
        flat: dict[str, Any] = {}
        for name, value in changes.items():
            head, _, rest = name.partition(".")
            if head not in self._names():
                raise UnknownName.among("field", name, self.dotted_fields())
            if rest:
                nested.setdefault(head, {})[rest] = value
            else:
                flat[head] = value
        for head, inner in nested.items():
            current = flat.get(head, getattr(self, head))
            if not isinstance(current, Spec):
                raise BadSpec(f"{head} has no fields of its own, so {head}.{next(iter(inner))} cannot be set")
            flat[head] = current.replace(**inner)
        return dataclasses.replace(self, **flat)

    def with_strings(self, assignments: Mapping[str, str]) -> Self:
        """`replace`, from the texts a command line has: numbers, true/false, none, and comma-separated lists are
        read by type.
        """
        known = self.dotted_fields()
        changes: dict[str, Any] = {}
        for name, text in assignments.items():
            if name not in known:
                raise UnknownName.among("field", name, known)
            changes[name] = _parse(text, known[name], name)
        return self.replace(**changes)

    @classmethod
    def _names(cls) -> tuple[str, ...]:
        return tuple(f.name for f in dataclasses.fields(cls))

    @classmethod
    def dotted_fields(cls) -> dict[str, Any]:
        """Every settable name with its type; fields of nested specs are dotted."""
        found: dict[str, Any] = {}
        for name, hint in typing.get_type_hints(cls).items():
            inside = _spec_in(hint)
            if inside is not None:
                found |= {f"{name}.{inner}": h for inner, h in inside.dotted_fields().items()}
            elif name in cls._names():
                found[name] = hint
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; tuples become lists, nested specs dicts."""
        return json.loads(self.to_json())

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            UnknownName: on a field this Spec does not have (a Result of another version), naming the closest.
            BadSpec: on a value outside type or bounds.
        """
        for name in data:
            if name not in cls._names():
                raise UnknownName.among("field", name, cls._names(), f"({cls.__module__} may be of another version.)")
        return cls(**data)

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls.from_dict(json.loads(text))


def _spec_in(hint: Any) -> "type[Spec] | None":
    """The Spec class of a field declared as one, or as one that may be None."""
    for option in (hint, *typing.get_args(hint)):
        if isinstance(option, type) and issubclass(option, Spec):
            return option
    return None


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Bring a value to its declared type where nothing is lost (list -> tuple, dict -> Spec, 1 -> 1.0), else
    complain.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        inner = [a for a in args if a is not type(None)]
        return _coerce(value, inner[0], where)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise BadSpec(f"{where} must be a list of {getattr(args[0], '__name__', args[0])}, got {value!r}")
        return tuple(_coerce(v, args[0], f"{where}[{i}]") for i, v in enumerate(value))
    if isinstance(hint, type) and issubclass(hint, Spec):
        if isinstance(value, Mapping):
            return hint.from_dict(value)
        if isinstance(value, hint):
            return value
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise BadSpec(
                f"{where} must be a finite number, got"
                f" {value if isinstance(value, float) else 'one outside the range of floats'}"
            )
        return number
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise BadSpec(f"{where} must be of type {hint.__name__}, got {value!r}")


def _check_bounds(value: Any, meta: Mapping[str, Any], where: str) -> None:
    choices, low, high = meta.get("choices"), meta.get("ge"), meta.get("le")
    unit = f" {meta['unit']}" if meta.get("unit") else ""
    for item in value if isinstance(value, tuple) else (value,):
        if item is None:
            continue
        if choices is not None and item not in choices:
            raise BadSpec(f"{where} must be one of {', '.join(choices)}; got {item!r}")
        if low is not None and item < low:
            raise BadSpec(f"{where} must be at least {low}{unit}, got {item!r}")
        if high is not None and item > high:
            raise BadSpec(f"{where} must be at most {high}{unit}, got {item!r}")


def _parse(text: str, hint: Any, name: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if text.lower() in ("none", "null"):
            return None
        return _parse(text, next(a for a in args if a is not type(None)), name)
    if origin is tuple:
        return tuple(_parse(part.strip(), args[0], name) for part in text.split(",") if part.strip())
    if hint is bool:
        if text.lower() in ("true", "yes", "1"):
            return True
        if text.lower() in ("false", "no", "0"):
            return False
        raise BadSpec(f"{name} must be true or false, got {text!r}")
    try:
        return hint(text)
    except ValueError:
        raise BadSpec(f"{name} must be of type {hint.__name__}, got {text!r}") from None
