"""Attribute a displacement: which parts of an input should have been seen differently."""

from __future__ import annotations

import warnings
from math import inf
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from featprop_sklearn.data import batches, plain_torch, to_array, to_double
from featprop_sklearn.estimators.samples import with_labels
from featprop_sklearn.inspection.arguments import check_integer, is_number
from featprop_sklearn.inspection.attribution_result import AttributionResult, column_names
from featprop_sklearn.inspection.explained import check_takes_one_tensor
from featprop_sklearn.inspection.feature_gap import refuse_others
from featprop_sklearn.inspection.wanted_input import (
    MAX_STEPS,
    Upstream,
    met_shares,
    wanted_input,
)
from featprop_sklearn.least_squares.rows import per_row
from featprop_sklearn.networks import build_chain, differentiable, private_copy, resolve_splits

__all__ = ["attribute_displacement"]


@plain_torch()
def attribute_displacement(
    estimator: Any,
    X: Any,
    y: ArrayLike | None,
    *,
    split: str | int | None = None,
    damping: float = 0.5,
    bounds: tuple[ArrayLike, ArrayLike] | None = None,
    unit: ArrayLike | None = None,
    n_steps: int = 50,
) -> AttributionResult:
    r"""Find which parts of an input a network should have seen differently to give the label.

    With f the part before the split, and e the displacement that the feature f(x) of a sample
    should have had, the *wanted input* x* is one that minimises, within the bounds,

    .. math:: \frac{\|f(x^*) - f(x) - e\|^2}{\|e\|^2} +
        \frac{d^2}{n} \sum_{i=1}^n \left(\frac{x^*_i - x_i}{u_i}\right)^2.

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
        What the network should have answered: one label for all, or one a sample.
    split : str or int, default=None
        Where the features are. None is the estimator's split, of several the last.
    damping : float
        d: what a change of the input by its unit, in the mean square, weighs against missing the
        whole displacement. 0 meets it at any price; from 1 on some wanted inputs stay short of
        the label.
    bounds : tuple of (low, high), default=None
        Range of the wanted inputs, such as (0, 1) for grey values: numbers, or arrays that
        broadcast to a sample. None is the range of each sample's own values; of tables, and
        where a sample is constant, there is none.
    unit : float or array-like that broadcasts to a sample, default=None
        u: a change that counts as 1. None is the width of the range where there is one, and of
        tables that of each column of X, or 1 where it is constant: for a few rows pass the
        widths of all.
    n_steps : int
        Points of the integral.

    Returns
    -------
    AttributionResult
        ``maps`` sum to the share of the displacement that the wanted inputs, ``wanted``, meet,
        ⟨e, f(x*) − f(x)⟩/‖e‖². ``residual`` is what is missing to 1, which for a least-squares
        answer is the square of the distance that is left over ‖e‖. Where nothing is displaced
        all are 0.

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
    _check_options(damping, n_steps)
    X, y = with_labels(X, y)
    samples = estimator._known_samples(X)
    labels = _one_each(y, len(samples))
    x = estimator._inputs(samples, estimator.module_)[:]
    inputs = x.double()
    low, high = _range(inputs, bounds)
    units = _units(inputs, low, high, unit)
    upstream, displacements = _displacements(estimator, X, labels, x, split)

    wanted, maps = inputs.clone(), torch.zeros_like(inputs)
    displaced = displacements.reshape(len(x), -1).any(dim=1)
    unfinished = 0
    with differentiable([estimator.module_]):
        for i in torch.nonzero(displaced)[:, 0].tolist():
            row = slice(i, i + 1)
            limits = {"low": low[row], "high": high[row], "unit": units[row]}
            of_row = inputs[row], displacements[row]
            wanted[row], finished = wanted_input(upstream, *of_row, damping=damping, **limits)
            maps[row] = met_shares(upstream, inputs[row], wanted[row], displacements[row], n_steps)
            unfinished += not finished
    if unfinished:
        warnings.warn(
            f"The search for the wanted input was ended after {MAX_STEPS} steps for {unfinished} "
            f"of {len(x)} samples; their maps belong to the inputs found so far. A larger damping "
            f"than {damping} comes to rest sooner.",
            ConvergenceWarning,
            stacklevel=3,
        )
    return AttributionResult(
        maps=to_array(maps if maps.ndim == 2 else maps.sum(dim=1)),
        residual=to_array(displaced.double() - maps.flatten(1).sum(dim=1)),
        target=labels,
        method="displacement",
        inputs=to_array(x),
        wanted=to_array(wanted),
        feature_names=column_names(X),
    )


def _displacements(
    estimator: Any, X: Any, y: Any, x: Tensor, split: str | int | None
) -> tuple[Upstream, Tensor]:
    """Return the part before the split, in float64, and the displacements there."""
    own = estimator.split_ if isinstance(estimator.split_, str) else estimator.split_[-1]
    with torch.no_grad():
        chain = build_chain(estimator.module_, x[:8])
        [name] = resolve_splits([own if split is None else split], chain)
        end = chain.names.index(name) + 1
        targets = estimator._propagate(X, y, [name]).targets[name]
        rows = batches(len(x), estimator._rows_at_a_time(len(x)))
        moves = [targets[part].double() - chain[:end](x[part]).double() for part in rows]
        return _precise(estimator.module_, name, x[:8]), torch.cat(moves)


def _precise(module: nn.Module, split: str, x: Tensor) -> Upstream:
    """Return the part of a network before a split in float64, or, if it refuses that, its own."""
    dtype = x.dtype
    try:
        chain = build_chain(to_double(_frozen(module)), x.double())
    except ValueError:
        chain = build_chain(_frozen(module), x)
        part = chain[: chain.names.index(split) + 1]
        return lambda inputs: part(inputs.to(dtype))
    return chain[: chain.names.index(split) + 1]


def _one_each(y: Any, n_samples: int) -> Any:
    """Return one label a sample."""
    if y is None:
        raise ValueError(
            "method='displacement' needs target: the label or value that the network should have "
            "answered, one for all samples or one for each; got None."
        )
    labels = np.full(n_samples, y) if np.ndim(y) == 0 else np.asarray(y)
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _range(x: Tensor, bounds: Any) -> tuple[Tensor, Tensor]:
    """Return the least and greatest value allowed at each place of each sample."""
    if bounds is None:
        if x.ndim == 2:
            return torch.full_like(x, -inf), torch.full_like(x, inf)
        low, high = per_row(x.flatten(1).amin(1), x), per_row(x.flatten(1).amax(1), x)
        varies = low < high
        low, high = torch.where(varies, low, -inf), torch.where(varies, high, inf)
        return low.expand(x.shape), high.expand(x.shape)
    try:
        low, high = (_like(x, end) for end in bounds)
        in_order = bool((low < high).all())
    except (TypeError, ValueError, RuntimeError):
        in_order = False
    if not in_order:
        raise ValueError(
            "bounds must be (low, high) with low < high, numbers or arrays that broadcast to a "
            f"sample of shape {tuple(x.shape[1:])}, or None; got {bounds!r}."
        )
    if not bool(((low <= x) & (x <= high)).all()):
        raise ValueError(
            f"bounds={bounds!r} must hold all inputs; they go from {float(x.min()):.4g} to "
            f"{float(x.max()):.4g}. Give the range of the inputs as the network receives them, or "
            "bounds=None."
        )
    return low, high


def _units(x: Tensor, low: Tensor, high: Tensor, unit: Any) -> Tensor:
    """Return the change that counts as 1 at each place of each sample."""
    if unit is not None:
        try:
            units = _like(x, unit)
        except (TypeError, ValueError, RuntimeError):
            units = torch.zeros_like(x)
        if not bool(((units > 0) & units.isfinite()).all()):
            raise ValueError(
                "unit must be positive, a number or an array that broadcasts to a sample of shape "
                f"{tuple(x.shape[1:])}, or None; got {unit!r}."
            )
        return units
    width = high - low
    if x.ndim == 2:
        width = torch.where(width.isfinite(), width, x.amax(dim=0) - x.amin(dim=0))
    return torch.where(width.isfinite() & (width > 0), width, 1.0)


def _like(x: Tensor, values: Any) -> Tensor:
    """Return one value for each place of each sample."""
    given = torch.as_tensor(np.asarray(values, dtype=float)).to(x)
    return given.expand(x.shape[1:]).expand(x.shape)


def _check_options(damping: Any, n_steps: Any) -> None:
    if not is_number(damping) or damping < 0:
        raise ValueError(f"damping must be a number of at least 0; got {damping!r}.")
    check_integer("n_steps", n_steps)


def _frozen(module: nn.Module) -> nn.Module:
    return private_copy(module).requires_grad_(False)
