"""Relative Sectional Propagation through whole networks."""

from contextlib import nullcontext

import pytest
import torch
from skorch import NeuralNetClassifier
from torch import nn
from torch.nn import functional as F

from featprop_sklearn.inspection.relevance import RelativeSectionalPropagation
from featprop_sklearn.inspection.relevance.convolution import through_hidden_convolution
from featprop_sklearn.inspection.relevance.first_layer import through_first_convolution
from featprop_sklearn.inspection.relevance.purging import purge_by_sign
from featprop_sklearn.inspection.relevance.registry import Call
from featprop_sklearn.inspection.relevance.rules import proportional
from featprop_sklearn.inspection.relevance.seed import seed_relevance
from featprop_sklearn.inspection.relevance.windows import Windows
from tests.inspection.relevance_networks import (
    IMAGE,
    NETWORKS,
    head,
    left_alone,
    lost_relevance,
    mobile,
    settled,
    totals,
    vgg,
)
from tests.networks.zoo import ResNet

# promises -----------------------------------------------------------------------------------


@pytest.mark.parametrize("purge", [None, "sign"])
@pytest.mark.parametrize(("build", "shape", "layer"), NETWORKS)
def test_pixels_hold_what_the_seed_gave(build, shape, layer, purge):
    network, x = settled(build()), torch.rand(5, *shape, dtype=torch.float64)
    rsp = RelativeSectionalPropagation(network, layer, purge=purge)
    with lost_relevance() as lost:
        found = rsp.attribute(x, target=[0, 1, 2, 3, 4], hostile=[7, 8])
    assert found.shape == x.shape
    if build is mobile:  # depthwise windows see one channel
        assert found.sum().item() == pytest.approx(5 - sum(lost), abs=1e-5)
    else:
        torch.testing.assert_close(totals(found), torch.ones(5).double(), rtol=0, atol=1e-5)
    assert (found > 0).any()
    assert (found < 0).any()


def watch_relevance(network, layers, sums):
    """Note the sum of the relevance at the output of each layer, in the copy that runs."""

    def hook(module, args, output):
        if output.requires_grad:
            output.register_hook(lambda r: sums.append(totals(r)))

    for layer in layers:
        layer.register_forward_hook(hook)


@pytest.mark.parametrize("hostile", [[7, 8], None])
def test_every_layer_keeps_the_sum(network, images, hostile):
    sums = []
    watch_relevance(network, list(network)[:9], sums)
    found = RelativeSectionalPropagation(network).attribute(images, target=1, hostile=hostile)
    ruled = sums[-8:]  # what comes before them are gradients, at the seed
    assert len(ruled) == 8
    for one in ruled:
        torch.testing.assert_close(one, totals(found).double(), rtol=1e-5, atol=1e-6)


def test_every_block_of_a_resnet_keeps_the_sum(images):
    network, sums = settled(ResNet()), []
    parts = [network.relu, network.layer1, network.layer2[0].conv1, network.layer2[0].downsample]
    watch_relevance(network, parts, sums)
    RelativeSectionalPropagation(network).attribute(images, target=1, hostile=[2])
    branches, one = sums[-4:-2], torch.ones(5).double()
    for total in (sum(branches), *sums[-2:]):
        torch.testing.assert_close(total, one, rtol=0, atol=1e-5)
    assert not any(torch.allclose(branch, one) for branch in branches)


@pytest.mark.parametrize(("build", "shape", "layer"), NETWORKS)
def test_a_batch_is_its_samples(build, shape, layer):
    network, x = settled(build()), torch.randn(3, *shape, dtype=torch.float64)
    rsp = RelativeSectionalPropagation(network, layer)
    targets, hostile = [4, 0, 9], [[1, 2], [3, 3], [0, 5]]
    together = rsp.attribute(x, targets, hostile)
    for row, (target, rivals) in enumerate(zip(targets, hostile, strict=True)):
        alone = rsp.attribute(x[row : row + 1], target, rivals)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-7, atol=1e-9)


def test_rules_are_put_together_in_order():
    """A chain of five layers, its rules applied by hand; GAP and Linear: α_k = w_ck/(HW)."""
    conv, hidden, linear = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 2), nn.Linear(6, 3)
    gap = nn.AdaptiveAvgPool2d(1)
    network = nn.Sequential(
        *(conv, nn.ReLU(), nn.MaxPool2d(2), hidden, nn.ReLU(), gap, nn.Flatten(), linear)
    ).double()
    x = torch.rand(2, *IMAGE, dtype=torch.float64)
    with torch.no_grad():
        first = conv(x).relu()
        pooled = F.max_pool2d(first, 2)
        features = hidden(pooled).relu()
        hostile = torch.tensor([[False, True, True]] * 2)

        def gradient(classes):
            return (linear.weight[classes] / 9)[..., None, None].expand_as(features)

        relevance = seed_relevance(features, gradient, torch.tensor([0, 0]), hostile)
        relevance = purge_by_sign(relevance)
        relevance = through_hidden_convolution(Windows.of((2, 2), 1, 0, 1, 1), relevance, pooled)
        relevance = proportional(Call(lambda x: F.max_pool2d(x, 2)), relevance, first)
        windows, bounds = Windows.of((3, 3), 1, 1, 1, 1), (0.0, 1.0)
        expected = through_first_convolution(conv.weight, windows, relevance, x, bounds)
    rsp = RelativeSectionalPropagation(network, purge="sign", bounds=bounds)
    torch.testing.assert_close(rsp.attribute(x, target=0, hostile=[1, 2]), expected)


