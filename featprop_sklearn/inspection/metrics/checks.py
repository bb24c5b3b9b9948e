"""Maps, masks and scores: arrays of matching shapes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["flat_maps", "maps_and_masks", "scores"]


def flat_maps(maps: ArrayLike, name: str = "maps") -> NDArray:
    """Return maps as rows of shape (n_samples, n_positions), float64.

    Raises
    ------
    ValueError
        If there are no positions, or numbers that are not finite.
    """
    found = np.asarray(maps, dtype=np.float64)
    if found.ndim < 2 or found.size == 0:
        raise ValueError(f"{name} must be of shape (n_samples, positions...); got {found.shape}.")
    if not np.isfinite(found).all():
        raise ValueError(f"{name} must hold finite numbers; got NaN or infinity.")
    return found.reshape(len(found), -1)


def maps_and_masks(maps: ArrayLike, masks: ArrayLike) -> tuple[NDArray, NDArray]:
    """Return maps and boolean masks as rows.

    Raises
    ------
    ValueError
        If they differ in shape, or the masks are not boolean.
    """
    inside = np.asarray(masks)
    if inside.dtype != bool or inside.shape != np.shape(maps):
        raise ValueError(
            f"masks must be a boolean array of the shape of maps, {np.shape(maps)}; got "
            f"{inside.dtype} of shape {inside.shape}. Of boxes, make them with box_masks."
        )
    return flat_maps(maps), inside.reshape(len(inside), -1)


def scores(**named: ArrayLike) -> list[NDArray]:
    """Return class probabilities of samples.

    Raises
    ------
    ValueError
        If they are not probabilities, one a sample, as many in each argument.
    """
    found = {name: np.asarray(value, dtype=np.float64) for name, value in named.items()}
    shape = next(iter(found.values())).shape
    for name, value in found.items():
        if value.ndim != 1 or value.shape != shape or not len(value):
            raise ValueError(
                f"{name} must be of shape (n_samples,), as many as the others; got {value.shape}."
            )
        if not ((value >= 0) & (value <= 1)).all():
            raise ValueError(
                f"{name} must be probabilities between 0 and 1; got {value.min():.3g} to "
                f"{value.max():.3g}. Pass what predict_proba returns for one class."
            )
    return list(found.values())
