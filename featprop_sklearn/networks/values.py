"""Values under way in a network: tensors in containers, and when functions read and write them."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featprop_sklearn.networks.outputs import tensors_in

__all__ = ["Functions", "key_of", "tensors_of", "with_tensors"]

#: functions through which values leave torch
_READ_OUT = {
    *("item", "tolist", "numpy", "equal", "allclose", "is_nonzero"),
    *("__array__", "__bool__", "__contains__", "__complex__", "__float__", "__index__", "__int__"),
}
#: functions that return, or take, as many numbers as the values tell
_SELECT = {
    *("nonzero", "argwhere", "masked_select", "masked_scatter", "masked_scatter_"),
    *("unique", "unique_consecutive", "bincount", "repeat_interleave"),
}
#: functions of indices: by a mask, they select
_INDEX = {"__getitem__", "__setitem__", "index_put", "index_put_"}


def tensors_of(value: object) -> list[Tensor]:
    """List the tensors in nested containers, in order."""
    return [found.value for found in tensors_in(value)]


def with_tensors(value: Any, tensors: Iterable[Tensor]) -> Any:
    """Copy nested containers, with other tensors in place of theirs, in order."""
    return copy.deepcopy(value, dict(zip(map(id, tensors_of(value)), tensors, strict=True)))


class Functions(TorchFunctionMode):
    """Watch what torch's functions read and write, and when.

    ``born`` has what was computed from the input or from parameters; ``depends`` tells whether
    what is done depends on more than shapes: on values, or on a mode that parts run in.
    """

    def __init__(self, x: Tensor, module: nn.Module) -> None:
        super().__init__()
        self.time = 0
        self.paused = False
        self.depends = False
        self.where = ""
        self.reads: dict[Hashable, list[int]] = {}
        self.born: dict[Hashable, int] = {key_of(x): 0}
        self.makers: dict[Hashable, list[tuple[int, str]]] = {}
        self._device = x.device.type
        self._parameters = {key_of(parameter) for parameter in module.parameters()}
        self._kept: list[Tensor] = []  # so that no address is used again

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.paused:
            return func(*args, **(kwargs or {}))
        given = tensors_of((args, kwargs or {}))
        versions = [tensor._version for tensor in given]
        result = func(*args, **(kwargs or {}))
        written = [t for t, v in zip(given, versions, strict=True) if t._version != v]
        name = getattr(func, "__name__", "")
        # parts would run without the autocast around them, or learn in spite of the no_grad
        self.depends |= name == "_set_grad_enabled" or torch.is_autocast_enabled(self._device)
        # dropout hands on its input in eval mode, and is at work all the same
        old = () if "dropout" in name else given
        written += [t for t in tensors_of(result) if not any(t is other for other in old)]
        if written or name in _READ_OUT:
            self._note(name, {self.key(t) for t in given}, written)
            self.depends |= _selects(name, args, given)
        return result

    def _note(self, name: str, read: set[Hashable], written: list[Tensor]) -> None:
        self.time += 1
        for key in read:
            self.reads.setdefault(key, []).append(self.time)
        followed = not read.isdisjoint(self.born.keys() | self._parameters)
        self.depends |= followed and name in _READ_OUT
        for tensor in written:
            self._kept.append(tensor)
            maker = f"{self.where}.{name.strip('_')}".lstrip(".")
            self.makers.setdefault(self.key(tensor), []).append((self.time, maker))
            # writing to a part writes to the whole
            for key in {self.key(tensor), tensor.untyped_storage().data_ptr()} - self._parameters:
                if followed:
                    self.born.setdefault(key, self.time)

    def key(self, tensor: Tensor) -> Hashable:
        """Name the values of a tensor; views of a parameter are computed from it."""
        key = key_of(tensor)
        if key in self._parameters and not isinstance(tensor, nn.Parameter):
            return key, tensor.shape, tensor.stride()
        return key

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Do something unseen."""
        self.paused = True
        try:
            yield
        finally:
            self.paused = False


def _selects(name: str, args: tuple[Any, ...], given: list[Tensor]) -> bool:
    """Return whether a function picks as many rows or numbers as values tell."""
    if name not in _INDEX:
        return name in _SELECT or (name == "where" and len(given) == 1)
    index = args[1] if isinstance(args[1], tuple) else args[1:2]
    bounds = [b for part in index if isinstance(part, slice) for b in (part.start, part.stop)]
    by_mask = any(tensor.dtype in (torch.bool, torch.uint8) for tensor in given[1:])
    return by_mask or any(isinstance(bound, Tensor) for bound in bounds)


def key_of(tensor: Tensor) -> Hashable:
    """Name the values of a tensor: those of a whole storage, or of a part."""
    storage = tensor.untyped_storage()
    if tensor.numel() * tensor.element_size() >= storage.nbytes():
        return storage.data_ptr()
    return storage.data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride()
