"""Sums, norms and factors sample by sample, for batches of any shape, empty ones too."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

__all__ = ["as_rows", "per_row", "row_dots", "row_norms", "row_products", "row_solutions"]


def as_rows(values: Tensor) -> Tensor:
    """Flatten each sample: ``(n_samples, *shape)`` to ``(n_samples, size)``, n_samples = 0 too."""
    return values.reshape(len(values), prod(values.shape[1:]))


def row_dots(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner product of each sample of two batches, shape ``(n_samples,)``."""
    return as_rows(left * right).sum(dim=1)


def row_norms(values: Tensor) -> Tensor:
    """Return the Euclidean norm of each sample, shape ``(n_samples,)``."""
    return torch.linalg.vector_norm(as_rows(values), dim=1)


def row_products(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Multiply each sample's matrix (m, n) with its vector (n,)."""
    # as rows: with a column, torch's product for batches takes up to eight times as long
    return (vectors[..., None, :] @ matrices.mT)[..., 0, :]


def row_solutions(factors: Tensor, vectors: Tensor) -> Tensor:
    """Solve each sample's system for its vector (n,), by its Cholesky factor (n, n)."""
    return torch.cholesky_solve(vectors[..., None], factors)[..., 0]


def per_row(scalars: Tensor, like: Tensor) -> Tensor:
    """Shape one scalar per sample so that it broadcasts over the samples of ``like``."""
    return scalars.reshape(-1, *(1,) * (like.ndim - 1))
