"""Ranges of features, against outputs on a wide and dense grid of inputs."""

import math

import pytest
import torch
from torch import nn

from featprop_sklearn.networks import Exp, Permute, Reshape, build_chain, output_ranges, ranges

ACTIVATIONS = [
    nn.ReLU(),
    nn.ReLU6(),
    nn.Hardtanh(-0.5, 2.0),
    nn.Hardsigmoid(),
    nn.Sigmoid(),
    nn.Softmax(dim=1),
    nn.LogSoftmax(dim=1),
    nn.LogSigmoid(),
    nn.Tanh(),
    nn.Softsign(),
    nn.Softplus(),
    nn.Softplus(beta=0.5, threshold=4.0),
    nn.ELU(),
    nn.ELU(alpha=0.3),
    nn.ELU(alpha=-0.3),
    nn.CELU(),
    nn.CELU(alpha=2.5),
    nn.SELU(),
    nn.Hardswish(),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.SiLU(),
    nn.Mish(),
    Exp(),
]
KEEPING = {
    nn.Identity(): (2, 6),
    nn.Flatten(): (2, 6),
    nn.Unflatten(1, (2, 1)): (2, 6),
    Reshape((12,)): (2, 6),
    Permute((0, 2, 1)): (2, 6),
    nn.Dropout(): (2, 6),
    nn.Dropout1d(): (2, 6),
    nn.Dropout2d(): (2, 6, 6),
    nn.Dropout3d(): (2, 4, 4, 4),
    nn.MaxPool1d(3, padding=1): (2, 6),
    nn.MaxPool2d(2): (2, 6, 6),
    nn.MaxPool3d(2): (2, 4, 4, 4),
    nn.AdaptiveMaxPool1d(4): (2, 6),
    nn.AdaptiveMaxPool2d(4): (2, 6, 6),
    nn.AdaptiveMaxPool3d(3): (2, 4, 4, 4),
    nn.AdaptiveAvgPool1d(4): (2, 6),
    nn.AdaptiveAvgPool2d(4): (2, 6, 6),
    nn.AdaptiveAvgPool3d(3): (2, 4, 4, 4),
}
NEAR, FAR = torch.linspace(-12, 12, 200_001), torch.logspace(1, 3, 301)
GRID = torch.cat([-FAR, NEAR, FAR]).double()


def range_of(layer, x):
    return output_ranges(build_chain(layer.eval(), x))[-1]


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=str)
def test_outputs_fill_the_range_and_no_more(layer):
    x = torch.stack([GRID, -GRID], dim=1)  # two columns, so that softmax can do something
    low, high = range_of(layer, x[:8])
    out = layer(x)
    assert low <= out.min()
    assert out.max() <= high
    assert out.min() - low < 1e-2 if math.isfinite(low) else out.min() < -900
    assert high - out.max() < 1e-2 if math.isfinite(high) else out.max() > 900


@pytest.mark.parametrize("layer", [nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish()], ids=str)
def test_minima_are_exact(layer):
    x = torch.linspace(-3, 0, 300_001, dtype=torch.float64)[:, None]
    assert layer(x).min().item() == pytest.approx(range_of(layer, x[:8])[0], abs=1e-10)


def test_every_activation_is_tested():
    assert {type(layer) for layer in ACTIVATIONS} == set(ranges._ACTIVATIONS)
    assert {type(layer) for layer in KEEPING} == set(ranges._KEEPING)


@pytest.mark.parametrize(("layer", "shape"), KEEPING.items(), ids=str)
def test_layers_that_hand_values_on_keep_the_range(layer, shape):
    network = nn.Sequential(nn.Sigmoid(), layer).eval()
    x = 100 * torch.randn(8, *shape, dtype=torch.float64)
    chain = build_chain(network, x)
    assert output_ranges(chain) == [(0.0, 1.0), (0.0, 1.0)]
    out = chain(x)
    assert 0 <= out.min() <= out.max() <= 1 + 1e-15  # means round


def test_a_celu_of_negative_alpha_is_unbounded():
    layer = nn.CELU(alpha=-2.0)
    low, high = range_of(layer, torch.zeros(2, 1))
    assert (low, high) == (-math.inf, math.inf)
    assert layer(torch.tensor([-9.0])) < -100


def test_ranges_end_where_values_are_mixed():
    network = nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 4), nn.Tanh(), nn.LeakyReLU()
    )
    chain = build_chain(network.eval(), torch.zeros(2, 3))
    assert output_ranges(chain) == [None, (0, math.inf), (0, math.inf), None, (-1, 1), None]


def test_average_pooling_with_padding_keeps_no_range():
    """It averages zeros in, which may lie outside."""
    network = nn.Sequential(nn.Hardtanh(1.0, 2.0), nn.AvgPool1d(2, padding=1)).eval()
    x = torch.randn(4, 1, 6)
    assert network(x).min() < 1.0
    assert output_ranges(build_chain(network, x))[-1] is None


def test_subclasses_have_the_range_of_their_ancestor():
    class Gate(nn.Sigmoid):
        pass

    network = nn.Sequential(nn.Linear(2, 2), Gate())
    assert output_ranges(build_chain(network, torch.zeros(2, 2))) == [None, (0.0, 1.0)]
