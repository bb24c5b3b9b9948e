"""Dead units fire for about half of the samples afterwards, and nothing else moves."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from featprop_sklearn.networks import build_chain
from featprop_sklearn.training.waking import wake_dead_units

CASES = {
    "linear": (lambda: [nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)], (4,)),
    "linear, in place": (lambda: [nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)], (4,)),
    "linear, several positions": (lambda: [nn.Linear(4, 6), nn.ReLU(), nn.Flatten()], (3, 4)),
    "convolution": (lambda: [nn.Conv2d(2, 6, 3, groups=2), nn.ReLU6(), nn.Flatten()], (2, 5, 4)),
    "transposed": (lambda: [nn.ConvTranspose1d(4, 6, 3, 2, groups=2), nn.ReLU()], (4, 5)),
    "transposed, one group": (lambda: [nn.ConvTranspose2d(3, 6, 2), nn.ReLU()], (3, 2, 3)),
    "hardtanh": (lambda: [nn.Linear(4, 6), nn.Hardtanh()], (4,)),
    "hardsigmoid": (lambda: [nn.Linear(4, 6), nn.Hardsigmoid()], (4,)),
    "hardswish": (lambda: [nn.Linear(4, 6), nn.Hardswish()], (4,)),
    "threshold": (lambda: [nn.Linear(4, 6), nn.Threshold(0.1, 7.0)], (4,)),
}
DEAD = [1, 4]


def by_unit(values):
    """One column a unit, for layers with units last (Linear) or second (the others)."""
    return values.movedim(-1 if values.shape[-1] == 6 else 1, -1).flatten(0, -2)


def with_dead_units(make, shape, dtype=torch.float64, n_samples=40):
    net = nn.Sequential(*make()).to(dtype).eval()
    net[0].bias.data[DEAD] = -50.0
    x = torch.randn(n_samples, *shape, dtype=dtype)
    return net, build_chain(net, x[:2]), x


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("batch_size", [7, 100])
@pytest.mark.parametrize("name", CASES)
def test_dead_units_are_standardised_and_living_ones_stay(name, batch_size, dtype):
    net, chain, x = with_dead_units(*CASES[name], dtype)
    start = copy.deepcopy(net)
    with torch.no_grad():
        before = by_unit(net[0](x))
    assert wake_dead_units(chain, x, batch_size) == len(DEAD)
    with torch.no_grad():
        after = by_unit(net[0](x))
    living = [unit for unit in range(6) if unit not in DEAD]
    assert torch.equal(after[:, living], before[:, living])
    for parameter, old in zip(net[1:].parameters(), start[1:].parameters(), strict=True):
        assert torch.equal(parameter, old)

    wanted = before[:, DEAD].double()
    wanted = (wanted - wanted.mean(dim=0)) / wanted.std(dim=0, correction=0)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(after[:, DEAD].double(), wanted, rtol=0, atol=tolerance)
    fires = (after[:, DEAD] > 0).double().mean(dim=0)
    assert ((fires > 0.25) & (fires < 0.75)).all()
    assert wake_dead_units(chain, x, batch_size) == 0


def test_a_layer_behind_a_dead_one_is_judged_after_that_one_is_awake():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2))
    net[0].bias.data[:] = -50.0
    net[2].bias.data[:] = -50.0
    x = torch.randn(100, 4)
    assert wake_dead_units(build_chain(net.eval(), x[:2]), x, 30) == 10
    fires = (net[:3](x) > 0).double().mean(dim=0)
    assert ((fires > 0.1) & (fires < 0.9)).all()


def test_a_weight_is_a_repetition():
    net, chain, x = with_dead_units(*CASES["linear"])
    twin = copy.deepcopy(net)
    weights = torch.randint(1, 4, (40,))
    wake_dead_units(chain, x, 9, weights)
    repeated = x.repeat_interleave(weights, dim=0)
    wake_dead_units(build_chain(twin, x[:2]), repeated, 100)
    torch.testing.assert_close(net[0].weight, twin[0].weight)
    torch.testing.assert_close(net[0].bias, twin[0].bias)


def frozen_weight(net):
    net[0].weight.requires_grad_(False)


def frozen_bias(net):
    net[0].bias.requires_grad_(False)


def without_bias(net):
    net[0].weight.data[DEAD] = 0
    net[0].bias = None


def tied(net):
    net[2].weight = net[0].weight


def reparametrised(net):
    weight_norm(net[0])


def smooth(net):
    net[1] = nn.Tanh()


def normalised(net):
    net.insert(1, nn.BatchNorm1d(6))


def last(net):
    del net[1:]


@pytest.mark.parametrize(
    "change",
    [frozen_weight, frozen_bias, without_bias, tied, reparametrised, smooth, normalised, last],
)
def test_what_cannot_or_must_not_be_woken_is_left_alone(change):
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    net[0].bias.data[DEAD] = -50.0
    change(net)
    x = torch.randn(20, 6)
    before = copy.deepcopy(net.eval().state_dict())
    assert wake_dead_units(build_chain(net, x[:2]), x, 8) == 0
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n_samples", [1, 30])
def test_a_unit_that_cannot_vary_is_not_blown_up(n_samples, dtype):
    """The same sample over and over: rounding is all that varies."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(50, 20), nn.ReLU(), nn.Linear(20, 2)).to(dtype).eval()
    net[0].bias.data += torch.linspace(-1e3, 1e3, 20, dtype=dtype)
    x = torch.randn(1, 50, dtype=dtype).repeat(n_samples, 1)
    before = net[0].weight.clone()
    wake_dead_units(build_chain(net, x[:2]), x, 7)
    assert torch.equal(net[0].weight, before)
