"""Relevance through a hidden convolution: by how the activations agree, not by the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from featprop_sklearn.data import batches
from featprop_sklearn.inspection.relevance.first_layer import through_first_convolution
from featprop_sklearn.inspection.relevance.purging import purge_by_sign
from featprop_sklearn.inspection.relevance.registry import Call, Rule
from featprop_sklearn.inspection.relevance.sums import ratio, row_sums
from featprop_sklearn.inspection.relevance.windows import Windows

__all__ = ["RULES", "convolution", "through_hidden_convolution"]

#: numbers in the patches of the samples that are worked on at a time: few stay in the cache
PATCHES = 2**20


def convolution(call: Call, relevance: Tensor, x: Tensor) -> Tensor:
    """Carry relevance through a convolution: the first one of the network, or a hidden one."""
    args, kwargs = call.arguments(x)
    weight, windows = _geometry(*args, **kwargs)
    if call.options.purge == "sign" and not call.is_first:
        relevance = purge_by_sign(relevance)
    patch, places = weight[0].numel() * windows.groups, relevance[0, 0].numel()
    parts = []
    for rows in batches(len(x), max(1, PATCHES // (patch * places))):
        given = windows, relevance[rows], x[rows]
        parts.append(
            through_first_convolution(weight, *given, call.options.bounds)
            if call.is_first
            else through_hidden_convolution(*given)
        )
    return torch.cat(parts)


def _geometry(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Windows]:
    """Return weight and windows, from the arguments of ``F.conv1d``, 2d or 3d."""
    return weight, Windows.of(weight.shape[2:], stride, padding, dilation, groups)


def through_hidden_convolution(windows: Windows, relevance: Tensor, x: Tensor) -> Tensor:
    """Share relevance among the inputs that brought the activations about.

    For each sample and each sign of R, with max(x, 0) in place of x::

        G = ∂⟨conv(x, W), R⟩/∂W      how much of R each weight would move
        Z = conv(x, G)
        C = x ⊙ convᵀ(R/Z; G)        its sum is that of R

    A 1×1 kernel gives R_in = C⁺ − C⁻. A larger one doubles this, U = 2 (C⁺ − C⁻), and takes
    ΣU/2 away again, in equal parts wherever U ≠ 0: inputs of weak support turn negative. A
    window without any activation loses its relevance. W itself plays no part.

    Parameters
    ----------
    windows : Windows
        Geometry of the convolution.
    relevance : Tensor of shape (n_samples, out_channels, ...)
        R, of its output.
    x : Tensor of shape (n_samples, in_channels, ...)
        Its input.

    Returns
    -------
    Tensor of the shape of ``x``
        R_in.
    """
    padded = windows.pad(x.clamp_min(0))
    patches = windows.patches(padded)
    signed = relevance.reshape(len(x), windows.groups, -1, patches.shape[-1])
    back = _back_to_patches(signed, patches)
    found = windows.crop(padded * windows.overlap(back, padded.shape))
    return found if windows.is_point else _shifted(2 * found)


def _back_to_patches(signed: Tensor, patches: Tensor) -> Tensor:
    """Return G⁺ᵀ(R⁺/Z⁺) − G⁻ᵀ(R⁻/Z⁻), where G = R Pᵀ and Z = G P for the patches P.

    Each row of R is a problem of its own, so both signs are rows of one product, multiplied
    in the order that costs less.
    """
    sides = torch.cat([signed.clamp_min(0), signed.clamp_max(0)], dim=2)  # Z of −R⁻ is −Z⁻
    n_rows, n_weights, n_windows = sides.shape[2], patches.shape[2], patches.shape[3]
    if 2 * n_windows * (n_rows + n_weights) < 3 * n_rows * n_weights:
        shares = ratio(sides, sides @ (patches.mT @ patches))
        return patches @ (sides.mT @ shares)
    gradient = sides @ patches.mT
    return gradient.mT @ ratio(sides, gradient @ patches)


def _shifted(doubled: Tensor) -> Tensor:
    """Take half of each sample's sum away, in equal parts from all that is not zero."""
    support = (doubled != 0).to(doubled.dtype)
    return doubled - support * ratio(row_sums(doubled), 2 * row_sums(support))


RULES: dict[str, Rule] = dict.fromkeys(("conv1d", "conv2d", "conv3d"), convolution)
