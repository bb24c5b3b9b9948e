"""One run of a network on a few rows and one on a single row: what a list of its splits needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from featprop_sklearn.networks.excerpt import excerpt
from featprop_sklearn.networks.layers import is_layer
from featprop_sklearn.networks.points import NO_POINT, Point, find_points
from featprop_sklearn.networks.recording import Call, Recording, record
from featprop_sklearn.networks.tracing import CannotOpenError, Values
from featprop_sklearn.networks.values import tensors_of, with_tensors

__all__ = ["DoubtError", "Part", "Watched"]


class DoubtError(Exception):
    """What was seen does not tell whether parts of a network do alone what they do inside."""


@dataclass(frozen=True)
class Watched:
    """A network, and what its modules returned.

    Attributes
    ----------
    network : nn.Module
        In eval mode; one tensor in, one tensor out.
    run : Recording
        Of a few rows.
    run_alone : Recording
        Of the last of them alone.
    """

    network: nn.Module
    run: Recording
    run_alone: Recording

    @property
    def example(self) -> tuple[Tensor, Tensor]:
        """The input and the output."""
        begin, *_, end = self.run.events
        assert begin.value is not None
        assert end.value is not None
        return begin.value, end.value

    # what modules return --------------------------------------------------------------

    def several(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Return what a module returned for the same rows; if it had others, run it."""
        return _answer(self.run, module, args, kwargs or {}, by_value=True)

    def alone(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Return what a module returned for a single row, or something of that shape."""
        return _answer(self.run_alone, module, args, kwargs or {}, by_value=False)

    def compute(self, part: nn.Module, x: Tensor) -> object:
        """Run a part that was read in a forward, on the rows that all was seen for."""
        if isinstance(part, fx.GraphModule):
            return Values(part, self.several).run(x)
        if isinstance(part, nn.Sequential):
            for child in part:
                x = self.several(child, (x,))
            return x
        return part(x)

    def overwrites(self, part: nn.Module, x: Tensor) -> bool:
        """Return whether a part overwrites what it is given."""
        calls = [self.run.events[0].call] if part is self.network else self.run.calls.get(part)
        if calls is not None:
            return any(call.overwrites for call in calls)
        given = x.clone()
        version = given._version
        self.compute(part, given)
        return given._version != version

    # where it can be cut --------------------------------------------------------------

    @cached_property
    def points(self) -> list[Point]:
        """Where one tensor is all that is passed on, at the ends of calls."""
        return find_points(self.run, by_path=False)

    def is_at(self, point: Point, modules: set[nn.Module], leaving: bool | None = None) -> bool:
        """Return whether one of the modules begins or ends there, or does the one of them."""
        return any(
            self._called[id(event.call)] in modules
            for event in point.events
            if leaving in (None, event.leaving)
        )

    def is_within(self, point: Point, modules: set[nn.Module], *, leaving: bool) -> bool:
        """Return whether one of the modules ends (else begins) there that does not do both."""
        calls = [id(event.call) for event in point.events]
        return any(
            self._called[id(event.call)] in modules and calls.count(id(event.call)) == 1
            for event in point.events
            if event.leaving == leaving
        )

    @cached_property
    def _called(self) -> dict[int, nn.Module]:
        return {id(call): module for module, calls in self.run.calls.items() for call in calls} | {
            id(event.call): self.network for event in (self.run.events[0], self.run.events[-1])
        }


@dataclass(frozen=True)
class Part:
    """A module of a watched network, or several calls in the forward of one.

    Attributes
    ----------
    watched : Watched
        The network.
    path : str
        Where in it the names of what is in the part count from.
    x, output : Tensor
        What the part was given, and what it made of it.
    """

    watched: Watched
    path: str
    x: Tensor
    output: Tensor

    def recordings(self, module: nn.Module) -> tuple[Recording, Recording]:
        """Return runs of the part on the rows that all was seen for, and on a single one.

        Parameters
        ----------
        module : nn.Module
            What computes the part.

        Raises
        ------
        CannotOpenError
            If there is no point inside.
        DoubtError
            If something was computed unseen, or the part overwrites its input.
        """
        watched = self.watched
        runs = watched.run, watched.run_alone
        if module is not watched.network:
            # in a chain, a stage that overwrites its input works on a copy, which is a step more
            if watched.overwrites(module, self.x):
                raise DoubtError
            runs = self._excerpts(module)
        if any(_has_unseen(runs[0], part) for part in runs[0].calls):
            raise DoubtError
        return runs

    def _excerpts(self, module: nn.Module) -> tuple[Recording, Recording]:
        run, alone = self.watched.run, self.watched.run_alone
        inside = {part for part in module.modules() if part is not module}
        ends = self._ends_of_call(module) or self._ends_of_calls(inside)
        if ends and len(run.events) == len(alone.events) and self._has_paths(inside):
            return excerpt(run, *ends, self.path), excerpt(alone, *ends, self.path)
        if not any(self.watched.is_at(point, inside) for point in self.watched.points):
            raise CannotOpenError(NO_POINT)
        return record(module, self.x), record(module, self.x[-1:])

    def _ends_of_call(self, module: nn.Module) -> tuple[int, int] | None:
        """Return the begin and the end of the call of the module, if it is one."""
        run = self.watched.run
        for call in run.calls.get(module, ()):
            if _was_given(run, call, self.x, by_value=True):
                return call.enters, call.leaves
        return None

    def _ends_of_calls(self, inside: set[nn.Module]) -> tuple[int, int] | None:
        """Return where one tensor enters calls, and another leaves them, if modules end there."""
        once = {part for part in inside if len(self.watched.run.calls.get(part, ())) == 1}
        begins = self._places(self.x, once, leaving=True)
        for end in self._places(self.output, once, leaving=False):
            before = [begin for begin in begins if begin < end]
            if before:
                return before[-1], end
        return None

    def _places(self, value: Tensor, modules: set[nn.Module], *, leaving: bool) -> list[int]:
        """List where the value is and none of the modules ends, or begins; nothing in doubt."""
        watched = self.watched
        same = [
            point
            for point in watched.points
            if _are_same(point.value, value)
            and not watched.is_within(point, modules, leaving=leaving)
        ]
        if len({point.events[0].key for point in same}) > 1:  # others happen to be the same
            return []
        return [point.place for point in same if not watched.is_at(point, modules, leaving)]

    def _has_paths(self, modules: set[nn.Module]) -> bool:
        """Return whether modules were called by paths in the part; shared ones have others, too."""
        prefix = f"{self.path}." if self.path else ""
        calls = (call for module in modules for call in self.watched.run.calls.get(module, ()))
        return all(call.path.startswith(prefix) for call in calls)


def _answer(
    run: Recording,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    by_value: bool,
) -> Any:
    """Repeat what a module returned; run it if it was not given this, or overwrote it."""
    given = next(iter(tensors_of((args, kwargs))), None)
    for call in run.calls.get(module, ()):
        ended = call.leaves < len(run.events)
        if ended and not call.overwrites and _was_given(run, call, given, by_value=by_value):
            return with_tensors(call.output, [tensor.clone() for tensor in tensors_of(call.output)])
    return module(*args, **kwargs)


def _was_given(run: Recording, call: Call, given: Tensor | None, *, by_value: bool) -> bool:
    seen = run.events[call.enters].value
    if given is None or seen is None:
        return False
    return _are_same(given, seen) if by_value else given.shape == seen.shape


def _are_same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _has_unseen(run: Recording, module: nn.Module) -> bool:
    """Return whether a layer ran without its parameters being read, as far as was seen.

    Other modules have some that are only for training, such as mask tokens.
    """
    if not is_layer(module) and next(module.children(), None) is not None:
        return False
    return any(p.requires_grad and not run.reads_of(p) for p in module.parameters())
