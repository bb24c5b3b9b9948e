"""Every method alike: set up for a problem, then called with references and wanted outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import inversion_ours as ours
from inversion_problem import Problem, adjoint, forward
from inversion_rivals import RIVALS
from torch import Tensor

PASS = "pass"
PASS32 = "float32 pass"
PRODUCT = "A x0"
METHODS = (PASS, PASS32, PRODUCT, *RIVALS, *ours.OURS)


@dataclass(frozen=True)
class Answer:
    """What a call returns.

    Attributes
    ----------
    found : Tensor, optional
        d; a pass has none.
    solver : str
        Which solver it was.
    converged : bool
        Whether it says so.
    """

    found: Tensor | None
    solver: str = ""
    converged: bool = True


Call = Callable[[int], Answer]


def prepare(name: str, problem: Problem) -> Call:
    """Set up; the call is for the first samples of the problem, as many as it is told.

    The right-hand side r = y − A x0 is given.
    """
    if name in (PASS, PASS32):
        return _pass(problem, single=name == PASS32)
    if name == PRODUCT:
        return lambda count: _product(problem, count)
    if name in RIVALS:
        rival = RIVALS[name](problem)
        return lambda count: Answer(rival(problem.remainder[:count]))
    solve = ours.prepare(name, problem)

    def call(count: int) -> Answer:
        result = solve(problem.remainder[:count])
        return Answer(result.solution, result.solver, result.converged)

    return call


def _product(problem: Problem, count: int) -> Answer:
    problem.forward(problem.reference[:count])
    return Answer(None)


def _pass(problem: Problem, single: bool) -> Call:
    """A and A', once each."""
    given = (problem.weight, problem.reference, problem.wanted)
    weight, inputs, outputs = (part.float() if single else part for part in given)

    def call(count: int) -> Answer:
        forward(weight, inputs[:count])
        adjoint(weight, outputs[:count])
        return Answer(None)

    return call
