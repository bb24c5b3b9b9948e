"""Samples that are read when they are asked for: what does not fit in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featprop_sklearn.data.tensors import to_tensor

__all__ = ["Inputs", "LazyRows", "TensorRows", "join_rows", "take_rows", "to_inputs"]


class LazyRows:
    """Chosen rows of a source, read and prepared each time that they are needed.

    Parameters
    ----------
    source : object with ``__len__`` and ``read``
        ``read(rows)`` copies the samples of these numbers.
    *steps : callables
        Applied to what was read, one after the other: checks, shapes.
    """

    def __init__(self, source: Any, *steps: Callable[[Any], NDArray]) -> None:
        self.source = source
        self.steps = steps
        #: numbers of the samples
        self.rows: range | NDArray = range(len(source))
        example = self._prepared(self.rows[:1])
        self.dtype = example.dtype
        self.sample_shape = example.shape[1:]

    @property
    def shape(self) -> tuple[int, ...]:
        """As that of an array."""
        return (len(self.rows), *self.sample_shape)

    @property
    def ndim(self) -> int:
        """As that of an array."""
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | NDArray) -> LazyRows:
        """Choose rows by a slice, numbers or a mask; nothing is read."""
        chosen = copy.copy(self)
        chosen.rows = self.rows[rows] if isinstance(rows, slice) else np.asarray(self.rows)[rows]
        return chosen

    def then(self, step: Callable[[Any], NDArray]) -> LazyRows:
        """Add a step to what is done with rows that were read."""
        longer = LazyRows(self.source, *self.steps, step)
        longer.rows = self.rows
        return longer

    def joined(self, other: LazyRows) -> LazyRows:
        """Append other rows of the same source."""
        both = copy.copy(self)
        both.rows = np.concatenate([np.asarray(self.rows), np.asarray(other.rows)])
        return both

    def read(self) -> NDArray:
        """Read all these rows."""
        return self._prepared(self.rows).astype(self.dtype, copy=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray:
        return self.read() if dtype is None else self.read().astype(dtype)

    def _prepared(self, rows: range | NDArray) -> NDArray:
        values = self.source.read(rows)
        try:
            for step in self.steps:
                values = step(values)
        except ValueError as error:
            raise ValueError(f"In rows {min(rows)} to {max(rows)} of X: {error}") from error
        return values


class TensorRows:
    """Samples as a network takes them: indexing reads rows, and gives a tensor of them.

    Parameters
    ----------
    rows : LazyRows
        The samples.
    dtype : torch.dtype
        Of the tensors.
    device : torch.device
        Of the tensors.
    """

    def __init__(self, rows: LazyRows, dtype: torch.dtype, device: torch.device) -> None:
        self.rows = rows
        self.dtype = dtype
        self.device = device

    @property
    def shape(self) -> tuple[int, ...]:
        """As that of a tensor."""
        return self.rows.shape

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        return to_tensor(self.rows[_numbers(rows)].read(), self.dtype, self.device)


Inputs = Tensor | TensorRows


def to_inputs(
    samples: NDArray | LazyRows, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Inputs:
    """Turn samples into a tensor, or into what gives tensors when it is asked for rows."""
    if isinstance(samples, LazyRows):
        return TensorRows(samples, dtype, torch.device(device))
    return to_tensor(samples, dtype, device)


def take_rows(inputs: Inputs, rows: slice | Tensor) -> Inputs:
    """Choose rows without reading any."""
    if isinstance(inputs, Tensor):
        return inputs[rows]
    return TensorRows(inputs.rows[_numbers(rows)], inputs.dtype, inputs.device)


def join_rows(first: Inputs, second: Inputs) -> Inputs:
    """Join rows of the same samples, one after the other."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.cat([first, second])
    assert isinstance(first, TensorRows)
    assert isinstance(second, TensorRows)
    return TensorRows(first.rows.joined(second.rows), first.dtype, first.device)


def _numbers(rows: slice | Tensor) -> slice | NDArray:
    return rows.cpu().numpy() if isinstance(rows, Tensor) else rows
