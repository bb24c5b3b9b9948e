"""Convolutions as linear maps that know their kernel: what the torus solver needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from featprop_sklearn.least_squares.maps import FunctionMap

__all__ = ["ConvolutionMap", "Kernel"]


@dataclass(frozen=True)
class Kernel:
    """A convolution with zero padding, in 1, 2 or 3 dimensions.

    Output ``o`` of a channel is Σ weight[t] · input[stride·o + dilation·t − padding], where
    what lies outside of the input is zero.

    Attributes
    ----------
    weight : Tensor of shape (out_channels, in_channels / groups, *size), float64
        As torch stores it.
    stride, dilation, padding : tuple of int
        One number a dimension; the padding is that before the first entry.
    groups : int
        Of channels, each convolved on its own.
    transposed : bool
        Whether the map is the adjoint of this convolution.
    """

    weight: Tensor
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int
    transposed: bool = False


class ConvolutionMap(FunctionMap):
    """A convolution, or a transposed one, without its bias.

    Parameters
    ----------
    function : callable
        ``(n_samples, *in_shape)`` to ``(n_samples, *out_shape)``.
    in_shape, out_shape : tuple of int
        Channels first.
    kernel : Kernel
        What the function computes.
    """

    provides: ClassVar[tuple[str, ...]] = (*FunctionMap.provides, "kernel")

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        kernel: Kernel,
    ) -> None:
        super().__init__(function, tuple(in_shape), tuple(out_shape), kernel.weight.device)
        self.kernel = kernel
