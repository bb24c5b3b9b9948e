"""One table of what attribution methods are worth on images whose objects are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import RegressorMixin

from featprop_sklearn.data import to_array
from featprop_sklearn.estimators import FeatureBackpropRegressor
from featprop_sklearn.inspection.attribute import attribute, takes_hostile
from featprop_sklearn.inspection.attribution_result import AttributionResult
from featprop_sklearn.inspection.explained import ask
from featprop_sklearn.inspection.metrics.faithfulness import (
    PredictProba,
    average_drop,
    average_gain,
    average_increase,
    curve_area,
    deletion_curve,
    insertion_curve,
    masked_scores,
)
from featprop_sklearn.inspection.metrics.localisation import (
    best_threshold,
    class_mean,
    mass_inside,
    mean_iou,
    outside_inside_ratio,
    pointing_game,
)
from featprop_sklearn.inspection.metrics.probabilities import class_probabilities

__all__ = ["make_attribution_report"]

FAITHFULNESS = ("average_drop", "average_increase", "average_gain", "insertion", "deletion")
#: share of the samples that the threshold of mean IoU is chosen on
TUNED_ON = 0.2


def make_attribution_report(
    estimator: Any,
    X: Any,
    methods: str | Sequence[str] | Mapping[str, Any] = ("rsp", "grad_cam", "integrated_gradients"),
    *,
    target: Any = None,
    hostile: Any = "runner_up",
    masks: ArrayLike | None = None,
    hostile_masks: ArrayLike | None = None,
    predict_proba: PredictProba | None = None,
    tolerance: float = 0.0,
    steps: int = 20,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Compare attribution methods on the same samples.

    Parameters
    ----------
    estimator : FeatureBackpropClassifier or -Regressor, nn.Module, or skorch net; fitted
        Whose network is explained.
    X : array-like of shape (n_samples, ...)
        Samples.
    methods : str, sequence of str, or dict
        Names of methods; or a dict from the name of a row to the name of a method, a callable,
        or the :class:`AttributionResult` that :func:`attribute` returned for the same samples
        and targets, with any options. Displacement wants the target answered; of several
        labels, beside those that are answered.
    target, hostile : labels
        The class that is explained, and those that speak against it; as in :func:`attribute`.
    masks : array-like of shape (n_samples, positions...), bool, default=None
        Where the target is.
    hostile_masks : array-like of shape (n_samples, positions...), bool, default=None
        Where its rivals are.
    predict_proba : callable, default=None
        From inputs of the network to probabilities of shape (n_samples, n_classes). None is
        ``predict_proba`` of a classifier of this package; else the softmax of the logits, or the
        sigmoid of a single one, and of all where the network ends in a sigmoid. For networks of
        several labels that end in logits pass their sigmoid.
    tolerance : float
        Of the pointing game, in pixels.
    steps : int
        Of the insertion and deletion curves.
    batch_size : int
        Samples in one run of the network.

    Returns
    -------
    DataFrame
        One row a method. With ``masks``: ``pointing_game`` (mean over the classes),
        ``mean_iou`` at τ = 0, ``tuned_iou`` at the ``threshold`` that is best on every fifth
        sample (which ``tuned_iou`` leaves out), ``outside_inside`` (median), ``positive_inside``
        (share of the positive attribution on the target). With ``hostile_masks``:
        ``negative_inside`` (share of the negative attribution on rivals, NaN of methods
        without). ``average_drop``, ``average_increase``, ``average_gain``, ``insertion`` and
        ``deletion`` (areas, means) of the target's probability, NaN for regressors, which have
        none; ``residual`` (median of its absolute value).

    Raises
    ------
    ValueError
        If a method is unknown or cannot explain this network; if an :class:`AttributionResult`
        is of other samples or targets.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from featprop_sklearn.inspection import make_attribution_report, make_digit_scenes
    >>> scenes = make_digit_scenes(10, random_state=0)
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(
    ...     *(nn.Conv2d(1, 8, 5, 2), nn.ReLU()),
    ...     *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
    ... )
    >>> report = make_attribution_report(
    ...     model, scenes.images, ["rsp"], target=scenes.target, masks=scenes.masks[:, 0]
    ... )
    >>> list(report.columns[:3])
    ['pointing_game', 'mean_iou', 'tuned_iou']
    """
    methods = [methods] if isinstance(methods, str) else methods
    named = methods if isinstance(methods, Mapping) else {name: name for name in methods}
    asked = _Asked(estimator, X, target, hostile, batch_size)
    proba = predict_proba or class_probabilities(estimator, asked.question, batch_size)

    def measured(name: str, method: Any) -> dict[str, float]:
        if isinstance(method, AttributionResult):
            asked.check(name, method)
        found = method if isinstance(method, AttributionResult) else asked.attribute(method)
        row: dict[str, float] = {}
        if masks is not None:
            row |= _localised(found.maps, np.asarray(masks), asked.labels, tolerance)
        if hostile_masks is not None:
            row["negative_inside"] = _mean(mass_inside(-found.maps, hostile_masks))
        row |= _faithful(proba, found, asked.columns, steps)
        return {**row, "residual": _median(np.abs(found.residual))}

    rows = {name: measured(name, method) for name, method in named.items()}
    return pd.DataFrame(rows).T.rename_axis("method")


