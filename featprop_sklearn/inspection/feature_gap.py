"""How far each feature of a network is from what the labels ask for."""

from __future__ import annotations

from typing import Any

import pandas as pd
from numpy.typing import ArrayLike
from torch import nn

from featprop_sklearn.estimators import FeatureBackpropClassifier, FeatureBackpropRegressor

__all__ = ["feature_gap", "refuse_others"]


def feature_gap(
    estimator: FeatureBackpropClassifier | FeatureBackpropRegressor,
    X: Any,
    y: ArrayLike | None = None,
) -> pd.DataFrame:
    """Measure, at every split, the feature targets of a fitted estimator's network.

    Parameters
    ----------
    estimator : fitted FeatureBackpropClassifier or FeatureBackpropRegressor
        Its ``module_`` is measured, with its own propagation rule.
    X : array-like of shape (n_samples, ...), dict of str to such, or Dataset
        Samples, as in ``fit``.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Labels or values; None only for a Dataset of pairs.

    Returns
    -------
    DataFrame
        Index: every split point. Columns: ``repair_rate`` (share of the samples that the
        network gets wrong whose target, pushed forward through the frozen stages, is
        classified as the label), ``kept_rate`` (the same among those it gets right; NaN
        where there are none), ``reached`` (share whose pushed-forward output is
        acceptable), ``displacement`` and ``relative_displacement`` (mean distance of the
        target from the feature, absolute and over the feature's norm) and ``residual``
        (mean distance of the pushed-forward output from the wanted one, over its norm). Outputs
        of a regression are measured from the mean of y, in spreads of y.

    Raises
    ------
    TypeError
        If ``estimator`` is something else, a Pipeline for instance.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from featprop_sklearn import FeatureBackpropClassifier, feature_gap
    >>> X, y = load_iris(return_X_y=True)
    >>> table = feature_gap(FeatureBackpropClassifier(random_state=0).fit(X, y), X, y)
    >>> list(table.index)
    ['hidden1', 'relu1', 'hidden2', 'relu2', 'output']
    """
    refuse_others(estimator)
    quality = estimator._propagate(X, y, None, keep_targets=False).quality
    table = pd.DataFrame({split: found.summary() for split, found in quality.items()}).T
    return table.rename_axis("split")


def refuse_others(estimator: object) -> None:
    """Raise TypeError for what is not one of the package's estimators."""
    if isinstance(estimator, FeatureBackpropClassifier | FeatureBackpropRegressor):
        return
    hint = (
        "A network as it is, without training, is FeatureBackpropClassifier(network, "
        "trainer=GradientTrainer(max_epochs=0)).fit(X, y)."
        if isinstance(estimator, nn.Module)
        else "Of a Pipeline pass the last step, and X as the steps before it transform it."
    )
    raise TypeError(
        "estimator must be a fitted FeatureBackpropClassifier or FeatureBackpropRegressor; got "
        f"{type(estimator).__name__}. {hint}"
    )
