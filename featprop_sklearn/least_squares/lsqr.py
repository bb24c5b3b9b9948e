"""SciPy's LSQR, one right-hand side at a time: the reference that can always be chosen."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse.linalg import lsqr
from torch import Tensor

from featprop_sklearn.least_squares.linear_map import LinearMap
from featprop_sklearn.least_squares.result import SolveResult
from featprop_sklearn.least_squares.rows import as_rows
from featprop_sklearn.least_squares.solver import PreparedSolver, Solver, fits_densely

__all__ = ["LsqrSolver"]

# what scipy's istop says when its own accuracy test was not met
_FAILURES = {
    3: "the condition estimate passed its limit",
    6: "the condition estimate passed what float64 can carry",
    7: "the limit on iterations was reached",
}


class LsqrSolver(Solver):
    """Minimise ‖A d − r‖² + λ²‖d‖² by :func:`scipy.sparse.linalg.lsqr`, ``damp`` = λ.

    Paige and Saunders, LSQR, ACM TOMS 8 (1982), doi:10.1145/355984.355989. A is a CSR
    matrix while its dense form would stay within 1 GiB, and a ``LinearOperator`` beyond.

    Parameters
    ----------
    atol, btol : float
        LSQR's tolerances; they bound residuals, not errors in d.
    iter_lim : int, optional
        Iterations per right-hand side; by default 100 + 100·min(m, n), at most 20000.
    """

    name = "lsqr"
    needs = ("apply", "adjoint", "sparse")

    def __init__(
        self, atol: float = 1e-14, btol: float = 1e-14, iter_lim: int | None = None
    ) -> None:
        self.atol = atol
        self.btol = btol
        self.iter_lim = iter_lim

    def prepare(self, linear_map: LinearMap, damping: float) -> PreparedSolver:
        """Assemble the matrix."""
        self.check(linear_map)
        return _PreparedLsqr(self, linear_map, damping)


class _PreparedLsqr(PreparedSolver):
    def __init__(self, solver: LsqrSolver, linear_map: LinearMap, damping: float) -> None:
        self.linear_map = linear_map
        self.damping = damping
        dense = fits_densely(linear_map)
        self.operator = linear_map.sparse() if dense else linear_map.as_linear_operator()
        limit = solver.iter_lim or min(20000, 100 + 100 * min(linear_map.shape))
        # conlim=0: the damping, not a stop halfway, is what guards against a bad condition
        self.options = {"atol": solver.atol, "btol": solver.btol, "conlim": 0, "iter_lim": limit}

    def solve(self, rhs: Tensor) -> SolveResult:
        """Solve one right-hand side after the other."""
        flat = as_rows(rhs).cpu().numpy()
        # LSQR's own rules hold an absolute eps: give it vectors of unit norm
        sizes = np.linalg.norm(flat, axis=1)
        solutions = np.zeros((len(flat), self.linear_map.shape[1]))
        stops, counts, residuals = [0], [0], [0.0]
        for row in np.flatnonzero(sizes):
            found, stop, count, _, _, norm, _, gradient, *_ = lsqr(
                self.operator, flat[row] / sizes[row], damp=self.damping, **self.options
            )
            solutions[row] = sizes[row] * found
            stops.append(stop)
            counts.append(count)
            residuals.append(gradient / norm if norm > 0 else 0.0)
        advice = _advice(stops)
        return SolveResult(
            torch.as_tensor(solutions, device=rhs.device).reshape(-1, *self.linear_map.in_shape),
            solver="lsqr",
            status="not_converged" if advice else "converged",
            residual=float(max(residuals)),
            iterations=max(counts),
            damping=self.damping,
            advice=advice,
        )


def _advice(stops: list[int]) -> str:
    failed = [stop for stop in stops if stop in _FAILURES]
    if not failed:
        return ""
    reasons = " and ".join(_FAILURES[stop] for stop in sorted(set(failed)))
    return (
        f"LSQR stopped early on {len(failed)} of {len(stops) - 1} samples: {reasons}. The layer is "
        "ill-conditioned: use a larger damping (or damping='auto'), or solver='direct'."
    )
