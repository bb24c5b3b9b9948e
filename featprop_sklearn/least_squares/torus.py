"""Torus solver: convolutions, exactly, at about the cost of one pass."""

from __future__ import annotations

from functools import cached_property
from math import prod

import torch
from torch import Tensor

from featprop_sklearn.least_squares.convolution_map import ConvolutionMap
from featprop_sklearn.least_squares.cost import FLOPS, Cost, readable_bytes
from featprop_sklearn.least_squares.linear_map import LinearMap
from featprop_sklearn.least_squares.normal_equations import (
    Exact,
    Factor,
    Iterated,
    NormalEquations,
)
from featprop_sklearn.least_squares.solver import PreparedSolver, Solver
from featprop_sklearn.least_squares.torus_embedding import TorusEmbedding
from featprop_sklearn.least_squares.torus_gram import TorusGram
from featprop_sklearn.least_squares.torus_regions import Region
from featprop_sklearn.least_squares.torus_size import seconds_of_transforms

__all__ = ["TorusSolver"]

#: share of σ_max below which a symbol counts as singular
SHIFT = 1e-4

#: measured: seconds for the calls of a set-up, for an entry of a symbol and each of its channels,
#: for an entry of the frame's matrix
START, SYMBOL, ENTRY = 3e-3, 1e-9, 6e-9
#: and for a sample's share of the calls, for each cell beside its transform, for its product with
#: an entry of a symbol, for the cells along an axis, to the frame and back, and for an entry of
#: the frame's factor
CALLS, CELL, PRODUCT, EDGE, SOLVE = 5e-6, 1.4e-9, 6e-10, 3.3e-8, 6e-11


class TorusSolver(Solver):
    """Minimise ‖A d − r‖² + λ²‖d‖² for a convolution A, by transforms.

    The convolution is embedded in one on a torus, which is a small matrix per frequency; what
    the torus adds lies on its frame, and is set right by one real system of the size of the
    perimeter, factorised once (:class:`TorusGram`). Exact for any λ. Where λ = 0 and the
    symbol of the convolution is singular or nearly so, the same with a little damping
    preconditions conjugate gradients, whose residual is verified (:class:`Iterated`).

    Parameters
    ----------
    max_bytes : int
        Most memory that the factors may take.
    """

    name = "torus"
    needs = ("kernel",)
    squares = True

    def __init__(self, max_bytes: int = 2**30) -> None:
        self.max_bytes = max_bytes

    def cost(self, linear_map: LinearMap, damping: float) -> Cost:
        """Estimate transforms, products of channels, and the system of the frame."""
        assert isinstance(linear_map, ConvolutionMap)
        torus = embedding(linear_map)
        size, groups, frame = torus.transform.size, torus.groups, torus.frame_size
        channels = sum(torus.channels)
        products = groups * prod(torus.transform.half_size) * channels**2
        set_up = START + SYMBOL * products * (channels + 1)
        set_up += groups * (ENTRY * frame**2 + frame**3 / 3 / FLOPS)
        per_sample = CALLS + seconds_of_transforms(groups * channels, size)
        per_sample += groups * channels * (CELL * prod(size) + EDGE * sum(size))
        per_sample += PRODUCT * products + SOLVE * groups * frame**2
        return Cost(set_up, per_sample, torus.bytes_needed)

    def check(self, linear_map: LinearMap) -> None:
        """Refuse what is no convolution, or one with too long a perimeter.

        Raises
        ------
        ValueError
            Naming the map, its size and the alternatives.
        """
        self._embed(linear_map)

    def _embed(self, linear_map: LinearMap) -> TorusEmbedding:
        super().check(linear_map)
        assert isinstance(linear_map, ConvolutionMap)
        torus = embedding(linear_map)
        if torus.bytes_needed > self.max_bytes:
            raise ValueError(
                "solver='torus' factorises a system of the perimeter of the convolution: here "
                f"{torus.frame_size} unknowns, {readable_bytes(torus.bytes_needed)} in all, more "
                f"than {readable_bytes(self.max_bytes)}. Use solver='auto' or solver='torch'."
            )
        return torus

    def prepare(self, linear_map: LinearMap, damping: float) -> PreparedSolver:
        """Factorise once."""
        torus = self._embed(linear_map)
        assert isinstance(linear_map, ConvolutionMap)
        equations = _OnTorus(linear_map, torus, damping)
        exact = None if equations.symbol_is_singular() else Exact.attempt(equations)
        return exact or Iterated(equations)


