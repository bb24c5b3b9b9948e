"""Which input positions each window of a max-pooling layer holds."""

from __future__ import annotations

import torch
from torch import Size, Tensor, nn

__all__ = ["POOL_DIMENSIONS", "pooling_windows", "window_of_each_position"]

POOL_DIMENSIONS: dict[type[nn.Module], int] = {
    nn.MaxPool1d: 1,
    nn.MaxPool2d: 2,
    nn.MaxPool3d: 3,
    nn.AdaptiveMaxPool1d: 1,
    nn.AdaptiveMaxPool2d: 2,
    nn.AdaptiveMaxPool3d: 3,
}
_ADAPTIVE = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)


def pooling_windows(layer: nn.Module, in_shape: Size) -> tuple[Tensor, int]:
    """List the positions that each pooling window holds.

    Parameters
    ----------
    layer : nn.Module
        One of :data:`POOL_DIMENSIONS`, or a subclass.
    in_shape : Size
        Shape of one input; its last dimensions are the pooled ones.

    Returns
    -------
    windows : Tensor of shape (n_windows, window_size), int64
        Flat positions, increasing along a row; places that lie in the padding, or
        beyond the input, hold ``n_positions``.
    n_positions : int
        Number of positions of one channel.
    """
    n_dims = next(dims for kind, dims in POOL_DIMENSIONS.items() if isinstance(layer, kind))
    # The layer itself says how many windows there are: ceil_mode has its own rules.
    out_size = layer(torch.zeros(1, *in_shape, dtype=torch.float64)).shape[-n_dims:]
    windows = torch.zeros(1, 1, dtype=torch.int64)
    n_positions = 1
    for axis, (size, n_windows) in enumerate(zip(in_shape[-n_dims:], out_size, strict=True)):
        along = _windows_along_axis(layer, axis, size, n_windows)
        windows = _product(windows, along, size)
        n_positions *= size
    windows[windows < 0] = n_positions
    return windows.sort(dim=1).values, n_positions


def window_of_each_position(windows: Tensor, n_positions: int) -> Tensor | None:
    """Say in which window each position lies, where the windows are disjoint.

    Parameters
    ----------
    windows, n_positions
        As :func:`pooling_windows` returns them.

    Returns
    -------
    Tensor of shape (n_positions,), int64, or None
        Indices of windows, ``n_windows`` outside all; None if two windows share a position.
    """
    window, place = (windows < n_positions).nonzero(as_tuple=True)
    position = windows[window, place]
    if len(position.unique()) < len(position):
        return None
    return torch.full((n_positions,), len(windows)).scatter(0, position, window)


def _windows_along_axis(layer: nn.Module, axis: int, size: int, n_windows: int) -> Tensor:
    """Positions per window along one axis, -1 where there is none."""
    window = torch.arange(n_windows)[:, None]
    if isinstance(layer, _ADAPTIVE):
        start = window * size // n_windows
        stop = ((window + 1) * size + n_windows - 1) // n_windows
        position = start + torch.arange(int((stop - start).max()))
        return position.where(position < stop, -1)
    kernel, stride, padding, dilation = (
        _along_axis(getattr(layer, name), axis)
        for name in ("kernel_size", "stride", "padding", "dilation")
    )
    position = window * stride - padding + dilation * torch.arange(kernel)
    return position.where((position >= 0) & (position < size), -1)


def _along_axis(setting: int | tuple[int, ...], axis: int) -> int:
    return setting if isinstance(setting, int) else setting[axis if len(setting) > 1 else 0]


def _product(windows: Tensor, along: Tensor, size: int) -> Tensor:
    """Windows over one axis more: row-major positions, -1 where either has none."""
    outer, inner = windows[:, None, :, None], along[None, :, None, :]
    position = (outer * size + inner).where((outer >= 0) & (inner >= 0), -1)
    return position.reshape(len(windows) * len(along), -1)
