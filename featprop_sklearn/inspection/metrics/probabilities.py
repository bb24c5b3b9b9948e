"""The probability that a network gives to what each of its logits stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from torch import Tensor

from featprop_sklearn.data import batches, plain_torch, to_array
from featprop_sklearn.estimators import FeatureBackpropClassifier
from featprop_sklearn.inspection.explained import ROWS, Question
from featprop_sklearn.inspection.metrics.faithfulness import PredictProba
from featprop_sklearn.networks import as_network

__all__ = ["class_probabilities"]


def class_probabilities(estimator: Any, question: Question, batch_size: int) -> PredictProba | None:
    """Return a function from inputs of the network to probabilities, one a logit.

    Parameters
    ----------
    estimator : fitted estimator of this package, nn.Module, or fitted skorch net
        Of a :class:`FeatureBackpropClassifier` these are its own probabilities. Of other networks
        it is the sigmoid of each logit where there is one only, where the network ends in a
        sigmoid, or where an MLPClassifier was fitted on several labels; else the softmax.
    question : Question
        What is asked of it.
    batch_size : int
        Samples in one run.

    Returns
    -------
    callable or None
        From an array of inputs to one of shape (n_samples, n_logits); None for regressors.
    """
    if isinstance(estimator, RegressorMixin):
        return None
    is_own = isinstance(estimator, FeatureBackpropClassifier)
    run = _own(estimator) if is_own else _of_network(estimator, question)
    x = question.x

    @plain_torch()
    def predict_proba(X: NDArray) -> NDArray:
        inputs = torch.as_tensor(X, dtype=x.dtype, device=x.device)
        with torch.no_grad():
            found = [run(inputs[rows]) for rows in batches(len(inputs), batch_size)]
        return to_array(torch.cat(found))

    return predict_proba


def _own(classifier: FeatureBackpropClassifier) -> Callable[[Tensor], Tensor]:
    """Return what a classifier makes of inputs; of one logit, the probabilities of both sides."""
    head, task = classifier._output_targets.head, classifier._class_map.task

    def run(x: Tensor) -> Tensor:
        logits = head.to_logits(classifier.module_(x).reshape(len(x), -1)).double()
        if task == "multiclass":
            return logits.softmax(dim=1)
        return (torch.cat([-logits, logits], dim=1) if task == "binary" else logits).sigmoid()

    return run


def _of_network(estimator: Any, question: Question) -> Callable[[Tensor], Tensor]:
    model = question.model
    per_logit = (
        question.logits.shape[1] == 1
        or as_network(estimator).per_logit
        or model.ends_in_sigmoid(question.x[:ROWS])
    )

    def run(x: Tensor) -> Tensor:
        logits = model(x).double()
        return logits.sigmoid() if per_logit else logits.softmax(dim=1)

    return run
