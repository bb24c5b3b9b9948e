"""Sparse solver: the Gram matrix of a map that sees little at a time, factorised with little fill.

Its memory is that of the factor, which is known before anything is computed: for convolutions
from their kernel alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from featprop_sklearn.least_squares.convolution_map import ConvolutionMap
from featprop_sklearn.least_squares.cost import Cost, readable_bytes
from featprop_sklearn.least_squares.linear_map import LinearMap
from featprop_sklearn.least_squares.nested_dissection import Coupling, Front, front_sizes, fronts
from featprop_sklearn.least_squares.normal_equations import Exact, Iterated, NormalEquations
from featprop_sklearn.least_squares.rows import as_rows
from featprop_sklearn.least_squares.solver import PreparedSolver, Solver
from featprop_sklearn.least_squares.spectrum import largest_eigenvalue

__all__ = ["SparseCholesky", "SparseSolver"]

#: measured on one core: multiplications and additions a second in the factorisation and in
#: solves, entries of the Gram matrix placed a second, products added up in them, entries of A
#: multiplied
FACTOR_RATE = 28e9
SOLVE_RATE = 35e9
GRAM_RATE = 20e6
SQUARE_RATE = 1.5e9
PRODUCT_RATE = 9e9
#: relative change at which the power iteration for ‖A‖, a mere scale, is stopped
ROUGH = 1e-2
#: the sum of many squares of what is smaller is finite
HUGE = 1e140
#: seconds for the bookkeeping of a set-up and of a front, and for how many samples it is one
START, FRONT_SECONDS, BATCH = 1.5e-3, 1e-4, 256


class SparseSolver(Solver):
    """Minimise ‖A d − r‖² + λ²‖d‖² by a sparse Cholesky factor of AA' + λ² or A'A + λ².

    The smaller of the two is factorised, in an order found by nested dissection of the grid on
    which the outputs or inputs lie, (channels, *size); refined and verified
    (:mod:`~featprop_sklearn.least_squares.normal_equations`). Where it is singular or nearly
    so, the same with a little damping preconditions conjugate gradients.

    Parameters
    ----------
    max_bytes : int
        Most memory that the set-up may take.
    """

    name = "sparse"
    needs = ("sparse",)
    squares = True

    def __init__(self, max_bytes: int = 2**30) -> None:
        self.max_bytes = max_bytes

    def check(self, linear_map: LinearMap) -> None:
        """Refuse a map whose Gram matrix or its factor would be too large.

        Raises
        ------
        ValueError
            Naming the map, its size and the alternatives.
        """
        self._coupling(linear_map)

    def cost(self, linear_map: LinearMap, damping: float) -> Cost:
        """Estimate time and memory from the kernel of a convolution; of others nothing is known."""
        if not isinstance(linear_map, ConvolutionMap):
            return Cost()
        return _cost(linear_map, coupling(linear_map))

    def prepare(self, linear_map: LinearMap, damping: float) -> PreparedSolver:
        """Factorise once.

        Raises
        ------
        ValueError
            As :meth:`check`, or if the map holds what is not finite.
        """
        coupled = self._coupling(linear_map)
        if not (np.abs(linear_map.sparse().data) < HUGE).all():
            raise ValueError(
                f"solver='sparse' multiplies entries of the {type(linear_map).__name__} of shape "
                f"{linear_map.shape}: they must be below {HUGE:g}, and some are not. "
                "Check the weights of the layer for nan, inf and huge values."
            )
        equations = _SparseEquations(linear_map, coupled, damping)
        return Exact.attempt(equations) or Iterated(equations)

    def _coupling(self, linear_map: LinearMap) -> Coupling:
        super().check(linear_map)
        found = coupling(linear_map)
        n_bytes = _cost(linear_map, found).n_bytes
        if n_bytes > self.max_bytes:
            raise ValueError(
                f"solver='sparse' factorises the Gram matrix of the {type(linear_map).__name__}, "
                f"here of {min(linear_map.shape)} unknowns, which takes {readable_bytes(n_bytes)}, "
                f"more than {readable_bytes(self.max_bytes)}. Use solver='auto' or solver='torch'."
            )
        return found


def coupling(linear_map: LinearMap) -> Coupling:
    """Say which unknowns of AA', of A'A for a tall A, are coupled."""
    wide = linear_map.shape[0] <= linear_map.shape[1]
    shape = linear_map.out_shape if wide else linear_map.in_shape
    if isinstance(linear_map, ConvolutionMap):
        kernel = linear_map.kernel
        return Coupling.of_kernel(kernel, shape[1:], inputs=wide == kernel.transposed)
    equations = linear_map.sparse().T.tocsr() if wide else linear_map.sparse()
    return Coupling.of(equations, shape if len(shape) > 1 else (1, *shape))


def _cost(linear_map: LinearMap, coupled: Coupling) -> Cost:
    is_convolution = isinstance(linear_map, ConvolutionMap)
    n_entries = linear_map.n_nonzeros() if is_convolution else linear_map.sparse().nnz
    own, later = front_sizes(coupled).astype(float).T
    flops = (own**3 / 3 + own**2 * later + 2 * own * later**2).sum()
    in_factor = (own * (own + later)).sum()
    in_gram = coupled.n_entries
    # each equation adds the square of what it sees to the Gram matrix
    in_product = n_entries**2 / max(linear_map.shape)
    set_up = START + flops / FACTOR_RATE + in_gram / GRAM_RATE + in_product / SQUARE_RATE
    set_up += len(own) * FRONT_SECONDS
    per_sample = 4 * in_factor / SOLVE_RATE + 2 * n_entries / PRODUCT_RATE
    per_sample += len(own) * FRONT_SECONDS / BATCH
    # a matrix in CSR form takes 12 bytes an entry; three fronts of the largest size are at work
    n_bytes = 8 * in_factor + 24 * ((own + later) ** 2).max() + 12 * in_gram + 24 * n_entries
    return Cost(float(set_up), float(per_sample), float(n_bytes))


class _SparseEquations(NormalEquations):
    """Products with the CSR matrix, and its Gram matrix factorised, on the processor."""

    name = "sparse"
    iteration = 1.3
    what = "linear map"

    def __init__(self, linear_map: LinearMap, coupled: Coupling, damping: float) -> None:
        super().__init__(linear_map, damping)
        self.matrix = linear_map.sparse()
        self.order, self.fronts = fronts(coupled)

    def apply(self, rows: Tensor) -> Tensor:
        """Multiply by A."""
        return torch.from_numpy((self.matrix @ rows.numpy().T).T)

    def adjoint(self, rows: Tensor) -> Tensor:
        """Multiply by A'."""
        return torch.from_numpy((self.matrix.T @ rows.numpy().T).T)

    def rows(self, batch: Tensor) -> Tensor:
        """Flatten a batch and bring it to the processor."""
        return as_rows(batch).cpu()

    def norm(self) -> float:
        """Return σ_max by power iteration."""
        size = (self.linear_map.shape[1],)
        value, _ = largest_eigenvalue(
            lambda rows: self.adjoint(self.apply(rows)), size, torch.device("cpu"), tolerance=ROUGH
        )
        return sqrt(value)

    def factorise(self, squared_damping: float) -> SparseCholesky | None:
        """Factorise the smaller Gram matrix."""
        ordered = self.matrix[self.order] if self.wide else self.matrix[:, self.order].T.tocsr()
        gram = (ordered @ ordered.T).tocsr()
        gram.setdiag(gram.diagonal() + squared_damping)
        return SparseCholesky.attempt(gram, self.order, self.fronts)


