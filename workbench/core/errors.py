"""Errors a user can act on: each says what was asked, what was found and what would work.

Everything that is the caller's to mend derives from WorkbenchError (a ValueError); the command line turns these, and
only these, into exit code 2 and one sentence. `assert` is kept for what cannot happen.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class WorkbenchError(ValueError):
    """Base of every error that the caller can mend."""


class UnknownName(WorkbenchError):
    """A method, organism, site, field or score that does not exist."""

    @classmethod
    def among(cls, kind: str, name: object, known: Iterable[str], hint: str = "") -> "UnknownName":
        """Build the sentence 'no KIND called NAME; closest: ...; HINT' from the names that do exist."""
        known = sorted(known)
        near = get_close_matches(str(name), known, 3, cutoff=0.5)
        everything = ", ".join(known) if len(known) <= 40 else f"{', '.join(known[:5])} and {len(known) - 5} more"
        found = f"Closest: {', '.join(near)}." if near else f"Known: {everything or 'none'}."
        return cls(f"no {kind} called {str(name)!r}. {found}{' ' + hint if hint else ''}")


class UnknownSite(UnknownName):
    """A site or hook that this model does not have."""


class BadSpec(WorkbenchError):
    """A Spec field with a value outside its type or bounds."""


class ModelNotFound(WorkbenchError):
    """No model at this path, hub id or organism name."""


class UnsupportedModel(WorkbenchError):
    """There is a model, but it cannot be loaded without losing something; the text says what."""


class NoTokenizer(WorkbenchError):
    """Text was given to a model that came without a tokenizer."""


class NoRoom(WorkbenchError):
    """The predicted memory or disk need is above what there is, or above the budget."""


class BadData(WorkbenchError):
    """An input file or table with a row that cannot be used; the text names file and line."""


class NotFired(WorkbenchError):
    """An intervention or capture whose hook never ran, so the numbers would be those of the untouched model."""


class NotFinite(WorkbenchError):
    """Weights or outputs that are NaN, infinite or absurd, from which nothing can be read."""


class DegenerateBaseline(WorkbenchError):
    """A ratio was asked for whose denominator is too small to mean anything."""


class BrokenResult(WorkbenchError):
    """A saved Result with a missing or altered file."""
