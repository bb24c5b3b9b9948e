"""Where an array lies on a torus, and the frame of cells around it, as slabs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
import torch
from torch import Tensor

__all__ = ["Region", "Slab", "steps_between"]


@dataclass(frozen=True)
class Slab:
    """A box of cells outside of an array, thin along one axis.

    Attributes
    ----------
    phase : int
        Which of the interleaved toruses it lies on.
    axis : int
        Along which these cells follow on the array: they are as long as the array along the
        axes before it, and go all the way round along those after it.
    cells : tuple of range
        By axis.
    """

    phase: int
    axis: int
    cells: tuple[range, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of cells by axis."""
        return tuple(map(len, self.cells))

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return prod(self.shape)


class Region:
    """The cells of a torus that an array fills from the first one on, the same for all channels.

    Parameters
    ----------
    size : sequence of int
        Of the torus.
    length : sequence of int
        Of the array, by axis.
    stride : sequence of int
        Entries to a cell of the torus: the array is dealt out to as many interleaved toruses,
        its *phases*.

    Attributes
    ----------
    n_phases : int
        Product of the strides.
    filled : list of tuple of int
        By phase, the number of cells that are filled along each axis.
    slabs : list of Slab
        The frame: all cells that the array leaves free, each in one slab.
    frame_size : int
        Number of these cells.
    """

    def __init__(self, size: Sequence[int], length: Sequence[int], stride: Sequence[int]) -> None:
        self.size, self.length = tuple(size), tuple(length)
        self.n_phases = prod(stride)
        #: by phase: the cells that are filled, and the entries that fill them
        self._dealt: list[tuple[tuple[slice, ...], tuple[slice, ...]]] = []
        for phases in product(*map(range, stride)):
            entries = [slice(phase, None, s) for phase, s in zip(phases, stride, strict=True)]
            filled = [len(range(n)[part]) for n, part in zip(length, entries, strict=True)]
            self._dealt.append((tuple(map(slice, filled)), tuple(entries)))
        self.filled = [tuple(part.stop for part in cells) for cells, _ in self._dealt]
        self.slabs = [slab for phase in range(self.n_phases) for slab in self._around(phase)]
        self.frame_size = sum(slab.n_cells for slab in self.slabs)

    def lay(self, values: Tensor) -> Tensor:
        """Deal values (..., channels, *length) out to toruses (..., channels · phases, *size).

        A single phase is left as it is: shorter than the torus, and zero beyond.
        """
        if self.n_phases == 1:
            return values
        *outer, channels = values.shape[: -len(self.size)]
        torus = values.new_zeros(*outer, channels, self.n_phases, *self.size)
        for phase, (cells, entries) in enumerate(self._dealt):
            torus[(..., phase, *cells)] = values[(..., *entries)]  # type: ignore[index]
        return torus.reshape(*outer, channels * self.n_phases, *self.size)

    def cut(self, torus: Tensor) -> Tensor:
        """Take the array (..., channels, *length) from toruses (..., channels · phases, *size)."""
        if self.n_phases == 1:
            return torus[(..., *self._dealt[0][0])]  # type: ignore[index]
        *outer, phased = torus.shape[: -len(self.size)]
        torus = torus.reshape(*outer, phased // self.n_phases, self.n_phases, *self.size)
        values = torus.new_empty(*outer, phased // self.n_phases, *self.length)
        for phase, (cells, entries) in enumerate(self._dealt):
            values[(..., *entries)] = torus[(..., phase, *cells)]  # type: ignore[index]
        return values

    @property
    def box(self) -> tuple[int, ...]:
        """The most cells that any phase fills along each axis."""
        return tuple(map(max, zip(*self.filled, strict=True)))

    def _around(self, phase: int) -> list[Slab]:
        own, slabs = [range(part.stop) for part in self._dealt[phase][0]], []
        for axis, (cells, length) in enumerate(zip(own, self.size, strict=True)):
            beyond = [range(n) for n in self.size[axis + 1 :]]
            slabs.append(Slab(phase, axis, (*own[:axis], range(len(cells), length), *beyond)))
        return [slab for slab in slabs if slab.n_cells]


def steps_between(to: Sequence[int], of: Sequence[int], length: int) -> Tensor:
    """Return the steps to each of some cells from each of others, once round at most."""
    steps = np.array(to, dtype=np.int64)[:, None] - np.array(of, dtype=np.int64)
    return torch.from_numpy(steps % length)
