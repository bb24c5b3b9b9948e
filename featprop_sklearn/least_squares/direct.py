"""Direct solver: the pseudo-inverse, by the singular value decomposition where rank is in doubt."""

from __future__ import annotations

import torch
from torch import Tensor

from featprop_sklearn.least_squares.cost import FLOPS, Cost
from featprop_sklearn.least_squares.linear_map import LinearMap
from featprop_sklearn.least_squares.result import SolveResult
from featprop_sklearn.least_squares.rows import as_rows
from featprop_sklearn.least_squares.solver import PreparedSolver, Solver, entries, fits_densely
from featprop_sklearn.least_squares.spectrum import rank_cutoff

__all__ = ["DirectSolver"]

#: bound of the condition of A, or of the square of that of [A; λI], by Frobenius norms, up to
#: which rank is not in doubt
CONDITION = 1e10
#: measured: operations of a product with a hundred samples in a second, and seconds for an
#: entry of the matrix while it is put together
BATCHED, PROBE = 6e10, 5e-9


class DirectSolver(Solver):
    """Minimise ‖A d − r‖² + λ²‖d‖² by the pseudo-inverse, as a matrix that all samples share.

    Exact to rounding. A diagonal A'A is solved entry by entry. A square A with λ = 0 is inverted;
    otherwise, with [A λI]' = QR if A is wide and [A; λI] = QR if it is tall, the matrix is
    Q₁R'⁻¹ or R⁻¹Q₁', Q₁ the part of Q beside A (Björck, Numerical Methods for Least Squares
    Problems, 1996, sections 1.3 and 2.7; doi:10.1137/1.9781611971484). Where the singular value
    decomposition A = U Σ V' is there already, or ‖A‖‖A⁺‖ (for λ > 0, ‖[A; λI]‖²/λ²), in Frobenius
    norms, exceeds 1e10, it is V diag(σ/(σ² + λ²)) U', where singular values up to
    max(m, n)·eps·σ_max count as zero.
    """

    name = "direct"
    needs = ("matrix",)

    def cost(self, linear_map: LinearMap, damping: float) -> Cost:
        """Estimate the decomposition, and one product for each sample."""
        smaller, larger = sorted(linear_map.shape)
        if linear_map.gram_diagonal() is not None:
            return Cost(0.0, 4e-9 * larger, 8.0 * larger)
        n_entries = smaller * larger
        # reflections of a matrix with the rows of λI, Q from them, a triangular solve
        height = larger + smaller * (damping > 0)
        operations = (4 * height - 4 / 3 * smaller + larger) * smaller**2
        if linear_map.has_svd or (smaller == larger and damping == 0):
            operations = 2 * smaller * n_entries
        set_up = PROBE * n_entries + operations / FLOPS
        n_bytes = 8.0 * (2 * n_entries + 2 * smaller * height + 2 * smaller**2)
        return Cost(set_up, 2 * n_entries / BATCHED, n_bytes)

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
        inverse = None if linear_map.has_svd else by_factors(linear_map.matrix(), damping)
        if inverse is None:
            inverse = by_svd(linear_map, damping)
        return _Dense(linear_map, inverse, damping)


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
    """One product with the transposed pseudo-inverse, shape (m, n)."""

    def __init__(self, linear_map: LinearMap, inverse: Tensor, damping: float) -> None:
        self.in_shape = linear_map.in_shape
        self.inverse = inverse
        self.damping = damping

    def solve(self, rhs: Tensor) -> SolveResult:
        solution = (as_rows(rhs) @ self.inverse).reshape(-1, *self.in_shape)
        return SolveResult(solution, solver="direct", damping=self.damping)


def by_factors(matrix: Tensor, damping: float) -> Tensor | None:
    """Return the transposed pseudo-inverse, shape (m, n), or None if it would not be accurate."""
    m, n = matrix.shape
    if m == n and damping == 0:
        inverse = torch.linalg.inv_ex(matrix).inverse.mT
        # not "above the limit": what is not finite shall fail, too
        return inverse if matrix.norm() * inverse.norm() <= CONDITION else None
    tall = matrix.mT if m <= n else matrix
    eye = torch.eye(tall.shape[1], dtype=tall.dtype, device=tall.device)
    Q, R = torch.linalg.qr(torch.cat([tall, damping * eye]) if damping > 0 else tall)
    inverse = torch.linalg.solve_triangular(R, Q[: len(tall)].mT, upper=True)
    # under λ, what rounding makes of a singular value of zero is magnified by the square
    bound = (R.norm() / damping) ** 2 if damping > 0 else R.norm() * inverse.norm()
    if not (bound <= CONDITION and inverse.isfinite().all()):
        return None
    return inverse if m <= n else inverse.mT


def by_svd(linear_map: LinearMap, damping: float) -> Tensor:
    """Return A⁺ or its damped form, transposed, from the decomposition A = U Σ V'."""
    left, values, right = linear_map.svd()
    cutoff = rank_cutoff(linear_map.shape, float(values[0]))
    factors = torch.where(values > cutoff, values / (values.square() + damping**2), 0.0)
    return (left * factors) @ right