def test_two_stems_are_first_layers_both():
    class TwoStems(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3), head(4)

        def forward(self, x):
            return self.head(F.relu(self.a(x) + self.b(x[..., :, :])))

    # pixels of zero have no share under the rule of hidden convolutions
    x = torch.randn(2, *IMAGE)
    x[..., 4, 4] = 0
    found = RelativeSectionalPropagation(TwoStems()).attribute(x, 0, [1])
    assert found[..., 4, 4].all()
    torch.testing.assert_close(totals(found), torch.ones(2))


def test_swapped_classes_swap_what_is_positive(network, images):
    rsp = RelativeSectionalPropagation(network)
    found, swapped = rsp.attribute(images, 1, [2]), rsp.attribute(images, 2, [1])
    assert torch.nn.functional.cosine_similarity(found.flatten(1), swapped.flatten(1)).max() < 0


def test_constant_networks_have_no_relevance(network, images):
    nn.init.zeros_(network[-1].weight)
    assert not RelativeSectionalPropagation(network).attribute(images, 1, [2]).any()


def test_runs_are_repeatable(network, images):
    rsp = RelativeSectionalPropagation(network)
    assert torch.equal(rsp.attribute(images), rsp.attribute(images))


# classes and outputs ------------------------------------------------------------------------


def test_predicted_class_against_the_runner_up_by_default(network, images):
    rsp = RelativeSectionalPropagation(network)
    first, second = network(images).topk(2).indices.T
    assert torch.equal(rsp.attribute(images), rsp.attribute(images, first, second[:, None]))


def test_networks_of_several_labels_against_the_classes_that_are_present(network, images):
    rsp = RelativeSectionalPropagation(network)
    hostile = network(images) > 0
    hostile[:, 3] = False
    assert torch.equal(rsp.attribute(images, 3, "present"), rsp.attribute(images, 3, hostile))


def test_fitted_skorch_net(images):
    net = NeuralNetClassifier(vgg()).initialize()
    found = RelativeSectionalPropagation(net).attribute(images)
    assert torch.equal(found, RelativeSectionalPropagation(net.module_).attribute(images))


@pytest.mark.parametrize("last", [nn.Softmax(dim=1), nn.LogSoftmax(dim=1), nn.Sigmoid()])
def test_relevance_starts_from_logits(network, images, last):
    found = RelativeSectionalPropagation(nn.Sequential(*network, last)).attribute(images, 1, [2])
    torch.testing.assert_close(
        found, RelativeSectionalPropagation(network).attribute(images, 1, [2])
    )


@pytest.mark.parametrize("name", ["8", "by module"])
def test_layer_by_path_and_by_module(network, images, name):
    layer = network[8] if name == "by module" else name
    found = RelativeSectionalPropagation(network, layer).attribute(images)
    assert torch.equal(found, RelativeSectionalPropagation(network).attribute(images))


def test_an_earlier_layer_gives_another_map(network, images):
    found = RelativeSectionalPropagation(network, "4").attribute(images, 1, [2])
    last = RelativeSectionalPropagation(network).attribute(images, 1, [2])
    assert not torch.allclose(found, last, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_dtype_of_the_caller(network, images, dtype):
    found = RelativeSectionalPropagation(network).attribute(images.to(dtype))
    assert found.dtype == dtype
    assert not found.requires_grad


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_gradients_may_be_switched_off_around_it(network, images, around):
    rsp = RelativeSectionalPropagation(network)
    expected = rsp.attribute(images)
    with around():
        assert torch.equal(rsp.attribute(images.clone()), expected)


# the network is left alone ------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_alone(images, fails):
    network = vgg().train()
    network[0].weight.requires_grad_(False)
    network[7].weight.grad = torch.ones_like(network[7].weight)
    network[3].register_forward_hook(lambda *_: None)
    if fails:
        network[4] = nn.GELU()
    x, random = images.clone().requires_grad_(), torch.get_rng_state()
    error = pytest.raises(ValueError, match="gelu") if fails else nullcontext()
    with left_alone(network), error:
        RelativeSectionalPropagation(network).attribute(x)
    assert x.grad is None
    assert torch.equal(x, images)
    assert torch.equal(torch.get_rng_state(), random)


def test_the_network_is_read_as_it_is_then(network, images):
    rsp = RelativeSectionalPropagation(network)
    before = rsp.attribute(images, 1, [2])
    nn.init.normal_(network[0].weight)
    assert not torch.allclose(rsp.attribute(images, 1, [2]), before)
