"""One run of a module, watched: the calls of its submodules, and the tensors under way."""

from __future__ import annotations

import copy
import threading
from collections.abc import Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featprop_sklearn.networks.module_paths import modules_outside_layers
from featprop_sklearn.networks.outputs import tensors_in
from featprop_sklearn.networks.tracing import is_plain_call

__all__ = ["FOREVER", "Call", "Event", "Recording", "record", "tensors_of", "with_tensors"]

FOREVER = 2**62
#: functions through which values leave torch
_READ_OUT = {
    *("item", "tolist", "numpy", "equal", "allclose", "is_nonzero"),
    *("__array__", "__bool__", "__contains__", "__complex__", "__float__", "__index__", "__int__"),
}


def tensors_of(value: object) -> list[Tensor]:
    """List the tensors in nested containers, in order."""
    return [found.value for found in tensors_in(value)]


def with_tensors(value: Any, tensors: Iterable[Tensor]) -> Any:
    """Copy nested containers, with other tensors in place of theirs, in order."""
    return copy.deepcopy(value, dict(zip(map(id, tensors_of(value)), tensors, strict=True)))


@dataclass
class Call:
    """A module at work.

    Attributes
    ----------
    path : str
        Of the submodule; empty for the module itself.
    plain : bool
        Whether it was given one tensor, and its defaults for all else.
    enters, leaves : int
        Which event is the begin, and which the end.
    output : object
        Copy of what it returned.
    """

    path: str
    plain: bool
    enters: int
    leaves: int = FOREVER
    output: object = None


@dataclass(frozen=True, eq=False)
class Event:
    """The begin or the end of a call.

    Attributes
    ----------
    call : Call
        The call.
    leaving : bool
        Whether it is the end.
    time : int
        How many functions had been computed.
    value : Tensor or None
        Copy of the first tensor that the call was given or returned.
    key : hashable
        Name of its values.
    """

    call: Call
    leaving: bool
    time: int
    value: Tensor | None
    key: Hashable


class _Functions(TorchFunctionMode):
    """Watch what torch's functions read and write, and when.

    ``born`` has what was computed from the input or from parameters.
    """

    def __init__(self, x: Tensor, module: nn.Module) -> None:
        super().__init__()
        self.time = 0
        self.paused = False
        self.where = ""
        self.reads: dict[Hashable, list[int]] = {}
        self.born: dict[Hashable, int] = {_key(x): 0}
        self.makers: dict[Hashable, list[tuple[int, str]]] = {}
        self._parameters = {_key(parameter) for parameter in module.parameters()}
        self._kept: list[Tensor] = []  # so that no address is used again

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.paused:
            return func(*args, **(kwargs or {}))
        given = tensors_of((args, kwargs or {}))
        versions = [tensor._version for tensor in given]
        result = func(*args, **(kwargs or {}))
        written = [t for t, v in zip(given, versions, strict=True) if t._version != v]
        name = getattr(func, "__name__", "")
        # dropout hands on its input in eval mode, and is at work all the same
        old = () if "dropout" in name else given
        written += [t for t in tensors_of(result) if not any(t is other for other in old)]
        if written or name in _READ_OUT:
            self._note(name, {self.key(t) for t in given}, written)
        return result

    def _note(self, name: str, read: set[Hashable], written: list[Tensor]) -> None:
        self.time += 1
        for key in read:
            self.reads.setdefault(key, []).append(self.time)
        followed = not read.isdisjoint(self.born.keys() | self._parameters)
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
        key = _key(tensor)
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


def _key(tensor: Tensor) -> Hashable:
    """Name the values of a tensor: those of a whole storage, or of a part."""
    storage = tensor.untyped_storage()
    if tensor.numel() * tensor.element_size() >= storage.nbytes():
        return storage.data_ptr()
    return storage.data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride()


