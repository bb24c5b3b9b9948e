"""One small matrix per frequency, multiplied with many spectra."""

from __future__ import annotations

from torch import Tensor

__all__ = ["SpectralProduct"]

#: entries of a matrix up to which channels are multiplied one by one, without a transposition
FEW = 128


class SpectralProduct:
    """Multiply spectra by a matrix that depends on the frequency.

    Parameters
    ----------
    matrices : complex Tensor of shape (groups, n_frequencies, a, b)
        The symbol of a wrapping convolution.
    """

    def __init__(self, matrices: Tensor) -> None:
        few = matrices.shape[2] * matrices.shape[3] <= FEW
        #: by input channel: (groups, a, n_frequencies)
        self._columns = matrices.permute(3, 0, 2, 1).contiguous().unbind() if few else ()
        self._matrices = None if few else matrices.contiguous()

    def __call__(self, spectrum: Tensor, onto: Tensor | None = None) -> Tensor:
        """Multiply (n_samples, groups, b, *half_size) to (n_samples, groups, a, *half_size).

        What it shall be added to, if anything, is overwritten with the sum.
        """
        flat = spectrum.flatten(3)
        found = None if onto is None else onto.flatten(3)
        if self._matrices is not None:
            by_frequency = flat.permute(1, 3, 2, 0).contiguous()
            product = (self._matrices @ by_frequency).permute(3, 0, 2, 1)
            found = product if found is None else found.add_(product)
        else:
            for column, channel in zip(self._columns, flat.unsqueeze(2).unbind(3), strict=True):
                found = column * channel if found is None else found.addcmul_(column, channel)
        assert found is not None
        return found.unflatten(3, spectrum.shape[3:])
