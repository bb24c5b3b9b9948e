"""(AA' + λ²)⁻¹ and (A'A + λ²)⁻¹ of a convolution, exactly, by transforms and a frame.

On the torus (:class:`TorusEmbedding`) a convolution is one small matrix K per frequency. What
the torus adds to the true problem lies on its frame: outputs that do not exist, whose values g
are free, and cells around the input, which multipliers h keep at zero. The optimality
conditions are one real system for g and h, of the size of the perimeter, factorised once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featprop_sklearn.least_squares.torus_embedding import Places, TorusEmbedding

__all__ = ["TorusGram", "times"]

#: products of channels up to which channels are multiplied one by one, without a transposition
FEW_PRODUCTS = 64
#: complex numbers worked on at a time: what fits into a cache
CHUNK = 1 << 18


class TorusGram:
    """The inverse of AA' + λ²I, or of A'A + λ²I.

    Parameters
    ----------
    torus : TorusEmbedding
        Of A.
    squared_damping : float
        λ²; large enough that KK' + λ², or K'K + λ², is regular at each frequency.
    of_outputs : bool
        Whether AA' is meant, else A'A.
    """

    def __init__(self, torus: TorusEmbedding, squared_damping: float, *, of_outputs: bool) -> None:
        self.torus = torus
        self.of_outputs = of_outputs
        K = torus.symbol
        eye_out = torch.eye(K.shape[-2], dtype=K.dtype, device=K.device)
        eye_in = torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)
        if of_outputs:
            self.inverse = torch.linalg.inv(K @ K.mH + squared_damping * eye_out)
            self.mixed = self.inverse @ K  # out × in
            outer, inner = self.inverse, eye_in - K.mH @ self.mixed
        else:
            self.inverse = torch.linalg.inv(K.mH @ K + squared_damping * eye_in)
            self.mixed = K @ self.inverse
            outer, inner = eye_out - self.mixed @ K.mH, self.inverse
        self.frame = self._factorise(outer, inner)

    def solve(self, values: Tensor, *, from_other: bool = False, to_other: bool = False) -> Tensor:
        """Multiply by the inverse; before that by A' or A, or after it, if asked.

        Parameters
        ----------
        values : Tensor of shape (n_samples, groups, channels, n), float64
            Outputs of A where the inverse is that of AA', else inputs; the other way round
            with ``from_other``.
        from_other, to_other : bool
            Whether the values are, or the answer shall be, on the other side of A.

        Returns
        -------
        Tensor of shape (n_samples, groups, channels, n)
        """
        numbers = self.torus.symbol.shape[1] * sum(self.torus.symbol.shape[-2:])
        rows = max(1, CHUNK // (numbers * self.torus.groups))
        return torch.cat([self._solve(part, from_other, to_other) for part in values.split(rows)])

    def _solve(self, values: Tensor, from_other: bool, to_other: bool) -> Tensor:
        torus = self.torus
        K, own, other = torus.symbol.mH, torus.outputs, torus.inputs
        if not self.of_outputs:
            K, own, other = torus.symbol, torus.inputs, torus.outputs
        across = self.mixed.mH if self.of_outputs else self.mixed
        # what lies outside of A's own cells is absorbed by g and h: no need to cut it off
        if from_other:
            found = times(K.mH, torus.frequencies(other.lay(values, other.order)))
        else:
            found = torus.frequencies(own.lay(values, own.order))
        direct = times(self.inverse, found)
        on_own = torus.cells(direct, self._phases(own))[..., own.free]
        on_other = torus.cells(times(across, found), self._phases(other))[..., other.free]
        shapes = on_own.shape, on_other.shape
        on_own, on_other = self._solve_frame(on_own.flatten(2), on_other.flatten(2))
        direct = direct + times(self.inverse, self._laid(own, on_own.reshape(shapes[0])))
        other_frame = self._laid(other, on_other.reshape(shapes[1]))
        if self.of_outputs:
            direct = direct - times(self.mixed, other_frame)
        else:
            direct = direct + times(self.mixed.mH, other_frame)
        if to_other:
            return torus.cells(times(K, direct), self._phases(other))[..., other.order]
        return torus.cells(direct, self._phases(own))[..., own.order]

    def _solve_frame(self, on_own: Tensor, on_other: Tensor) -> tuple[Tensor, Tensor]:
        """Find the free outputs and the multipliers, whichever of them are on A's own side."""
        pair = (-on_own, -on_other) if self.of_outputs else (on_other, -on_own)
        rhs = torch.cat(pair, dim=2)
        unknowns = torch.linalg.lu_solve(*self.frame, rhs.permute(1, 2, 0)).permute(2, 0, 1)
        g, h = unknowns.split([part.shape[2] for part in pair], dim=2)
        return (g, h) if self.of_outputs else (h, g)

    def _laid(self, places: Places, values: Tensor) -> Tensor:
        return self.torus.frequencies(places.lay(values, places.free))

    def _phases(self, places: Places) -> int:
        return self.torus.phases if places is self.torus.inputs else 1

    def _factorise(self, outer: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
        """Factorise [[Q·outer·Q', −Q·mixed·F], [F'·mixed'·Q', F'·inner·F]].

        Q takes the outputs that do not exist, F' the cells around the input.
        """
        torus = self.torus
        out, around = torus.outputs, torus.inputs
        qq = self._gather(outer, out, out)
        qf = self._gather(self.mixed, out, around)
        ff = self._gather(inner, around, around)
        system = torch.cat([torch.cat([qq, -qf], dim=2), torch.cat([qf.mT, ff], dim=2)], dim=1)
        factor, pivots, failed = torch.linalg.lu_factor_ex(system)
        self.regular = not bool(failed.any())
        return factor, pivots

    def _gather(self, symbol: Tensor, rows: Places, columns: Places) -> Tensor:
        """Return the entries of a wrapping convolution between cells outside of two arrays."""
        size = self.torus.size
        groups, _, a, b = symbol.shape
        kernels = torch.fft.irfftn(
            symbol.permute(0, 2, 3, 1).reshape(groups, a, b, *size[:-1], size[-1] // 2 + 1),
            s=size,
            dim=tuple(range(3, 3 + len(size))),
        ).flatten(3)
        row_channel, row_cell = self._coordinates(rows, a)
        column_channel, column_cell = self._coordinates(columns, b)
        difference = torch.zeros_like(row_cell[0][:, None] - column_cell[0])
        for axis, n in enumerate(size):
            step = (row_cell[axis][:, None] - column_cell[axis][None]) % n
            difference = difference * n + step
        return kernels[:, row_channel[:, None], column_channel[None], difference]

    def _coordinates(self, places: Places, n_channels: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Channel of the symbol (phases included), and position, of each unknown."""
        phases, size = self._phases(places), self.torus.size
        n_cells = places.n_cells // phases
        phase, cell = places.free // n_cells, places.free % n_cells
        channels = torch.arange(n_channels // phases, device=cell.device)
        channel = (channels[:, None] * phases + phase[None]).flatten()
        cell = cell.repeat(len(channels))
        return channel, torch.unravel_index(cell, size)


def times(matrices: Tensor, values: Tensor) -> Tensor:
    """Multiply (groups, n_frequencies, a, b) with (n_samples, groups, b, n_frequencies)."""
    _, _, a, b = matrices.shape
    if a * b > FEW_PRODUCTS:
        product = matrices @ values.permute(1, 3, 2, 0)
        return product.permute(3, 0, 2, 1)
    columns = matrices.permute(2, 3, 0, 1)
    rows = []
    for i in range(a):
        row = columns[i, 0] * values[:, :, 0]
        for j in range(1, b):
            row = row + columns[i, j] * values[:, :, j]
        rows.append(row)
    return torch.stack(rows, dim=2)
