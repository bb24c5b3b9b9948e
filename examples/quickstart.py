"""
Quickstart: feature backpropagation on images and on tables
===========================================================

Part (a) pretrains a small convolutional network on 400 of scikit-learn's digits and
post-trains it on the rest, at every split point, with and without feature targets.
Part (b) searches over split points and alpha for tables, in a Pipeline and a GridSearchCV.

Epochs are chosen on held-out rows of the training data; the accuracies are those of
samples that took no part in anything.
"""

from __future__ import annotations

import time
from collections import OrderedDict

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from sklearn.base import is_classifier
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from torch import nn

from featprop_sklearn import (
    FeatureBackpropClassifier,
    FeatureBackpropRegressor,
    GradientTrainer,
    split_points,
)

ALPHAS = (0.0, 0.02, 0.1, 0.3)
SEEDS = range(5)
PRETRAINED_ON = 30  # rows of a table
QUALITY = ["repair_rate", "kept_rate", "displacement"]


def small_cnn() -> nn.Sequential:
    """Two convolutions, two linear layers, for 8 × 8 grey images."""
    return nn.Sequential(
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


def pretrained_on_digits(seed: int) -> tuple[NeuralNetClassifier, list]:
    """Fit the CNN to 400 digits; return it, and the other digits as train and test."""
    digits = load_digits()
    X, y = digits.images[:, None].astype("float32") / 16, digits.target
    X_first, X_rest, y_first, y_rest = train_test_split(
        X, y, train_size=400, stratify=y, random_state=seed
    )
    torch.manual_seed(seed)
    net = NeuralNetClassifier(
        small_cnn(),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=3e-3,
        max_epochs=20,
        train_split=None,
        verbose=0,
    ).fit(X_first, y_first)
    return net, train_test_split(X_rest, y_rest, stratify=y_rest, random_state=seed)


def post_train(net: NeuralNetClassifier, data: list, split: str, alpha: float, seed: int) -> dict:
    """Post-train at one split with one alpha; return a row of measures."""
    torch.set_num_threads(1)  # the layers are small: more threads only wait for each other
    X_train, X_test, y_train, y_test = data
    estimator = FeatureBackpropClassifier(
        net,
        split=split,
        trainer=GradientTrainer(alpha=alpha, lr=3e-3, max_epochs=30),
        batch_size=64,
        random_state=seed,
    ).fit(X_train, y_train)
    return {
        "split": split,
        "alpha": alpha,
        "seed": seed,
        "accuracy": estimator.score(X_test, y_test),
        "seconds": estimator.report_["seconds"],
        **{name: estimator.report_[name] for name in QUALITY},
    }


def images() -> None:
    """Post-train a small CNN on digits at every split point and print the table."""
    runs, before = [], []
    splits: list[str] = []
    for seed in SEEDS:
        net, data = pretrained_on_digits(seed)
        splits = split_points(net, data[0])
        before.append((net.predict(data[1]) == data[3]).mean())
        runs += Parallel(n_jobs=2)(
            delayed(post_train)(net, data, split, alpha, seed)
            for split in splits
            for alpha in ALPHAS
        )
        print(f"  pretraining {seed + 1} of {len(SEEDS)}: post-trained at all splits", flush=True)
    table = pd.DataFrame(runs)
    accuracy = table.groupby(["split", "alpha"])["accuracy"].mean().unstack()
    accuracy.columns = [f"alpha {alpha}" for alpha in ALPHAS]
    quality = table.groupby("split")[[*QUALITY, "seconds"]].mean()
    print(
        f"\nHeld-out accuracy of the network as it is: {np.mean(before):.3f}\n"
        f"and post-trained, mean of {len(SEEDS)} pretrained networks (alpha 0.0 is plain\n"
        "fine-tuning of the same weights; seconds for one fit):"
    )
    print(quality.join(accuracy).loc[splits].round(3).to_string())
    print_differences(table, splits)


def print_differences(table: pd.DataFrame, splits: list[str]) -> None:
    """Say where feature targets helped over plain fine-tuning, network by network."""
    by_seed = table.pivot_table(index="seed", columns=["split", "alpha"], values="accuracy")
    print("\nAccuracy with targets minus without, in points (mean ± standard error):")
    for split in splits:
        cells = []
        for alpha in ALPHAS[1:]:
            gain = 100 * (by_seed[split][alpha] - by_seed[split][0.0])
            cells.append(f"alpha {alpha}: {gain.mean():+.2f} ± {gain.sem():.2f}")
        print(f"  {split:8s} {'   '.join(cells)}")


def tables() -> None:
    """Search over split points and alpha in a Pipeline, for a classifier and a regressor."""
    for load, mlp, l2, wrapper, name in (
        (load_breast_cancer, MLPClassifier, 1.0, FeatureBackpropClassifier, "breast_cancer"),
        (load_diabetes, MLPRegressor, 1000.0, FeatureBackpropRegressor, "diabetes"),
    ):
        X, y = load(return_X_y=True, as_frame=True)
        X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
        scaler = StandardScaler().fit(X_train)
        pretrained = mlp(
            hidden_layer_sizes=(32, 16), solver="lbfgs", alpha=l2, max_iter=5000, random_state=0
        ).fit(scaler.transform(X_train[:PRETRAINED_ON]), y_train[:PRETRAINED_ON])
        trainer = GradientTrainer(lr=3e-3, max_epochs=20)
        pipeline = make_pipeline(
            StandardScaler(), wrapper(pretrained, trainer=trainer, random_state=0)
        )
        step = wrapper.__name__.lower()
        search = GridSearchCV(
            pipeline,
            {
                f"{step}__split": split_points(pretrained, scaler.transform(X_train)),
                f"{step}__trainer__alpha": ALPHAS,
            },
            cv=3,
            n_jobs=2,
            verbose=1,
        ).fit(X_train, y_train)
        measure = "accuracy" if is_classifier(pretrained) else "R²"
        before = pretrained.score(scaler.transform(X_test), y_test)
        best = {key.removeprefix(f"{step}__"): value for key, value in search.best_params_.items()}
        print(
            f"  {name}: {measure} {before:.3f} as it is, {search.score(X_test, y_test):.3f} "
            f"post-trained (held out; chosen by cross-validation: {best})",
            flush=True,
        )


def main() -> None:
    """Run both parts and print their tables."""
    started = time.perf_counter()
    print("(a) Digits as images", flush=True)
    images()
    print("\n(b) Tables", flush=True)
    tables()
    print(f"\nDone in {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
