"""What cuDNN cannot do with recurrent layers is not asked of it, and nothing else is changed."""

import joblib
import numpy as np
import pytest
import torch
from torch import nn

from featprop_sklearn import FeatureBackpropClassifier
from featprop_sklearn.inspection import attribute
from featprop_sklearn.networks import differentiable
from tests.networks.zoo import LSTM


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 8, 8)).astype(np.float32), np.arange(60) % 10


def watch(forward, found):
    def watched(self, *args):
        if torch.is_grad_enabled() and not self.training:
            found.append(torch.backends.cudnn.enabled)
        return forward(self, *args)

    return watched


@pytest.fixture
def asked_for_gradients(monkeypatch):
    """Whether cuDNN was on, at each run in eval mode of a layer with derivatives on."""
    found = []
    monkeypatch.setattr(torch.backends.cudnn, "enabled", True)
    for layer in (nn.LSTM, nn.GRU):
        monkeypatch.setattr(layer, "forward", watch(layer.forward, found))
    return found


class TwoGRUs(nn.Module):
    """A split before each."""

    def __init__(self):
        super().__init__()
        self.embed, self.inner = nn.Linear(8, 6), nn.Linear(6, 6)
        self.first, self.second = (nn.GRU(6, 6, batch_first=True) for _ in range(2))
        self.fc = nn.Linear(6, 10)

    def forward(self, x):
        x = self.inner(self.first(torch.relu(self.embed(x)))[0])
        return self.fc(self.second(torch.relu(x))[0][:, -1])


@pytest.mark.parametrize("trainer", ["auto", "closed_form", "gradient"])
def test_fits(data, asked_for_gradients, trainer):
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), LSTM())
    FeatureBackpropClassifier(net, split="0", trainer=trainer, random_state=0).fit(*data)
    assert asked_for_gradients
    assert not any(asked_for_gradients)
    assert torch.backends.cudnn.enabled


def test_targets_and_attributions(data, asked_for_gradients):
    X, y = data
    estimator = FeatureBackpropClassifier(LSTM(), split="hidden", random_state=0).fit(X, y)
    asked_for_gradients.clear()
    for method in ("gradient", "integrated_gradients", "displacement"):
        attribute(estimator, X[:4], method, target=1)
        assert asked_for_gradients, method
        assert not any(asked_for_gradients)
        asked_for_gradients.clear()
    assert torch.backends.cudnn.enabled


def test_components_in_other_threads(data, asked_for_gradients):
    estimator = FeatureBackpropClassifier(
        TwoGRUs(), split=["embed", "inner"], trainer="gradient", n_jobs=2, random_state=0
    )
    with joblib.parallel_config("threading"):
        estimator.fit(*data)
    assert asked_for_gradients
    assert not any(asked_for_gradients)
    assert torch.backends.cudnn.enabled


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("module", [nn.Sequential(nn.GRU(2, 2)), nn.Conv1d(1, 1, 1)])
def test_the_switch_is_left_as_it_was(monkeypatch, module, enabled):
    monkeypatch.setattr(torch.backends.cudnn, "enabled", enabled)
    recurrent = isinstance(module, nn.Sequential)

    def interrupted():
        with differentiable([module]):
            assert torch.backends.cudnn.enabled == (enabled and not recurrent)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.backends.cudnn.enabled == enabled
