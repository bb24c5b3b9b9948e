"""
Quickstart: feature backpropagation on images and on tables
===========================================================

Part (a) pretrains a small convolutional network on 400 of scikit-learn's digits and
post-trains it on the rest: by plain fine-tuning, on the published feature targets at several
split points, and as the estimator does by default. Part (b) does the same for tables, in a
Pipeline; there GridSearchCV chooses split point and alpha.

Whatever is chosen is chosen on held-out rows of the training data; the accuracies are those of
samples that took no part in anything.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

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
    feature_gap,
    split_points,
)

ALPHAS = (0.0, 0.02, 0.1, 0.3)  # 0 is plain fine-tuning of the same weights
SPLITS = ("conv1", "conv2", "relu2", "hidden", "relu3", "output")
SEEDS = range(5)
MEASURED_ON = 200  # digits whose targets are looked at
PRETRAINED_ON = 30  # rows of a table


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


def published(net: NeuralNetClassifier, split: str, alpha: float, seed: int) -> Any:
    """Make an estimator of the published rule: targets layer by layer, and no margin."""
    return FeatureBackpropClassifier(
        net,
        split=split,
        propagation="layerwise",
        margin=0.0,
        trainer=GradientTrainer(alpha=alpha, lr=3e-3, max_epochs=30),
        batch_size=64,
        random_state=seed,
    )


def post_train(estimator: Any, data: list) -> dict[str, float]:
    """Fit and score one estimator."""
    torch.set_num_threads(1)
    X_train, X_test, y_train, y_test = data
    estimator.fit(X_train, y_train)
    return {
        "accuracy": estimator.score(X_test, y_test),
        "seconds": estimator.report_["seconds"],
    }


def target_quality(net: NeuralNetClassifier, data: list) -> pd.DataFrame:
    """Say how good the targets of each rule of propagation are, on some digits, by split."""
    torch.set_num_threads(1)
    X, y = data[0][:MEASURED_ON], data[2][:MEASURED_ON]
    columns = {}
    for rule in ("layerwise", "joint"):
        untrained = FeatureBackpropClassifier(
            net, propagation=rule, trainer=GradientTrainer(max_epochs=0)
        ).fit(X, y)
        gap = feature_gap(untrained, X, y)
        for measure in ("repair_rate", "kept_rate", "displacement"):
            columns[measure, rule] = gap[measure]
    return pd.DataFrame(columns).loc[list(SPLITS)]


def images() -> None:
    """Post-train a small CNN on digits in every way and print the tables."""
    pretrained = {seed: pretrained_on_digits(seed) for seed in SEEDS}
    qualities = Parallel(n_jobs=2)(delayed(target_quality)(*pair) for pair in pretrained.values())
    print_targets(qualities)
    runs = []
    for seed, (net, data) in pretrained.items():
        estimators = {
            (split, f"alpha {alpha}"): published(net, split, alpha, seed)
            for split in SPLITS
            for alpha in ALPHAS
        }
        estimators["output", "default"] = FeatureBackpropClassifier(net, random_state=seed)
        found = Parallel(n_jobs=2)(
            delayed(post_train)(estimator, data) for estimator in estimators.values()
        )
        before = {"accuracy": (net.predict(data[1]) == data[3]).mean(), "seconds": 0.0}
        rows = zip([("output", "as it is"), *estimators], [before, *found], strict=True)
        runs += [{"seed": seed, "split": at, "method": how, **run} for (at, how), run in rows]
        print(f"  network {seed + 1} of {len(SEEDS)} post-trained", flush=True)
    print_accuracies(pd.DataFrame(runs))


def print_targets(qualities: list[pd.DataFrame]) -> None:
    """Print how good the targets of both rules are."""
    mean = pd.concat(qualities).groupby(level=0, sort=False).mean()
    print(
        "Repair and kept rate: share of the samples, wrong or right now, whose feature target the\n"
        "rest of the network turns into the label. Displacement: how far it is from the feature.\n"
        f"Mean of {len(SEEDS)} pretrained networks:"
    )
    print(mean.round(3).to_string(), flush=True)


def print_accuracies(runs: pd.DataFrame) -> None:
    """Print accuracies by split, then those at the output beside the default's."""
    by_split = runs[runs["method"].str.startswith("alpha")]
    table = by_split.pivot_table(index="split", columns="method", values="accuracy")
    print(
        "\nHeld-out accuracy, trained on the published targets of a split (alpha 0.0: without\n"
        "them, which is plain fine-tuning of the same weights):"
    )
    print(table.loc[list(SPLITS)].round(3).to_string())
    at_output = runs[runs["split"] == "output"]
    accuracy = at_output.pivot(index="seed", columns="method", values="accuracy")
    gain = 100 * accuracy.sub(accuracy["alpha 0.0"], axis=0)
    seconds = at_output.groupby("method")["seconds"].mean()
    print(
        "\nAt the output, and the default beside it (joint targets, automatic trainer); points\n"
        "over alpha 0.0 (mean ± standard error), and seconds of one fit:"
    )
    for method in at_output["method"].unique():
        print(
            f"  {method:10s} {accuracy[method].mean():.3f}   "
            f"{gain[method].mean():+6.2f} ± {gain[method].sem():.2f}   {seconds[method]:.1f} s"
        )


