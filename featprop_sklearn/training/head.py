"""Refitting a classifier's last layer alone: logistic regression, a convex problem."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from featprop_sklearn.data import to_array
from featprop_sklearn.networks import Chain, Site
from featprop_sklearn.output_targets import OutputTargets

__all__ = ["is_head", "refit_head"]

#: rows times unknowns up to which Newton's method, exact in a few steps, costs next to nothing
NEWTON_UP_TO = 100_000
MAX_ITERATIONS = 1000
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
    features: Tensor,
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
    features : Tensor of shape (n_samples, n_features)
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
    # one copy of the features, worked on in place: all else here is small
    rows, w = np.array(to_array(features), dtype=np.float64), to_array(weights, np.float64)
    if not np.isfinite(rows).all():
        return
    precision = torch.finfo(features.dtype).eps
    mean, scale = _standardise(rows, w, centre=layer.bias is not None, precision=precision)
    new_weight, new_bias = to_array(layer.weight, np.float64).copy(), _bias(layer)
    for index, labels in _problems(to_array(y), output_targets.task):
        classes = np.unique(labels)
        if len(classes) < 2:
            continue
        model = LogisticRegression(
            C=C,
            solver=_solver(rows, len(classes)),
            max_iter=MAX_ITERATIONS,
            fit_intercept=layer.bias is not None,
        ).fit(rows, labels, sample_weight=w)
        coefficients = model.coef_ / scale
        intercepts = model.intercept_ - coefficients @ mean
        if len(coefficients) == 1 and output_targets.task == "multiclass":
            # one logit is the lead of the second class over the first
            coefficients = np.vstack([-coefficients, coefficients]) / 2
            intercepts = np.hstack([-intercepts, intercepts]) / 2
        place = classes if output_targets.task == "multiclass" else [index]
        new_weight[place], new_bias[place] = coefficients, intercepts
    if output_targets.task == "multiclass":
        _lower_absent(new_weight, new_bias, to_array(features, np.float64), to_array(y))
    layer.weight.copy_(torch.from_numpy(new_weight))
    if layer.bias is not None:
        layer.bias.copy_(torch.from_numpy(new_bias))


def _bias(layer: nn.Linear) -> NDArray:
    if layer.bias is None:
        return np.zeros(layer.out_features)
    return to_array(layer.bias, np.float64).copy()


def _standardise(
    rows: NDArray, weights: NDArray, *, centre: bool, precision: float
) -> tuple[NDArray, NDArray]:
    """Give features mean 0, if a bias can make up for it, and size 1, in place."""
    share = weights / weights.sum()
    largest = np.maximum(rows.max(axis=0), -rows.min(axis=0))
    mean = share @ rows if centre else np.zeros(rows.shape[1])
    rows -= mean
    scale = np.sqrt(np.einsum("i,ij,ij->j", share, rows, rows))
    # rounding is no information, and standardised it would get enormous weights
    scale[scale <= precision**0.75 * largest] = 1.0
    rows /= scale
    return mean, scale


def _problems(y: NDArray, task: str) -> Iterator[tuple[int, NDArray]]:
    """Yield one problem, or one for each logit that decides on its own."""
    if task == "multiclass":
        yield 0, y
    else:
        yield from enumerate(y.reshape(len(y), -1).T)


def _solver(rows: NDArray, n_classes: int) -> str:
    unknowns = (rows.shape[1] + 1) * (n_classes if n_classes > 2 else 1)
    return "newton-cholesky" if len(rows) * unknowns <= NEWTON_UP_TO else "lbfgs"


def _lower_absent(weight: NDArray, bias: NDArray, rows: NDArray, y: NDArray) -> None:
    """Let a class without samples keep its weights, but outvote no label of a sample here."""
    present = np.unique(y)
    absent = np.setdiff1d(np.arange(len(bias)), present)
    if len(absent) and len(present) > 1:
        logits = rows @ weight.T + bias
        lead = logits[:, absent] - logits[np.arange(len(y)), y][:, None]
        bias[absent] -= (lead.max(axis=0) + 1).clip(min=0)
