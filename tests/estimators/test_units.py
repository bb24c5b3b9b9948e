"""What a regressor learns does not depend on the units of y."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import r2_score
from torch import nn

from featprop_sklearn import (
    AutoTrainer,
    ClosedFormTrainer,
    FeatureBackpropRegressor,
    GradientTrainer,
    feature_gap,
)
from featprop_sklearn.training import gradient
from tests.estimators.snapshot import assert_unchanged, snapshot

GRADIENT = GradientTrainer(lr=1e-2, max_epochs=3)
SHORT = AutoTrainer(polish=GradientTrainer(alpha=0, lr=1e-2, max_epochs=5, schedule="one_cycle"))
#: hold-outs are none below 200 rows
HELD_OUT = {"validation_fraction": 0.25}
WAYS = {
    "auto": {"trainer": SHORT},
    "auto, held out": {"trainer": SHORT, **HELD_OUT},
    "closed form": {"trainer": ClosedFormTrainer(sweeps=2)},
    "closed form, earlier": {"trainer": ClosedFormTrainer(sweeps=1), "split": 1},
    "gradient": {"trainer": GRADIENT, **HELD_OUT},
    "gradient, earlier": {"trainer": GRADIENT, "split": 3},
    "gradient, layerwise": {"trainer": GRADIENT, "split": 1, "propagation": "layerwise"},
    "several": {
        "trainer": GRADIENT,
        "split": [1, 3],
        "propagation": "layerwise_in_range",
        "target_step": 0.5,
    },
}
SCALES = [1e12, 1e-12, (1e6, 1e-6, -7.3)]


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 6))
    Y = np.stack([np.sin(X[:, 0]) + X[:, 1], X[:, 2] * X[:, 3], np.abs(X[:, 4]) - X[:, 5]], axis=1)
    return X, Y + 0.1 * rng.normal(size=Y.shape)


@pytest.fixture(scope="module")
def network(samples):
    X, Y = map(torch.from_numpy, samples)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3)
    ).double()
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        (network(X[:60]) - Y[:60]).square().mean().backward()
        optimiser.step()
    return network.eval()


def in_units(network, scale, shift=0.0):
    """The network with outputs scale · o + shift."""
    other = copy.deepcopy(network)
    scale, shift = (torch.tensor(np.broadcast_to(part, 3).copy()) for part in (scale, shift))
    with torch.no_grad():
        last = copy.deepcopy(other[-1]).double()
        other[-1].weight.copy_(last.weight * scale[:, None])
        other[-1].bias.copy_(last.bias * scale + shift)
    return other


def fitted(network, X, Y, **parameters):
    return FeatureBackpropRegressor(network, random_state=0, **parameters).fit(X, Y)


def distance(found, expected):
    """Largest error, in the largest value of each column."""
    return (np.abs(found - expected) / np.abs(expected).max(axis=0)).max()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-4)])
def test_predictions_have_the_scale_of_each_value_of_y(samples, network, way, dtype, tolerance):
    X, Y = samples
    X = X.astype(dtype)
    network = copy.deepcopy(network).to(torch.from_numpy(X).dtype)
    expected = fitted(network, X, Y, **WAYS[way]).predict(X)
    for scale in SCALES:
        found = fitted(in_units(network, scale), X, Y * scale, **WAYS[way]).predict(X)
        assert distance(found / scale, expected) < tolerance


@pytest.mark.parametrize("way", WAYS)
def test_predictions_are_those_of_a_fit_to_values_standardised_by_hand(samples, network, way):
    X, Y = samples
    keep = {**WAYS[way], "validation_fraction": 0}  # the units are those of the rows trained on
    mean, spread = Y.mean(axis=0), Y.std(axis=0)
    by_hand = fitted(in_units(network, 1 / spread, -mean / spread), X, (Y - mean) / spread, **keep)
    found = fitted(in_units(network, 1e5, 1e7), X, Y * 1e5 + 1e7, **keep).predict(X)
    expected = by_hand.predict(X) * spread + mean
    assert distance((found - 1e7) / 1e5, expected) < 1e-9


@pytest.mark.parametrize("way", WAYS)
def test_a_shift_far_beyond_the_spread_is_carried_along(samples, network, way):
    X, Y = samples
    shift = 1e4 * Y.std(axis=0)
    expected = fitted(network, X, Y, **WAYS[way]).predict(X)
    found = fitted(in_units(network, 1, shift), X, Y + shift, **WAYS[way]).predict(X)
    assert distance(found - shift, expected) < 1e-7
    # float32 holds such values to 1e-3 of the spread, which training makes somewhat more of
    single = in_units(copy.deepcopy(network).float(), 1, shift)
    found = fitted(single, X.astype(np.float32), Y + shift, **WAYS[way]).predict(X)
    assert r2_score(Y, found - shift) == pytest.approx(r2_score(Y, expected), abs=0.01)


@pytest.mark.parametrize("trainer", ["closed_form", GRADIENT])
def test_chunks_have_the_units_of_the_first(samples, network, trainer):
    X, Y = samples
    found = []
    for scale in (1.0, np.array([1e9, 1e-9, -5.0])):
        regressor = FeatureBackpropRegressor(
            in_units(network, scale), trainer=trainer, random_state=0
        )
        for rows in (slice(0, 60), slice(60, 61), slice(61, None)):
            regressor.partial_fit(X[rows], Y[rows] * scale)
        found.append(regressor.set_params(warm_start=True).predict(X) / scale)
        found.append(regressor.fit(X, Y * scale).predict(X) / scale)
    assert distance(found[2], found[0]) < 1e-9
    assert distance(found[3], found[1]) < 1e-9


def test_the_network_that_module_none_stands_for(samples):
    X, Y = samples
    keep = {"validation_fraction": 0, "trainer": ClosedFormTrainer(sweeps=1)}
    expected = fitted(None, X, Y, **keep).predict(X)
    scale, shift = np.array([1e12, 1e-12, 3.0]), np.array([1e13, 0, 7.0])
    found = fitted(None, X, Y * scale + shift, **keep).predict(X)
    assert distance((found - shift) / scale, expected) < 1e-5


@pytest.mark.parametrize("propagation", ["joint", "layerwise"])
def test_targets_and_their_quality(samples, network, propagation):
    X, Y = samples
    keep = {"trainer": GradientTrainer(max_epochs=0), "split": [3, 4], "propagation": propagation}
    scale = np.array([1e6, 1e-6, 1.0])
    one = fitted(network, X, Y, **keep)
    other = fitted(in_units(network, scale), X, Y * scale, **keep)
    expected, found = one.feature_targets(X, Y), other.feature_targets(X, Y * scale)
    np.testing.assert_allclose(found["4"], Y * scale, rtol=1e-9)
    np.testing.assert_allclose(found["3"], expected["3"], atol=1e-7)
    np.testing.assert_allclose(feature_gap(other, X, Y * scale), feature_gap(one, X, Y), atol=1e-6)


def test_losses_are_in_variances_of_y(samples, network):
    X, Y = samples
    history = fitted(
        network, X, Y, trainer=ClosedFormTrainer(sweeps=0), validation_fraction=0
    ).history_
    with torch.no_grad():
        errors = network(torch.from_numpy(X)).numpy() - Y
    assert history[0]["train_loss"] == pytest.approx(np.mean((errors / Y.std(axis=0)) ** 2))


def test_a_network_that_learns_nothing_stays_to_the_last_bit(samples, network):
    X, Y = samples
    single = in_units(network, 1e5, 3e8).float()
    regressor = fitted(single, X.astype(np.float32), Y, trainer=GradientTrainer(max_epochs=0))
    for found, expected in zip(regressor.module_.parameters(), single.parameters(), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("how", ["ends", "raises"])
def test_an_interrupt_leaves_the_networks_units(samples, network, monkeypatch, how):
    X, Y = samples
    scale = np.array([1e9, 1e-9, 1.0])
    module = in_units(network, scale)
    before = snapshot(module)
    train = GradientTrainer.train

    def interrupted(self, component, **options):
        if how == "raises":
            raise KeyboardInterrupt
        return replace(train(self, component, **options), interrupted=True)

    monkeypatch.setattr(gradient.GradientTrainer, "train", interrupted)
    with pytest.warns(ConvergenceWarning, match="interrupted; the estimator is usable"):
        regressor = fitted(module, X, Y * scale, trainer=GRADIENT)
    assert_unchanged(module, before)
    with torch.no_grad():
        start = network(torch.from_numpy(X)).numpy()
    found = regressor.predict(X) / scale
    moved = distance(found, start)
    assert moved < 1e-12 if how == "raises" else 1e-3 < moved < 0.5
