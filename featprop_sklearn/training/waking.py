"""Units that are dead on new data: a ReLU that never fires has no derivative to be woken by."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featprop_sklearn.data import batches
from featprop_sklearn.networks import AFFINE_LAYERS, Chain

__all__ = ["wake_dead_units"]

_FLAT = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Threshold)


@torch.no_grad()
def wake_dead_units(chain: Chain, inputs: Tensor, batch_size: int) -> int:
    """Centre the units whose activation is the same for every sample.

    The weights of such a unit (or channel) are rescaled and its bias shifted so that what
    comes before the activation has mean 0 and standard deviation 1: its direction stays, and
    it fires for about half of the samples.

    Parameters
    ----------
    chain : Chain
        Private; changed in place. Affine stages directly before a flat activation count.
    inputs : Tensor of shape (n_samples, ...)
        The data.
    batch_size : int
        Rows worked on at a time.

    Returns
    -------
    int
        Units woken.
    """
    woken = 0
    for index in range(len(chain) - 1):
        layer, activation = chain[index].module, chain[index + 1].module
        if not isinstance(layer, AFFINE_LAYERS) or not isinstance(activation, _FLAT):
            continue
        if layer.bias is None or not (layer.weight.requires_grad and layer.bias.requires_grad):
            continue
        moments = _Moments()
        for rows in batches(len(inputs), batch_size):
            before = chain[: index + 1](inputs[rows])
            moments.add(_by_unit(layer, before), _by_unit(layer, activation(before.clone())))
        dead = moments.dead() & (moments.deviation() > 0)
        if dead.any():
            _standardise(layer, dead, moments)
            woken += int(dead.sum())
    return woken


class _Moments:
    """Sums of each unit before its activation, and the range of what comes after it."""

    def __init__(self) -> None:
        self.parts: list[tuple[int, Tensor, Tensor]] = []
        self.low: list[Tensor] = []
        self.high: list[Tensor] = []

    def add(self, before: Tensor, after: Tensor) -> None:
        before = before.double()
        self.parts.append((len(before), before.mean(dim=0), before.square().mean(dim=0)))
        self.low.append(after.amin(dim=0))
        self.high.append(after.amax(dim=0))

    def mean(self) -> Tensor:
        total = sum(count for count, _, _ in self.parts)
        return torch.stack([count * mean for count, mean, _ in self.parts]).sum(dim=0) / total

    def deviation(self) -> Tensor:
        total = sum(count for count, _, _ in self.parts)
        square = torch.stack([count * square for count, _, square in self.parts]).sum(dim=0)
        return (square / total - self.mean().square()).clamp_min(0).sqrt()

    def dead(self) -> Tensor:
        return torch.stack(self.low).amin(dim=0) == torch.stack(self.high).amax(dim=0)


def _by_unit(layer: nn.Module, values: Tensor) -> Tensor:
    """Arrange as one column a unit or channel."""
    axis = -1 if isinstance(layer, nn.Linear) else 1
    return values.movedim(axis, -1).flatten(0, -2)


def _standardise(layer: nn.Module, dead: Tensor, moments: _Moments) -> None:
    factor = torch.where(dead, 1 / moments.deviation(), 1.0)
    shift = torch.where(dead, moments.mean(), 0.0)
    bias, weight = layer.bias, layer.weight
    bias.copy_((bias.double() - shift) * factor)
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        per_group = weight.shape[1]
        of_input = factor.reshape(layer.groups, per_group)
        of_input = of_input.repeat_interleave(weight.shape[0] // layer.groups, dim=0)
        weight.mul_(of_input.reshape(*of_input.shape, *[1] * (weight.ndim - 2)).to(weight))
    else:
        weight.mul_(factor.reshape(-1, *[1] * (weight.ndim - 1)).to(weight))
