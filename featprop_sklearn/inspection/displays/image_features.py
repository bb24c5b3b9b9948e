"""Features of chosen samples that are images, and their targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from featprop_sklearn.data import plain_torch, to_array
from featprop_sklearn.networks import Chain, build_chain, chain_splits, resolve_splits

__all__ = ["ImageFeatures", "checked_numbers", "image_features"]


@dataclass(frozen=True)
class ImageFeatures:
    """Features of some samples at one split.

    Attributes
    ----------
    split : str
        Its name.
    samples : ndarray of int of shape (n_samples,)
        Their numbers.
    feature, target : ndarray of shape (n_samples, channels, height, width)
        What the network has, and what the labels ask for.
    correct : ndarray of bool of shape (n_samples,)
        Whether the network classifies each as its label.
    """

    split: str
    samples: NDArray
    feature: NDArray
    target: NDArray
    correct: NDArray


@plain_torch()
def image_features(
    estimator: Any, X: Any, y: ArrayLike | None, split: Any, samples: Any
) -> ImageFeatures:
    """Compute features and targets of chosen samples, and of no others.

    Parameters
    ----------
    estimator : fitted estimator
        Whose network it is.
    X, y : array-like
        As in ``fit``.
    split : str, int or None
        None: the estimator's own, or the first one whose features are images.
    samples : int or sequence of int
        Numbers of samples.

    Returns
    -------
    ImageFeatures
        At that split.

    Raises
    ------
    ValueError
        If the features are no images, the split is unknown, or a number is out of range.
    """
    known = estimator._known_samples(X)
    rows = checked_numbers("samples", samples, len(known), "X holds {} samples")
    x = estimator._inputs(known[rows], estimator.module_)[:]
    with torch.no_grad():
        chain = build_chain(estimator.module_, x[:8])
        at = chain.names.index(_image_split(split, estimator.split_, chain))
        feature = chain[: at + 1](x)
    name = chain.names[at]
    found = estimator._propagate(X, y, [name], rows=rows)
    return ImageFeatures(
        name,
        rows,
        to_array(feature, np.float64),
        to_array(found.targets[name][:], np.float64),
        found.quality[name].correct,
    )


def checked_numbers(name: str, given: Any, n: int, holds: str) -> NDArray:
    """Return numbers out of range(n) as an array; negative ones count from the end.

    Raises
    ------
    TypeError
        If they are no integers.
    ValueError
        If there are none, or one is out of range.
    """
    numbers = np.atleast_1d(np.asarray(given)).ravel()
    if numbers.size and numbers.dtype.kind not in "iu":
        raise TypeError(f"{name} must be an integer or a sequence of them; got {given!r}.")
    outside = numbers[(numbers < -n) | (numbers >= n)] if numbers.size else numbers
    if numbers.size == 0 or outside.size:
        raise ValueError(
            f"{name} must hold at least one number of 0 to {n - 1}: {holds.format(n)}; got "
            f"{(outside if outside.size else numbers).tolist()}."
        )
    return numbers % n


def _image_split(split: Any, own: str | Sequence[str], chain: Chain) -> str:
    points = chain_splits(chain)
    shapes = {stage.name: tuple(stage.out_shape) for stage in chain}
    images = [name for name in points if _is_image(shapes[name])]
    if split is not None:
        [name] = resolve_splits([split], chain)
        if name in images:
            return name
        what = f"split={split!r} has features of shape {shapes[name]}, which are no images."
    else:
        what = "No split point of this network has images for features."
        for name in [*([own] if isinstance(own, str) else own), *images]:
            if name in images:
                return name
    raise ValueError(
        f"{what} An image is of shape (channels, height, width). Split points whose features are "
        f"images: {images}. FeatureGapDisplay draws any network."
    )


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and min(shape[1:]) > 1