class _Asked:
    """One question for all methods."""

    def __init__(self, estimator: Any, X: Any, target: Any, hostile: Any, batch_size: int) -> None:
        self.estimator, self.X, self.batch_size = estimator, X, batch_size
        self.question = ask(estimator, X, target, batch_size)
        self.columns = to_array(self.question.target)
        self.labels = self.question.labels[self.columns]
        self._hostile = hostile

    def attribute(self, method: Any) -> AttributionResult:
        """Explain the targets."""
        options: dict[str, Any] = {"target": self.labels, "batch_size": self.batch_size}
        if takes_hostile(method):
            options["hostile"] = to_array(self.question.hostile(self._hostile))
        if method == "displacement":
            options["target"] = self._wanted()
        return attribute(self.estimator, self.X, method, **options)

    def _wanted(self) -> NDArray:
        """Return what y is in ``fit``: the targets; or their labels added to those answered."""
        if isinstance(self.estimator, FeatureBackpropRegressor):
            raise ValueError(
                "The report cannot know which value displacement should want of a regressor. Pass "
                "the result: methods={'displacement': attribute(estimator, X, 'displacement', "
                "target=values)}."
            )
        if not self._several_labels:
            return self.labels
        wanted = to_array(self.question.logits > 0).astype(int)
        wanted[np.arange(len(wanted)), self.columns] = 1
        return wanted

    @property
    def _several_labels(self) -> bool:
        found = getattr(self.estimator, "_class_map", None)
        return found is not None and found.multilabel

    def check(self, name: str, found: AttributionResult) -> None:
        """Refuse a result of other samples or targets than the report's."""
        x = to_array(self.question.x)
        if found.inputs.shape != x.shape or not np.array_equal(found.inputs, x):
            raise ValueError(
                f"The result {name!r} explains other samples than X: inputs of shape "
                f"{found.inputs.shape}, and those of X are {x.shape}, or differ. Pass the X that "
                "attribute was given."
            )
        if found.method == "displacement" and isinstance(self.estimator, RegressorMixin):
            return  # its targets are values, not outputs
        given = found.target.reshape(len(x), -1)
        if given.shape[1] > 1:  # several labels a sample
            same = given[np.arange(len(x)), self.columns] == 1
        else:
            same = given[:, 0] == self.labels
        if not np.all(same):
            row = int(np.argmin(same))
            raise ValueError(
                f"The result {name!r} explains {found.target[row]} for sample {row}, and the "
                f"report {self.labels[row]}. Pass the same target= to both."
            )


def _localised(
    maps: NDArray, masks: NDArray, labels: NDArray, tolerance: float
) -> dict[str, float]:
    tuning = np.arange(len(maps)) % round(1 / TUNED_ON) == 0
    threshold = best_threshold(maps[tuning], masks[tuning])
    rest = ~tuning if len(maps) > 1 else tuning
    hits = pointing_game(maps, masks, tolerance=tolerance)
    return {
        "pointing_game": class_mean(hits, labels),
        "mean_iou": _mean(mean_iou(maps, masks)),
        "tuned_iou": _mean(mean_iou(maps[rest], masks[rest], threshold=threshold)),
        "threshold": threshold,
        "outside_inside": _median(outside_inside_ratio(maps, masks)),
        "positive_inside": _mean(mass_inside(maps, masks)),
    }


def _faithful(
    proba: PredictProba | None, found: AttributionResult, columns: NDArray, steps: int
) -> dict[str, float]:
    if proba is None:
        return dict.fromkeys(FAITHFULNESS, float("nan"))
    p, o = masked_scores(proba, found.inputs, found.maps, target=columns)
    inserted, deleted = (
        curve(proba, found.inputs, found.maps, target=columns, steps=steps)
        for curve in (insertion_curve, deletion_curve)
    )
    return {
        "average_drop": average_drop(p, o),
        "average_increase": average_increase(p, o),
        "average_gain": average_gain(p, o),
        "insertion": _mean(curve_area(inserted)),
        "deletion": _mean(curve_area(deleted)),
    }


def _mean(values: NDArray) -> float:
    """Mean of what is not NaN, NaN where all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _median(values: NDArray) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else float("nan")
