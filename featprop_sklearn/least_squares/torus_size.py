"""How long a torus has to be, and how long it had better be."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

from featprop_sklearn.least_squares.convolution_map import Kernel
from featprop_sklearn.least_squares.cost import FLOPS

__all__ = ["seconds_per_sample", "seconds_to_invert", "torus_size"]

#: lengths that are compared, by dimension
LONGER = 6
#: samples among which the inversion of a strip's matrix is shared
SAMPLES = 1000
#: measured: seconds of a transform and of what goes with it for each cell, and for each cell and
#: prime factor of the length of an axis
CELL, PRIME = 1.2e-9, 0.06e-9
#: for a cell and a product with an entry of a symbol, and for a cell and each wave of a strip
PRODUCT, WAVE = 4e-10, 1.1e-10


def torus_size(kernel: Kernel, in_size: Sequence[int], out_size: Sequence[int]) -> tuple[int, ...]:
    """Choose between smooth lengths, which transform fast, and short ones, of narrow strips.

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
    out_channels, in_channels = kernel.weight.shape[0] // kernel.groups, kernel.weight.shape[1]
    channels, lengths = (out_channels, in_channels * prod(kernel.stride)), out_size
    if out_channels * prod(out_size) > in_channels * prod(in_size):
        # the strips lie on the side with fewer entries
        steps = zip(in_size, kernel.stride, strict=True)
        channels, lengths = channels[::-1], [n // stride for n, stride in steps]
    geometry = _geometry(kernel)
    reach = [cells // stride for stride, cells, _ in geometry]

    def seconds(size: tuple[int, ...]) -> float:
        strips = [n - m + k for n, m, k in zip(size, lengths, reach, strict=True)]
        inversion = seconds_to_invert(channels[0] * prod(lengths[:-1]) * strips[-1])
        return seconds_per_sample(size, channels, lengths, strips) + inversion / SAMPLES

    least = map(_least_length, geometry, in_size, out_size)
    return min(product(*(range(n, n + LONGER) for n in least)), key=seconds)


def seconds_per_sample(
    size: Sequence[int], channels: tuple[int, int], lengths: Sequence[int], strips: Sequence[int]
) -> float:
    """Estimate the time that one sample takes on one core, for each group.

    Parameters
    ----------
    size : sequence of int
        Of the torus.
    channels : (int, int)
        Of the side on which the strips lie, and of the other one.
    lengths, strips : sequence of int
        Of the array on the first side, and of the strips across, by axis.
    """
    (own, other), cells, n_axes = channels, prod(size), len(size)
    primes = sum(sum(_prime_factors(n)) for n in size)
    transforms = (own + other) * (CELL + PRIME * primes)
    products = PRODUCT * own * (other + own * (2**n_axes - 1))
    # an axis is ended once more for each that comes after it, and once again after that one's
    waves = 2 * WAVE * own * sum(2 ** (n_axes - 1 - axis) * n for axis, n in enumerate(strips))
    strip = own * prod(lengths[:-1]) * strips[-1]
    return cells * (transforms + products + waves) + 2 * strip**2 / FLOPS


def seconds_to_invert(strip: int) -> float:
    """Estimate the time that the matrix of the last strip takes, for each group."""
    return 4 * strip**3 / FLOPS


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
