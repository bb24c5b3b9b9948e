"""memory=: a grid over trainers or splits computes its targets once."""

import numpy as np
import pytest
import torch
from joblib import Memory
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from torch import nn

from featprop_sklearn import ClosedFormTrainer, FeatureBackpropClassifier, GradientTrainer
from featprop_sklearn.inversion import LayerInverter
from featprop_sklearn.propagation import joint as joint_module


@pytest.fixture(scope="module")
def data():
    X, y = load_digits(return_X_y=True)
    return (X[:240] / 16).astype(np.float32), y[:240]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 15), nn.ReLU()).append(
        nn.Linear(15, 10)
    )


@pytest.fixture
def searches(monkeypatch):
    """Count how often targets are searched for."""
    calls = []
    search = joint_module.nearest_acceptable

    def counted(*arguments, **options):
        calls.append(len(arguments[1]))
        return search(*arguments, **options)

    monkeypatch.setattr(joint_module, "nearest_acceptable", counted)
    return calls


@pytest.fixture
def inversions(monkeypatch):
    """Count the layers inverted."""
    calls = []
    invert = LayerInverter._nearest

    def counted(self, Y, reference=None):
        calls.append(len(Y))
        return invert(self, Y, reference)

    monkeypatch.setattr(LayerInverter, "_nearest", counted)
    return calls


def grid(network, parameters, **options):
    estimator = FeatureBackpropClassifier(network, random_state=0, **options)
    return GridSearchCV(estimator, parameters, cv=2, refit=False, error_score="raise")


def test_a_grid_over_the_trainer_computes_targets_once(network, data, searches, tmp_path):
    parameters = {"trainer__lr": [1e-4, 1e-3, 1e-2]}
    options = {"split": "1", "trainer": GradientTrainer(max_epochs=1)}
    plain = grid(network, parameters, **options).fit(*data)
    without = len(searches)
    searches.clear()
    kept = grid(network, parameters, **options, memory=Memory(tmp_path, verbose=0)).fit(*data)
    assert len(searches) * 3 == without
    np.testing.assert_array_equal(
        plain.cv_results_["mean_test_score"], kept.cv_results_["mean_test_score"]
    )


def test_a_grid_over_splits_costs_one_sweep(network, data, inversions, tmp_path):
    parameters = {"split": ["2", "1", "0", "3"]}
    options = {"propagation": "layerwise", "trainer": GradientTrainer(max_epochs=1)}
    options |= {"memory": str(tmp_path), "validation_fraction": 0}
    grid(network, parameters, **options).fit(*data)
    layers_after_the_first_split, folds = 4, 2
    assert len(inversions) == layers_after_the_first_split * folds
    grid(network, parameters, **options).fit(*data)
    assert len(inversions) == layers_after_the_first_split * folds


def test_processes_share_a_memory(network, data, tmp_path):
    options = {"split": "1", "trainer": ClosedFormTrainer(sweeps=1)}
    search = grid(network, {"trainer__ridge": [1e-3, 1e-1]}, **options, memory=str(tmp_path))
    alone = grid(network, {"trainer__ridge": [1e-3, 1e-1]}, **options).fit(*data)
    together = search.set_params(n_jobs=2).fit(*data)
    np.testing.assert_array_equal(
        alone.cv_results_["mean_test_score"], together.cv_results_["mean_test_score"]
    )


def test_other_data_are_not_mixed_up(network, data, tmp_path):
    X, y = data
    make = FeatureBackpropClassifier
    options = {"split": "1", "trainer": GradientTrainer(max_epochs=0)}
    first = make(network, memory=str(tmp_path), **options).fit(X[:100], y[:100])
    second = make(network, memory=str(tmp_path), **options).fit(X[100:], y[100:])
    fresh = make(network, **options).fit(X[100:], y[100:])
    assert second.report_["displacement"] == fresh.report_["displacement"]
    assert first.report_["displacement"] != second.report_["displacement"]


def test_a_memory_that_is_none_is_refused(network, data):
    with pytest.raises(ValueError, match="memory"):
        FeatureBackpropClassifier(network, memory=3).fit(*data)
