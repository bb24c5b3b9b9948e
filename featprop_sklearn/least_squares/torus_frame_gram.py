"""(AA' + λ²)⁻¹ and (A'A + λ²)⁻¹ of a convolution of any condition, by transforms and a frame.

On the torus (:class:`TorusEmbedding`) a convolution is one small matrix K per frequency. What
the torus adds to the true problem lies on its frame: what stands there on the side of the Gram
matrix is free, and multipliers keep it at zero on the other side. The optimality conditions are
one real symmetric system of the size of the perimeter, factorised once. Rounding counts as
often as the Gram matrix is ill-conditioned, as with any factorisation of it; where it is
well-conditioned, :class:`StripGram` takes less.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from featprop_sklearn.least_squares.quasi_definite import QuasiDefinite
from featprop_sklearn.least_squares.spectral_product import SpectralProduct
from featprop_sklearn.least_squares.torus_embedding import TorusEmbedding
from featprop_sklearn.least_squares.torus_gram import TorusGram, join
from featprop_sklearn.least_squares.torus_regions import Region, Slab, steps_between
from featprop_sklearn.least_squares.torus_transform import FrameTransform

__all__ = ["FrameGram"]


class FrameGram(TorusGram):
    """The inverse by the frame.

    With r what is to be solved for, the solution on the torus is z = P(r + a) + PM b, with a and
    b on the frames of the two sides such that z is zero on the own frame, and M'z = b on the
    other one.

    Parameters
    ----------
    torus, squared_damping, of_outputs
        See :class:`TorusGram`.
    """

    def __init__(self, torus: TorusEmbedding, squared_damping: float, *, of_outputs: bool) -> None:
        super().__init__(torus, squared_damping, of_outputs=of_outputs)
        MP = self.M.mH @ self.P
        MPM = MP @ self.M
        sides = (torch.cat([self.P, MP], dim=2), torch.cat([MP.mH, MPM], dim=2))
        #: from the own side, and from the other one, to both
        self._to_both = [SpectralProduct(side) for side in sides]
        #: the other way round; what the frames hold is found with the other sign
        self._from_both = [SpectralProduct(-side.mH) for side in sides]
        self._own_channels = self.P.shape[2]
        self._n_own = torus.frame_of(self.own)
        #: where the two frames are the same cells, one transform serves both
        self._aligned = (
            self.own.slabs == self.other.slabs and self.own.n_phases == self.other.n_phases
        )
        framed = (self.own,) if self._aligned else (self.own, self.other)
        self._frame_transforms = [FrameTransform(torus.transform, side) for side in framed]
        self._frame = self._factorise(self.P, MP, MPM)

    def _solve(
        self, spectra: Iterable[Tensor], from_other: bool, to_other: bool
    ) -> Iterator[Tensor]:
        n = self._own_channels
        kept = slice(n, None) if to_other else slice(n)
        answers, frames = [], []
        for spectrum in spectra:
            both = self._to_both[from_other](spectrum)
            answers.append(both[:, :, kept].clone())
            frames.append(self._frames(both))
        unknowns = self._frame.solve(join(frames).permute(1, 2, 0)).permute(2, 0, 1)
        parts = unknowns.split([*map(len, answers)])
        for answer, part in zip(answers, parts, strict=True):
            yield self._from_both[to_other](self._spectra(part), answer)

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
