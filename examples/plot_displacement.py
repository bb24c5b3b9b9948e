"""
What should the network have seen? Attribution of displacements
===============================================================

A network takes a digit for another one. Its feature target says what it should have felt;
``attribute(..., "displacement")`` says which pixels it would have had to see differently for that,
and draws the image that it should have seen.

First, digits that were spoilt on purpose: a square of each was erased, so where something is
missing is known. Then the network's own mistakes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

from featprop_sklearn import FeatureBackpropClassifier, GradientTrainer, split_points
from featprop_sklearn.inspection import attribute, mass_inside, pointing_game

SHOWN = 8


def trained(X: NDArray, y: NDArray) -> nn.Module:
    """Train a small convolutional network as one does."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64, 10)),
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    inputs, labels = torch.from_numpy(X), torch.from_numpy(y)
    for _ in range(20):
        for rows in torch.randperm(len(X)).split(50):
            loss = nn.functional.cross_entropy(network(inputs[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network


def with_holes(estimator: FeatureBackpropClassifier, X: NDArray, y: NDArray) -> tuple[NDArray, ...]:
    """Erase a square of each digit; return those that the network then gets wrong."""
    random = np.random.default_rng(0)
    squares = np.zeros((len(X), 8, 8), dtype=bool)
    for square, (top, left) in zip(squares, random.integers(1, 5, (len(X), 2)), strict=True):
        square[top : top + 3, left : left + 3] = True
    images = np.where(squares[:, None], 0, X)
    wrong = estimator.predict(images) != y
    return images[wrong], y[wrong], squares[wrong]


def main() -> None:
    """Train, ask, measure, draw; into a folder if one is given."""
    torch.set_num_threads(1)  # the layers are small: more threads only wait for each other
    digits = load_digits()
    X, y = (digits.images[:, None] / 16).astype("float32"), digits.target
    # no epochs: the network is looked at as it is
    estimator = FeatureBackpropClassifier(
        trained(X[:1000], y[:1000]), trainer=GradientTrainer(max_epochs=0)
    ).fit(X[:1000], y[:1000])
    right = estimator.predict(X[1000:]) == y[1000:]

    images, labels, squares = with_holes(estimator, X[1000:][right], y[1000:][right])
    holes = attribute(estimator, images, "displacement", target=labels)
    pointed = pointing_game(holes.maps, squares).mean()
    inside = mass_inside(holes.maps, squares).mean()
    repaired = np.mean(estimator.predict(holes.wanted.astype("float32")) == labels)
    print(f"{len(images)} digits with an erased square that the network gets wrong.")
    print(f"Maps whose maximum lies in the square: {pointed:.2f}")
    print(f"Share of the maps in the square, which is 14 % of the image: {inside:.2f}")
    print(f"Wanted images that the network takes for their labels: {repaired:.2f}")

    mistaken, asked = X[1000:][~right], y[1000:][~right]
    print(f"\n{len(mistaken)} digits that it gets wrong by itself. Share of the displacement that")
    print("no image near them makes the network feel, by split:")
    for split in split_points(estimator.network_, X[:8]):
        found = attribute(estimator, mistaken[:50], "displacement", target=asked[:50], split=split)
        print(f"  {split}: {np.median(found.residual):.2f}")

    pictures = {"holes": holes, "mistakes": found}
    for name, result in pictures.items():
        figure = result.plot(range(SHOWN)).figure_
        if len(sys.argv) > 1:
            figure.savefig(Path(sys.argv[1]) / f"displacement_{name}.png", dpi=80)
    if len(sys.argv) == 1:
        pyplot.show()


if __name__ == "__main__":
    main()
