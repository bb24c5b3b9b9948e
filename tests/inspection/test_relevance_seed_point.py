"""Which layer relevance and class-activation maps start from when none is named."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from featprop_sklearn.inspection import attribute
from featprop_sklearn.inspection.relevance import RelativeSectionalPropagation
from featprop_sklearn.inspection.relevance.seed_point import find_seed_point
from tests.inspection.relevance_networks import IMAGE, head, mobile, settled


class Ending(nn.Module):
    """A network whose last feature map is made by a given function."""

    def __init__(self, function):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3), head(6)
        self.function = function

    def forward(self, x):
        return self.head(self.function(self.second(F.relu(self.first(x)))))


def start(network, x):
    """Return the feature that is found."""
    point, _ = find_seed_point(network, network, None, x)
    seen = []
    with torch.no_grad(), point.replaced(seen.append):
        network(x)
    return seen[0]


@pytest.fixture
def images():
    return torch.randn(3, *IMAGE)


@pytest.mark.parametrize(
    "function",
    [
        *(torch.relu, torch.relu_, torch.Tensor.relu_, nn.ReLU(inplace=True)),
        *(F.relu6, nn.ReLU6(), nn.Hardtanh(0, 6), lambda x: F.hardtanh(input=x, min_val=0.0)),
        *(lambda x: x.clamp(0, 6), lambda x: x.clamp_(min=0), lambda x: x.clip(0)),
        *(nn.Hardswish(), nn.GELU(), nn.SiLU(), nn.LeakyReLU(), nn.PReLU(), nn.ELU(), nn.Tanh()),
    ],
)
def test_the_last_activation(images, function):
    network = Ending(function).requires_grad_(False)
    expected = network.function(network.second(network.first(images).relu()))
    assert torch.equal(start(network, images), expected)


@pytest.mark.parametrize(
    "function",
    [
        *(lambda x: x.clamp(-1, 6), lambda x: F.hardtanh(x), lambda x: x.clamp(max=6)),
        *(torch.sigmoid, lambda x: x + torch.arange(4).clamp(0, 6)),
        lambda x: x * torch.tensor(2.0).clamp(0, 4),
    ],
    ids=["clamp", "hardtanh", "clamp from above", "gate", "integers", "temperature"],
)
def test_what_is_no_activation_is_passed_over(images, function):
    network = Ending(function).requires_grad_(False)
    assert torch.equal(start(network, images), network.first(images).relu())


def test_what_follows_the_last_feature_map_is_passed_over(images):
    network = nn.Sequential(*Ending(nn.ReLU6()).head, nn.GELU())
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU6(), *network).requires_grad_(False)
    assert torch.equal(start(network, images), network[:2](images))


def test_a_mobile_net_is_explained_by_default(images):
    network = settled(mobile())
    named = RelativeSectionalPropagation(network, "7").attribute(images)
    assert torch.equal(RelativeSectionalPropagation(network).attribute(images), named)


@pytest.mark.parametrize("build", [mobile, lambda: Ending(nn.Hardswish())])
def test_class_activation_maps_start_there_too(images, build):
    pytest.importorskip("captum")
    network = build().eval()
    layer = "7" if build is mobile else "function"
    named = attribute(network, images, "grad_cam", target=1, layer=layer).maps
    found = attribute(network, images, "grad_cam", target=1).maps
    assert found.any()
    assert (found == named).all()
