"""What gradient training minimises: the task's loss, and what is added to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featprop_sklearn.data import batches
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.training.component import Labelled
from featprop_sklearn.training.interpretable import gradient_errors, input_gradients

__all__ = ["TargetLoss", "mean_task_loss", "task_losses", "weighted_mean"]

WEIGHT_RANGE = (1e-5, 10.0)


def task_losses(
    output: Tensor, y: Tensor, output_targets: OutputTargets, *, label_smoothing: float = 0.0
) -> Tensor:
    """Return the loss of each sample: cross-entropy, or the mean squared error of a regression.

    Parameters
    ----------
    output : Tensor of shape (n_samples, n_outputs) or (n_samples,)
        Network output.
    y : Tensor of n_samples rows
        Encoded labels or values.
    output_targets : OutputTargets
        Task and head.
    label_smoothing : float
        Share of the wanted probabilities that is spread evenly over the classes.

    Returns
    -------
    Tensor of shape (n_samples,)
        In natural-log units for classification (mean over the labels of multi-label y).
    """
    rows = output.reshape(len(output), -1)
    if output_targets.task == "regression":
        return (rows - y.reshape(rows.shape)).square().mean(dim=1)
    logits = output_targets.head.to_logits(rows)
    if output_targets.task == "multiclass":
        return F.cross_entropy(logits, y, reduction="none", label_smoothing=label_smoothing)
    wanted = y.reshape(rows.shape).to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=1)


@torch.no_grad()
def mean_task_loss(
    network: Callable[[Tensor], Tensor],
    data: Labelled,
    output_targets: OutputTargets,
    batch_size: int,
) -> float:
    """Return the weighted mean loss of a network in eval mode; infinite rather than NaN."""
    total = 0.0
    for rows in batches(len(data), len(data) if batch_size == -1 else batch_size):
        losses = task_losses(network(data.inputs[rows]), data.y[rows], output_targets)
        total += float(torch.dot(losses.double(), data.weights[rows].double()))
    mean = total / float(data.weights.double().sum())
    return mean if math.isfinite(mean) else math.inf


class TargetLoss(nn.Module):
    """The published losses: L = CE(net(x), y) + w·mean((feature − target)²) + λ·mean E(δ, γ).

    w = α·EMA(CE)/EMA(MSE), clamped to [1e-5, 10], keeps the feature term near the
    share α of the task term. E is the error of the gradient at the input, δ, against the
    guided one, γ. Means over samples are weighted, Σwl/Σw. In eval mode the loss is the
    task term alone.

    Parameters
    ----------
    output_targets : OutputTargets
        Task and head.
    alpha : float
        Share of the feature term; 0 is plain fine-tuning.
    feature_only : bool
        Drop the task term and train on the targets alone.
    decay : float
        Factor of the exponential moving averages (EMA).
    label_smoothing : float
        As in :func:`task_losses`, in training alone.
    gradient_regularization : str or None
        E, by its name in :func:`gradient_errors`; None for none.
    gradient_weight : float
        λ.

    References
    ----------
    Ding, He, Li, Li, arXiv:2506.07188; Figueroa et al., arXiv:2404.15024.
    """

    def __init__(
        self,
        output_targets: OutputTargets,
        *,
        alpha: float,
        feature_only: bool,
        decay: float,
        label_smoothing: float = 0.0,
        gradient_regularization: str | None = None,
        gradient_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.output_targets = output_targets
        self.alpha = alpha
        self.feature_only = feature_only
        self.decay = decay
        self.label_smoothing = label_smoothing
        self.gradient_regularization = gradient_regularization
        self.gradient_weight = gradient_weight
        self.averages: tuple[float, float] | None = None
        #: terms of the last batch, for the history
        self.terms: dict[str, float] = {}

    def forward(self, prediction: tuple[Tensor, ...], truth: Mapping[str, Tensor]) -> Tensor:
        """Return the loss of a batch; without targets, the term of the features is left out.

        Parameters
        ----------
        prediction : tuple of Tensor
            Output, feature, and with ``gradient_regularization`` the input.
        truth : mapping of str to Tensor
            ``y``, and perhaps ``weight`` and ``target``.
        """
        output, feature, *start = prediction
        weights = truth.get("weight")
        smoothing = self.label_smoothing if self.training else 0.0
        losses = task_losses(output, truth["y"], self.output_targets, label_smoothing=smoothing)
        task = weighted_mean(losses, weights)
        if not self.training:
            return task
        loss = task
        if "target" in truth:
            loss = self._with_features(task, feature, truth["target"], weights)
        if self.gradient_regularization is None:
            return loss
        errors = gradient_errors(
            self.gradient_regularization, *input_gradients(losses, output, *start)
        )
        error = weighted_mean(errors, weights)
        self.terms |= {"task_loss": task.item(), "gradient_error": error.item()}
        return loss + self.gradient_weight * error

    def _with_features(
        self, task: Tensor, feature: Tensor, target: Tensor, weights: Tensor | None
    ) -> Tensor:
        squared = (feature - target).square().reshape(len(feature), -1).mean(dim=1)
        distance = weighted_mean(squared, weights)
        factor = self._factor(task.item(), distance.item())
        self.terms = {
            "task_loss": task.item(),
            "feature_loss": distance.item(),
            "feature_weight": factor,
        }
        if self.feature_only:
            return distance
        return task if factor == 0 else task + factor * distance

    def _factor(self, task: float, distance: float) -> float:
        if self.feature_only:
            return 1.0
        if self.alpha == 0:
            return 0.0
        if self.averages is None:
            self.averages = (task, distance)
        else:
            old = self.averages
            self.averages = (
                self.decay * old[0] + (1 - self.decay) * task,
                self.decay * old[1] + (1 - self.decay) * distance,
            )
        low, high = WEIGHT_RANGE
        mean_task, mean_distance = self.averages
        return min(max(self.alpha * mean_task / max(mean_distance, 1e-300), low), high)


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return Σwv/Σw; the plain mean where there are no weights."""
    return values.mean() if weights is None else torch.dot(weights, values) / weights.sum()
