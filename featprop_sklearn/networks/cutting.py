"""One ``forward`` as a list of segments between its single-tensor points, found by running it.

Where ``torch.fx`` cannot follow a forward, a run of it is watched. A tensor that a submodule is
given or returns is a point where the module can be cut if, of all that was computed from the
input or from parameters before, it alone is read later. Each segment has to make the next tensor
out of the one before for rows that it was not set up with.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor, nn

from featprop_sklearn.networks.agreement import is_close, learns_alike
from featprop_sklearn.networks.in_place import needs_its_input_overwritten, overwrites
from featprop_sklearn.networks.recording import Event, record, tensors_of
from featprop_sklearn.networks.replay import Idle, Replay, Said, begin_at, end_at, release
from featprop_sklearn.networks.tracing import CannotOpenError, Segment, has_rows

__all__ = ["replay_segments"]

_NO_POINT = "between the modules in it more than one tensor is under way"


@dataclass(frozen=True)
class _Point:
    """A tensor between two segments.

    Attributes
    ----------
    events : list of Event
        Begins and ends of calls; the tensor is all there is at each, and nothing is computed
        between them.
    place : int
        Of the one, among all events, where the module is cut.
    """

    events: list[Event]
    place: int

    @property
    def path(self) -> str:
        """Path of the module that is entered or left there."""
        return next(
            event.call.path
            for event in self.events
            if self.place == (event.call.leaves if event.leaving else event.call.enters)
        )

    @property
    def paths(self) -> list[str]:
        """Paths of the modules that return the tensor."""
        return [event.call.path for event in self.events if event.leaving and event.call.path]

    @property
    def time(self) -> int:
        """How many functions had been computed."""
        return self.events[0].time

    @property
    def value(self) -> Tensor:
        """The tensor."""
        value = self.events[0].value
        assert value is not None
        return value


def replay_segments(module: nn.Module, x: Tensor) -> list[Segment]:
    """Cut a module at its single-tensor points.

    Parameters
    ----------
    module : nn.Module
        In eval mode; one tensor in, one tensor out.
    x : Tensor
        Example input, at least two rows.

    Returns
    -------
    list of Segment
        At least two, or one call of a submodule.

    Raises
    ------
    CannotOpenError
        If there is no such point inside.
    """
    if next(module.children(), None) is None:
        raise CannotOpenError("it has no modules inside")
    try:
        segments = _Cutter(module, x).segments()
        if len(segments) == 1 and segments[0].child is None:
            raise CannotOpenError(_NO_POINT)
        if not learns_alike([segment.module for segment in segments], module, x[:2]):
            raise CannotOpenError("its parts would get other gradients than they get in it")
    except CannotOpenError:
        raise
    except Exception as error:  # of user code, or for tensors without a storage
        raise CannotOpenError(f"its runs cannot be followed ({error})") from error
    return segments


class _Cutter:
    """Two runs of a module, on several rows and on the last of them alone, to cut it by."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.module = module
        self.x = x
        self.rows = len(x)
        self.run = record(module, x)
        self.once = {calls[0].path for calls in self.run.calls.values() if len(calls) == 1}
        self.points = self._points()
        if len(self.points) == 2 and self._child(*self.points) is None:
            raise CannotOpenError(_NO_POINT)
        self.alone = record(module, x[-1:])
        self.example = self._said(x, x[-1:].clone())
        steps = [[(e.call.path, e.leaving) for e in run.events] for run in (self.run, self.alone)]
        if steps[0] != steps[1]:
            raise CannotOpenError("other modules in it run for a single row")
        # a dimension that follows the number of rows is the batch; one as long by chance is not
        begin, *inside, end = self.points
        inside = [p for p in inside if has_rows(self.alone.events[p.place].value, 1)]
        self.points = [begin, *inside, end]

    def segments(self) -> list[Segment]:
        """List the segments; one that does not do alone is joined with those before it."""
        start, *others = self.points
        starts = [start]
        segments: list[Segment] = []
        for stop in others:
            while (segment := self._segment(starts[-1], stop)) is None:
                starts.pop()
                if not starts:
                    raise CannotOpenError("no part of it does alone what it does inside")
                segments.pop()
            starts.append(stop)
            segments.append(segment)
        return segments

    # points ---------------------------------------------------------------------------

    def _points(self) -> list[_Point]:
        """Return the input, the points inside, and the output."""
        points = []
        last = len(self.run.events) - 1
        for _, group in groupby(filter(self._is_point, range(last + 1)), self._moment):
            places = list(group)
            leaving = [place for place in places if self.run.events[place].leaving]
            # the whole begins at its input; elsewhere as much as possible is left behind
            at = 0 if places[0] == 0 else (leaving or places[:1])[-1]
            points.append(_Point([self.run.events[place] for place in places], at))
        if not points or points[0].place != 0 or points[-1].place != last:
            raise CannotOpenError("its input or its output is not one tensor, one row a sample")
        return points

    def _is_point(self, place: int) -> bool:
        event = self.run.events[place]
        return (
            event.call.path in self.once
            and has_rows(event.value, self.rows)
            and event.value is not None
            and event.value.is_floating_point()
            and self.run.is_alone(event)
            and (event.leaving or self._is_read_inside(event))
        )

    def _is_read_inside(self, event: Event) -> bool:
        """Return whether what a module is given is read by that module alone from then on."""
        end = self.run.events[event.call.leaves]
        handed_on = end.key == event.key
        return handed_on or all(time <= end.time for time in self.run.reads[event.key])

    def _moment(self, place: int) -> tuple[object, ...]:
        event = self.run.events[place]
        assert event.value is not None
        return event.time, event.key, event.value.shape, event.value.stride()

    # segments -------------------------------------------------------------------------

    def _segment(self, start: _Point, stop: _Point) -> Segment | None:
        """Return what leads from one point to the other, if it does so alone."""
        part: nn.Module
        child = self._child(start, stop)
        if child is not None:
            name, part = child, self.module.get_submodule(child)
        else:
            name, part = self._name(start, stop), self._replay(start, stop)
        try:
            if not is_close(part(start.value.clone()), stop.value):
                return None
        except Exception:  # of user code, which may count on anything
            return None
        ends = tuple(path for path in stop.paths if path != name)
        return Segment(name, part, child, ends, () if child else self._inside(start, stop))

    def _name(self, start: _Point, stop: _Point) -> str:
        """Name what leads to a point: a module, a function, or the module that goes on there."""
        if stop.paths:
            return stop.paths[0]
        makers = self.run.makers.get(stop.events[0].key, ())
        names = [name for time, name in makers if start.time < time <= stop.time]
        return names[-1] if names else f"{stop.path}.input".lstrip(".")

    def _child(self, start: _Point, stop: _Point) -> str | None:
        """Return the innermost module that leads from one point to the other."""
        entered = {event.call.enters for event in start.events if not event.leaving}
        for event in stop.events:
            call = event.call
            plain = call.plain and isinstance(call.output, Tensor)
            if event.leaving and call.path and plain and call.enters in entered:
                return call.path if self._can_be_apart(call.path, start) else None
        return None

    def _can_be_apart(self, path: str, start: _Point) -> bool:
        """Return whether a submodule may work on a copy of its input."""
        part = self.module.get_submodule(path)
        return not (
            overwrites(part, start.value)[0]
            and needs_its_input_overwritten(self.module, part, self.x)
        )

    def _inside(self, start: _Point, stop: _Point) -> tuple[str, ...]:
        return tuple(
            event.call.path
            for event in self.run.events[start.place + 1 : stop.place + 1]
            if event.leaving and event.call.enters > start.place and event not in stop.events
        )

    # replays --------------------------------------------------------------------------

    def _replay(self, start: _Point, stop: _Point) -> Replay:
        """Copy the module without what is not at work between two points."""
        at_work = self._at_work(start, stop)
        kept: dict[int, object] = {
            id(tensor): tensor for tensor in (*self.module.parameters(), *self.module.buffers())
        }
        self._sort(self.module, start, stop, at_work, kept)
        network = copy.deepcopy(self.module, dict(kept))
        release(network, {id(part) for part in kept.values()}, at_work)
        begins_inside, ends_inside = start.place > 0, stop.place < len(self.run.events) - 1
        if begins_inside:
            begin_at(network.get_submodule(start.path))
        if ends_inside:
            end_at(network.get_submodule(stop.path))
        example = self.example if begins_inside else None
        return Replay(network, example, ends_inside=ends_inside)

    def _at_work(self, start: _Point, stop: _Point) -> Callable[[Tensor], bool]:
        """Tell of a parameter whether it is read between two points, or nowhere.

        In the second case other data may lead to a branch that reads it.
        """

        def at_work(parameter: Tensor) -> bool:
            times = self.run.reads_of(parameter)
            return not times or any(start.time < time <= stop.time for time in times)

        return at_work

    def _sort(
        self,
        parent: nn.Module,
        start: _Point,
        stop: _Point,
        at_work: Callable[[Tensor], bool],
        kept: dict[int, object],
    ) -> None:
        """Say for the modules in one what takes their places in a copy, where it is no copy."""
        for module in parent.children():
            calls = self.run.calls.get(module, [])
            within = [c for c in calls if c.leaves > start.place and c.enters < stop.place]
            if calls and not within:
                kept[id(module)] = Idle(module, self._said_by(module, start), at_work)
            elif calls and all(start.place < c.enters and c.leaves < stop.place for c in within):
                kept[id(module)] = module
            else:
                self._sort(module, start, stop, at_work, kept)

    def _said_by(self, module: nn.Module, start: _Point) -> list[Said]:
        """Return what a module had returned for the example up to a point."""
        pairs = zip(self.run.calls[module], self.alone.calls[module], strict=True)
        return [
            self._said(several.output, alone.output)
            for several, alone in pairs
            if alone.leaves <= start.place
        ]

    def _said(self, several: object, alone: object) -> Said:
        pairs = zip(tensors_of(several), tensors_of(alone), strict=True)
        growing = [
            [many == self.rows * few != few for many, few in zip(a.shape, b.shape, strict=True)]
            for a, b in pairs
        ]
        return Said(alone, growing)
