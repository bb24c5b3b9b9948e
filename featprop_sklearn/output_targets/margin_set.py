"""T(y) = {t : t_y >= t_j + margin for all j != y}, the acceptable logits of a label."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["competitors", "margin_violation"]


def competitors(logits: Tensor, label_index: Tensor) -> Tensor:
    """Logits with each label's own logit at minus infinity.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Logits.
    label_index : Tensor of shape (n_samples,), int64
        Index of each sample's label.

    Returns
    -------
    Tensor of shape (n_samples, n_classes)
    """
    return logits.scatter(1, label_index[:, None], -math.inf)


def margin_violation(logits: Tensor, label_index: Tensor, margin: float) -> Tensor:
    """How far the logits are from T(y): max over j != y of (o_j + margin − o_y).

    Zero or negative exactly for the samples in T(y), in the arithmetic of the logits' dtype.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Logits o.
    label_index : Tensor of shape (n_samples,), int64
        Index y of each sample's label.
    margin : float
        Margin >= 0.

    Returns
    -------
    Tensor of shape (n_samples,)
    """
    label_logit = logits.gather(1, label_index[:, None])[:, 0]
    return competitors(logits, label_index).amax(1) + margin - label_logit
