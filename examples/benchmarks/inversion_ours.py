"""Our solvers, by name; ``"auto"`` is the one that is judged."""

from __future__ import annotations

from collections.abc import Callable

from inversion_problem import Problem
from torch import Tensor

from featprop_sklearn.least_squares import SOLVERS, SolveResult, get_solver

AUTO = "auto"
OURS = (*(name for name in SOLVERS if name != AUTO), AUTO)


def prepare(name: str, problem: Problem) -> Callable[[Tensor], SolveResult]:
    """Set up a solver; with a new map each time, so that nothing is remembered."""
    return get_solver(name).prepare(problem.linear_map(), problem.damping).solve
