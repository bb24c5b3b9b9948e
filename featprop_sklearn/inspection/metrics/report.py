"""One table of what attribution methods are worth on images whose objects are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

from featprop_sklearn.data import to_array
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

__all__ = ["make_attribution_report"]

#: share of the samples that the threshold of mean IoU is chosen on
TUNED_ON = 0.2


def make_attribution_report(
    estimator: Any,
    X: Any,
    methods: Sequence[str] | Mapping[str, Any] = ("rsp", "grad_cam", "integrated_gradients"),
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
    methods : sequence of str, or dict
        Names of methods; or a dict from the name of a row to the name of a method, a callable,
        or the :class:`AttributionResult` that :func:`attribute` returned, with any options.
    target, hostile : labels
        The class that is explained, and those that speak against it; as in :func:`attribute`.
    masks : array-like of shape (n_samples, positions...), bool, default=None
        Where the target is.
    hostile_masks : array-like of shape (n_samples, positions...), bool, default=None
        Where its rivals are.
    predict_proba : callable, default=None
        From samples to probabilities of shape (n_samples, n_classes); None is the softmax of
        the logits. For networks of several labels pass their sigmoid.
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
        ``deletion`` (areas, means) of the target; ``residual`` (median of its absolute value).

    Raises
    ------
    ValueError
        If a method is unknown or cannot explain this network.

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
    named = methods if isinstance(methods, Mapping) else {name: name for name in methods}
    question = ask(estimator, X, target, batch_size)
    proba = predict_proba or _softmax(question.model, question.x, batch_size)
    columns = to_array(question.target)

    def measured(method: Any) -> dict[str, float]:
        found = method
        if not isinstance(method, AttributionResult):
            options = {"hostile": hostile} if takes_hostile(method) else {}
            labels = question.labels[columns]
            found = attribute(estimator, X, method, target=labels, batch_size=batch_size, **options)
        row = {} if masks is None else _localised(found, np.asarray(masks), tolerance)
        if hostile_masks is not None:
            row["negative_inside"] = _mean(mass_inside(-found.maps, hostile_masks))
        row |= _faithful(proba, found, columns, steps)
        return {**row, "residual": _median(np.abs(found.residual))}

    rows = {name: measured(method) for name, method in named.items()}
    return pd.DataFrame(rows).T.rename_axis("method")


def _localised(found: AttributionResult, masks: NDArray, tolerance: float) -> dict[str, float]:
    maps = found.maps
    tuning = np.arange(len(maps)) % round(1 / TUNED_ON) == 0
    threshold = best_threshold(maps[tuning], masks[tuning])
    rest = ~tuning if len(maps) > 1 else tuning
    hits = pointing_game(maps, masks, tolerance=tolerance)
    return {
        "pointing_game": class_mean(hits, found.target),
        "mean_iou": _mean(mean_iou(maps, masks)),
        "tuned_iou": _mean(mean_iou(maps[rest], masks[rest], threshold=threshold)),
        "threshold": threshold,
        "outside_inside": _median(outside_inside_ratio(maps, masks)),
        "positive_inside": _mean(mass_inside(maps, masks)),
    }


def _faithful(
    proba: PredictProba, found: AttributionResult, columns: NDArray, steps: int
) -> dict[str, float]:
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


def _softmax(model: Any, x: torch.Tensor, batch_size: int) -> PredictProba:
    def predict_proba(X: NDArray) -> NDArray:
        rows = torch.as_tensor(X, dtype=x.dtype, device=x.device)
        return to_array(torch.softmax(model.all_logits(rows, batch_size).double(), dim=1))

    return predict_proba


def _mean(values: NDArray) -> float:
    """Mean of what is not NaN, NaN where all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _median(values: NDArray) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else float("nan")
