"""One method in a process of its own: timed on request, killed when it takes too long.

The process is forked from the one that holds the problem, so that its peak memory, beyond what
it starts with, is the method's own.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from inversion_methods import Call, prepare
from inversion_problem import Problem
from inversion_rivals import NotApplicable
from torch import Tensor

OUT_OF_TIME = "out of time"
OUT_OF_MEMORY = "out of memory"
NOT_APPLICABLE = "–"
MIB = 2**20
#: how long a call is repeated, to be longer than the clock's tick
SHORTEST = 0.02
REPEATED_SET_UPS = 5
#: by how much a call must take longer than one with fewer samples, to be extrapolated from
LONGER = 1.5


@dataclass(frozen=True)
class Limits:
    """What a method may take.

    Attributes
    ----------
    seconds : float
        For the set-up and the first calls.
    call_seconds : float
        For a call; beyond, it is made with fewer samples, and extrapolated.
    n_bytes : int
        Beyond what the process starts with.
    rounds : int
        Most timed calls.
    """

    seconds: float = 6.0
    call_seconds: float = 1.0
    n_bytes: int = 4 * 2**30
    rounds: int = 7


class Worker:
    """A method at work on a problem.

    Attributes
    ----------
    outcome : dict
        Empty until started; then what was measured, or ``{"failed": why}``.
    """

    def __init__(self, method: str, problem: Problem, truth: Tensor, limits: Limits) -> None:
        self.method = method
        self.limits = limits
        self.outcome: dict[str, Any] = {}
        context = get_context("fork")
        self._pipe, other = context.Pipe()
        arguments = (method, problem, truth, limits, other)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)

    def start(self) -> None:
        """Set up and make the first calls."""
        self._process.start()
        self.outcome = self._receive()

    @property
    def alive(self) -> bool:
        """Whether it can be called."""
        return bool(self.outcome) and "failed" not in self.outcome

    def call(self) -> float:
        """Return the seconds that one call took."""
        self._pipe.send("call")
        answer = self._receive()
        return answer if isinstance(answer, float) else float("nan")

    def stop(self) -> None:
        """End the process."""
        if self._process.is_alive():
            self._process.kill()
        self._process.join()

    def _receive(self) -> Any:
        try:
            if self._pipe.poll(self.limits.seconds):
                return self._pipe.recv()
            self._process.kill()
            return {"failed": OUT_OF_TIME}
        except (EOFError, OSError):  # the system, or a library, ended it: it asked for too much
            return {"failed": OUT_OF_MEMORY}


def _serve(method: str, problem: Problem, truth: Tensor, limits: Limits, pipe: Connection) -> None:
    os.close(2)  # what libraries print when they run out of memory
    _limit_memory(limits.n_bytes)
    try:
        call, outcome = _first(method, problem, truth, limits)
        pipe.send(outcome)
        while pipe.recv() == "call":
            pipe.send(timed(call, outcome["samples"], outcome["seconds"]))
    except Exception as error:
        pipe.send({"failed": _reason(error)})


def _first(
    method: str, problem: Problem, truth: Tensor, limits: Limits
) -> tuple[Call, dict[str, Any]]:
    """Set up, measure memory and error, and find how many samples a call can be given."""
    before = _memory("VmRSS")
    started = time.process_time()
    call = prepare(method, problem)
    set_ups = [time.process_time() - started]
    count, fixed, each, answer = _growing(call, problem, limits)
    peak = _memory("VmHWM") - before
    while len(set_ups) < REPEATED_SET_UPS and sum(set_ups) < 1.0:
        started = time.process_time()
        prepare(method, problem)
        set_ups.append(time.process_time() - started)
    wanted = problem.case.n_samples
    return call, {
        "set_up": sorted(set_ups)[len(set_ups) // 2],
        "seconds": fixed + each * count,
        "samples": count,
        "wanted": wanted,
        # a call with all samples, from one with fewer
        "scale": (fixed + each * wanted) / (fixed + each * count),
        "mib": peak / MIB,
        "error": None if answer.found is None else error(answer.found, problem, truth),
        "solver": answer.solver,
        "converged": answer.converged,
    }


def _growing(call: Call, problem: Problem, limits: Limits) -> tuple[int, float, float, Any]:
    """Call with 1, 2, 8, ... samples while a call with all of them might take too long.

    Returns
    -------
    count : int
        Of samples in the last call.
    fixed, each : float
        Seconds of a call, and of every sample in it.
    answer : Answer
        Of the last call.
    """
    available = len(problem.reference)
    call(1)  # what only the first call takes
    count, fixed, each, before = 1, 0.0, 0.0, None
    while True:
        started = time.process_time()
        answer = call(count)
        seconds = time.process_time() - started
        if before is None:
            each = seconds / count
        else:
            each = max(0.0, (seconds - before[1]) / (count - before[0]))
        fixed = max(0.0, seconds - each * count)
        # what the samples cost shows only in calls that they make longer
        following = min(2 if before is None else 4 * count, available)
        shows = before is not None and seconds > LONGER * before[1]
        too_long = shows and fixed + each * following > limits.call_seconds
        if count == available or too_long:
            return count, fixed, max(each, 1e-12), answer
        before = (count, seconds)
        count = following


def timed(call: Call, count: int, about: float) -> float:
    """Return the processor seconds of one call, repeated if it is very short."""
    repeats = max(1, int(SHORTEST / max(about, 1e-6)))
    started = time.process_time()
    for _ in range(repeats):
        call(count)
    return (time.process_time() - started) / repeats


def error(found: Tensor, problem: Problem, truth: Tensor) -> float:
    """‖x − x*‖ / ‖x*‖, the largest of the samples that are checked."""
    checked = min(len(found), len(truth))
    exact = problem.reference[:checked] + truth[:checked]
    differences = (found[:checked] - truth[:checked]).flatten(1).norm(dim=1)
    relative = differences / exact.flatten(1).norm(dim=1)
    return float(torch.nan_to_num(relative, nan=torch.inf).max())


def _reason(error: Exception) -> str:
    if isinstance(error, NotApplicable):
        return NOT_APPLICABLE
    text = str(error)
    if isinstance(error, MemoryError) or "allocate" in text or "GiB" in text:
        return OUT_OF_MEMORY
    if isinstance(error, ValueError) and "solver=" in text:
        return NOT_APPLICABLE  # it needs what the map does not have, and says so
    return f"failed ({type(error).__name__})"


def _limit_memory(n_bytes: int) -> None:
    """Let allocations beyond the limit fail, as far as the system knows such limits."""
    held = _memory("VmSize")
    if held:
        resource.setrlimit(resource.RLIMIT_AS, (held + n_bytes,) * 2)


def _memory(entry: str) -> int:
    """Bytes, from Linux's own record of the process; 0 elsewhere."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    lines = (line for line in status.read_text().splitlines() if line.startswith(entry))
    return 1024 * int(next(lines).split()[1])
