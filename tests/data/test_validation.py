"""What users pass as X, and the shape that the network takes."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import BaseEstimator
from torch.utils.data import DataLoader, TensorDataset

from featprop_sklearn.data import check_samples, shape_samples

ROWS = np.arange(12.0).reshape(4, 3)
IMAGES = np.arange(4 * 2 * 3 * 3.0).reshape(4, 2, 3, 3)


def checked(X, reset=True):
    estimator = BaseEstimator()
    return check_samples(estimator, X, reset=reset), estimator


@pytest.mark.parametrize(
    "kind",
    [
        np.asarray,
        lambda x: x.tolist(),
        lambda x: x.astype(int),
        pd.DataFrame,
        pl.DataFrame,
        torch.from_numpy,
        lambda x: torch.from_numpy(x).requires_grad_(),
        lambda x: torch.from_numpy(x).long(),
    ],
    ids=["ndarray", "list", "int", "pandas", "polars", "tensor", "gradient", "int tensor"],
)
def test_tables(kind):
    array, estimator = checked(kind(ROWS.copy()))
    assert type(array) is np.ndarray
    assert array.dtype == np.float64
    np.testing.assert_array_equal(array, ROWS)
    assert estimator.n_features_in_ == 3


@pytest.mark.parametrize("X", [ROWS.astype(np.float32), torch.from_numpy(ROWS).float()], ids=type)
def test_single_precision_stays(X):
    assert checked(X)[0].dtype == np.float32


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["ndarray", "tensor"])
def test_images(kind):
    array, _ = checked(kind(IMAGES))
    np.testing.assert_array_equal(array, IMAGES)


def test_memory_map(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, ROWS)
    array, _ = checked(np.load(path, mmap_mode="r"))
    np.testing.assert_array_equal(array, ROWS)


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame], ids=["pandas", "polars"])
def test_names_of_columns_are_kept_and_checked(frame):
    columns = {"a": ROWS[:, 0], "b": ROWS[:, 1]}
    _, estimator = checked(frame(columns))
    np.testing.assert_array_equal(estimator.feature_names_in_, ["a", "b"])
    swapped = frame({"b": ROWS[:, 1], "a": ROWS[:, 0]})
    with pytest.raises(ValueError, match="feature names should match"):
        check_samples(estimator, swapped, reset=False)


def test_other_number_of_features():
    _, estimator = checked(ROWS)
    with pytest.raises(ValueError, match="X has 2 features, but BaseEstimator is expecting 3"):
        check_samples(estimator, ROWS[:, :2], reset=False)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("X", [ROWS, IMAGES], ids=["table", "images"])
def test_not_finite(X, value):
    X = X.copy()
    X.flat[5] = value
    for kind in (np.asarray, torch.from_numpy):
        with pytest.raises(ValueError, match=r"Input X contains (NaN|infinity)"):
            checked(kind(X))


def test_one_dimension_is_too_few():
    with pytest.raises(ValueError, match="Expected 2D array, got 1D array instead"):
        checked(ROWS[0])


def test_dataset():
    with pytest.raises(
        TypeError,
        match=r"X is a torch Dataset \(TensorDataset\); pass arrays or tensors of shape "
        r"\(n_samples, \.\.\.\), for example by stacking its samples, chunk by chunk to partial_f",
    ):
        checked(TensorDataset(torch.from_numpy(ROWS)))


def test_data_loader():
    with pytest.raises(TypeError, match=r"X is a torch DataLoader \(DataLoader\); pass ar"):
        checked(DataLoader(TensorDataset(torch.from_numpy(ROWS))))


def test_shape_samples():
    assert shape_samples(ROWS, None) is ROWS
    assert shape_samples(IMAGES, (2, 3, 3)) is IMAGES
    rows = IMAGES.reshape(4, 18)
    np.testing.assert_array_equal(shape_samples(rows, (2, 3, 3)), IMAGES)
    np.testing.assert_array_equal(shape_samples(rows, [np.int64(2), 3, 3]), IMAGES)
    np.testing.assert_array_equal(shape_samples(IMAGES, (18,)), rows)


@pytest.mark.parametrize("input_shape", [(), (0, 3), (-1, 3), 3, (1, None), "ab", ("a",)], ids=repr)
def test_input_shape_of_the_wrong_kind(input_shape):
    with pytest.raises(
        ValueError, match=r"input_shape must be a tuple of positive integers, .*; got "
    ) as caught:
        shape_samples(ROWS, input_shape)
    assert str(caught.value).endswith(f"got {input_shape!r}.")


def test_input_shape_that_does_not_fit():
    with pytest.raises(
        ValueError,
        match=r"input_shape=\(2, 2\) holds 4 values per sample, but X has 3 \(X\.shape=\(4, 3\)\)",
    ):
        shape_samples(ROWS, (2, 2))
