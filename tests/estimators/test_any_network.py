"""What the estimators promise of any network, on the kinds that users bring."""

import copy
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featprop_sklearn import FeatureBackpropClassifier, describe, split_points
from tests.estimators.snapshot import assert_unchanged, snapshot
from tests.networks.zoo import ZOO, Case, call, digits, pretrained

PRETRAINING, TRAINING, TEST = slice(0, 200), slice(200, 400), slice(400, 900)


@dataclass
class Study:
    """A pretrained network, how it was before any fit, and its data."""

    case: Case
    network: nn.Module
    before: tuple
    gradients: list[Tensor | None]
    accuracy: float

    def data(self, chosen):
        x, y = digits(chosen, parity=self.case.parity)
        return self.case.view(x), y

    def fit(self, **settings):
        classifier = FeatureBackpropClassifier(self.network, random_state=0, **settings)
        return classifier.fit(*self.data(TRAINING))  # a warning would be an error here


@pytest.fixture(scope="module", params=ZOO, ids=lambda case: case.name)
def study(request):
    case = request.param
    if case.package:
        pytest.importorskip(case.package, reason=f"{case.name} needs {case.package}")
    network = pretrained(case, *digits(PRETRAINING, parity=case.parity))
    x, y = digits(TEST, parity=case.parity)
    accuracy = _accuracy(case, network, case.view(x), y)
    gradients = [None if p.grad is None else p.grad.clone() for p in network.parameters()]
    return Study(case, network, snapshot(network), gradients, accuracy)


@torch.no_grad()
def _accuracy(case, network, X, y):
    logits = case.logits(call(copy.deepcopy(network).eval(), X))
    labels = (logits.flatten() > 0).long() if case.parity else logits.argmax(dim=1)
    return float((labels.numpy() == y).mean())


@pytest.fixture(scope="module")
def at_output(study):
    return study.fit()


@pytest.fixture(scope="module")
def at_middle(study):
    return study.fit(split=study.case.middle)


@pytest.fixture(params=["at_output", "at_middle"])
def classifier(request, study):
    return request.getfixturevalue(request.param)


def test_features_reach_their_labels(study, classifier):
    for rate in ("repair_rate", "kept_rate"):
        assert classifier.report_[rate] >= 0.95, rate
    at_output = classifier.split == "auto"
    assert classifier.report_["reached"] >= (0.95 if at_output else study.case.reached)


def test_held_out_accuracy_does_not_fall(study, classifier):
    X, y = study.data(TEST)
    standard_error = np.sqrt(study.accuracy * (1 - study.accuracy) / len(y))
    assert classifier.score(X, y) >= study.accuracy - 2 * standard_error


def test_pickled_and_read_back_it_predicts_the_same(study, classifier):
    X, _ = study.data(TEST)
    twin = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(twin.predict_proba(X), classifier.predict_proba(X))


def test_split_points_are_the_table_s_and_the_classifiers_(study, at_output, at_middle):
    X, _ = study.data(TRAINING)
    points, table = split_points(study.network, X), describe(study.network, X)
    assert points == list(table.index[table.split])
    assert at_output.split_ == points[-1]
    assert at_middle.split_ in points[:-1]
    assert table.refitted.sum() > 0
    assert (table.refitted <= table.parameters).all()


@pytest.mark.usefixtures("at_output", "at_middle")
def test_the_user_s_network_is_left_alone(study):
    X, _ = study.data(TRAINING)
    split_points(study.network, X)
    describe(study.network, X)
    assert_unchanged(study.network, study.before)
    for parameter, then in zip(study.network.parameters(), study.gradients, strict=True):
        assert (parameter.grad is None) == (then is None)
        assert then is None or torch.equal(parameter.grad, then)
