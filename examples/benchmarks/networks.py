"""The small networks of the benchmark, what they compute, and the loop that trains them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHT_DECAY = 1e-2


def cnn(n_outputs: int, *, batch_norm: bool = False) -> nn.Sequential:
    """Two convolutions and two linear layers, for 8 × 8 grey images."""
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (channels_in, channels_out) in enumerate(((1, 8), (8, 16)), start=1):
        stages[f"conv{i}"] = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        if batch_norm:
            stages[f"norm{i}"] = nn.BatchNorm2d(channels_out)
        stages[f"relu{i}"] = nn.ReLU()
        stages[f"pool{i}"] = nn.MaxPool2d(2)
    stages["flatten"] = nn.Flatten()
    stages["hidden"] = nn.Linear(64, 32)
    stages["relu3"] = nn.ReLU()
    stages["output"] = nn.Linear(32, n_outputs)
    return nn.Sequential(stages)


def mlp(n_inputs: int, n_outputs: int) -> nn.Sequential:
    """Two hidden layers, for tables."""
    return nn.Sequential(
        OrderedDict(
            hidden1=nn.Linear(n_inputs, 64),
            relu1=nn.ReLU(),
            hidden2=nn.Linear(64, 32),
            relu2=nn.ReLU(),
            output=nn.Linear(32, n_outputs),
        )
    )


def batch_size_for(n_rows: int) -> int:
    return 64 if n_rows < 1000 else 256


@torch.no_grad()
def predict(network: nn.Module, X: NDArray) -> NDArray:
    """Class probabilities, or the values of a regression network (which has one output)."""
    outputs = network(torch.from_numpy(X)).double()
    return outputs[:, 0].numpy() if outputs.shape[1] == 1 else outputs.softmax(dim=1).numpy()


@torch.no_grad()
def features(network: nn.Sequential, X: NDArray, stages: Collection[str]) -> dict[str, NDArray]:
    """Outputs of the named stages, one flat row a sample."""
    found, x = {}, torch.from_numpy(X)
    for name, stage in network.named_children():
        x = stage(x)
        if name in stages:
            found[name] = x.flatten(1).double().numpy()
    return found


def adamw(
    network: nn.Sequential,
    X: NDArray,
    y: NDArray,
    *,
    lr: float,
    lengths: Collection[int],
    seed: int,
    head_frozen: bool = False,
) -> Iterator[tuple[int, nn.Sequential]]:
    """Train a copy by AdamW; yield its state after each of the wanted numbers of epochs.

    The rate is constant, so a short run is the beginning of a long one, and costs nothing.
    """
    network = copy.deepcopy(network)
    network[-1].requires_grad_(not head_frozen)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=lr, weight_decay=WEIGHT_DECAY, fused=True)
    inputs, labels = torch.from_numpy(X), _labels(y)
    n_batches = -(-len(y) // batch_size_for(len(y)))
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(1, max(lengths) + 1):
        network.train()
        order = torch.randperm(len(y), generator=generator)
        for rows in order.tensor_split(n_batches):
            loss = _loss(network(inputs[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if epoch in lengths:
            yield epoch, copy.deepcopy(network).eval()


def _labels(y: NDArray) -> Tensor:
    return torch.from_numpy(y if np.issubdtype(y.dtype, np.integer) else y.astype(np.float32))


def _loss(outputs: Tensor, labels: Tensor) -> Tensor:
    if labels.is_floating_point():
        return F.mse_loss(outputs[:, 0], labels)
    return F.cross_entropy(outputs, labels)
