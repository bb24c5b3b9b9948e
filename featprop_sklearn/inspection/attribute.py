"""One door for all attribution methods: which parts of an input a network answered from."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featprop_sklearn.data import batches, plain_torch, to_array
from featprop_sklearn.inspection import captum_methods
from featprop_sklearn.inspection.arguments import check_integer
from featprop_sklearn.inspection.attribution_result import AttributionResult, column_names
from featprop_sklearn.inspection.displacement import attribute_displacement
from featprop_sklearn.inspection.explained import Explained, Question, ask, source_network
from featprop_sklearn.inspection.relevance import RelativeSectionalPropagation
from featprop_sklearn.inspection.relevance.registry import Bounds
from featprop_sklearn.inspection.relevance.seed_point import layer_path
from featprop_sklearn.networks import differentiable

__all__ = ["METHODS", "attribute", "takes_hostile"]

Method = Callable[..., Any]


def attribute(
    estimator: Any,
    X: Any,
    method: str | Method = "rsp",
    *,
    target: Any = None,
    batch_size: int = 64,
    **options: Any,
) -> AttributionResult:
    """Find which parts of each input speak for a class, and which against it.

    Parameters
    ----------
    estimator : FeatureBackpropClassifier or -Regressor, nn.Module, or skorch net; fitted
        Whose network is explained: a copy of it, in eval mode. What went into a softmax or
        sigmoid that it ends in is what counts, also where reshapes, clamp or log follow; any
        other output counts as it is.
    X : array-like of shape (n_samples, ...)
        Samples, as the estimator or the network takes them.
    method : str or callable
        ``"rsp"``: :class:`RelativeSectionalPropagation`. Computed by captum: ``"gradient"``,
        ``"guided_backprop"``, ``"grad_cam"``, ``"guided_grad_cam"``,
        ``"integrated_gradients"``, ``"occlusion"``, and ``"lrp"`` (epsilon rule).
        ``"displacement"``: what should have been seen differently to answer the target, by the
        feature targets of an estimator of this package (:func:`attribute_displacement`). A
        callable is given a module that returns logits, a batch of inputs, and the index of each
        target's logit; it returns a map a sample, of the shape of the inputs or without their
        channels.
    target : None, label, or one label a sample
        The class to explain: one of the ``classes_`` of a classifier of one label a sample (one
        logit has two sides), otherwise the index of an output. None is the greatest logit, or
        the side that is answered. Of displacement: what y is in ``fit``.
    batch_size : int
        Samples in one run of the network; displacement runs one at a time.
    **options : dict
        Of the method. rsp: ``hostile`` (classes, as ``target``, or "runner_up", "present",
        None), ``layer``, ``purge``, ``bounds``. grad_cam and guided_grad_cam: ``layer``,
        a module or its path (the last activation of more than one position a channel).
        integrated_gradients: ``baseline`` (a number, 0), ``n_steps`` (50). occlusion: ``window``
        (a quarter of each side), ``stride`` (half a window), ``baseline`` (0, the value that
        is put in; windows are cut off at the border). displacement: ``split``, ``damping``,
        ``bounds``, ``unit``, ``n_steps``. A callable: what else it takes; ``hostile`` reaches it
        as a mask.

    Returns
    -------
    AttributionResult
        ``maps``, summed over the channels (the second axis of inputs with more than two), of the
        size of the inputs, and ``residual``.

    Raises
    ------
    ImportError
        If the method is captum's, and captum is not installed.
    ValueError
        If the method is unknown, takes no such option, or cannot explain this network; if X
        or the target do not fit.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from featprop_sklearn.inspection import attribute
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(
    ...     nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    ... )
    >>> found = attribute(model, torch.rand(4, 1, 9, 9), target=2, hostile=[0])
    >>> found.maps.shape
    (4, 9, 9)
    >>> bool(abs(found.residual).max() < 1e-5)
    True
    """
    function = _find(method)
    check_integer("batch_size", batch_size)
    _check_options(method, function, options)
    with plain_torch(), torch.enable_grad():
        if function is attribute_displacement:
            return attribute_displacement(estimator, X, target, **options)
        if "layer" in options:
            options = {**options, "layer": layer_path(source_network(estimator), options["layer"])}
        question = ask(estimator, X, target, batch_size)
        with differentiable([question.model]):
            maps, residual = _answer(function, question, options, batch_size)
    return AttributionResult(
        maps=maps,
        residual=residual,
        target=question.labels[question.target.cpu().numpy()],
        method=method if isinstance(method, str) else _name(method),
        inputs=to_array(question.x),
        feature_names=column_names(X),
    )


def _rsp(
    model: Explained,
    x: Tensor,
    target: Tensor,
    *,
    hostile: Tensor,
    layer: str | None = None,
    purge: str | None = None,
    bounds: Bounds | None = None,
) -> tuple[Tensor, Tensor]:
    """Relative Sectional Propagation; the residual is 1 − the net relevance."""
    rsp = RelativeSectionalPropagation(model.original, layer, purge=purge, bounds=bounds)
    found = rsp.attribute(x.double(), target, hostile.cpu().numpy())
    left_over = 1 - found.flatten(1).sum(dim=1)
    return found, left_over.where(hostile.any(dim=1), torch.nan)


METHODS: dict[str, Method] = {
    "rsp": _rsp,
    "gradient": captum_methods.gradient,
    "guided_backprop": captum_methods.guided_backprop,
    "grad_cam": captum_methods.grad_cam,
    "guided_grad_cam": captum_methods.guided_grad_cam,
    "integrated_gradients": captum_methods.integrated_gradients,
    "occlusion": captum_methods.occlusion,
    "lrp": captum_methods.lrp,
    "displacement": attribute_displacement,
}


def takes_hostile(method: str | Method) -> bool:
    """Return whether a method is told which classes speak against the target."""
    return "hostile" in _options(_find(method))


def _answer(
    function: Method, question: Question, options: dict[str, Any], batch_size: int
) -> tuple[NDArray, NDArray]:
    each: dict[str, Tensor] = {}
    if takes_hostile(function):
        each["hostile"] = question.hostile(options.get("hostile", "runner_up"))
    shared = {name: value for name, value in options.items() if name not in each}
    maps, residuals = [], []
    for rows in batches(len(question.x), batch_size):
        of_rows = {name: values[rows] for name, values in each.items()}
        x = question.x[rows].clone()
        try:
            found = function(question.model, x, question.target[rows], **of_rows, **shared)
        except RuntimeError as error:
            if _follows(question.model, question.x[rows]):
                raise
            raise ValueError(
                f"{_name(function)} needs derivatives, and none leads from the network's outputs "
                "to X: detach(), torch.no_grad(), torch.inference_mode() or numpy in its forward "
                "cut them off. Remove that, or use method='occlusion'."
            ) from error
        values, residual = found if isinstance(found, tuple) else (found, np.full(len(x), np.nan))
        maps.append(_as_maps(values, x))
        residuals.append(_as_array(residual))
    return np.concatenate(maps), np.concatenate(residuals)


def _follows(model: Explained, x: Tensor) -> bool:
    """Return whether the outputs have derivatives with respect to the inputs."""
    x = x.clone().requires_grad_()
    output = model(x)
    return output.requires_grad and (
        torch.autograd.grad(output.sum(), x, allow_unused=True)[0] is not None
    )


def _as_maps(values: Any, x: Tensor) -> NDArray:
    """Sum over the channels, where the inputs have any."""
    array, shape = _as_array(values), tuple(x.shape)
    positions = shape if len(shape) == 2 else (shape[0], *shape[2:])
    if array.shape == positions:
        return array
    if array.ndim == len(shape) > 2 and (array.shape[0], *array.shape[2:]) == positions:
        return array.sum(axis=1)
    raise ValueError(
        f"An attribution method must return maps of shape {positions} or {shape} for inputs of "
        f"shape {shape}; got {array.shape}."
    )


def _as_array(values: Any) -> NDArray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _find(method: str | Method) -> Method:
    if callable(method):
        return method
    if not isinstance(method, str) or method not in METHODS:
        near = difflib.get_close_matches(str(method), METHODS)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"method must be a callable or one of {', '.join(map(repr, METHODS))}; got {method!r}."
            f"{hint}"
        )
    return METHODS[method]


def _check_options(method: str | Method, function: Method, options: dict[str, Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    for name in options:
        if not anything and name not in _options(function):
            what = repr(method) if isinstance(method, str) else _name(method)
            takes = ", ".join(_options(function)) or "none"
            raise ValueError(f"method={what} has no option {name!r}; its options are: {takes}.")


def _options(function: Method) -> list[str]:
    """List what a method takes beside the model, the inputs and the target."""
    return list(inspect.signature(function).parameters)[3:]


def _name(function: Method) -> str:
    return getattr(function, "__name__", type(function).__name__)
