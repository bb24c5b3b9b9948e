"""One-hot labels as wanted logits."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["one_hot_target"]


def one_hot_target(logits: Tensor, label_index: Tensor, margin: float = 0.0) -> Tensor:
    """Set t = one-hot(y), whatever the logits are.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Logits; only their shape, dtype and device are used.
    label_index : Tensor of shape (n_samples,), int64
        Index y of each sample's label.
    margin : float, default=0.0
        Ignored: the label always leads by 1.

    Returns
    -------
    Tensor of shape (n_samples, n_classes)
    """
    return torch.zeros_like(logits).scatter(1, label_index[:, None], 1.0)
