"""A linear map between shaped tensors: products with it and its adjoint, and its matrices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from math import inf, prod
from typing import ClassVar

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

__all__ = ["LinearMap"]

Product = Callable[[Tensor], Tensor]

PROBE_BYTES = 64 * 2**20


class LinearMap(ABC):
    """The linear map ``A`` of a least-squares problem, float64, the same for every sample.

    Parameters
    ----------
    in_shape, out_shape : tuple of int
        Shapes of one item, without the batch dimension.
    device : torch.device or str
        Where the products are computed.

    Attributes
    ----------
    shape : tuple (m, n)
        Rows and columns of the matrix: entries of one output and of one input.
    """

    #: what solvers may ask for; a map that differs per sample has only the first two
    provides: ClassVar[tuple[str, ...]] = ("apply", "adjoint", "matrix", "sparse")

    def __init__(
        self,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        device: torch.device | str = "cpu",
    ) -> None:
        self.in_shape = tuple(in_shape)
        self.out_shape = tuple(out_shape)
        self.shape = (prod(self.out_shape), prod(self.in_shape))
        self.device = torch.device(device)
        self._matrix: Tensor | None = None
        self._sparse: sparse.csr_matrix | None = None
        self._svd: tuple[Tensor, Tensor, Tensor] | None = None

    @abstractmethod
    def apply(self, inputs: Tensor) -> Tensor:
        """Multiply by A: ``(n_samples, *in_shape)`` to ``(n_samples, *out_shape)``."""

    @abstractmethod
    def adjoint(self, outputs: Tensor) -> Tensor:
        """Multiply by A': ``(n_samples, *out_shape)`` to ``(n_samples, *in_shape)``."""

    def gram_diagonal(self) -> Tensor | None:
        """Return the diagonal of A'A, shape ``in_shape``, if A'A is diagonal, else None."""
        return None

    def matrix(self) -> Tensor:
        """Return A as a dense float64 tensor of shape (m, n), computed once."""
        if self._matrix is None:
            units = torch.cat(list(self._unit_images()))
            self._matrix = units if self._probes_rows else units.T.contiguous()
        return self._matrix

    def sparse(self) -> sparse.csr_matrix:
        """Return A as a SciPy CSR matrix of shape (m, n), computed once, in bounded memory."""
        if self._sparse is None:
            parts = [sparse.csr_matrix(part.cpu().numpy()) for part in self._unit_images()]
            units = sparse.vstack(parts, format="csr")
            self._sparse = units if self._probes_rows else units.T.tocsr()
        return self._sparse

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the thin singular value decomposition (U, σ, V') of the matrix, computed once."""
        if self._svd is None:
            left, values, right = torch.linalg.svd(self.matrix(), full_matrices=False)
            self._svd = (left, values, right)
        return self._svd

    def n_nonzeros(self) -> int:
        """Return how many entries of the matrix may differ from zero, without looking."""
        if self.gram_diagonal() is not None:
            return max(self.shape)
        return self.shape[0] * self.shape[1]

    def norm_bound(self) -> float:
        """Return a bound of ‖A‖ that costs nothing; infinite where there is none."""
        return inf

    @property
    def has_svd(self) -> bool:
        """Whether the decomposition is there already."""
        return self._svd is not None

    def as_linear_operator(self) -> LinearOperator:
        """Return A for one item as a SciPy ``LinearOperator`` of shape (m, n)."""
        return LinearOperator(
            shape=self.shape, dtype=np.float64, matvec=self._matvec, rmatvec=self._rmatvec
        )

    @property
    def _probes_rows(self) -> bool:
        return self.shape[0] < self.shape[1]

    def _unit_images(self) -> Iterator[Tensor]:
        """Yield rows of A (if it is wide) or of A' (else), a chunk of unit vectors at a time."""
        count, width = min(self.shape), max(self.shape)
        product, shape = (
            (self.adjoint, self.out_shape) if self._probes_rows else (self.apply, self.in_shape)
        )
        size = max(1, PROBE_BYTES // (8 * max(width, 1)))
        for start in range(0, count, size):
            rows = min(size, count - start)
            units = torch.zeros(rows, count, dtype=torch.float64, device=self.device)
            units.diagonal(start).fill_(1.0)
            yield product(units.reshape(rows, *shape)).reshape(rows, width)

    def _matvec(self, vector: np.ndarray) -> np.ndarray:
        return self._single(self.apply, vector, self.in_shape)

    def _rmatvec(self, vector: np.ndarray) -> np.ndarray:
        return self._single(self.adjoint, vector, self.out_shape)

    def _single(self, product: Product, vector: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        item = torch.as_tensor(vector, dtype=torch.float64, device=self.device)
        return product(item.reshape(1, *shape)).reshape(-1).cpu().numpy()
