"""The rivals, each as plainly as it is published; what is theirs to repeat is in every call.

All get the right-hand sides r and return d = argmin ‖A d − r‖² + λ²‖d‖². Where a
published routine knows no λ, λ² is added where it stands in the normal equations.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from inversion_problem import Problem
from scipy.sparse.linalg import lsqr
from torch import Tensor
from torch.nn.functional import pad

Solve = Callable[[Tensor], Tensor]
LeastSquares = Callable[[Tensor, Tensor], Tensor]

CG_ITERATIONS = 100
CG_TOLERANCE = 1e-9
LSQR_TOLERANCE = 1e-12


def _by_torch(A: Tensor, r: Tensor) -> Tensor:
    return torch.linalg.lstsq(A, r).solution


class NotApplicable(Exception):  # noqa: N818
    """The method does not take such a case."""


def exact_matrix(problem: Problem) -> Solve:
    """Cholesky of AA' (m ≤ n), or least squares, on the dense matrix; all in every call."""
    m, n = problem.shape
    squared = problem.damping**2

    def solve(rhs: Tensor) -> Tensor:
        A, r = problem.dense(), rhs.flatten(1).T
        if m <= n:
            gram = A @ A.T
            gram.diagonal().add_(squared)
            d = A.T @ torch.cholesky_solve(r, torch.linalg.cholesky(gram))
        else:
            d = damped_lstsq(A, r, problem.damping)
        return d.T.reshape(len(rhs), *problem.case.in_shape)

    return solve


def torch_lstsq(problem: Problem) -> Solve:
    """``torch.linalg.lstsq``, for linear layers; the factorisation is in every call."""
    _require_linear(problem)
    return lambda rhs: damped_lstsq(problem.weight, rhs.T, problem.damping).T


def numpy_lstsq(problem: Problem) -> Solve:
    """``numpy.linalg.lstsq``, for linear layers; the factorisation is in every call."""
    _require_linear(problem)

    def least_squares(A: Tensor, r: Tensor) -> Tensor:
        return torch.from_numpy(np.linalg.lstsq(A.numpy(), r.numpy(), rcond=None)[0])

    return lambda rhs: damped_lstsq(problem.weight, rhs.T, problem.damping, least_squares).T


def damped_lstsq(
    A: Tensor, r: Tensor, damping: float, least_squares: LeastSquares = _by_torch
) -> Tensor:
    """Give λ to a routine that knows none: as more columns (m ≤ n), or as more rows."""
    if damping == 0:
        return least_squares(A, r)
    m, n = A.shape
    if m <= n:  # the shortest (d, e) with A d + λ e = r
        return least_squares(torch.cat([A, damping * torch.eye(m).double()], dim=1), r)[:n]
    return least_squares(torch.cat([A, damping * torch.eye(n).double()]), pad(r, (0, 0, 0, n)))


def _require_linear(problem: Problem) -> None:
    if not problem.case.is_linear:
        raise NotApplicable


def cg(problem: Problem) -> Solve:
    """Batched conjugate gradients on AA' (m ≤ n) or A'A: at most 100 steps, tolerance 1e-9."""
    m, n = problem.shape
    wide, squared = m <= n, problem.damping**2

    def product(z: Tensor) -> Tensor:
        if wide:
            return problem.forward(problem.adjoint(z)) + squared * z
        return problem.adjoint(problem.forward(z)) + squared * z

    def solve(rhs: Tensor) -> Tensor:
        b = rhs if wide else problem.adjoint(rhs)
        z, residual = torch.zeros_like(b), b
        direction, old = residual, _dots(residual, residual)
        goal = CG_TOLERANCE**2 * old
        for _ in range(CG_ITERATIONS):
            if bool((old <= goal).all()):
                break
            image = product(direction)
            step = old / _dots(direction, image).clamp_min(torch.finfo(b.dtype).tiny)
            z = z + step * direction
            residual = residual - step * image
            new = _dots(residual, residual)
            direction = residual + new / old.clamp_min(torch.finfo(b.dtype).tiny) * direction
            old = new
        return problem.adjoint(z) if wide else z

    return solve


def _dots(a: Tensor, b: Tensor) -> Tensor:
    products = (a * b).flatten(1).sum(dim=1)
    return products.reshape(-1, *[1] * (a.ndim - 1))


def fft_pad(problem: Problem) -> Solve:
    """Padded input taken for periodic: a small system per frequency, wrapped outputs zero.

    For m ≤ n its (c1 + c2) × (c1 + c2) optimality conditions, else least squares.
    """
    case = problem.case
    if case.is_linear:
        raise NotApplicable
    torus = case.size + 2 * (case.kernel // 2)
    inner = slice(case.kernel // 2, case.kernel // 2 + case.size)
    c1, c2 = case.inputs, case.outputs

    def solve(rhs: Tensor) -> Tensor:
        # output o is Σ weight[t] · padded input[o + t]: a correlation
        symbol = torch.fft.rfft2(problem.weight, s=(torus, torus)).conj()
        K = symbol.flatten(2).permute(2, 0, 1)
        spectrum = torch.fft.rfft2(rhs, s=(torus, torus))
        r = spectrum.flatten(2).permute(2, 1, 0)
        if c2 <= c1:
            d = torch.linalg.solve(_optimality(K, problem.damping), pad(r, (0, 0, c1, 0)))[:, :c1]
        else:
            gram = K.mH @ K + problem.damping**2 * torch.eye(c1)
            d = torch.linalg.solve(gram, K.mH @ r)
        spread = d.permute(2, 1, 0).reshape(len(rhs), c1, *spectrum.shape[2:])
        return torch.fft.irfft2(spread, s=(torus, torus))[..., inner, inner]

    return solve


def _optimality(K: Tensor, damping: float) -> Tensor:
    """[[I, K'], [K, −λ²I]]: the conditions of min ‖d‖² subject to K d = r, and damped."""
    count, c2, c1 = K.shape
    system = K.new_zeros(count, c1 + c2, c1 + c2)
    system[:, :c1, :c1] = torch.eye(c1)
    system[:, :c1, c1:] = K.mH
    system[:, c1:, :c1] = K
    system[:, c1:, c1:] = -(damping**2) * torch.eye(c2)
    return system


def lsqr_loop(problem: Problem) -> Solve:
    """SciPy's LSQR on the sparse matrix, one sample after the other."""
    A = problem.weight.numpy() if problem.case.is_linear else problem.csr()

    def solve(rhs: Tensor) -> Tensor:
        rows = [
            lsqr(A, r, damp=problem.damping, atol=LSQR_TOLERANCE, btol=LSQR_TOLERANCE, conlim=0)[0]
            for r in rhs.flatten(1).numpy()
        ]
        return torch.stack([torch.from_numpy(row) for row in rows]).reshape(
            len(rhs), *problem.case.in_shape
        )

    return solve


RIVALS: dict[str, Callable[[Problem], Solve]] = {
    "exact_matrix": exact_matrix,
    "cg": cg,
    "fft_pad": fft_pad,
    "lsqr loop": lsqr_loop,
    "torch lstsq": torch_lstsq,
    "numpy lstsq": numpy_lstsq,
}
