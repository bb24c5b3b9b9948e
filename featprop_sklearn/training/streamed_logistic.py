"""Logistic regression on features that are read batch by batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from featprop_sklearn.data import Inputs, batches
from featprop_sklearn.training.batch_norm import Moments

__all__ = ["Standardised", "streamed_logistic"]

#: numbers of a batch: what a cache holds
BATCH_BUDGET = 1 << 18


@dataclass(frozen=True)
class Standardised:
    """Features (x − mean) / scale, in float64, a batch at a time.

    Attributes
    ----------
    rows : Inputs of shape (n_samples, n_features)
        The features as they are.
    mean, scale : Tensor of shape (n_features,)
        What is taken off, and divided by.
    """

    rows: Inputs
    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, rows: Inputs, weights: Tensor, *, centre: bool, precision: float) -> Standardised:
        """Measure features; where a bias can make up for it they get mean 0, and size 1.

        Parameters
        ----------
        rows : Inputs of shape (n_samples, n_features)
            The features.
        weights : Tensor of shape (n_samples,)
            Sample weights.
        centre : bool
            Whether there is a bias.
        precision : float
            Relative rounding error of the features.
        """
        moments, largest = Moments(), torch.zeros(rows.shape[1], device=rows.device)
        for part in _batches(rows):
            values = rows[part].double()
            moments.add(values[:, :, None], weights[part])
            largest = torch.maximum(largest, values.abs().amax(dim=0))
        mean = moments.mean if centre else torch.zeros_like(moments.mean)
        scale = (moments.variance + (moments.mean - mean).square()).sqrt()
        # rounding is no information, and standardised it would get enormous weights
        scale[scale <= precision**0.75 * largest] = 1.0
        return cls(rows, mean, scale)

    def __getitem__(self, rows: slice) -> Tensor:
        return (self.rows[rows].double() - self.mean) / self.scale


def streamed_logistic(
    features: Standardised,
    labels: Tensor,
    weights: Tensor,
    C: float,
    *,
    fit_intercept: bool,
    max_iter: int = 1000,
    tol: float = 1e-4,
) -> tuple[NDArray, NDArray]:
    """Fit what :class:`sklearn.linear_model.LogisticRegression` fits, by L-BFGS on sums.

        min C Σ w CE(W z + b, y) + ½ ‖W‖²

    Memory does not grow with the samples.

    Parameters
    ----------
    features : Standardised
        z.
    labels : Tensor of shape (n_samples,), int64
        Numbers of the classes, 0 to n_classes − 1; each occurs.
    weights : Tensor of shape (n_samples,)
        Sample weights.
    C : float
        Inverse strength of the penalty.
    fit_intercept : bool
        Whether there is a b.
    max_iter : int
        Iterations at most.
    tol : float
        Largest slope of the mean loss at which it ends, as in scikit-learn.

    Returns
    -------
    coefficients : ndarray of shape (n_classes, n_features), or (1, n_features) for two classes
        W, as scikit-learn arranges it.
    intercepts : ndarray of n_classes or 1 values
        b.
    """
    n_classes, n_features = int(labels.max()) + 1, features.rows.shape[1]
    n_logits = n_classes if n_classes > 2 else 1
    # on the scale of a mean, which is what scipy's tolerances are meant for
    total = float(weights.double().sum())
    penalty = 1 / (C * total)

    def objective(flat: NDArray) -> tuple[float, NDArray]:
        unknowns = torch.from_numpy(flat).to(features.mean).reshape(n_logits, -1)
        weight, bias = unknowns[:, :n_features], unknowns[:, n_features:].sum(dim=1)
        loss, gradient = 0.0, torch.zeros_like(unknowns)
        for part in _batches(features.rows):
            rows, w = features[part], weights[part].double() / total
            logits = rows @ weight.T + bias
            losses, slopes = _losses(logits, labels[part])
            loss += float(w @ losses)
            slopes = slopes * w[:, None]
            gradient[:, :n_features] += slopes.T @ rows
            gradient[:, n_features:] += slopes.sum(dim=0)[:, None]
        gradient[:, :n_features] += penalty * weight
        loss += penalty / 2 * float(weight.square().sum())
        return loss, gradient.cpu().numpy().ravel()

    start = np.zeros(n_logits * (n_features + fit_intercept))
    options = {"maxiter": max_iter, "gtol": tol, "ftol": 64 * np.finfo(np.float64).eps}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
    found = found.reshape(n_logits, -1)
    return found[:, :n_features], found[:, n_features:].sum(axis=1)


def _losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each sample, and its derivative by the logits."""
    if logits.shape[1] == 1:
        positive = labels.double()[:, None]
        losses = F.binary_cross_entropy_with_logits(logits, positive, reduction="none")
        return losses[:, 0], torch.sigmoid(logits) - positive
    log_p = torch.log_softmax(logits, dim=1)
    slopes = log_p.exp()
    index = labels[:, None]
    slopes.scatter_add_(1, index, -torch.ones_like(index, dtype=slopes.dtype))
    return -log_p.gather(1, index)[:, 0], slopes


def _batches(rows: Inputs) -> list[slice]:
    return list(batches(len(rows), max(1, BATCH_BUDGET // rows.shape[1])))
