"""A convolution on a torus: where inputs and outputs lie, and the symbol that acts between them.

Any zero-padded convolution is A = W C E. E lays the input on a torus, its stride² interleaved
parts (polyphase components) as channels, zeros around it; C is a convolution that wraps around,
one small matrix per frequency; W takes the outputs that really exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import product
from math import prod

import torch
from torch import Tensor

from featprop_sklearn.least_squares.convolution_map import Kernel

__all__ = ["Places", "TorusEmbedding"]

#: lengths that are products of these transform fast enough
SMALL_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31)


class Places:
    """Where an array lies on the torus, channel by channel alike, and which cells it leaves free.

    Parameters
    ----------
    order : Tensor of int64
        Flat cell of each entry of the array.
    n_cells : int
        Of a channel; with stride² phases, that many times the torus.
    """

    def __init__(self, order: Tensor, n_cells: int) -> None:
        self.order = order.flatten()
        free = torch.ones(n_cells, dtype=torch.bool, device=order.device)
        free[self.order] = False
        self.free = torch.nonzero(free)[:, 0]
        self.n_cells = n_cells

    def lay(self, values: Tensor, cells: Tensor) -> Tensor:
        """Put values (..., n) on cells of an empty torus (..., n_cells)."""
        torus = values.new_zeros(*values.shape[:-1], self.n_cells)
        torus[..., cells] = values
        return torus


class TorusEmbedding:
    """Where a convolution's inputs and outputs lie on the torus, and its symbol.

    Parameters
    ----------
    kernel : Kernel
        The convolution.
    in_size, out_size : sequence of int
        Spatial sizes of its (not the transposed map's) inputs and outputs.

    Attributes
    ----------
    size : tuple of int
        Of the torus.
    symbol : complex Tensor of shape (groups, n_frequencies, out_channels, in_channels · phases)
        C, per group and frequency.
    inputs, outputs : Places
        Where they lie.
    """

    def __init__(self, kernel: Kernel, in_size: Sequence[int], out_size: Sequence[int]) -> None:
        self.kernel = kernel
        self.in_size, self.out_size = tuple(in_size), tuple(out_size)
        self.groups = kernel.groups
        self.size = tuple(map(_length, _geometry(kernel), in_size, out_size))
        self.phases = prod(kernel.stride)
        self.inputs = Places(self._input_cells(), self.phases * prod(self.size))
        self.outputs = Places(self._output_cells(), prod(self.size))

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of the outputs and of the inputs, phases included, of one group."""
        out_channels, in_channels = self.kernel.weight.shape[:2]
        return out_channels // self.groups, in_channels * self.phases

    @property
    def frame_size(self) -> int:
        """Outputs that do not exist, and cells around the input, of one group."""
        out, phased = self.channels
        return out * len(self.outputs.free) + phased // self.phases * len(self.inputs.free)

    @property
    def bytes_needed(self) -> int:
        """What the symbol and its inverse take, and the frame's matrix and factor."""
        out, phased = self.channels
        frequencies = prod(self._half_size)
        symbols = 16 * frequencies * (2 * out * phased + max(out, phased) ** 2)
        return self.groups * (2 * symbols + 16 * self.frame_size**2)

    @cached_property
    def symbol(self) -> Tensor:
        """C of each group and frequency."""
        kernel, weight = self.kernel, self.kernel.weight
        out_channels, in_channels, *taps = weight.shape
        placed = weight.new_zeros(out_channels, in_channels, self.phases, *self.size)
        for tap in product(*map(range, taps)):
            steps = [t * d for t, d in zip(tap, kernel.dilation, strict=True)]
            cell = [
                step // s % n for step, s, n in zip(steps, kernel.stride, self.size, strict=True)
            ]
            phase = 0
            for step, s in zip(steps, kernel.stride, strict=True):
                phase = phase * s + step % s
            placed[:, :, phase][(..., *cell)] += weight[(..., *tap)]  # type: ignore[index]
        # an output looks ahead of itself: correlation is convolution by the mirrored kernel
        symbol = torch.fft.rfftn(placed, dim=self._dims).conj().flatten(3)
        symbol = symbol.reshape(self.groups, out_channels // self.groups, -1, symbol.shape[-1])
        return symbol.permute(0, 3, 1, 2).contiguous()

    def frequencies(self, torus: Tensor) -> Tensor:
        """Transform (..., channels, n_cells) to (..., channels · phases, n_frequencies)."""
        shaped = torus.reshape(*torus.shape[:-2], -1, *self.size)
        return torch.fft.rfftn(shaped, dim=self._dims).flatten(-len(self.size))

    def cells(self, frequencies: Tensor, phases: int) -> Tensor:
        """Transform back to (..., channels, phases · prod(size))."""
        shaped = frequencies.reshape(*frequencies.shape[:-1], *self._half_size)
        torus = torch.fft.irfftn(shaped, s=self.size, dim=self._dims)
        channels = frequencies.shape[-2] // phases
        return torus.reshape(*frequencies.shape[:-2], channels, phases * prod(self.size))

    @property
    def _dims(self) -> tuple[int, ...]:
        return tuple(range(-len(self.size), 0))

    @property
    def _half_size(self) -> tuple[int, ...]:
        return (*self.size[:-1], self.size[-1] // 2 + 1)

    def _input_cells(self) -> Tensor:
        kernel = self.kernel
        starts = zip(kernel.padding, self.in_size, strict=True)
        places = self._grid([range(low, low + n) for low, n in starts])
        phase = cell = torch.zeros_like(places[0])
        for at, stride, length in zip(places, kernel.stride, self.size, strict=True):
            phase, cell = phase * stride + at % stride, cell * length + at // stride
        return phase * prod(self.size) + cell

    def _output_cells(self) -> Tensor:
        places = self._grid([range(n) for n in self.out_size])
        cell = torch.zeros_like(places[0])
        for at, length in zip(places, self.size, strict=True):
            cell = cell * length + at
        return cell

    def _grid(self, ranges: Sequence[range]) -> tuple[Tensor, ...]:
        device = self.kernel.weight.device
        axes = [torch.arange(part.start, part.stop, device=device) for part in ranges]
        return torch.meshgrid(*axes, indexing="ij")


def _length(geometry: tuple[int, int, int], n_in: int, n_out: int) -> int:
    """Cells of one dimension, in steps of the stride.

    The input fits, and what the last output sees beyond the end falls on the zeros before the
    first entry. Every further cell lengthens the perimeter: only large primes are avoided.
    """
    stride, reach, low = geometry
    last = (n_out - 1) * stride + reach + 1
    cells = max(-(-(low + n_in) // stride), -(-(last - low) // stride), n_out)
    while _has_large_prime(cells):
        cells += 1
    return cells


def _has_large_prime(n: int) -> bool:
    for prime in SMALL_PRIMES:
        while n % prime == 0:
            n //= prime
    return n > 1


def _geometry(kernel: Kernel) -> list[tuple[int, int, int]]:
    """Stride, reach of the kernel and padding, by dimension."""
    reach = [d * (k - 1) for d, k in zip(kernel.dilation, kernel.weight.shape[2:], strict=True)]
    return list(zip(kernel.stride, reach, kernel.padding, strict=True))
