"""What the estimators promise of any network, on the kinds that users bring."""

import copy
import pickle
from dataclasses import dataclass, replace

import joblib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featprop_sklearn import FeatureBackpropClassifier, describe, feature_gap, split_points
from featprop_sklearn.propagation.joint import JointRule
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


def test_features_reach_their_labels(classifier):
    for rate in ("repair_rate", "kept_rate", "reached"):
        assert classifier.report_[rate] >= 0.95, rate


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


# A network that torch.fx cannot follow -------------------------------------------------------


@pytest.fixture(scope="module")
def keywords():
    case = next(case for case in ZOO if case.name == "keywords")
    network = pretrained(case, *digits(PRETRAINING))
    accuracy = _accuracy(case, network, case.view(digits(TEST)[0]), digits(TEST)[1])
    return Study(case, network, snapshot(network), [], accuracy)


def test_closed_form_refits_layers_inside_replayed_stages(keywords):
    at_middle = keywords.fit(split="blocks.0", trainer="closed_form")
    refitted = next(entry["refitted"] for entry in at_middle.history_ if entry.get("refitted"))
    assert [name.split(".")[-1] for name in refitted] == ["embed", "up", "down"]
    before, after = keywords.network.state_dict(), at_middle.module_.state_dict()
    moved = {
        name.removesuffix(".weight")
        for name, value in after.items()
        if name.endswith(".weight") and not torch.equal(value, before[name])
    }
    assert moved <= {"embed", "blocks.0.up", "blocks.0.down"}
    table = describe(keywords.network, keywords.data(TRAINING)[0])
    assert table.refitted.to_dict() == {
        "embed.input": 0,
        "embed": 64 * 24 + 24,
        "blocks.0": 24 * 48 + 48 + 48 * 24 + 24,
        "blocks.1": 24 * 48 + 48 + 48 * 24 + 24,
        "relu": 0,
        "fc": 24 * 10 + 10,
    }


def test_statistics_after_the_split_stay(keywords):
    network = keywords.fit(split="blocks.0", trainer="gradient").module_
    before = keywords.network.blocks
    assert torch.equal(network.blocks[1].norm.running_mean, before[1].norm.running_mean)
    assert not torch.equal(network.blocks[0].norm.running_mean, before[0].norm.running_mean)
    assert torch.equal(network.fc.weight, keywords.network.fc.weight)


def test_several_splits_with_threads(keywords):
    X, y = keywords.data(TEST)
    settings = {"split": ["embed", "blocks.0", "blocks.1"], "trainer": "gradient"}
    network = copy.deepcopy(keywords.network)
    for block in network.blocks:
        block.drop.p = 0.0  # threads draw from one generator, in any order
    study = replace(keywords, network=network)
    one = study.fit(**settings)
    with joblib.parallel_backend("threading"):
        several = study.fit(**settings, n_jobs=3)
    assert one.split_ == settings["split"]
    assert all(one.report_[split]["used"] for split in one.split_)
    np.testing.assert_array_equal(one.predict_proba(X), several.predict_proba(X))
    assert one.score(X, y) >= keywords.accuracy - 0.03


def test_layerwise_rule(keywords):
    X, y = keywords.data(TEST)
    classifier = keywords.fit(split="blocks.0", propagation="layerwise", trainer="gradient")
    assert classifier.report_["kept_rate"] >= 0.95
    assert classifier.score(X, y) >= keywords.accuracy - 0.03


def test_memory_and_feature_gap(keywords, tmp_path, monkeypatch):
    settings = {"split": "blocks.0", "trainer": "gradient"}
    first = keywords.fit(memory=str(tmp_path), **settings)
    monkeypatch.setattr(JointRule, "targets", None)  # whatever is computed now fails
    again = keywords.fit(memory=str(tmp_path), **settings)
    X, _ = keywords.data(TEST)
    np.testing.assert_array_equal(again.predict_proba(X), first.predict_proba(X))
    monkeypatch.undo()
    gap = feature_gap(first, *keywords.data(slice(200, 240)))
    assert list(gap.index) == split_points(keywords.network, X)
    assert (gap.reached >= 0.95).all()


class SecondThoughts(nn.Module):
    """Where the first answer is unsure, another part of the network is asked."""

    def __init__(self):
        super().__init__()
        self.body, self.first = nn.Linear(64, 32), nn.Linear(32, 10)
        self.second = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10))
        with torch.no_grad():
            self.body.weight[0], self.body.bias[0] = torch.eye(64)[0], 0

    def forward(self, x):
        features = torch.relu(self.body(x))
        logits = self.first(features)
        unsure = features[:, 0] > 0.5
        if unsure.any():
            logits = torch.where(unsure[:, None], self.second(features), logits)
        return logits


def test_splits_are_those_of_the_first_rows_whichever_are_held_out():
    X, y = digits(TRAINING)
    X, y = np.tile(X.reshape(len(X), -1), (2, 1)), np.tile(y, 2)
    X[:, 0] = np.arange(400) >= 8  # the first eight take one way, most others the other
    torch.manual_seed(0)
    network = SecondThoughts()
    classifier = FeatureBackpropClassifier(network, random_state=0).fit(X, y)
    assert classifier.split_ == split_points(network, X)[-1]
    assert classifier.score(X, y) > 0.9
