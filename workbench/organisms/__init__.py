"""Model organisms: small transformers trained by the project until they show what a paper studies."""

from .registry import Organism, build, names, organism, verify

__all__ = ["Organism", "build", "names", "organism", "verify"]
