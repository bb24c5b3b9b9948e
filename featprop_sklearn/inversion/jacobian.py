"""The Jacobian of a stage at every sample of a batch, and damped least squares with it."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from featprop_sklearn.least_squares import BatchMap, KrylovSolver, LinearMap
from featprop_sklearn.least_squares.rows import as_rows, per_row, row_products, row_solutions

__all__ = ["DenseJacobian", "Jacobian", "jvp", "linearise", "rows_at_a_time"]

DENSE_BYTES = 2**27
#: fewer samples at a time than this are not worth a dense Jacobian
FEWEST_ROWS = 8
#: how many rows a stage is run on at a time while its Jacobian is put together
RUN_ROWS = 512


def rows_at_a_time(outputs: Tensor, inputs: Tensor) -> int:
    """Return how many samples' dense Jacobians fit in memory, or all where none do."""
    size = 8 * outputs[:1].numel() * inputs[:1].numel()
    rows = DENSE_BYTES // max(size, 1)
    return rows if rows >= FEWEST_ROWS else max(len(inputs), 1)


def linearise(layer: nn.Module, x: Tensor) -> Jacobian | DenseJacobian:
    """Return the Jacobians at x: dense where they fit in memory."""
    jacobian = Jacobian(layer, x)
    fits = 8 * len(x) * jacobian.shape[0] * jacobian.shape[1] <= DENSE_BYTES
    return DenseJacobian(jacobian) if fits else jacobian


def jvp(
    function: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor]:
    """Return f(x) and J times a direction (``torch.func.jvp``), without torch's own warning.

    Parameters
    ----------
    function : callable
        Differentiable.
    x, direction : Tensor of shape (...)
        Where it is linearised, and what J is multiplied by.

    Returns
    -------
    output : Tensor
        f(x).
    product : Tensor of the shape of ``output``
        J times the direction.
    """
    _load_forward_mode()
    output, product = torch.func.jvp(function, (x,), (direction,))[:2]
    return output, product


@functools.cache
def _load_forward_mode() -> None:
    """Take one product: torch 2.13 warns about itself at the first of a process."""
    one = torch.ones(1, device="cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.script` is", DeprecationWarning)
        torch.func.jvp(torch.clone, (one,), (one,))


class Jacobian(LinearMap):
    """J of each sample through products alone (:func:`jvp` and ``torch.func.vjp``).

    Parameters
    ----------
    layer : callable
        Differentiable; no sample depends on another.
    x : Tensor of shape (n_samples, *in_shape), float64
        Where it is linearised.
    """

    provides = ("apply", "adjoint")

    def __init__(self, layer: Callable[[Tensor], Tensor], x: Tensor) -> None:
        with _differentiable():
            output, self._pull = torch.func.vjp(layer, x)[:2]
        super().__init__(tuple(x.shape[1:]), tuple(output.shape[1:]), x.device)
        self.layer = layer
        self.x = x

    def apply(self, inputs: Tensor) -> Tensor:
        """Multiply by J."""
        with _differentiable():
            return jvp(self.layer, self.x, inputs)[1]

    def adjoint(self, outputs: Tensor) -> Tensor:
        """Multiply by J'."""
        with _differentiable():
            return self._pull(outputs)[0]

    def damped(self, rhs: Tensor, damping: Tensor) -> Tensor:
        """Solve min ‖J d − r‖² + λ²‖d‖² for each sample with its own λ.

        Parameters
        ----------
        rhs : Tensor of shape (n_samples, *out_shape)
            r.
        damping : Tensor of shape (n_samples,)
            λ ≥ 0, zero for all samples or for none.

        Returns
        -------
        Tensor of shape (n_samples, *in_shape)
            The minimisers; of least norm where λ = 0.
        """
        solver = KrylovSolver(tolerance=1e-10, max_iterations=200)
        if not damping.any():
            return solver.prepare(self, 0.0).solve(rhs).solution
        # ‖(J d − r)/λ‖² + ‖d‖²: one damping for all
        scale = per_row(damping.reciprocal(), rhs)
        scaled = BatchMap(
            lambda d: scale * self.apply(d),
            lambda r: self.adjoint(scale * r),
            self.in_shape,
            self.out_shape,
            rhs.device,
        )
        return solver.prepare(scaled, 1.0).solve(scale * rhs).solution


class DenseJacobian(LinearMap):
    """J of each sample as a matrix: many products and solves for the price of one sweep.

    Parameters
    ----------
    jacobian : Jacobian
        Whose matrices are put together.
    """

    provides = ("apply", "adjoint")

    def __init__(self, jacobian: Jacobian) -> None:
        super().__init__(jacobian.in_shape, jacobian.out_shape, jacobian.device)
        self.matrices = _matrices(jacobian)

    def apply(self, inputs: Tensor) -> Tensor:
        """Multiply by J."""
        return self._times(self.matrices, inputs).reshape(-1, *self.out_shape)

    def adjoint(self, outputs: Tensor) -> Tensor:
        """Multiply by J'."""
        return self._times(self.matrices.mT, outputs).reshape(-1, *self.in_shape)

    def damped(self, rhs: Tensor, damping: Tensor) -> Tensor:
        """Solve min ‖J d − r‖² + λ²‖d‖² by Cholesky factors, or by pseudo-inverses where λ = 0.

        With λ ≥ σ_max/1e3, as the steps of Gauss-Newton have it, squaring J costs six of
        sixteen digits, which the next step makes good.
        """
        j = self.matrices
        if not damping.any():
            cutoff = max(self.shape) * torch.finfo(j.dtype).eps
            return self._times(torch.linalg.pinv(j, rtol=cutoff), rhs).reshape(-1, *self.in_shape)
        wide = self.shape[0] <= self.shape[1]
        shifted = self._gram.clone()
        shifted.diagonal(dim1=1, dim2=2).add_(damping.square()[:, None])
        factor = torch.linalg.cholesky(shifted)
        if wide:
            return self.adjoint(row_solutions(factor, as_rows(rhs)))
        return row_solutions(factor, as_rows(self.adjoint(rhs))).reshape(-1, *self.in_shape)

    @functools.cached_property
    def _gram(self) -> Tensor:
        """J J' or J' J, whichever is smaller."""
        j = self.matrices
        return j @ j.mT if self.shape[0] <= self.shape[1] else j.mT @ j

    @staticmethod
    def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
        return row_products(matrices, as_rows(vectors))


def _matrices(jacobian: Jacobian) -> Tensor:
    """Put the matrices together from unit vectors, several to a run of the layer."""
    x, shape = jacobian.x, jacobian.shape
    n_samples, count = len(x), min(shape)
    copies = max(1, min(count, RUN_ROWS // max(n_samples, 1)))
    repeated = x.repeat(copies, *(1,) * (x.ndim - 1))
    by_rows = shape[0] <= shape[1]
    several = Jacobian(jacobian.layer, repeated)
    product, unit_shape = (
        (several.adjoint, jacobian.out_shape) if by_rows else (several.apply, jacobian.in_shape)
    )
    parts = []
    for start in range(0, count, copies):
        units = x.new_zeros(copies, n_samples, count)
        for copy_, index in enumerate(range(start, min(start + copies, count))):
            units[copy_, :, index] = 1.0
        image = product(units.reshape(-1, *unit_shape))
        parts.append(image.reshape(copies, n_samples, -1))
    rows = torch.cat(parts)[:count].transpose(0, 1)
    return rows.contiguous() if by_rows else rows.mT.contiguous()


@contextlib.contextmanager
def _differentiable() -> Iterator[None]:
    """Leave out the fused kernels that have no forward-mode derivative."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
