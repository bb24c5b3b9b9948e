"""Symmetric quasi-definite systems: L diag(I, −I) L', without pivoting, and inverses."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["QuasiDefinite", "quasi_definite_inverse"]

#: columns eliminated at a time
PANEL = 512


class QuasiDefinite:
    """Factorise [[P, X'], [X, −W]], P and W + X P⁻¹X' positive definite.

    Such a matrix is L diag(I, −I) L' with L lower triangular, in any order of its rows
    (Vanderbei, SIAM J. Optim. 5, 1995, doi:10.1137/0805005).

    Parameters
    ----------
    matrix : Tensor of shape (groups, n, n)
        Its lower triangle is read, and overwritten by L.
    n_positive : int
        Rows of P.

    Raises
    ------
    torch.linalg.LinAlgError
        If one of the two is not positive definite.
    """

    def __init__(self, matrix: Tensor, n_positive: int) -> None:
        self.factor = matrix
        self.n_positive = n_positive
        self._factorise()

    def solve(self, rhs: Tensor) -> Tensor:
        """Solve for right-hand sides (groups, n, n_samples)."""
        half = torch.linalg.solve_triangular(self.factor, rhs, upper=False)
        half[:, self.n_positive :].neg_()
        return torch.linalg.solve_triangular(self.factor.mT, half, upper=True)

    def _factorise(self) -> None:
        matrix, n, total = self.factor, self.n_positive, self.factor.shape[1]
        edges = [*range(0, n, PANEL), *range(n, total, PANEL), total]
        panels = [*pairwise(edges)]
        for index, (start, stop) in enumerate(panels):
            if start == n:
                matrix[:, n:, n:].neg_()
            head = torch.linalg.cholesky(matrix[:, start:stop, start:stop])
            matrix[:, start:stop, start:stop] = head
            below = matrix[:, stop:, start:stop]
            below.copy_(torch.linalg.solve_triangular(head.mT, below, upper=True, left=False))
            for left, right in panels[index + 1 :]:
                rows = matrix[:, left:, start:stop]
                columns = matrix[:, left:right, start:stop]
                matrix[:, left:, left:right].baddbmm_(rows, columns.mT, alpha=-1)


def quasi_definite_inverse(matrix: Tensor, n_positive: int) -> Tensor:
    """Invert [[P, X'], [X, −W]], P and W + X P⁻¹X' positive definite, by two Cholesky factors.

    Parameters
    ----------
    matrix : real or complex Tensor of shape (count, n, n)
        Symmetric, or Hermitian.
    n_positive : int
        Rows of P.

    Returns
    -------
    Tensor of shape (count, n, n)

    Raises
    ------
    torch.linalg.LinAlgError
        If P or W + X P⁻¹X' is not positive definite.
    """
    n, inverse = n_positive, torch.empty_like(matrix)
    head = torch.linalg.cholesky(matrix[:, :n, :n])
    across = torch.cholesky_solve(matrix[:, :n, n:], head).mH
    rest = torch.linalg.cholesky(across @ matrix[:, :n, n:] - matrix[:, n:, n:])
    inverse[:, n:, n:] = -torch.cholesky_inverse(rest)
    inverse[:, n:, :n] = -inverse[:, n:, n:] @ across
    inverse[:, :n, n:] = inverse[:, n:, :n].mH
    inverse[:, :n, :n] = torch.cholesky_inverse(head) - inverse[:, :n, n:] @ across
    return inverse
