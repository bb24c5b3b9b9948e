"""Does the network answer from what a map shows? Scores of masked, emptied and filled images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import trapezoid
from scipy.ndimage import gaussian_filter

from featprop_sklearn.inspection.arguments import check_integer
from featprop_sklearn.inspection.metrics.checks import flat_maps, scores

__all__ = [
    "average_drop",
    "average_gain",
    "average_increase",
    "curve_area",
    "deletion_curve",
    "insertion_curve",
    "masked_scores",
]

PredictProba = Callable[[NDArray], Any]
#: standard deviation of the blur, as a share of the sides of an image
BLUR = 0.1


def average_drop(p: ArrayLike, o: ArrayLike) -> float:
    """Average percentage by which the class loses probability: 100·mean(max(0, p − o)/p).

    Parameters
    ----------
    p, o : array-like of shape (n_samples,)
        Probability of the class on the image, and on the image times its map; see
        :func:`masked_scores`.

    Returns
    -------
    float
        0 to 100, lower is better.
    """
    p, o = scores(p=p, o=o)
    lost = (p - o).clip(min=0)
    return float(100 * np.divide(lost, p, out=np.zeros_like(p), where=p > 0).mean())


def average_increase(p: ArrayLike, o: ArrayLike) -> float:
    """Percentage of the samples whose class gains probability: 100·mean(p < o).

    Parameters
    ----------
    p, o : array-like of shape (n_samples,)
        As for :func:`average_drop`.

    Returns
    -------
    float
        0 to 100, higher is better.
    """
    p, o = scores(p=p, o=o)
    return float(100 * (p < o).mean())


def average_gain(p: ArrayLike, o: ArrayLike) -> float:
    """Average percentage of the missing probability gained: 100·mean(max(0, o − p)/(1 − p)).

    Parameters
    ----------
    p, o : array-like of shape (n_samples,)
        As for :func:`average_drop`.

    Returns
    -------
    float
        0 to 100, higher is better.

    References
    ----------
    Zhang et al., "Opti-CAM: Optimizing saliency maps for interpretability", CVIU 2024.
    """
    p, o = scores(p=p, o=o)
    won = (o - p).clip(min=0)
    return float(100 * np.divide(won, 1 - p, out=np.zeros_like(p), where=p < 1).mean())


def masked_scores(
    predict_proba: PredictProba, X: ArrayLike, maps: ArrayLike, *, target: Any = None
) -> tuple[NDArray, NDArray]:
    """Return the probability of a class on images, and on images times their maps.

    Parameters
    ----------
    predict_proba : callable
        From samples to probabilities of shape (n_samples, n_classes).
    X : array-like of shape (n_samples, channels, positions...)
        Images; tables of shape (n_samples, n_features) do as well.
    maps : array-like of shape (n_samples, positions...)
        Attribution; each is scaled to the range from 0 to 1. A constant one keeps the image.
    target : array-like of shape (n_samples,), default=None
        Column of the class; None is the class predicted on X.

    Returns
    -------
    p : ndarray of shape (n_samples,)
        On the images.
    o : ndarray of shape (n_samples,)
        On the images times their maps.
    """
    X, maps = _images_and_maps(X, maps)
    columns = _columns(predict_proba, X, target)
    axes = tuple(range(1, maps.ndim))
    low = maps.min(axis=axes, keepdims=True)
    spread = np.ptp(maps, axis=axes, keepdims=True)
    shares = np.divide(maps - low, spread, out=np.ones_like(maps), where=spread > 0)
    masked = (X * _with_channels(shares, X)).astype(X.dtype)
    return _probability(predict_proba, X, columns), _probability(predict_proba, masked, columns)


def deletion_curve(
    predict_proba: PredictProba,
    X: ArrayLike,
    maps: ArrayLike,
    *,
    target: Any = None,
    baseline: float = 0.0,
    steps: int = 20,
) -> NDArray:
    """Follow the probability of a class while the most important pixels are deleted first.

    Parameters
    ----------
    predict_proba : callable
        From samples to probabilities of shape (n_samples, n_classes).
    X : array-like of shape (n_samples, channels, positions...)
        Images; tables of shape (n_samples, n_features) do as well.
    maps : array-like of shape (n_samples, positions...)
        Attribution; only the order of its values counts.
    target : array-like of shape (n_samples,), default=None
        Column of the class; None is the class predicted on X.
    baseline : float
        What takes the place of a deleted pixel. Normalised images have their mean at 0.
    steps : int
        Number of equal steps from the whole image to none of it.

    Returns
    -------
    ndarray of shape (n_samples, steps + 1)
        Probabilities; the lower the :func:`curve_area`, the better the map.

    References
    ----------
    Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box
    Models", BMVC 2018.
    """
    X, maps = _images_and_maps(X, maps)
    columns = _columns(predict_proba, X, target)
    return _exchanged(predict_proba, X, np.full_like(X, baseline), maps, columns, steps)


def insertion_curve(
    predict_proba: PredictProba,
    X: ArrayLike,
    maps: ArrayLike,
    *,
    target: Any = None,
    blur: float | None = None,
    steps: int = 20,
) -> NDArray:
    """Follow the probability of a class while the most important pixels come into view first.

    Parameters
    ----------
    predict_proba : callable
        From samples to probabilities of shape (n_samples, n_classes).
    X : array-like of shape (n_samples, channels, positions...)
        Images; tables of shape (n_samples, n_features) do as well.
    maps : array-like of shape (n_samples, positions...)
        Attribution; only the order of its values counts.
    target : array-like of shape (n_samples,), default=None
        Column of the class; None is the class predicted on X.
    blur : float or None
        Standard deviation in pixels of the blurred image that pixels are inserted into; None
        is a tenth of each side.
    steps : int
        Number of equal steps from none of the image to the whole.

    Returns
    -------
    ndarray of shape (n_samples, steps + 1)
        Probabilities; the higher the :func:`curve_area`, the better the map.

    References
    ----------
    Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box
    Models", BMVC 2018.
    """
    X, maps = _images_and_maps(X, maps)
    columns = _columns(predict_proba, X, target)
    kept = X.ndim - maps.ndim + 1
    widths = [BLUR * n if blur is None else blur for n in X.shape[kept:]]
    blurred = gaussian_filter(X, (*[0.0] * kept, *widths))
    return _exchanged(predict_proba, blurred, X, maps, columns, steps)


def curve_area(curves: ArrayLike) -> NDArray:
    """Return the area under curves of equal steps from 0 to 1, by trapezoids.

    Parameters
    ----------
    curves : array-like of shape (..., n_points)
        Values, both ends included.

    Returns
    -------
    ndarray of shape (...)
        Areas.
    """
    values = np.asarray(curves, dtype=np.float64)
    if values.ndim == 0 or values.shape[-1] < 2:
        raise ValueError(f"curves must hold at least 2 points each; got shape {values.shape}.")
    return trapezoid(values, dx=1 / (values.shape[-1] - 1), axis=-1)


def _exchanged(
    predict_proba: PredictProba,
    start: NDArray,
    end: NDArray,
    maps: NDArray,
    columns: NDArray,
    steps: int,
) -> NDArray:
    """Replace pixels of ``start`` by those of ``end``, the greatest of the map first."""
    check_integer("steps", steps)
    rows = flat_maps(maps)
    order = np.argsort(-rows, axis=1, kind="stable")
    ranks = np.argsort(order, axis=1).reshape(maps.shape)
    counts = np.rint(np.linspace(0, rows.shape[1], steps + 1))
    images = (np.where(_with_channels(ranks < count, start), end, start) for count in counts)
    return np.stack([_probability(predict_proba, one, columns) for one in images], axis=1)


def _images_and_maps(X: ArrayLike, maps: ArrayLike) -> tuple[NDArray, NDArray]:
    X, maps = np.asarray(X), np.asarray(maps, dtype=np.float64)
    X = X if np.issubdtype(X.dtype, np.floating) else X.astype(np.float64)
    flat_maps(maps)
    if maps.shape not in (X.shape, (*X.shape[:1], *X.shape[2:])):
        raise ValueError(
            f"maps must be of the shape of X, {X.shape}, without its channels; got {maps.shape}."
        )
    return X, maps


def _with_channels(values: NDArray, X: NDArray) -> NDArray:
    return values if values.ndim == X.ndim else values[:, None]


def _columns(predict_proba: PredictProba, X: NDArray, target: Any) -> NDArray:
    if target is None:
        return np.asarray(predict_proba(X)).argmax(axis=1)
    columns = np.asarray(target)
    if columns.shape != (len(X),) or not np.issubdtype(columns.dtype, np.integer):
        raise ValueError(
            f"target must be one column of predict_proba for each of the {len(X)} samples; got "
            f"{columns.dtype} of shape {columns.shape}."
        )
    return columns


def _probability(predict_proba: PredictProba, X: NDArray, columns: NDArray) -> NDArray:
    return np.asarray(predict_proba(X))[np.arange(len(X)), columns]
