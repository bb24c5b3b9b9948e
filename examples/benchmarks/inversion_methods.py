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
METHODS = (PASS, PASS32, *RIVALS, *ours.OURS)


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

    The right-hand side r = y − A x0 is given for convolutions. For a linear layer it is part of
    the call, as it is part of the two products that every method needs.
    """
    if name in (PASS, PASS32):
        return _pass(problem, single=name == PASS32)
    right_hand_side = _right_hand_side(problem)
    if name in RIVALS:
        rival = RIVALS[name](problem)
        return lambda count: Answer(rival(right_hand_side(count)))
    solve = ours.prepare(name, problem)

    def call(count: int) -> Answer:
        result = solve(right_hand_side(count))
        return Answer(result.solution, result.solver, result.converged)

    return call


def _right_hand_side(problem: Problem) -> Callable[[int], Tensor]:
    if problem.case.is_linear:
        return lambda count: problem.wanted[:count] - problem.forward(problem.reference[:count])
    return lambda count: problem.remainder[:count]


def _pass(problem: Problem, single: bool) -> Call:
    """A and A', once each."""
    given = (problem.weight, problem.reference, problem.wanted)
    weight, inputs, outputs = (part.float() if single else part for part in given)

    def call(count: int) -> Answer:
        forward(weight, inputs[:count])
        adjoint(weight, outputs[:count])
        return Answer(None)

    return call
