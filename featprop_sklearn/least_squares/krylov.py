"""Batched conjugate gradients on the normal equations: matrix-free, on the data's device."""

from __future__ import annotations

from math import hypot, inf, log

import torch
from torch import Tensor

from featprop_sklearn.least_squares.cost import FLOPS, Cost
from featprop_sklearn.least_squares.linear_map import LinearMap
from featprop_sklearn.least_squares.result import SolveResult
from featprop_sklearn.least_squares.rows import per_row, row_dots, row_norms
from featprop_sklearn.least_squares.solver import PreparedSolver, Solver

__all__ = ["KrylovSolver"]

#: measured: seconds for an entry of A in an iteration's two products, in a convolution and in
#: a matrix, and for an entry of its vectors
CONVOLVED, MULTIPLIED, VECTOR = 3e-10, 4 / FLOPS, 1e-8
VERIFIED = 10.0
PATIENCE = 200


class KrylovSolver(Solver):
    """Minimise ‖A d − r‖² + λ²‖d‖² by CGLS, all samples at once, each with its own scalars.

    Only products of the whole batch with A and A' are used, so A may differ per sample.
    Starting at d = 0 keeps d in the range of A', which for λ = 0 makes it the minimiser
    of least norm. With R = r − A d, g = A'R − λ²d, ρ² = ‖R‖² + λ²‖d‖² and a the norm of
    [A; λI] as far as the iteration has seen it, a sample stops at ρ ≤ tolerance·(‖r‖ + a‖d‖)
    or ‖g‖ ≤ tolerance·a·ρ: LSQR's two rules. The recursion drifts from the true
    values, so ‖g‖ ≤ 10·tolerance·a·(‖r‖ + a‖d‖) is verified, and a sample that fails starts
    again from where it is, as long as that helps (Björck, Elfving and Strakoš, Stability
    of conjugate gradient and Lanczos methods for linear least squares problems, SIMAX 19, 1998,
    doi:10.1137/S089547989631202X).

    Parameters
    ----------
    tolerance : float
        On the residuals, see above; the error in d may be larger by the condition of
        [A; λI] where r is reachable, by its square where it is not.
    max_iterations : int, optional
        Over all starts; by default 100 + 100·min(m, n), at most 20000.
    max_restarts : int
        Starts after the first.
    """

    name = "torch"
    needs = ("apply", "adjoint")

    def __init__(
        self,
        tolerance: float = 1e-14,
        max_iterations: int | None = None,
        max_restarts: int = 5,
    ) -> None:
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.max_restarts = max_restarts

    def cost(self, linear_map: LinearMap, damping: float) -> Cost:
        """Estimate the iterations from the condition, which is known for λ > 0 alone."""
        rows, columns = linear_map.shape
        condition = inf
        if damping > 0:
            condition = hypot(1.0, linear_map.norm_bound() / damping)
        iterations = min(self._limit(linear_map), condition / 2 * log(2 / self.tolerance))
        entry = CONVOLVED if "kernel" in linear_map.provides else MULTIPLIED
        seconds = entry * linear_map.n_nonzeros() + VECTOR * (rows + columns)
        return Cost(0.0, iterations * seconds, 0.0)

    def prepare(self, linear_map: LinearMap, damping: float) -> PreparedSolver:
        """Nothing is factorised."""
        self.check(linear_map)
        limit = self._limit(linear_map)
        return _PreparedKrylov(linear_map, damping, self.tolerance, limit, self.max_restarts)

    def _limit(self, linear_map: LinearMap) -> int:
        return self.max_iterations or min(20000, 100 + 100 * min(linear_map.shape))


class _PreparedKrylov(PreparedSolver):
    def __init__(
        self,
        linear_map: LinearMap,
        damping: float,
        tolerance: float,
        max_iterations: int,
        max_restarts: int,
    ) -> None:
        self.linear_map = linear_map
        self.damping = damping
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.max_restarts = max_restarts

    def solve(self, rhs: Tensor) -> SolveResult:
        size = per_row(row_norms(rhs), rhs)
        # unit right-hand sides: no square under- or overflows, and ‖r‖ = 1 below
        unit = rhs / torch.where(size > 0, size, 1.0)
        run = _Run(self, unit)
        for _ in range(self.max_restarts + 1):
            run.descend()
            if not run.verify():
                break
        residual = float(run.residual.max()) if len(rhs) else 0.0
        short = (run.residual > VERIFIED * self.tolerance) | run.unfinished
        failed = int(short.sum())
        return SolveResult(
            run.best * per_row(size, run.best),
            solver="torch",
            status="not_converged" if failed else "converged",
            residual=residual,
            iterations=run.iterations,
            damping=self.damping,
            advice=_advice(failed, len(rhs), residual, run.iterations) if failed else "",
        )


