"""Set-ups of layer inversions, kept for the next batch, split, fold or refit of the same layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from threading import Lock
from typing import Any

import numpy as np
from scipy.sparse.linalg import SuperLU
from torch import Tensor

from featprop_sklearn.inversion.base import Inverter

__all__ = ["SET_UPS", "SetUps"]


class SetUps:
    """Inverters by what decides them, the least recently used dropped first.

    The key holds the weights' contents: a layer whose weights have changed is set up anew,
    and what belonged to the old ones is never found again and goes first.

    Parameters
    ----------
    max_bytes : int
        Most memory that the inverters kept may hold together.
    """

    def __init__(self, max_bytes: int = 2**30) -> None:
        self.max_bytes = max_bytes
        self._kept: OrderedDict[Hashable, tuple[Inverter, int]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, build: Callable[[], Inverter]) -> Inverter:
        """Return the inverter of that key, built if it is not there."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        inverter = build()
        n_bytes = held_bytes(inverter)
        with self._lock:
            self._kept[key] = inverter, n_bytes
            while self.n_bytes > self.max_bytes:
                self._kept.popitem(last=False)
        return inverter

    def clear(self) -> None:
        """Drop all."""
        with self._lock:
            self._kept.clear()

    @property
    def n_bytes(self) -> int:
        """Memory held by what is kept."""
        return sum(n_bytes for _, n_bytes in self._kept.values())

    def __len__(self) -> int:
        return len(self._kept)


#: those of this process
SET_UPS = SetUps()


def held_bytes(value: object) -> int:
    """Count the bytes of all tensors, arrays and factors that an object holds, each once."""
    buffers: dict[int, int] = {}
    met: dict[int, object] = {}
    waiting: list[object] = [value]
    while waiting:
        item = waiting.pop()
        if id(item) in met:
            continue
        met[id(item)] = item
        if isinstance(item, Tensor):
            storage = item.untyped_storage()
            buffers[storage.data_ptr()] = storage.nbytes()
        elif isinstance(item, np.ndarray):
            base = item if item.base is None else item.base
            buffers[id(base)] = getattr(base, "nbytes", item.nbytes)
        elif isinstance(item, SuperLU):
            buffers[id(item)] = 12 * item.nnz  # a value and an index each
        else:
            waiting.extend(_parts(item))
    return sum(buffers.values())


def _parts(item: Any) -> Iterator[object]:
    if isinstance(item, dict):
        yield from item.values()
    elif isinstance(item, list | tuple | set | frozenset):
        yield from item
    elif not isinstance(item, type):
        yield from getattr(item, "__dict__", {}).values()