class _Piece(NamedTuple):
    """Columns start..stop of L: a triangle, and what lies below it, in rows ``later``."""

    own: slice
    later: Tensor
    triangle: Tensor
    below: Tensor


class SparseCholesky:
    """M = L L' for a sparse M, front by front, each a small dense matrix.

    The multifrontal method (Duff and Reid 1983, doi:10.1145/356044.356047): a front gathers the
    rows of M that it eliminates and what earlier fronts left for it, and leaves a dense matrix
    for the front of the first unknown that it is coupled with.

    Parameters
    ----------
    pieces : list of _Piece
        Of L, in the order of elimination.
    order : ndarray of int
        Old position of each unknown in the order of elimination.
    """

    def __init__(self, pieces: list[_Piece], order: np.ndarray) -> None:
        self.pieces = pieces
        self.order = torch.from_numpy(order)

    @classmethod
    def attempt(
        cls, matrix: sparse.csr_matrix, order: np.ndarray, fronts: Sequence[Front]
    ) -> SparseCholesky | None:
        """Factorise a matrix whose rows and columns are ordered; None if it is singular."""
        starts = np.array([front.start for front in fronts])
        left: list[list[tuple[np.ndarray, Tensor]]] = [[] for _ in fronts]
        pieces = []
        for number, front in enumerate(fronts):
            full = _assemble(matrix, front, left[number])
            left[number] = []
            n = front.stop - front.start
            triangle, failed = torch.linalg.cholesky_ex(full[:n, :n])
            if failed:
                return None
            below = torch.linalg.solve_triangular(triangle.T, full[n:, :n], upper=True, left=False)
            if len(front.later):
                parent = int(np.searchsorted(starts, front.later[0], side="right")) - 1
                left[parent].append((front.later, full[n:, n:] - below @ below.T))
            own = slice(front.start, front.stop)
            pieces.append(_Piece(own, torch.from_numpy(front.later), triangle, below))
        return cls(pieces, order)

    def solve(self, values: Tensor) -> Tensor:
        """Multiply by M⁻¹: (n_samples, n) to the same shape."""
        x = values.T[self.order]
        for own, later, triangle, below in self.pieces:
            x[own] = torch.linalg.solve_triangular(triangle, x[own], upper=False)
            x[later] -= below @ x[own]
        for own, later, triangle, below in reversed(self.pieces):
            known = x[own] - below.T @ x[later]
            x[own] = torch.linalg.solve_triangular(triangle.T, known, upper=True)
        found = torch.empty_like(x)
        found[self.order] = x
        return found.T


def _assemble(
    matrix: sparse.csr_matrix, front: Front, left: list[tuple[np.ndarray, Tensor]]
) -> Tensor:
    """Gather a front: its rows of the matrix, and what earlier fronts left for it."""
    unknowns = np.concatenate([np.arange(front.start, front.stop), front.later])
    rows = matrix.indptr[front.start : front.stop + 1]
    column = matrix.indices[rows[0] : rows[-1]]
    row = np.repeat(np.arange(len(rows) - 1), np.diff(rows))
    open_ = column >= front.start
    own = np.zeros((len(unknowns), len(unknowns)))
    entries = matrix.data[rows[0] : rows[-1]][open_]
    own[np.searchsorted(unknowns, column[open_]), row[open_]] = entries
    full = torch.from_numpy(own)
    for later, rest in left:
        at = torch.from_numpy(np.searchsorted(unknowns, later))
        full[at[:, None], at] += rest
    return full
