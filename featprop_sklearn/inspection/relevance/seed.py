"""Where relevance comes from: what of a feature speaks for a class, and what for its rivals."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from featprop_sklearn.inspection.relevance.sums import ratio, row_sums
from featprop_sklearn.least_squares.rows import as_rows, per_row

__all__ = ["class_map", "sections", "seed_relevance"]

#: keeps a map of zeros divisible
SMALL = 1e-9


def seed_relevance(
    features: Tensor, gradient: Callable[[Tensor], Tensor], target: Tensor, hostile: Tensor
) -> Tensor:
    """Tell, unit by unit, how much speaks for the target and how much for hostile classes.

    With n hostile classes, and class maps Û, the relevance is that of the two sections of
    D = n Û^t − Σ Û^h; without any, it is Û^t.

    Parameters
    ----------
    features : Tensor of shape (n_samples, channels, ...)
        A, at the layer where relevance starts.
    gradient : callable
        Derivative with respect to A of the logits of classes, one a sample, shape
        (n_samples,).
    target : Tensor of shape (n_samples,), int64
        Classes t.
    hostile : Tensor of shape (n_samples, n_classes), bool
        Classes h of each sample.

    Returns
    -------
    Tensor of the shape of ``features``
        R. Where there are hostile classes it sums to 2 − 1 = 1, unless a section is empty.
    """
    of_target = class_map(features, gradient(target))
    against = torch.zeros_like(features)
    for classes, present in _one_by_one(hostile):
        against += per_row(present, features) * class_map(features, gradient(classes))
    n_hostile = per_row(hostile.sum(dim=1), features)
    return torch.where(n_hostile > 0, sections(n_hostile * of_target - against), of_target)


def class_map(features: Tensor, gradient: Tensor) -> Tensor:
    """Return Û = U/(max U + 1e-9), U_k = α_k A_k, α_k the mean of the gradient at channel k.

    Where no unit speaks for the class, max |U| takes the place of max U.
    """
    weights = gradient.mean(dim=tuple(range(2, gradient.ndim)), keepdim=True)
    found = weights * features
    greatest, size = as_rows(found).amax(dim=1), as_rows(found).abs().amax(dim=1)
    return found / (per_row(torch.where(greatest > 0, greatest, size), found) + SMALL)


def sections(difference: Tensor) -> Tensor:
    """Give the positive section of a map the sum 2, the negative −1, the same in every channel.

    D' = D⁺/ΣD⁺ − D⁻/ΣD⁻ is summed over the channels to s; the result is
    (2 s⁺/Σs⁺ − s⁻/Σs⁻)/K. An empty section contributes nothing.
    """
    balance = _balanced(difference, 1.0).sum(dim=1, keepdim=True)
    return _balanced(balance, 2.0).expand_as(difference) / difference.shape[1]


def _balanced(values: Tensor, gain: float) -> Tensor:
    """Scale the positive entries of each sample to the sum ``gain``, the negative ones to −1."""
    gains, losses = values.clamp_min(0), (-values).clamp_min(0)
    return gain * ratio(gains, row_sums(gains)) - ratio(losses, row_sums(losses))


def _one_by_one(chosen: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a class of each sample, and whether it is among its chosen, until there are no more."""
    present, classes = chosen.sort(dim=1, descending=True, stable=True)
    for place in range(int(chosen.sum(dim=1).max())):
        yield classes[:, place], present[:, place]
