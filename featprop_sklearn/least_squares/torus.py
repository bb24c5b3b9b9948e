"""Torus solver: convolutions, exactly, at about the cost of one pass."""

from __future__ import annotations

from functools import cached_property
from math import inf, prod, sqrt

import torch
from torch import Tensor

from featprop_sklearn.least_squares.convolution_map import ConvolutionMap
from featprop_sklearn.least_squares.cost import Cost, readable_bytes
from featprop_sklearn.least_squares.linear_map import LinearMap
from featprop_sklearn.least_squares.normal_equations import (
    EXACT,
    Exact,
    Factor,
    Iterated,
    NormalEquations,
)
from featprop_sklearn.least_squares.solver import PreparedSolver, Solver
from featprop_sklearn.least_squares.torus_embedding import TorusEmbedding
from featprop_sklearn.least_squares.torus_frame_gram import FrameGram
from featprop_sklearn.least_squares.torus_gram import TorusGram
from featprop_sklearn.least_squares.torus_regions import Region
from featprop_sklearn.least_squares.torus_size import seconds_per_sample, seconds_to_invert
from featprop_sklearn.least_squares.torus_strip_gram import StripGram
from featprop_sklearn.least_squares.torus_strips import Strip

__all__ = ["TorusSolver"]

#: condition from which on a symbol counts as singular
SINGULAR = 1e4
#: and up to which strips serve: rounding counts there as often as its fourth power
WELL_CONDITIONED = 50.0

#: measured: seconds for the calls of a set-up, for an entry of a symbol and each of its channels,
#: for an entry of the last strip's matrix, and for a sample's share of the calls
START, SYMBOL, ENTRY, CALLS = 3e-3, 1e-9, 6e-8, 5e-6
#: measured: time of a call by frames, as a multiple of one by strips
FRAMES = 1.4


class TorusSolver(Solver):
    """Minimise ‖A d − r‖² + λ²‖d‖² for a convolution A, by transforms.

    The convolution is embedded in one on a torus, which is a small matrix per frequency; what
    the torus adds lies around its ends, and is set right by one real system of the size of the
    perimeter, factorised or inverted once (:class:`FrameGram`, :class:`StripGram`). Exact for
    any λ. Where λ = 0 and the
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
        strips = _strips(linear_map, torus)
        (own, other), last = strips[-1].channels, strips[-1].size
        symbols = prod(torus.transform.half_size) * own * (own + other)
        set_up = START + torus.groups * (
            SYMBOL * symbols * own + ENTRY * last**2 + seconds_to_invert(last)
        )
        box, across = strips[-1].own.region.box, [len(strip.cells) for strip in strips]
        sample = seconds_per_sample(torus.transform.size, (own, other), box, across)
        per_sample = CALLS + torus.groups * sample
        return Cost(set_up, per_sample, _bytes_needed(torus, strips))

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
        strips = _strips(linear_map, torus)
        needed = _bytes_needed(torus, strips)
        if needed > self.max_bytes:
            raise ValueError(
                "solver='torus' inverts a matrix of the strip around an end of the convolution: "
                f"here {strips[-1].size} unknowns, {readable_bytes(needed)} in all, more "
                f"than {readable_bytes(self.max_bytes)}. Use solver='auto' or solver='torch'."
            )
        return torus

    def prepare(self, linear_map: LinearMap, damping: float) -> PreparedSolver:
        """Factorise once."""
        torus = self._embed(linear_map)
        assert isinstance(linear_map, ConvolutionMap)
        equations = _OnTorus(linear_map, torus, damping)
        exact = None if equations.condition() >= SINGULAR else Exact.attempt(equations)
        prepared = exact or Iterated(equations)
        assert isinstance(prepared.factor, _Inverse)
        if isinstance(prepared.factor.gram, FrameGram):
            prepared.effort *= FRAMES
        return prepared


def embedding(linear_map: ConvolutionMap) -> TorusEmbedding:
    """Lay the convolution, or the one whose adjoint the map is, on its torus."""
    inputs, outputs = linear_map.in_shape[1:], linear_map.out_shape[1:]
    if linear_map.kernel.transposed:
        inputs, outputs = outputs, inputs
    return TorusEmbedding(linear_map.kernel, inputs, outputs)


def _strips(linear_map: LinearMap, torus: TorusEmbedding) -> list[Strip]:
    """Return the strips on the side of the Gram matrix that is inverted."""
    assert isinstance(linear_map, ConvolutionMap)
    wide = linear_map.shape[0] <= linear_map.shape[1]
    return torus.strips(of_outputs=wide != linear_map.kernel.transposed)


def _bytes_needed(torus: TorusEmbedding, strips: list[Strip]) -> int:
    """Return the most that the inverse of a Gram matrix takes while it is put together.

    The symbols, as matrices and as they are multiplied with spectra; and the system of the frame
    with a quarter more, or the last strip's matrix five times.
    """
    symbols = 2 * 16 * prod(torus.transform.half_size) * sum(torus.channels) ** 2
    return torus.groups * (symbols + max(10 * torus.frame_size**2, 5 * 8 * strips[-1].size ** 2))


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

    def condition(self) -> float:
        """Return that of the symbol, damped as the convolution is."""
        return self._condition(self.damping**2)

    def _condition(self, squared_damping: float) -> float:
        symbol, of_outputs = self.torus.symbol, self.wide != self.transposed
        sizes = self._symbol_sizes
        full = symbol.shape[2 if of_outputs else 3] == sizes.shape[-1]
        least = (float(sizes.min()) ** 2 if full else 0.0) + squared_damping
        return sqrt((float(sizes.max()) ** 2 + squared_damping) / least) if least > 0 else inf

    @cached_property
    def _symbol_sizes(self) -> Tensor:
        """Singular values at each frequency."""
        return torch.linalg.svdvals(self.torus.symbol)

    def factorise(self, squared_damping: float) -> _Inverse | None:
        """Return the inverse of AA' + μ, or of A'A + μ: by strips where that is accurate."""
        if self._condition(squared_damping) <= WELL_CONDITIONED:
            found, probe = self._inverse(StripGram, squared_damping), self.probe()
            # the ends may be worse conditioned than the symbol
            if found is not None:
                residual = self.residual(probe, found.solve(probe), squared_damping)
                if float(residual.norm() / probe.norm()) <= EXACT:
                    return found
        return self._inverse(FrameGram, squared_damping)

    def _inverse(self, gram: type[TorusGram], squared_damping: float) -> _Inverse | None:
        of_outputs = self.wide != self.transposed
        try:
            return _Inverse(gram(self.torus, squared_damping, of_outputs=of_outputs))
        except torch.linalg.LinAlgError:
            return None

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
