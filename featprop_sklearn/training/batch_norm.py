"""BatchNorm statistics of new data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featprop_sklearn.data import batches
from featprop_sklearn.training.component import SplitNetwork

__all__ = ["reestimate_batch_norm"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@torch.no_grad()
def reestimate_batch_norm(network: SplitNetwork, inputs: Tensor, batch_size: int) -> bool:
    """Replace the statistics of the trained BatchNorm layers by those of the data.

    Frozen layers keep theirs. The average over batches is the cumulative one.

    Parameters
    ----------
    network : SplitNetwork
        Private; changed in place, and left in eval mode.
    inputs : Tensor of shape (n_samples, ...)
        The data.
    batch_size : int
        Rows a batch.

    Returns
    -------
    bool
        Whether there was anything to re-estimate.
    """
    network.train()
    layers = [
        layer
        for layer in network.upstream.modules()
        if isinstance(layer, _BATCH_NORMS) and layer.training and layer.track_running_stats
    ]
    network.eval()
    if not layers:
        return False
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.training = True  # and nothing else: dropout must stay off
    for rows in batches(len(inputs), batch_size):
        network(inputs[rows])
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.training = False
    return True
