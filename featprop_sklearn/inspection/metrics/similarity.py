"""How alike two attribution maps are: the four measures of the sanity checks, a sample at once."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import uniform_filter
from scipy.stats import rankdata

from featprop_sklearn.inspection.metrics.checks import flat_maps

__all__ = ["map_similarity"]

#: side of the windows of SSIM, and its constants for values from −1 to 1
WINDOW, C1, C2 = 7, (0.01 * 2) ** 2, (0.03 * 2) ** 2
#: cells a side of the image, and directions, of the histograms of gradients
CELLS, DIRECTIONS = 4, 9


def map_similarity(maps: ArrayLike, others: ArrayLike) -> pd.DataFrame:
    """Compare attribution maps, with their signs and without.

    Parameters
    ----------
    maps, others : array-like of shape (n_samples, positions...)
        Maps of the same samples, by two models for instance. The scale does not matter: each
        is divided by its greatest absolute value.

    Returns
    -------
    DataFrame
        One row a sample. ``spearman``: rank correlation; ``spearman_abs``: that of the absolute
        values. Of maps of images also ``ssim``, structural similarity in 7 × 7 windows, and
        ``hog``, the correlation of their histograms of gradients in 4 × 4 cells, both of
        absolute values. 1 is equal; NaN where a map is constant, which ranks nothing.

    Raises
    ------
    ValueError
        If the shapes differ.

    References
    ----------
    Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, arXiv:1810.03292.
    """
    if np.shape(maps) != np.shape(others):
        raise ValueError(
            f"maps and others must have the same shape; got {np.shape(maps)} and "
            f"{np.shape(others)}."
        )
    first, second = _scaled(maps), _scaled(others)
    found = {
        "spearman": _rank_correlation(first, second),
        "spearman_abs": _rank_correlation(np.abs(first), np.abs(second)),
    }
    if first.ndim == 3:
        found["ssim"] = _structural_similarity(np.abs(first), np.abs(second))
        found["hog"] = _correlation(_gradients(np.abs(first)), _gradients(np.abs(second)))
    return pd.DataFrame(found)


def _scaled(maps: ArrayLike) -> NDArray:
    rows = flat_maps(maps)
    greatest = np.abs(rows).max(axis=1, keepdims=True)
    return (rows / np.where(greatest > 0, greatest, 1)).reshape(np.shape(maps))


def _rank_correlation(first: NDArray, second: NDArray) -> NDArray:
    return _correlation(*(rankdata(one.reshape(len(one), -1), axis=1) for one in (first, second)))


def _correlation(first: NDArray, second: NDArray) -> NDArray:
    """Pearson's correlation of rows."""
    first, second = (one - one.mean(axis=1, keepdims=True) for one in (first, second))
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (first * second).sum(axis=1) / norms


def _structural_similarity(first: NDArray, second: NDArray) -> NDArray:
    """Mean SSIM over the windows that lie within the image (Wang et al., IEEE TIP 2004)."""
    side = min(WINDOW, *first.shape[1:])

    def mean(values: NDArray) -> NDArray:
        return uniform_filter(values, (0, side, side))

    unbiased = side**2 / (side**2 - 1) if side > 1 else 1.0
    mean1, mean2 = mean(first), mean(second)
    var1 = unbiased * (mean(first**2) - mean1**2)
    var2 = unbiased * (mean(second**2) - mean2**2)
    covariance = unbiased * (mean(first * second) - mean1 * mean2)
    alike = (2 * mean1 * mean2 + C1) * (2 * covariance + C2)
    alike /= (mean1**2 + mean2**2 + C1) * (var1 + var2 + C2)
    low, high = side // 2, (side - 1) // 2
    within = alike[:, low : first.shape[1] - high, low : first.shape[2] - high]
    return within.mean(axis=(1, 2))


def _gradients(maps: NDArray) -> NDArray:
    """Histograms of the gradients' directions in cells, normalised over the image."""
    down, right = np.gradient(maps, axis=(1, 2))
    size = np.hypot(down, right)
    direction = np.mod(np.arctan2(down, right), np.pi) / np.pi * DIRECTIONS
    index = np.minimum(direction.astype(int), DIRECTIONS - 1)
    n, height, width = maps.shape
    row = (np.arange(height) * CELLS // height)[:, None]
    column = np.arange(width) * CELLS // width
    cell = (np.arange(n)[:, None, None] * CELLS + row) * CELLS + column
    sums = np.bincount((cell * DIRECTIONS + index).ravel(), size.ravel(), n * CELLS**2 * DIRECTIONS)
    return sums.reshape(n, -1)
