"""What is expected of ``solver="auto"``, case by case, and whether it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, nan
from typing import Any

from inversion_cases import Case
from inversion_methods import PASS, PRODUCT
from inversion_ours import AUTO, OURS

#: right-hand sides that a set-up is charged to
LIFE = 1000
#: memory of set-up and call, MiB
BUDGET = 1024
#: an error that rounding does not explain, at any condition of the grid
DIVERGED = 1e-3
Methods = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Check:
    """One figure and its limit.

    Attributes
    ----------
    bar : str
        The bar that it belongs to.
    case : Case
        Where it was measured.
    value, limit : float
        NaN where there is no figure, which does not meet anything.
    at_least : bool
        Whether the value must be above the limit; else, below.
    """

    bar: str
    case: Case
    value: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the bar holds here."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def badness(self) -> float:
        """How far the figure goes into the wrong direction; more is worse."""
        if self.value != self.value:
            return inf
        if self.at_least:
            return self.limit / self.value
        return self.value / self.limit if self.limit else self.value


def checks(case: Case, entry: dict[str, Any]) -> list[Check]:
    """Hold one case against every bar that speaks of it."""
    methods = entry["methods"]
    found: list[Check] = []
    if not case.is_linear:
        found += _convolutions(case, entry)
    else:
        found += _linear(case, methods)
    return [*found, *_choice(case, methods)]


def _convolutions(case: Case, entry: dict[str, Any]) -> Iterator[Check]:
    methods = entry["methods"]
    error, passes = value(methods, AUTO, "error"), ratio(methods, AUTO, PASS)
    few = case.inputs == 2
    if few and case.damping == 0 and case.size >= 32 and case.n_samples >= 64:
        bar = "a" if case.condition is None else "a, condition given"
        yield Check(f"{bar}: error", case, error, 1e-9)
        limit = 1.0 if case.outputs == 1 else 1.2
        yield Check(f"{bar}: passes, {case.inputs}→{case.outputs}", case, passes, limit)
        for rival, factor in (("cg", 50), ("lsqr loop", 100)):
            if rival in measured(methods):
                times = ratio(methods, rival, AUTO)
                yield Check(f"{bar}: times faster than {rival}", case, times, factor, True)
        if "fft_pad" in measured(methods):
            yield Check(f"{bar}: time / fft_pad's", case, ratio(methods, AUTO, "fft_pad"), 1.1)
    if entry["damping"] > 0:
        yield Check("b: error, damped", case, error, 1e-10)
    if not few:
        yield Check("c: error, 8 channels and more", case, error, 1e-9)
        yield Check("c: passes, 8 channels and more", case, passes, 30)
    if case.n_samples == 2 and case.size <= 128:
        yield Check("d: time / fft_pad's, N = 2", case, ratio(methods, AUTO, "fft_pad"), 1.5)


def _linear(case: Case, methods: Methods) -> Iterator[Check]:
    # what r takes is part of the two products that any method must do
    needed = value(methods, PRODUCT, "seconds") + value(methods, AUTO, "seconds")
    passes = needed / value(methods, PASS, "seconds")
    yield Check("e: time with A x0 / two products'", case, passes, 1.5)
    for rival in ("numpy lstsq", "torch lstsq"):
        if rival in measured(methods):
            times = ratio(methods, rival, AUTO)
            yield Check(f"e: times faster than {rival}", case, times, 10, True)


def _choice(case: Case, methods: Methods) -> Iterator[Check]:
    yield Check("f: auto / best of ours, total", case, against_best(methods, case, total), 1.5)
    yield Check("f: auto / best of ours, per call", case, against_best(methods, case, a_call), 1.5)
    yield Check("f: MiB of set-up and call", case, value(methods, AUTO, "mib"), BUDGET)
    yield Check("f: error, divergence beyond", case, value(methods, AUTO, "error"), DIVERGED)
    solved = bool(methods[AUTO].get("converged", False))
    yield Check("f: not converged, or failed", case, float(not solved), 0)


# Figures ------------------------------------------------------------------------------


def measured(methods: Methods) -> list[str]:
    """Names of the methods that ended."""
    return [name for name, outcome in methods.items() if "failed" not in outcome]


def value(methods: Methods, name: str, figure: str) -> float:
    """A figure of a method, NaN if it has none."""
    found = methods[name].get(figure)
    return nan if found is None else float(found)


def ratio(methods: Methods, name: str, other: str) -> float:
    """Time of a call over that of another method's."""
    return value(methods, name, "seconds") / value(methods, other, "seconds")


def a_call(outcome: dict[str, Any], case: Case) -> float:
    """Seconds of a call."""
    return outcome["seconds"]


def total(outcome: dict[str, Any], case: Case) -> float:
    """Seconds of the set-up and of a thousand samples."""
    return outcome["set_up"] + LIFE * outcome["seconds"] / case.n_samples


def against_best(methods: Methods, case: Case, cost: Any) -> float:
    """What auto costs over the least of ours that converged within the budget."""
    costs = {name: cost(methods[name], case) for name in candidates(methods)}
    return costs[AUTO] / min(costs.values()) if AUTO in costs else nan


def candidates(methods: Methods) -> list[str]:
    """Ours that a good choice may fall on; auto itself, whatever it did."""
    return [
        name
        for name in OURS
        if name in measured(methods)
        and (name == AUTO or (methods[name]["converged"] and methods[name]["mib"] <= BUDGET))
    ]
