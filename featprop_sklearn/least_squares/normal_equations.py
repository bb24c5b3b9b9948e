"""Least squares by factorised normal equations: exact where they are regular, else iterated.

A solver supplies products with A, and AA' + μ or A'A + μ factorised (:class:`NormalEquations`).
Where a probe shows that this is accurate, it is all (:class:`Exact`); otherwise the same with a
little more damping preconditions conjugate gradients (:class:`Iterated`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from featprop_sklearn.least_squares.conjugate_gradients import conjugate_gradients
from featprop_sklearn.least_squares.linear_map import LinearMap
from featprop_sklearn.least_squares.result import SolveResult
from featprop_sklearn.least_squares.rows import as_rows
from featprop_sklearn.least_squares.solver import PreparedSolver

__all__ = ["Exact", "Factor", "Iterated", "NormalEquations"]

#: shares of σ_max that are added to what is singular, or nearly: the less, the fewer
#: iterations, until rounding tells
SHIFTS = (3e-8, 1e-7, 3e-7, 1e-6, 1e-5, 1e-4)
#: relative residual of the normal equations that counts as exact, and as solved
EXACT = 1e-11
SOLVED = 1e-10
#: relative error of d that is as good as none
ACCURATE = 1e-11
MAX_REFINEMENTS = 2
MAX_ITERATIONS = 200
#: error of known answers, so many, that shows that a preconditioner serves, found in so many
#: iterations; where it takes no more than a few, no better one is looked for
SERVES = 1e-8
N_TRIED = 16
MAX_TRIALS = 40
FEW = 5
#: passes of a solve that is not known to end soon
MANY = 100.0

ADVICE = (
    "The {what} is close to rank-deficient. Use damping='auto' or a number > 0, or "
    "solver='lsqr' or 'torch'."
)


class Factor(Protocol):
    """A factorised symmetric positive definite matrix M."""

    def solve(self, values: Tensor) -> Tensor:
        """Multiply rows by M⁻¹."""


class NormalEquations(ABC):
    """A and its damped normal equations; every batch is flat, one row a sample.

    Parameters
    ----------
    linear_map : LinearMap
        A, of shape (m, n).
    damping : float
        λ.

    Attributes
    ----------
    wide : bool
        Whether m ≤ n: AA' + λ² is then factorised, else A'A + λ².
    """

    #: of the solver
    name: ClassVar[str]
    #: what its users call A
    what: ClassVar[str]
    #: measured: solves that an iteration takes as long as, its products included
    iteration: ClassVar[float] = 2.0

    def __init__(self, linear_map: LinearMap, damping: float) -> None:
        self.linear_map = linear_map
        self.damping = damping
        self.wide = linear_map.shape[0] <= linear_map.shape[1]

    @abstractmethod
    def apply(self, rows: Tensor) -> Tensor:
        """Multiply by A: (n_samples, n) to (n_samples, m)."""

    @abstractmethod
    def adjoint(self, rows: Tensor) -> Tensor:
        """Multiply by A': (n_samples, m) to (n_samples, n)."""

    @abstractmethod
    def factorise(self, squared_damping: float) -> Factor | None:
        """Factorise AA' + μ if A is wide, A'A + μ if it is tall; None where that is singular."""

    @abstractmethod
    def norm(self) -> float:
        """Return σ_max(A), within a tenth or so."""

    def invert(self, factor: Factor, rhs: Tensor) -> Tensor:
        """Return A'(AA' + λ²)⁻¹ r if A is wide, (A'A + λ²)⁻¹ A'r if it is tall."""
        return self.adjoint(factor.solve(rhs)) if self.wide else factor.solve(self.adjoint(rhs))

    def rows(self, batch: Tensor) -> Tensor:
        """Flatten a batch, and bring it to where the products are computed."""
        return as_rows(batch)

    def normal_product(self, rows: Tensor) -> Tensor:
        """Multiply by A'A + λ²."""
        return self.adjoint(self.apply(rows)) + self.damping**2 * rows

    def probe(self, n_rows: int = 1) -> Tensor:
        """Return rows for AA' or A'A of any values, not only those that A or A' gives.

        A singular system shows by it.
        """
        size = n_rows, min(self.linear_map.shape)
        rows = torch.from_numpy(np.random.default_rng(0).standard_normal(size))
        return self.rows(rows.to(self.linear_map.device))

    def residual(self, wanted: Tensor, found: Tensor, squared_damping: float) -> Tensor:
        """Return w − (AA' + μ) z if A is wide, w − (A'A + μ) z if it is tall."""
        first, second = (self.adjoint, self.apply) if self.wide else (self.apply, self.adjoint)
        return wanted - second(first(found)) - squared_damping * found

    def result(self, solution: Tensor, **details: object) -> SolveResult:
        """Give the solution its shape, where the map is."""
        linear_map = self.linear_map
        shaped = solution.contiguous().reshape(len(solution), *linear_map.in_shape)
        shaped = shaped.to(linear_map.device)
        return SolveResult(shaped, solver=self.name, damping=self.damping, **details)  # type: ignore


