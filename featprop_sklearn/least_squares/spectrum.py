"""Extreme singular values of a linear map: exact where it is small, iterated where it is not."""

from __future__ import annotations

from collections.abc import Callable
from math import prod, sqrt

import torch
from torch import Tensor

from featprop_sklearn.least_squares.linear_map import LinearMap

__all__ = ["largest_eigenvalue", "rank_cutoff"]

BLOCK = 4


def rank_cutoff(shape: tuple[int, int], largest: float) -> float:
    """Return the level below which a singular value counts as zero: max(m, n)·eps·σ_max."""
    return max(shape) * torch.finfo(torch.float64).eps * largest


def exact_extremes(linear_map: LinearMap) -> tuple[float, float]:
    """Return σ_max and the smallest σ above the cutoff, from the diagonal of A'A or an SVD."""
    gram = linear_map.gram_diagonal()
    values = linear_map.svd()[1] if gram is None else gram.sqrt().reshape(-1)
    if values.numel() == 0 or not values.max() > 0:
        return 0.0, 0.0
    largest = float(values.max())
    return largest, float(values[values > rank_cutoff(linear_map.shape, largest)].min())


def largest_singular_value(linear_map: LinearMap) -> float:
    """Return σ_max by block power iteration on A'A: from below, within about 1 %."""
    value, _ = largest_eigenvalue(
        lambda inputs: linear_map.adjoint(linear_map.apply(inputs)),
        linear_map.in_shape,
        linear_map.device,
    )
    return sqrt(max(value, 0.0))


def largest_eigenvalue(
    operator: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    device: torch.device,
    iterations: int = 40,
    tolerance: float = 1e-4,
) -> tuple[float, Tensor]:
    """Find the largest eigenvalue of a symmetric positive semidefinite operator, from below.

    Block power iteration with Rayleigh-Ritz extraction (Golub and Van Loan, Matrix
    Computations, section 8.2), stopped when the value changes by less than ``tolerance``.

    Parameters
    ----------
    operator : callable
        ``(block, *shape)`` to the same shape.
    shape : tuple of int
        Shape of one vector.
    device : torch.device
        Where the vectors live.
    iterations : int
        Upper limit.
    tolerance : float
        Relative change at which to stop.

    Returns
    -------
    value : float
        The largest Ritz value.
    vectors : Tensor of shape (size, block)
        Ritz vectors, orthonormal, by ascending Ritz value.
    """
    generator = torch.Generator(device).manual_seed(0)
    size = prod(shape)
    start = torch.empty(size, min(BLOCK, size), dtype=torch.float64, device=device)
    vectors = torch.linalg.qr(start.normal_(generator=generator))[0]
    value = 0.0
    for _ in range(iterations):
        images = operator(vectors.T.reshape(-1, *shape)).reshape(-1, size).T
        ritz = vectors.T @ images
        values, rotation = torch.linalg.eigh((ritz + ritz.T) / 2)
        previous, value = value, float(values[-1])
        ritz_vectors = vectors @ rotation
        vectors = torch.linalg.qr(images @ rotation)[0]
        if value - previous <= tolerance * value:
            break
    return value, ritz_vectors