class _Run:
    """The state of one batch: best solutions so far and who still needs work."""

    def __init__(self, solver: _PreparedKrylov, rhs: Tensor) -> None:
        self.apply = solver.linear_map.apply
        self.adjoint = solver.linear_map.adjoint
        self.squared_damping = solver.damping**2
        self.solver = solver
        self.rhs = rhs
        count = len(rhs)
        self.best = rhs.new_zeros(count, *solver.linear_map.in_shape)
        self.current = self.best
        self.residual = rhs.new_full((count,), torch.inf)
        self.map_norm = rhs.new_zeros(count)
        self.running = rhs.new_ones(count, dtype=torch.bool)
        self.unfinished = ~self.running  # stopped by the limit alone
        self.iterations = 0

    def descend(self) -> None:
        """CGLS from the best solutions until the recursion says that all are done."""
        solution = self.best
        remainder = self.rhs - self.apply(solution)
        gradient = self._gradient(remainder, solution)
        gamma = row_dots(gradient, gradient)
        direction = gradient
        watch = _Watch(self.running)
        while self.iterations < self.solver.max_iterations:
            image = self.apply(direction)
            length = row_dots(direction, direction)
            curvature = row_dots(image, image) + self.squared_damping * length
            self.map_norm = torch.maximum(self.map_norm, _ratio(curvature, length).sqrt())
            progress = self._progress(remainder, gamma, solution)
            active = watch.update(progress, self.solver.tolerance) & (curvature > 0)
            self.unfinished = active
            if not active.any():
                break
            self.iterations += 1
            step = torch.where(active, _ratio(gamma, curvature), 0.0)
            solution = solution + per_row(step, direction) * direction
            remainder = remainder - per_row(step, image) * image
            gradient = self._gradient(remainder, solution)
            previous, gamma = gamma, row_dots(gradient, gradient)
            direction = gradient + per_row(_ratio(gamma, previous), direction) * direction
        self.current = solution

    def verify(self) -> bool:
        """Keep what the true residual confirms; return whether another start may help."""
        gradient = self._gradient(self.rhs - self.apply(self.current), self.current)
        scale = self.map_norm * (1.0 + self.map_norm * row_norms(self.current))
        residual = _ratio(row_norms(gradient), scale)
        better = residual < self.residual
        worthwhile = residual < 0.5 * self.residual
        self.best = torch.where(per_row(better, self.best), self.current, self.best)
        self.residual = torch.where(better, residual, self.residual)
        self.running = worthwhile & (self.residual > VERIFIED * self.solver.tolerance)
        return bool(self.running.any()) and self.iterations < self.solver.max_iterations

    def _gradient(self, remainder: Tensor, solution: Tensor) -> Tensor:
        return self.adjoint(remainder) - self.squared_damping * solution

    def _progress(self, remainder: Tensor, gamma: Tensor, solution: Tensor) -> Tensor:
        """Return the smaller of the two stopping quantities, for ‖r‖ = 1."""
        squares = row_dots(solution, solution)
        rho = (row_dots(remainder, remainder) + self.squared_damping * squares).sqrt()
        reached = rho / (1.0 + self.map_norm * squares.sqrt())
        return torch.minimum(reached, _ratio(gamma.sqrt(), self.map_norm * rho))


class _Watch:
    """Which samples go on: above the tolerance, and not stuck at what rounding allows."""

    def __init__(self, active: Tensor) -> None:
        self.active = active
        self.least = active.new_full(active.shape, torch.inf, dtype=torch.float64)
        self.stuck = torch.zeros_like(active, dtype=torch.long)

    def update(self, progress: Tensor, tolerance: float) -> Tensor:
        improved = progress < 0.9 * self.least
        self.least = torch.where(improved, progress, self.least)
        self.stuck = torch.where(improved, 0, self.stuck + 1)
        at_rounding = (self.least <= VERIFIED * tolerance) & (self.stuck >= PATIENCE)
        self.active = self.active & (progress > tolerance) & ~at_rounding
        return self.active


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator, 0.0)


def _advice(failed: int, count: int, residual: float, iterations: int) -> str:
    return (
        f"conjugate gradients left {failed} of {count} samples short of the tolerance (residual "
        f"{residual:.1e} after {iterations} iterations). The layer is ill-conditioned or the limit "
        "too low: use a larger damping (or damping='auto'), more iterations, or solver='direct'."
    )
