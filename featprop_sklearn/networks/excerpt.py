"""What lies between two events of a recording, as a recording of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from featprop_sklearn.networks.recording import Call, Event, Recording

__all__ = ["excerpt"]


def excerpt(run: Recording, first: int, last: int, path: str) -> Recording:
    """Return what was recorded between two events, as if a module at a path had run alone.

    Parameters
    ----------
    run : Recording
        Of a network.
    first, last : int
        Numbers of the events; at both, one tensor has to be all that is needed.
    path : str
        Of the module, or of the one that holds the calls between the events.

    Returns
    -------
    Recording
        Its paths and names count from there.
    """
    begin, end = run.events[first], run.events[last]
    prefix = f"{path}." if path else ""
    inside = _inside(run.events, first + begin.leaving, last + end.leaving, path, prefix)
    calls = _calls(inside, prefix)
    whole = Call("", True, 0, len(inside) + 1, end.value, [end.key])
    return replace(
        run,
        events=[
            replace(begin, call=whole, leaving=False),
            *(replace(event, call=calls[id(event.call)]) for event in inside),
            replace(end, call=whole, leaving=True),
        ],
        calls=_without_empty(
            {
                module: [calls[id(call)] for call in own if id(call) in calls]
                for module, own in run.calls.items()
            }
        ),
        makers={
            key: [(time, name.removeprefix(prefix)) for time, name in made]
            for key, made in run.makers.items()
        },
        read=_without_empty(
            {
                key: [time for time in times if begin.time < time <= end.time]
                for key, times in run.read.items()
            }
        ),
    )


def _inside(events: list[Event], begin: int, end: int, path: str, prefix: str) -> list[Event]:
    """List the events of calls that begin and end there, without the call of the whole."""
    return [
        event
        for event in events[begin:end]
        if begin <= event.call.enters < event.call.leaves < end
        and event.call.path != path
        and event.call.path.startswith(prefix)
    ]


def _calls(inside: list[Event], prefix: str) -> dict[int, Call]:
    """Return each call as it is when the events are numbered anew, from 1 on."""
    enters = {id(e.call): place for place, e in enumerate(inside, start=1) if not e.leaving}
    return {
        id(event.call): replace(
            event.call,
            path=event.call.path.removeprefix(prefix),
            enters=enters[id(event.call)],
            leaves=place,
        )
        for place, event in enumerate(inside, start=1)
        if event.leaving
    }


def _without_empty(lists: dict[Any, list[Any]]) -> dict[Any, list[Any]]:
    return {key: values for key, values in lists.items() if values}
