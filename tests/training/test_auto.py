"""The automatic trainer: each step if held-out data does not object."""

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn

from featprop_sklearn import (
    AutoTrainer,
    ClosedFormTrainer,
    FeatureBackpropClassifier,
    FeatureBackpropRegressor,
    GradientTrainer,
)
from featprop_sklearn.training import auto as auto_module

HARMFUL = GradientTrainer(alpha=0.0, lr=10.0, max_epochs=3)
RUINOUS = GradientTrainer(alpha=0.0, lr=3.0, max_epochs=3)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return train_test_split((X / 16).astype(np.float32), y, train_size=600, random_state=0)


@pytest.fixture(scope="module")
def network(digits):
    """An MLP that knows digits, with BatchNorm."""
    X, _, y, _ = digits
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU()
    ).append(nn.Linear(16, 10))
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(60):
        loss = nn.functional.cross_entropy(net(torch.from_numpy(X)), torch.from_numpy(y))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


def rotated(X):
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(X.shape[1], X.shape[1])))
    return (X @ turn).astype(np.float32)


def steps(history, **wanted):
    return [
        entry["step"]
        for entry in history
        if all(entry.get(name) == value for name, value in wanted.items())
    ]


def test_a_network_is_brought_to_new_data(digits, network):
    X, X_test, y, y_test = digits
    classifier = FeatureBackpropClassifier(network, random_state=0).fit(rotated(X), y)
    before = (network(torch.from_numpy(rotated(X_test))).argmax(1).numpy() == y_test).mean()
    linear = LogisticRegression(max_iter=2000).fit(rotated(X), y).score(rotated(X_test), y_test)
    assert before < 0.4
    assert classifier.score(rotated(X_test), y_test) > linear
    assert set(steps(classifier.history_, trial=True)) == {"sweeps", "polish"}
    assert set(steps(classifier.history_, trial=False)) == {"polish"}
    assert classifier.n_iter_ == len(steps(classifier.history_, trial=False))


def test_fit_twice_gives_the_same(digits, network):
    X, X_test, y, _ = digits
    fits = [FeatureBackpropClassifier(network, random_state=3).fit(X, y) for _ in range(2)]
    first, second = (fit.decision_function(X_test) for fit in fits)
    np.testing.assert_array_equal(first, second)


def test_a_polish_that_harms_is_replaced_by_a_gentle_one(digits, network):
    X, X_test, y, y_test = digits
    trainer = AutoTrainer(polish=HARMFUL)
    classifier = FeatureBackpropClassifier(network, trainer=trainer, random_state=0).fit(X, y)
    as_it_is = FeatureBackpropClassifier(network, trainer=GradientTrainer(max_epochs=0)).fit(X, y)
    rates_tried = sum(
        entry["step"] == "polish" and entry["trial"] and entry["epoch"] == 1
        for entry in classifier.history_
    )
    assert rates_tried == 2
    assert classifier.score(X_test, y_test) >= as_it_is.score(X_test, y_test) - 0.01


def test_a_network_that_everything_would_harm_is_left_alone(digits, network, monkeypatch):
    X, X_test, y, _ = digits
    monkeypatch.setattr(auto_module.Judge, "accepts", lambda *_, **__: False)
    classifier = FeatureBackpropClassifier(network, random_state=0).fit(X, y)
    expected = network(torch.from_numpy(X_test)).detach().numpy()
    np.testing.assert_array_equal(classifier.decision_function(X_test), expected)
    assert steps(classifier.history_, trial=False) == []


def test_what_was_kept_is_finished_on_all_rows(digits, network, monkeypatch):
    X, _, y, _ = digits
    seen = []
    train = GradientTrainer.train

    def spy(self, component, **more):
        seen.append((self.max_epochs, len(component.data), component.validation))
        return train(self, component, **more)

    monkeypatch.setattr(GradientTrainer, "train", spy)
    FeatureBackpropClassifier(network, random_state=0).fit(rotated(X), y)
    (trial, fewer, no_validation), (full, everything, _) = seen
    assert (fewer, everything) == (450, 600)
    assert trial <= full
    assert no_validation is None


def test_without_a_hold_out_every_step_is_run(digits, network):
    X, _, y, _ = digits
    classifier = FeatureBackpropClassifier(network, validation_fraction=0, random_state=0)
    classifier.fit(X[:100], y[:100])
    assert set(steps(classifier.history_, trial=False)) == {"sweeps", "polish"}
    assert steps(classifier.history_, trial=True) == []


