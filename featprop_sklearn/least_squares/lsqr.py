"""SciPy's LSQR, sample by sample: the reference that can always be chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import hypot, inf, log
from typing import Any, NamedTuple

import numpy as np
import torch
from joblib import Parallel, delayed, effective_n_jobs
from scipy import sparse
from scipy.sparse.linalg import lsqr
from threadpoolctl import threadpool_limits
from torch import Tensor

from featprop_sklearn.least_squares.convolution_map import ConvolutionMap
from featprop_sklearn.least_squares.cost import Cost
from featprop_sklearn.least_squares.linear_map import LinearMap
from featprop_sklearn.least_squares.result import SolveResult
from featprop_sklearn.least_squares.rows import as_rows
from featprop_sklearn.least_squares.solver import PreparedSolver, Solver, entries, fits_densely

__all__ = ["LsqrSolver"]

# what scipy's istop says when its own accuracy test was not met
_FAILURES = {
    3: "the condition estimate passed its limit",
    6: "the condition estimate passed what float64 can carry",
    7: "the limit on iterations was reached",
}

#: right-hand sides, per row of A, from which on A's inverse is worth finding
SHARED_FROM = 2
#: size of what is added up, relative to the sum, beyond which a guess is not used
CANCELLATION = 100.0
#: share of LSQR's tolerances that a guess must meet, as LSQR itself ends well below them
MARGIN = 0.1

# seconds on one core, measured: an iteration's Python, an entry of A in one product,
# an entry of the dense matrix while the sparse one is assembled
_ITERATION = {"sparse": 25e-6, "operator": 60e-6}
_ENTRY = {"sparse": 5e-10, "operator": 1.5e-10}
_ASSEMBLY = 1e-9


class LsqrSolver(Solver):
    """Minimise ‖A d − r‖² + λ²‖d‖² by :func:`scipy.sparse.linalg.lsqr`, ``damp`` = λ.

    Paige and Saunders, LSQR, ACM TOMS 8 (1982), doi:10.1145/355984.355989. A is a CSR
    matrix while its dense form would stay within 1 GiB, and a ``LinearOperator`` beyond and
    for convolutions whose products are faster than that matrix.

    The solution is linear in r. Where a batch holds at least two right-hand sides for each
    row of that matrix, LSQR solves for the m unit vectors, once, and their combinations are
    the first guesses; LSQR continues wherever its stopping rules do not hold for a
    guess's true residual. Guesses lie in the range of A', so the norm stays least for λ = 0.

    Parameters
    ----------
    atol, btol : float
        LSQR's tolerances; they bound residuals, not errors in d.
    iter_lim : int, optional
        Iterations per right-hand side; by default 100 + 100·min(m, n), at most 20000.
    n_jobs : int, optional
        Threads, each with samples of its own, where A is a ``LinearOperator``; as in joblib,
        None is 1, unless :func:`joblib.parallel_config` says otherwise.
    """

    name = "lsqr"
    needs = ("apply", "adjoint", "sparse")

    def __init__(
        self,
        atol: float = 1e-14,
        btol: float = 1e-14,
        iter_lim: int | None = None,
        n_jobs: int | None = None,
    ) -> None:
        self.atol = atol
        self.btol = btol
        self.iter_lim = iter_lim
        self.n_jobs = n_jobs

    def prepare(self, linear_map: LinearMap, damping: float) -> PreparedSolver:
        """Assemble the matrix, where it is of use."""
        self.check(linear_map)
        return _PreparedLsqr(self, linear_map, damping)

    def cost(self, linear_map: LinearMap, damping: float) -> Cost:
        """Estimate time and memory: two products and Python's overhead per iteration.

        LSQR gains a factor (κ − 1)/(κ + 1) an iteration, κ the condition of [A; λI]. That is
        bounded where λ > 0 and ‖A‖ is; otherwise the limit counts.
        Nothing is taken off for right-hand sides that share their work.

        Parameters
        ----------
        linear_map : LinearMap
            A.
        damping : float
            λ.

        Returns
        -------
        Cost
            Of the CSR matrix and the iterations.
        """
        kind = "sparse" if _is_assembled(linear_map) else "operator"
        count = linear_map.n_nonzeros()
        condition = hypot(1.0, linear_map.norm_bound() / damping) if damping > 0 else inf
        iterations = min(self._limit(linear_map), 1 + condition / 2 * log(2 / self.atol))
        return Cost(
            set_up=_ASSEMBLY * entries(linear_map) if kind == "sparse" else 0.0,
            per_sample=iterations * _seconds(kind, count),
            n_bytes=12 * count + 4 * linear_map.shape[0] if kind == "sparse" else 0.0,
        )

    def _limit(self, linear_map: LinearMap) -> int:
        return self.iter_lim or min(20000, 100 + 100 * min(linear_map.shape))


class _Run(NamedTuple):
    """Where LSQR came to for one right-hand side of norm 1."""

    solution: np.ndarray
    stop: int
    iterations: int
    residual: float


class _Inverse(NamedTuple):
    """(A'A + λ²)⁻¹A', or A⁺, by LSQR: row i solves for the i-th unit vector."""

    rows: np.ndarray
    iterations: int


class _PreparedLsqr(PreparedSolver):
    def __init__(self, solver: LsqrSolver, linear_map: LinearMap, damping: float) -> None:
        self.solver = solver
        self.linear_map = linear_map
        self.damping = damping
        self.assembled = _is_assembled(linear_map)
        self.operator = linear_map.sparse() if self.assembled else linear_map.as_linear_operator()
        limit = solver._limit(linear_map)
        # conlim=0: the damping, not a stop halfway, is what guards against a bad condition
        self.options = {"atol": solver.atol, "conlim": 0, "iter_lim": limit}
        self._inverse: _Inverse | None = None

    def solve(self, rhs: Tensor) -> SolveResult:
        """Solve for each sample, from a common inverse where the batch is large."""
        flat = as_rows(rhs).cpu().numpy()
        # LSQR's own rules hold an absolute eps: give it vectors of unit norm
        sizes = np.linalg.norm(flat, axis=1)
        occupied = np.flatnonzero(sizes)
        unit = flat[occupied] / sizes[occupied, None]
        # by the batch alone, never by what was solved before: the same batch, the same answer
        shared = self.assembled and len(unit) >= SHARED_FROM * max(1, self.linear_map.shape[0])
        runs = self._from_inverse(unit) if shared else self._each(self._from_zero, unit)
        solutions = np.zeros((len(flat), self.linear_map.shape[1]))
        if runs:
            solutions[occupied] = sizes[occupied, None] * np.stack([run.solution for run in runs])
        advice = _advice([run.stop for run in runs])
        return SolveResult(
            torch.as_tensor(solutions, device=rhs.device).reshape(-1, *self.linear_map.in_shape),
            solver="lsqr",
            status="not_converged" if advice else "converged",
            residual=float(max((run.residual for run in runs), default=0.0)),
            iterations=max((run.iterations for run in runs), default=0),
            damping=self.damping,
            advice=advice,
        )

    def _from_zero(self, row: np.ndarray) -> _Run:
        return _run(self.operator, row, damp=self.damping, btol=self.solver.btol, **self.options)

    def _from_inverse(self, unit: np.ndarray) -> list[_Run]:
        """Combine the solutions for unit vectors; go on where LSQR's rules ask for more."""
        if self._inverse is None:
            solved = self._each(self._from_zero, np.eye(self.linear_map.shape[0]))
            self._inverse = _Inverse(
                np.stack([run.solution for run in solved]), max(run.iterations for run in solved)
            )
        inverse = self._inverse
        guesses = unit @ inverse.rows
        allowed, settled, residuals = self._judge(unit, guesses)
        # rounding in what cancels may lie outside of the range of A', where LSQR never looks
        summands = np.abs(unit) @ np.linalg.norm(inverse.rows, axis=1)
        spoilt = summands > CANCELLATION * np.linalg.norm(guesses, axis=1)
        system = self._stacked()

        def finish(row: int) -> _Run:
            if spoilt[row]:
                return self._from_zero(unit[row])
            if settled[row]:
                return _Run(guesses[row], 1, 0, residuals[row])
            padded = np.zeros(system.shape[0])
            padded[: unit.shape[1]] = unit[row]
            return _run(system, padded, x0=guesses[row], btol=allowed[row], **self.options)

        runs = self._each(finish, np.arange(len(unit)))
        return [run._replace(iterations=max(run.iterations, inverse.iterations)) for run in runs]

    def _judge(
        self, unit: np.ndarray, found: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Apply LSQR's two rules to true residuals: what the first allows, and who passes."""
        norm = sparse.linalg.norm(self.operator)
        remainder = unit - (self.operator @ found.T).T
        gradient = (self.operator.T @ remainder.T).T - self.damping**2 * found
        slope, length = np.linalg.norm(gradient, axis=1), np.linalg.norm(found, axis=1)
        size = np.hypot(np.linalg.norm(remainder, axis=1), self.damping * length)
        allowed = self.solver.btol + self.solver.atol * norm * length
        near = slope <= MARGIN * self.solver.atol * norm * size
        settled = (size <= MARGIN * allowed) | near
        return allowed, settled, slope / norm if norm > 0 else slope

    def _stacked(self) -> sparse.csr_matrix:
        """Return [A; λI]: with a first guess ``damp`` would damp the change, not d itself."""
        if self.damping == 0:
            return self.operator
        identity = sparse.identity(self.linear_map.shape[1], format="csr")
        return sparse.vstack([self.operator, self.damping * identity], format="csr")

    def _each(self, solve: Callable[[Any], _Run], items: np.ndarray) -> list[_Run]:
        workers = min(effective_n_jobs(self.solver.n_jobs), len(items))
        # short products of a matrix leave most of the time to Python, which threads share
        if workers <= 1 or self.assembled:
            return [solve(item) for item in items]
        with _one_thread_inside():
            return Parallel(n_jobs=workers, require="sharedmem")(
                delayed(solve)(item) for item in items
            )


def _run(operator: Any, row: np.ndarray, **options: Any) -> _Run:
    found, stop, count, _, _, norm, _, gradient, *_ = lsqr(operator, row, **options)
    return _Run(found, stop, count, gradient / norm if norm > 0 else 0.0)


@contextmanager
def _one_thread_inside() -> Iterator[None]:
    """Keep BLAS and torch from starting threads of their own in every worker."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # new threads take it over
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def _seconds(kind: str, count: int) -> float:
    """Return what one iteration takes: two products, and Python."""
    return _ITERATION[kind] + 2 * count * _ENTRY[kind]


def _is_assembled(linear_map: LinearMap) -> bool:
    """Return whether LSQR works on the matrix: it may be too large, or slower than torch."""
    if isinstance(linear_map, ConvolutionMap) and linear_map.device.type == "cpu":
        count = linear_map.n_nonzeros()
        if _seconds("operator", count) < _seconds("sparse", count):
            return False
    return fits_densely(linear_map)


def _advice(stops: list[int]) -> str:
    failed = [stop for stop in stops if stop in _FAILURES]
    if not failed:
        return ""
    reasons = " and ".join(_FAILURES[stop] for stop in sorted(set(failed)))
    return (
        f"LSQR stopped early on {len(failed)} of {len(stops)} samples: {reasons}. The layer is "
        "ill-conditioned: use a larger damping (or damping='auto'), or solver='direct'."
    )
