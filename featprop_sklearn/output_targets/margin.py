"""The margin: its validation, and its automatic choice on the scale of the logits."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

__all__ = ["auto_margin", "check_margin"]


def check_margin(margin: float) -> float:
    """Return ``margin`` as a float, refusing anything but a finite number >= 0."""
    if not isinstance(margin, Real) or not 0 <= margin < math.inf:
        raise ValueError(
            f"margin must be 'auto' or a finite number >= 0, got {margin!r}; "
            "'auto' takes one on the scale of the network's logits"
        )
    return float(margin)


def auto_margin(
    logits: Tensor,
    sample_weight: Tensor | None = None,
    multiple: float = 1.0,
    *,
    per_logit: bool = False,
) -> float:
    """Multiple of the (weighted) median spread of a sample's logits.

    The spread of a sample is the standard deviation of its logits. Where each logit is a
    decision of its own (one logit, or ``per_logit``), it is their root mean square: the
    deviation from the threshold 0. Both agree for two classes: two logits d apart have
    standard deviation d/2 and must be μ apart, one logit d has spread d and must be μ/2 away
    from 0.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_logits) or (n_samples,)
        Logits, finite.
    sample_weight : Tensor of shape (n_samples,), optional
        Weights >= 0. Rows of weight zero count for nothing; the lower median is taken, so that
        an integer weight equals a repetition exactly.
    multiple : float, default=1.0
        Factor > 0.
    per_logit : bool, default=False
        Whether the problem is multi-label; a single logit always counts as per logit.

    Returns
    -------
    float
        The margin, always positive: where the median spread is zero, the median of the
        positive spreads counts; where no sample has any spread, 1.

    Raises
    ------
    ValueError
        If ``multiple`` is not positive and finite, the logits are not finite or have no rows, or
        the weights are negative, not finite, all zero or too few.
    """
    if not isinstance(multiple, Real) or not 0 < multiple < math.inf:
        raise ValueError(f"multiple must be a finite number > 0, got {multiple!r}")
    logits = logits.detach().double()
    if logits.ndim == 1:
        logits = logits[:, None]
    if len(logits) == 0 or not torch.isfinite(logits).all():
        raise ValueError(
            "logits must be finite and have at least one row, got shape "
            f"{tuple(logits.shape)} with {int((~torch.isfinite(logits)).sum())} NaN or infinite "
            "values; check the network"
        )
    weight = _check_weight(sample_weight, logits)
    spread = _spread(logits, per_logit or logits.shape[1] == 1)
    median = _lower_weighted_median(spread, weight)
    spreading = (spread > 0) & (weight > 0)
    if median == 0 and spreading.any():
        median = _lower_weighted_median(spread[spreading], weight[spreading])
    return float(multiple) * (median or 1.0)


def _check_weight(sample_weight: Tensor | None, logits: Tensor) -> Tensor:
    if sample_weight is None:
        return logits.new_ones(len(logits))
    weight = sample_weight.detach().to(logits)
    if weight.shape != logits.shape[:1]:
        raise ValueError(
            f"sample_weight must have shape ({len(logits)},), one weight a row of logits, "
            f"got {tuple(weight.shape)}"
        )
    if not (torch.isfinite(weight).all() and (weight >= 0).all() and (weight > 0).any()):
        raise ValueError(
            "sample_weight must be finite and >= 0 with at least one positive weight, got values "
            f"from {weight.min().item():g} to {weight.max().item():g}"
        )
    return weight


def _spread(logits: Tensor, per_logit: bool) -> Tensor:
    if per_logit:
        return logits.square().mean(1).sqrt()
    return logits.std(1, correction=0)


def _lower_weighted_median(values: Tensor, weight: Tensor) -> float:
    """Smallest value at which the cumulated weight reaches half of the total."""
    values, order = values.sort()
    cumulated = weight[order].cumsum(0)
    position = torch.searchsorted(cumulated, cumulated[-1:] / 2)
    return float(values[position])
