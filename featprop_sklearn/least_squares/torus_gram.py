"""(AA' + λ²)⁻¹ and (A'A + λ²)⁻¹ of a convolution, exactly, by transforms and a frame.

On the torus (:class:`TorusEmbedding`) a convolution is one small matrix K per frequency. What
the torus adds to the true problem lies on its frame: what stands there on the side of the Gram
matrix is free, and multipliers keep it at zero on the other side. The optimality conditions are
one real symmetric system of the size of the perimeter, factorised once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featprop_sklearn.least_squares.quasi_definite import QuasiDefinite
from featprop_sklearn.least_squares.spectral_product import SpectralProduct
from featprop_sklearn.least_squares.torus_embedding import TorusEmbedding
from featprop_sklearn.least_squares.torus_regions import Region, Slab

__all__ = ["TorusGram"]

#: complex numbers worked on at a time: what fits into a cache
CHUNK = 1 << 17
#: complex numbers kept for a batch while its frames are solved together
BATCH = 1 << 22


class TorusGram:
    """The inverse of AA' + λ²I, or of A'A + λ²I.

    With M the symbol from the *other* side to the Gram matrix's *own* (K where that is the
    outputs', else K'), P = (MM' + λ²)⁻¹ and r what is to be solved for, the solution on the
    torus is z = P(r + a) + PM b, with a and b on the frames of the two sides such that z is
    zero on the own frame, and M'z = b on the other one.

    Parameters
    ----------
    torus : TorusEmbedding
        Of A.
    squared_damping : float
        λ²; large enough that P exists at each frequency.
    of_outputs : bool
        Whether AA' is meant, else A'A.

    Attributes
    ----------
    regular : bool
        Whether the system of the frame could be factorised; if not, there is no inverse.
    """

    def __init__(self, torus: TorusEmbedding, squared_damping: float, *, of_outputs: bool) -> None:
        self.torus = torus
        K = torus.symbol
        M = K if of_outputs else K.mH
        regions = (torus.outputs, torus.inputs)
        self.own, self.other = regions if of_outputs else regions[::-1]
        eye = torch.eye(M.shape[-2], dtype=M.dtype, device=M.device)
        P = torch.linalg.inv(M @ M.mH + squared_damping * eye)
        MP = M.mH @ P
        MPM = MP @ M
        #: from the own side, and from the other one, to both
        sides = (torch.cat([P, MP], dim=2), torch.cat([MP.mH, MPM], dim=2))
        self._to_both = [SpectralProduct(side) for side in sides]
        self._from_both = [SpectralProduct(side.mH) for side in sides]
        self._own_channels = P.shape[2]
        self._n_own = torus.frame_of(self.own)
        self._frame = self._factorise(P, MP, MPM)
        self.regular = self._frame.regular

    def solve(self, values: Tensor, *, from_other: bool = False, to_other: bool = False) -> Tensor:
        """Multiply by the inverse; before that by A' or A, or after it, if asked.

        Parameters
        ----------
        values : Tensor of shape (n_samples, groups, channels, *size), float64
            Outputs of A where the inverse is that of AA', else inputs; the other way round
            with ``from_other``.
        from_other, to_other : bool
            Whether the values are, or the answer shall be, on the other side of A.

        Returns
        -------
        Tensor of shape (n_samples, groups, channels, *size)
        """
        given = self.other if from_other else self.own
        wanted = self.other if to_other else self.own
        n, transform, found = self._own_channels, self.torus.transform, []
        kept = slice(n, None) if to_other else slice(n)
        n_frequencies, n_channels = self.torus.symbol[..., 0, 0].numel(), sum(self.torus.channels)
        per_batch = BATCH // (n_frequencies * len(range(n_channels)[kept]))
        per_part = CHUNK // (n_frequencies * n_channels)
        for batch in values.split(max(1, per_batch)):
            spectra, frames = [], []
            for part in batch.split(max(1, per_part)):
                both = self._to_both[from_other](transform.transform(given.lay(part)))
                spectra.append(both[:, :, kept].clone())
                frames.append(self._frames(both))
            # its right-hand side is what r alone gives on the frames, with the other sign
            unknowns = self._frame.solve(-torch.cat(frames).permute(1, 2, 0)).permute(2, 0, 1)
            for spectrum, part in zip(spectra, unknowns.split([*map(len, spectra)]), strict=True):
                spectrum += self._from_both[to_other](self._spectra(part))
                found.append(wanted.cut(transform.back(spectrum)))
        return torch.cat(found)

    def _frames(self, both: Tensor) -> Tensor:
        """Transform the spectra of both sides back to their frames, the own one first."""
        frame, n = self.torus.transform.frame, self._own_channels
        if self._aligned:
            slabs = frame(self.own, both)
            parts = [slab[:, :, :n] for slab in slabs] + [slab[:, :, n:] for slab in slabs]
        else:
            parts = frame(self.own, both[:, :, :n]) + frame(self.other, both[:, :, n:])
        empty = both.real.new_empty(*both.shape[:2], 0)
        return torch.cat([empty, *(part.flatten(2) for part in parts)], dim=2)

    def _spectra(self, frames: Tensor) -> Tensor:
        """Transform toruses that are empty but for their frames, both sides."""
        torus, (n_samples, groups, _) = self.torus, frames.shape
        sides = (self.own, self.other)
        parts = frames.tensor_split((self._n_own,), dim=2)
        shapes = [(n_samples, groups, torus.channels_of(side)) for side in sides]
        slabs = [_by_slab(*side) for side in zip(sides, parts, shapes, strict=True)]
        if self._aligned:
            joined = [torch.cat(pair, dim=2) for pair in zip(*slabs, strict=True)]
            shape = (n_samples, groups, shapes[0][2] + shapes[1][2])
            return torus.transform.spectrum(self.own, joined, shape)
        spectra = map(torus.transform.spectrum, sides, slabs, shapes)
        return torch.cat([*spectra], dim=2)

    @property
    def _aligned(self) -> bool:
        """Whether the two frames are the same cells."""
        return bool(self.own.slabs) and self.own.slabs == self.other.slabs

    def _factorise(self, P: Tensor, MP: Tensor, MPM: Tensor) -> QuasiDefinite:
        """Factorise [[P, PM], [M'P, M'PM − I]] between the cells of the two frames."""
        n, total = self._n_own, self.torus.frame_size
        system = torch.empty(len(P), total, total, dtype=torch.float64, device=P.device)
        self._fill(system[:, :n, :n], P, self.own, self.own)
        self._fill(system[:, n:, :n], MP, self.other, self.own)
        self._fill(system[:, n:, n:], MPM, self.other, self.other)
        system[:, n:, n:].diagonal(dim1=1, dim2=2).sub_(1.0)
        return QuasiDefinite(system, n)

    def _fill(self, entries: Tensor, symbol: Tensor, rows: Region, columns: Region) -> None:
        """Put in place what a wrapping convolution does between the frames of two regions."""
        torus = self.torus
        spectra = symbol.permute(0, 2, 3, 1).unflatten(3, torus.transform.half_size)
        kernels = torus.transform.back(spectra)
        top = 0
        for row in rows.slabs:
            left, bottom = 0, top + torus.channels_of(rows) * row.n_cells
            for column in columns.slabs:
                right = left + torus.channels_of(columns) * column.n_cells
                between = kernels[:, row.phase :: rows.n_phases, column.phase :: columns.n_phases]
                entries[:, top:bottom, left:right] = self._block(between, row, column)
                left = right
            top = bottom

    def _block(self, kernels: Tensor, row: Slab, column: Slab) -> Tensor:
        """Return what the cells of one slab (columns) mean to those of another (rows)."""
        size = self.torus.transform.size
        dims = len(size)
        steps = []
        for axis, n in enumerate(size):
            to, of = (torch.tensor(list(slab.cells[axis])) for slab in (row, column))
            shape = [1] * (2 * dims)
            shape[axis], shape[dims + axis] = len(to), len(of)
            steps.append(((to[:, None] - of) % n).reshape(shape).to(kernels.device))
        groups, a, b = kernels.shape[:3]
        block = kernels[(..., *steps)]  # type: ignore[index]
        block = block.reshape(groups, a, b, row.n_cells, column.n_cells)
        return block.transpose(2, 3).reshape(groups, a * row.n_cells, b * column.n_cells)


def _by_slab(region: Region, frame: Tensor, shape: tuple[int, int, int]) -> list[Tensor]:
    """Split what stands on a frame, (n_samples, groups, channels · cells), into its slabs."""
    pieces = frame.split([shape[2] * slab.n_cells for slab in region.slabs], dim=2)
    return [
        piece.reshape(*shape, *slab.shape) for slab, piece in zip(region.slabs, pieces, strict=True)
    ]
