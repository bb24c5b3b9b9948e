"""How every family chooses its settings: on the same held-out rows, by the same measure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from settings import Samples
from sklearn.metrics import r2_score

Predictor = Callable[[NDArray], NDArray]  # class probabilities, or values


@dataclass(frozen=True)
class Fitted:
    """A post-trained predictor, and what its family chose."""

    predict: Predictor
    chosen: dict[str, Any] = field(default_factory=dict)


def score(y: NDArray, predicted: NDArray) -> float:
    """Accuracy of class probabilities, R² of values; -inf where they are not finite."""
    if not np.isfinite(predicted).all():
        return -np.inf
    if predicted.ndim == 2:
        return float((predicted.argmax(axis=1) == y).mean())
    return float(r2_score(y, predicted))


def quality(y: NDArray, predicted: NDArray) -> tuple[float, float]:
    """Score, and the negative log-loss that breaks ties between equal accuracies."""
    reached = score(y, predicted)
    if predicted.ndim == 1 or reached == -np.inf:
        return reached, 0.0
    of_label = predicted[np.arange(len(y)), y]
    return reached, float(np.log(of_label.clip(min=np.finfo(float).tiny)).mean())


def choose(candidates: Iterable[tuple[dict[str, Any], Predictor]], held_out: Samples) -> dict:
    """Return the settings whose predictor does best on held-out data; the first of equals."""
    judged = ((quality(held_out.y, predict(held_out.X)), chosen) for chosen, predict in candidates)
    return max(judged, key=lambda pair: pair[0])[1]
