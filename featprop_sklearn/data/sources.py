"""Where samples lie that are not an array in memory: memory maps and torch datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skorch.helper import SliceDataset
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from featprop_sklearn.data.validation import without_torch

__all__ = ["DatasetSource", "MapSource", "find_source", "is_large"]

#: bytes up to which samples are read at once, and then are an array like any other
READ_AT_ONCE = 1 << 26
#: items of a dataset whose labels are collected at a time
LABELS_AT_A_TIME = 1024


def find_source(X: Any, name: str = "X") -> MapSource | DatasetSource | None:
    """Return how to read samples row by row, or None if X is none of what this is for.

    Parameters
    ----------
    X : object
        What came: a memory map, a dict with one, a torch ``Dataset``, a skorch
        ``SliceDataset``, or anything else.
    name : str
        Its name, for the messages.

    Raises
    ------
    TypeError
        For a ``DataLoader`` and an ``IterableDataset``, whose rows have no numbers.
    """
    if isinstance(X, DataLoader):
        raise TypeError(
            f"{name} is a torch DataLoader, which deals out batches in an order of its own. Pass "
            f"its dataset, {name}.dataset; batch_size= says how many samples are read at a time."
        )
    if isinstance(X, IterableDataset):
        raise TypeError(
            f"{name} is a torch IterableDataset ({type(X).__name__}), whose samples cannot be read "
            "again by number. Pass a Dataset with __len__ and __getitem__, or call partial_fit "
            "with one chunk after the other."
        )
    if isinstance(X, Dataset | SliceDataset):
        return DatasetSource(X, name)
    values = X.values() if isinstance(X, Mapping) else [X]
    return MapSource(X) if any(isinstance(value, np.memmap) for value in values) else None


def is_large(source: MapSource | DatasetSource) -> bool:
    """Return whether samples are too many to be read at once."""
    sample = source.read(range(1))
    values = sample.values() if isinstance(sample, Mapping) else [sample]
    return len(source) * sum(np.asarray(value).nbytes for value in values) > READ_AT_ONCE


class MapSource:
    """An array in a file, or a dict of arrays of which one is.

    Parameters
    ----------
    arrays : np.memmap, or dict of str to array
        One row a sample.
    """

    def __init__(self, arrays: Any) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        if isinstance(self.arrays, Mapping):
            return min(len(array) for array in self.arrays.values())
        return len(self.arrays)

    def read(self, rows: range | NDArray) -> Any:
        """Copy the samples of these numbers."""
        if isinstance(self.arrays, Mapping):
            return {name: _copy(array, rows) for name, array in self.arrays.items()}
        return _copy(self.arrays, rows)

    def __getstate__(self) -> dict[str, Any]:
        """Send the name of a file to another process, not its contents."""
        if isinstance(self.arrays, Mapping):
            return {"arrays": {name: _by_name(array) for name, array in self.arrays.items()}}
        return {"arrays": _by_name(self.arrays)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        arrays = state["arrays"]
        named = isinstance(arrays, Mapping)
        self.arrays = (
            {name: _from_name(array) for name, array in arrays.items()}
            if named
            else _from_name(arrays)
        )


class DatasetSource:
    """A torch dataset, whose items are samples or pairs of a sample and its label.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset or skorch.helper.SliceDataset
        With ``__len__`` and ``__getitem__``.
    name : str
        Its name, for the messages.

    Raises
    ------
    TypeError
        If it has no length, or its items are neither samples nor pairs.
    """

    def __init__(self, dataset: Any, name: str = "X") -> None:
        try:
            length = len(dataset)
        except TypeError:
            length = None
        if length is None:
            raise TypeError(f"{name} is a {type(dataset).__name__} without a length; give it one.")
        if not length:
            raise ValueError(f"{name} is a {type(dataset).__name__} without samples.")
        self.dataset = dataset
        self.name = name
        item = dataset[0]
        self.width = len(item) if isinstance(item, tuple | list) else 0
        if self.width > 2:
            raise TypeError(
                f"The items of {name} ({type(dataset).__name__}) hold {self.width} values each. "
                "They must be samples, or pairs of a sample and its label; several inputs belong "
                "into a dict, {'name': sample, ...}."
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, rows: range | NDArray) -> Any:
        """Stack the samples of these numbers; a dict of stacks where a sample is a dict."""
        items = self._items(rows)
        return self._stack([item[0] for item in items] if self.width else items, rows)

    def labels(self) -> NDArray:
        """Collect the labels of all items; one pass over the dataset.

        Raises
        ------
        ValueError
            If the items have none.
        """
        if self.width != 2:
            raise ValueError(
                f"y is None, and the items of {self.name} ({type(self.dataset).__name__}) are "
                "samples alone. Pass y, or a dataset of pairs (sample, label)."
            )
        numbers = range(len(self))
        parts = [
            self._stack([item[1] for item in self._items(rows)], rows)
            for start in range(0, len(numbers), LABELS_AT_A_TIME)
            if (rows := numbers[start : start + LABELS_AT_A_TIME])
        ]
        return np.concatenate(parts)

    def _items(self, rows: range | NDArray) -> Sequence[Any]:
        numbers = [int(row) for row in rows]
        # torch's own protocol for datasets that read several at once
        several = getattr(self.dataset, "__getitems__", None)
        if several is not None:
            return several(numbers)
        return [self.dataset[number] for number in numbers]

    def _stack(self, items: Sequence[Any], rows: range | NDArray) -> Any:
        try:
            return _stack(items)
        except (TypeError, ValueError, RuntimeError, KeyError) as error:
            raise ValueError(
                f"Items {int(rows[0])} to {int(rows[-1])} of {self.name} "
                f"({type(self.dataset).__name__}) do not stack: {error}. Samples must be arrays "
                "or tensors of one shape."
            ) from error


def _stack(items: Sequence[Any]) -> Any:
    if isinstance(items[0], Mapping):
        return {key: _stack([item[key] for item in items]) for key in items[0]}
    if isinstance(items[0], Tensor):
        return without_torch(torch.stack(list(items)))
    return np.stack([np.asarray(item) for item in items])


def _copy(array: Any, rows: range | NDArray) -> NDArray:
    if isinstance(rows, range) and len(rows) and rows.step > 0:
        return np.array(array[rows.start : rows[-1] + 1 : rows.step])
    return np.array(array[np.asarray(rows)])


def _by_name(array: Any) -> Any:
    """Describe a contiguous view of a file by its place there; other arrays go as they are."""
    root = array
    while isinstance(root, np.memmap) and isinstance(root.base, np.memmap):
        root = root.base
    named = isinstance(root, np.memmap) and root.filename is not None
    if not named or not array.flags.c_contiguous:
        return array
    offset = root.offset + array.ctypes.data - root.ctypes.data
    return _Place(str(root.filename), array.dtype, offset, array.shape)


def _from_name(array: Any) -> Any:
    return array.open() if isinstance(array, _Place) else array


class _Place:
    """Where in a file an array lies."""

    def __init__(self, filename: str, dtype: np.dtype, offset: int, shape: tuple[int, ...]) -> None:
        self.filename = filename
        self.dtype = dtype
        self.offset = offset
        self.shape = shape

    def open(self) -> NDArray:
        return np.memmap(self.filename, self.dtype, "r", self.offset, self.shape)
