"""(AA' + λ²)⁻¹ and (A'A + λ²)⁻¹ of a convolution, exactly, by transforms and a frame.

On the torus (:class:`TorusEmbedding`) a convolution is one small matrix K per frequency. What
the torus adds to the true problem lies on its frame: what stands there on the side of the Gram
matrix is free, and multipliers keep it at zero on the other side. The optimality conditions are
one real symmetric system of the size of the perimeter, factorised once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featprop_sklearn.least_squares.spectral_product import SpectralProduct
from featprop_sklearn.least_squares.torus_embedding import TorusEmbedding
from featprop_sklearn.least_squares.torus_regions import Region, Slab

__all__ = ["TorusGram"]

#: complex numbers worked on at a time: what fits into a cache
CHUNK = 1 << 17
#: complex numbers kept for a batch while its frames are solved together
BATCH = 1 << 23


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
        PM = P @ M
        MPM = M.mH @ PM
        #: to the other side? from the other side?
        self._products = {
            (False, False): SpectralProduct(P),
            (False, True): SpectralProduct(PM),
            (True, False): SpectralProduct(PM.mH),
            (True, True): SpectralProduct(MPM),
        }
        self._n_own = torus.frame_of(self.own)
        self.regular = self._factorise(P, PM, MPM)

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
        transform, found = self.torus.transform, []
        groups, frequencies, *channels = self.torus.symbol.shape
        numbers = groups * frequencies * sum(channels)
        for batch in values.split(max(1, BATCH // numbers)):
            spectra, frames = [], []
            for part in batch.split(max(1, CHUNK // numbers)):
                spectrum = transform.transform(given.lay(part))
                own, other = (self._products[side, from_other](spectrum) for side in (False, True))
                spectra.append(other if to_other else own)
                both = transform.frame(self.own, own), transform.frame(self.other, other)
                frames.append(torch.cat(both, dim=2))
            unknowns = self._solve_frame(torch.cat(frames))
            for spectrum, part in zip(spectra, unknowns.split([*map(len, spectra)]), strict=True):
                a, b = part.split([self._n_own, part.shape[2] - self._n_own], dim=2)
                spectrum += self._products[to_other, False](self._spectrum(self.own, a))
                spectrum += self._products[to_other, True](self._spectrum(self.other, b))
                found.append(wanted.cut(transform.back(spectrum)))
        return torch.cat(found)

    def _spectrum(self, region: Region, frame: Tensor) -> Tensor:
        return self.torus.transform.spectrum(region, frame, self.torus.channels_of(region))

    def _factorise(self, P: Tensor, PM: Tensor, MPM: Tensor) -> bool:
        """Factorise [[P, PM], [M'P, M'PM − I]] between the cells of the two frames.

        It is symmetric and quasi-definite: L diag(I, −I) L' with L lower triangular.
        """
        own = self._between(P, self.own, self.own)
        cross = self._between(PM, self.own, self.other)
        rest = self._between(MPM, self.other, self.other).neg_()
        rest.diagonal(dim1=1, dim2=2).add_(1.0)
        n, total = self._n_own, self._n_own + rest.shape[1]
        factor = own.new_zeros(len(own), total, total)
        factor[:, :n, :n], failed = torch.linalg.cholesky_ex(own)
        across = torch.linalg.solve_triangular(factor[:, :n, :n], cross, upper=False)
        factor[:, n:, :n] = across.mT
        factor[:, n:, n:], failed_too = torch.linalg.cholesky_ex(rest + across.mT @ across)
        self._factor = factor
        return not bool(failed.any() or failed_too.any())

    def _solve_frame(self, on_frames: Tensor) -> Tensor:
        """Find a and b, (n_samples, groups, frame), from what r alone gives on the frames."""
        rhs = on_frames.permute(1, 2, 0)
        half = torch.linalg.solve_triangular(self._factor, rhs, upper=False)
        half[:, : self._n_own].neg_()  # the sign of the right-hand side, and that of −I
        return torch.linalg.solve_triangular(self._factor.mT, half, upper=True).permute(2, 0, 1)

    def _between(self, symbol: Tensor, rows: Region, columns: Region) -> Tensor:
        """Return the entries of a wrapping convolution between the frames of two regions."""
        torus = self.torus
        spectra = symbol.permute(0, 2, 3, 1).unflatten(3, torus.transform.half_size)
        kernels = torus.transform.back(spectra)
        entries = kernels.new_empty(len(kernels), torus.frame_of(rows), torus.frame_of(columns))
        top = 0
        for row in rows.slabs:
            left, bottom = 0, top + torus.channels_of(rows) * row.n_cells
            for column in columns.slabs:
                right = left + torus.channels_of(columns) * column.n_cells
                between = kernels[:, row.phase :: rows.n_phases, column.phase :: columns.n_phases]
                entries[:, top:bottom, left:right] = self._block(between, row, column)
                left = right
            top = bottom
        return entries

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
