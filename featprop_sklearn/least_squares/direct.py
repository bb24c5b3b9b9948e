"""Direct solver: closed form, singular value decomposition, or Cholesky where that is safe."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from featprop_sklearn.least_squares.cost import FLOPS, Cost
from featprop_sklearn.least_squares.linear_map import LinearMap
from featprop_sklearn.least_squares.result import SolveResult
from featprop_sklearn.least_squares.rows import as_rows
from featprop_sklearn.least_squares.solver import PreparedSolver, Solver, entries, fits_densely
from featprop_sklearn.least_squares.spectrum import largest_eigenvalue, rank_cutoff

__all__ = ["DirectSolver"]

CONDITION_FOR_CHOLESKY = 1e6
#: measured: operations of a product with hundreds of samples in a second
BATCHED = 7e10
#: measured: seconds for an entry of the matrix while it is put together, and of the
#: decomposition for each (smaller side)² · larger side; steps of a power iteration
PROBE, SVD, POWER = 5e-9, 3.5e-10, 80


class DirectSolver(Solver):
    """Minimise ‖A d − r‖² + λ²‖d‖² by a factorisation that all right-hand sides share.

    Exact to rounding. A diagonal A'A is solved entry by entry; otherwise the singular
    value decomposition A = U Σ V' gives d = V diag(σ/(σ² + λ²)) U'r, where singular
    values up to max(m, n)·eps·σ_max count as zero. When the smaller side exceeds
    ``svd_limit`` and the condition of [A; λI] is estimated below 1e6, a Cholesky factor of
    AA' + λ²I or A'A + λ²I, with one step of iterative refinement, is enough
    (Björck, Numerical Methods for Least Squares Problems, 1996, section 2.9;
    doi:10.1137/1.9781611971484).

    Parameters
    ----------
    svd_limit : int
        Largest smaller side for which the decomposition is taken without further thought.
    """

    name = "direct"
    needs = ("matrix",)

    def __init__(self, svd_limit: int = 1500) -> None:
        self.svd_limit = svd_limit

    def cost(self, linear_map: LinearMap, damping: float) -> Cost:
        """Estimate the decomposition, or the factor, and two products for each sample."""
        smaller, larger = sorted(linear_map.shape)
        if linear_map.gram_diagonal() is not None:
            return Cost(0.0, 4e-9 * larger, 8.0 * larger)
        n_entries = smaller * larger
        if linear_map.has_svd:
            set_up = 0.0
        elif smaller <= self.svd_limit:
            set_up = PROBE * n_entries + SVD * smaller**2 * larger
        else:
            set_up = PROBE * n_entries + (2 * smaller * n_entries + smaller**3 / 3) / FLOPS
            set_up += POWER * 8 * smaller**2 / FLOPS
        operations = 2 * n_entries
        if smaller > self.svd_limit:
            operations = 8 * smaller**2 + 6 * n_entries
        n_bytes = 8.0 * (2 * n_entries + smaller * (smaller + larger))
        return Cost(set_up, operations / BATCHED, n_bytes)

    def check(self, linear_map: LinearMap) -> None:
        """Refuse a map without a matrix, or with one beyond 1 GiB, unless a closed form exists.

        Raises
        ------
        ValueError
            Naming the map, its size and the alternatives.
        """
        if linear_map.gram_diagonal() is not None:
            return
        super().check(linear_map)
        if not fits_densely(linear_map):
            raise ValueError(
                f"solver='direct' needs the dense matrix of the {type(linear_map).__name__}, at "
                f"most 1 GiB; its shape {linear_map.shape} would take "
                f"{8 * entries(linear_map) / 2**30:.1f} GiB. Use solver='torch' or solver='lsqr'."
            )

    def prepare(self, linear_map: LinearMap, damping: float) -> PreparedSolver:
        """Factorise once."""
        self.check(linear_map)
        gram = linear_map.gram_diagonal()
        if gram is not None:
            return _EntryByEntry(linear_map, gram, damping)
        if min(linear_map.shape) > self.svd_limit:
            cholesky = _Cholesky.attempt(linear_map.matrix(), damping)
            if cholesky is not None:
                return _Dense(linear_map, cholesky, damping)
        return _Dense(linear_map, _FilteredSvd(linear_map, damping), damping)


class _EntryByEntry(PreparedSolver):
    """A'A diagonal: d_j = (A'r)_j / (g_j + λ²), 0 where A does not see d_j."""

    def __init__(self, linear_map: LinearMap, gram: Tensor, damping: float) -> None:
        self.linear_map = linear_map
        self.damping = damping
        seen = gram.sqrt() > rank_cutoff(linear_map.shape, float(gram.max()) ** 0.5)
        self.inverse = torch.where(seen, (gram + damping**2).reciprocal(), 0.0)

    def solve(self, rhs: Tensor) -> SolveResult:
        solution = self.linear_map.adjoint(rhs) * self.inverse
        return SolveResult(solution, solver="direct", damping=self.damping)


class _Dense(PreparedSolver):
    """Flatten, use a factorisation, restore the shape."""

    def __init__(
        self, linear_map: LinearMap, factorisation: _FilteredSvd | _Cholesky, damping: float
    ) -> None:
        self.in_shape = linear_map.in_shape
        self.factorisation = factorisation
        self.damping = damping

    def solve(self, rhs: Tensor) -> SolveResult:
        solution = self.factorisation.solve(as_rows(rhs))
        return SolveResult(
            solution.reshape(-1, *self.in_shape), solver="direct", damping=self.damping
        )


class _FilteredSvd:
    """A⁺ or its damped form, as a matrix, from the decomposition A = U Σ V'."""

    def __init__(self, linear_map: LinearMap, damping: float) -> None:
        left, values, right = linear_map.svd()
        cutoff = rank_cutoff(linear_map.shape, float(values[0]))
        factors = torch.where(values > cutoff, values / (values.square() + damping**2), 0.0)
        self.transposed_inverse = (left * factors) @ right

    def solve(self, rhs: Tensor) -> Tensor:
        return rhs @ self.transposed_inverse


