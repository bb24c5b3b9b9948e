"""What the caller has switched on around a fit changes nothing in it."""

import numpy as np
import pytest
import torch
from torch import nn

from featprop_sklearn import FeatureBackpropClassifier, LayerInverter, feature_gap


def everything(cnn, X, y):
    """Weights, predictions, targets and tables of one small fit."""
    estimator = FeatureBackpropClassifier(cnn, split="8", random_state=0).fit(X, y)
    return [
        *(value.numpy() for value in estimator.module_.state_dict().values()),
        estimator.predict_proba(X),
        estimator.feature_targets(X, y),
        feature_gap(estimator, X, y).to_numpy(),
    ]


@pytest.mark.parametrize(
    "around",
    [lambda: torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode, torch.no_grad],
    ids=["autocast", "inference_mode", "no_grad"],
)
def test_a_fit_is_the_same(cnn, digits, around):
    X, y = digits[0][:150], digits[2][:150]
    plain = everything(cnn, X, y)
    with around():
        inside = everything(cnn, X, y)
    for one, other in zip(plain, inside, strict=True):
        np.testing.assert_array_equal(one, other)


class OwnAutocast(nn.Module):
    """Runs its body in 16 bits by itself."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = self.body(x.flatten(1))
        return self.head(features.float())


def test_a_network_s_own_autocast_sees_the_trained_weights(digits):
    X, y = digits[0][:300], digits[2][:300]
    torch.manual_seed(0)
    network = OwnAutocast()
    plain = FeatureBackpropClassifier(network, random_state=0).fit(X, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = FeatureBackpropClassifier(network, random_state=0).fit(X, y)
    assert plain.score(X, y) > 0.95
    np.testing.assert_array_equal(plain.predict_proba(X), inside.predict_proba(X))


@pytest.mark.parametrize("layer", [nn.Linear(12, 5), nn.Sequential(nn.Linear(12, 5), nn.Tanh())])
def test_an_inversion_is_the_same(layer):
    X = np.random.default_rng(0).normal(size=(20, 12))
    Y = np.random.default_rng(1).uniform(-0.5, 0.5, size=(20, 5))
    plain = LayerInverter(layer).fit(X).inverse_transform(Y)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        inside = LayerInverter(layer).fit(X).inverse_transform(Y)
    np.testing.assert_array_equal(plain, inside)
