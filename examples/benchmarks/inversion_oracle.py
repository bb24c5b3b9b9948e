"""What the answers are compared with: SciPy's solvers on SciPy's matrices.

A dense QR factorisation where the matrix is small, a sparse LU factorisation of the
optimality conditions where it is larger, else preconditioned conjugate gradients, restarted from
the true residual. The residual of the normal equations is verified in every case.
"""

from __future__ import annotations

import numpy as np
import torch
from inversion_problem import Problem, largest_singular_value
from numpy.typing import NDArray
from scipy import linalg, sparse
from scipy.sparse.linalg import LinearOperator, splu
from scipy.sparse.linalg import cg as scipy_cg
from torch import Tensor

#: samples that are checked, the first ones; of large problems one
CHECKED = 3
LARGE = 50_000
DENSE_ENTRIES = 2**22
SPARSE_UNKNOWNS = 20_000
RESTARTS = 6
ITERATIONS = 3000
#: share of σ_max² added to the symbol, which is singular where A is not
SHIFT = 1e-4
#: of the normal equations, relative: what a stagnating iteration reaches, and may not exceed
VERIFIED = 1e-13


def oracle(problem: Problem) -> Tensor:
    """Return d of the first samples.

    Raises
    ------
    RuntimeError
        If the residual of the normal equations is too large.
    """
    m, n = problem.shape
    checked = 1 if m + n > LARGE else CHECKED
    rhs = problem.remainder[:checked].flatten(1).numpy()
    A = problem.csr()
    if problem.case.is_linear or m * n <= DENSE_ENTRIES:
        found = _dense(A.toarray(), rhs, problem.damping)
    elif m + n <= SPARSE_UNKNOWNS:
        found = _sparse(problem, A, rhs)
    else:
        found = _iterated(problem, A, rhs)
    residual = normal_residual(problem, A, rhs, found)
    if residual > VERIFIED:
        raise RuntimeError(f"{problem.case.name}: the oracle's own residual is {residual:.1e}")
    return torch.from_numpy(found).reshape(-1, *problem.case.in_shape)


def normal_residual(problem: Problem, A: sparse.csr_matrix, rhs: NDArray, found: NDArray) -> float:
    """‖A'(r − A d) − λ²d‖ over ‖A‖(‖r‖ + ‖A‖‖d‖), the largest of the samples."""
    size = largest_singular_value(problem.weight, problem.reference[:1])
    gradient = A.T @ (rhs.T - A @ found.T) - problem.damping**2 * found.T
    scale = np.linalg.norm(rhs, axis=1) + size * np.linalg.norm(found, axis=1)
    return float((np.linalg.norm(gradient, axis=0) / (size * scale)).max())


def _dense(A: NDArray, rhs: NDArray, damping: float) -> NDArray:
    m, n = A.shape
    r = rhs.T
    if damping and m <= n:  # the shortest (d, e) with A d + λ e = r
        A = np.hstack([A, damping * np.eye(m)])
    elif damping:
        A, r = np.vstack([A, damping * np.eye(n)]), np.vstack([r, np.zeros((n, len(rhs)))])
    return linalg.lstsq(A, r, lapack_driver="gelsy", check_finite=False)[0][:n].T


def _sparse(problem: Problem, A: sparse.csr_matrix, rhs: NDArray) -> NDArray:
    """LU of [[αI, A], [A', −λ²/α]], or of the same with A' for A; square if nothing is damped.

    With α near σ_min its condition is that of A, not the square.
    """
    m, n = A.shape
    if m == n and problem.damping == 0:
        factor = splu(A.tocsc())
        found = factor.solve(rhs.T)
        return (found + factor.solve(rhs.T - A @ found)).T
    size = largest_singular_value(problem.weight, problem.reference[:1])
    alpha = max(problem.damping, size / problem.condition)
    wide = m <= n
    B = A.T if wide else A
    corner = -(problem.damping**2) / alpha * sparse.eye(B.shape[1])
    system = sparse.bmat([[alpha * sparse.eye(B.shape[0]), B], [B.T, corner]], format="csc")
    given = np.zeros((m + n, len(rhs)))
    given[slice(n, None) if wide else slice(m)] = rhs.T
    factor = splu(system)
    found = factor.solve(given)
    found = found + factor.solve(given - system @ found)
    return found[slice(n) if wide else slice(m, None)].T


def _iterated(problem: Problem, A: sparse.csr_matrix, rhs: NDArray) -> NDArray:
    """Conjugate gradients on (AA' + λ²) z = r and d = A'z, or on (A'A + λ²) d = A'r."""
    wide, squared = A.shape[0] <= A.shape[1], problem.damping**2
    B = A.T.tocsr() if wide else A  # the normal matrix is B'B + λ²
    Bt = B.T.tocsr()
    operator = LinearOperator(
        (B.shape[1], B.shape[1]), lambda z: Bt @ (B @ z) + squared * z, dtype=float
    )
    inverse = _circulant_inverse(problem, wide)
    answers = []
    for r in rhs:
        wanted = r if wide else Bt @ r
        z = np.zeros_like(wanted)
        for _ in range(RESTARTS):
            # of the true residual, as exactly as the last answer allows
            seen = r - A @ (A.T @ z) if wide else A.T @ (r - A @ z)
            remainder = seen - squared * z
            step, _ = scipy_cg(operator, remainder, rtol=1e-10, maxiter=ITERATIONS, M=inverse)
            z = z + step
            if np.linalg.norm(step) <= 1e-6 * np.linalg.norm(z):
                break  # the step itself is known to 1e-10
        answers.append(A.T @ z if wide else z)
    return np.stack(answers)


def _circulant_inverse(problem: Problem, wide: bool) -> LinearOperator:
    """Invert the normal matrix of the convolution on a torus, a little damped."""
    case = problem.case
    symbol = np.fft.fft2(problem.weight.numpy(), s=(case.size, case.size)).conj()
    K = symbol.transpose(2, 3, 0, 1)
    K = K if wide else K.conj().swapaxes(-1, -2)
    gram = K @ K.conj().swapaxes(-1, -2)
    shift = max(problem.damping**2, SHIFT * np.abs(np.linalg.eigvalsh(gram)).max())
    inverse = np.linalg.inv(gram + shift * np.eye(gram.shape[-1]))
    shape = (case.outputs if wide else case.inputs, case.size, case.size)

    def apply(z: NDArray) -> NDArray:
        spectrum = np.fft.fft2(z.reshape(shape))
        return np.fft.ifft2(np.einsum("xyij,jxy->ixy", inverse, spectrum)).real.ravel()

    count = int(np.prod(shape))
    return LinearOperator((count, count), apply, dtype=float)
