"""
Training for interpretable gradients: what it does to a network, and to its maps
================================================================================

The gradient at the pixels is noisy; with guided ReLUs it is clearer, but depends less on what the
network has learnt. :class:`GradientTrainer` can train a network so that the one comes near to the
other (Figueroa et al., VISAPP 2024). Here three networks learn digits from the same start: without
that term, with its published weight, and with a weight 13 times as large. Drawn are the gradients
that the term compares, those of the loss. The error between them falls. That does not make better
maps: the network's own insertion area falls as well, as it reacts to masked images in another way,
and a judge, another network trained without the term, finds the maps worth about what they were.
One run shows no more than that; :doc:`/interpretable_gradients` has five seeds, other networks and
more weights. Needs ``pip install 'featprop_sklearn[attribution,plots]'``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from featprop_sklearn import FeatureBackpropClassifier, GradientTrainer
from featprop_sklearn.inspection import AttributionDisplay, attribute, make_attribution_report
from featprop_sklearn.training.interpretable import gradient_errors, input_gradients

#: name of a training -> weight of the term
WEIGHTS = {"without": 0.0, "λ = 0.0075": 7.5e-3, "λ = 0.1": 0.1}
EXPLAINED, SHOWN = 300, 6


def digits() -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Return images and labels, a third of them for testing."""
    images, labels = load_digits(return_X_y=True)
    images = ((images - images.mean()) / images.std()).reshape(-1, 1, 8, 8).astype(np.float32)
    X, X_test, y, y_test = train_test_split(
        images, labels, test_size=600, random_state=0, stratify=labels
    )
    return X, X_test, y, y_test


def trained(X: NDArray, y: NDArray, weight: float, start: int = 0) -> FeatureBackpropClassifier:
    """Train a network from its first weights, which ``start`` draws."""
    torch.manual_seed(start)
    network = nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)),
    )
    trainer = GradientTrainer(
        alpha=0,
        max_epochs=30,
        lr=1e-2,
        schedule="one_cycle",
        gradient_regularization="cosine" if weight else None,
        gradient_weight=weight,
    )
    estimator = FeatureBackpropClassifier(
        network, trainer=trainer, batch_size=64, random_state=start
    )
    return estimator.fit(X, y)


def both_gradients(model: nn.Module, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses' gradient, the guided one, and the error that the term penalises."""
    x = x.requires_grad_()
    logits = model(x)
    losses = nn.functional.cross_entropy(logits, target, reduction="none")
    delta, guided = input_gradients(losses, logits, x)
    return delta, guided, gradient_errors("cosine", delta, guided)


def gradient(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Return what lowers the loss."""
    return -both_gradients(model, x, target)[0]


def guided_gradient(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Return the same with guided ReLUs."""
    return -both_gradients(model, x, target)[1]


def report(
    networks: dict[str, FeatureBackpropClassifier],
    judge: FeatureBackpropClassifier,
    X: NDArray,
    y: NDArray,
) -> None:
    """Print what the term does to accuracy, to the gradient, and to what maps are worth."""
    rows = {}
    for name, estimator in networks.items():
        few, target = X[:EXPLAINED], estimator.predict(X[:EXPLAINED])
        maps = {"gradient": attribute(estimator, few, "gradient", target=target)}
        own = make_attribution_report(estimator, few, maps, target=target)
        judged = make_attribution_report(
            estimator, few, maps, target=target, predict_proba=judge.predict_proba
        )
        errors = both_gradients(estimator.network_, torch.from_numpy(X), torch.from_numpy(y))[2]
        rows[name] = {
            "accuracy": estimator.score(X, y),
            "gradient error": float(errors.detach().mean()),
            **own.loc["gradient", ["insertion", "deletion"]],
            **judged.loc["gradient", ["insertion", "deletion"]].add_prefix("judged "),
        }
    print(pd.DataFrame.from_dict(rows, orient="index").round(3).to_string())


def draw(networks: dict[str, FeatureBackpropClassifier], X: NDArray, y: NDArray) -> Figure:
    """Draw the digits, the gradients of each network below, and a guided gradient."""
    rows = [(name, estimator, gradient) for name, estimator in networks.items()]
    rows.append(("guided,\nwithout", networks["without"], guided_gradient))
    figure, axes = plt.subplots(
        *(len(rows) + 1, SHOWN), figsize=(1.3 * SHOWN, 1.3 * len(rows) + 2), squeeze=False
    )
    for row, (name, estimator, method) in enumerate(rows):
        found = attribute(estimator, X[:SHOWN], method, target=y[:SHOWN])
        display = AttributionDisplay(
            found.maps,
            images=found.inputs if row == 0 else None,
            titles=[str(label) for label in found.target] if row == 0 else None,
            method=name,
        )
        display.plot(axes[:2] if row == 0 else axes[row + 1])
    figure.suptitle("Bright: more of it lowers the loss. Dark: less. Mid-grey: no matter.", size=10)
    figure.tight_layout()
    return figure


def main() -> None:
    """Train, measure, draw; into a folder if one is given."""
    torch.set_num_threads(1)  # the layers are small: more threads only wait for each other
    X, X_test, y, y_test = digits()
    networks = {name: trained(X, y, weight) for name, weight in WEIGHTS.items()}
    judge = trained(X, y, 0.0, start=1000)
    report(networks, judge, X_test, y_test)
    figure = draw(networks, X_test, y_test)
    if len(sys.argv) > 1:
        figure.savefig(Path(sys.argv[1]) / "interpretable_gradients.png", dpi=120)
    else:
        plt.show()


if __name__ == "__main__":
    main()
