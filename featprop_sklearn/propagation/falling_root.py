"""Where falling functions of one number come down to zero, batched."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["falling_root"]

MAX_TRIALS = 40


def falling_root(
    function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, share: float
) -> Tensor:
    """Find where functions, one a sample, have fallen to near zero.

    By regula falsi, which halves the value at an end that stays.

    Parameters
    ----------
    function : callable
        Takes and returns a Tensor of shape (n_samples,); nowhere rising.
    low, high : Tensor of shape (n_samples,)
        Where to look. A function that is positive at neither is at its root at the low end; one
        that is negative at neither, at the high one.
    share : float
        Of the value at the low end, that is near enough to zero.

    Returns
    -------
    Tensor of shape (n_samples,)
        Where the function is not negative, and near zero unless it is the high end.

    References
    ----------
    Dowell, Jarratt (1971), doi:10.1007/BF01934364.
    """
    at_high = function(high)
    done = at_high >= 0
    found = torch.where(done, high, low)
    if done.all():
        return found
    at_low = function(low)
    done |= ~(at_low > 0)
    enough = share * at_low
    stayed = torch.zeros_like(low)  # 1 where the high end did, -1 where the low one
    for _ in range(MAX_TRIALS):
        middle = low + (high - low) * at_low / (at_low - at_high)
        value = function(torch.where(done, found, middle))
        positive = value >= 0
        found = torch.where(positive & ~done, middle, found)
        done |= positive & (value <= enough)
        if done.all():
            break
        at_low, at_high = (
            torch.where(positive, value, torch.where(stayed < 0, at_low / 2, at_low)),
            torch.where(positive, torch.where(stayed > 0, at_high / 2, at_high), value),
        )
        low, high = torch.where(positive, middle, low), torch.where(positive, high, middle)
        stayed = torch.where(positive, 1.0, -1.0).to(low)
    return found
