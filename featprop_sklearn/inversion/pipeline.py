"""A network as a plain scikit-learn Pipeline of layer inversions."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from numpy.typing import ArrayLike
from sklearn.pipeline import Pipeline
from torch import nn

from featprop_sklearn.data import module_device, module_dtype, to_tensor
from featprop_sklearn.inversion.base import Bounds
from featprop_sklearn.inversion.layer_inverter import LayerInverter
from featprop_sklearn.least_squares import Solver
from featprop_sklearn.networks import as_network, build_chain, open_sequential, private_copy

__all__ = ["make_inversion_pipeline", "pipeline_of_layers"]


def make_inversion_pipeline(
    module: object,
    start: str | int | None = None,
    stop: str | int | None = None,
    *,
    X: ArrayLike | None = None,
    solver: str | Solver = "auto",
    damping: str | float = "auto",
) -> Pipeline:
    """Turn a network into a Pipeline whose ``inverse_transform`` is feature backpropagation.

    Each stage of the network is one step, a :class:`LayerInverter` named after it.
    Once fitted, ``transform`` is the network, and ``inverse_transform`` carries wanted
    outputs back to wanted inputs, layer by layer, each as near as possible to what the
    layer received on average in ``fit``.

    Parameters
    ----------
    module : nn.Module, fitted skorch net, fitted MLPClassifier or MLPRegressor
        The network; copied, never modified.
    start, stop : str or int, default=None
        First stage, and first stage left out (as in a slice), by name or index.
    X : array-like of shape (n_samples, ...), default=None
        A few rows, needed where a module with a ``forward`` of its own has to be read.
    solver : str or Solver, default="auto"
        As in :class:`LayerInverter`.
    damping : "auto" or float, default="auto"
        As in :class:`LayerInverter`.

    Returns
    -------
    Pipeline
        Unfitted.

    Raises
    ------
    ValueError
        If a name or an index is unknown, nothing is left between the two, or the
        network cannot be read without data.

    Examples
    --------
    >>> import numpy as np
    >>> from torch import nn
    >>> from featprop_sklearn import make_inversion_pipeline
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Tanh()).double()
    >>> X = np.array([[0.5, -1.0]])
    >>> pipeline = make_inversion_pipeline(net).fit(X)
    >>> bool(np.allclose(pipeline.inverse_transform(pipeline.transform(X)), X))
    True
    """
    network = private_copy(as_network(module).module)
    if X is None:
        layers = open_sequential(network)
    else:
        rows = to_tensor(X, module_dtype(network), module_device(network))
        with torch.no_grad():
            layers = [(stage.name, stage.module) for stage in build_chain(network, rows[:8])]
    names = [name for name, _ in layers]
    part = layers[slice(_position(start, names, "start"), _position(stop, names, "stop"))]
    if not part:
        raise ValueError(f"start={start!r} and stop={stop!r} leave no stage; stages: {names}.")
    return pipeline_of_layers(part, solver=solver, damping=damping)


def pipeline_of_layers(
    layers: Sequence[tuple[str, nn.Module]],
    *,
    solver: str | Solver,
    damping: str | float,
    bounds: Sequence[Bounds | None] | None = None,
) -> Pipeline:
    """Make the Pipeline of named layers, with a range for the input of each if given."""
    ranges = bounds or [None] * len(layers)
    names = _step_names([name for name, _ in layers])
    return Pipeline(
        [
            (name, LayerInverter(layer, solver=solver, damping=damping, bounds=limit))
            for name, (_, layer), limit in zip(names, layers, ranges, strict=True)
        ]
    )


def _position(stage: str | int | None, names: list[str], parameter: str) -> int | None:
    if stage is None or (isinstance(stage, Integral) and abs(int(stage)) <= len(names)):
        return None if stage is None else int(stage)
    if stage in names:
        return names.index(stage)
    raise ValueError(
        f"{parameter}={stage!r} is not a stage of this network; stages: {names} "
        f"(or their indices, 0 to {len(names)})."
    )


def _step_names(stages: list[str]) -> list[str]:
    """Pipeline keeps ``__`` for its parameters, a few names for its own, and wants all unique."""
    names: list[str] = []
    for stage in stages:
        name = stage.replace("__", "_")
        while name in (*names, "steps", "memory", "verbose", "transform_input"):
            name += "_"
        names.append(name)
    return names
