"""One ``forward`` as a list of segments between its single-tensor points, found by running it.

Where ``torch.fx`` cannot follow a forward, a run of it is watched. A tensor that a submodule is
given or returns is a point where the module can be cut if, of all that was computed from the
input or from parameters before, it alone is read later. Each segment has to make the next tensor
out of the one before for rows that it was not set up with.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import cached_property

import torch
from torch import Tensor, nn

from featprop_sklearn.networks.agreement import is_close, learns_alike
from featprop_sklearn.networks.in_place import copy_input
from featprop_sklearn.networks.points import NO_POINT, Point, find_points
from featprop_sklearn.networks.recording import Recording, record
from featprop_sklearn.networks.replay import Idle, Outline, Replay, Said, begin_at, end_at, release
from featprop_sklearn.networks.tracing import CannotOpenError, Segment, has_rows
from featprop_sklearn.networks.values import tensors_of
from featprop_sklearn.networks.watched import DoubtError, Part

__all__ = ["replay_segments"]


def replay_segments(module: nn.Module, x: Tensor, part: Part | None = None) -> list[Segment]:
    """Cut a module at its single-tensor points.

    Parameters
    ----------
    module : nn.Module
        In eval mode; one tensor in, one tensor out.
    x : Tensor
        Example input, at least two rows.
    part : Part or None
        What the module was in a run that was watched: what is in it is only outlined, not run.

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
        runs = part.recordings(module) if part else (record(module, x), None)
        segments = _Cutter(module, x, *runs, outline=part is not None).segments()
        if len(segments) == 1 and segments[0].child is None:
            raise CannotOpenError(NO_POINT)
        if part is None and not learns_alike(
            [segment.module for segment in segments], module, x[:2]
        ):
            raise CannotOpenError("its parts would get other gradients than they get in it")
    except (CannotOpenError, DoubtError):
        raise
    except Exception as error:  # of user code, or for tensors without a storage
        raise CannotOpenError(f"its runs cannot be followed ({error})") from error
    return segments


class _Cutter:
    """Two runs of a module, on several rows and on one of them alone, to cut it by."""

    def __init__(
        self,
        module: nn.Module,
        x: Tensor,
        run: Recording,
        alone: Recording | None = None,
        *,
        outline: bool = False,
    ) -> None:
        self.module = module
        self.x = x
        self.rows = len(x)
        self.run = run
        self.outline = outline
        self.points = find_points(run)
        if len(self.points) == 2 and self._child(*self.points) is None:
            raise CannotOpenError(NO_POINT)
        self.alone = alone or record(module, x[-1:])
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

    # segments -------------------------------------------------------------------------

    def _segment(self, start: Point, stop: Point) -> Segment | None:
        """Return what leads from one point to the other, if it does so alone."""
        part: nn.Module
        child = self._child(start, stop)
        outline = self.outline and (child is not None or not self._is_handed_on(start))
        if child is not None:
            name, part = child, self.module.get_submodule(child)
        else:
            name, part = self._name(start, stop), self._part(start, stop, outline=outline)
        try:
            if not outline and not is_close(part(start.value.clone()), stop.value):
                return None
        except Exception:  # of user code, which may count on anything
            return None
        ends = tuple(path for path in stop.paths if path != name)
        inside = () if child else self._inside(start, stop)
        return Segment(name, part, stop.value, child, ends, inside)

    def _is_handed_on(self, point: Point) -> bool:
        """Return whether a module returns what it is given, which may be read at its own name."""
        return any(
            event.leaving and self.run.events[event.call.enters].key == event.key
            for event in point.events
        )

    def _name(self, start: Point, stop: Point) -> str:
        """Name what leads to a point: a module, a function, or whose input or output it is."""
        if stop.paths:
            return stop.paths[0]
        makers = self.run.makers.get(stop.events[0].key, ())
        names = [name for time, name in makers if start.time < time <= stop.time]
        if names:
            return names[-1]
        return f"{stop.path}.input" if stop.path else "output"

    def _child(self, start: Point, stop: Point) -> str | None:
        """Return the innermost module that leads from one point to the other."""
        entered = {event.call.enters for event in start.events if not event.leaving}
        for event in stop.events:
            call = event.call
            plain = call.plain and isinstance(call.output, Tensor)
            if event.leaving and call.path and plain and call.enters in entered:
                return None if call.path in self._bound else call.path
        return None

    @cached_property
    def _bound(self) -> set[str]:
        """Paths of the submodules that may not work on copies of their inputs.

        What they overwrite is read after them.
        """
        calls = [call for calls in self.run.calls.values() for call in calls if call.path]
        paths = {call.path for call in calls if call.overwrites}
        if not paths or self._do_with_copies(paths):
            return set()
        return {path for path in paths if not self._do_with_copies([path])}

    def _do_with_copies(self, paths: Iterable[str]) -> bool:
        with ExitStack() as hooks:
            for path in paths:
                part = self.module.get_submodule(path)
                hooks.enter_context(part.register_forward_pre_hook(copy_input))
            return torch.equal(self.module(self.x.clone()), self.points[-1].value)

    def _inside(self, start: Point, stop: Point) -> tuple[str, ...]:
        return tuple(
            event.call.path
            for event in self.run.events[start.place + 1 : stop.place + 1]
            if event.leaving and event.call.enters > start.place and event not in stop.events
        )

    # replays --------------------------------------------------------------------------

    def _part(self, start: Point, stop: Point, *, outline: bool) -> nn.Module:
        """Return what is at work between two points."""
        at_work = self._at_work(start, stop)
        if outline:
            return Outline(filter(at_work, self.module.parameters()))
        return self._replay(start, stop, at_work)

    def _replay(self, start: Point, stop: Point, at_work: Callable[[Tensor], bool]) -> Replay:
        """Copy the module without what is not at work between two points."""
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

    def _at_work(self, start: Point, stop: Point) -> Callable[[Tensor], bool]:
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
        start: Point,
        stop: Point,
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

    def _said_by(self, module: nn.Module, start: Point) -> list[Said]:
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
