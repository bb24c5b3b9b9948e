"""Attribute a displacement: which parts of an input should have been seen differently."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from featprop_sklearn.data import batches, to_array
from featprop_sklearn.estimators.samples import with_labels
from featprop_sklearn.inspection.attribution_result import AttributionResult
from featprop_sklearn.inspection.explained import check_takes_one_tensor
from featprop_sklearn.inspection.feature_gap import refuse_others
from featprop_sklearn.inspection.wanted_input import MAX_STEPS, Displaced
from featprop_sklearn.inversion.base import Bounds
from featprop_sklearn.networks import build_chain, private_copy, resolve_splits

__all__ = ["attribute_displacement"]


def attribute_displacement(
    estimator: Any,
    X: Any,
    y: ArrayLike | None,
    *,
    split: str | int | None = None,
    damping: float = 0.3,
    bounds: Bounds | None = None,
    n_steps: int = 50,
) -> AttributionResult:
    r"""Find which parts of an input a network should have seen differently to give the label.

    With f the part before the split, and e the displacement that the feature f(x) of a sample
    should have had, the *wanted input* x* is one that minimises, within the bounds,

    .. math:: \|f(x^*) - f(x) - e\|^2 / \|e\|^2 + d^2\, \|x^* - x\|^2 / \|x\|^2.

    The map shares out how much of the displacement it meets, :math:`\langle e, f(x^*) -
    f(x)\rangle / \|e\|^2`, by the integral of the gradient along the straight way there:

    .. math:: m_i = \frac{x^*_i - x_i}{\|e\|^2} \int_0^1
        \frac{\partial}{\partial x_i} \langle e, f(x + s\,(x^* - x)) \rangle\, ds.

    Parameters
    ----------
    estimator : fitted FeatureBackpropClassifier or FeatureBackpropRegressor
        Its ``module_`` is asked, and its own rule makes the targets.
    X : array-like of shape (n_samples, ...)
        Samples, as in ``fit``.
    y : label or value, or array-like of shape (n_samples,) or (n_samples, n_outputs)
        What the network should have answered; one for all, or one a sample.
    split : str or int, default=None
        Where the features are. None is the estimator's split, of several the last.
    damping : float
        d: what a change of the input weighs, relative to its norm, against what is missed of the
        displacement. 0 meets it at any price, 1 leaves some wanted inputs short of the label.
    bounds : tuple of (low, high), default=None
        Range of the wanted inputs, such as (0, 1) for grey values. None is from the least to the
        greatest value in X, and for tables no range.
    n_steps : int
        Points of the integral.

    Returns
    -------
    AttributionResult
        ``maps`` sum to the share of the displacement that the wanted inputs, ``wanted``, meet;
        ``residual`` is what is missing to 1: what no input near this one makes the network feel.
        Where nothing is displaced both are 0.

    Raises
    ------
    TypeError
        If ``estimator`` is something else.
    ValueError
        If the network has several inputs, or reads integers; if the split is unknown, an option
        out of its range, or X or y do not fit.

    Warns
    -----
    ConvergenceWarning
        If the search for a wanted input was ended before it came to rest.
    """
    refuse_others(estimator)
    check_takes_one_tensor(estimator)
    _check_options(damping, bounds, n_steps)
    X, y = with_labels(X, y)
    samples = estimator._known_samples(X)
    labels = _one_each(y, len(samples))
    x = estimator._inputs(samples, estimator.module_)[:]
    upstream, displacements = _displacements(estimator, X, labels, x, split)
    low, high = _range(x) if bounds is None else bounds

    wanted, maps = x.double().clone(), torch.zeros_like(x, dtype=torch.float64)
    displaced = displacements.reshape(len(x), -1).any(dim=1)
    unfinished = 0
    for i in torch.nonzero(displaced)[:, 0].tolist():
        row = slice(i, i + 1)
        sample = Displaced(upstream, x[row].double(), displacements[row])
        wanted[row], finished = sample.wanted_input(damping, low, high)
        maps[row] = sample.shares(wanted[row], n_steps)
        unfinished += not finished
    if unfinished:
        warnings.warn(
            f"The search for the wanted input was ended after {MAX_STEPS} steps for {unfinished} "
            f"of {len(x)} samples; their maps belong to the inputs found so far. A larger damping "
            f"than {damping} comes to rest sooner.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return AttributionResult(
        maps=to_array(maps if maps.ndim == 2 else maps.sum(dim=1)),
        residual=to_array(displaced.double() - maps.flatten(1).sum(dim=1)),
        target=labels,
        method="displacement",
        inputs=to_array(x),
        wanted=to_array(wanted),
    )


def _displacements(
    estimator: Any, X: Any, y: Any, x: Tensor, split: str | int | None
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Return the part before the split, in float64, and the displacements there."""
    own = estimator.split_ if isinstance(estimator.split_, str) else estimator.split_[-1]
    with torch.no_grad():
        chain = build_chain(estimator.module_, x[:8])
        [name] = resolve_splits([own if split is None else split], chain)
        # before the targets, which take long: a chain that needs its dtype is refused here
        twin = private_copy(estimator.module_).double().requires_grad_(False)
        precise = build_chain(twin, x[:8].double())
        end = chain.names.index(name) + 1
        targets = estimator._propagate(X, y, [name]).targets[name]
        rows = batches(len(x), estimator._rows_at_a_time(len(x)))
        moves = [targets[part].double() - chain[:end](x[part]).double() for part in rows]
    return precise[: precise.names.index(name) + 1], torch.cat(moves)


def _one_each(y: Any, n_samples: int) -> Any:
    """Return one label a sample."""
    if y is None:
        raise ValueError(
            "method='displacement' needs target: the label or value that the network should have "
            "answered, one for all samples or one for each; got None."
        )
    return np.full(n_samples, y) if np.ndim(y) == 0 else np.asarray(y)


def _range(x: Tensor) -> Bounds:
    return (-inf, inf) if x.ndim == 2 else (float(x.min()), float(x.max()))


def _check_options(damping: Any, bounds: Any, n_steps: Any) -> None:
    if not isinstance(damping, int | float | np.number) or not 0 <= damping < inf:
        raise ValueError(f"damping must be a number of at least 0; got {damping!r}.")
    if not isinstance(n_steps, int | np.integer) or n_steps < 1:
        raise ValueError(f"n_steps must be an integer of at least 1; got {n_steps!r}.")
    if bounds is not None:
        try:
            low, high = (float(end) for end in bounds)
        except (TypeError, ValueError):
            low, high = inf, -inf
        if not low < high:
            raise ValueError(
                f"bounds must be (low, high) with low < high, or None; got {bounds!r}."
            )
