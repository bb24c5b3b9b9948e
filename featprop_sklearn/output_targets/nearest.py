"""The nearest acceptable logits: projection onto the margin set of a label."""

from __future__ import annotations

import torch
from torch import Tensor

from .margin import check_margin
from .margin_set import competitors, margin_violation

__all__ = ["nearest_target"]


def nearest_target(logits: Tensor, label_index: Tensor, margin: float) -> Tensor:
    """Solve min ‖t − o‖² subject to t_y >= t_j + margin for all j ≠ y, per sample.

    The offending competitors go down to a common level τ, the label goes up to τ + margin.
    With the violations v_j = o_j − o_y + margin, sorted in descending order, the label rises by
    the largest of the running means (v_1 + … + v_k) / (k + 1): a competitor lowers the objective
    by joining as long as it lies above the mean of those that have joined. Exact.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_classes)
        Logits o, finite.
    label_index : Tensor of shape (n_samples,), int64
        Index y of each sample's label.
    margin : float
        Margin >= 0. With 0 the target ties the label with its competitors.

    Returns
    -------
    Tensor of shape (n_samples, n_classes)
        Targets in the dtype of the logits and in T(y) in that dtype's arithmetic, so that
        projecting twice changes nothing. Samples already in T(y) are returned bit-identical.

    Raises
    ------
    ValueError
        If the margin is negative or not finite.
    """
    margin = check_margin(margin)
    index = label_index[:, None]
    wide = logits.double()
    label_logit = wide.gather(1, index)
    violations = competitors(wide - label_logit + margin, label_index)
    joined = torch.arange(2, logits.shape[1] + 2, device=logits.device)
    running_means = violations.sort(1, descending=True).values.cumsum(1) / joined
    rise = running_means.amax(1, keepdim=True)
    # rounded before the margin is added: t_j + margin <= t_y then holds in the caller's dtype
    level = (label_logit + (rise - margin)).to(logits.dtype)
    projected = logits.minimum(level).scatter(1, index, level + margin)
    inside = margin_violation(logits, label_index, margin) <= 0
    return torch.where(inside[:, None], logits, projected)
