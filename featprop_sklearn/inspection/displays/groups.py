"""Samples by class, or by whether the network is right about them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import is_classifier

from featprop_sklearn.estimators.samples import with_labels

__all__ = ["BY", "group_samples"]

#: what samples are told apart by
BY = ("class", "prediction", None)


def group_samples(
    by: str | None, estimator: Any, X: Any, y: ArrayLike | None, correct: NDArray
) -> dict[Any, NDArray]:
    """Tell samples apart.

    Parameters
    ----------
    by : {"class", "prediction", None}
        The labels, whether the network is right, or nothing.
    estimator : fitted estimator
        That knows what X and y are.
    X, y : array-like
        As in ``fit``.
    correct : ndarray of bool of shape (n_samples,)
        Whether the network classifies each as its label.

    Returns
    -------
    dict of str or label to ndarray of bool of shape (n_samples,)
        Which samples belong to each group; none is empty.

    Raises
    ------
    ValueError
        If ``by`` is something else, or the samples have no such groups.
    """
    if by not in BY:
        raise ValueError(f"by must be 'class', 'prediction' or None; got {by!r}.")
    if by is None:
        return {"all": np.ones(len(correct), dtype=bool)}
    if not is_classifier(estimator):
        raise ValueError(
            f"by={by!r} is for classifiers; a {type(estimator).__name__} knows no classes, and no "
            "value is simply right. Pass by=None."
        )
    if by == "prediction":
        groups = {"right": correct, "wrong": ~correct}
    else:
        X, y = with_labels(X, y)
        labels = estimator._check_y(estimator._known_samples(X), y)
        if labels.ndim != 1:
            raise ValueError(
                "by='class' is for one label a sample; y has shape "
                f"{labels.shape}. Pass by='prediction' (right: all labels are) or by=None."
            )
        groups = {label: labels == label for label in np.unique(labels).tolist()}
    return {name: members for name, members in groups.items() if members.any()}
