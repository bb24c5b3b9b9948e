"""Nested dissection: the order in which unknowns on a grid are eliminated with little fill.

Unknowns are coupled if one equation sees both. A grid is cut in two by a separator as wide as
the coupling reaches, both halves likewise, and each separator is eliminated after its halves
(George, Nested dissection of a regular finite element mesh, 1973, doi:10.1137/0710032).
Eliminating a part couples what lies within reach around it, and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import gcd, prod

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from featprop_sklearn.least_squares.convolution_map import Kernel

__all__ = ["Coupling", "Front", "dissect", "front_sizes", "fronts"]

#: unknowns that are eliminated together without a further cut
LEAF = 256

Box = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Coupling:
    """Which unknowns of a grid of shape (channels, *size) are coupled at most.

    Attributes
    ----------
    size : tuple of int
        Of the grid.
    reach, step : tuple of int
        By axis: coupled unknowns lie at most ``reach`` apart, by a multiple of ``step``.
    channels : tuple of tuple of int
        Sets of channels; those of different sets are not coupled.
    """

    size: tuple[int, ...]
    reach: tuple[int, ...]
    step: tuple[int, ...]
    channels: tuple[tuple[int, ...], ...]

    @classmethod
    def of_kernel(cls, kernel: Kernel, size: Sequence[int], *, inputs: bool) -> Coupling:
        """Derive it for the inputs or the outputs of a convolution (not of its transpose)."""
        spans = [d * (k - 1) for d, k in zip(kernel.dilation, kernel.weight.shape[2:], strict=True)]
        step = kernel.dilation
        if not inputs:
            spans = [span // s for span, s in zip(spans, kernel.stride, strict=True)]
            step = tuple(d // gcd(d, s) for d, s in zip(step, kernel.stride, strict=True))
        reach = tuple(min(span, n - 1) for span, n in zip(spans, size, strict=True))
        width = kernel.weight.shape[1] if inputs else kernel.weight.shape[0] // kernel.groups
        sets = (tuple(range(g * width, (g + 1) * width)) for g in range(kernel.groups))
        return cls(tuple(size), reach, step, tuple(sets))

    @classmethod
    def of(cls, equations: sparse.csr_matrix, shape: Sequence[int]) -> Coupling:
        """Read it off a matrix with one row an equation, one column an unknown."""
        n_channels, *size = shape
        channel, *places = np.unravel_index(equations.indices, (n_channels, *size))
        lengths = np.diff(equations.indptr)
        starts = equations.indptr[:-1][lengths > 0]
        reach, step = [], []
        for at in places:
            first = np.minimum.reduceat(at, starts) if len(starts) else at
            apart = at - np.repeat(first, lengths[lengths > 0])
            reach.append(int(apart.max(initial=0)))
            step.append(max(1, int(np.gcd.reduce(apart)) if len(apart) else 1))
        seen = sparse.csr_matrix(
            (np.ones(len(channel)), channel, equations.indptr), (len(lengths), n_channels)
        )
        _, labels = connected_components(seen.T @ seen, directed=False)
        sets = [tuple(np.flatnonzero(labels == one).tolist()) for one in range(labels.max() + 1)]
        return cls(tuple(size), tuple(reach), tuple(step), tuple(sets))

    @property
    def n_entries(self) -> int:
        """How many pairs of unknowns are coupled at most: entries of the Gram matrix."""
        pairs = [
            sum((2 if k else 1) * (n - k) for k in range(0, min(r, n - 1) + 1, s))
            for n, r, s in zip(self.size, self.reach, self.step, strict=True)
        ]
        return prod(pairs) * sum(len(channels) ** 2 for channels in self.channels)

    @property
    def lattices(self) -> Iterator[tuple[int, ...]]:
        """Offsets of the interleaved lattices that are not coupled with each other."""
        return product(*(range(min(s, n)) for s, n in zip(self.step, self.size, strict=True)))

    def lattice_size(self, offset: Sequence[int]) -> tuple[int, ...]:
        """Size of one lattice."""
        return tuple(-(-(n - o) // s) for n, o, s in zip(self.size, offset, self.step, strict=True))

    @property
    def lattice_reach(self) -> tuple[int, ...]:
        """Reach in steps of a lattice."""
        return tuple(r // s for r, s in zip(self.reach, self.step, strict=True))


def dissect(size: Sequence[int], reach: Sequence[int], leaf: int) -> list[tuple[Box, Box]]:
    """Return (part, box) in the order of elimination.

    With a part, a separator or a whole small box, the last of its box is eliminated; what it
    is coupled with then lies within reach around the box.
    """

    def cut(box: Box) -> Iterator[tuple[Box, Box]]:
        lengths = [high - low for low, high in box]
        axes = [a for a in range(len(box)) if lengths[a] >= reach[a] + 2]
        if prod(lengths) <= leaf or not axes:
            yield box, box
            return
        axis = max(axes, key=lambda a: lengths[a] / (reach[a] + 0.5))
        (low, high), width = box[axis], reach[axis]
        middle = (low + high - width) // 2
        for part in ((low, middle), (middle + width, high)):
            yield from cut((*box[:axis], part, *box[axis + 1 :]))
        if width:
            yield (*box[:axis], (middle, middle + width), *box[axis + 1 :]), box

    return list(cut(tuple((0, n) for n in size)))


@dataclass(frozen=True)
class Front:
    """Unknowns start..stop, in the new order, and those later ones coupled with them by then."""

    start: int
    stop: int
    later: np.ndarray


def fronts(coupling: Coupling) -> tuple[np.ndarray, list[Front]]:
    """Return the order of all unknowns, and the fronts in which they are eliminated."""
    order, found = [], []
    n_cells = prod(coupling.size)
    cells = np.arange(n_cells).reshape(coupling.size)
    reach, start = coupling.lattice_reach, 0
    for channels, offset in product(coupling.channels, coupling.lattices):
        along = zip(offset, coupling.step, strict=True)
        lattice = cells[tuple(slice(first, None, step) for first, step in along)]
        unknowns = lattice[..., None] + n_cells * np.array(channels)
        parts = dissect(lattice.shape, reach, LEAF // len(channels))
        position = np.empty(unknowns.shape, dtype=np.int64)
        stops = []
        for part, _ in parts:
            own = position[_slices(part)]
            own[...] = start + np.arange(own.size).reshape(own.shape)
            order.append(unknowns[_slices(part)].ravel())
            start += own.size
            stops.append(start)
        for (part, box), stop in zip(parts, stops, strict=True):
            around = position[_slices(_widened(box, reach, lattice.shape))].ravel()
            size = len(channels) * _volume(part)
            found.append(Front(stop - size, stop, np.sort(around[around >= stop])))
    return np.concatenate(order), found


def front_sizes(coupling: Coupling) -> np.ndarray:
    """Return unknowns eliminated, and later ones coupled with them, front by front: (·, 2)."""
    sizes = []
    reach = coupling.lattice_reach
    lattices = Counter(coupling.lattice_size(offset) for offset in coupling.lattices)
    channels = Counter(map(len, coupling.channels))
    for (size, count), (width, times) in product(lattices.items(), channels.items()):
        parts = [
            (_volume(part), _volume(_widened(box, reach, size)) - _volume(box))
            for part, box in dissect(size, reach, LEAF // width)
        ]
        sizes.append(np.tile(width * np.array(parts), (count * times, 1)))
    return np.concatenate(sizes)


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(low, high) for low, high in box)


def _volume(box: Box) -> int:
    return prod(high - low for low, high in box)


def _widened(box: Box, reach: Sequence[int], size: Sequence[int]) -> Box:
    return tuple(
        (max(low - r, 0), min(high + r, n))
        for (low, high), r, n in zip(box, reach, size, strict=True)
    )
