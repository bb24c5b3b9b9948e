"""BatchNorm statistics of new data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from featprop_sklearn.data import Inputs
from featprop_sklearn.training.carried import CarriedFeatures
from featprop_sklearn.training.component import SplitNetwork

__all__ = ["Moments", "reestimate_batch_norm"]


@torch.no_grad()
def reestimate_batch_norm(
    network: SplitNetwork, inputs: Inputs, batch_size: int, weights: Tensor | None = None
) -> bool:
    """Replace the statistics of the trained BatchNorm layers by those of the data.

    One layer after the other, each on what the earlier ones, already re-estimated, make of
    the data: its mean, and its variance as one batch of all samples would have it. So neither
    the batches nor the order of the samples matter. Frozen layers keep their statistics.

    Parameters
    ----------
    network : SplitNetwork
        Private; changed in place, and left in eval mode.
    inputs : Inputs of shape (n_samples, ...)
        The data.
    batch_size : int
        Rows a batch.
    weights : Tensor of shape (n_samples,), optional
        Sample weights; equal by default.

    Returns
    -------
    bool
        Whether there was anything to re-estimate.
    """
    if weights is None:
        weights = torch.ones(len(inputs), device=inputs.device)
    stages = list(network.upstream)
    layers = _trained_layers(network, inputs[:2])
    carried = CarriedFeatures(stages, inputs, batch_size)
    for layer, places in layers.items():
        carried.advance(places[0])
        moments = Moments()
        for rows, x in carried.before(places[0]):
            with layer.register_forward_pre_hook(_into(moments, weights[rows])):
                _run(stages[places[0] : places[-1] + 1], x)
        layer.running_mean.copy_(moments.mean)
        layer.running_var.copy_(moments.variance)
    return bool(layers)


class Moments:
    """Weighted mean and variance of each channel, batch by batch.

    References
    ----------
    Chan, Golub, LeVeque, "Algorithms for computing the sample variance: analysis and
    recommendations", doi:10.1080/00031305.1983.10483115.
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self.mean = self.variance = torch.zeros((), device="cpu")

    def add(self, values: Tensor, weights: Tensor) -> None:
        """Merge in a batch.

        Parameters
        ----------
        values : Tensor of shape (n_samples, n_channels, n_positions)
            The batch.
        weights : Tensor of shape (n_samples,)
            Sample weights.
        """
        values, weights = values.double(), weights.double()
        share = weights / weights.sum()
        mean = share @ values.mean(dim=2)
        variance = share @ (values - mean[:, None]).square().mean(dim=2)
        self.weight += float(weights.sum())
        new = float(weights.sum()) / self.weight
        step = mean - self.mean
        between = new * (1 - new) * step.square()
        self.mean = self.mean + new * step
        self.variance = torch.lerp(self.variance.to(variance), variance, new) + between


def _trained_layers(network: SplitNetwork, x: Tensor) -> dict[Any, list[int]]:
    """List the layers whose statistics may move, in the order in which they run, and where."""
    network.train()  # which leaves out what is frozen
    trained = [
        layer
        for layer in network.upstream.modules()
        if isinstance(layer, _BatchNorm) and layer.training and layer.track_running_stats
    ]
    network.eval()
    called: dict[Any, list[int]] = {}
    for index, stage in enumerate(network.upstream):
        with ExitStack() as hooks:
            for layer in trained:
                hooks.enter_context(
                    layer.register_forward_pre_hook(
                        lambda module, _, index=index: called.setdefault(module, []).append(index)
                    )
                )
            x = stage(x)
    return called


def _into(moments: Moments, weights: Tensor) -> Callable[[nn.Module, tuple], None]:
    def hook(module: nn.Module, args: tuple) -> None:
        values = args[0].reshape(*args[0].shape[:2], -1)
        samples = len(values) == len(weights)  # and not, say, the steps of sequences
        moments.add(values, weights if samples else weights.mean().expand(len(values)))

    return hook


def _run(stages: Sequence[nn.Module], x: Tensor) -> None:
    for stage in stages:
        x = stage(x)
