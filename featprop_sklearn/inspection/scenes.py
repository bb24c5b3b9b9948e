"""Scenes of two handwritten digits whose places are known: what attribution is measured on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.utils import Bunch, check_random_state
from torch.nn import functional as F

from featprop_sklearn.inspection.arguments import check_integer

__all__ = ["box_masks", "make_digit_scenes"]

#: digits of the subset "train"
TRAINING = 1000
SUBSETS = {"all": slice(None), "train": slice(None, TRAINING), "test": slice(TRAINING, None)}
#: brightness from which a pixel belongs to a stroke
STROKE = 0.3


def make_digit_scenes(
    n_samples: int = 100,
    *,
    subset: str = "all",
    size: int = 32,
    digit_size: int = 12,
    random_state: int | np.random.RandomState | None = None,
) -> Bunch:
    """Put two different digits at random places of an empty image, apart from each other.

    Parameters
    ----------
    n_samples : int
        Number of scenes.
    subset : "all", "train" or "test"
        Which of scikit-learn's 1797 digits are drawn from: all, the first 1000, or the others.
    size, digit_size : int
        Sides of a scene, and of a digit in it, in pixels.
    random_state : int, RandomState or None
        For scenes that can be repeated.

    Returns
    -------
    Bunch
        - ``images`` : ndarray of shape (n_samples, 1, size, size), float32, from 0 to 1
        - ``target``, ``hostile`` : ndarray of shape (n_samples,), the one digit and the other
        - ``labels`` : ndarray of shape (n_samples, 2), both
        - ``positions`` : ndarray of shape (n_samples, 2, 2), row and column of their first pixel
        - ``boxes`` : ndarray of shape (n_samples, 2, 4), top, left, bottom, right (exclusive)
        - ``masks`` : ndarray of shape (n_samples, 2, size, size), bool, their strokes

    Raises
    ------
    ValueError
        If ``n_samples`` or ``subset`` are not allowed, or two digits do not fit.

    Examples
    --------
    >>> from featprop_sklearn.inspection import make_digit_scenes
    >>> scenes = make_digit_scenes(5, random_state=0)
    >>> scenes.images.shape, scenes.masks.shape
    ((5, 1, 32, 32), (5, 2, 32, 32))
    """
    _check(n_samples, subset, size, digit_size)
    rng = check_random_state(random_state)
    digits = load_digits()
    images, labels = digits.images[SUBSETS[subset]], digits.target[SUBSETS[subset]]
    pairs = _different(labels, n_samples, rng)
    positions = _apart(n_samples, size - digit_size + 1, digit_size, rng)
    drawn = _placed(_enlarged(images, digit_size)[pairs], positions, size)
    return Bunch(
        images=drawn.max(axis=1)[:, None].astype(np.float32),
        target=labels[pairs[:, 0]],
        hostile=labels[pairs[:, 1]],
        labels=labels[pairs],
        positions=positions,
        boxes=np.concatenate([positions, positions + digit_size], axis=2),
        masks=drawn >= STROKE,
    )


def box_masks(boxes: NDArray, shape: tuple[int, int]) -> NDArray:
    """Mark what lies in boxes.

    Parameters
    ----------
    boxes : ndarray of shape (..., 4)
        Top, left, bottom and right, the last two exclusive.
    shape : tuple of (height, width)
        Of the images.

    Returns
    -------
    ndarray of shape (..., height, width), bool
        True in the box.
    """
    top, left, bottom, right = np.moveaxis(np.asarray(boxes), -1, 0)[..., None, None]
    row, column = np.ogrid[: shape[0], : shape[1]]
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)


def _check(n_samples: Any, subset: str, size: int, digit_size: int) -> None:
    check_integer("n_samples", n_samples)
    if subset not in SUBSETS:
        raise ValueError(f"subset must be one of {', '.join(map(repr, SUBSETS))}; got {subset!r}.")
    if digit_size < 1 or size < 2 * digit_size:
        raise ValueError(
            f"size must be at least twice digit_size, so that two digits fit; got size={size} and "
            f"digit_size={digit_size}."
        )


def _different(labels: NDArray, n_samples: int, rng: np.random.RandomState) -> NDArray:
    """Draw pairs of digits that are not the same one."""
    first = rng.randint(len(labels), size=n_samples)
    second = rng.randint(len(labels), size=n_samples)
    while (same := labels[first] == labels[second]).any():
        second[same] = rng.randint(len(labels), size=same.sum())
    return np.stack([first, second], axis=1)


def _apart(n_samples: int, places: int, distance: int, rng: np.random.RandomState) -> NDArray:
    """Draw pairs of places that are ``distance`` or more apart on an axis, uniformly."""
    found = rng.randint(places, size=(n_samples, 2, 2))
    while (near := np.ptp(found, axis=1).max(axis=1) < distance).any():
        found[near] = rng.randint(places, size=(near.sum(), 2, 2))
    return found


def _enlarged(images: NDArray, side: int) -> NDArray:
    tensor = torch.from_numpy(images / 16)[:, None]
    return F.interpolate(tensor, size=(side, side), mode="bilinear")[:, 0].numpy()


def _placed(digits: NDArray, positions: NDArray, size: int) -> NDArray:
    """Draw each digit by itself, shape (n_samples, 2, size, size)."""
    side = digits.shape[-1]
    scene = np.zeros((*digits.shape[:2], size, size))
    sample, which = np.ogrid[: len(digits), :2]
    row = positions[..., 0, None, None] + np.arange(side)[:, None]
    column = positions[..., 1, None, None] + np.arange(side)
    scene[sample[..., None, None], which[..., None, None], row, column] = digits
    return scene
