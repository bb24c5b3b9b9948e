"""The network that is built where the user brings none."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

__all__ = ["Rescale", "default_network"]

HIDDEN = (64, 32)


class Rescale(nn.Module):
    """Elementwise ``factor * x + shift`` with fixed numbers: units in, units out.

    Parameters
    ----------
    factor, shift : Tensor of shape (n_features,)
        Not trained; factors must not be zero.
    """

    factor: Tensor
    shift: Tensor

    def __init__(self, factor: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        """Return the rescaled features."""
        return self.factor * x + self.shift


def default_network(
    x: Tensor, n_outputs: int, weights: Tensor, y_scale: tuple[Tensor, Tensor] | None = None
) -> nn.Sequential:
    """Build an untrained small MLP for a table, in the dtype of x, on its device.

    Parameters
    ----------
    x : Tensor of shape (n_samples, n_features)
        Samples, which the first stage standardises.
    n_outputs : int
        Logits, or predicted values.
    weights : Tensor of shape (n_samples,)
        Sample weights.
    y_scale : tuple of (mean, standard deviation), each of shape (n_outputs,), optional
        Units of a regression, which the last stage restores.

    Returns
    -------
    nn.Sequential
        Drawn from torch's global generator of the CPU: the same on any device.
    """
    mean, deviation = weighted_moments(x, weights)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["standardize"] = Rescale(1 / deviation, -mean / deviation)
    width = x.shape[1]
    for index, size in enumerate(HIDDEN, start=1):
        layers[f"hidden{index}"] = nn.Linear(width, size, dtype=x.dtype)
        layers[f"relu{index}"] = nn.ReLU()
        width = size
    layers["output"] = nn.Linear(width, n_outputs, dtype=x.dtype)
    if y_scale is not None:
        layers["units"] = Rescale(y_scale[1], y_scale[0])
    return nn.Sequential(layers).to(x.device)


def weighted_moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return weighted means and standard deviations of columns; 1 for a constant column."""
    share = (weights / weights.sum())[:, None]
    mean = (share * x).sum(dim=0)
    deviation = (share * (x - mean).square()).sum(dim=0).sqrt()
    constant = deviation <= 10 * torch.finfo(x.dtype).eps * mean.abs()
    return mean, torch.where(constant, torch.ones_like(deviation), deviation)
