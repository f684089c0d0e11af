"""A tensor of a store as xarray's lazy array: only what is selected is read."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from xarray.backends import BackendArray
from xarray.core import indexing


class LazyTensor(BackendArray):
    """[token, ...] read by token number; the other axes are selected after reading."""

    def __init__(
        self, gather: Callable[[str, np.ndarray], torch.Tensor], name: str, shape: tuple[int, ...], dtype: str
    ):
        self._gather, self._name, self.shape, self.dtype = gather, name, shape, np.dtype(dtype)

    def indexed(self) -> Any:
        """Wrapped so that selections of selections stay lazy."""
        return indexing.LazilyIndexedArray(self)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple) -> np.ndarray:
        first, rest = key[0], key[1:]
        numbers = (
            np.arange(*first.indices(self.shape[0]))
            if isinstance(first, slice)
            else np.atleast_1d(np.asarray(first, np.int64))
        )
        tensor = self._gather(self._name, numbers)
        values = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        for axis in range(len(rest), 0, -1):  # one axis at a time, from the last, so that several lists select a grid
            values = values[(slice(None),) * axis + (rest[axis - 1],)]
        is_one = not isinstance(first, slice) and np.ndim(first) == 0
        return (values[0] if is_one else values).astype(self.dtype, copy=False)
