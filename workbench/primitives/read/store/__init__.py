"""Activations on disk: write_store makes or resumes a store, Store reads it, repair_store mends it.

Safetensors shards with a parquet index; see parts.py for what lies where. Needs a POSIX file system with locks (flock).
"""

from .cost import Cost, compare_cost
from .parts import Identity, Place
from .reading import Store, TokenBatch
from .shards import BrokenStore, OtherStore
from .writing import StorePlan, plan_store, repair_store, write_shards, write_store

__all__ = [
    "BrokenStore",
    "Cost",
    "Identity",
    "OtherStore",
    "Place",
    "Store",
    "StorePlan",
    "TokenBatch",
    "compare_cost",
    "plan_store",
    "repair_store",
    "write_shards",
    "write_store",
]
