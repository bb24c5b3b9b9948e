"""From a user's layer to a prepared inverter: a private copy, checks, dispatch."""

from __future__ import annotations

from dataclasses import replace
from math import nan

import torch
from torch import Size, nn

from featprop_sklearn.data import double_device, module_device, to_double
from featprop_sklearn.inversion.affine import AffineInverter, RearrangementInverter, linear_map_of
from featprop_sklearn.inversion.base import InversionOptions, Inverter
from featprop_sklearn.inversion.composite import GaussNewton
from featprop_sklearn.inversion.in_parts import InParts, keeps_entries_apart, parts_of
from featprop_sklearn.inversion.registry import find_inverter
from featprop_sklearn.inversion.set_ups import SET_UPS
from featprop_sklearn.least_squares import SOLVERS, condition_number
from featprop_sklearn.networks import private_layer
from featprop_sklearn.networks.fingerprint import fingerprint
from featprop_sklearn.networks.layers import extends_torch_layer

__all__ = ["condition_of", "prepare_inverter"]


def prepare_inverter(
    layer: nn.Module,
    in_shape: Size | tuple[int, ...],
    options: InversionOptions | None = None,
    device: torch.device | str = "cpu",
) -> Inverter:
    """Set up the inversion of one layer; the layer itself is copied, never touched.

    A set-up that was made before in this process, for equal weights, shape and options, is
    used again (:class:`SetUps`).

    Parameters
    ----------
    layer : nn.Module
        One tensor in, one tensor out, batch first.
    in_shape : tuple of int
        Shape of one input, without the batch dimension.
    options : InversionOptions, optional
        Solver, damping and range.
    device : torch.device or str
        Where the inversion runs; that of a layer without parameters is set up on the CPU.

    Returns
    -------
    Inverter
        The registered one, or damped Gauss-Newton for an unknown layer; a BatchNorm layer to
        which a subclass adds activations is inverted part by part.

    Raises
    ------
    ValueError
        If a range is asked for and the layer's inverter has none.
    """
    options = options or InversionOptions()
    twin = _keep_default_eps(private_layer(layer))
    twin = to_double(twin, device).requires_grad_(False)
    factory = find_inverter(type(layer)) or _without_entry

    def build() -> Inverter:
        return factory(twin, Size(in_shape), options)

    if getattr(factory, "reusable", False):
        decides = (twin, tuple(in_shape), options, factory, sorted(SOLVERS.items()))
        inverter = SET_UPS.get((fingerprint(*decides), str(device)), build)
    else:
        inverter = build()
    if options.bounds is not None and not inverter.supports_bounds:
        raise ValueError(
            f"bounds={options.bounds} is not available for {type(layer).__name__}: a range on the "
            "input is kept by affine layers, elementwise activations and max pooling. "
            "Use bounds=None."
        )
    return inverter


def _without_entry(layer: nn.Module, in_shape: Size, options: InversionOptions) -> Inverter:
    """Invert what falls into parts that keep the entries apart, and by Gauss-Newton all else."""
    if extends_torch_layer(layer):
        free, device = replace(options, bounds=None), module_device(layer)
        parts = [prepare_inverter(*part, free, device) for part in parts_of(layer, in_shape)]
        if parts and all(map(keeps_entries_apart, parts)):
            return InParts(layer, in_shape, options, parts)
    return GaussNewton(layer, in_shape, options)


def condition_of(
    layer: nn.Module, in_shape: Size | tuple[int, ...], *, iterate: bool = False
) -> float:
    """Return the condition number of an affine layer, NaN of any other.

    Parameters
    ----------
    layer : nn.Module
        One tensor in, one tensor out, batch first.
    in_shape : tuple of int
        Shape of one input, without the batch dimension.
    iterate : bool
        Whether to take the time that a large layer needs; NaN otherwise.
    """
    factory = find_inverter(type(layer))
    if factory is RearrangementInverter:
        return 1.0
    if factory is not AffineInverter:
        return nan
    place = double_device(module_device(layer))
    twin = to_double(private_layer(layer), place).requires_grad_(False)
    with torch.no_grad():
        return condition_number(linear_map_of(twin, Size(in_shape)), iterate=iterate)


def _keep_default_eps(twin: nn.Module) -> nn.Module:
    """Fix the eps that RMSNorm takes from its dtype, so that float64 computes the same layer."""
    for norm in twin.modules():
        if isinstance(norm, nn.RMSNorm) and norm.eps is None and norm.weight is not None:
            norm.eps = torch.finfo(norm.weight.dtype).eps
    return twin
