"""Units that are dead on new data: a ReLU that never fires has no derivative to be woken by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from featprop_sklearn.data import Inputs
from featprop_sklearn.networks import Chain, affine_sites
from featprop_sklearn.training.batch_norm import Moments
from featprop_sklearn.training.carried import CarriedFeatures

__all__ = ["wake_dead_units"]

_FLAT = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Threshold)


@torch.no_grad()
def wake_dead_units(
    chain: Chain, inputs: Inputs, batch_size: int, weights: Tensor | None = None
) -> int:
    """Centre the units whose activation is the same for every sample.

    The weights of such a unit (or channel) are rescaled and its bias shifted so that what
    comes before the activation has mean 0 and standard deviation 1: its direction stays, and
    it fires for about half of the samples.

    Parameters
    ----------
    chain : Chain
        Private; changed in place. Affine stages directly before a flat activation count, with
        weights of their own and a bias; see :func:`affine_sites`.
    inputs : Inputs of shape (n_samples, ...)
        The data.
    batch_size : int
        Rows worked on at a time.
    weights : Tensor of shape (n_samples,), optional
        Sample weights; equal by default.

    Returns
    -------
    int
        Units woken.
    """
    if weights is None:
        weights = torch.ones(len(inputs), device=inputs.device)
    carried = CarriedFeatures(chain.modules(), inputs, batch_size)
    woken = 0
    for site in affine_sites(chain, inputs[:8]):
        layer: Any = chain[site.stage].module
        following = chain[site.stage + 1 : site.stage + 2]
        if layer is not site.layer or layer.bias is None or not _is_flat(following):
            continue
        units = _Units()
        carried.advance(site.stage)
        for rows, x in carried.before(site.stage):
            before = chain[site.stage].module(x)
            after = following(before)
            units.add(_by_unit(layer, before), _by_unit(layer, after), weights[rows])
        dead = units.dead()
        _standardise(layer, dead, units.moments)
        woken += int(dead.sum())
    return woken


def _is_flat(following: Chain) -> bool:
    return len(following) == 1 and isinstance(following[0].module, _FLAT)


def _by_unit(layer: nn.Module, values: Tensor) -> Tensor:
    """Arrange as (n_samples, n_units, n_positions)."""
    rows = values.movedim(-1 if isinstance(layer, nn.Linear) else 1, 1)
    return rows.reshape(*rows.shape[:2], -1)


class _Units:
    """Moments of each unit before its activation, and the range of what comes after it."""

    def __init__(self) -> None:
        self.moments = Moments()
        #: a batch each: lowest and highest output, largest input
        self.extremes: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, before: Tensor, after: Tensor, weights: Tensor) -> None:
        self.moments.add(before, weights)
        over = (0, 2)
        self.extremes.append((after.amin(over), after.amax(over), before.abs().amax(over)))

    def dead(self) -> Tensor:
        """Return which units are silent though their input varies, by more than rounding."""
        low, high, largest = map(torch.stack, zip(*self.extremes, strict=True))
        rounding = 10 * torch.finfo(low.dtype).eps * largest.amax(dim=0)
        varies = self.moments.variance.sqrt() > rounding
        return (low.amin(dim=0) == high.amax(dim=0)) & varies


def _standardise(layer: Any, dead: Tensor, moments: Moments) -> None:
    factor = torch.where(dead, moments.variance.rsqrt(), 1.0)
    shift = torch.where(dead, moments.mean, 0.0)
    layer.bias.copy_((layer.bias.double() - shift) * factor)
    weight = layer.weight
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        # weights are (inputs, outputs of a group, ...): one row of factors for each input
        rows = factor.reshape(layer.groups, -1)
        rows = rows.repeat_interleave(len(weight) // layer.groups, dim=0)
    else:
        rows = factor[:, None]
    weight.mul_(rows.reshape(*rows.shape, *[1] * (weight.ndim - 2)).to(weight))
