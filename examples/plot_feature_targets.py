"""
Feature targets as images: what the network should have felt
============================================================

A small convolutional network learns 400 digits. Of digits that it then gets wrong,
:class:`FeatureTargetDisplay` shows channels of the first convolution as they are, as the label
asks for them, and the difference: what would have to be brighter, or darker, for the rest of
the network to give the label.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from featprop_sklearn import FeatureBackpropClassifier, GradientTrainer
from featprop_sklearn.inspection import FeatureTargetDisplay


class SmallCNN(nn.Module):
    """Two convolutions and a linear layer, for 8 × 8 grey images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.output = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        for conv in (self.conv1, self.conv2):
            x = nn.functional.max_pool2d(torch.relu(conv(x)), 2)
        return self.output(x.flatten(1))


def trained(X: NDArray, y: NDArray) -> nn.Module:
    """Train the network as one does."""
    torch.manual_seed(0)
    network = SmallCNN()
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    inputs, labels = torch.from_numpy(X), torch.from_numpy(y)
    for _ in range(15):
        for rows in torch.randperm(len(X)).split(50):
            loss = nn.functional.cross_entropy(network(inputs[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network


def main() -> None:
    """Train, find what is wrong, draw; into a folder if one is given."""
    torch.set_num_threads(1)  # the layers are small: more threads only wait for each other
    digits = load_digits()
    X, y = digits.images[:, None].astype("float32") / 16, digits.target
    X, X_new, y, y_new = train_test_split(X, y, train_size=400, stratify=y, random_state=0)
    # no epochs: the network is looked at as it is
    estimator = FeatureBackpropClassifier(
        trained(X, y), trainer=GradientTrainer(max_epochs=0), random_state=0
    )
    estimator.fit(X, y)
    predicted = estimator.predict(X_new)
    wrong = np.flatnonzero(predicted != y_new)[:4]
    for sample in wrong:
        print(f"Sample {sample}: a {y_new[sample]}, taken for a {predicted[sample]}")

    # the channel that each target moves most
    display = FeatureTargetDisplay.from_estimator(
        estimator, X_new, y_new, split="conv1", samples=wrong
    )
    print(display.to_frame().round(3).to_string())

    # one sample, three channels of the deeper convolution
    FeatureTargetDisplay.from_estimator(
        estimator, X_new, y_new, split="conv2", samples=wrong[0], channels=range(3)
    )
    if len(sys.argv) > 1:
        display.figure_.savefig(Path(sys.argv[1]) / "displays_targets.png", dpi=70)
    else:
        pyplot.show()


if __name__ == "__main__":
    main()