@dataclass(frozen=True)
class Recording:
    """What happened.

    Attributes
    ----------
    events : list of Event
        In order; the first and the last are the module's own.
    calls : dict of nn.Module to list of Call
        Calls of each module.
    reads : dict of hashable to list of int
        When values were read.
    makers : dict of hashable to list of tuple
        When values were written, and by what: path of the module, name of the function.
    lives : dict of hashable to tuple
        From when on, and until when, what was computed is needed.
    crowd : list of int
        How many of these are needed at each time.
    """

    events: list[Event]
    calls: dict[nn.Module, list[Call]]
    reads: dict[Hashable, list[int]]
    makers: dict[Hashable, list[tuple[int, str]]]
    lives: dict[Hashable, tuple[int, int]]
    crowd: list[int]

    def is_alone(self, event: Event) -> bool:
        """Return whether, of all that was computed, only this tensor is still needed."""
        born, last = self.lives.get(event.key, (0, 0))
        return born <= event.time < last and self.crowd[event.time] == 1

    def reads_of(self, tensor: Tensor) -> list[int]:
        """Return when a tensor was read."""
        return self.reads.get(_key(tensor), [])


def record(module: nn.Module, x: Tensor) -> Recording:
    """Run a module and watch.

    Parameters
    ----------
    module : nn.Module
        One tensor in, one tensor out.
    x : Tensor
        Its input.

    Returns
    -------
    Recording
        Of this thread's run alone.
    """
    x = x.clone()
    functions = _Functions(x, module)
    watch = _Watch(functions)
    with ExitStack() as hooks:
        for part, path in modules_outside_layers(module).items():
            watch.follow(path, part, hooks)
        hooks.enter_context(functions)
        module(x)
    output = watch.events[-1].key
    functions.reads.setdefault(output, []).append(FOREVER)
    lives = {
        key: (born, max(functions.reads.get(key, [born]))) for key, born in functions.born.items()
    }
    return Recording(
        watch.events,
        watch.calls,
        functions.reads,
        functions.makers,
        lives,
        _crowd(lives, functions.time),
    )


def _crowd(lives: dict[Hashable, tuple[int, int]], end: int) -> list[int]:
    changes = [0] * (end + 2)
    for born, last in lives.values():
        changes[born] += 1
        changes[min(last, end + 1)] -= 1
    return list(accumulate(changes))


class _Watch:
    """Hooks that note the calls."""

    def __init__(self, functions: _Functions) -> None:
        self.functions = functions
        self.events: list[Event] = []
        self.calls: dict[nn.Module, list[Call]] = {}
        self._open: list[tuple[nn.Module, Call]] = []
        self._thread = threading.get_ident()  # others may be running the same modules

    def follow(self, path: str, module: nn.Module, hooks: ExitStack) -> None:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if threading.get_ident() == self._thread:
                self._enter(path, module, args, kwargs)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() == self._thread:
                self._leave(module, output)

        before = module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
        hooks.enter_context(before)
        hooks.enter_context(module.register_forward_hook(leave))

    def _enter(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        first = next(iter(tensors_of((args, kwargs))), None)
        plain = is_plain_call(module, first, args, kwargs)
        call = Call(path, plain, len(self.events))
        self.calls.setdefault(module, []).append(call)
        self._open.append((module, call))
        self.functions.where = path
        self.events.append(self._event(call, first, leaving=False))

    def _leave(self, module: nn.Module, output: Any) -> None:
        entered, call = self._open.pop()
        while entered is not module:  # its forward raised, and that was caught
            entered, call = self._open.pop()
        call.leaves = len(self.events)
        self.functions.where = self._open[-1][1].path if self._open else ""
        with self.functions.pause():
            call.output = with_tensors(output, [t.clone() for t in tensors_of(output)])
        self.events.append(self._event(call, output, leaving=True))

    def _event(self, call: Call, value: object, *, leaving: bool) -> Event:
        first = next(iter(tensors_of(value)), None)
        time = self.functions.time
        if first is None:
            return Event(call, leaving, time, None, 0)
        with self.functions.pause():
            return Event(call, leaving, time, first.clone(), self.functions.key(first))
