"""Fingerprints of networks: equal for copies, different wherever a result might be.

A value is walked as pickle would walk it and hashed on the way: tensors and arrays by their
contents, library code by name and version, all other code (of classes, lambdas, hooks, and of
the functions that these name) by its bytecode. What has no stable description, such as a lock
or an open file, counts as new each time: a cache then misses, which costs time, where a wrong
hit would cost the result.
"""

from __future__ import annotations

import copyreg
import dis
import hashlib
import sys
import uuid
from collections.abc import Iterator
from functools import cached_property, singledispatchmethod
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from featprop_sklearn.networks.chain import Chain

__all__ = ["fingerprint", "network_fingerprint"]

_PLAIN = {NoneType, bool, int, float, complex, str, bytes, type(...)}
_PLAIN |= {torch.dtype, torch.layout, torch.memory_format}


def network_fingerprint(network: nn.Module | Chain) -> str:
    """Describe a network in a few bytes, for the key of a cache.

    Equal for a network, its deep copies and its pickled copies, on any device and in any
    process. Different for other weights or buffers, dtypes, options of layers, classes,
    ``forward`` code, hooks, sharing of parameters, ``requires_grad`` and mode.

    Parameters
    ----------
    network : nn.Module or Chain
        The network.

    Returns
    -------
    str
        40 hexadecimal digits.
    """
    return fingerprint(network)


def fingerprint(*values: object) -> str:
    """Describe values of any kind, networks among them, as :func:`network_fingerprint` does."""
    walk = _Walk()
    walk.add(values)
    return walk.hexdigest()


