"""Where targets can be set in a network, and what its stages are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from featprop_sklearn.data import (
    check_rows,
    find_source,
    is_named,
    module_device,
    pack,
    to_tensor,
    without_torch,
)
from featprop_sklearn.inversion import condition_of, inversion_method
from featprop_sklearn.networks import (
    Chain,
    WatchedRun,
    affine_sites,
    as_network,
    build_chain,
    chain_splits,
    input_dtype,
    private_copy,
    refuse_sequence,
    with_inputs,
)

__all__ = ["describe", "split_points"]

EXAMPLES = 8


def split_points(module: object, X: Any) -> list[str]:
    """List the split points of a network: the names that ``split`` takes.

    Parameters
    ----------
    module : nn.Module, fitted skorch net, fitted MLPClassifier or MLPRegressor
        The network; not changed.
    X : array-like of shape (n_samples, ...), dict of str to such, or Dataset
        A few samples, in the shape that the network takes; for several inputs a dict whose
        keys are names of its arguments.

    Returns
    -------
    list of str
        Stages with something to train before or in them, in forward order; the last one
        is the network's output.

    Raises
    ------
    ValueError
        If the samples are no finite numbers in at least two dimensions, or the network refuses
        them.
    TypeError
        If they are sparse.

    Notes
    -----
    The network runs on two rows and on one of them; large ones are listed 10 to 15 times faster so
    than by :func:`describe`. What depends on values is read as that and ``fit`` do it: rows chosen
    by them, ``if x.max() > 1``; and so is a network with its own autocast or ``no_grad``.

    Examples
    --------
    >>> import numpy as np
    >>> from torch import nn
    >>> from featprop_sklearn import split_points
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> split_points(net, np.zeros((2, 4)))
    ['0', '1', '2']
    """
    run = WatchedRun()
    network, x = _network(module, X, run)
    names = run.splits(network)
    return chain_splits(_chain(network, x)) if names is None else names


def describe(module: object, X: Any, *, iterate: bool = False) -> pd.DataFrame:
    """Table the stages of a network.

    Parameters
    ----------
    module : nn.Module, fitted skorch net, fitted MLPClassifier or MLPRegressor
        The network; not changed.
    X : array-like of shape (n_samples, ...), dict of str to such, or Dataset
        A few samples, in the shape that the network takes; for several inputs a dict whose
        keys are names of its arguments.
    iterate : bool, default=False
        Whether to iterate for condition numbers of stages with more than 1500 inputs and outputs,
        which takes seconds to minutes each.

    Returns
    -------
    DataFrame
        One row per stage, index its name; columns ``layer`` (type), ``in_shape``,
        ``out_shape`` (of one sample), ``parameters`` (count), ``refitted`` (how many of them
        ``trainer="closed_form"`` refits, at a split from here on), ``split`` (whether it is a
        split point), ``inversion`` (how targets pass backwards through it) and ``condition``
        (of an affine stage: its largest singular value over its smallest that is not zero; NaN
        elsewhere).

    Raises
    ------
    ValueError
        If the samples are no finite numbers in at least two dimensions, or the network refuses
        them.
    TypeError
        If they are sparse.
    """
    network, x = _network(module, X)
    chain = _chain(network, x)
    splits = set(chain_splits(chain))
    refitted = dict.fromkeys(range(len(chain)), 0)
    for site in affine_sites(chain, x):
        refitted[site.stage] += _size(site.layer)
    rows = [
        {
            "stage": stage.name,
            "layer": type(stage.module).__name__,
            "in_shape": tuple(stage.in_shape),
            "out_shape": tuple(stage.out_shape),
            "parameters": _size(stage.module),
            "refitted": refitted[index],
            "split": stage.name in splits,
            "inversion": inversion_method(stage.module),
            "condition": condition_of(stage.module, stage.in_shape, iterate=iterate),
        }
        for index, stage in enumerate(chain)
    ]
    return pd.DataFrame(rows).set_index("stage")


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _network(module: object, X: Any, *run: WatchedRun) -> tuple[nn.Module, Tensor]:
    """Return a copy that takes one tensor, and a few samples for it."""
    network = private_copy(as_network(module).module)
    refuse_sequence(module, X)
    source = find_source(X)
    if source is not None:
        X = source.read(range(min(EXAMPLES, len(source))))
    if is_named(X):
        rows, layout = pack({name: _first_rows(X[name]) for name in X}, None, "split_points")
    else:
        rows, layout = check_rows(_first_rows(X)), None
    network = with_inputs(network, rows, layout, *run)
    return network, to_tensor(rows, input_dtype(network), module_device(network))


def _chain(network: nn.Module, x: Tensor) -> Chain:
    with torch.no_grad():
        return build_chain(network, x)


def _first_rows(X: Any) -> Any:
    if not isinstance(X, list | tuple) and np.ndim(X) == 0:
        return X
    return without_torch(X.head(EXAMPLES) if hasattr(X, "head") else X[:EXAMPLES])
