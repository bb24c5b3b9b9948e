"""How far a layer's weights are moved: as far as the loss of the whole network falls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from featprop_sklearn.training.design_rows import add_to_weights

__all__ = ["move_weights"]

#: times that a change is halved before it is dropped
HALVINGS = 4
#: share of the loss that it must fall by: less can be rounding, which must not decide
LEAST_GAIN = 1e-6


@torch.no_grad()
def move_weights(layer: Any, change: Tensor, loss: Callable[[], float]) -> float:
    """Add the largest of 1, 1/2, 1/4, ... times a change to the weights that lowers the loss.

    A layer's targets come from a linearisation of what follows it; how far that holds, only the
    network itself can tell.

    Parameters
    ----------
    layer : nn.Linear, nn.Conv*d or nn.ConvTranspose*d
        Changed in place; left as it is, to the last bit, where no share lowers the loss.
    change : Tensor of shape (n_groups, n_coefficients, n_outputs / n_groups)
        In the arrangement of :func:`weight_rows`; it need not be finite.
    loss : callable
        The loss of the network with its present weights, >= 0; NaN is no improvement.

    Returns
    -------
    float
        The share that was added; 0 where none was.
    """
    if not change.any():
        return 0.0
    before = loss()
    start = [parameter.clone() for parameter in layer.parameters()]
    for halvings in range(HALVINGS + 1):
        share = 0.5**halvings
        add_to_weights(layer, share * change)
        if loss() < before * (1 - LEAST_GAIN):
            return share
        for parameter, values in zip(layer.parameters(), start, strict=True):
            parameter.copy_(values)
    return 0.0
