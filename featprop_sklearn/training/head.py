"""Refitting a classifier's last layer alone: logistic regression, a convex problem."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from featprop_sklearn.data import Inputs, batches, to_array
from featprop_sklearn.networks import Chain, Site
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.training.streamed_logistic import Standardised, streamed_logistic

__all__ = ["is_head", "refit_head"]

#: rows times unknowns up to which Newton's method, exact in a few steps, costs next to nothing
NEWTON_UP_TO = 100_000
MAX_ITERATIONS = 1000
#: numbers of the features up to which scikit-learn is given all of them
AT_ONCE = 1 << 24
#: logits up to here can be read off any head; probabilities saturate beyond
MODERATE = 4.0


@torch.no_grad()
def is_head(site: Site, chain: Chain, x: Tensor, output_targets: OutputTargets) -> bool:
    """Return whether a layer's outputs are the logits, up to a constant a sample.

    The network is run with other outputs put in the layer's place: they must come out as
    logits, with nothing added that training can change.

    Parameters
    ----------
    site : Site
        The last affine layer of the chain, in whichever stage.
    chain : Chain
        The whole network.
    x : Tensor of shape (n_samples, ...)
        Some inputs of the site's stage.
    output_targets : OutputTargets
        Task and head of the network.
    """
    if output_targets.task == "regression" or not isinstance(site.layer, nn.Linear):
        return False
    outputs = site.read(chain, x)[1]
    if outputs.ndim != 2:
        return False
    places = torch.arange(outputs.numel(), dtype=outputs.dtype, device=outputs.device)
    outputs = MODERATE * places.sin().reshape(outputs.shape)
    with torch.enable_grad():
        after = site.tail(chain, x)(outputs, torch.arange(len(x), device=x.device))
    # a branch past the layer may give zeros now, and something else once it is trained
    if after.requires_grad or (after.shape != outputs.shape and after.numel() != len(outputs)):
        return False
    shift = output_targets.head.to_logits(after.reshape(outputs.shape)) - outputs
    if not output_targets.per_logit:
        shift = shift - shift.mean(dim=1, keepdim=True)
    return bool((shift.abs() <= 1e-4 * MODERATE).all())


@torch.no_grad()
def refit_head(
    layer: nn.Linear,
    features: Inputs,
    y: Tensor,
    weights: Tensor,
    output_targets: OutputTargets,
    C: float,
) -> None:
    """Fit the layer's weights to the labels, its input features as they are.

    A class without samples, and a logit with one answer alone, keep their weights; so does
    everything where features have overflowed.

    Parameters
    ----------
    layer : nn.Linear
        Whose outputs are the logits; changed in place.
    features : Inputs of shape (n_samples, n_features)
        Its inputs.
    y : Tensor
        Encoded labels.
    weights : Tensor of shape (n_samples,)
        Sample weights.
    output_targets : OutputTargets
        The task.
    C : float
        Inverse strength of the penalty, on standardised features.
    """
    standard = Standardised.of(
        features, weights, centre=layer.bias is not None, precision=torch.finfo(features.dtype).eps
    )
    if not torch.isfinite(standard.scale).all():
        return
    mean, scale = to_array(standard.mean), to_array(standard.scale)
    new_weight, new_bias = to_array(layer.weight, np.float64).copy(), _bias(layer)
    for index, labels in _problems(to_array(y), output_targets.task):
        classes = np.flatnonzero(np.bincount(labels))
        if len(classes) < 2:
            continue
        fit = _fit if features.shape[0] * features.shape[1] <= AT_ONCE else _fit_streamed
        coefficients, intercepts = fit(standard, labels, weights, C, layer.bias is not None)
        coefficients = coefficients / scale
        intercepts = intercepts - coefficients @ mean
        if len(coefficients) == 1 and output_targets.task == "multiclass":
            # one logit is the lead of the second class over the first
            coefficients = np.vstack([-coefficients, coefficients]) / 2
            intercepts = np.hstack([-intercepts, intercepts]) / 2
        place = classes if output_targets.task == "multiclass" else [index]
        new_weight[place], new_bias[place] = coefficients, intercepts
    layer.weight.copy_(torch.from_numpy(new_weight))
    if layer.bias is not None:
        if output_targets.task == "multiclass":
            new_bias -= _excess(torch.from_numpy(new_weight), new_bias, features, y)
        layer.bias.copy_(torch.from_numpy(new_bias))


def _fit(
    features: Standardised, labels: NDArray, weights: Tensor, C: float, fit_intercept: bool
) -> tuple[NDArray, NDArray]:
    rows = to_array(features[:])
    unknowns = (rows.shape[1] + 1) * len(np.unique(labels))
    model = LogisticRegression(
        C=C,
        solver="newton-cholesky" if len(rows) * unknowns <= NEWTON_UP_TO else "lbfgs",
        max_iter=MAX_ITERATIONS,
        fit_intercept=fit_intercept,
    ).fit(rows, labels, sample_weight=to_array(weights, np.float64))
    return model.coef_, model.intercept_


def _fit_streamed(
    features: Standardised, labels: NDArray, weights: Tensor, C: float, fit_intercept: bool
) -> tuple[NDArray, NDArray]:
    # the classes that occur, numbered from 0 on
    numbers = torch.from_numpy(np.cumsum(np.bincount(labels) > 0) - 1)[labels].to(weights.device)
    return streamed_logistic(
        features, numbers, weights, C, fit_intercept=fit_intercept, max_iter=MAX_ITERATIONS
    )


def _bias(layer: nn.Linear) -> NDArray:
    if layer.bias is None:
        return np.zeros(layer.out_features)
    return to_array(layer.bias, np.float64).copy()


def _problems(y: NDArray, task: str) -> Iterator[tuple[int, NDArray]]:
    """Yield one problem, or one for each logit that decides on its own."""
    if task == "multiclass":
        yield 0, y
    else:
        yield from enumerate(y.reshape(len(y), -1).T)


def _excess(weight: Tensor, bias: NDArray, features: Inputs, y: Tensor) -> NDArray:
    """Return by how much a class without samples, whose weights are kept, outvotes labels here."""
    absent = torch.ones(len(bias), dtype=torch.bool, device=y.device)
    absent[y] = False
    most = torch.full((len(bias),), -torch.inf, dtype=torch.float64, device=y.device)
    if absent.any() and (~absent).sum() > 1:
        weight, offset = weight.to(y.device), torch.from_numpy(bias).to(y.device)
        for rows in batches(len(y), max(1, AT_ONCE // features.shape[1])):
            logits = features[rows].double() @ weight.T + offset
            lead = logits - logits.gather(1, y[rows][:, None])
            most = torch.maximum(most, lead.amax(dim=0))
    return to_array(torch.where(absent, (most + 1).clamp_min(0), 0.0))
