"""Images of the published experiment: from OpenML, from a local folder, or enlarged digits."""

from __future__ import annotations

import warnings
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import fetch_openml, load_digits
from sklearn.model_selection import train_test_split
from torch.nn import functional as F

SHAPES = {
    "digits": (1, 28, 28),
    "mnist": (1, 28, 28),
    "fashion": (1, 28, 28),
    "cifar10": (3, 32, 32),
}
OPENML = {"mnist": "mnist_784", "fashion": "Fashion-MNIST", "cifar10": "CIFAR_10"}


def load_images(name: str, folder: str | None = None) -> tuple[NDArray, NDArray]:
    """Return images of shape (n_samples, channels, height, width), and labels from 0.

    Pixels are float32 in 0..1. What cannot be had ends the program with one sentence.

    Parameters
    ----------
    name : {"digits", "mnist", "fashion", "cifar10"}
        Which data.
    folder : str, optional
        Where ``<name>.npz`` lies, written by ``np.savez(path, X=X, y=y)``: X of shape
        (n_samples, ...), each sample a flat or shaped image in the order channels, height,
        width, pixels in 0..255 or in 0..1; y of shape (n_samples,), at most ten labels.
    """
    if folder is not None:
        X, y = _from_folder(name, Path(folder))
    elif name == "digits":
        X, y = _enlarged_digits()
    else:
        X, y = _from_openml(name)
    X = np.asarray(X, dtype=np.float32).reshape(-1, *SHAPES[name])
    if X.max() > 1:
        X /= 255
    return X, np.unique(y, return_inverse=True)[1]


def divide(y: NDArray, seed: int) -> tuple[NDArray, NDArray, NDArray]:
    """Return the row numbers to train on (60 %), to choose on (15 %) and to test on (25 %)."""
    rows = np.arange(len(y))
    known, test = train_test_split(rows, test_size=0.25, stratify=y, random_state=seed)
    train, valid = train_test_split(known, test_size=0.2, stratify=y[known], random_state=seed)
    return train, valid, test


def _enlarged_digits() -> tuple[NDArray, NDArray]:
    """scikit-learn's 8 × 8 digits, bilinearly enlarged to 28 × 28."""
    digits = load_digits()
    small = torch.from_numpy(digits.images[:, None] / 16)
    return F.interpolate(small, size=SHAPES["digits"][1:], mode="bilinear").numpy(), digits.target


def _from_folder(name: str, folder: Path) -> tuple[NDArray, NDArray]:
    path = folder / f"{name}.npz"
    if not path.is_file():
        raise SystemExit(f"{path} does not exist: write it with np.savez({str(path)!r}, X=X, y=y).")
    with np.load(path) as stored:
        return stored["X"], stored["y"]


def _from_openml(name: str) -> tuple[NDArray, NDArray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says so at each of its attempts
        try:
            return fetch_openml(OPENML[name], version=1, as_frame=False, return_X_y=True)
        except (OSError, HTTPException) as error:
            raise SystemExit(
                f"{OPENML[name]} could not be fetched from OpenML ({error}): connect to the "
                f"network, or pass --folder with a local {name}.npz, or take the stand-in, "
                "--data digits."
            ) from error
