"""One run of a module, watched: the calls of its submodules, and the tensors under way."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from featprop_sklearn.networks.module_paths import modules_outside_layers
from featprop_sklearn.networks.tracing import is_plain_call
from featprop_sklearn.networks.values import Functions, key_of, tensors_of, with_tensors

__all__ = ["FOREVER", "Call", "Event", "Recording", "record"]

FOREVER = 2**62


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
    keys : list of hashable
        Names of the values of the tensors in it.
    overwrites : bool
        Whether it overwrote the first tensor that it was given.
    """

    path: str
    plain: bool
    enters: int
    leaves: int = FOREVER
    output: object = None
    keys: list[Hashable] = field(default_factory=list)
    overwrites: bool = False


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


@dataclass(frozen=True)
class Recording:
    """What happened.

    Attributes
    ----------
    events : list of Event
        In order; the first and the last are the module's own.
    calls : dict of nn.Module to list of Call
        Calls of each module.
    makers : dict of hashable to list of tuple
        When values were written, and by what: path of the module, name of the function.
    born : dict of hashable to int
        When what was computed from the input or from parameters was first written.
    read : dict of hashable to list of int
        When values were read in the module.
    depends : bool
        Whether what is done depends on values, or on a mode that parts run in.
    """

    events: list[Event]
    calls: dict[nn.Module, list[Call]]
    makers: dict[Hashable, list[tuple[int, str]]]
    born: dict[Hashable, int]
    read: dict[Hashable, list[int]]
    depends: bool

    @property
    def output(self) -> object:
        """Copy of what the module returned."""
        return self.events[-1].call.output

    @cached_property
    def reads(self) -> dict[Hashable, list[int]]:
        """When values were read; those of the output are, ever after."""
        output = self.events[-1].key
        return {**self.read, output: [*self.read.get(output, ()), FOREVER]}

    @cached_property
    def _lives(self) -> dict[Hashable, tuple[int, int]]:
        """From when on, and until when, what was computed is needed."""
        return {key: (born, max(self.reads.get(key, [born]))) for key, born in self.born.items()}

    @cached_property
    def _crowd(self) -> list[int]:
        """How many of these are needed at each time."""
        end = self.events[-1].time
        changes = [0] * (end + 2)
        for born, last in self._lives.values():
            if born <= end:
                changes[born] += 1
                changes[min(last, end + 1)] -= 1
        return list(accumulate(changes))

    def is_alone(self, event: Event) -> bool:
        """Return whether, of all that was computed, only this tensor is still needed."""
        born, last = self._lives.get(event.key, (0, 0))
        return born <= event.time < last and self._crowd[event.time] == 1

    def reads_of(self, tensor: Tensor) -> list[int]:
        """Return when a tensor was read."""
        return self.reads.get(key_of(tensor), [])

    def returning(self, value: Tensor) -> Recording:
        """Return the recording of a module that returns only one of the tensors in the output."""
        *before, last = self.events
        keys = zip(tensors_of(last.call.output), last.call.keys, strict=True)
        key = next(key for tensor, key in keys if tensor is value)
        return replace(self, events=[*before, replace(last, value=value, key=key)])


def record(module: nn.Module, x: Tensor) -> Recording:
    """Run a module and watch.

    Parameters
    ----------
    module : nn.Module
        One tensor in; what comes out begins with the tensor that counts.
    x : Tensor
        Its input.

    Returns
    -------
    Recording
        Of this thread's run alone.
    """
    x = x.clone()
    functions = Functions(x, module)
    watch = _Watch(functions)
    with ExitStack() as hooks:
        for part, path in modules_outside_layers(module).items():
            watch.follow(path, part, hooks)
        hooks.enter_context(functions)
        module(x)
    return Recording(
        watch.events,
        watch.calls,
        functions.makers,
        functions.born,
        functions.reads,
        functions.depends,
    )


@dataclass(frozen=True)
class _Open:
    """A call that has not ended, the first tensor that it was given, and that one's version."""

    module: nn.Module
    call: Call
    given: Tensor | None
    version: int


class _Watch:
    """Hooks that note the calls."""

    def __init__(self, functions: Functions) -> None:
        self.functions = functions
        self.events: list[Event] = []
        self.calls: dict[nn.Module, list[Call]] = {}
        self._open: list[_Open] = []
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
        self._open.append(_Open(module, call, first, 0 if first is None else first._version))
        self.functions.where = path
        self.events.append(self._event(call, first, leaving=False))

    def _leave(self, module: nn.Module, output: Any) -> None:
        opened = self._open.pop()
        while opened.module is not module:  # its forward raised, and that was caught
            opened = self._open.pop()
        call = opened.call
        call.leaves = len(self.events)
        call.overwrites = opened.given is not None and opened.given._version != opened.version
        self.functions.where = self._open[-1].call.path if self._open else ""
        with self.functions.pause():
            tensors = tensors_of(output)
            call.output = with_tensors(output, [tensor.clone() for tensor in tensors])
            call.keys = [self.functions.key(tensor) for tensor in tensors]
        self.events.append(self._event(call, output, leaving=True))

    def _event(self, call: Call, value: object, *, leaving: bool) -> Event:
        first = next(iter(tensors_of(value)), None)
        time = self.functions.time
        if first is None:
            return Event(call, leaving, time, None, 0)
        with self.functions.pause():
            return Event(call, leaving, time, first.clone(), self.functions.key(first))