def embedding(linear_map: ConvolutionMap) -> TorusEmbedding:
    """Lay the convolution, or the one whose adjoint the map is, on its torus."""
    inputs, outputs = linear_map.in_shape[1:], linear_map.out_shape[1:]
    if linear_map.kernel.transposed:
        inputs, outputs = outputs, inputs
    return TorusEmbedding(linear_map.kernel, inputs, outputs)


class _OnTorus(NormalEquations):
    """A convolution, its adjoint, and its normal equations, by transforms."""

    name = "torus"
    what = "convolution"
    linear_map: ConvolutionMap

    def __init__(self, linear_map: ConvolutionMap, torus: TorusEmbedding, damping: float) -> None:
        super().__init__(linear_map, damping)
        self.torus = torus
        self.transposed = linear_map.kernel.transposed

    def apply(self, rows: Tensor) -> Tensor:
        """Multiply by A."""
        return self._adjoint_convolve(rows) if self.transposed else self._convolve(rows)

    def adjoint(self, rows: Tensor) -> Tensor:
        """Multiply by A'."""
        return self._convolve(rows) if self.transposed else self._adjoint_convolve(rows)

    def norm(self) -> float:
        """Return the norm of the symbol."""
        return float(self._symbol_sizes.max())

    def symbol_is_singular(self) -> bool:
        """Whether the damped symbol is, or nearly, at some frequency."""
        symbol, of_outputs = self.torus.symbol, self.wide != self.transposed
        sizes = self._symbol_sizes
        full = symbol.shape[2 if of_outputs else 3] == sizes.shape[-1]
        least = float(sizes.min()) ** 2 if full else 0.0
        return least + self.damping**2 <= SHIFT**2 * float(sizes.max()) ** 2

    @cached_property
    def _symbol_sizes(self) -> Tensor:
        """Singular values at each frequency."""
        return torch.linalg.svdvals(self.torus.symbol)

    def factorise(self, squared_damping: float) -> _Inverse | None:
        """Return the inverse of AA' + μ, or of A'A + μ."""
        inverse = TorusGram(self.torus, squared_damping, of_outputs=self.wide != self.transposed)
        return _Inverse(inverse) if inverse.regular else None

    def invert(self, factor: Factor, rhs: Tensor) -> Tensor:
        """Solve and multiply by A', or the other way round, without leaving the torus between."""
        assert isinstance(factor, _Inverse)
        return factor.solve(rhs, from_other=not self.wide, to_other=self.wide)

    def _convolve(self, rows: Tensor) -> Tensor:
        return self.torus.convolve(split(rows, self.torus, self.torus.inputs)).flatten(1)

    def _adjoint_convolve(self, rows: Tensor) -> Tensor:
        return self.torus.adjoint(split(rows, self.torus, self.torus.outputs)).flatten(1)


class _Inverse:
    """The inverse on the torus, for flat rows."""

    def __init__(self, gram: TorusGram) -> None:
        self.gram = gram

    def solve(self, rows: Tensor, *, from_other: bool = False, to_other: bool = False) -> Tensor:
        """Multiply by the inverse; before that by A' or A, or after it, if asked."""
        given = self.gram.other if from_other else self.gram.own
        values = split(rows, self.gram.torus, given)
        return self.gram.solve(values, from_other=from_other, to_other=to_other).flatten(1)


def split(rows: Tensor, torus: TorusEmbedding, region: Region) -> Tensor:
    """Shape flat rows into (n_samples, groups, channels, *length)."""
    return rows.reshape(len(rows), torus.groups, torus.channels_of(region), *region.length)