class _Walk:
    """One walk over values: each part opens with its kind and size, so that no two walks mix."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=20)
        self._met: dict[int, int] = {}
        self._kept: list[object] = []  # alive, so that no id stands for two objects

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def add(self, value: Any) -> None:
        """Describe a value; one met before by its number, which tells shared from equal."""
        if type(value) in _PLAIN:
            self._put(type(value).__name__, repr(value).encode())
        elif type(value) is tuple:
            self._put("tuple", str(len(value)).encode())
            for item in value:
                self.add(item)
        elif type(value) is frozenset:  # like tuples: the interpreter may merge equal ones
            self._set(value)
        elif id(value) in self._met:
            self._put("again", str(self._met[id(value)]).encode())
        else:
            self._met[id(value)] = len(self._met)
            self._kept.append(value)
            try:
                self._describe(value)
            except Exception:  # descriptions run foreign code, which may raise anything
                self._put("unknown", uuid.uuid4().bytes)

    def _put(self, kind: str, data: Any = b"") -> None:
        self._hash.update(f"{kind} {len(data)} ".encode())
        self._hash.update(data)

    def _library(self, value: Any, name: str) -> None:
        version = getattr(sys.modules[_top(value.__module__)], "__version__", "")
        self._put("library", f"{value.__module__}.{name} {version}".encode())

    @singledispatchmethod
    def _describe(self, value: Any) -> None:
        """Any object: what pickle would rebuild it from."""
        reduce = copyreg.dispatch_table.get(type(value))
        reduced: Any = reduce(value) if reduce else value.__reduce_ex__(4)
        if isinstance(reduced, str):
            self._global(value, reduced)
            return
        self._put("object")
        for part in reduced:
            self.add(tuple(part) if isinstance(part, Iterator) else part)

    def _global(self, value: Any, name: str) -> None:
        """Describe what pickle would look up by name."""
        if _is_library(value, name):
            self._library(value, name)
        else:
            self.add(value.__wrapped__)

    # data ----------------------------------------------------------------------------

    @_describe.register(Tensor)
    def _tensor(self, value: Tensor) -> None:
        form = (type(value).__name__, value.dtype, tuple(value.shape), value.requires_grad)
        self._put("tensor", repr(form).encode())
        values = value.detach().cpu().contiguous().reshape(-1)
        self._put("values", values.view(torch.uint8).numpy())

    @_describe.register(np.ndarray)
    def _array(self, value: np.ndarray) -> None:
        if type(value) not in (np.ndarray, np.memmap) or value.dtype.hasobject:
            self._put("array")
            self.add(value.__reduce_ex__(4))
            return
        self._put("array", repr((value.dtype, value.shape)).encode())
        self._put("values", np.ascontiguousarray(value).reshape(-1).view(np.uint8))

    @_describe.register(set)
    def _set(self, value: set | frozenset) -> None:
        self._put(type(value).__name__, "".join(sorted(map(fingerprint, value))).encode())

    @_describe.register(torch.device)
    def _device(self, value: torch.device) -> None:
        self._put("device")  # whichever

    # networks ------------------------------------------------------------------------

    @_describe.register(nn.Module)
    def _module(self, value: nn.Module) -> None:
        try:
            state = value.__getstate__()
        except Exception:  # parametrised modules refuse
            state = vars(value)
        if isinstance(state, dict):
            state = _with_hooks_numbered(state)
            if isinstance(value, fx.GraphModule):
                del state["_graph"]  # the code of its class says the same
        self._put("module")
        self.add(type(value))
        self.add(state)

    # code ----------------------------------------------------------------------------

    @_describe.register(ModuleType)
    def _import(self, value: ModuleType) -> None:
        self._put("import", f"{value.__name__} {getattr(value, '__version__', '')}".encode())

    @_describe.register(type)
    def _class(self, value: type) -> None:
        if _is_library(value, value.__qualname__):
            self._library(value, value.__qualname__)
            return
        self._put("class", f"{value.__module__}.{value.__qualname__}".encode())
        self.add(value.__bases__)
        if value.__module__ == parametrize.__name__:
            return  # its properties, of the module that was parametrised, do what its state says
        for name, member in vars(value).items():
            if _is_own(name, member):
                self.add((name, member))

    @_describe.register(property)
    def _property(self, value: property) -> None:
        self.add(("property", value.fget, value.fset, value.fdel))

    @_describe.register(classmethod)
    @_describe.register(staticmethod)
    def _unbound(self, value: Any) -> None:
        self.add((type(value).__name__, value.__func__))

    @_describe.register(cached_property)
    def _cached_property(self, value: cached_property) -> None:
        self.add(("cached_property", value.func))

    @_describe.register(MethodType)
    def _method(self, value: MethodType) -> None:
        self.add(("method", value.__func__, value.__self__))

    @_describe.register(FunctionType)
    def _function(self, value: FunctionType) -> None:
        if _is_library(value, value.__qualname__):
            self._library(value, value.__qualname__)
            return
        cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
        self._put("function")
        self.add((value.__code__, value.__defaults__, value.__kwdefaults__, cells))
        self.add(tuple(_named_globals(value)))

    @_describe.register(CodeType)
    def _code(self, value: CodeType) -> None:
        self._put("code", value.co_code)
        self.add((value.co_consts, value.co_names, value.co_varnames, value.co_exceptiontable))
        self.add((value.co_freevars, value.co_cellvars, value.co_flags, value.co_argcount))
        self.add((value.co_posonlyargcount, value.co_kwonlyargcount))


def _with_hooks_numbered(state: dict[str, Any]) -> dict[str, Any]:
    """Count the hooks of a module from 0 on; torch counts those of all modules together."""
    hooks = {
        name: value
        for name, value in state.items()
        if name.startswith("_") and "_hooks" in name and isinstance(value, dict)
    }
    numbers: dict[int, int] = {}
    for handles in hooks.values():
        for handle in handles:
            numbers.setdefault(handle, len(numbers))
    numbered = {
        name: {numbers[handle]: hook for handle, hook in handles.items()}
        for name, handles in hooks.items()
    }
    return {**state, **numbered}


def _top(module: str) -> str:
    return module.partition(".")[0]


def _is_installed(module: str) -> bool:
    """Return whether a version number stands for the code of a module."""
    top = _top(module)
    if top in sys.stdlib_module_names or top == _top(__name__):
        return True
    file = getattr(sys.modules.get(top), "__file__", None)
    return file is not None and not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def _is_library(value: Any, name: str) -> bool:
    """Return whether a class or function is what an installed module has under this name."""
    module = getattr(value, "__module__", None)
    if not isinstance(module, str) or not _is_installed(module):
        return False
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is value


def _is_own(name: str, member: object) -> bool:
    """Return whether a member of a class was written there, not put there by Python."""
    code = (FunctionType, classmethod, staticmethod, property)
    special = name.startswith("__") and name.endswith("__")
    return name != "_abc_impl" and (not special or isinstance(member, code))


def _named_globals(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the globals that a function reads, those behind a name in a module included."""
    codes, names = [function.__code__], set()
    read: dict[str, set[str]] = {"LOAD_GLOBAL": set(), "IMPORT_NAME": set()}
    for code in codes:
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        names |= set(code.co_names)
        for step in dis.get_instructions(code):
            if step.opname in read:
                read[step.opname].add(step.argval)
    for name in read["IMPORT_NAME"]:
        if not _is_installed(name):
            yield name, uuid.uuid4().hex  # what the import will find, nobody knows yet
    pending = [(function.__globals__, read["LOAD_GLOBAL"])]
    entered: list[ModuleType] = []
    while pending:
        scope, wanted = pending.pop()
        for name in sorted(wanted & scope.keys()):
            value = scope[name]
            yield name, value
            is_users = isinstance(value, ModuleType) and not _is_installed(value.__name__)
            if is_users and value not in entered:
                entered.append(value)
                pending.append((vars(value), names))
