"""Ridge regression from sums over samples: they stream, and they add up across machines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg.lapack import dpstrf
from torch import Tensor

__all__ = ["GramSums", "solve_ridge", "validation_scores"]

#: λ tried by cross-validation, in units of the largest eigenvalue of the Gram matrix
RIDGES = np.logspace(-6, 2, 17)
#: generalised cross-validation says nothing where the model can interpolate
MOST_FREEDOM = 0.98
#: share of Σ‖r‖² below which an RSS, a difference of sums, is rounding
PRECISION = 1e-10
#: scores of cross-validation this near to the least say nothing
TIE = 1e-3
#: coefficients from which the rank is found out first
LARGE = 512
#: ranks up to this share of the coefficients, as of fewer rows than these, are made use of
LOW_RANK = 0.7


@dataclass
class GramSums:
    """Sums that decide a ridge regression, for each group of outputs.

    Attributes
    ----------
    gram : Tensor of shape (n_groups, n_coefficients, n_coefficients), float64
        Σ w a aᵀ.
    cross : Tensor of shape (n_groups, n_coefficients, n_outputs), float64
        Σ w a rᵀ.
    square : Tensor of shape (n_groups,), float64
        Σ w ‖r‖².
    n_rows : float
        Σ w over design rows: each sample counts as often as it has positions.
    """

    gram: Tensor
    cross: Tensor
    square: Tensor
    n_rows: float

    @classmethod
    def of(cls, rows: Tensor, residual: Tensor, weights: Tensor) -> GramSums:
        """Sum up a batch.

        Parameters
        ----------
        rows : Tensor of shape (n_groups, n_samples, n_positions, n_coefficients)
            Design rows.
        residual : Tensor of shape (n_groups, n_samples, n_positions, n_outputs)
            What is to be explained.
        weights : Tensor of shape (n_samples,)
            Sample weights.
        """
        root = weights.double().sqrt()[None, :, None, None]
        a, r = (rows * root).flatten(1, 2), (residual * root).flatten(1, 2)
        square = r.square().sum(dim=(1, 2))
        n_rows = float(weights.double().sum()) * rows.shape[2]
        return cls(a.mT @ a, a.mT @ r, square, n_rows)

    def __add__(self, other: GramSums) -> GramSums:
        return GramSums(
            self.gram + other.gram,
            self.cross + other.cross,
            self.square + other.square,
            self.n_rows + other.n_rows,
        )

    def __iadd__(self, other: GramSums) -> GramSums:
        self.gram += other.gram
        self.cross += other.cross
        self.square += other.square
        self.n_rows += other.n_rows
        return self

    def __sizeof__(self) -> int:
        """Tell Dask what it keeps, and what is to be sent."""
        return sum(part.nbytes for part in (self.gram, self.cross, self.square))

    def shifted(self, coefficients: Tensor) -> GramSums:
        """Return the sums for the residuals r − aᵀ·coefficients."""
        explained = self.gram @ coefficients
        change = (coefficients * (explained - 2 * self.cross)).sum(dim=(1, 2))
        square = (self.square + change).clamp_min(0)
        return GramSums(self.gram, self.cross - explained, square, self.n_rows)


def solve_ridge(sums: GramSums, ridge: float | str = "auto") -> tuple[Tensor, float]:
    """Solve argmin_D Σ w ‖r − aᵀD‖² + λ‖D‖².

    Parameters
    ----------
    sums : GramSums
        Of the data.
    ridge : "auto" or float
        λ in units of the largest eigenvalue of the Gram matrix; "auto" takes the one of
        least generalised cross-validation error, RSS / (1 − df/n)² with n = n_rows (Golub,
        Heath, Wahba 1979, doi:10.1080/00401706.1979.10489751).

    Returns
    -------
    D : Tensor of shape (n_groups, n_coefficients, n_outputs), float64
        The coefficients; zero where nothing can be said.
    ridge : float
        The λ chosen, in the same units.
    """
    if not _says_something(sums):
        return torch.zeros_like(sums.cross), 0.0
    values, vectors = _spectrum(sums.gram)
    largest = float(values.max())
    if ridge != "auto":
        return _coefficients(values, vectors, sums.cross, float(ridge) * largest), float(ridge)
    energy = (vectors.mT @ sums.cross).square().sum(dim=2)
    scores = validation_scores(values, energy, sums.square, sums.n_rows)
    # of strengths that are as good as equal the greatest: rounding must not choose
    best = float(RIDGES[np.flatnonzero(scores <= (1 + TIE) * scores.min())[-1]])
    return _coefficients(values, vectors, sums.cross, best * largest), best


def validation_scores(values: Tensor, energy: Tensor, square: Tensor, n_rows: float) -> NDArray:
    """Return the errors of generalised cross-validation, RSS / (1 − df/n)², of :data:`RIDGES`.

    Parameters
    ----------
    values : Tensor of shape (n_groups, n_kept)
        Eigenvalues of the Gram matrix, without some that are 0 perhaps.
    energy : Tensor of shape (n_groups, n_kept)
        ‖vᵀ Σ w a rᵀ‖² for each eigenvector v.
    square : Tensor of shape (n_groups,)
        Σ w ‖r‖².
    n_rows : float
        n = Σ w.

    Returns
    -------
    ndarray of shape (n_ridges,)
        Infinite where the model can interpolate.
    """
    largest = float(values.max())
    scores = []
    for candidate in RIDGES:
        shrunk = values + candidate * largest
        # RSS = Σ‖r‖² − Σ energy (s + 2λ)/(s + λ)², in the eigenbasis of the Gram matrix
        explained = energy * (values + 2 * candidate * largest) / shrunk.square()
        rss = float((square - explained.sum(dim=1)).clamp_min(PRECISION * square).sum())
        freedom = float((values / shrunk).sum(dim=1).mean())
        usable = freedom < MOST_FREEDOM * n_rows
        scores.append(rss / (1 - freedom / n_rows) ** 2 if usable else np.inf)
    return np.array(scores)


def _says_something(sums: GramSums) -> bool:
    """Return whether there are rows and residuals, and nothing has overflowed."""
    finite = all(bool(torch.isfinite(part).all()) for part in (sums.gram, sums.cross, sums.square))
    return finite and bool((sums.gram != 0).any()) and bool((sums.square > 0).any())


def _spectrum(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors; those of eigenvalue 0 left out where that saves much."""
    n_groups, size, _ = gram.shape
    if n_groups == 1 and size >= LARGE and gram.device.type == "cpu":
        factor = _factor(gram[0])
        if factor.shape[1] <= LOW_RANK * size:
            basis, triangle = torch.linalg.qr(factor)
            values, vectors = torch.linalg.eigh(triangle @ triangle.mT)
            return values.clamp_min(0)[None], (basis @ vectors)[None]
    values, vectors = torch.linalg.eigh(gram)
    return values.clamp_min(0), vectors


def _factor(gram: Tensor) -> Tensor:
    """Return L with LLᵀ = gram, of as many columns as its rank (pivoted Cholesky)."""
    factor, pivots, rank, _ = dpstrf(gram.numpy(), lower=1)
    rows = np.empty((len(factor), rank))
    rows[pivots - 1] = np.tril(factor[:, :rank])
    return torch.from_numpy(rows)


def _coefficients(values: Tensor, vectors: Tensor, cross: Tensor, ridge: float) -> Tensor:
    size, n_kept = vectors.shape[1:]
    noise = size * torch.finfo(values.dtype).eps * values.amax(dim=1, keepdim=True)
    kept = values + ridge
    inverse = torch.where(kept > noise, 1 / kept, 0.0)
    projected = vectors.mT @ cross
    found = vectors @ (inverse[..., None] * projected)
    if n_kept < size and ridge > float(noise):
        # what there is in directions of an eigenvalue that is 0 but for rounding
        found += (cross - vectors @ projected) / ridge
    return found
