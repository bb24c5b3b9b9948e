"""
Feature gap: where in a network, and for which classes, labels and features part
================================================================================

A small convolutional network learns 400 digits. Then :class:`FeatureGapDisplay` measures, on
digits that it has not seen, how far each feature is from the one that the label asks for: first
for the digits that the network gets right and wrong, then class by class.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from featprop_sklearn import FeatureBackpropClassifier, GradientTrainer
from featprop_sklearn.inspection import FeatureGapDisplay


def trained(X: NDArray, y: NDArray) -> nn.Module:
    """Train a small CNN as one does."""
    torch.manual_seed(0)
    network = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 8, 3, padding=1),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(8, 16, 3, padding=1),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            hidden=nn.Linear(64, 32),
            relu3=nn.ReLU(),
            output=nn.Linear(32, 10),
        )
    )
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
    """Train, measure, draw; into a folder if one is given."""
    torch.set_num_threads(1)  # the layers are small: more threads only wait for each other
    digits = load_digits()
    X, y = digits.images[:, None].astype("float32") / 16, digits.target
    X, X_new, y, y_new = train_test_split(X, y, train_size=400, stratify=y, random_state=0)
    # no epochs: the network is looked at as it is
    estimator = FeatureBackpropClassifier(
        trained(X, y), trainer=GradientTrainer(max_epochs=0), random_state=0
    )
    estimator.fit(X, y)
    X_new, y_new = X_new[:600], y_new[:600]
    print(f"Accuracy on these digits: {estimator.score(X_new, y_new):.3f}")

    right_or_wrong = FeatureGapDisplay.from_estimator(estimator, X_new, y_new, by="prediction")
    right_or_wrong.ax_.set_title("Gap of right and wrong predictions")

    # of ten classes the three with the greatest gap are named, and a heat map shows all
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    by_class = FeatureGapDisplay.from_estimator(estimator, X_new, y_new, by="class", ax=axes[0])
    by_class.plot(axes[1], kind="heatmap")

    table = by_class.to_frame()
    print("\nMean relative displacement, by split and class:")
    print(table.round(3).to_string())
    errors = estimator.predict(X_new) != y_new
    shares = np.array([errors[y_new == label].mean() for label in table.columns])
    agreement = np.corrcoef(table.loc["output"], shares)[0, 1]
    print(f"\nCorrelation of the gap at the output with the share of errors: {agreement:.2f}")
    if len(sys.argv) > 1:
        right_or_wrong.figure_.savefig(Path(sys.argv[1]) / "displays_gap_prediction.png", dpi=70)
        figure.savefig(Path(sys.argv[1]) / "displays_gap_class.png", dpi=80)
    else:
        pyplot.show()


if __name__ == "__main__":
    main()