class _Cholesky:
    """(AA' + λ²I) z = r, d = A'z if A is wide; (A'A + λ²I) d = A'r if it is tall."""

    def __init__(self, matrix: Tensor, factor: Tensor, damping: float) -> None:
        self.matrix = matrix
        self.factor = factor
        self.squared_damping = damping**2

    @classmethod
    def attempt(cls, matrix: Tensor, damping: float) -> _Cholesky | None:
        """Return the factorisation, or None where it would not be accurate."""
        wide = matrix.shape[0] <= matrix.shape[1]
        gram = matrix @ matrix.T if wide else matrix.T @ matrix
        gram.diagonal().add_(damping**2)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if failed or _condition(gram, factor) > CONDITION_FOR_CHOLESKY:
            return None
        return cls(matrix, factor, damping)

    def solve(self, rhs: Tensor) -> Tensor:
        if self.matrix.shape[0] <= self.matrix.shape[1]:
            return self._solve_wide(rhs)
        return self._solve_tall(rhs)

    def _solve_wide(self, rhs: Tensor) -> Tensor:
        dual = self._backsolve(rhs)
        # refining the solution itself would stall: the dual carries the accuracy
        dual = dual + self._backsolve(
            rhs - (dual @ self.matrix) @ self.matrix.T - self.squared_damping * dual
        )
        return dual @ self.matrix

    def _solve_tall(self, rhs: Tensor) -> Tensor:
        solution = self._backsolve(rhs @ self.matrix)
        remainder = rhs - solution @ self.matrix.T
        return solution + self._backsolve(remainder @ self.matrix - self.squared_damping * solution)

    def _backsolve(self, rhs: Tensor) -> Tensor:
        return torch.cholesky_solve(rhs.T, self.factor).T


def _condition(gram: Tensor, factor: Tensor) -> float:
    """Condition of [A; λI], from power iterations on its Gram matrix and on the inverse."""
    shape, device = (gram.shape[0],), gram.device
    largest, _ = largest_eigenvalue(lambda rows: rows @ gram, shape, device)
    inverse, _ = largest_eigenvalue(
        lambda rows: torch.cholesky_solve(rows.T, factor).T, shape, device
    )
    return sqrt(largest * inverse)
