"""An affine layer as a linear model: its inputs as rows, its weights as coefficients.

For a convolution a row is the patch that one output pixel sees; a transposed convolution is
one over the input with zeros between its pixels. Groups are separate models.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["add_to_weights", "design_rows", "output_rows", "row_size", "weight_rows"]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def design_rows(layer: Any, x: Tensor, places: Tensor | None = None) -> Tensor:
    """Return what the layer's coefficients multiply, in float64.

    Parameters
    ----------
    layer : nn.Linear, nn.Conv*d or nn.ConvTranspose*d
        The layer.
    x : Tensor of shape (n_samples, ...)
        Its input.
    places : Tensor of shape (n_rows,), int64, optional
        Which rows alone, each number being sample · n_positions + position.

    Returns
    -------
    Tensor of shape (n_groups, n_samples, n_positions, n_coefficients)
        The last coefficient is the bias, where the layer has one. Of ``places`` alone:
        (n_groups, n_rows, 1, n_coefficients).
    """
    x = x.double()
    if isinstance(layer, nn.Linear):
        windows, dims = x.reshape(1, len(x), -1, x.shape[-1]), 1
    else:
        padded = _stuffed(layer, x) if isinstance(layer, _TRANSPOSED) else _padded(layer, x)
        windows, dims = _windows(layer, padded), len(layer.kernel_size)
    n_groups, n_samples, *grid = windows.shape[: 2 + dims]
    if places is None:
        rows = windows.reshape(n_groups, n_samples, math.prod(grid), -1)
    else:
        where: tuple[Tensor, ...] = torch.unravel_index(places, (n_samples, *grid))
        chosen = windows.movedim(0, 1 + dims)[where]
        rows = chosen.reshape(len(places), n_groups, 1, -1).transpose(0, 1)
    if layer.bias is None:
        return rows
    return torch.cat([rows, rows.new_ones(*rows.shape[:-1], 1)], dim=-1)


def output_rows(layer: Any, output: Tensor) -> Tensor:
    """Arrange outputs of the layer to match its design rows, in float64.

    Returns
    -------
    Tensor of shape (n_groups, n_samples, n_positions, n_outputs / n_groups)
    """
    output = output.double()
    if isinstance(layer, nn.Linear):
        return output.reshape(1, len(output), -1, output.shape[-1])
    groups = layer.groups
    rows = output.reshape(len(output), groups, output.shape[1] // groups, -1)
    return rows.permute(1, 0, 3, 2)


def weight_rows(layer: Any) -> Tensor:
    """Copy the layer's coefficients, (n_groups, n_coefficients, n_outputs / n_groups)."""
    weight = layer.weight.detach().to(torch.float64, copy=True)
    if isinstance(layer, nn.Linear):
        rows = weight[None]
    elif isinstance(layer, _TRANSPOSED):
        grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])
        turned = grouped.flip(tuple(range(3, grouped.ndim))).transpose(1, 2)
        rows = turned.reshape(layer.groups, turned.shape[1], -1)
    else:
        rows = weight.reshape(layer.groups, len(weight) // layer.groups, -1)
    if layer.bias is not None:
        bias = layer.bias.detach().double().reshape(len(rows), -1, 1)
        rows = torch.cat([rows, bias], dim=2)
    return rows.mT


@torch.no_grad()
def add_to_weights(layer: Any, change: Tensor) -> None:
    """Add to the layer's coefficients, in the arrangement of :func:`weight_rows`."""
    rows = change.mT
    if layer.bias is not None:
        layer.bias += rows[..., -1].reshape(-1).to(layer.bias)
        rows = rows[..., :-1]
    weight = layer.weight
    if isinstance(layer, _TRANSPOSED):
        per_group = weight.shape[0] // layer.groups
        turned = rows.reshape(layer.groups, rows.shape[1], per_group, *weight.shape[2:])
        rows = turned.transpose(1, 2).flip(tuple(range(3, turned.ndim)))
    weight += rows.reshape(weight.shape).to(weight)


def row_size(layer: Any, output: Tensor) -> int:
    """Return how many numbers the design rows of one sample hold."""
    _, n_coefficients, n_outputs = weight_rows(layer).shape
    return output[0].numel() // n_outputs * n_coefficients


def _padded(layer: Any, x: Tensor) -> Tensor:
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        sides = layer._reversed_padding_repeated_twice
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        return F.pad(x, sides, mode=mode)
    return F.pad(x, [side for size in reversed(layer.padding) for side in (size, size)])


def _stuffed(layer: Any, x: Tensor) -> Tensor:
    """Put stride − 1 zeros between pixels, and pad as the equivalent convolution does."""
    sides: list[int] = []
    for axis, stride in enumerate(layer.stride):
        dim = axis + 2
        size = (x.shape[dim] - 1) * stride + 1
        wide = x.new_zeros(*x.shape[:dim], size, *x.shape[dim + 1 :])
        wide[(slice(None),) * dim + (slice(None, None, stride),)] = x
        x = wide
        before = layer.dilation[axis] * (layer.kernel_size[axis] - 1) - layer.padding[axis]
        sides = [before, before + layer.output_padding[axis], *sides]
    return F.pad(x, sides)


def _windows(layer: Any, x: Tensor) -> Tensor:
    """View the windows of each output pixel: (groups, samples, *pixels, *values)."""
    kernel, dilation = layer.kernel_size, layer.dilation
    dims = len(kernel)
    stride = (1,) * dims if isinstance(layer, _TRANSPOSED) else layer.stride
    for axis, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(axis + 2, gap * (size - 1) + 1, step)[..., ::gap]
    x = x.reshape(len(x), layer.groups, -1, *x.shape[2:])
    return x.permute(1, 0, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims))
