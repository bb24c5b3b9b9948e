"""A zero-padded convolution as a wrapping one on a torus, which is one matrix per frequency."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import product

from torch import Tensor

from featprop_sklearn.least_squares.convolution_map import Kernel
from featprop_sklearn.least_squares.spectral_product import SpectralProduct
from featprop_sklearn.least_squares.torus_regions import Region
from featprop_sklearn.least_squares.torus_size import torus_size
from featprop_sklearn.least_squares.torus_strips import Side, Strip
from featprop_sklearn.least_squares.torus_transform import TorusTransform

__all__ = ["TorusEmbedding"]


class TorusEmbedding:
    """Where a convolution's inputs and outputs lie on the torus, and its symbol.

    Parameters
    ----------
    kernel : Kernel
        The convolution.
    in_size, out_size : sequence of int
        Spatial sizes of its (not the transposed map's) inputs and outputs.

    Attributes
    ----------
    inputs, outputs : Region
        Where they lie; the inputs have as many phases as the strides have products.
    transform : TorusTransform
        Between cells and frequencies.
    symbol : complex Tensor of shape (groups, n_frequencies, out_channels, in_channels · phases)
        C, per group and frequency; channels are those of a group.
    """

    def __init__(self, kernel: Kernel, in_size: Sequence[int], out_size: Sequence[int]) -> None:
        self.kernel = kernel
        self.groups = kernel.groups
        size = torus_size(kernel, in_size, out_size)
        # both begin at cell 0: where sizes are the same, so are the frames
        self.inputs = Region(size, in_size, kernel.stride)
        self.outputs = Region(size, out_size, (1,) * len(size))
        self.transform = TorusTransform(size, kernel.weight.device)

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of the outputs and of the inputs, phases included, of one group."""
        return (
            self.channels_of(self.outputs),
            self.channels_of(self.inputs) * self.inputs.n_phases,
        )

    def channels_of(self, region: Region) -> int:
        """Return the channels of the inputs or outputs, without phases, of one group."""
        out_channels, in_channels = self.kernel.weight.shape[:2]
        return out_channels // self.groups if region is self.outputs else in_channels

    def frame_of(self, region: Region) -> int:
        """Return the number of cells, in all channels of a group, around a region."""
        return self.channels_of(region) * region.frame_size

    @property
    def frame_size(self) -> int:
        """Outputs that do not exist, and cells around the input, of one group."""
        return self.frame_of(self.outputs) + self.frame_of(self.inputs)

    def strips(self, *, of_outputs: bool) -> list[Strip]:
        """Return the strips around the ends of the axes, on the outputs' or the inputs' side."""
        kernel = self.kernel
        steps = [
            [(tap * d - low) // s for tap in range(n)]
            for n, s, d, low in zip(
                kernel.weight.shape[2:], kernel.stride, kernel.dilation, kernel.padding, strict=True
            )
        ]
        sides = [
            Side(r, n) for r, n in zip((self.outputs, self.inputs), self.channels, strict=True)
        ]
        if of_outputs:
            # an input is seen by the outputs that look ahead to it
            reach = [(-max(ahead), -min(ahead)) for ahead in steps]
            own, other = sides
        else:
            reach = [(min(ahead), max(ahead)) for ahead in steps]
            other, own = sides
        return [Strip(own, other, axis, reach) for axis in range(len(steps))]

    @cached_property
    def symbol(self) -> Tensor:
        """C of each group and frequency."""
        kernel, weight = self.kernel, self.kernel.weight
        out_channels, in_channels, *taps = weight.shape
        size = self.transform.size
        placed = weight.new_zeros(out_channels, in_channels, self.inputs.n_phases, *size)
        for tap in product(*map(range, taps)):
            at = zip(tap, kernel.dilation, kernel.padding, strict=True)
            steps = [t * d - low for t, d, low in at]
            cell = [step // s % n for step, s, n in zip(steps, kernel.stride, size, strict=True)]
            phase = 0
            for step, s in zip(steps, kernel.stride, strict=True):
                phase = phase * s + step % s
            placed[:, :, phase][(..., *cell)] += weight[(..., *tap)]  # type: ignore[index]
        # an output looks ahead of itself: correlation is convolution by the mirrored kernel
        symbol = self.transform.transform(placed).conj().flatten(3)
        symbol = symbol.reshape(self.groups, out_channels // self.groups, -1, symbol.shape[-1])
        return symbol.permute(0, 3, 1, 2).contiguous()

    def convolve(self, values: Tensor) -> Tensor:
        """Multiply (n_samples, groups, in_channels, *in_size) by A."""
        return self._across(self._forth, values, self.inputs, self.outputs)

    def adjoint(self, values: Tensor) -> Tensor:
        """Multiply (n_samples, groups, out_channels, *out_size) by A'."""
        return self._across(self._back, values, self.outputs, self.inputs)

    @cached_property
    def _forth(self) -> SpectralProduct:
        return SpectralProduct(self.symbol)

    @cached_property
    def _back(self) -> SpectralProduct:
        return SpectralProduct(self.symbol.mH)

    def _across(self, by: SpectralProduct, values: Tensor, start: Region, end: Region) -> Tensor:
        return end.cut(self.transform.back(by(self.transform.transform(start.lay(values)))))
