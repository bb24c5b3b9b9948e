"""Raise the label's logit alone until it leads by the margin."""

from __future__ import annotations

from torch import Tensor

from .margin import check_margin
from .margin_set import competitors

__all__ = ["max_assign_target"]


def max_assign_target(logits: Tensor, label_index: Tensor, margin: float) -> Tensor:
    """Set t = o, except t_y = max(o_y, max over j ≠ y of o_j + margin).

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Logits o, finite.
    label_index : Tensor of shape (n_samples,), int64
        Index y of each sample's label.
    margin : float
        Margin >= 0.

    Returns
    -------
    Tensor of shape (n_samples, n_classes)
        Targets in T(y); samples already there are returned bit-identical.

    Raises
    ------
    ValueError
        If the margin is negative or not finite.
    """
    margin = check_margin(margin)
    index = label_index[:, None]
    label_logit = logits.gather(1, index)
    needed = competitors(logits, label_index).amax(1, keepdim=True) + margin
    return logits.scatter(1, index, label_logit.where(label_logit >= needed, needed))