def tables() -> None:
    """Do the same for a classifier and a regressor of tables, in a Pipeline."""
    for load, mlp, l2, wrapper, name in (
        (load_breast_cancer, MLPClassifier, 1.0, FeatureBackpropClassifier, "breast_cancer"),
        (load_diabetes, MLPRegressor, 1000.0, FeatureBackpropRegressor, "diabetes"),
    ):
        X, y = load(return_X_y=True, as_frame=True)
        X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
        scaler = StandardScaler().fit(X_train)
        net = mlp(
            hidden_layer_sizes=(32, 16), solver="lbfgs", alpha=l2, max_iter=5000, random_state=0
        ).fit(scaler.transform(X_train[:PRETRAINED_ON]), y_train[:PRETRAINED_ON])
        default = make_pipeline(StandardScaler(), wrapper(net, random_state=0))
        models = {
            "alpha 0.0": search(wrapper, net, X_train, ALPHAS[:1]),
            "published": search(wrapper, net, X_train, ALPHAS[1:]),
            "default": default,
        }
        measure = "accuracy" if is_classifier(net) else "R²"
        print(f"  {name}, {measure}: {net.score(scaler.transform(X_test), y_test):.3f} as it is")
        for label, model in models.items():
            started = time.perf_counter()
            score = model.fit(X_train, y_train).score(X_test, y_test)
            seconds = time.perf_counter() - started
            chosen = getattr(model, "best_params_", {})
            names = ", ".join(f"{key.split('__')[-1]} {value}" for key, value in chosen.items())
            print(f"    {label:10s} {score:.3f}   {seconds:5.1f} s   {names}", flush=True)


def search(wrapper: Any, net: Any, X_train: pd.DataFrame, alphas: Sequence[float]) -> GridSearchCV:
    """Let cross-validation choose split point and alpha of the published rule."""
    margin = {"margin": 0.0} if is_classifier(net) else {}
    trainer = GradientTrainer(lr=3e-3, max_epochs=20)
    estimator = wrapper(net, propagation="layerwise", trainer=trainer, random_state=0, **margin)
    step = wrapper.__name__.lower()
    grid = {
        f"{step}__split": split_points(net, X_train.to_numpy()),
        f"{step}__trainer__alpha": alphas,
    }
    return GridSearchCV(make_pipeline(StandardScaler(), estimator), grid, cv=3, n_jobs=2)


def main() -> None:
    """Run both parts and print their tables."""
    started = time.perf_counter()
    torch.set_num_threads(1)  # the layers are small: more threads only wait for each other
    print("(a) Digits as images", flush=True)
    images()
    print("\n(b) Tables (split and alpha chosen by cross-validation)", flush=True)
    tables()
    print(f"\nDone in {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
