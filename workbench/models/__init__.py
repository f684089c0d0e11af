"""Models: one `load()` for hub ids, local directories, PEFT adapters, organisms and modules already in memory.

Importing this package is light; torch and transformers are imported by the first call of `load`.
"""

from .spec import ModelSpec

__all__ = ["ModelSpec", "load"]


def __getattr__(name: str):
    if name == "load":
        from .loading import load

        return load
    raise AttributeError(name)
