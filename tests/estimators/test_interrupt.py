"""Ctrl-C at any moment of a fit leaves a usable estimator, and the user's network alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from featprop_sklearn import FeatureBackpropClassifier, GradientTrainer
from tests.estimators.snapshot import assert_unchanged, snapshot

X, Y = load_iris(return_X_y=True)


class Interrupting(nn.Module):
    """A layer at whose n-th call the user presses Ctrl-C."""

    countdown = -1

    def forward(self, x):
        cls = type(self)
        cls.countdown -= 1
        if cls.countdown == 0:
            raise KeyboardInterrupt
        return x


def fit_interrupted(calls):
    """Interrupt at a call of the network, counted from the start of the training."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Interrupting(), nn.Linear(8, 3))
    before = snapshot(net)
    classifier = FeatureBackpropClassifier(
        net, trainer=GradientTrainer(max_epochs=50, lr=1e-2), batch_size=30, random_state=0
    )
    Interrupting.countdown = -1
    classifier.set_params(trainer__max_epochs=0).fit(X, Y)
    needed = -1 - Interrupting.countdown  # calls before the training starts
    classifier.set_params(trainer__max_epochs=50)
    Interrupting.countdown = needed + calls
    with pytest.warns(ConvergenceWarning, match="interrupted; the estimator is usable"):
        classifier.fit(X, Y)
    Interrupting.countdown = -1
    assert_unchanged(net, before)
    return net, classifier


@pytest.mark.parametrize(("calls", "epochs"), [(3, 0), (23, 4)])
def test_in_the_middle_of_training(calls, epochs):
    net, classifier = fit_interrupted(calls)
    assert classifier.n_iter_ == epochs
    assert classifier.predict(X).shape == Y.shape
    assert not torch.equal(classifier.module_[0].weight, net[0].weight)
    assert set(classifier.report_) >= {"repair_rate", "seconds"}


def test_while_targets_are_computed():
    net, classifier = fit_interrupted(-2)
    assert classifier.n_iter_ == 0
    with torch.no_grad():
        expected = torch.softmax(net(torch.tensor(X, dtype=torch.float32)).double(), 1).numpy()
    np.testing.assert_allclose(classifier.predict_proba(X), expected, atol=1e-6)


def test_in_the_training_of_the_default_network(monkeypatch):
    train = GradientTrainer.train

    def interrupted(self, component, **options):
        return replace(train(self, component, **options), interrupted=True)

    monkeypatch.setattr(GradientTrainer, "train", interrupted)
    with pytest.warns(ConvergenceWarning, match="usable"):
        classifier = FeatureBackpropClassifier(random_state=0).fit(X, Y)
    assert classifier.n_iter_ == 0
    assert classifier.score(X, Y) > 0.9


def test_in_one_of_several_components(monkeypatch):
    def interrupted(self, component, **_):
        raise KeyboardInterrupt

    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    monkeypatch.setattr(GradientTrainer, "train", interrupted)
    with pytest.warns(ConvergenceWarning, match="usable"):
        classifier = FeatureBackpropClassifier(net, split=[0, 2]).fit(X, Y)
    assert classifier.predict(X).shape == Y.shape