def test_without_a_hold_out_a_polish_that_ruins_is_taken_back(digits, network):
    X, X_test, y, y_test = digits
    few = {"validation_fraction": 0, "random_state": 0}
    swept = FeatureBackpropClassifier(network, trainer=AutoTrainer(polish=[]), **few)
    expected = swept.fit(X[:100], y[:100]).decision_function(X_test)
    trainer = AutoTrainer(polish=GradientTrainer(alpha=0.0, lr=30.0, max_epochs=3))
    classifier = FeatureBackpropClassifier(network, trainer=trainer, **few).fit(X[:100], y[:100])
    np.testing.assert_array_equal(classifier.decision_function(X_test), expected)
    assert set(steps(classifier.history_, trial=True)) == {"polish"}
    assert set(steps(classifier.history_, trial=False)) == {"sweeps"}
    gentler = FeatureBackpropClassifier(network, trainer=AutoTrainer(polish=RUINOUS), **few)
    gentler.fit(X[:100], y[:100])
    assert set(steps(gentler.history_, trial=True)) == {"polish"}
    assert set(steps(gentler.history_, trial=False)) == {"sweeps", "polish"}
    assert gentler.score(X_test, y_test) > 0.3


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_without_a_hold_out_a_polish_that_ruins_a_regression_is_taken_back(n_outputs):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 6))
    y = (X @ rng.normal(size=(6, n_outputs))).squeeze()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, n_outputs)).double()
    trainer = AutoTrainer(polish=GradientTrainer(alpha=0.0, lr=10.0, max_epochs=3))
    regressor = FeatureBackpropRegressor(network, trainer=trainer, random_state=0).fit(X, y)
    assert set(steps(regressor.history_, trial=True)) == {"polish"}
    assert regressor.score(X, y) > 0.9


def test_no_polish_and_no_sweeps_can_be_asked_for(digits, network):
    X, X_test, y, _ = digits
    nothing = AutoTrainer(closed_form=ClosedFormTrainer(sweeps=0), polish=[])
    still = copy.deepcopy(network)
    still[1] = nn.Identity()  # whose statistics would be re-estimated
    classifier = FeatureBackpropClassifier(still, trainer=nothing, validation_fraction=0).fit(X, y)
    expected = still(torch.from_numpy(X_test)).detach().numpy()
    np.testing.assert_array_equal(classifier.decision_function(X_test), expected)


def test_a_network_that_is_dead_on_new_data_is_woken():
    X_all, y_all = load_breast_cancer(return_X_y=True)
    scores = []
    for seed in range(5):
        X, X_test, y, y_test = train_test_split(X_all, y_all, random_state=seed, stratify=y_all)
        scaler = StandardScaler().fit(X)
        X, X_test = rotated(scaler.transform(X)), rotated(scaler.transform(X_test))
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        net.append(nn.Linear(16, 2))
        with torch.no_grad():
            net[0].bias -= 100
            net[2].bias -= 100
        assert len(np.unique(net(torch.from_numpy(X)).detach().numpy(), axis=0)) == 1
        classifier = FeatureBackpropClassifier(net, random_state=seed).fit(X, y)
        linear = LogisticRegression(max_iter=2000).fit(X, y)
        scores.append((classifier.score(X_test, y_test), linear.score(X_test, y_test)))
    woken, linear = np.mean(scores, axis=0)
    assert woken >= linear - 0.01


def test_held_out_data_chooses_the_decay_of_a_regression():
    X, y = load_diabetes(return_X_y=True)
    y = (y - y.mean()) / y.std()
    X, X_test, y, y_test = train_test_split(X / X.std(0), y, random_state=0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 1)).double()
    regressor = FeatureBackpropRegressor(net, random_state=0).fit(X, y)
    polishes = [
        entry["step"] == "polish" and entry["trial"] and entry["epoch"] == 1
        for entry in regressor.history_
    ]
    assert sum(polishes) == 2
    assert regressor.score(X_test, y_test) > 0.3


def test_interrupting_a_trial_leaves_a_usable_estimator(digits, network, monkeypatch):
    X, X_test, y, y_test = digits

    def interrupted(self, component, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(GradientTrainer, "train", interrupted)
    classifier = FeatureBackpropClassifier(network, random_state=0)
    with pytest.warns(UserWarning, match="interrupted"):
        classifier.fit(X, y)
    assert classifier.score(X_test, y_test) > 0.5


def test_a_hidden_split_leaves_what_follows_alone(digits, network):
    X, _, y, _ = digits
    classifier = FeatureBackpropClassifier(network, split="3", random_state=0).fit(rotated(X), y)
    for name, value in network[5].state_dict().items():
        assert torch.equal(classifier.module_[5].state_dict()[name], value)
    assert not torch.equal(classifier.module_[0].weight, network[0].weight)


def test_chunks_accumulate_in_closed_form(digits, network):
    X, X_test, y, y_test = digits
    classifier = FeatureBackpropClassifier(network, random_state=0)
    shifted = rotated(X)
    for rows in np.array_split(np.arange(len(X)), 3):
        classifier.partial_fit(shifted[rows], y[rows], classes=np.arange(10))
    assert classifier.n_iter_ == 3
    before = (network(torch.from_numpy(rotated(X_test))).argmax(1).numpy() == y_test).mean()
    assert classifier.score(rotated(X_test), y_test) > before


@pytest.mark.parametrize("momentum", [None, 1e-3, 0.1])
def test_statistics_are_those_of_the_trained_weights(network, digits, momentum):
    X, _, y, _ = digits
    net = copy.deepcopy(network)
    net[1].momentum = momentum
    fitted = FeatureBackpropClassifier(net, random_state=0).fit(rotated(X), y)
    with torch.no_grad():
        features = fitted.network_[0](torch.from_numpy(rotated(X)))
    norm = fitted.network_[1]
    torch.testing.assert_close(norm.running_mean, features.mean(dim=0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        norm.running_var, features.var(dim=0, correction=0), rtol=1e-4, atol=1e-4
    )
    assert norm.momentum == momentum
