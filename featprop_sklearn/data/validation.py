"""What users pass as X: checked, as one array, 2-D or n-D."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_array, validate_data
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

__all__ = ["check_rows", "check_samples", "shape_samples", "without_torch"]


def check_samples(estimator: Any, X: Any, *, reset: bool) -> NDArray:
    """Check X as scikit-learn does, n-D arrays (images) and torch tensors included.

    Parameters
    ----------
    estimator : estimator
        Receives ``n_features_in_`` and ``feature_names_in_`` when ``reset``.
    X : array-like, DataFrame or Tensor of shape (n_samples, ...)
        The samples.
    reset : bool
        True in ``fit``.

    Returns
    -------
    ndarray of float32 or float64
        At least 2-D, finite.

    Raises
    ------
    TypeError
        For a torch ``Dataset`` or ``DataLoader``.
    ValueError
        As :func:`sklearn.utils.validation.validate_data`.
    """
    X = without_torch(X)
    return validate_data(estimator, X, reset=reset, allow_nd=True, dtype=(np.float64, np.float32))


def check_rows(X: Any) -> NDArray:
    """Check some rows of what :func:`check_samples` has seen an example of."""
    return check_array(
        without_torch(X),
        allow_nd=True,
        dtype=(np.float64, np.float32),
        input_name="X",
        estimator="the network",
    )


def without_torch(X: Any, name: str = "X") -> Any:
    """Return a tensor as an array, and anything else as it is.

    Raises
    ------
    TypeError
        For a torch ``Dataset`` or ``DataLoader``.
    """
    if isinstance(X, Dataset | DataLoader):
        kind = "Dataset" if isinstance(X, Dataset) else "DataLoader"
        raise TypeError(
            f"{name} is a torch {kind} ({type(X).__name__}); pass arrays or tensors of shape "
            "(n_samples, ...), for example by stacking its samples, chunk by chunk to partial_fit."
        )
    if isinstance(X, Tensor):
        X = X.detach().cpu()
        X = (X.float() if X.dtype in (torch.bfloat16, torch.float16) else X).numpy()
    return X


def shape_samples(X: NDArray, input_shape: tuple[int, ...] | None) -> NDArray:
    """Give 2-D rows the shape that the network takes.

    Raises
    ------
    ValueError
        If ``input_shape`` is not a tuple of positive integers or does not fit the rows.
    """
    if input_shape is None:
        return X
    try:
        shape = tuple(operator.index(size) for size in input_shape)
    except (TypeError, ValueError):
        shape = ()
    if not shape or min(shape) < 1:
        raise ValueError(
            f"input_shape must be a tuple of positive integers, the shape of one sample; "
            f"got {input_shape!r}."
        )
    if X.shape[1:] == shape:
        return X
    if math.prod(X.shape[1:]) != math.prod(shape):
        raise ValueError(
            f"input_shape={shape} holds {math.prod(shape)} values per sample, but X has "
            f"{math.prod(X.shape[1:])} (X.shape={X.shape})."
        )
    return X.reshape(len(X), *shape)
