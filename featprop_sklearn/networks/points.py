"""Where a module can be cut: tensors that alone are needed later, at the ends of its submodules."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from torch import Tensor

from featprop_sklearn.networks.recording import Event, Recording
from featprop_sklearn.networks.tracing import CannotOpenError, has_rows

__all__ = ["NO_POINT", "Point", "find_points"]

NO_POINT = "between the modules in it more than one tensor is under way"


@dataclass(frozen=True)
class Point:
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


def find_points(run: Recording, *, by_path: bool = True) -> list[Point]:
    """List the points of a run of several rows: the input, those inside, and the output.

    Parameters
    ----------
    run : Recording
        The run.
    by_path : bool, default=True
        Whether the path of a module has to tell where the point is: only if the module is
        called just once, it does.

    Raises
    ------
    CannotOpenError
        If the input or the output is none.
    """
    points = []
    last = len(run.events) - 1
    once = {calls[0].path for calls in run.calls.values() if len(calls) == 1} | {""}
    places = [
        place
        for place in range(last + 1)
        if (not by_path or run.events[place].call.path in once) and _is_point(run, place)
    ]
    for _, group in groupby(places, lambda place: _moment(run.events[place])):
        moment = list(group)
        leaving = [place for place in moment if run.events[place].leaving]
        # the whole begins at its input; elsewhere as much as possible is left behind
        at = 0 if moment[0] == 0 else (leaving or moment[:1])[-1]
        points.append(Point([run.events[place] for place in moment], at))
    if not points or points[0].place != 0 or points[-1].place != last:
        raise CannotOpenError("its input or its output is not one tensor, one row a sample")
    return points


def _is_point(run: Recording, place: int) -> bool:
    event, given = run.events[place], run.events[0].value
    assert given is not None
    return (
        has_rows(event.value, len(given))
        and event.value is not None
        and event.value.is_floating_point()
        and run.is_alone(event)
        and (event.leaving or _is_read_inside(run, event))
    )


def _is_read_inside(run: Recording, event: Event) -> bool:
    """Return whether what a module is given is read by that module alone from then on."""
    end = run.events[event.call.leaves]
    handed_on = end.key == event.key
    return handed_on or all(time <= end.time for time in run.reads[event.key])


def _moment(event: Event) -> tuple[object, ...]:
    assert event.value is not None
    return event.time, event.key, event.value.shape, event.value.stride()
