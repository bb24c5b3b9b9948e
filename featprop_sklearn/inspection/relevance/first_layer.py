"""Relevance through the first convolution: the z^B rule, for inputs of a known range."""

from __future__ import annotations

import torch
from torch import Tensor

from featprop_sklearn.inspection.relevance.registry import Bounds
from featprop_sklearn.inspection.relevance.sums import ratio
from featprop_sklearn.inspection.relevance.windows import Windows
from featprop_sklearn.least_squares.rows import as_rows, per_row

__all__ = ["through_first_convolution"]


def through_first_convolution(
    weight: Tensor, windows: Windows, relevance: Tensor, x: Tensor, bounds: Bounds | None = None
) -> Tensor:
    """Share relevance among the pixels by their distance from the ends of their range.

    With l and h the least and the greatest possible value of a pixel, W⁺ = max(W, 0) and
    W⁻ = min(W, 0)::

        Z = conv(x − l, W⁺) + conv(x − h, W⁻) ≥ 0
        R_in = (x − l) ⊙ convᵀ(R/Z; W⁺) + (x − h) ⊙ convᵀ(R/Z; W⁻)

    A window of Z = 0 shares its relevance equally. In this form no rounding hides a zero.

    Parameters
    ----------
    weight : Tensor of shape (out_channels, in_channels a group, ...)
        W.
    windows : Windows
        Geometry of the convolution.
    relevance : Tensor of shape (n_samples, out_channels, ...)
        R, of its output.
    x : Tensor of shape (n_samples, in_channels, ...)
        Its input.
    bounds : tuple of (low, high) or None
        l and h; None takes the least and the greatest value of each sample.

    Returns
    -------
    Tensor of the shape of ``x``
        R_in.

    Raises
    ------
    ValueError
        If ``x`` leaves the bounds.

    References
    ----------
    Montavon, Lapuschkin, Binder, Samek and Müller, "Explaining nonlinear classification
    decisions with deep Taylor decomposition", Pattern Recognition 65 (2017),
    doi:10.1016/j.patcog.2016.11.008.
    """
    low, high = _bounds(x, bounds)
    above, below = windows.pad(x - low), windows.pad(x - high)
    filters = weight.reshape(windows.groups, -1, weight[0].numel())
    rising, falling = filters.clamp_min(0), filters.clamp_max(0)
    total = rising @ windows.patches(above) + falling @ windows.patches(below)
    signed = relevance.reshape(total.shape)
    shares = ratio(signed, total)
    found = above * windows.overlap(rising.mT @ shares, above.shape)
    found += below * windows.overlap(falling.mT @ shares, below.shape)
    if bool((total == 0).any()):
        found += _equal_shares(windows, signed * (total == 0), x)
    return windows.crop(found)


def _equal_shares(windows: Windows, relevance: Tensor, x: Tensor) -> Tensor:
    """Spread the relevance of each window over the pixels in it, none of it over padding."""
    pixels = windows.pad(torch.ones_like(x))
    inside = windows.patches(pixels)
    each = ratio(relevance.sum(dim=2, keepdim=True), inside.sum(dim=2, keepdim=True))
    return windows.overlap(inside * each, pixels.shape)


def _bounds(x: Tensor, bounds: Bounds | None) -> Bounds:
    if bounds is None:
        rows = as_rows(x)
        return per_row(rows.amin(dim=1), x), per_row(rows.amax(dim=1), x)
    low, high = bounds
    if bool(((x < low) | (x > high)).any()):
        raise ValueError(
            f"bounds=({low}, {high}) must hold all inputs of the first convolution; they go from "
            f"{float(x.min()):g} to {float(x.max()):g}. Pass the range of the pixels as the "
            "network receives them, after normalisation, or bounds=None."
        )
    return low, high
