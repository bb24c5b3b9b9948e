"""A torus on which one more axis ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

import torch
from torch import Tensor

from featprop_sklearn.least_squares.quasi_definite import quasi_definite_inverse
from featprop_sklearn.least_squares.torus_regions import steps_between
from featprop_sklearn.least_squares.torus_strips import Kernels, Strip
from featprop_sklearn.least_squares.torus_transform import TorusTransform, waves

__all__ = ["AxisEnd"]

#: complex numbers of an inverse written out at a time
CHUNK = 1 << 20

#: for a slice of the last frequencies, (groups, *frequencies, n, n): see :meth:`AxisEnd.inverse`
Inverse = Callable[[slice], Tensor]


class AxisEnd:
    """What is to be added to a right-hand side so that an axis ends that would go round.

    Γ is the inverse of a Gram matrix on the torus whose axes before this one end already. Beyond
    the array of the own side the solution has to be zero, and beyond that of the other side
    M'z does not count. With B of the strip around the end (:class:`Strip`), and J the identity
    between cells of the other frame, Γ(r + c) is the solution for

        c = G (Γ r),  G = −B'(B Γ B' − J)⁻¹B,

    where Γ r and Γ are those of the strip.

    Parameters
    ----------
    strip : Strip
        Around the end. Where it is empty, as where both arrays fill the torus, nothing is to be
        corrected.
    transform : TorusTransform
        Of the torus.
    symbol : complex Tensor of shape (groups, n_frequencies, other channels, own channels)
        M'.
    inverse : callable
        Γ, by the frequencies of the axes from this one on.

    Raises
    ------
    torch.linalg.LinAlgError
        If B Γ B' − J is singular.
    """

    def __init__(
        self, strip: Strip, transform: TorusTransform, symbol: Tensor, inverse: Inverse
    ) -> None:
        self.strip, self.transform = strip, transform
        self._inverse = inverse
        self._groups = len(symbol)
        self._dims = len(transform.size)
        self._is_last = strip.axis == self._dims - 1
        self._before = tuple(range(-self._dims, strip.axis - self._dims))
        self._array = range(strip.own.region.box[strip.axis])
        self._later = transform.half_size[strip.axis + 1 :]
        if not strip.size:
            return
        self._forth, self._back = waves(transform, strip.axis, strip.cells)
        on_strip = self._of_the_end() if self._is_last else self._of_each_frequency()
        #: G', for rows: (groups · frequencies after, size, size)
        self._gain = self._correction(on_strip, strip.kernels(symbol, transform))

    def read(self, spectrum: Tensor) -> Tensor:
        """Take spectra (n_samples, groups, channels, *half_size) to the strip.

        Returns
        -------
        Tensor of shape (groups · frequencies after, n_samples, size)
        """
        axis = self.strip.axis - self._dims
        if self._is_last:
            # transposed: a product with a wide matrix takes half as long as that with a tall one
            values = self._back.mT @ spectrum.reshape(-1, spectrum.shape[-1]).mT
            values = values.reshape(-1, *spectrum.shape[:-1]).movedim(0, -1)
        else:
            values = _along(self._back.mT, spectrum, axis)
        if self._before:
            values = torch.fft.ifftn(values, dim=self._before)
            values = values[(..., *map(slice, self.strip.shape[:-2]), *[slice(None)] * -axis)]
        if self._is_last:
            values = values.real
        # from (n, groups, channels, *before, cells, *after)
        n_before = len(self._before)
        order = (1, *range(4 + n_before, values.ndim), 0, *range(3, 3 + n_before), 2, 3 + n_before)
        count = self._groups * prod(self._later)
        return values.permute(order).reshape(count, len(spectrum), -1).contiguous()

    def correct(self, on_strip: Tensor) -> Tensor:
        """Multiply (groups · frequencies after, n_samples, size) by G."""
        return on_strip @ self._gain

    def lift(self, on_strip: Tensor) -> Tensor:
        """Transform a torus that is empty but for its strip; the inverse of :meth:`read`."""
        *before, channels, cells = self.strip.shape
        after, n_before = self._later, len(before)
        shape = (self._groups, *after, on_strip.shape[1], *before, channels, cells)
        values, n_after = on_strip.reshape(shape), len(after)
        first = 2 + n_after
        order = (n_after + 1, 0, first + n_before, *range(first, first + n_before))
        values = values.permute(*order, first + n_before + 1, *range(1, 1 + n_after))
        if self._before:
            lengths = self.transform.half_size[:n_before]
            values = torch.fft.fftn(values, s=lengths, dim=self._before)
        if self._is_last:
            return values.to(self._forth.dtype) @ self._forth.mT
        return _along(self._forth, values, self.strip.axis - self._dims)

    def inverse(self, part: slice) -> Tensor:
        """Write out the inverse on the torus on which this axis ends, too.

        Parameters
        ----------
        part : slice
            Of the frequencies of the last axis, which must come after this one.

        Returns
        -------
        Tensor of shape (groups, *frequencies of the axes after, n, n)
            Between (*box, channels), along the axes up to this one.
        """
        rows = self._wrapping(part)
        found = self._between(rows, to_strip=False, of_strip=False)
        if self.strip.size:
            aside = self._between(rows, to_strip=False, of_strip=True)
            gain = self._gain.mT.unflatten(0, (self._groups, *self._later))[..., part, :, :]
            found += aside @ gain.flatten(1, -3) @ aside.mH
        return found.unflatten(1, (*self._later[:-1], -1))

    def _of_each_frequency(self) -> Tensor:
        """Γ from the strip to itself, for each frequency of the axes after."""
        size = self.strip.size**2 * prod(self._later[:-1]) * self._groups
        parts = []
        for part in parts_of(self._later[-1], size):
            found = self._between(self._wrapping(part), to_strip=True, of_strip=True)
            parts.append(found.unflatten(1, (*self._later[:-1], -1)))
        return torch.cat(parts, dim=-3).flatten(0, -3)

    def _of_the_end(self) -> Tensor:
        """Γ from the strip to itself, where no axis is left."""
        *before, channels, cells = self.strip.shape
        size = prod(before) * channels
        apart = [*range(cells), *range(1 - cells, 0)]
        back = waves(self.transform, self.strip.axis, apart)[1]
        shape = len(apart), self._groups * size**2
        found = torch.zeros(shape, dtype=torch.float64, device=self.transform.device)
        for part in parts_of(self.transform.half_size[-1], self._groups * size**2):
            wave, rows = back[part].mT, self._inverse(part).movedim(-3, 0).flatten(1)
            found.addmm_(wave.real, rows.real).addmm_(wave.imag, rows.imag, alpha=-1)
        rows = found.unflatten(1, (self._groups, 1, size, size)).movedim(0, 1)
        return self._between(rows, to_strip=True, of_strip=True).flatten(0, 1)

    def _wrapping(self, part: slice) -> Tensor:
        """Γ by the way from cell to cell of this axis: (groups, length, frequencies, n, n)."""
        rows = self._inverse(part)
        return torch.fft.ifft(rows.flatten(2, -3), dim=1)

    def _between(self, rows: Tensor, *, to_strip: bool, of_strip: bool) -> Tensor:
        """Write out what depends on the way from cell to cell: (groups, frequencies, n, n).

        Its rows and its columns are those of the strip or those of the array.
        """
        to, of = (self.strip.cells if strip else self._array for strip in (to_strip, of_strip))
        apart = steps_between(to, of, rows.shape[1]).to(rows.device)
        channels = self.strip.own.channels
        shaped = rows[:, apart].unflatten(5, (-1, channels)).unflatten(4, (-1, channels))
        # from (groups, to, of, frequencies, before, channels, before, channels)
        row = (4, 5, 1) if to_strip else (4, 1, 5)
        column = (6, 7, 2) if of_strip else (6, 2, 7)
        return shaped.permute(0, 3, *row, *column).flatten(5).flatten(2, 4)

    def _correction(self, on_strip: Tensor, kernels: Kernels) -> Tensor:
        """Return G'."""
        strip = self.strip
        seen = strip.to_frames(kernels, on_strip).mH.contiguous()
        system = strip.to_frames(kernels, seen)
        system[:, strip.n_own :, strip.n_own :].diagonal(dim1=1, dim2=2).sub_(1.0)
        inverse = quasi_definite_inverse(system, strip.n_own)
        half = strip.from_frames(kernels, inverse).mH.contiguous()
        gain = strip.from_frames(kernels, half)
        return gain.add_(gain.mH.clone()).mul_(-0.5).mT.contiguous()


def parts_of(n_frequencies: int, size: int) -> Iterator[slice]:
    """Part frequencies, so many numbers each, so that a part fits into memory."""
    step = max(1, CHUNK // max(size, 1))
    return (slice(first, first + step) for first in range(0, n_frequencies, step))


def _along(matrix: Tensor, values: Tensor, axis: int) -> Tensor:
    """Multiply by a matrix along an axis, not the last one."""
    values = values.movedim(axis, -2)
    # for each of many, lest the product transposes the many first
    matrix = matrix.expand(*values.shape[:-2], *matrix.shape)
    return (matrix @ values).movedim(-2, axis)
