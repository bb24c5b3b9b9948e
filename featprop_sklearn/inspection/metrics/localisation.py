"""Does a map lie on the object? Scores against boxes or masks, one a sample, all vectorised."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_edt

from featprop_sklearn.inspection.metrics.checks import maps_and_masks

__all__ = [
    "best_threshold",
    "class_mean",
    "mass_inside",
    "mean_iou",
    "outside_inside_ratio",
    "pointing_game",
]

#: thresholds that best_threshold tries, as shares of a map's maximum
THRESHOLDS = np.linspace(0, 0.95, 20)


def pointing_game(maps: ArrayLike, masks: ArrayLike, *, tolerance: float = 0.0) -> NDArray:
    """Score whether the greatest value of a map lies on the object.

    Parameters
    ----------
    maps : array-like of shape (n_samples, positions...)
        Attribution, positive for the class.
    masks : array-like of shape (n_samples, positions...), bool
        Where the class is: all its boxes, or its pixels.
    tolerance : float
        Distance in pixels that still counts as a hit. On photographs the published protocol
        takes 15.

    Returns
    -------
    ndarray of shape (n_samples,)
        1 for a hit, 0 for a miss; where several positions hold the maximum, the share of them
        that hit, so that a constant map is at chance level. The accuracy is the mean over the
        classes: :func:`class_mean`.

    References
    ----------
    Zhang et al., "Top-down Neural Attention by Excitation Backprop", IJCV 2018.
    """
    rows, inside = maps_and_masks(maps, masks)
    if tolerance > 0:
        inside = _widened(np.asarray(masks), tolerance).reshape(rows.shape)
    greatest = rows == rows.max(axis=1, keepdims=True)
    return (greatest & inside).sum(axis=1) / greatest.sum(axis=1)


def mean_iou(maps: ArrayLike, masks: ArrayLike, *, threshold: float = 0.0) -> NDArray:
    """Compare the pixels above a threshold with those of the object.

    Mean of the intersection over union of the foreground, map > τ, and that of the
    background. τ is ``threshold`` times the map's maximum.

    Parameters
    ----------
    maps : array-like of shape (n_samples, positions...)
        Attribution, positive for the class.
    masks : array-like of shape (n_samples, positions...), bool
        The pixels of the class.
    threshold : float
        Share of a map's greatest value, from 0 to below 1. 0 suits signed maps; see
        :func:`best_threshold`, and report it.

    Returns
    -------
    ndarray of shape (n_samples,)
        From 0 to 1; what is empty in both counts as agreement.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be at least 0 and below 1; got {threshold!r}.")
    rows, inside = maps_and_masks(maps, masks)
    marked = rows > threshold * rows.max(axis=1, keepdims=True).clip(min=0)
    return (_overlap(marked, inside) + _overlap(~marked, ~inside)) / 2


def best_threshold(maps: ArrayLike, masks: ArrayLike) -> float:
    """Find the threshold of the greatest mean IoU, for maps of one sign.

    Parameters
    ----------
    maps, masks : array-like of shape (n_samples, positions...)
        As for :func:`mean_iou`; of samples that nothing is reported on.

    Returns
    -------
    float
        One of 0, 0.05, ..., 0.95.
    """
    means = [mean_iou(maps, masks, threshold=share).mean() for share in THRESHOLDS]
    return float(THRESHOLDS[int(np.argmax(means))])


def outside_inside_ratio(maps: ArrayLike, masks: ArrayLike) -> NDArray:
    """Compare how bright a map is outside of the object with inside.

    Parameters
    ----------
    maps : array-like of shape (n_samples, positions...)
        Attribution; what is negative counts as 0.
    masks : array-like of shape (n_samples, positions...), bool
        The pixels of the class.

    Returns
    -------
    ndarray of shape (n_samples,)
        Mean outside over mean inside: 0 is perfect, infinite where all lies outside, NaN where
        nothing is positive, or there is no outside or no inside.
    """
    rows, inside = maps_and_masks(maps, masks)
    positive = rows.clip(min=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_outside = (positive * ~inside).sum(axis=1) / (~inside).sum(axis=1)
        mean_inside = (positive * inside).sum(axis=1) / inside.sum(axis=1)
        return mean_outside / mean_inside


def mass_inside(maps: ArrayLike, masks: ArrayLike) -> NDArray:
    """Return the share of the positive attribution that lies on the object.

    ``mass_inside(-maps, hostile)`` is the share of what speaks against the class that lies on
    its rival.

    Parameters
    ----------
    maps : array-like of shape (n_samples, positions...)
        Attribution; what is negative counts as 0.
    masks : array-like of shape (n_samples, positions...), bool
        Where to look.

    Returns
    -------
    ndarray of shape (n_samples,)
        From 0 to 1; NaN where nothing is positive.
    """
    rows, inside = maps_and_masks(maps, masks)
    positive = rows.clip(min=0)
    with np.errstate(invalid="ignore"):
        return (positive * inside).sum(axis=1) / positive.sum(axis=1)


def class_mean(values: ArrayLike, classes: ArrayLike) -> float:
    """Average the values of each class, then the classes.

    Parameters
    ----------
    values : array-like of shape (n_samples,)
        Scores of samples.
    classes : array-like of shape (n_samples,)
        Labels.

    Returns
    -------
    float
        A class counts as much as any other, however many samples it has.
    """
    values, (_, index) = np.asarray(values), np.unique(classes, return_inverse=True)
    if values.ndim != 1 or values.shape != index.shape or not len(values):
        raise ValueError(
            f"values and classes must be of the same shape (n_samples,); got {values.shape} and "
            f"{index.shape}."
        )
    return float((np.bincount(index, values) / np.bincount(index)).mean())


def _overlap(found: NDArray, wanted: NDArray) -> NDArray:
    """Intersection over union of each row."""
    union = (found | wanted).sum(axis=1)
    return np.where(union == 0, 1.0, (found & wanted).sum(axis=1) / union.clip(min=1))


def _widened(masks: NDArray, tolerance: float) -> NDArray:
    """Add what lies within a distance of a mask, to each sample by itself."""
    # other samples are further away than anything in the same one
    apart = float(sum(masks.shape[1:]) + tolerance)
    distance = distance_transform_edt(~masks, sampling=(apart, *[1.0] * (masks.ndim - 1)))
    return (distance <= tolerance) & masks.reshape(len(masks), -1).any(axis=1).reshape(
        -1, *[1] * (masks.ndim - 1)
    )
