"""Real Fourier transforms of a torus, and of the frame around a region alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featprop_sklearn.least_squares.torus_regions import Region, Slab

__all__ = ["FrameTransform", "TorusTransform", "waves"]


class TorusTransform:
    """Between cells (..., *size) and half of their frequencies (..., *half_size).

    Parameters
    ----------
    size : sequence of int
        Of the torus.
    device : torch.device
        Where it is.
    """

    def __init__(self, size: Sequence[int], device: torch.device) -> None:
        self.size = tuple(size)
        self.half_size = (*self.size[:-1], self.size[-1] // 2 + 1)
        self.device = device
        self._axes = tuple(range(-len(self.size), 0))

    def transform(self, cells: Tensor) -> Tensor:
        """Transform cells to frequencies; those beyond the given ones are zero."""
        return torch.fft.rfftn(cells, s=self.size, dim=self._axes)

    def back(self, frequencies: Tensor) -> Tensor:
        """Transform frequencies to cells."""
        return torch.fft.irfftn(frequencies, s=self.size, dim=self._axes)


class FrameTransform:
    """Between the cells of a frame (..., channels, frame_size) and frequencies.

    A frame is thin: along the axis where its slabs are, a handful of waves stands for the
    transform.

    Parameters
    ----------
    torus : TorusTransform
        Of the torus as a whole.
    region : Region
        That the frame surrounds.
    """

    def __init__(self, torus: TorusTransform, region: Region) -> None:
        self.torus = torus
        self.n_phases = region.n_phases
        self._slabs = [_SlabTransform(torus, slab) for slab in region.slabs]
        self._n_cells = [slab.n_cells for slab in region.slabs]

    def back(self, spectrum: Tensor) -> Tensor:
        """Transform (..., channels · phases, *half_size) back to the cells of the frame alone."""
        by_phase = self._by_phase(spectrum)
        dims = len(self.torus.size)
        parts = [slab.back(by_phase[slab.phase]).flatten(-dims) for slab in self._slabs]
        if not parts:
            return spectrum.real.new_empty(*by_phase[0].shape[:-dims], 0)
        return torch.cat(parts, dim=-1)

    def transform(self, frame: Tensor) -> Tensor:
        """Transform a torus that is empty but for its frame, (..., channels · phases, *half)."""
        by_phase: list[Tensor | None] = [None] * self.n_phases
        for slab, values in zip(self._slabs, frame.split(self._n_cells, dim=-1), strict=True):
            found, present = slab.transform(values), by_phase[slab.phase]
            by_phase[slab.phase] = found if present is None else present.add_(found)
        half_size, axis = self.torus.half_size, frame.ndim - 1
        empty = torch.zeros((), dtype=torch.complex128, device=frame.device)
        empty = empty.expand(*frame.shape[:-1], *half_size)
        phases = [empty if found is None else found for found in by_phase]
        return phases[0] if len(phases) == 1 else torch.stack(phases, axis).flatten(axis - 1, axis)

    def _by_phase(self, spectrum: Tensor) -> Sequence[Tensor]:
        if self.n_phases == 1:
            return [spectrum]
        axis = -len(self.torus.size) - 1
        return spectrum.unflatten(axis, (-1, self.n_phases)).unbind(axis)


class _SlabTransform:
    """Between the cells of one slab and the frequencies of a torus that is empty elsewhere."""

    def __init__(self, torus: TorusTransform, slab: Slab) -> None:
        dims = len(torus.size)
        self.phase, self.shape = slab.phase, slab.shape
        self._is_last = slab.axis == dims - 1
        self._axis = slab.axis - dims
        self._others = tuple(axis - dims for axis in range(dims) if axis != slab.axis)
        self._lengths = tuple(torus.size[axis] for axis in self._others)
        inside = (slice(len(cells)) for cells in slab.cells[: slab.axis])
        self._cells: tuple[Any, ...] = (..., *inside, *[slice(None)] * (dims - slab.axis))
        self._forth, self._back = waves(torus, slab.axis, slab.cells[slab.axis])

    def back(self, frequencies: Tensor) -> Tensor:
        """Transform (..., *half_size) to the cells (..., *shape)."""
        if self._is_last:
            values = frequencies @ self._back
            if self._others:
                values = torch.fft.ifftn(values, dim=self._others)
            values = values.real
        else:
            values = self._back.mT @ frequencies.movedim(self._axis, -2)
            values = values.movedim(-2, self._axis)
            values = torch.fft.irfftn(values, s=self._lengths, dim=self._others)
        return values[self._cells]

    def transform(self, cells: Tensor) -> Tensor:
        """Transform cells (..., n_cells) to (..., *half_size)."""
        cells = cells.unflatten(-1, self.shape)
        if not self._is_last:
            found = torch.fft.rfftn(cells, s=self._lengths, dim=self._others)
            return (self._forth @ found.movedim(self._axis, -2)).movedim(-2, self._axis)
        if self._others:
            return torch.fft.fftn(cells, s=self._lengths, dim=self._others) @ self._forth.mT
        return cells.to(self._forth.dtype) @ self._forth.mT


def waves(transform: TorusTransform, axis: int, cells: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return exp(∓2πi ωj/T) for a few cells j of an axis, forth and back, frequencies by cells.

    Along the last axis, of which half of the frequencies are kept, the real part of what comes
    back counts.
    """
    length, n_frequencies = transform.size[axis], transform.half_size[axis]
    frequencies = np.arange(n_frequencies)
    turns = frequencies[:, None] * np.array(cells, dtype=np.int64) % length
    forth = np.exp(-2j * np.pi / length * turns)
    weights = np.full(n_frequencies, 1 / length)
    if axis == len(transform.size) - 1:
        # half of the frequencies stand for all: those without a partner count once
        weights[2 * frequencies % length != 0] *= 2
    back = forth.conj() * weights[:, None]
    return torch.from_numpy(forth).to(transform.device), torch.from_numpy(back).to(transform.device)
