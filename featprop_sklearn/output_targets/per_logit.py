"""Targets where each logit is a yes-or-no decision of its own: binary and multi-label networks.

A logit above 0 says yes. T(y) = {t : t >= margin / 2 for positives, t <= −margin / 2 for
negatives}: the two sides lie a margin apart.
"""

from __future__ import annotations

from torch import Tensor

from .margin import check_margin

__all__ = ["max_assign", "nearest", "one_hot", "violation"]


def nearest(logits: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Solve min ‖t − o‖² over T(y): logits on the wrong side of ± margin / 2 move to it.

    Parameters
    ----------
    logits : Tensor of shape (n_samples, n_logits)
        Logits o, finite.
    labels : Tensor of shape (n_samples, n_logits)
        1 (or True) for positives, 0 for negatives.
    margin : float
        Margin >= 0.

    Returns
    -------
    Tensor of shape (n_samples, n_logits)
        Targets; logits already on their side are returned bit-identical.

    Raises
    ------
    ValueError
        If the margin is negative or not finite.
    """
    half = check_margin(margin) / 2
    sign = _sign(logits, labels)
    return (sign * half).where(sign * logits < half, logits)


def max_assign(logits: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Move the label's own logit alone: the same as :func:`nearest` where logits do not compete.

    Parameters
    ----------
    logits, labels, margin
        As for :func:`nearest`.

    Returns
    -------
    Tensor of shape (n_samples, n_logits)
    """
    return nearest(logits, labels, margin)


def one_hot(logits: Tensor, labels: Tensor, margin: float = 0.0) -> Tensor:
    """Set t = +1 for positives and −1 for negatives, whatever the logits are.

    One logit is the difference of two (sigmoid(o₁ − o₀) is the softmax of o₀, o₁), and the
    one-hot pairs (0, 1) and (1, 0) differ by +1 and −1. A target of 0 for negatives would lie on
    the threshold.

    Parameters
    ----------
    logits, labels
        As for :func:`nearest`.
    margin : float, default=0.0
        Ignored.

    Returns
    -------
    Tensor of shape (n_samples, n_logits)
    """
    return _sign(logits, labels)


def violation(logits: Tensor, labels: Tensor, margin: float) -> Tensor:
    """How far a sample is from T(y): the largest of (margin / 2 − o) or (margin / 2 + o).

    Parameters
    ----------
    logits, labels, margin
        As for :func:`nearest`.

    Returns
    -------
    Tensor of shape (n_samples,)
        Zero or negative exactly for the samples in T(y).
    """
    return (margin / 2 - _sign(logits, labels) * logits).amax(1)


def _sign(logits: Tensor, labels: Tensor) -> Tensor:
    return labels.to(logits) * 2 - 1
