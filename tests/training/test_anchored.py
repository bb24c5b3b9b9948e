"""Weight decay that spares what is no weight of torch's layers."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from featprop_sklearn import FeatureBackpropRegressor, GradientTrainer
from featprop_sklearn.training.anchored import AnchoredAdamW, anchored_groups


class Scaled(nn.Module):
    """Features times factors of their own, as ensembles and embeddings of numbers have."""

    def __init__(self, n_features=4):
        super().__init__()
        self.factor = nn.Parameter(torch.full((n_features,), 2.0))
        self.shifts = nn.ParameterList([torch.full((n_features,), 3.0)])
        self.inner = nn.Linear(n_features, n_features)

    def forward(self, x):
        return torch.relu(self.inner(x * self.factor) + self.shifts[0])


class OwnLinear(nn.Linear):
    """A torch layer by another name."""


def network():
    torch.manual_seed(0)
    return nn.Sequential(Scaled(), nn.BatchNorm1d(4), OwnLinear(4, 1), nn.PReLU())


def test_groups_hold_what_is_outside_of_torchs_layers():
    groups = anchored_groups(network(), 0.5)
    assert [name for name, _ in groups] == ["0.factor", "0.shifts.0"]
    assert all(options == {"weight_decay": 0.0, "anchor": 0.5} for _, options in groups)


def test_a_weight_that_occurs_elsewhere_too_is_one():
    net = nn.Sequential(Scaled(), nn.Linear(4, 4))
    net[0].factor = net[1].bias
    assert [name for name, _ in anchored_groups(net, 0.5)] == ["0.shifts.0"]


def test_without_a_gradient_decay_leads_back():
    torch.manual_seed(0)
    start, other = torch.randn(5), torch.randn(5)
    anchored, plain = nn.Parameter(start.clone()), nn.Parameter(other.clone())
    groups = [
        {"params": [anchored], "weight_decay": 0.0, "anchor": 2.0},
        {"params": [plain], "weight_decay": 2.0},
    ]
    optimiser = AnchoredAdamW(groups, lr=0.1)
    with torch.no_grad():
        anchored += 1
    for parameter in (anchored, plain):
        parameter.grad = torch.zeros(5)
    for step in range(1, 4):
        optimiser.step()
        torch.testing.assert_close(anchored.detach(), start + 0.8**step)
        torch.testing.assert_close(plain.detach(), other * 0.8**step)  # as AdamW's own


def test_networks_of_torchs_layers_alone_are_trained_as_by_adamw():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.LayerNorm(4), nn.Linear(4, 1))
    twin, x = copy.deepcopy(net), torch.randn(20, 3)
    mine = AnchoredAdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    theirs = torch.optim.AdamW(twin.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(5):
        for module, optimiser in ((net, mine), (twin, theirs)):
            optimiser.zero_grad()
            module(x).square().mean().backward()
            optimiser.step()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("regularization", [None, "mse"])
def test_factors_are_still_there_after_training(regularization):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 4)).astype(np.float32)
    y = X @ np.array([1.0, -1.0, 2.0, 0.5])
    trainer = GradientTrainer(
        alpha=0.0,
        lr=1e-2,
        max_epochs=60,
        weight_decay=4.0,
        gradient_regularization=regularization,
    )
    fitted = FeatureBackpropRegressor(network(), trainer=trainer, random_state=0).fit(X, y)
    trained = fitted.network_[0]
    assert (trained.factor > 1.5).all()
    assert (trained.shifts[0] > 2.5).all()
