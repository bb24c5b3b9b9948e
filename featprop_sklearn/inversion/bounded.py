"""Least squares with the solution in a closed range, by a semismooth Newton method."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, isnan, log10

import torch
from torch import Tensor

from featprop_sklearn.inversion.base import Bounds
from featprop_sklearn.least_squares import LinearMap, SolveResult, get_solver
from featprop_sklearn.least_squares.rows import as_rows, row_dots, row_norms, row_solutions
from featprop_sklearn.least_squares.solver import entries, fits_densely

__all__ = ["BoundedLeastSquares"]

CHUNK_BYTES = 128 * 2**20
NEWTON_STEPS = 100
HALVINGS = 40
PROXIMAL_STEPS = 100
# proximal parameters, relative to σ_max: a smaller one needs fewer steps, but a residual ρ that
# cannot vanish makes z = ρ/parameter², whose rounding errors then show in x
RESIDUAL_STEP = 3e-4
NEAREST_STEP = 3e-5
ROUNDING = 1e-13
JITTER = 10.0  # rounding of the dual, as seen in the movement of the solution
TOLERANCE = 1e-7


class BoundedLeastSquares:
    """Minimise ‖A d − r‖² + λ²‖d‖² over d with low ≤ x0 + d ≤ high, x0 given per sample.

    For λ = 0: among the minimisers of ‖A d − r‖² in the range, the one of least ‖d‖.

    With x(z) = clip(x0 + A'z, low, high) and b = r + A x0, the dual variable z maximises a
    concave, piecewise quadratic function whose gradient b − A x(z) − λ²z vanishes at
    the answer. Newton's method on it, with the generalised Jacobian A D A' + λ²I, D marking
    the entries strictly inside the range, and backtracking on the dual (Qi and Sun,
    Math. Programming 58, 1993, doi:10.1007/BF01581275), is started from the answers for larger
    λ. The rows of A are first reduced to its rank by a singular value decomposition. For λ = 0
    the least residual is found first and then the nearest point that has it, each as the limit
    of proximal steps (Rockafellar 1976, doi:10.1287/moor.1.2.97) that divide the error along a
    singular value σ of the free columns by 1 + (σ/(3e-4·σ_max))². The answer is good to some
    1e-8 relative while the free columns have a condition below 1e3; beyond 1e4 the steps are too
    many and damping is the remedy. A diagonal A'A is solved entry by entry: the clipped
    unconstrained answer, exact.

    Parameters
    ----------
    linear_map : LinearMap
        A; unless A'A is diagonal its dense matrix must fit into 1 GiB.
    damping : float
        λ ≥ 0.
    bounds : tuple (low, high)
        Closed range; infinite ends are allowed.

    Raises
    ------
    ValueError
        If the range is empty or not of numbers, or the matrix is too large.
    """

    def __init__(self, linear_map: LinearMap, damping: float, bounds: Bounds) -> None:
        self.clip = _Clip(bounds)
        self.damping = damping
        self.prepared = None
        if linear_map.gram_diagonal() is not None:
            self.prepared = get_solver("direct").prepare(linear_map, damping)
            return
        if not fits_densely(linear_map):
            raise ValueError(
                f"bounds={bounds} needs the dense matrix of the layer, at most 1 GiB; its shape "
                f"{linear_map.shape} would take {8 * entries(linear_map) / 2**30:.1f} GiB. "
                "Use bounds=None."
            )
        self.left, self.rows, self.scale = _reduced(linear_map)

    def solve(self, rhs: Tensor, reference: Tensor) -> SolveResult:
        """Solve for a batch.

        Parameters
        ----------
        rhs : Tensor of shape (n_samples, *out_shape), float64
            r, one per sample.
        reference : Tensor of shape (n_samples, *in_shape), float64
            x0, inside the range or not.

        Returns
        -------
        SolveResult
            ``solution`` is x0 + d, inside the range.
        """
        if self.prepared is not None:
            unbounded = reference + self.prepared.solve(rhs).solution
            return SolveResult(self.clip(unbounded), damping=self.damping)
        origin = as_rows(reference)
        target = as_rows(rhs) @ self.left / self.scale + origin @ self.rows.T
        rank, columns = self.rows.shape
        size = max(1, CHUNK_BYTES // (8 * max(1, rank * (rank + columns))))
        chunks = [
            self._solve_chunk(*chunk)
            for chunk in zip(target.split(size), origin.split(size), strict=True)
        ]
        solutions, errors, steps = zip(*chunks, strict=True)
        return self._result(
            torch.cat(solutions).reshape(reference.shape), torch.cat(errors), max(steps)
        )

    def _solve_chunk(self, target: Tensor, origin: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return the solutions, how far they are from optimal, and the Newton steps taken."""
        if self.damping == 0:
            return self._hierarchy(target, origin)
        dual, optimum, steps = self._continuation(target, origin, (self.damping / self.scale) ** 2)
        return dual.primal(optimum), dual.error(optimum), steps

    def _hierarchy(self, target: Tensor, origin: Tensor) -> tuple[Tensor, Tensor, int]:
        """λ = 0: first the least residual in the range, then the nearest point that has it."""
        zero = torch.zeros_like(target)
        weights = RESIDUAL_STEP**2, NEAREST_STEP**2

        def residual_step(solution: Tensor, _: Tensor) -> _Dual:
            return _Dual(self.rows, target, solution, zero, weights[0], self.clip)

        # only A x is settled by the least residual
        best, first_error, first = self._proximal(
            residual_step, target, origin, weights[0], lambda x: x @ self.rows.T
        )
        reached = best @ self.rows.T

        def nearest_step(_: Tensor, optimum: Tensor) -> _Dual:
            return _Dual(self.rows, reached, origin, optimum, weights[1], self.clip)

        solution, error, second = self._proximal(
            nearest_step, reached, origin, weights[1], lambda x: x
        )
        return solution, torch.maximum(first_error, error), first + second

    def _proximal(
        self,
        step: Callable[[Tensor, Tensor], _Dual],
        target: Tensor,
        origin: Tensor,
        weight: float,
        observe: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor, int]:
        """Repeat proximal steps, each given the last solution and dual, until all stands still."""
        dual, optimum, steps = self._continuation(target, origin, weight)
        solution = dual.primal(optimum)
        data = row_norms(target) + row_norms(origin)
        for _ in range(PROXIMAL_STEPS):
            dual = step(solution, optimum)
            optimum, used = dual.maximise(optimum)
            before, solution = solution, dual.primal(optimum)
            steps += used
            change = _relative(row_norms(observe(solution) - observe(before)), data)
            if not bool((change > JITTER * dual.rounding(optimum)).any()):
                return solution, torch.maximum(change, dual.error(optimum)), steps
        # so slow a geometric series still has about as many terms of this size to come
        return solution, torch.maximum(PROXIMAL_STEPS * change, dual.error(optimum)), steps

    def _continuation(
        self, target: Tensor, origin: Tensor, weight: float
    ) -> tuple[_Dual, Tensor, int]:
        """Maximise for the weights 1, 1/10, ... down to ``weight``, each from the one before.

        A cold start at a small weight takes hundreds of short steps.
        """
        zero = torch.zeros_like(target)
        optimum, steps = zero, 0
        for exponent in range(max(0, ceil(-log10(weight))), -1, -1):
            dual = _Dual(self.rows, target, origin, zero, weight * 10.0**exponent, self.clip)
            optimum, used = dual.maximise(optimum)
            steps += used
        return dual, optimum, steps

    def _result(self, solution: Tensor, errors: Tensor, steps: int) -> SolveResult:
        worst = float(errors.max()) if len(errors) else 0.0
        failed = int((errors > TOLERANCE).sum())
        return SolveResult(
            solution,
            solver="semismooth_newton",
            status="not_converged" if failed else "converged",
            residual=worst,
            iterations=steps,
            damping=self.damping,
            advice=_advice(failed, len(errors), worst) if failed else "",
        )


class _Clip:
    """Projection onto the range."""

    def __init__(self, bounds: Bounds) -> None:
        low, high = map(float, bounds)
        if isnan(low) or isnan(high) or low > high:
            raise ValueError(
                f"bounds must be (low, high) with low <= high, infinities allowed; got {bounds!r}. "
                "Use bounds=None for no range."
            )
        self.low, self.high = low, high

    def __call__(self, values: Tensor) -> Tensor:
        return values.clamp(self.low, self.high)

    def inside(self, values: Tensor) -> Tensor:
        return (values > self.low) & (values < self.high)


class _Dual:
    """b'z − ½w‖z − c‖² − max over the range of (A'z)'x − ½‖x − x0‖², one row a sample."""

    def __init__(
        self,
        rows: Tensor,
        target: Tensor,
        origin: Tensor,
        centre: Tensor,
        weight: float,
        clip: _Clip,
    ) -> None:
        self.clip = clip
        self.rows = rows
        self.target = target
        self.origin = origin
        self.centre = centre
        self.weight = weight

    def primal(self, dual: Tensor) -> Tensor:
        return self.clip(self.origin + dual @ self.rows)

    def value(self, dual: Tensor) -> Tensor:
        lift = dual @ self.rows
        primal = self.clip(self.origin + lift)
        conjugate = row_dots(lift, primal) - 0.5 * row_dots(
            primal - self.origin, primal - self.origin
        )
        offset = dual - self.centre
        return (
            row_dots(self.target, dual) - 0.5 * self.weight * row_dots(offset, offset) - conjugate
        )

    def gradient(self, dual: Tensor) -> Tensor:
        reached = self.primal(dual) @ self.rows.T
        return self.target - reached - self.weight * (dual - self.centre)

    def error(self, dual: Tensor) -> Tensor:
        """Norm of the gradient, relative to the data."""
        return _relative(
            row_norms(self.gradient(dual)), row_norms(self.target) + row_norms(self.origin)
        )

    def rounding(self, dual: Tensor) -> Tensor:
        """How small the relative error can be, given what cancels in A'z."""
        data = row_norms(self.target) + row_norms(self.origin)
        return ROUNDING + _relative(torch.finfo(dual.dtype).eps * row_norms(dual), data)

    def maximise(self, start: Tensor) -> tuple[Tensor, int]:
        """Newton's method until rounding stops it; return the duals and the steps taken."""
        dual = start
        least = error = self.error(dual)
        active = error > self.rounding(dual)
        steps = 0
        while bool(active.any()) and steps < NEWTON_STEPS:
            steps += 1
            gradient = self.gradient(dual)
            direction = self._newton_direction(dual, gradient)
            length = self._backtrack(dual, direction, row_dots(gradient, direction), least)
            length = torch.where(active, length, 0.0)
            dual = dual + length[:, None] * direction
            error = self.error(dual)
            least = torch.minimum(least, error)
            active = active & (length > 0) & (error > self.rounding(dual))
        return dual, steps

    def _newton_direction(self, dual: Tensor, gradient: Tensor) -> Tensor:
        free = self.clip.inside(self.origin + dual @ self.rows).to(dual.dtype)
        jacobian = (self.rows * free[:, None, :]) @ self.rows.T
        jacobian.diagonal(dim1=1, dim2=2).add_(self.weight)
        factor = torch.linalg.cholesky(jacobian)
        return row_solutions(factor, gradient)

    def _backtrack(self, dual: Tensor, direction: Tensor, slope: Tensor, least: Tensor) -> Tensor:
        """Largest 2^-k that raises the dual enough, or halves the least error so far; else 0."""
        value = self.value(dual)
        length = torch.ones_like(slope)
        accepted = torch.zeros_like(slope, dtype=torch.bool)
        for _ in range(HALVINGS):
            trial = dual + length[:, None] * direction
            raised = self.value(trial) >= value + 1e-4 * length * slope
            accepted = accepted | raised | (self.error(trial) <= 0.5 * least)
            if bool(accepted.all()):
                break
            length = torch.where(accepted, length, 0.5 * length)
        return torch.where(accepted, length, 0.0)


def _reduced(linear_map: LinearMap) -> tuple[Tensor, Tensor, float]:
    """U of shape (m, rank), ΣV'/σ_max of shape (rank, n), and σ_max (1 for a zero map)."""
    left, values, right = linear_map.svd()
    largest = float(values.max()) if values.numel() else 0.0
    kept = values > max(linear_map.shape) * torch.finfo(values.dtype).eps * largest
    scale = largest or 1.0
    return left[:, kept], (values[kept, None] / scale) * right[kept], scale


def _relative(error: Tensor, scale: Tensor) -> Tensor:
    return torch.where(scale > 0, error / scale, error)


def _advice(failed: int, count: int, worst: float) -> str:
    return (
        f"{failed} of {count} samples are not optimal in the range (relative error {worst:.1e}). "
        "The layer is ill-conditioned there: use a larger damping (or damping='auto')."
    )
