"""Logistic regression batch by batch against scikit-learn's, all rows at once."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from featprop_sklearn.data import LazyRows, TensorRows
from featprop_sklearn.training import streamed_logistic as module
from featprop_sklearn.training.streamed_logistic import Standardised, streamed_logistic

IRIS, KINDS = load_iris(return_X_y=True)


class Table:
    """A source of rows."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def read(self, rows):
        return self.rows[np.asarray(rows)]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(module, "BATCH_BUDGET", 150)


def standardised(X, weights, *, centre=True, lazy=False):
    x = torch.from_numpy(X)
    if lazy:
        x = TensorRows(LazyRows(Table(X)), torch.float64, torch.device("cpu"))
    return Standardised.of(x, torch.from_numpy(weights), centre=centre, precision=1e-16)


@pytest.mark.parametrize("lazy", [False, True])
def test_standardised_features_are_scikit_learns(lazy):
    weights = np.random.default_rng(0).uniform(0.1, 3, len(IRIS))
    features = standardised(IRIS, weights, lazy=lazy)
    theirs = StandardScaler().fit(IRIS, sample_weight=weights)
    np.testing.assert_allclose(features.mean, theirs.mean_, rtol=1e-12)
    np.testing.assert_allclose(features.scale, theirs.scale_, rtol=1e-12)
    np.testing.assert_allclose(features[3:9], theirs.transform(IRIS)[3:9], rtol=1e-10)


def test_features_keep_their_mean_where_no_bias_makes_up_for_it():
    features = standardised(IRIS, np.ones(len(IRIS)), centre=False)
    assert not features.mean.any()
    np.testing.assert_allclose(features.scale, np.sqrt((IRIS**2).mean(axis=0)), rtol=1e-12)


def test_a_constant_feature_is_not_blown_up():
    X = np.hstack([IRIS, np.full((len(IRIS), 1), 7.3)])
    features = Standardised.of(
        torch.from_numpy(X), torch.ones(len(X)), centre=True, precision=1.2e-7
    )
    assert features.scale[-1] == 1


@pytest.mark.parametrize("data", ["iris", "two kinds", "digits"])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("C", [0.1, 10.0])
def test_coefficients_are_scikit_learns(data, fit_intercept, C, monkeypatch):
    X, y = (load_digits(return_X_y=True)) if data == "digits" else (IRIS, KINDS)
    X, y = X[:400], (y[:400] > 0).astype(int) if data == "two kinds" else y[:400]
    monkeypatch.setattr(module, "BATCH_BUDGET", 50 * X.shape[1])
    weights = np.random.default_rng(1).uniform(0.5, 2, len(X))
    features = standardised(X, weights)
    found = streamed_logistic(
        features,
        torch.from_numpy(y),
        torch.from_numpy(weights),
        C,
        fit_intercept=fit_intercept,
        tol=1e-9,
    )
    theirs = LogisticRegression(C=C, fit_intercept=fit_intercept, tol=1e-10, max_iter=10_000)
    theirs.fit(features[:].numpy(), y, sample_weight=weights)
    ours = features[:].numpy() @ found[0].T + found[1]
    wanted = features[:].numpy() @ theirs.coef_.T + theirs.intercept_
    assert found[0].shape == theirs.coef_.shape
    centred = (ours - ours.mean(axis=1, keepdims=True), wanted - wanted.mean(axis=1, keepdims=True))
    ours, wanted = (ours, wanted) if ours.shape[1] == 1 else centred
    np.testing.assert_allclose(ours, wanted, atol=1e-4 * np.abs(wanted).max())


def test_it_ends_where_the_slope_of_the_objective_is_nothing():
    features = standardised(IRIS, np.ones(len(IRIS)))
    y = torch.from_numpy(KINDS)
    weight, bias = streamed_logistic(features, y, torch.ones(len(y)), 0.1, fit_intercept=True)
    w = torch.tensor(weight, requires_grad=True)
    b = torch.tensor(bias, requires_grad=True)
    rows = features[:]
    loss = torch.nn.functional.cross_entropy(rows @ w.T + b, y, reduction="sum")
    (0.1 * loss + 0.5 * w.square().sum()).backward()
    largest = max(float(w.grad.abs().max()), float(b.grad.abs().max()))
    assert largest <= 0.1 * len(y) * 1e-4