class Exact(PreparedSolver):
    """Solve z = (AA' + λ²)⁻¹ r and d = A'z if A is wide, d = (A'A + λ²)⁻¹ A'r if it is tall.

    Refined as often as a probe needs: of the dual z or of the normal equations, since refining
    d itself would stall (Björck, Numerical Methods for Least Squares Problems, 1996, section
    2.9; doi:10.1137/1.9781611971484).
    """

    def __init__(self, equations: NormalEquations, factor: Factor, refinements: int) -> None:
        self.equations = equations
        self.factor = factor
        self.refinements = refinements
        self.effort = 1.0 + equations.iteration * refinements

    @classmethod
    def attempt(cls, equations: NormalEquations) -> Exact | None:
        """Return the solver, or None where the system is singular or too ill-conditioned."""
        factor = equations.factorise(equations.damping**2)
        if factor is None:
            return None
        probe = equations.probe()
        # rounding in AA'z alone is as large, relative to w = (AA' + λ²) z
        limit = EXACT
        if equations.damping > 0:
            square = (equations.norm() / equations.damping) ** 2
            limit = max(limit, square * torch.finfo(torch.float64).eps / 2)
        for refinements in range(MAX_REFINEMENTS + 1):
            self = cls(equations, factor, refinements)
            remainder = self._remainder(probe, self._refined(probe))
            if float(remainder.norm() / probe.norm()) <= limit:
                return self
        return None

    def solve(self, rhs: Tensor) -> SolveResult:
        """Solve for a batch of right-hand sides, in closed form."""
        equations, rows = self.equations, self.equations.rows(rhs)
        if not self.refinements:
            found = equations.invert(self.factor, rows)
        elif equations.wide:
            found = equations.adjoint(self._refined(rows))
        else:
            found = self._refined(equations.adjoint(rows))
        return equations.result(found)

    def _refined(self, wanted: Tensor) -> Tensor:
        found = self.factor.solve(wanted)
        for _ in range(self.refinements):
            found = found + self.factor.solve(self._remainder(wanted, found))
        return found

    def _remainder(self, wanted: Tensor, found: Tensor) -> Tensor:
        return self.equations.residual(wanted, found, self.equations.damping**2)


class Iterated(PreparedSolver):
    """Conjugate gradients, preconditioned by the same equations with a little more damping.

    For λ > 0 on (A'A + λ²) d = A'r. For λ = 0 and full rank on A A' z = r, d = A'z, if A is
    wide, where the residual r − A d is as small as rounding of A d, and shows the error of d; on
    A'A d = A'r if it is tall. Trials find the least damping that serves best. Where none does, A is
    rank-deficient as far as can be told: then A'A d = A'r, preconditioned by A'(AA' + μ)⁻²A
    or A'A (A'A + μ)⁻², which keep what A does not see out of d, so that its norm is least.
    """

    def __init__(self, equations: NormalEquations) -> None:
        self.equations = equations
        self.norm = equations.norm() or 1.0
        self.deficient = False
        self.effort = MANY
        if equations.damping > 0:
            self._factorise(max(SHIFTS[-1], equations.damping / self.norm))
            return
        fewest, chosen = MAX_TRIALS + 1, None
        for shift in SHIFTS:
            iterations = self._trial() if self._factorise(shift) else None
            if iterations is not None and iterations < fewest:
                fewest, chosen = iterations, shift
            elif chosen is not None:
                self._factorise(chosen)
                break
            if fewest <= FEW:
                break
        if chosen is None:
            self.deficient = True
        else:
            self.effort = 1.0 + equations.iteration * fewest

    def solve(self, rhs: Tensor) -> SolveResult:
        """Solve for a batch of right-hand sides, until the residual is verified small."""
        found, residual, iterations = self._solve(self.equations.rows(rhs), MAX_ITERATIONS)
        worst = float(residual.max()) if len(residual) else 0.0
        solved = worst <= SOLVED
        return self.equations.result(
            found,
            status="converged" if solved else "not_converged",
            residual=worst,
            iterations=iterations,
            advice="" if solved else ADVICE.format(what=self.equations.what),
        )

    def _factorise(self, shift: float) -> bool:
        equations = self.equations
        factor = equations.factorise((shift * self.norm) ** 2)
        if factor is None:
            return False
        self.factor, self.square = factor, (shift * self.norm) ** 2
        return True

    def _trial(self) -> int | None:
        """Return in how many iterations a known answer is found: any r, or any d of a tall A."""
        equations = self.equations
        probe = equations.probe(N_TRIED)
        rows = probe if equations.wide else equations.apply(probe)
        found, residual, iterations = self._solve(rows, MAX_TRIALS)
        if equations.wide:
            serves = float(residual.max()) <= SOLVED
        else:
            serves = bool(((found - probe).norm(dim=1) <= SERVES * probe.norm(dim=1)).all())
        return iterations if serves else None

    def _solve(self, rows: Tensor, max_iterations: int) -> tuple[Tensor, Tensor, int]:
        equations = self.equations
        limits: dict[str, Any] = {"tolerance": SOLVED * 1e-3, "max_iterations": max_iterations}
        if equations.wide and equations.damping == 0 and not self.deficient:
            # the error itself can be seen
            limits |= {"lift": equations.adjoint, "tolerance": SOLVED, "accuracy": ACCURATE}
            return conjugate_gradients(equations.apply, self.factor.solve, rows, **limits)
        normal = equations.adjoint(rows)
        return conjugate_gradients(equations.normal_product, self._precondition, normal, **limits)

    def _precondition(self, rows: Tensor) -> Tensor:
        if self.deficient:
            return self._invert_twice(rows)
        if self.equations.wide:
            return self._invert_across(rows)
        return self.factor.solve(rows)

    def _invert_twice(self, rows: Tensor) -> Tensor:
        equations, inverse = self.equations, self.factor.solve
        if equations.wide:
            return equations.adjoint(inverse(inverse(equations.apply(rows))))
        return equations.adjoint(equations.apply(inverse(inverse(rows))))

    def _invert_across(self, rows: Tensor) -> Tensor:
        """Multiply by (A'A + μ)⁻¹, by that of AA' + μ (Woodbury)."""
        equations = self.equations
        seen = equations.adjoint(self.factor.solve(equations.apply(rows)))
        return (rows - seen) / self.square
