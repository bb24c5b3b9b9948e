"""Re-estimated BatchNorm statistics against the mean and variance of the data at each layer."""

import copy

import pytest
import torch
from torch import nn

from featprop_sklearn.networks import build_chain
from featprop_sklearn.training.batch_norm import Moments, reestimate_batch_norm
from featprop_sklearn.training.component import SplitNetwork


class Residual(nn.Module):
    """Its layers run in another order than they are registered in."""

    def __init__(self):
        super().__init__()
        self.second, self.first = nn.BatchNorm1d(5), nn.BatchNorm1d(5)
        self.a, self.act = nn.Linear(5, 5), nn.ReLU(inplace=True)

    def forward(self, x):
        return x + self.second(self.act(self.a(self.act(self.first(x)))))


class Steps(nn.Module):
    """Takes the steps of a sequence for rows."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(x.reshape(-1, 3)).reshape(x.shape)


NETWORKS = {
    "linear": (lambda: [nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.BatchNorm1d(5)], (4,)),
    "first": (lambda: [nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2)], (4,)),
    "sequence": (lambda: [nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3), nn.Tanh()], (2, 6)),
    "image": (lambda: [nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3, momentum=None), nn.ReLU(),
                       nn.Conv2d(3, 2, 2), nn.BatchNorm2d(2)], (2, 5, 4)),
    "volume": (lambda: [nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2)], (1, 3, 3, 2)),
    "synchronised": (lambda: [nn.Linear(4, 5), nn.SyncBatchNorm(5)], (4,)),
    "residual": (lambda: [nn.Linear(4, 5), Residual(), nn.Linear(5, 2)], (4,)),
    "steps": (lambda: [nn.Linear(3, 3), Steps()], (4, 3)),
}  # fmt: skip


def build(name, n_samples=30, seed=0):
    make, shape = NETWORKS[name]
    torch.manual_seed(seed)
    net = nn.Sequential(*make(), nn.Dropout(0.5)).double().eval()
    for layer in norms(net):
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.5, 2)
    # sorted, as data often are: no batch is like the whole
    x = torch.randn(n_samples, *shape, dtype=torch.float64) + torch.linspace(0, 9, n_samples).view(
        -1, *[1] * len(shape)
    )
    chain = build_chain(net, x[:2])
    return net, SplitNetwork(chain, chain[:0]), x


def norms(net):
    return [layer for layer in net.modules() if hasattr(layer, "running_mean")]


def inputs_of(layer, net, x):
    """What reaches the layer, one column a channel."""
    seen = []
    with layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone())):
        net(x)
    return seen[0].movedim(1, -1).flatten(0, -2).detach().numpy()


@pytest.mark.parametrize("batch_size", [1, 7, 30])
@pytest.mark.parametrize("name", NETWORKS)
def test_statistics_are_those_of_the_data_at_each_layer(name, batch_size):
    net, network, x = build(name)
    parameters = copy.deepcopy(dict(net.named_parameters()))
    momenta = [layer.momentum for layer in norms(net)]
    assert reestimate_batch_norm(network, x, batch_size)
    for layer in norms(net):
        values = inputs_of(layer, net, x)
        torch.testing.assert_close(layer.running_mean, torch.tensor(values.mean(axis=0)))
        torch.testing.assert_close(layer.running_var, torch.tensor(values.var(axis=0)))
    assert [layer.momentum for layer in norms(net)] == momenta
    assert not any(module.training for module in network.modules())
    assert not any(module._forward_pre_hooks for module in norms(net))
    for key, value in net.named_parameters():
        assert torch.equal(value, parameters[key])


def test_the_network_then_does_what_training_mode_does_on_all_samples_at_once():
    net, network, x = build("linear")
    reestimate_batch_norm(network, x, 8)
    evaluated = net(x)
    for layer in norms(net):
        layer.train()
    torch.testing.assert_close(net(x), evaluated)


@pytest.mark.parametrize("name", ["linear", "image", "residual"])
def test_a_weight_is_a_repetition(name):
    weighted, network, x = build(name)
    weights = torch.randint(1, 4, (30,))
    reestimate_batch_norm(network, x, 8, weights)
    repeated, network, _ = build(name)
    reestimate_batch_norm(network, x.repeat_interleave(weights, dim=0), 100)
    for one, other in zip(norms(weighted), norms(repeated), strict=True):
        torch.testing.assert_close(one.running_mean, other.running_mean)
        torch.testing.assert_close(one.running_var, other.running_var)


def test_frozen_layers_keep_their_statistics():
    net = nn.Sequential(
        nn.Linear(4, 5),
        nn.BatchNorm1d(5),  # trained
        nn.BatchNorm1d(5),  # frozen by the user
        nn.Linear(5, 5),
        nn.BatchNorm1d(5),  # after the split
    ).eval()
    net[2].requires_grad_(False)
    x = torch.randn(20, 4)
    chain = build_chain(net, x)
    before = copy.deepcopy(net.state_dict())
    assert reestimate_batch_norm(SplitNetwork(chain[:4], chain[4:]), x, 6)
    changed = {name for name, value in net.state_dict().items() if not value.equal(before[name])}
    assert changed == {"1.running_mean", "1.running_var"}


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(5), nn.BatchNorm1d(5, track_running_stats=False), nn.Identity()]
)
def test_nothing_to_do(norm):
    net = nn.Sequential(nn.Linear(4, 5), norm).eval()
    x = torch.randn(6, 4)
    chain = build_chain(net, x)
    assert not reestimate_batch_norm(SplitNetwork(chain, chain[:0]), x, 2)


def test_one_sample_alone():
    net, network, x = build("linear")
    assert reestimate_batch_norm(network, x[:1], 4)
    assert torch.isfinite(net(x)).all()


def test_moments_far_from_zero_keep_their_digits():
    values = torch.randn(1000, 2, 3, dtype=torch.float64) + 1e8
    moments = Moments()
    for part in values.split(90):
        moments.add(part, torch.ones(len(part)))
    expected = values.movedim(1, 2).reshape(-1, 2).numpy()
    torch.testing.assert_close(moments.mean, torch.tensor(expected.mean(axis=0)))
    torch.testing.assert_close(moments.variance, torch.tensor(expected.var(axis=0)))
