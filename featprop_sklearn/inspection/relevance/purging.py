"""Delete the relevance of units that contradict what all channels together say."""

from __future__ import annotations

import torch
from torch import Tensor

from featprop_sklearn.inspection.relevance.sums import ratio, row_sums

__all__ = ["purge_by_sign"]


def purge_by_sign(relevance: Tensor) -> Tensor:
    """Keep, at each position, the relevance of the sign of its sum over the channels.

    What is kept is scaled to the positive and the negative sum from before, sample by sample.
    A sign of which nothing would be kept is left as it is.

    Parameters
    ----------
    relevance : Tensor of shape (n_samples, channels, ...)
        At the output of a convolution.

    Returns
    -------
    Tensor of the same shape
        Of the same sum.
    """
    positive = relevance.sum(dim=1, keepdim=True) > 0
    gains = _rescaled(relevance.clamp_min(0), positive)
    losses = _rescaled((-relevance).clamp_min(0), ~positive)
    return gains - losses


def _rescaled(side: Tensor, kept: Tensor) -> Tensor:
    left = side * kept
    total = row_sums(left)
    return torch.where(total == 0, side, left * ratio(row_sums(side), total))
