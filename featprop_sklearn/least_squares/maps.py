"""The kinds of linear map: a function, a matrix, a diagonal, a selection of entries, a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from featprop_sklearn.least_squares.linear_map import LinearMap
from featprop_sklearn.least_squares.rows import as_rows

__all__ = ["BatchMap", "DiagonalMap", "FunctionMap", "MatrixMap", "SelectionMap"]

Product = Callable[[Tensor], Tensor]


class FunctionMap(LinearMap):
    """A linear torch function, batch first; its adjoint is its vector-Jacobian product.

    Parameters
    ----------
    function : callable
        ``(n_samples, *in_shape)`` to ``(n_samples, *out_shape)``, linear, each sample for
        itself; no gradients are needed for anything that it closes over.
    in_shape, out_shape : tuple of int
        Shapes of one item.
    device : torch.device or str
        Where the function runs.
    """

    def __init__(
        self,
        function: Product,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(in_shape, out_shape, device)
        self.function = function
        self._graph: tuple[Tensor, Tensor] | None = None

    def apply(self, inputs: Tensor) -> Tensor:
        """Multiply by A."""
        with torch.no_grad():
            return self.function(inputs)

    def adjoint(self, outputs: Tensor) -> Tensor:
        """Multiply by A'."""
        kept = self._graph  # read once: another thread may put its own there meanwhile
        if kept is None or len(kept[0]) != len(outputs):
            # the derivative of a linear function is the same everywhere: one graph per batch size;
            # torch.func would do the same, but its first use imports for a second
            with torch.enable_grad():
                origin = outputs.new_zeros(len(outputs), *self.in_shape, requires_grad=True)
                self._graph = kept = origin, self.function(origin)
        origin, image = kept
        return torch.autograd.grad(image, origin, outputs, retain_graph=True)[0]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the graph out: it cannot be pickled, and is quick to record again."""
        return {**self.__dict__, "_graph": None}


class MatrixMap(LinearMap):
    """A dense matrix: A d = ``matrix @ d``.

    Parameters
    ----------
    matrix : Tensor of shape (m, n)
        Kept as float64.
    """

    def __init__(self, matrix: Tensor) -> None:
        rows, columns = matrix.shape
        super().__init__((columns,), (rows,), matrix.device)
        self._matrix = matrix.detach().to(torch.float64)

    def apply(self, inputs: Tensor) -> Tensor:
        """Multiply by A."""
        return inputs @ self.matrix().T

    def adjoint(self, outputs: Tensor) -> Tensor:
        """Multiply by A'."""
        return outputs @ self.matrix()

    def norm_bound(self) -> float:
        """Return the Frobenius norm."""
        return float(torch.linalg.matrix_norm(self.matrix()))


class DiagonalMap(LinearMap):
    """A diagonal matrix: A d = ``diagonal * d``.

    Parameters
    ----------
    diagonal : Tensor of shape (*in_shape)
        Kept as float64.
    """

    def __init__(self, diagonal: Tensor) -> None:
        super().__init__(tuple(diagonal.shape), tuple(diagonal.shape), diagonal.device)
        self.diagonal = diagonal.detach().to(torch.float64)

    def apply(self, inputs: Tensor) -> Tensor:
        """Multiply by A."""
        return inputs * self.diagonal

    def adjoint(self, outputs: Tensor) -> Tensor:
        """Multiply by A', which is A."""
        return outputs * self.diagonal

    def gram_diagonal(self) -> Tensor:
        """Return the squared diagonal."""
        return self.diagonal.square()


class SelectionMap(LinearMap):
    """Every output entry is a copy of one input entry, or zero: reshapes, pads, repetitions.

    Parameters
    ----------
    index : int64 Tensor of shape (*out_shape)
        Position in the flattened input that the output entry copies; -1 for a zero.
    in_shape : tuple of int
        Shape of one input.
    """

    def __init__(self, index: Tensor, in_shape: tuple[int, ...]) -> None:
        super().__init__(in_shape, tuple(index.shape), index.device)
        self.index = index.reshape(-1)
        # position -1 of the input with a zero appended is that zero
        self._source = self.index.remainder(self.shape[1] + 1)

    def apply(self, inputs: Tensor) -> Tensor:
        """Multiply by A: copy."""
        flat = as_rows(inputs)
        padded = torch.nn.functional.pad(flat, (0, 1))
        return padded[:, self._source].reshape(-1, *self.out_shape)

    def adjoint(self, outputs: Tensor) -> Tensor:
        """Multiply by A': add up the copies of each entry."""
        flat = as_rows(outputs)
        total = flat.new_zeros(flat.shape[0], self.shape[1] + 1)
        total.index_add_(1, self._source, flat)
        return total[:, :-1].reshape(-1, *self.in_shape)

    def gram_diagonal(self) -> Tensor:
        """Return how often each input entry is copied."""
        ones = torch.ones(1, *self.out_shape, dtype=torch.float64, device=self.device)
        return self.adjoint(ones)[0]


class BatchMap(LinearMap):
    """A map that may differ per sample, known only by its products with a whole batch.

    Parameters
    ----------
    apply, adjoint : callable
        Products with A and A', sample ``i`` with the ``i``-th matrix.
    in_shape, out_shape : tuple of int
        Shapes of one item.
    device : torch.device or str
        Where the products are computed.
    """

    provides: ClassVar[tuple[str, ...]] = ("apply", "adjoint")

    def __init__(
        self,
        apply: Product,
        adjoint: Product,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(in_shape, out_shape, device)
        self._apply = apply
        self._adjoint = adjoint

    def apply(self, inputs: Tensor) -> Tensor:
        """Multiply each sample by its own A."""
        return self._apply(inputs)

    def adjoint(self, outputs: Tensor) -> Tensor:
        """Multiply each sample by its own A'."""
        return self._adjoint(outputs)
