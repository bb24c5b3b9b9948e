"""How long a torus has to be, and how long it had better be."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

from featprop_sklearn.least_squares.convolution_map import Kernel
from featprop_sklearn.least_squares.cost import FLOPS

__all__ = ["seconds_of_transforms", "torus_size"]

#: lengths that are compared, by dimension
LONGER = 6
#: measured: seconds of a transform for each cell, and for each cell and prime factor
CELL, PRIME = 1.5e-9, 0.06e-9


def torus_size(kernel: Kernel, in_size: Sequence[int], out_size: Sequence[int]) -> tuple[int, ...]:
    """Choose between smooth lengths, which transform fast, and short ones, of a short frame.

    Parameters
    ----------
    kernel : Kernel
        The convolution.
    in_size, out_size : sequence of int
        Spatial sizes of its (not the transposed map's) inputs and outputs.

    Returns
    -------
    tuple of int
        Cells by dimension, in steps of the stride.
    """
    out_channels, in_channels = kernel.weight.shape[0], kernel.weight.shape[1] * kernel.groups
    phases = prod(kernel.stride)

    def seconds(size: tuple[int, ...]) -> float:
        frame = out_channels * (prod(size) - prod(out_size))
        frame += in_channels * (phases * prod(size) - prod(in_size))
        transforms = seconds_of_transforms(out_channels + phases * in_channels, size)
        return transforms + 2 * frame**2 / kernel.groups / FLOPS

    least = map(_least_length, _geometry(kernel), in_size, out_size)
    return min(product(*(range(n, n + LONGER) for n in least)), key=seconds)


def seconds_of_transforms(channels: int, size: Sequence[int]) -> float:
    """Estimate the time that one sample's transforms take on one core."""
    primes = sum(sum(_prime_factors(n)) for n in size)
    return channels * prod(size) * (CELL + PRIME * primes)


def _least_length(geometry: tuple[int, int, int], n_in: int, n_out: int) -> int:
    """Cells of one dimension, in steps of the stride.

    The input fits, and what the last output sees beyond the end falls on the zeros before the
    first entry.
    """
    stride, reach, low = geometry
    last = (n_out - 1) * stride + reach + 1
    return max(-(-(low + n_in) // stride), -(-(last - low) // stride), n_out)


def _geometry(kernel: Kernel) -> list[tuple[int, int, int]]:
    """Stride, reach of the kernel and padding, by dimension."""
    reach = [d * (k - 1) for d, k in zip(kernel.dilation, kernel.weight.shape[2:], strict=True)]
    return list(zip(kernel.stride, reach, kernel.padding, strict=True))


def _prime_factors(n: int) -> list[int]:
    found, prime = [], 2
    while prime * prime <= n:
        while n % prime == 0:
            found.append(prime)
            n //= prime
        prime += 1
    return [*found, n] if n > 1 else found
