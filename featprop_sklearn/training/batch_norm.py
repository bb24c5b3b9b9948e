"""BatchNorm statistics of new data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from featprop_sklearn.data import batches
from featprop_sklearn.training.component import SplitNetwork

__all__ = ["Moments", "reestimate_batch_norm"]


@torch.no_grad()
def reestimate_batch_norm(
    network: SplitNetwork, inputs: Tensor, batch_size: int, weights: Tensor | None = None
) -> bool:
    """Replace the statistics of the trained BatchNorm layers by those of the data.

    One layer after the other, each on what the earlier ones, already re-estimated, make of
    the data: its mean, and its variance as one batch of all samples would have it. So neither
    the batches nor the order of the samples matter. Frozen layers keep their statistics.

    Parameters
    ----------
    network : SplitNetwork
        Private; changed in place, and left in eval mode.
    inputs : Tensor of shape (n_samples, ...)
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
    layers = _trained_layers(network, inputs[:2])
    for layer in layers:
        moments = Moments()
        for rows in batches(len(inputs), batch_size):
            with layer.register_forward_pre_hook(_into(moments, weights[rows])):
                _run(network, inputs[rows])
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
        self.mean = self.variance = torch.zeros(())

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


def _trained_layers(network: SplitNetwork, x: Tensor) -> list[Any]:
    """List the layers whose statistics may move, in the order in which they run."""
    network.train()  # which leaves out what is frozen
    trained = [
        layer
        for layer in network.upstream.modules()
        if isinstance(layer, _BatchNorm) and layer.training and layer.track_running_stats
    ]
    network.eval()
    called: list[nn.Module] = []
    with ExitStack() as hooks:
        for layer in trained:
            hooks.enter_context(
                layer.register_forward_pre_hook(lambda module, _: called.append(module))
            )
        _run(network, x)
    return list(dict.fromkeys(called))


def _into(moments: Moments, weights: Tensor) -> Callable[[nn.Module, tuple], None]:
    def hook(module: nn.Module, args: tuple) -> None:
        values = args[0].reshape(*args[0].shape[:2], -1)
        samples = len(values) == len(weights)  # and not, say, the steps of sequences
        moments.add(values, weights if samples else weights.mean().expand(len(values)))

    return hook


def _run(network: SplitNetwork, x: Tensor) -> None:
    for stage in network.upstream:
        x = stage(x)
