"""The networks of the attribution benchmark: which digits are in a scene?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import Bunch
from torch import Tensor, nn
from torch.nn import functional as F

from featprop_sklearn.inspection import make_digit_scenes

SCENES, BATCH, RATE = 4000, 32, 1e-2
#: what is learnt by heart
PERMUTED, PATIENCE = 300, 3000


class Block(nn.Module):
    """Two convolutions beside a strided one."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            *(nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()),
            *(nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)),
        )
        self.side = nn.Sequential(
            nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the two."""
        return self.relu(self.main(x) + self.side(x))


def cnn(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Three convolutions."""
    return nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), activation(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), activation(), nn.MaxPool2d(2)),
        *(nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48), activation()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)),
    )


def resnet() -> nn.Module:
    """A convolution and two residual blocks."""
    return nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        *(Block(12, 24, 2), Block(24, 48, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)),
    )


#: name -> what it is, and its seed
NETWORKS = {
    **{f"CNN {seed}": (cnn, seed) for seed in range(3)},
    **{f"ResNet {seed}": (resnet, seed) for seed in range(2)},
}


def trained(build: Callable[[], nn.Module], seed: int, steps: int) -> nn.Module:
    """Train on scenes of the first 1000 digits; a logit says if its digit is there."""
    torch.manual_seed(seed)
    network = build()
    scenes = make_digit_scenes(SCENES, subset="train", random_state=seed)
    _train(network, scenes.images, scenes.labels, steps)
    return network.eval()


def trained_on_permuted_labels(name: str) -> tuple[nn.Module, float]:
    """Train on a few scenes, with the labels of others; return the training accuracy as well."""
    build, seed = NETWORKS[name]
    torch.manual_seed(seed)
    network = build()
    scenes = make_digit_scenes(PERMUTED, subset="train", random_state=seed)
    labels = np.random.default_rng(seed).permutation(scenes.labels)
    _train(network, scenes.images, labels, PATIENCE)
    network.eval()
    return network, float(both_found(network, scenes.images, labels).mean())


def explained_scenes(network: nn.Module, n_images: int) -> tuple[Bunch, float]:
    """Return scenes of other digits in which both are found, and in what share they are."""
    scenes = make_digit_scenes(2 * n_images, subset="test", random_state=100)
    found = both_found(network, scenes.images, scenes.labels)
    chosen = np.flatnonzero(found)[:n_images]
    return Bunch(**{key: value[chosen] for key, value in scenes.items()}), float(found.mean())


def both_found(network: nn.Module, images: NDArray, labels: NDArray) -> NDArray:
    """Return in which scenes the two greatest logits are those of the two digits."""
    with torch.no_grad():
        top = network(torch.as_tensor(images)).topk(2).indices.numpy()
    return (np.sort(top) == np.sort(labels)).all(axis=1)


def _train(network: nn.Module, images: NDArray, labels: NDArray, steps: int) -> None:
    x, pairs = torch.as_tensor(images), torch.as_tensor(labels)
    present = torch.zeros(len(x), 10).scatter(1, pairs, 1.0)
    optimizer = torch.optim.AdamW(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (BATCH,))
        loss = F.binary_cross_entropy_with_logits(network(x[rows]), present[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
