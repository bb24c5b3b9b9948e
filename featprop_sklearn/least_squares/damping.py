"""The damping λ: a number as given, or as little as keeps the condition at 1e3."""

from __future__ import annotations

from math import inf, isfinite, nan, sqrt
from numbers import Real

import torch
from torch import Tensor

from featprop_sklearn.least_squares.choice import AutoSolver
from featprop_sklearn.least_squares.krylov import KrylovSolver
from featprop_sklearn.least_squares.linear_map import LinearMap
from featprop_sklearn.least_squares.lsqr import LsqrSolver
from featprop_sklearn.least_squares.solver import get_solver
from featprop_sklearn.least_squares.spectrum import (
    exact_extremes,
    largest_eigenvalue,
    largest_singular_value,
)

__all__ = ["check_damping", "condition_number", "resolve_damping"]

CONDITION = 1e3
SVD_LIMIT = 1500
#: singular values that iterations can tell from zero, in units of the largest
ITERATED = 1e-6
#: an eigenvector needs no accurate solutions
LOOSE = KrylovSolver(tolerance=1e-4, max_iterations=2000)


def resolve_damping(
    linear_map: LinearMap, damping: object, auto: AutoSolver | None = None
) -> float:
    """Turn the ``damping`` parameter into λ of ‖A d − r‖² + λ²‖d‖².

    ``"auto"``: with σ_min the smallest singular value above max(m, n)·eps·σ_max,
    λ² = max(0, (σ_max/10³)² − σ_min²), so that σ²_min + λ² ≥ (σ_max/10³)²: zero up to
    condition 1e3 and continuous beyond. Both values are exact where A'A is diagonal or the
    smaller side of the matrix is at most 1500. Beyond that, σ_max comes from power iteration
    (within about 1 %) and σ_min from inverse iteration shifted by σ_max/10³, which sees
    exact zeros too: a rank-deficient map, or one where the iteration does not settle,
    gets λ = σ_max/10³.

    Parameters
    ----------
    linear_map : LinearMap
        A, the same for every sample.
    damping : "auto" or float
        A number is λ itself, absolute; 0 asks for the exact least-squares solution.
    auto : AutoSolver, optional
        What chooses the solver of the inverse iteration, within the memory that it may take.

    Returns
    -------
    float
        λ.

    Raises
    ------
    ValueError
        If ``damping`` is neither ``"auto"`` nor a finite number >= 0.
    """
    number = check_damping(damping)
    if number is not None:
        return number
    largest, smallest = _extremes(linear_map, auto or AutoSolver())
    return sqrt(max(0.0, (largest / CONDITION) ** 2 - smallest**2))


def condition_number(linear_map: LinearMap, *, iterate: bool = False) -> float:
    """Say how much a linear map can magnify a relative error on the way back.

    Parameters
    ----------
    linear_map : LinearMap
        A, the same for every sample.
    iterate : bool
        Whether to take the time that a large map needs.

    Returns
    -------
    float
        σ_max over the smallest σ above max(m, n)·eps·σ_max, as ``damping="auto"`` sees them:
        exact where A'A is diagonal or the smaller side of the matrix is at most 1500; beyond
        that NaN, or from iterations, within a few percent up to 1e3; these see zeros too, and
        give infinity from 1e6 on. NaN for A = 0.
    """
    auto = AutoSolver()
    exact = _is_exact(linear_map, auto)
    if not exact and not iterate:
        return nan
    largest, smallest = _extremes(linear_map, auto)
    if largest == 0.0:
        return nan
    return largest / smallest if exact or smallest > ITERATED * largest else inf


def _extremes(linear_map: LinearMap, auto: AutoSolver) -> tuple[float, float]:
    """Return σ_max and the smallest σ that does not count as zero."""
    if _is_exact(linear_map, auto):
        return exact_extremes(linear_map)
    largest = largest_singular_value(linear_map)
    return largest, _smallest_singular_value(linear_map, largest / CONDITION, auto)


def _is_exact(linear_map: LinearMap, auto: AutoSolver) -> bool:
    return linear_map.gram_diagonal() is not None or (
        min(linear_map.shape) <= SVD_LIMIT and auto.choose(linear_map, 0.0) == "direct"
    )


def check_damping(damping: object) -> float | None:
    """Return λ as a float, or None for ``"auto"``.

    Raises
    ------
    ValueError
        If ``damping`` is neither ``"auto"`` nor a finite number >= 0.
    """
    if isinstance(damping, str) and damping == "auto":
        return None
    number = isinstance(damping, Real) and not isinstance(damping, bool)
    if not (number and isfinite(damping) and damping >= 0):  # type: ignore[arg-type,operator]
        raise ValueError(
            f"damping must be 'auto' or a finite number >= 0; got {damping!r}. "
            "Use 0 for the exact least-squares solution."
        )
    return float(damping)  # type: ignore[arg-type]


def _smallest_singular_value(linear_map: LinearMap, shift: float, auto: AutoSolver) -> float:
    """Estimate σ_min from above; 0.0 where the inner solver does not settle.

    With d(v) the minimiser of ‖A d − A v‖² + shift²‖d‖², the map v − d(v) has the
    eigenvalues shift²/(σ² + shift²): its largest one belongs to σ_min.
    """
    if shift == 0.0:
        return 0.0
    solver = get_solver(auto.choose(linear_map, shift))
    if isinstance(solver, KrylovSolver | LsqrSolver):
        solver = LOOSE
    prepared = solver.prepare(linear_map, shift)
    wide = linear_map.shape[0] <= linear_map.shape[1]

    def inverse(vectors: Tensor) -> Tensor:
        result = prepared.solve(vectors if wide else linear_map.apply(vectors))
        if not result.converged:
            raise _Unsettled
        return vectors - (linear_map.apply(result.solution) if wide else result.solution)

    shape = linear_map.out_shape if wide else linear_map.in_shape
    try:
        _, vectors = largest_eigenvalue(inverse, shape, linear_map.device, iterations=10)
    except _Unsettled:
        return 0.0
    found = vectors[:, -1].reshape(1, *shape)
    image = linear_map.adjoint(found) if wide else linear_map.apply(found)
    return float(torch.linalg.vector_norm(image))


class _Unsettled(Exception):  # noqa: N818
    """The inner solver of the inverse iteration reached its limit."""
