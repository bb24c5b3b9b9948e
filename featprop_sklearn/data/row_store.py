"""Batches joined into one: in memory, or in a file where memory would not do."""

from __future__ import annotations

import os
import tempfile
import weakref
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from featprop_sklearn.data.lazy_rows import Inputs, LazyRows, TensorRows
from featprop_sklearn.data.sources import MapSource
from featprop_sklearn.data.tensors import to_array

__all__ = ["RowStore"]


class RowStore:
    """Rows that come batch by batch, one for each sample.

    Parameters
    ----------
    like : Tensor or TensorRows
        The samples. What is computed from samples that are read when asked for is kept in a
        temporary file (where the environment's ``TMPDIR`` says), which goes with its last user.
    """

    def __init__(self, like: Inputs) -> None:
        self._n_rows = len(like)
        self._in_memory = isinstance(like, Tensor)
        self._parts: list[Tensor] = []
        self._filled = 0
        self._first: Tensor | None = None

    def append(self, part: Tensor) -> None:
        """Add the next rows."""
        if self._in_memory:
            self._parts.append(part)
            return
        if self._first is None:
            self._first = part[:1]
        self._file[self._filled : self._filled + len(part)] = to_array(part)
        self._filled += len(part)

    def result(self) -> Inputs:
        """Return all rows."""
        if self._in_memory:
            return torch.cat(self._parts)
        assert self._first is not None
        return TensorRows(LazyRows(MapSource(self._file)), self._first.dtype, self._first.device)

    @cached_property
    def _file(self) -> np.memmap:
        assert self._first is not None
        handle, path = tempfile.mkstemp(prefix="featprop_", suffix=".rows")
        os.close(handle)
        shape = (self._n_rows, *self._first.shape[1:])
        file = np.memmap(path, to_array(self._first).dtype, "w+", shape=shape)
        weakref.finalize(file, os.unlink, path)
        return file
