"""
Does the gap at the output foretell test accuracy?
==================================================

While a network is pretrained, the relative gap at its output, measured on training data, is
published to foretell its accuracy on test data (Ding, He, Li, Li, arXiv:2506.07188). Here three
networks learn digits, from five seeds each, and the gap is measured after every epoch: by the
published rule (margin 0) and with the margin that the estimators take. What comes for nothing is
measured beside it: training loss, training accuracy, and the number of the epoch. To tell them
apart, the same is done where two labels in five are wrong: the MLP then learns them by heart.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from scipy.stats import pearsonr, spearmanr
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from featprop_sklearn.output_targets import auto_margin, nearest_target

SEEDS, EPOCHS, TRAINED_ON = range(5), 30, 600
PUBLISHED, MARGIN = "gap, margin 0", "gap, margin auto"
PREDICTORS = (PUBLISHED, MARGIN, "training loss", "training accuracy", "epoch")
#: share of wrong labels, by title
SETTINGS = {"labels as they are": 0.0, "two labels in five wrong": 0.4}


def cnn() -> nn.Module:
    """Two convolutions."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64, 10)),
    )


def cnn_with_batch_norm() -> nn.Module:
    """The same with BatchNorm, and a mean over what is left of the image."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )


def mlp() -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()),
        nn.Linear(32, 10),
    )


NETWORKS = {"CNN": cnn, "CNN, BatchNorm": cnn_with_batch_norm, "MLP": mlp}


def relative_gap(logits: Tensor, y: Tensor, margin: float) -> float:
    """Return what ``feature_gap`` calls ``relative_displacement``, at the output."""
    moved = nearest_target(logits, y, margin) - logits
    return float((moved.norm(dim=1) / logits.norm(dim=1)).mean())


def measured(network: nn.Module, data: list[Tensor]) -> dict[str, float]:
    """Measure a network as it is."""
    X, X_test, y, y_test = data
    with torch.no_grad():
        network.eval()
        logits, test_logits = network(X), network(X_test)
    return {
        PUBLISHED: relative_gap(logits, y, 0.0),
        MARGIN: relative_gap(logits, y, auto_margin(logits)),
        "training loss": float(nn.functional.cross_entropy(logits, y)),
        "training accuracy": float((logits.argmax(1) == y).double().mean()),
        "test accuracy": float((test_logits.argmax(1) == y_test).double().mean()),
    }


def pretraining(make: Callable[[], nn.Module], data: list[Tensor], seed: int) -> Iterator[dict]:
    """Train a network; yield what is measured before the first epoch and after each."""
    X, _, y, _ = data
    torch.manual_seed(seed)
    network = make()
    optimiser = torch.optim.Adam(network.parameters(), lr=4e-3)
    for epoch in range(EPOCHS + 1):
        yield {"epoch": epoch, **measured(network, data)}
        network.train()
        for rows in torch.randperm(len(X)).split(50):
            loss = nn.functional.cross_entropy(network(X[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def digits(seed: int, wrong: float) -> list[Tensor]:
    """Divide the digits into training and test data; give some of the former wrong labels."""
    X, y = load_digits(return_X_y=True)
    X = X.reshape(-1, 1, 8, 8).astype("float32") / 16
    X, X_test, y, y_test = train_test_split(
        X, y, train_size=TRAINED_ON, stratify=y, random_state=seed
    )
    rng = np.random.default_rng(seed)
    other = (y + rng.integers(1, 10, len(y))) % 10
    y = np.where(rng.random(len(y)) < wrong, other, y)
    return [torch.from_numpy(array) for array in (X, X_test, y, y_test)]


def correlations(run: pd.DataFrame) -> pd.DataFrame:
    """Correlate each predictor with test accuracy, over the epochs of one run."""
    accuracy = run["test accuracy"]
    changes = run.diff().iloc[1:]
    return pd.DataFrame(
        {
            name: {
                "Pearson": pearsonr(run[name], accuracy)[0],
                "Spearman": spearmanr(run[name], accuracy)[0],
                # a trend alone correlates with any other; changes from epoch to epoch do not
                "Spearman of changes": np.nan
                if name == "epoch"
                else spearmanr(changes[name], changes["test accuracy"])[0],
            }
            for name in PREDICTORS
        }
    ).T.rename_axis("predictor")


def draw(runs: pd.DataFrame) -> Figure:
    """Draw test accuracy against the published gap, one panel a setting."""
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    for ax, (setting, chosen) in zip(axes, runs.groupby("setting", sort=False), strict=True):
        networks = chosen.groupby("network", sort=False)
        for (name, rows), style in zip(networks, ("o-", "^--", "s:"), strict=True):
            [line] = ax.plot(rows[PUBLISHED], rows["test accuracy"], ".", markersize=2, alpha=0.5)
            mean = rows.groupby("epoch")[[PUBLISHED, "test accuracy"]].mean()
            ax.plot(*mean.to_numpy().T, style, color=line.get_color(), markersize=4, label=name)
        ax.set(title=setting, xlabel="relative gap at the output, training data")
        if chosen[PUBLISHED].max() > 100 * chosen[PUBLISHED].min():
            ax.set_xscale("log")
        ax.invert_xaxis()  # pretraining goes from left to right
    axes[0].set_ylabel("test accuracy")
    axes[0].legend(title=f"mean of {len(SEEDS)} seeds, by epoch", loc="lower right")
    return figure


def main() -> None:
    """Pretrain, measure, correlate, draw; into a folder if one is given."""
    torch.set_num_threads(1)  # the layers are small: more threads only wait for each other
    runs, found = [], []
    for setting, wrong in SETTINGS.items():
        for name, make in NETWORKS.items():
            for seed in SEEDS:
                run = pd.DataFrame(pretraining(make, digits(seed, wrong), seed))
                place = {"setting": setting, "network": name}
                runs.append(run.assign(**place))
                found.append(correlations(run).assign(**place, seed=seed))
    table = pd.concat(found).reset_index().drop(columns="seed")
    keys = ["setting", "network", "predictor"]
    print(
        f"Correlation with test accuracy over {EPOCHS + 1} epochs, mean of {len(SEEDS)} seeds,\n"
        "and that of changes from one epoch to the next:"
    )
    print(table.groupby(keys, sort=False).mean().round(2).to_string())
    published = table[table["predictor"] == PUBLISHED]
    print("\nThe published gap, weakest and strongest seed:")
    extremes = published.drop(columns="predictor").groupby(keys[:2], sort=False).agg(["max", "min"])
    print(extremes.round(2).to_string())
    figure = draw(pd.concat(runs))
    if len(sys.argv) > 1:
        figure.savefig(Path(sys.argv[1]) / "displays_accuracy.png", dpi=80)
    else:
        pyplot.show()


if __name__ == "__main__":
    main()
