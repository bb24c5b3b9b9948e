"""The strip of a torus where one axis ends, and what the frames of two arrays see of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

import numpy as np
import torch
from torch import Tensor

from featprop_sklearn.least_squares.torus_regions import Region, steps_between
from featprop_sklearn.least_squares.torus_transform import TorusTransform

__all__ = ["Kernels", "Side", "Strip"]

#: of a strip's B: by steps along the axes before, (groups · frequencies after, frame, strip)
Kernels = dict[tuple[int, ...], Tensor]


class Side:
    """One side of a wrapping convolution: an array on its torus.

    Parameters
    ----------
    region : Region
        Where the array lies.
    channels : int
        Of one group, phases included; the phase is the fastest.
    """

    def __init__(self, region: Region, channels: int) -> None:
        self.region, self.channels = region, channels

    def frame_start(self, axis: int) -> int:
        """Return the first cell along an axis that some phase leaves free."""
        return min(filled[axis] for filled in self.region.filled)

    def on_frame(self, axis: int, cells: range) -> Tensor:
        """Tell which of some cells along an axis are beyond the array.

        Parameters
        ----------
        axis : int
            Along the axes before it the array's own cells are meant.
        cells : range
            Along the axis; they go round.

        Returns
        -------
        Tensor of shape (n,)
            Where (*box, channels, cells), flat, is on the frame.
        """
        filled = np.resize(self.region.filled, (self.channels, len(self.region.size)))
        found = np.array(cells, dtype=np.int64) % self.region.size[axis] >= filled[:, axis, None]
        for before in reversed(range(axis)):
            inside = np.arange(self.region.box[before])[:, None] < filled[:, before]
            inside = inside.reshape(len(inside), *[1] * (axis - 1 - before), self.channels, 1)
            found = inside & found
        return torch.from_numpy(np.flatnonzero(found))


class Strip:
    """The cells of one side around where an axis ends: all that the two frames there can reach.

    The *frames* along an axis are what the arrays of the two sides leave free there; along the
    axes before it only what the arrays fill is meant, along those after it frequencies take the
    place of cells. With M' the wrapping convolution from the own side to the other one, B takes
    values z on the strip to those of z on the own frame and of M'z on the other one.

    Parameters
    ----------
    own, other : Side
        The strip lies on the own one.
    axis : int
        That ends.
    reach : sequence of (int, int)
        First and last step from a cell of the other side to those that M' takes there, by axis.

    Attributes
    ----------
    cells : range
        Along the axis; they go round, from before the end of the array to after its beginning.
    shape : tuple of int
        Cells of the array along the axes before, channels, cells along the axis.
    n_own : int
        Rows of B that belong to the own frame; they are the first ones.
    """

    def __init__(self, own: Side, other: Side, axis: int, reach: Sequence[tuple[int, int]]) -> None:
        self.own, self.other, self.axis, self._reach = own, other, axis, reach
        length, first = own.region.size[axis], other.frame_start(axis)
        self._frame = range(first, length)
        start, stop = own.frame_start(axis), length
        if self._frame:
            start, stop = min(start, first + reach[axis][0]), max(stop, length + reach[axis][1])
        # once round is enough
        self.cells = range(start, stop) if stop - start <= length else range(length)
        self.shape = (*own.region.box[:axis], own.channels, len(self.cells))
        self._other_shape = (*other.region.box[:axis], other.channels, len(self._frame))
        self._own_frame = own.on_frame(axis, self.cells)
        self._other_frame = other.on_frame(axis, self._frame)
        self.n_own = len(self._own_frame)

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of the own side and of the other one, phases included, of one group."""
        return self.own.channels, self.other.channels

    @property
    def size(self) -> int:
        """Number of values on the strip, for one group and one frequency of the axes after."""
        return prod(self.shape)

    def kernels(self, symbol: Tensor, transform: TorusTransform) -> Kernels:
        """Lay M' out between the strip and the frame, by steps along the axes before.

        Parameters
        ----------
        symbol : complex Tensor of shape (groups, n_frequencies, other channels, own channels)
            M'.
        transform : TorusTransform
            Of the torus.

        Returns
        -------
        dict of tuple of int to Tensor of shape (groups · frequencies after, frame, strip)
        """
        size, axis = transform.size, self.axis
        cells = symbol.permute(0, 2, 3, 1).unflatten(3, transform.half_size)
        if axis == len(size) - 1:
            cells = transform.back(cells)
        else:
            cells = torch.fft.ifftn(cells, dim=tuple(range(3, 4 + axis)))
        apart = steps_between(self._frame, self.cells, size[axis]).to(cells.device)
        found = {}
        for steps in product(*map(self._steps, range(axis))):
            kernel = cells
            for step, length in zip(steps, size, strict=False):
                kernel = kernel.select(3, -step % length)
            kernel = kernel.reshape(*kernel.shape[:4], -1)[:, :, :, apart].permute(0, 5, 1, 3, 2, 4)
            found[steps] = kernel.flatten(4).flatten(2, 3).flatten(0, 1).contiguous()
        return found

    def to_frames(self, kernels: Kernels, values: Tensor) -> Tensor:
        """Multiply (n, size, k) by B."""
        *before, channels, cells = self.shape
        on_strip = values.unflatten(1, (*before, channels * cells))
        *before, channels, cells = self._other_shape
        seen = values.new_zeros(len(values), *before, channels * cells, values.shape[2])
        for steps, kernel in kernels.items():
            to, of = self._apart(steps)
            seen[to] += _spread(kernel, self.axis) @ on_strip[of]
        own, other = values[:, self._own_frame], seen.flatten(1, -2)[:, self._other_frame]
        return torch.cat([own, other], dim=1)

    def from_frames(self, kernels: Kernels, values: Tensor) -> Tensor:
        """Multiply (n, rows of B, k) by B'."""
        own, other = values.tensor_split((self.n_own,), dim=1)
        *before, channels, cells = self._other_shape
        seen = values.new_zeros(len(values), prod(self._other_shape), values.shape[2])
        seen[:, self._other_frame] = other
        seen = seen.unflatten(1, (*before, channels * cells))
        found = values.new_zeros(len(values), self.size, values.shape[2])
        found[:, self._own_frame] = own
        *before, channels, cells = self.shape
        on_strip = found.unflatten(1, (*before, channels * cells))
        for steps, kernel in kernels.items():
            to, of = self._apart(steps)
            on_strip[of] += _spread(kernel.mH, self.axis) @ seen[to]
        return found

    def _steps(self, axis: int) -> range:
        """Return the steps along an axis before, from the other array to the own one."""
        first, last = self._reach[axis]
        to, of = self.other.region.box[axis], self.own.region.box[axis]
        return range(max(first, 1 - to), min(last, of - 1) + 1)

    def _apart(self, steps: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Return the other side's cells along the axes before, and the own ones so far off."""
        to, of = [slice(None)], [slice(None)]
        lengths = zip(steps, self.other.region.box, self.own.region.box, strict=False)
        for step, n_to, n_of in lengths:
            first, last = max(0, -step), min(n_to, n_of - step)
            to.append(slice(first, last))
            of.append(slice(first + step, last + step))
        return tuple(to), tuple(of)


def _spread(kernel: Tensor, n_axes: int) -> Tensor:
    """Repeat (n, a, b) along the axes that stand between."""
    return kernel[(slice(None), *[None] * n_axes)]
