"""The windows that a convolution slides over its input, in any number of dimensions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Size, Tensor
from torch.nn import functional as F

__all__ = ["Windows"]


@dataclass(frozen=True)
class Windows:
    """Where a convolution reads its input.

    Attributes
    ----------
    kernel, stride, dilation : tuple of int
        One number a dimension.
    padding : tuple of int
        Zeros before and after each dimension, last dimension first, as ``F.pad`` takes them.
    groups : int
        Groups of channels that do not see each other.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(
        cls,
        kernel: Size,
        stride: int | tuple[int, ...],
        padding: int | str | tuple[int, ...],
        dilation: int | tuple[int, ...],
        groups: int,
    ) -> Windows:
        """Read the options of ``F.conv1d``, ``F.conv2d`` and ``F.conv3d``."""
        n = len(kernel)
        steps = _each(dilation, n)
        if padding == "same":
            spans = [step * (size - 1) for step, size in zip(steps, kernel, strict=True)]
            sides = [(span // 2, span - span // 2) for span in spans]
        else:
            zeros = 0 if isinstance(padding, str) else padding  # or "valid"
            sides = [(size, size) for size in _each(zeros, n)]
        pads = tuple(size for pair in reversed(sides) for size in pair)
        return cls(tuple(kernel), _each(stride, n), pads, steps, groups)

    @property
    def is_point(self) -> bool:
        """Whether each window is one position."""
        return math.prod(self.kernel) == 1

    def pad(self, x: Tensor) -> Tensor:
        """Surround the input with the zeros that the convolution sees."""
        return F.pad(x, self.padding)

    def crop(self, padded: Tensor) -> Tensor:
        """Undo :meth:`pad`."""
        return F.pad(padded, tuple(-size for size in self.padding))

    def patches(self, padded: Tensor) -> Tensor:
        """Copy the windows of a padded input.

        Returns
        -------
        Tensor of shape (n_samples, groups, channels a group * kernel size, n_windows)
            One column a window.
        """
        views = [padded[where].flatten(2) for where in self._places(padded.shape)]
        columns = torch.stack(views, dim=2)
        return columns.reshape(len(padded), self.groups, -1, columns.shape[-1])

    def overlap(self, patches: Tensor, shape: Size) -> Tensor:
        """Add windows up where they lie, the adjoint of :meth:`patches`.

        Returns
        -------
        Tensor of shape ``shape``
            That of the padded input.
        """
        total = patches.new_zeros(shape)
        columns = patches.reshape(*shape[:2], math.prod(self.kernel), -1)
        for column, where in zip(columns.unbind(2), self._places(shape), strict=True):
            total[where] += column.reshape(total[where].shape)
        return total

    def _places(self, shape: Size) -> Iterator[tuple]:
        """Yield, for each offset in the kernel, what the windows hold there."""
        axes = [
            [slice(k * step, size - step * (kernel - 1 - k), stride) for k in range(kernel)]
            for kernel, stride, step, size in zip(
                self.kernel, self.stride, self.dilation, shape[2:], strict=True
            )
        ]
        return ((..., *where) for where in itertools.product(*axes))


def _each(value: int | tuple[int, ...], n: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * n if len(values) == 1 else values
