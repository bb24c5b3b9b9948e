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

from collections.abc import Iterable
from functools import cached_property

from torch import Tensor

from featprop_sklearn.least_squares.spectral_product import SpectralProduct
from featprop_sklearn.least_squares.torus_axis_end import AxisEnd
from featprop_sklearn.least_squares.torus_embedding import TorusEmbedding
from featprop_sklearn.least_squares.torus_gram import TorusGram, join

__all__ = ["StripGram"]


class StripGram(TorusGram):
    """The inverse by strips.

    That on the torus of which k axes end is Γ_k: Γ_0 = P, and Γ_{k+1} r = Γ_k (r + c),
    c = G_k Γ_k r.

    Parameters
    ----------
    torus, squared_damping, of_outputs
        See :class:`TorusGram`.
    """

    def __init__(self, torus: TorusEmbedding, squared_damping: float, *, of_outputs: bool) -> None:
        super().__init__(torus, squared_damping, of_outputs=of_outputs)
        self._P = SpectralProduct(self.P)
        by_frequency = self.P.unflatten(1, torus.transform.half_size)
        ends: list[AxisEnd] = []
        for strip in torus.strips(of_outputs=of_outputs):
            so_far = ends[-1].inverse if ends else lambda part: by_frequency[..., part, :, :]
            ends.append(AxisEnd(strip, torus.transform, self.M.mH, so_far))
        #: an axis along which both arrays fill the torus ends where it goes round
        self._ends = [end for end in ends if end.strip.size]

    @cached_property
    def _with_symbol(self) -> SpectralProduct:
        return SpectralProduct(self.P @ self.M)

    @cached_property
    def _adjoint(self) -> SpectralProduct:
        return SpectralProduct(self.M.mH)

    def _solve(
        self, spectra: Iterable[Tensor], from_other: bool, to_other: bool
    ) -> Iterable[Tensor]:
        solved = self._solved(map(self._with_symbol if from_other else self._P, spectra))
        return map(self._adjoint, solved) if to_other else solved

    def _solved(self, parts: Iterable[Tensor]) -> Iterable[Tensor]:
        """Turn P r into the solution, part by part; the strips of the last axis together."""
        if not self._ends:
            return parts
        *before, last = self._ends
        spectra, strips = [], []
        for part in parts:
            spectra.append(self._ended(len(before), part))
            strips.append(last.read(spectra[-1]))
        added = last.correct(join(strips, dim=1))
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
