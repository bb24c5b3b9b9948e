"""Where targets can be set in a network, and what its stages are."""

from __future__ import annotations

import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from featprop_sklearn.data import module_device, module_dtype, to_tensor
from featprop_sklearn.inversion import inversion_method
from featprop_sklearn.networks import (
    Chain,
    as_network,
    build_chain,
    chain_splits,
    private_copy,
)

__all__ = ["describe", "split_points"]

EXAMPLES = 8


def split_points(module: object, X: ArrayLike) -> list[str]:
    """List the split points of a network: the names that ``split`` takes.

    Parameters
    ----------
    module : nn.Module, fitted skorch net, fitted MLPClassifier or MLPRegressor
        The network; not changed.
    X : array-like of shape (n_samples, ...)
        A few samples, in the shape that the network takes.

    Returns
    -------
    list of str
        Stages with something to train before or in them, in forward order; the last one
        is the network's output.

    Raises
    ------
    ValueError
        If the network refuses the samples.

    Examples
    --------
    >>> import numpy as np
    >>> from torch import nn
    >>> from featprop_sklearn import split_points
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> split_points(net, np.zeros((2, 4)))
    ['0', '1', '2']
    """
    return chain_splits(_chain(module, X))


def describe(module: object, X: ArrayLike) -> pd.DataFrame:
    """Table the stages of a network.

    Parameters
    ----------
    module : nn.Module, fitted skorch net, fitted MLPClassifier or MLPRegressor
        The network; not changed.
    X : array-like of shape (n_samples, ...)
        A few samples, in the shape that the network takes.

    Returns
    -------
    DataFrame
        One row per stage, index its name; columns ``layer`` (type), ``in_shape``,
        ``out_shape`` (of one sample), ``parameters`` (count), ``split`` (whether it is a
        split point) and ``inversion`` (how targets pass backwards through it).

    Raises
    ------
    ValueError
        If the network refuses the samples.
    """
    chain = _chain(module, X)
    splits = set(chain_splits(chain))
    rows = [
        {
            "stage": stage.name,
            "layer": type(stage.module).__name__,
            "in_shape": tuple(stage.in_shape),
            "out_shape": tuple(stage.out_shape),
            "parameters": sum(p.numel() for p in stage.module.parameters()),
            "split": stage.name in splits,
            "inversion": inversion_method(stage.module),
        }
        for stage in chain
    ]
    return pd.DataFrame(rows).set_index("stage")


def _chain(module: object, X: ArrayLike) -> Chain:
    network = private_copy(as_network(module).module)
    rows = X[:EXAMPLES].detach().cpu() if isinstance(X, Tensor) else _first_rows(X)
    x = to_tensor(rows, module_dtype(network), module_device(network))
    with torch.no_grad():
        return build_chain(network, x)


def _first_rows(X: ArrayLike) -> ArrayLike:
    return X.head(EXAMPLES) if hasattr(X, "head") else X[:EXAMPLES]  # type: ignore[index]
