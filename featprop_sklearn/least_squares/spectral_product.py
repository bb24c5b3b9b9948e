"""One small matrix per frequency, multiplied with many spectra."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SpectralProduct"]

#: entries of a matrix up to which channels are multiplied one by one, without a transposition
FEW = 64


class SpectralProduct:
    """Multiply spectra by a matrix that depends on the frequency.

    Parameters
    ----------
    matrices : complex Tensor of shape (groups, n_frequencies, a, b)
        The symbol of a wrapping convolution.
    """

    def __init__(self, matrices: Tensor) -> None:
        few = matrices.shape[2] * matrices.shape[3] <= FEW
        self._entries = matrices.permute(2, 3, 0, 1).contiguous() if few else None
        self._matrices = None if few else matrices.contiguous()

    def __call__(self, spectrum: Tensor) -> Tensor:
        """Multiply (n_samples, groups, b, *half_size) to (n_samples, groups, a, *half_size)."""
        flat = spectrum.flatten(3)
        if self._matrices is not None:
            found = (self._matrices @ flat.permute(1, 3, 2, 0)).permute(3, 0, 2, 1)
        else:
            assert self._entries is not None
            found = self._by_channels(self._entries, flat)
        return found.unflatten(3, spectrum.shape[3:])

    @staticmethod
    def _by_channels(entries: Tensor, flat: Tensor) -> Tensor:
        found = flat.new_empty(*flat.shape[:2], len(entries), flat.shape[3])
        for out, line in enumerate(entries):
            channel = torch.mul(line[0], flat[:, :, 0], out=found[:, :, out])
            for entry, values in zip(line[1:], flat.unbind(2)[1:], strict=True):
                channel.addcmul_(entry, values)
        return found
