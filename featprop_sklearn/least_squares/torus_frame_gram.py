"""(AA' + λ²)⁻¹ and (A'A + λ²)⁻¹ of a convolution of any condition, by transforms and a frame.

On the torus (:class:`TorusEmbedding`) a convolution is one small matrix K per frequency. What
the torus adds to the true problem lies on its frame: what stands there on the side of the Gram
matrix is free, and multipliers keep it at zero on the other side. The optimality conditions are
one real symmetric system of the size of the perimeter, factorised once. Rounding counts as
often as the Gram matrix is ill-conditioned, as with any factorisation of it; where it is
well-conditioned, :class:`StripGram` takes less.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from featprop_sklearn.least_squares.quasi_definite import QuasiDefinite
from featprop_sklearn.least_squares.spectral_product import SpectralProduct
from featprop_sklearn.least_squares.torus_embedding import TorusEmbedding
from featprop_sklearn.least_squares.torus_regions import Region, Slab, steps_between
from featprop_sklearn.least_squares.torus_transform import FrameTransform

__all__ = ["FrameGram"]

#: complex numbers worked on at a time: what fits into a cache
CHUNK = 1 << 17
#: complex numbers kept for a batch while its frames are solved together
BATCH = 1 << 22


class FrameGram:
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

    Raises
    ------
    torch.linalg.LinAlgError
        If the system of the frame, or a symbol, is singular.
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
        sides = (torch.cat([P, MP], dim=2), torch.cat([MP.mH, MPM], dim=2))
        #: from the own side, and from the other one, to both
        self._to_both = [SpectralProduct(side) for side in sides]
        #: the other way round; what the frames hold is found with the other sign
        self._from_both = [SpectralProduct(-side.mH) for side in sides]
        self._own_channels = P.shape[2]
        self._n_own = torus.frame_of(self.own)
        #: where the two frames are the same cells, one transform serves both
        self._aligned = (
            self.own.slabs == self.other.slabs and self.own.n_phases == self.other.n_phases
        )
        framed = (self.own,) if self._aligned else (self.own, self.other)
        self._frame_transforms = [FrameTransform(torus.transform, side) for side in framed]
        self._frame = self._factorise(P, MP, MPM)

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
        torus, transform = self.torus, self.torus.transform
        given = self.other if from_other else self.own
        wanted = self.other if to_other else self.own
        n = self._own_channels
        kept = slice(n, None) if to_other else slice(n)
        n_channels, n_frequencies = sum(torus.channels), prod(transform.half_size)
        per_batch = BATCH // (len(range(n_channels)[kept]) * n_frequencies) or 1
        per_part = CHUNK // (n_channels * n_frequencies) or 1
        found = values.new_empty(*values.shape[:2], torus.channels_of(wanted), *wanted.length)
        for batch, answer in zip(values.split(per_batch), found.split(per_batch), strict=True):
            spectra, frames = [], []
            for part in batch.split(per_part):
                both = self._to_both[from_other](transform.transform(given.lay(part)))
                spectra.append(both[:, :, kept].clone())
                frames.append(self._frames(both))
            unknowns = self._frame.solve(torch.cat(frames).permute(1, 2, 0)).permute(2, 0, 1)
            parts = zip(spectra, unknowns.split(per_part), answer.split(per_part), strict=True)
            for spectrum, part, place in parts:
                total = self._from_both[to_other](self._spectra(part), spectrum)
                place.copy_(wanted.cut(transform.back(total)))
        return found

    def _frames(self, both: Tensor) -> Tensor:
        """Transform the spectra of both sides back to their frames, the own one first."""
        if self._aligned:
            return self._frame_transforms[0].back(both).flatten(2)
        n = self._own_channels
        sides = zip(self._frame_transforms, (both[:, :, :n], both[:, :, n:]), strict=True)
        return torch.cat([transform.back(side).flatten(2) for transform, side in sides], dim=2)

    def _spectra(self, frames: Tensor) -> Tensor:
        """Transform toruses that are empty but for their frames, both sides."""
        sides = (self.own, self.other)
        shapes = [(self.torus.channels_of(side), side.frame_size) for side in sides]
        if self._aligned:
            shape = (shapes[0][0] + shapes[1][0], self.own.frame_size)
            return self._frame_transforms[0].transform(frames.unflatten(2, shape))
        parts = frames.tensor_split((self._n_own,), dim=2)
        shaped = (part.unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True))
        spectra = map(FrameTransform.transform, self._frame_transforms, shaped)
        return torch.cat([*spectra], dim=2)

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
        transform = self.torus.transform
        spectra = symbol.permute(0, 2, 3, 1).unflatten(3, transform.half_size)
        kernels = transform.back(spectra)
        # (groups, channels, cells, channels, cells): each channel's slabs stand together
        shapes = [(self.torus.channels_of(side), side.frame_size) for side in (rows, columns)]
        entries = entries.unflatten(2, shapes[1]).unflatten(1, shapes[0])
        top = 0
        for row in rows.slabs:
            left, bottom = 0, top + row.n_cells
            for column in columns.slabs:
                right = left + column.n_cells
                between = kernels[:, row.phase :: rows.n_phases, column.phase :: columns.n_phases]
                entries[:, :, top:bottom, :, left:right] = self._block(between, row, column)
                left = right
            top = bottom

    def _block(self, kernels: Tensor, row: Slab, column: Slab) -> Tensor:
        """Return what the cells of one slab (columns) mean to those of another (rows)."""
        size = self.torus.transform.size
        dims = len(size)
        steps = []
        for axis, n in enumerate(size):
            apart = steps_between(row.cells[axis], column.cells[axis], n).to(kernels.device)
            shape = [1] * (2 * dims)
            shape[axis], shape[dims + axis] = apart.shape
            steps.append(apart.reshape(shape))
        block = kernels[(..., *steps)]  # type: ignore[index]
        block = block.reshape(*kernels.shape[:3], row.n_cells, column.n_cells)
        return block.transpose(2, 3)
