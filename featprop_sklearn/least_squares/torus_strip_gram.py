"""(AA' + λ²)⁻¹ and (A'A + λ²)⁻¹ of a well-conditioned convolution, by transforms and strips.

On the torus (:class:`TorusEmbedding`) a convolution is one small matrix per frequency, and so
is the inverse of its Gram matrix. The true problem is that of arrays that end. One axis after
the other is made to end (:class:`AxisEnd`), each by a correction on a strip around its end that
depends on what the torus so far gives there; only the last axis' takes a dense matrix, of the
size of the strip, those before it one for each frequency of the axes after.

Corrections are written out as matrices, and rounding counts in them as often as the Gram matrix
is ill-conditioned, twice over; where it is, :class:`FrameGram` is what serves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import torch
from torch import Tensor

from featprop_sklearn.least_squares.spectral_product import SpectralProduct
from featprop_sklearn.least_squares.torus_axis_end import AxisEnd
from featprop_sklearn.least_squares.torus_embedding import TorusEmbedding

__all__ = ["StripGram"]

#: complex numbers worked on at a time: what fits into a cache
CHUNK = 1 << 18
#: complex numbers kept for a batch while the last axis' strips are corrected together
BATCH = 1 << 22


class StripGram:
    """The inverse of AA' + λ²I, or of A'A + λ²I.

    With M the symbol from the *other* side to the Gram matrix's *own* (K where that is the
    outputs', else K'), the inverse on the torus is P = (MM' + λ²)⁻¹; that on the torus of which
    k axes end is Γ_k, Γ_0 = P, and Γ_{k+1} r = Γ_k (r + c), c = G_k Γ_k r.

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
        If the Gram matrix is singular.
    """

    def __init__(self, torus: TorusEmbedding, squared_damping: float, *, of_outputs: bool) -> None:
        self.torus = torus
        M = torus.symbol if of_outputs else torus.symbol.mH
        regions = (torus.outputs, torus.inputs)
        self.own, self.other = regions if of_outputs else regions[::-1]
        eye = torch.eye(M.shape[2], dtype=M.dtype, device=M.device)
        P = torch.linalg.inv(M @ M.mH + squared_damping * eye)
        self._P, self._PM, self._adjoint = map(SpectralProduct, (P, P @ M, M.mH))
        by_frequency = P.unflatten(1, torus.transform.half_size)
        ends: list[AxisEnd] = []
        for strip in torus.strips(of_outputs=of_outputs):
            so_far = ends[-1].inverse if ends else lambda part: by_frequency[..., part, :, :]
            ends.append(AxisEnd(strip, torus.transform, M.mH, so_far))
        self._ends = [end for end in ends if end.strip.size]

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
        first = self._PM if from_other else self._P
        n_frequencies = prod(transform.half_size)
        per_batch = BATCH // (sum(torus.channels) * n_frequencies) or 1
        per_part = CHUNK // (sum(torus.channels) * n_frequencies) or 1
        found = []
        for batch in _parts(values, per_batch):
            parts = (
                first(transform.transform(given.lay(part))) for part in _parts(batch, per_part)
            )
            for spectrum in self._solved(parts):
                of_answer = self._adjoint(spectrum) if to_other else spectrum
                found.append(wanted.cut(transform.back(of_answer)))
        return _joined(found)

    def _solved(self, parts: Iterable[Tensor]) -> Iterable[Tensor]:
        """Turn P r into the solution, part by part; the strips of the last axis together."""
        if not self._ends:
            return parts
        *before, last = self._ends
        spectra, strips = [], []
        for part in parts:
            spectra.append(self._ended(len(before), part))
            strips.append(last.read(spectra[-1]))
        added = last.correct(_joined(strips, dim=1))
        parts = added.split([*map(len, spectra)], dim=1) if len(spectra) > 1 else (added,)
        corrections = map(last.lift, parts)
        return (
            self._add(len(before), correction, spectrum)
            for correction, spectrum in zip(corrections, spectra, strict=True)
        )

    def _ended(self, n_axes: int, spectrum: Tensor) -> Tensor:
        """Turn P r into Γ r, of the torus of which so many axes end; the former is overwritten."""
        if n_axes == 0:
            return spectrum
        end = self._ends[n_axes - 1]
        spectrum = self._ended(n_axes - 1, spectrum)
        return self._add(n_axes - 1, end.lift(end.correct(end.read(spectrum))), spectrum)

    def _add(self, n_axes: int, added: Tensor, spectrum: Tensor) -> Tensor:
        """Add Γ c, of the torus of which so many axes end, to a spectrum, in place."""
        if n_axes == 0:
            return self._P(added, onto=spectrum)
        return spectrum.add_(self._ended(n_axes, self._P(added)))


def _parts(values: Tensor, size: int) -> Sequence[Tensor]:
    # for a few samples the calls are what takes time
    return values.split(size) if len(values) > size else (values,)


def _joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]
