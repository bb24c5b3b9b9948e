"""Affine layers: x0 + A⁺(y − b − A x0), with A found from the layer and b left to it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Size, Tensor, nn

from featprop_sklearn.data import module_device
from featprop_sklearn.inversion.base import InversionOptions, Inverter
from featprop_sklearn.inversion.bounded import BoundedLeastSquares
from featprop_sklearn.least_squares import (
    AutoSolver,
    ConvolutionMap,
    DiagonalMap,
    FunctionMap,
    Kernel,
    LinearMap,
    MatrixMap,
    SelectionMap,
    SolveResult,
    get_solver,
    resolve_damping,
)

__all__ = ["INVERTERS", "AffineInverter", "RearrangementInverter", "convolution_map"]

#: the linear part of a layer on inputs of a shape; leading dimensions that the map does not
#: have (the channels of a pooling layer, the rows under a linear one) go into the batch
MapBuilder = Callable[..., LinearMap]


class AffineInverter(Inverter):
    """Nearest preimage under f(x) = A x + b: x0 + argmin_d ‖A d − r‖² + λ²‖d‖², r = y − f(x0).

    For λ = 0 this is x0 + A⁺r, whether A shrinks, expands or is rank-deficient: the input
    nearest to x0 among those of least output residual. With ``options.bounds`` the input
    is also kept in that range, by :class:`BoundedLeastSquares`, which needs no solver.

    Parameters
    ----------
    layer : nn.Module
        In eval mode and float64.
    in_shape : Size
        Shape of one input, without the batch dimension.
    options : InversionOptions
        ``solver``, ``damping`` and ``bounds`` are read.

    Attributes
    ----------
    linear_map : LinearMap
        A, on one channel or row where the layer treats all of them alike.
    damping : float
        λ, decided once.

    Raises
    ------
    ValueError
        If the layer is not affine, or an option cannot be met.
    """

    supports_bounds = True
    reusable = True
    method = "least squares"

    def __init__(self, layer: nn.Module, in_shape: Size, options: InversionOptions) -> None:
        super().__init__(layer, in_shape, options)
        self.linear_map = linear_map_of(layer, in_shape)
        _require_affine(layer, self.linear_map, in_shape)
        solver = get_solver(options.solver)
        auto = solver if isinstance(solver, AutoSolver) else None
        self.damping = resolve_damping(self.linear_map, options.damping, auto)
        if options.bounds is None:
            self._solver = solver.prepare(self.linear_map, self.damping)
        else:
            self._bounded = BoundedLeastSquares(self.linear_map, self.damping, options.bounds)

    def invert(self, wanted: Tensor, reference: Tensor) -> SolveResult:
        """Find the nearest preimages."""
        remainder = wanted - self.layer(reference)
        # a layer without parameters does not tell where the data will be
        rhs = remainder.reshape(-1, *self.linear_map.out_shape).to(self.linear_map.device)
        if self.options.bounds is None:
            result = self._solver.solve(rhs)
            found = reference + result.solution.reshape(reference.shape).to(reference.device)
        else:
            origin = reference.reshape(-1, *self.linear_map.in_shape).to(rhs.device)
            result = self._bounded.solve(rhs, origin)
            found = result.solution.reshape(reference.shape).to(reference.device)
        return replace(result, solution=found)


class RearrangementInverter(Inverter):
    """Layers whose output holds exactly the input's entries, in another shape or order.

    The order is found by running the layer on the positions 0, 1, 2, ...; the preimage is
    exact, unique, and owes nothing to the reference, the solver or the damping.

    Parameters
    ----------
    layer : nn.Module
        In eval mode.
    in_shape : Size
        Shape of one input, without the batch dimension.
    options : InversionOptions
        Only ``bounds`` is read: preimages are clipped to the range.

    Raises
    ------
    ValueError
        If the layer does more than move entries within each sample.
    """

    supports_bounds = True

    def __init__(self, layer: nn.Module, in_shape: Size, options: InversionOptions) -> None:
        super().__init__(layer, in_shape, options)
        size = prod(in_shape)
        positions = torch.arange(2 * size, dtype=torch.float64, device=module_device(layer))
        moved = layer(positions.reshape(2, *in_shape))
        within = moved.shape[0] == 2 and torch.equal(moved[0] + size, moved[1])
        if not (within and torch.equal(moved[0].reshape(-1).sort().values, positions[:size])):
            raise ValueError(
                f"{type(layer).__name__} does not only rearrange the entries of each sample of "
                f"shape {tuple(in_shape)}, as its registration says. Register another inverter "
                "for it with register_inverter."
            )
        self.order = moved[0].reshape(-1).argsort()

    def invert(self, wanted: Tensor, reference: Tensor) -> SolveResult:
        """Put every entry back."""
        order = self.order.to(wanted.device)
        solution = wanted.reshape(len(wanted), -1)[:, order].reshape(reference.shape)
        if self.options.bounds is not None:
            solution = solution.clamp(*self.options.bounds)
        return SolveResult(solution)


def _linear(layer: nn.Linear, in_shape: Size) -> LinearMap:
    return MatrixMap(layer.weight)


def convolution_map(layer: nn.Module, in_shape: Size) -> LinearMap:
    """Return the linear part of a convolution, with its kernel where it pads by zeros."""
    if layer.padding_mode != "zeros":
        return _function_map(_without_constants(layer), in_shape)
    probe = torch.zeros(1, *in_shape, dtype=torch.float64, device=module_device(layer))
    return ConvolutionMap(_kernel(layer), in_shape, layer(probe).shape[1:])


def _kernel(layer: Any) -> Kernel:
    padding = layer.padding
    if padding == "valid":
        padding = (0,) * len(layer.kernel_size)
    elif padding == "same":  # torch puts what is left over at the end
        reaches = zip(layer.dilation, layer.kernel_size, strict=True)
        padding = tuple(d * (k - 1) // 2 for d, k in reaches)
    return Kernel(
        layer.weight.detach(),
        tuple(layer.stride),
        tuple(layer.dilation),
        tuple(padding),
        layer.groups,
        transposed=bool(layer.transposed),
    )


def _batch_norm(layer: nn.modules.batchnorm._BatchNorm, in_shape: Size) -> LinearMap:
    """Return weight / sqrt(running variance + eps) of each channel as a diagonal."""
    if layer.running_var is None:
        raise ValueError(
            f"{type(layer).__name__} without running statistics normalises by the batch that it "
            "sees, so it is not affine and a single sample has no preimage. "
            "Build it with track_running_stats=True."
        )
    scale = (layer.running_var + layer.eps).rsqrt()
    if layer.affine:
        scale = scale * layer.weight
    columns = scale.reshape(-1, *[1] * (len(in_shape) - 1))
    return DiagonalMap(columns.expand(in_shape).contiguous())


def _channelwise(layer: nn.Module, in_shape: Size, dims: int) -> LinearMap:
    """Pooling and interpolation: the same map for every channel."""
    return _function_map(layer, Size((1, *in_shape[-dims:])))


def _selection(layer: nn.Module, in_shape: Size, dims: int) -> LinearMap:
    """Find which input entry each output entry copies: padding and repetition."""
    shape = Size((1, *in_shape[-dims:]))
    positions = torch.arange(1, prod(shape) + 1, dtype=torch.float64, device=module_device(layer))
    copied = _without_constants(layer)(positions.reshape(1, *shape))[0]
    return SelectionMap(copied.to(torch.long) - 1, shape)


def _upsampling(layer: nn.Upsample, in_shape: Size) -> LinearMap:
    copies = layer.mode.startswith("nearest")
    return (_selection if copies else _channelwise)(layer, in_shape, dims=len(in_shape) - 1)


def _function_map(layer: nn.Module, in_shape: Size) -> LinearMap:
    device = module_device(layer)
    probe = torch.zeros(1, *in_shape, dtype=torch.float64, device=device)
    return FunctionMap(layer, in_shape, layer(probe).shape[1:], device)


def _without_constants(layer: nn.Module) -> nn.Module:
    """Copy a layer with b = 0: no bias, and zeros where it pads by a constant."""
    twin = copy.deepcopy(layer)
    if isinstance(twin, nn.ConstantPad1d | nn.ConstantPad2d | nn.ConstantPad3d):
        twin.value = 0.0
    elif getattr(twin, "bias", None) is not None:
        twin.register_parameter("bias", None)
    return twin


def _require_affine(layer: nn.Module, linear_map: LinearMap, in_shape: Size) -> None:
    """Compare the map with the layer at one point: a subclass may compute something else."""
    generator = torch.Generator(linear_map.device).manual_seed(0)
    probe = torch.randn(
        1, *in_shape, generator=generator, dtype=torch.float64, device=linear_map.device
    )
    change = layer(probe) - layer(torch.zeros_like(probe))
    linear = linear_map.apply(probe.reshape(-1, *linear_map.in_shape))
    scale = float(layer(probe).abs().max()) + float(change.abs().max())
    same = linear.numel() == change.numel()
    if not same or float((linear.reshape(change.shape) - change).abs().max()) > 1e-9 * scale:
        raise ValueError(
            f"{type(layer).__name__} is inverted as an affine layer, but its forward does not "
            f"compute what {_registered_type(layer).__name__} computes. Register an inverter for "
            f"{type(layer).__name__} with register_inverter."
        )


def _in_each_dimension(builder: MapBuilder, *names: str) -> dict[type[nn.Module], MapBuilder]:
    return {
        getattr(nn, f"{name}{dims}d"): partial(builder, dims=dims)
        for name in names
        for dims in (1, 2, 3)
    }


_BUILDERS: dict[type[nn.Module], MapBuilder] = {
    nn.Linear: _linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), convolution_map),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), convolution_map),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    **_in_each_dimension(_channelwise, "AvgPool", "AdaptiveAvgPool"),
    **_in_each_dimension(
        _selection, "ZeroPad", "ConstantPad", "ReflectionPad", "ReplicationPad", "CircularPad"
    ),
    nn.Upsample: _upsampling,
}

_REARRANGEMENTS: tuple[type[nn.Module], ...] = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


def linear_map_of(layer: nn.Module, in_shape: Size) -> LinearMap:
    """Return A of an affine layer, on one channel or row where all of them are alike."""
    return _BUILDERS[_registered_type(layer)](layer, in_shape)


def _registered_type(layer: nn.Module) -> type[nn.Module]:
    return next(ancestor for ancestor in type(layer).__mro__ if ancestor in _BUILDERS)


INVERTERS: dict[type[nn.Module], type[Inverter]] = {
    **dict.fromkeys(_BUILDERS, AffineInverter),
    **dict.fromkeys(_REARRANGEMENTS, RearrangementInverter),
}
