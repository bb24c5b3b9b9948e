"""The check of a linear map: linear, adjoint and matrices those of the same map."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from featprop_sklearn.least_squares import LinearMap
from featprop_sklearn.testing.promises import Subject, norms

__all__ = ["check_linear_map"]

ROUNDING = 1e-12


def check_linear_map(
    linear_map: LinearMap, dense: ArrayLike | None = None, *, n_samples: int = 5, seed: int = 0
) -> None:
    """Check that a linear map is one, and that all its forms are the same map.

    On random vectors, to 1e-12 relative to ‖A‖‖d‖: ``apply`` is linear, treats each
    sample for itself and agrees with ``matrix()``, ``sparse()``, ``gram_diagonal()`` and
    ``dense``; ``adjoint`` passes the adjoint test, (A d)·r = d·(A'r).

    Parameters
    ----------
    linear_map : LinearMap
        What is checked.
    dense : array-like of shape (m, n), default=None
        The matrix that the map should have, found in another way.
    n_samples : int, default=5
        Batch size of the products; of importance where the map differs per sample.
    seed : int, default=0
        Of the random vectors.

    Raises
    ------
    AssertionError
        Saying which promise was broken, by how much and on what input.

    Examples
    --------
    >>> import torch
    >>> from featprop_sklearn.least_squares import FunctionMap
    >>> from featprop_sklearn.testing import check_linear_map
    >>> differences = FunctionMap(lambda d: d[:, 1:] - d[:, :-1], (4,), (3,))
    >>> check_linear_map(differences, dense=[[-1, 1, 0, 0], [0, -1, 1, 0], [0, 0, -1, 1]])
    """
    subject = Subject(type(linear_map).__name__)
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(n_samples, *shape, generator=generator, dtype=torch.float64)
        return values.to(linear_map.device)

    d, r = draw(linear_map.in_shape), draw(linear_map.out_shape)
    _check_products(subject, linear_map, d, r)
    _check_linear(subject, linear_map, d, draw(linear_map.in_shape))
    if "matrix" in linear_map.provides:
        _check_samples_apart(subject, linear_map, d)
        _check_matrix(subject, linear_map, linear_map.matrix(), "matrix()", d)
        _check_gram(subject, linear_map)
    if "sparse" in linear_map.provides:
        matrix = torch.from_numpy(linear_map.sparse().toarray())
        _check_matrix(subject, linear_map, matrix, "sparse()", d)
    if dense is not None:
        matrix = torch.from_numpy(np.asarray(dense).astype(np.float64))
        _check_matrix(subject, linear_map, matrix, "dense", d)


def _check_products(subject: Subject, a: LinearMap, d: Tensor, r: Tensor) -> None:
    image, pulled = a.apply(d), a.adjoint(r)
    for name, value, shape in (("apply", image, r.shape), ("adjoint", pulled, d.shape)):
        subject.require(
            value.shape == shape and value.dtype == torch.float64,
            f"{name} returns float64 of shape {tuple(shape)}",
            f"{value.dtype} of shape {tuple(value.shape)}",
        )
    gap = _rows(image * r).sum(dim=1) - _rows(d * pulled).sum(dim=1)
    size = torch.maximum(norms(image) * norms(r), norms(d) * norms(pulled))
    promise = "(A d)·r = d·(A'r): apply and adjoint belong to the same matrix"
    subject.require_at_most(gap.abs(), ROUNDING * size, promise, d=d, r=r)


def _check_linear(subject: Subject, a: LinearMap, d: Tensor, other: Tensor) -> None:
    image, other_image = a.apply(d), a.apply(other)
    gap = norms(a.apply(2 * d - 3 * other) - (2 * image - 3 * other_image))
    size = 5 * (norms(image) + norms(other_image))
    promise = "A(2d − 3e) = 2(A d) − 3(A e): the map is linear, with no constant part"
    subject.require_at_most(gap, ROUNDING * size, promise, d=d, e=other)


def _check_samples_apart(subject: Subject, a: LinearMap, d: Tensor) -> None:
    apart = torch.cat([a.apply(row[None]) for row in d])
    gap = norms(apart - a.apply(d))
    promise = "apply treats each sample for itself"
    subject.require_at_most(gap, ROUNDING * norms(apart), promise, d=d)


def _check_matrix(subject: Subject, a: LinearMap, matrix: Tensor, name: str, d: Tensor) -> None:
    subject.require(
        tuple(matrix.shape) == a.shape,
        f"{name} has shape (m, n) = {a.shape}",
        f"shape {tuple(matrix.shape)}",
    )
    matrix = matrix.to(d.device)
    gap = norms(_rows(a.apply(d)) - _rows(d) @ matrix.T)
    limit = ROUNDING * torch.linalg.matrix_norm(matrix) * norms(d)
    subject.require_at_most(gap, limit, f"apply agrees with {name}", d=d)


def _check_gram(subject: Subject, a: LinearMap) -> None:
    known = a.gram_diagonal()
    if known is None:
        return
    gram = a.matrix().T @ a.matrix()
    gap = norms(known.reshape(-1).diag() - gram)
    limit = ROUNDING * torch.linalg.matrix_norm(gram)
    subject.require_at_most(gap, limit, "gram_diagonal() is A'A, which is diagonal", row=gram)


def _rows(batch: Tensor) -> Tensor:
    return batch.reshape(len(batch), -1)
