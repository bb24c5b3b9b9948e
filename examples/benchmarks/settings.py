"""The twenty settings: data, what changes after pretraining, and the pretrained network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from networks import adamw, cnn, mlp
from numpy.typing import NDArray
from scipy.stats import ortho_group
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_wine,
    make_classification,
    make_regression,
)
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn

LARGE = 20_000
PRETRAINED_ON = {"digits": 400, "digits_vectors": 400, "classification": 2000, "regression": 2000}
PRETRAINING = {"lr": 3e-3, "lengths": (60,)}
HELD_OUT = 0.25
NOISE = 0.3  # standard deviation; pixels lie in 0..1

IMAGE_SHIFTS = ("same", "transposed", "inverted", "noisy", "class_rare")
TABLE_SHIFTS = {
    "breast_cancer": ("rotated", "rescaled"),  # without one of its two classes nothing is left
    "wine": ("rotated", "class_missing"),
    "digits_vectors": ("rotated", "class_missing"),
    "classification": ("rotated", "class_missing"),
    "diabetes": ("rotated",),
    "regression": ("rotated",),
}
REGRESSION = ("diabetes", "regression")
SHARE_OF_CLASS = {"class_rare": 0.1, "class_missing": 0.0}  # what of one class pretraining sees


class Samples(NamedTuple):
    """Rows and their labels, or values."""

    X: NDArray
    y: NDArray

    def at(self, rows: NDArray) -> Samples:
        """Select rows."""
        return Samples(self.X[rows], self.y[rows])


@dataclass(frozen=True)
class Setting:
    """One line of the tables."""

    data: str
    shift: str
    network: str

    @property
    def name(self) -> str:
        """What --settings matches."""
        return f"{self.data}-{self.shift}-{self.network}"

    @property
    def group(self) -> str:
        """What the summary counts together."""
        if self.data == "digits":
            return "images"
        return "regression" if self.data in REGRESSION else "tables"

    @property
    def measures_targets(self) -> bool:
        """Whether the repair rates of its network are tabled too."""
        return self.group == "images" or self.data in ("breast_cancer", "wine", "digits_vectors")

    @property
    def measures_memory(self) -> bool:
        """Whether what ``memory=`` saves is measured here: the same everywhere, so once."""
        return self.name == "digits-same-cnn"


SETTINGS = (
    *(Setting("digits", shift, network) for network in ("cnn", "bn_cnn") for shift in IMAGE_SHIFTS),
    *(Setting(data, shift, "mlp") for data, shifts in TABLE_SHIFTS.items() for shift in shifts),
)


def matching(patterns: Sequence[str]) -> list[Setting]:
    """Return the settings whose names match any of the patterns, such as 'digits-*-cnn'."""
    return [s for s in SETTINGS if any(fnmatch(s.name, pattern) for pattern in patterns)]


@dataclass(frozen=True)
class Problem:
    """A pretrained network and the shifted data that it is post-trained and tested on."""

    network: nn.Sequential
    train: Samples
    fitting: Samples
    held_out: Samples
    test: Samples
    seed: int

    @property
    def is_regression(self) -> bool:
        """Whether y holds values."""
        return np.issubdtype(self.train.y.dtype, np.floating)

    @property
    def penultimate(self) -> str:
        """Name of the stage before the output layer."""
        return [name for name, _ in self.network.named_children()][-2]


def prepare(setting: Setting, seed: int) -> Problem:
    """Divide the data, pretrain on the unshifted rows, shift all of them."""
    X, y = load(setting.data)
    classes = None if setting.group == "regression" else y
    train, test = train_test_split(
        np.arange(len(y)), test_size=0.5, stratify=classes, random_state=seed
    )
    if setting.group != "images":
        X = StandardScaler().fit(X[train]).transform(X)
    if setting.group == "regression":
        y = (y - y[train].mean()) / y[train].std()
    n_outputs = 1 if classes is None else len(np.unique(classes))
    seen = pretraining_rows(setting, train, y, seed)
    network = pretrain(setting, Samples(_float32(X), y).at(seen), n_outputs, seed)
    shifted = Samples(_float32(SHIFTS[setting.shift](X, np.random.default_rng(seed))), y)
    training = shifted.at(train)
    fitting, held_out = hold_out(training.y, seed)
    return Problem(
        network,
        training,
        training.at(fitting),
        training.at(held_out),
        shifted.at(test),
        seed,
    )


def hold_out(y: NDArray, seed: int) -> tuple[NDArray, NDArray]:
    """Rows to fit and rows to choose on: those that the estimators hold out, given this seed."""
    fitting, held_out = train_test_split(
        np.arange(len(y)),
        test_size=HELD_OUT,
        random_state=seed,
        stratify=None if np.issubdtype(y.dtype, np.floating) else y,
    )
    return np.sort(fitting), np.sort(held_out)


@cache
def load(data: str) -> tuple[NDArray, NDArray]:
    """Samples in their own units (pixels in 0..1), and labels or values."""
    if data == "digits":
        digits = load_digits()
        return digits.images[:, None] / 16, digits.target
    if data == "classification":
        return make_classification(
            LARGE, 50, n_informative=20, n_redundant=10, n_classes=8, random_state=0
        )
    if data == "regression":
        return make_regression(LARGE, 50, n_informative=30, noise=100.0, random_state=0)
    loaders = {
        "breast_cancer": load_breast_cancer,
        "wine": load_wine,
        "digits_vectors": load_digits,
        "diabetes": load_diabetes,
    }
    return loaders[data](return_X_y=True)


def pretraining_rows(setting: Setting, train: NDArray, y: NDArray, seed: int) -> NDArray:
    """Training rows that pretraining sees: few of one class, or none, where the setting says so."""
    size = PRETRAINED_ON.get(setting.data, len(train))
    rows = train
    if size < len(train):
        stratify = None if setting.group == "regression" else y[train]
        rows, _ = train_test_split(train, train_size=size, stratify=stratify, random_state=seed)
    if setting.shift not in SHARE_OF_CLASS:
        return rows
    of_class = rows[y[rows] == removed_class(y, seed)]
    dropped = of_class[round(SHARE_OF_CLASS[setting.shift] * len(of_class)) :]
    return np.setdiff1d(rows, dropped)


def removed_class(y: NDArray, seed: int) -> int:
    """Return the class that pretraining misses: another one with each seed."""
    return seed % len(np.unique(y))


def pretrain(setting: Setting, data: Samples, n_outputs: int, seed: int) -> nn.Sequential:
    """Train a fresh network on the rows that pretraining sees."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if setting.network == "mlp":
            network = mlp(data.X.shape[1], n_outputs)
        else:
            network = cnn(n_outputs, batch_norm=setting.network == "bn_cnn")
    [(_, trained)] = adamw(network, *data, **PRETRAINING, seed=seed)
    return trained


def _float32(X: NDArray) -> NDArray:
    return np.ascontiguousarray(X, dtype=np.float32)


def _unshifted(X: NDArray, rng: np.random.Generator) -> NDArray:
    return X


def _transposed(X: NDArray, rng: np.random.Generator) -> NDArray:
    return X.swapaxes(-1, -2)


def _inverted(X: NDArray, rng: np.random.Generator) -> NDArray:
    return 1 - X


def _noisy(X: NDArray, rng: np.random.Generator) -> NDArray:
    return X + rng.normal(scale=NOISE, size=X.shape)


def _rotated(X: NDArray, rng: np.random.Generator) -> NDArray:
    return X @ ortho_group.rvs(X.shape[1], random_state=rng)


def _rescaled(X: NDArray, rng: np.random.Generator) -> NDArray:
    return X * np.exp(rng.normal(size=X.shape[1]))


SHIFTS: dict[str, Callable[[NDArray, np.random.Generator], NDArray]] = {
    "same": _unshifted,
    "transposed": _transposed,
    "inverted": _inverted,
    "noisy": _noisy,
    "class_rare": _unshifted,
    "class_missing": _unshifted,
    "rotated": _rotated,
    "rescaled": _rescaled,
}
