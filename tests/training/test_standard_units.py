"""A network in standard units is the same network, and comes back to the last bit."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from featprop_sklearn.networks import Rescale, build_chain
from featprop_sklearn.training import StandardNetwork, StandardUnits

Y = np.random.default_rng(0).normal(size=(40, 4)) * [1e3, 1e-3, 1, 7] + [1e5, 0, -3, 1e-2]


class Heads(nn.Module):
    """Two last layers."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 5)
        self.first, self.second = nn.Linear(5, 1), nn.Linear(5, 3)

    def forward(self, x):
        x = self.body(x).tanh()
        return torch.cat([self.first(x), self.second(x)], dim=1)


class Tied(nn.Module):
    """The last layer is used twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.start = nn.Linear(6, 4)

    def forward(self, x):
        return self.layer(self.layer(self.start(x)).tanh())


def hooked():
    last = nn.Linear(5, 4)
    last.register_forward_hook(lambda module, args, out: out.exp())
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), last)


def image(*stages):
    return nn.Sequential(nn.Unflatten(1, (1, 2, 3)), *stages)


# name -> (network from 6 numbers to 4, whether its last layer has the units)
NETWORKS = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), True),
    "alone": (lambda: nn.Linear(6, 4), True),
    "no_bias": (lambda: nn.Sequential(nn.Tanh(), nn.Linear(6, 4, bias=False)), True),
    "frozen": (lambda: nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4).requires_grad_(False)), True),
    "arranged": (
        lambda: nn.Sequential(
            nn.Linear(6, 4), nn.Unflatten(1, (2, 2)), nn.Identity(), nn.Flatten()
        ),
        True,
    ),
    "rows": (lambda: image(nn.Flatten(1, 2), nn.Linear(3, 2), nn.Flatten()), True),
    "conv": (
        lambda: image(nn.Conv2d(1, 2, (1, 2)), nn.Conv2d(2, 2, 1), nn.Flatten()),
        True,
    ),
    "transposed": (
        lambda: image(nn.Conv2d(1, 2, (2, 3)), nn.ConvTranspose2d(2, 4, 1, groups=2), nn.Flatten()),
        True,
    ),
    "softplus": (lambda: nn.Sequential(nn.Linear(6, 4), nn.Softplus()), False),
    "units": (
        lambda: nn.Sequential(nn.Linear(6, 4), Rescale(torch.rand(4) + 1, torch.rand(4))),
        False,
    ),
    "dropout": (lambda: nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5)), False),
    "reparametrised": (lambda: nn.Sequential(nn.Tanh(), weight_norm(nn.Linear(6, 4))), False),
    "hooked": (hooked, False),
    "heads": (Heads, False),
    "tied": (Tied, False),
}


def network(name):
    """A chain in float64, inputs of it, its units for Y, and whether they are its last layer's."""
    make, folded = NETWORKS[name]
    torch.manual_seed(0)
    module, x = make().double().eval(), torch.randn(40, 6, dtype=torch.float64)
    chain = build_chain(module, x)
    y = np.resize(Y, (40, 8)) if name == "conv" else Y  # 2 channels of 2 × 2 pixels
    units = StandardUnits.of(y, np.ones(40)).fitting(chain)
    return module, chain, x, units, folded


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_the_same_in_other_units(name):
    module, chain, x, units, folded = network(name)
    before = copy.deepcopy(module.state_dict())
    standard = StandardNetwork(chain, units, x)
    with torch.no_grad():
        expected = units.standard(chain(x).numpy())
        found = standard.chain(x).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    assert set(chain.names) <= set(standard.chain.names)
    assert (len(standard.chain) == len(chain)) == folded
    standard.hand_over()
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", NETWORKS)
def test_features_of_every_split_come_back(name):
    _, chain, x, units, _ = network(name)
    standard = StandardNetwork(chain, units, x)
    with torch.no_grad():
        own = dict(zip(chain.names, chain.features(x), strict=True))
        found = dict(zip(standard.chain.names, standard.chain.features(x), strict=True))
    for split, feature in own.items():
        back = standard.in_own_units(split, found[split], batch_size=7)
        torch.testing.assert_close(back, feature, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name, (_, folded) in NETWORKS.items() if folded])
def test_what_was_learned_in_standard_units_is_handed_over(name):
    module, chain, x, units, _ = network(name)
    standard = StandardNetwork(chain, units, x)
    with torch.no_grad():
        for parameter in standard.chain.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        expected = standard.chain(x).numpy()
    standard.hand_over()
    with torch.no_grad():
        found = units.standard(module(x).numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_a_network_without_units_is_left_alone():
    _, chain, x, _, _ = network("linear")
    standard = StandardNetwork(chain, None, x)
    assert standard.chain is chain
    assert standard.in_own_units("2", x, batch_size=7) is x
    standard.hand_over()


@given(
    st.lists(st.floats(-12, 12), min_size=4, max_size=4),
    st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=4),
    st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=25, derandomize=True)
def test_units_are_those_of_the_standard_scaler(exponents, shifts, seed):
    rng = np.random.default_rng(seed)
    scale = 10.0 ** np.array(exponents)
    y = (rng.normal(size=(30, 4)) + shifts) * scale
    weights = rng.integers(1, 4, size=30)
    units = StandardUnits.of(y, weights.astype(float))
    expected = StandardScaler().fit(y, sample_weight=weights)
    np.testing.assert_allclose(units.spread, expected.scale_, rtol=1e-9)
    np.testing.assert_allclose(units.standard(y), expected.transform(y), atol=1e-9)


def test_channels_of_a_convolution_have_one_unit_each():
    _, chain, _, _, _ = network("conv")
    y = np.random.default_rng(0).normal(size=(40, 8)) * [1, 2, 3, 0, 1e6, 2e6, 0, 1e6] + 5
    units = StandardUnits.of(y, np.ones(40)).fitting(chain)
    for channel in (slice(0, 4), slice(4, 8)):
        np.testing.assert_allclose(units.mean[channel], y[:, channel].mean())
        every = np.where(y[:, channel].std(axis=0) > 0, 0, 1)  # the size of 5s stands for a spread
        variance = np.mean(np.where(every, 25, y[:, channel].var(axis=0)))
        variance += y[:, channel].mean(axis=0).var()
        np.testing.assert_allclose(units.spread[channel], np.sqrt(variance))


@pytest.mark.parametrize(("value", "said", "spread"), [(3.0, 4.0, 5.0), (0.0, 2.0, 2.0), (0, 0, 1)])
@pytest.mark.parametrize("n_samples", [1, 10_000])
def test_where_y_is_constant_its_size_and_the_networks_are_the_spread(
    value, said, spread, n_samples
):
    weights = np.random.default_rng(0).uniform(0.1, 1, n_samples)
    y, outputs = np.full((n_samples, 1), value), np.full((n_samples, 1), said, np.float32)
    assert StandardUnits.of(y, weights, outputs).spread == pytest.approx(spread)
