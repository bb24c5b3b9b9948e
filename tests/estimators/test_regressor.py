"""The regressor on real data."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_diabetes, load_linnerud
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from featprop_sklearn import (
    FeatureBackpropRegressor,
    GradientTrainer,
    feature_gap,
    split_points,
)


@pytest.fixture(scope="module")
def diabetes():
    X, y = load_diabetes(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    return train_test_split(X, y, random_state=0)


@pytest.fixture(scope="module")
def mlp(diabetes):
    X, _, y, _ = diabetes
    return MLPRegressor(
        hidden_layer_sizes=(16,), solver="lbfgs", alpha=100.0, max_iter=5000, random_state=0
    ).fit(X[:100], y[:100])


def test_post_training_beats_the_network_as_it_is(diabetes, mlp):
    X, X_test, y, y_test = diabetes
    trainer = GradientTrainer(alpha=0.1, lr=1e-2, max_epochs=60)
    regressor = FeatureBackpropRegressor(mlp, trainer=trainer, batch_size=32, random_state=0)
    regressor.fit(X[100:], y[100:])
    assert regressor.score(X_test, y_test) > mlp.score(X_test, y_test) + 0.05
    assert regressor.predict(X_test).shape == y_test.shape


def test_targets_at_the_output_are_the_values(diabetes, mlp):
    X, _, y, _ = diabetes
    regressor = FeatureBackpropRegressor(mlp, trainer=GradientTrainer(max_epochs=0)).fit(X, y)
    np.testing.assert_allclose(regressor.feature_targets(X, y)[:, 0], y)
    assert regressor.report_["reached"] == 1.0
    table = feature_gap(regressor, X, y)
    assert list(table.index) == ["hidden1", "relu1", "output"]
    # one output from 16 features: a linear tail takes one step, to within its regularisation
    assert table.loc["relu1", "reached"] == 1.0
    assert table.loc["relu1", "residual"] < 1e-5


def test_half_a_step(diabetes, mlp):
    X, _, y, _ = diabetes
    regressor = FeatureBackpropRegressor(
        mlp, target_step=0.5, trainer=GradientTrainer(max_epochs=0)
    ).fit(X, y)
    halfway = (mlp.predict(X) + y) / 2
    np.testing.assert_allclose(regressor.feature_targets(X, y)[:, 0], halfway)


def test_several_outputs_and_shapes():
    X, Y = load_linnerud(return_X_y=True)
    regressor = FeatureBackpropRegressor(random_state=0).fit(X, Y)
    assert regressor.predict(X).shape == Y.shape
    assert regressor.feature_targets(X, Y).shape == Y.shape
    torch.manual_seed(0)
    flat_output = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    single = FeatureBackpropRegressor(flat_output, trainer=GradientTrainer(max_epochs=1))
    assert single.fit(X, Y[:, 0]).predict(X).shape == (20,)


def test_the_default_network_has_its_own_units():
    X, y = load_diabetes(return_X_y=True)
    ours = cross_val_score(FeatureBackpropRegressor(random_state=0), X, y, cv=3).mean()
    scaled = cross_val_score(
        FeatureBackpropRegressor(random_state=0), X * 1e4 + 1e3, y * 1e-3, cv=3
    ).mean()
    linear = cross_val_score(LinearRegression(), X, y, cv=3).mean()
    assert ours > linear - 0.1
    assert scaled == pytest.approx(ours, abs=0.02)


def test_in_pipelines_searches_and_target_transforms(diabetes, mlp):
    X, X_test, y, y_test = diabetes
    trainer = GradientTrainer(lr=1e-2, max_epochs=5)
    pipeline = make_pipeline(
        StandardScaler(), FeatureBackpropRegressor(mlp, trainer=trainer, random_state=0)
    )
    search = GridSearchCV(
        pipeline,
        {
            "featurebackpropregressor__split": split_points(mlp, X),
            "featurebackpropregressor__trainer__alpha": [0.0, 0.1],
        },
        cv=2,
    ).fit(X, y)
    assert search.score(X_test, y_test) > mlp.score(X_test, y_test)
    wrapped = TransformedTargetRegressor(
        FeatureBackpropRegressor(trainer=trainer, random_state=0), transformer=StandardScaler()
    ).fit(X, y)
    assert wrapped.score(X_test, y_test) > 0.2


def test_partial_fit_and_pickle(diabetes, mlp):
    X, X_test, y, y_test = diabetes
    regressor = FeatureBackpropRegressor(
        mlp, trainer=GradientTrainer(lr=1e-2), batch_size=32, random_state=0
    )
    for _ in range(20):
        regressor.partial_fit(X, y)
    assert regressor.score(X_test, y_test) > mlp.score(X_test, y_test)
    epochs = regressor.fit(X, y).n_iter_
    assert regressor.partial_fit(X, y).n_iter_ == epochs + 1
    copy = pickle.loads(pickle.dumps(regressor))
    np.testing.assert_array_equal(copy.predict(X_test), regressor.predict(X_test))
    assert clone(regressor).module is mlp


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_of_zero_are_measured_by_the_spread_of_y(dtype):
    X = np.random.default_rng(0).normal(size=(200, 5)).astype(dtype)
    y = np.maximum(0, X[:, 0])
    assert (y == 0).mean() > 0.4
    table = feature_gap(FeatureBackpropRegressor(random_state=0).fit(X, y), X, y)
    assert (table["reached"] > 0.99).all()
    assert (table["residual"] < 1e-3).all()
