"""Real Fourier transforms of a torus, and of a few slabs of its cells alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import pi

import torch
from torch import Tensor

from featprop_sklearn.least_squares.torus_regions import Region, Slab

__all__ = ["TorusTransform"]


class TorusTransform:
    """Between cells (..., *size) and half of their frequencies (..., *half_size).

    A frame is thin: along the axis where its slabs are, a handful of waves stands for the
    transform.

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
        self._last = len(self.size) - 1
        self._waves: dict[tuple[int, range], tuple[Tensor, Tensor]] = {}

    def transform(self, cells: Tensor) -> Tensor:
        """Transform cells to frequencies."""
        return torch.fft.rfftn(cells, dim=self._axes(range(len(self.size))))

    def back(self, frequencies: Tensor) -> Tensor:
        """Transform frequencies to cells."""
        return torch.fft.irfftn(frequencies, s=self.size, dim=self._axes(range(len(self.size))))

    def frame(self, region: Region, spectrum: Tensor) -> list[Tensor]:
        """Transform back to the frame of a region alone.

        Parameters
        ----------
        region : Region
            Whose frame.
        spectrum : complex Tensor of shape (n_samples, groups, channels · phases, *half_size)
            Frequencies.

        Returns
        -------
        list of Tensor of shape (n_samples, groups, channels, *slab.shape)
            By slab.
        """
        return [
            self._back_on(slab, spectrum[:, :, slab.phase :: region.n_phases])
            for slab in region.slabs
        ]

    def spectrum(self, region: Region, frame: list[Tensor], outer: Sequence[int]) -> Tensor:
        """Transform a torus that is empty but for the frame of a region.

        Parameters
        ----------
        region : Region
            Whose frame.
        frame : list of Tensor of shape (n_samples, groups, channels, *slab.shape)
            Values there, by slab.
        outer : tuple (n_samples, groups, channels)
            Their shape without the torus.

        Returns
        -------
        complex Tensor of shape (n_samples, groups, channels · phases, *half_size)
        """
        by_phase: list[Tensor | None] = [None] * region.n_phases
        for slab, values in zip(region.slabs, frame, strict=True):
            found, present = self._transform_on(slab, values), by_phase[slab.phase]
            by_phase[slab.phase] = found if present is None else present.add_(found)
        empty = torch.zeros((), dtype=torch.complex128, device=self.device)
        empty = empty.expand(*outer, *self.half_size)
        phases = [empty if found is None else found for found in by_phase]
        return phases[0] if len(phases) == 1 else torch.stack(phases, dim=3).flatten(2, 3)

    def _back_on(self, slab: Slab, frequencies: Tensor) -> Tensor:
        (_, waves), axis, others = self._waves_of(slab), slab.axis, self._others(slab)
        if axis == self._last:
            values = frequencies @ waves
            values = (torch.fft.ifftn(values, dim=others) if others else values).real
        else:
            moved = frequencies.movedim(axis - self._last - 1, -2)
            values = (waves.mT @ moved).movedim(-2, axis - self._last - 1)
            lengths = [self.size[other] for other in others]
            values = torch.fft.irfftn(values, s=lengths, dim=others)
        inside = [slice(cells.start, cells.stop) for cells in slab.cells[:axis]]
        beyond = [slice(None)] * (self._last + 1 - axis)
        return values[(..., *inside, *beyond)]  # type: ignore[index]

    def _transform_on(self, slab: Slab, values: Tensor) -> Tensor:
        (waves, _), axis, others = self._waves_of(slab), slab.axis, self._others(slab)
        pads = [
            (cells.start, n - cells.stop) if before < axis else (0, 0)
            for before, (cells, n) in enumerate(zip(slab.cells, self.size, strict=True))
        ]
        flat_pads = [pad for pair in reversed(pads) for pad in pair]
        if any(flat_pads):
            values = torch.nn.functional.pad(values, flat_pads)
        if axis == self._last:
            found = torch.fft.fftn(values, dim=others) if others else values.to(waves.dtype)
            return found @ waves.mT
        found = torch.fft.rfftn(values, dim=others)
        moved = found.movedim(axis - self._last - 1, -2)
        return (waves @ moved).movedim(-2, axis - self._last - 1)

    def _waves_of(self, slab: Slab) -> tuple[Tensor, Tensor]:
        """Return exp(∓2πi ωj/T) along the axis of a slab, forth and back, frequencies by cells."""
        key = slab.axis, slab.cells[slab.axis]
        if key not in self._waves:
            length, n_frequencies = self.size[slab.axis], self.half_size[slab.axis]
            frequencies = torch.arange(n_frequencies)
            turns = frequencies[:, None] * torch.tensor(list(key[1])) % length
            angle = turns.to(torch.float64) * (-2 * pi / length)
            forth = torch.polar(torch.ones_like(angle), angle)
            weights = torch.full((n_frequencies, 1), 1 / length, dtype=torch.float64)
            if slab.axis == self._last:
                # half of the frequencies stand for all: those without a partner count once
                weights[2 * frequencies % length != 0] *= 2
            back = forth.conj().resolve_conj() * weights
            self._waves[key] = forth.to(self.device), back.to(self.device)
        return self._waves[key]

    def _others(self, slab: Slab) -> tuple[int, ...]:
        return self._axes(axis for axis in range(len(self.size)) if axis != slab.axis)

    def _axes(self, axes: Iterable[int]) -> tuple[int, ...]:
        """Count axes from the end, where the torus lies."""
        return tuple(axis - len(self.size) for axis in axes)
