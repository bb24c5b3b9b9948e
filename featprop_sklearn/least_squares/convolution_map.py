"""Convolutions as linear maps that know their kernel: by it some solvers need no matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from featprop_sklearn.least_squares.linear_map import LinearMap

__all__ = ["ConvolutionMap", "Kernel"]


@dataclass(frozen=True)
class Kernel:
    """A convolution with zero padding, in 1, 2 or 3 dimensions.

    Output ``o`` of a channel is Σ weight[t] · input[stride·o + dilation·t − padding], where
    what lies outside of the input is zero.

    Attributes
    ----------
    weight : Tensor of shape (out_channels, in_channels / groups, *size), float64
        As torch stores it.
    stride, dilation, padding : tuple of int
        One number a dimension; the padding is that before the first entry.
    groups : int
        Of channels, each convolved on its own.
    transposed : bool
        Whether the map is the adjoint of this convolution.
    """

    weight: Tensor
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int
    transposed: bool = False


class ConvolutionMap(LinearMap):
    """A convolution, or a transposed one, without its bias.

    Parameters
    ----------
    kernel : Kernel
        What the map computes.
    in_shape, out_shape : tuple of int
        Channels first.
    """

    provides: ClassVar[tuple[str, ...]] = (*LinearMap.provides, "kernel")

    def __init__(self, kernel: Kernel, in_shape: Sequence[int], out_shape: Sequence[int]) -> None:
        super().__init__(tuple(in_shape), tuple(out_shape), kernel.weight.device)
        self.kernel = kernel

    def apply(self, inputs: Tensor) -> Tensor:
        """Multiply by A."""
        if self.kernel.transposed:
            return self._spread(inputs, self.out_shape[1:])
        return self._convolve(inputs, self.out_shape[1:])

    def adjoint(self, outputs: Tensor) -> Tensor:
        """Multiply by A'."""
        if self.kernel.transposed:
            return self._convolve(outputs, self.in_shape[1:])
        return self._spread(outputs, self.in_shape[1:])

    def _convolve(self, inputs: Tensor, out_size: Sequence[int]) -> Tensor:
        # pads that differ at the two ends, or take off what no output sees
        pads = [
            (low, seen - low - n)
            for low, seen, n in zip(
                self.kernel.padding, self._seen_by(out_size), inputs.shape[2:], strict=True
            )
        ]
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[len(pads) - 1]
        return convolve(_pad(inputs, pads), self.kernel.weight, **self._steps())

    def _spread(self, outputs: Tensor, in_size: Sequence[int]) -> Tensor:
        spread = (
            functional.conv_transpose1d,
            functional.conv_transpose2d,
            functional.conv_transpose3d,
        )[len(in_size) - 1]
        found = spread(outputs, self.kernel.weight, **self._steps())
        pads = [
            (-low, low + n - seen)
            for low, seen, n in zip(self.kernel.padding, found.shape[2:], in_size, strict=True)
        ]
        return _pad(found, pads)

    def _seen_by(self, out_size: Sequence[int]) -> list[int]:
        kernel = self.kernel
        return [
            (n - 1) * s + d * (taps - 1) + 1
            for n, s, d, taps in zip(
                out_size, kernel.stride, kernel.dilation, kernel.weight.shape[2:], strict=True
            )
        ]

    def _steps(self) -> dict[str, Any]:
        kernel = self.kernel
        return {"stride": kernel.stride, "dilation": kernel.dilation, "groups": kernel.groups}

    def n_nonzeros(self) -> int:
        """Return how many entries the kernel fills, those over the padding included."""
        kernel = self.kernel
        return self.shape[kernel.transposed] * kernel.weight[0].numel()

    def norm_bound(self) -> float:
        """Bound ‖A‖ by the sums of absolute values of rows and of columns."""
        weight, groups = self.kernel.weight, self.kernel.groups
        sums = weight.abs().flatten(2).sum(2).reshape(groups, -1, weight.shape[1])
        return float((sums.sum(1).amax() * sums.sum(2).amax()).sqrt()) if sums.numel() else 0.0

    def matrix(self) -> Tensor:
        """Return A as a dense float64 tensor of shape (m, n), computed once."""
        if self._matrix is None:
            self._matrix = torch.from_numpy(self.sparse().toarray()).to(self.device)
        return self._matrix

    def sparse(self) -> sparse.csr_matrix:
        """Return A as a SciPy CSR matrix of shape (m, n), laid out from the kernel, once."""
        if self._sparse is None:
            inputs, outputs = self.in_shape, self.out_shape
            if self.kernel.transposed:
                inputs, outputs = outputs, inputs
            matrix = _matrix(self.kernel, inputs[1:], outputs[1:])
            self._sparse = matrix.T.tocsr() if self.kernel.transposed else matrix
        return self._sparse


def _pad(values: Tensor, pads: Sequence[tuple[int, int]]) -> Tensor:
    flat = [pad for pair in reversed(pads) for pad in pair]
    return functional.pad(values, flat) if any(flat) else values


def _matrix(kernel: Kernel, in_size: Sequence[int], out_size: Sequence[int]) -> sparse.csr_matrix:
    """Lay the weights out: entry (output, input) is that of the tap that leads there."""
    weight = kernel.weight.detach().cpu().numpy()
    out_channels, in_channels, *taps = weight.shape
    output, tap, entry = _connections(kernel, taps, in_size, out_size)
    channel = np.arange(out_channels)[:, None, None]
    source = channel // (out_channels // kernel.groups) * in_channels
    source = source + np.arange(in_channels)[:, None]
    rows = channel * prod(out_size) + output
    columns = source * prod(in_size) + entry
    values = weight.reshape(out_channels, in_channels, -1)[:, :, tap]
    rows, columns = (np.broadcast_to(at, values.shape).ravel() for at in (rows, columns))
    shape = out_channels * prod(out_size), kernel.groups * in_channels * prod(in_size)
    return sparse.csr_matrix((values.ravel(), (rows, columns)), shape)


def _connections(
    kernel: Kernel, taps: Sequence[int], in_size: Sequence[int], out_size: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return flat output, tap and input cell of every product within one channel."""
    found = [np.zeros(1, dtype=np.int64)] * 3
    steps = zip(kernel.stride, kernel.dilation, kernel.padding, strict=True)
    for (s, d, p), *lengths in zip(steps, out_size, taps, in_size, strict=True):
        n_out, n_taps, n_in = lengths
        entry = s * np.arange(n_out)[:, None] + d * np.arange(n_taps) - p
        output, tap = np.nonzero((entry >= 0) & (entry < n_in))
        along = output, tap, entry[output, tap]
        found = [
            (flat[:, None] * length + new).ravel()
            for flat, length, new in zip(found, lengths, along, strict=True)
        ]
    return found[0], found[1], found[2]
