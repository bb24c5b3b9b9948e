"""Digits and synthetic volumes, divided in three, and networks pretrained on the first part."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from any_network_cases import AsImages, Case
from any_network_modules import N_CLASSES
from networks import adamw
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import ortho_group
from settings import Problem, Samples, hold_out
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

PRETRAINING = {"lr": 3e-3, "lengths": (40,)}
#: of each class; edge of a volume; standard deviation of its noise, that of a pattern being 1
VOLUMES, EDGE, NOISE = 90, 8, 1.5


def prepare(case: Case, seed: int, *, shifted: bool) -> Problem:
    """Divide the data, pretrain on the first third, shift the others if asked to."""
    X, y = volumes() if case.volumes else digits()
    y = y % 2 if case.parity else y
    rest, first = train_test_split(
        np.arange(len(y)), test_size=1 / 3, stratify=y, random_state=seed
    )
    train, test = train_test_split(rest, test_size=0.5, stratify=y[rest], random_state=seed)
    network = pretrained(case, Samples(X[first], y[first]), seed)
    samples = Samples(shift(case, X, seed) if shifted else X, y)
    fitting, held_out = hold_out(y[train], seed)
    parts = (train, train[fitting], train[held_out], test)
    return Problem(network, *map(samples.at, parts), seed)


def pretrained(case: Case, data: Samples, seed: int) -> nn.Sequential:
    """Train a fresh network, as :func:`networks.adamw` does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(AsImages(case))
        [(_, trained)] = adamw(network, *data, **PRETRAINING, seed=seed)
    return trained


def shift(case: Case, X: NDArray, seed: int) -> NDArray:
    """Exchange the last two axes, or rotate all features at once."""
    if case.shift == "transposed":
        return np.ascontiguousarray(X.swapaxes(-1, -2))
    turn = ortho_group.rvs(X[0].size, random_state=seed)
    return (X.reshape(len(X), -1) @ turn).reshape(X.shape).astype(np.float32)


@cache
def digits() -> tuple[NDArray, NDArray]:
    """Images of shape (n, 1, 8, 8), pixels in 0..1."""
    data = load_digits()
    return (data.images[:, None] / 16).astype(np.float32), data.target


@cache
def volumes() -> tuple[NDArray, NDArray]:
    """A smooth random pattern for each class, moved by up to a voxel an axis, and noise."""
    rng = np.random.default_rng(0)
    patterns = gaussian_filter(rng.normal(size=(N_CLASSES, EDGE, EDGE, EDGE)), (0, 1, 1, 1))
    patterns /= patterns.std(axis=(1, 2, 3), keepdims=True)
    y = np.repeat(np.arange(N_CLASSES), VOLUMES)
    moves = rng.integers(-1, 2, size=(len(y), 3))
    moved = [np.roll(patterns[k], move, axis=(0, 1, 2)) for k, move in zip(y, moves, strict=True)]
    X = np.stack(moved)[:, None]
    return (X + rng.normal(scale=NOISE, size=X.shape)).astype(np.float32), y
