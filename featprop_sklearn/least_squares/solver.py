"""What every least-squares solver promises, and the solvers by name."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from typing import ClassVar

from sklearn.base import BaseEstimator
from torch import Tensor

from featprop_sklearn.least_squares.cost import Cost
from featprop_sklearn.least_squares.linear_map import LinearMap
from featprop_sklearn.least_squares.result import SolveResult

__all__ = [
    "SOLVERS",
    "PreparedSolver",
    "Solver",
    "get_solver",
    "register_solver",
]

MATRIX_BYTES = 2**30


class PreparedSolver(ABC):
    """A solver set up for one map and one damping, used for many right-hand sides."""

    #: how many times longer a sample takes than :meth:`Solver.cost` said, as the set-up found out
    effort: float = 1.0

    @abstractmethod
    def solve(self, rhs: Tensor) -> SolveResult:
        """Solve for a batch of right-hand sides.

        Parameters
        ----------
        rhs : Tensor of shape (n_samples, *out_shape), float64
            Right-hand sides r.

        Returns
        -------
        SolveResult
            ``solution`` has shape (n_samples, *in_shape).
        """


class Solver(BaseEstimator, ABC):
    """Minimise ‖A d − r‖² + λ²‖d‖² over d; for λ = 0 the minimiser of least norm.

    A subclass names itself, says what it needs of the map, and sets itself up in
    :meth:`prepare`; with :meth:`cost` it takes part in ``solver="auto"``. Its parameters all
    have defaults and are attributes of the same name.
    """

    #: the name that users type
    name: ClassVar[str]
    #: which of ``LinearMap.provides`` it asks for
    needs: ClassVar[tuple[str, ...]]
    #: whether it factorises AA' or A'A: a bad condition then costs it an effort
    squares: ClassVar[bool] = False

    def check(self, linear_map: LinearMap) -> None:
        """Refuse a map that lacks what this solver needs.

        Raises
        ------
        ValueError
            Naming both, what is missing, and what to use instead.
        """
        missing = [need for need in self.needs if need not in linear_map.provides]
        if missing:
            raise ValueError(
                f"solver={self.name!r} needs {' and '.join(missing)} of the linear map; "
                f"{type(linear_map).__name__} provides only {', '.join(linear_map.provides)}. "
                "Use solver='auto' or solver='torch'."
            )

    def cost(self, linear_map: LinearMap, damping: float) -> Cost:
        """Estimate time and memory, in next to no time; by default they are infinite.

        Parameters
        ----------
        linear_map : LinearMap
            A, which meets :attr:`needs`.
        damping : float
            λ ≥ 0.

        Returns
        -------
        Cost
            An infinite one is never chosen.
        """
        return Cost()

    @abstractmethod
    def prepare(self, linear_map: LinearMap, damping: float) -> PreparedSolver:
        """Do once what all right-hand sides share.

        Parameters
        ----------
        linear_map : LinearMap
            A.
        damping : float
            λ ≥ 0.

        Returns
        -------
        PreparedSolver
            Ready for :meth:`PreparedSolver.solve`.
        """


SOLVERS: dict[str, type[Solver]] = {}


def register_solver(name: str, solver: type[Solver]) -> None:
    """Make a solver available by name; a later registration replaces an earlier one.

    Parameters
    ----------
    name : str
        What users type; ``"auto"`` is taken.
    solver : subclass of Solver
        Called without arguments.

    Raises
    ------
    TypeError
        If ``solver`` is not a subclass of :class:`Solver`.
    ValueError
        If the name is ``"auto"``.
    """
    if not (isinstance(solver, type) and issubclass(solver, Solver)):
        raise TypeError(f"solver must be a subclass of Solver; got {solver!r}. Pass the class.")
    if name == "auto":
        raise ValueError("name='auto' stands for the automatic choice; register another name.")
    SOLVERS[name] = solver


def get_solver(solver: str | Solver) -> Solver:
    """Return the solver of that name, with its default settings; a solver is returned as it is.

    Raises
    ------
    ValueError
        If there is none, with the nearest names.
    """
    if isinstance(solver, Solver):
        return solver
    if solver not in SOLVERS:
        near = difflib.get_close_matches(str(solver), SOLVERS, n=2, cutoff=0.5)
        hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
        known = ", ".join(map(repr, SOLVERS))
        if isinstance(solver, type):
            hint = f"Pass an instance, {solver.__name__}(). "
        raise ValueError(
            f"solver must be one of {known}, or a Solver; got {solver!r}. {hint}".rstrip()
        )
    return SOLVERS[solver]()


def entries(linear_map: LinearMap) -> int:
    """Return the number of entries of the dense matrix."""
    rows, columns = linear_map.shape
    return rows * columns


def fits_densely(linear_map: LinearMap) -> bool:
    """Return whether the dense matrix stays within 1 GiB."""
    return 8 * entries(linear_map) <= MATRIX_BYTES
