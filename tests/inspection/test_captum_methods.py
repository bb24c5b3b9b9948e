"""The methods that captum computes: worked examples, what they add up to, what is refused."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from featprop_sklearn.inspection import attribute
from tests.inspection.relevance_networks import IMAGE, Dense, settled
from tests.networks.zoo import ResNet

pytest.importorskip("captum")


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def linear(weight):
    layer = nn.Linear(len(weight[0]), len(weight), bias=False).double()
    layer.weight.data = tensor(weight)
    return layer


# worked examples ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "expected"), [("gradient", [1, 1.75]), ("guided_backprop", [2, 2])]
)
def test_backpropagation_of_the_specification(method, expected):
    network = nn.Sequential(
        *(linear([[1, -1], [1, 1], [2, 0.5]]), nn.ReLU()),
        *(linear([[1, -1, 0.5], [-1, 2, -0.5]]), nn.ReLU(inplace=True), linear([[1, 1]])),
    )
    found = attribute(network, [[1, 2]], method)
    np.testing.assert_allclose(found.maps, [expected], atol=1e-6)


class TwoMaps(nn.Module):
    """The features of the worked example, whatever the input."""

    def __init__(self):
        super().__init__()
        self.features = nn.Identity()
        self.scale = nn.Parameter(tensor(1.0))

    def forward(self, x):
        maps = tensor([[[[1, 0], [2, 1]], [[0, 3], [1, 0]]]])
        features = self.features(maps * self.scale + 0 * x.sum((1, 2, 3))[:, None, None, None])
        return (features.mean((2, 3)) @ tensor([[4.0, 0], [-2, 0]])) * 1.0


def test_grad_cam_of_the_specification():
    """α = (1, −.5): pooled over four positions, the weights are four times as large."""
    x = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    found = attribute(TwoMaps(), x, "grad_cam", target=0, layer="features")
    np.testing.assert_allclose(found.maps, [[[1, 0], [1.5, 1]]], atol=1e-6)


def test_occlusion_of_the_specification():
    weight = [[1, 0, -1, 0, 2, 0, 1, 0, 1]]
    model = nn.Sequential(nn.Flatten(), linear(weight))
    x = torch.arange(1.0, 10).reshape(1, 1, 3, 3)
    found = attribute(model, x, "occlusion", window=2, stride=1)
    expected = [[[11, 9, 7], [14, 13.5, 13], [17, 18, 19]]]
    np.testing.assert_allclose(found.maps, expected, atol=1e-6)


# single methods -----------------------------------------------------------------------------


def test_grad_cam_of_global_pooling():
    """With global average pooling and a linear layer α_k = w_ck/(HW)."""
    conv, last = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6, 4)
    network = nn.Sequential(
        *(conv, nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last),
    ).double()
    x = torch.randn(3, 2, 8, 8).double()
    features = network[:5](x)
    cam = torch.einsum("k,nkhw->nhw", last.weight[2] / 16, features).relu()
    expected = F.interpolate(cam[:, None], (8, 8), mode="bilinear")[:, 0].detach()
    for layer in (None, "4", network[4]):
        found = attribute(network, x, "grad_cam", target=2, layer=layer)
        np.testing.assert_allclose(found.maps, expected, atol=1e-12)
    guided = attribute(network, x, "guided_backprop", target=2).maps
    both = attribute(network, x, "guided_grad_cam", target=2).maps
    np.testing.assert_allclose(both, guided * expected.numpy(), atol=1e-12)


@pytest.mark.parametrize("build", [ResNet, Dense])
def test_grad_cam_knows_functions(build, images):
    found = attribute(settled(build()), images, "grad_cam")
    assert (found.maps >= 0).all()
    assert found.maps.any()


def test_integrated_gradients_add_up(network, images):
    images = images.double()
    found = attribute(
        network.double(), images, "integrated_gradients", target=1, baseline=0.2, n_steps=300
    )
    with torch.no_grad():
        change = network(images)[:, 1] - network(torch.full_like(images, 0.2))[:, 1]
    np.testing.assert_allclose(found.maps.sum((1, 2)) - change.numpy(), found.residual, atol=1e-9)
    assert np.abs(found.residual).max() < 0.01 * change.abs().max()


def test_lrp_of_a_network_without_biases_adds_up(images):
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 4, 2, bias=False), nn.ReLU(), nn.AdaptiveMaxPool2d(1)),
        *(nn.Flatten(), nn.Dropout(), nn.Linear(4, 3, bias=False)),
    ).double()
    images = images.double()
    found = attribute(network, images, "lrp", target=1)
    with torch.no_grad():
        logits = network.eval()(images)[:, 1].numpy()
    np.testing.assert_allclose(found.maps.sum((1, 2)), logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.residual, 0, atol=1e-5)
    # the epsilon rule in a network of ReLUs without biases is the gradient times the input
    gradients = attribute(network, images, "gradient", target=1).maps
    np.testing.assert_allclose(found.maps, gradients * images[:, 0].numpy(), atol=1e-6)


def test_lrp_through_additions_that_are_modules(images):
    from captum.attr._utils.custom_modules import Addition_Module

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.main = (nn.Conv2d(n, 4, 3, padding=1, bias=False) for n in (1, 4))
            self.add, self.relu = Addition_Module(), nn.ReLU()
            self.head = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3, bias=False)
            )

        def forward(self, x):
            x = self.stem(x)
            return self.head(self.relu(self.add(x, self.main(x))))

    found = attribute(Residual().double(), images, "lrp", target=1)
    np.testing.assert_allclose(found.residual, 0, atol=1e-6)
    assert found.maps.any()


def test_occlusion_covers_every_pixel_and_all_channels():
    network = nn.Sequential(nn.Flatten(), linear([[1.0] * 2 * 7 * 5]))
    x = torch.ones(2, 2, 7, 5)
    found = attribute(network, x, "occlusion", window=(3, 2), stride=2)
    assert (found.maps > 0).all()
    assert found.maps[0, 0, 0] == 3 * 2 * 2  # all that the window takes away
    grey = attribute(network, x, "occlusion", baseline=1.0)
    assert not grey.maps.any()


# options and networks that captum would get wrong -------------------------------------------


@pytest.mark.parametrize("option", ["window", "stride"])
@pytest.mark.parametrize("value", [0, 9, (2, 2, 2), (2, 20), 2.5, (2, 1.5), True, "ab", None])
def test_windows_that_do_not_fit(network, images, option, value):
    if value is None:
        value = np.full((2, 2), 2)
    text = rf"{option} must be an integer, or one for each axis, between 1 and \(\d, \d\); got"
    with pytest.raises(ValueError, match=text):
        attribute(network, images, "occlusion", **{option: value})


@pytest.mark.parametrize("window", [np.int64(2), np.array([2, 2]), [2, 2]])
def test_windows_of_numpy(network, images, window):
    found = attribute(network, images, "occlusion", window=window, stride=np.uint8(1))
    expected = attribute(network, images, "occlusion", window=2, stride=1)
    np.testing.assert_array_equal(found.maps, expected.maps)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "50"])
def test_numbers_of_steps(network, images, steps):
    with pytest.raises(ValueError, match="n_steps must be an integer of at least 1; got"):
        attribute(network, images, "integrated_gradients", n_steps=steps)


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
@pytest.mark.parametrize("baseline", [np.zeros(IMAGE), np.inf, "mean", None, True])
def test_baselines_are_numbers(network, images, method, baseline):
    with pytest.raises(ValueError, match="baseline must be a finite number; got"):
        attribute(network, images, method, baseline=baseline)
    found = attribute(network, images, method, baseline=np.float32(0.5))
    np.testing.assert_array_equal(found.maps, attribute(network, images, method, baseline=0.5).maps)


@pytest.mark.parametrize("method", ["guided_backprop", "guided_grad_cam"])
def test_guided_backpropagation_needs_modules(images, method):
    with pytest.raises(ValueError, match=r"Module '' calls relu as a function; captum's guided"):
        attribute(settled(Dense()), images, method)
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"has none: other.* Use method='gradient'"):
        attribute(smooth, images, method)


def test_class_activation_needs_positions():
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"1 to 3 axes of positions; X has shape \(2, 4\)"):
        attribute(network, torch.randn(2, 4), "grad_cam")


def test_lrp_is_refused_where_captum_would_be_wrong(images):
    with pytest.raises(ValueError, match=r"'layer1.0' calls add outside of a layer, .* LRP"):
        attribute(settled(ResNet()), images, "lrp")
    gelu = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"captum's LRP has no rule for module '2', GELU"):
        attribute(gelu, images, "lrp")
    twice = nn.Linear(64, 64)
    again = nn.Sequential(nn.Flatten(), twice, nn.ReLU(), twice, nn.Linear(64, 2))
    with pytest.raises(ValueError, match=r"Module '1' runs 2 times, and captum's LRP takes one"):
        attribute(again, images, "lrp")


class CutOff(nn.Module):
    """No derivative passes its first layer."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        with torch.no_grad():
            features = self.body(x).relu()
        return self.head(features)


@pytest.mark.parametrize("method", ["gradient", "integrated_gradients"])
def test_networks_without_derivatives_are_refused(method):
    X = torch.randn(5, 4)
    with pytest.raises(ValueError, match=method + " needs derivatives.* method='occlusion'"):
        attribute(CutOff(), X, method)
    assert attribute(CutOff(), X, "occlusion").maps.shape == (5, 4)


def test_errors_of_other_causes_are_passed_on():
    def failing(model, x, target):
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        attribute(nn.Linear(4, 3), torch.randn(5, 4), failing)


def test_networks_that_begin_in_16_bits():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 6).bfloat16(), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.body(x.bfloat16()).float())

    found = attribute(Mixed(), torch.randn(5, 4), "gradient")
    assert found.maps.shape == found.inputs.shape == (5, 4)
