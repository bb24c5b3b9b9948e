"""What relevance cannot pass: refused in words, or given a rule of one's own."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from featprop_sklearn.inspection.relevance import (
    RelativeSectionalPropagation,
    pass_through,
    register_relevance_rule,
    registry,
)
from tests.inspection.relevance_networks import (
    IMAGE,
    Inception,
    head,
    lost_relevance,
    settled,
    totals,
    vgg,
)
from tests.networks.zoo import MobileNet, ResNet, SqueezeExcitation


@pytest.fixture(autouse=True)
def _registry_as_before(monkeypatch):
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))


# rules of one's own -------------------------------------------------------------------------


def test_a_rule_for_a_function(network, images):
    network[4] = nn.GELU()
    register_relevance_rule("gelu", pass_through)
    found = RelativeSectionalPropagation(network).attribute(images, 1, [2])
    torch.testing.assert_close(totals(found), torch.ones(5))


def test_a_rule_for_a_layer_type_and_its_subclasses(network, images):
    class Gate(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(x)

    class Finer(Gate):
        pass

    network[4] = Finer()
    with pytest.raises(ValueError, match="Module '4' calls mul of these inputs together, and"):
        RelativeSectionalPropagation(network).attribute(images)
    seen = []

    def rule(call, relevance, x):
        seen.append((call.path, torch.equal(call(x), x * torch.sigmoid(x))))
        return relevance

    register_relevance_rule(Gate, rule)
    found = RelativeSectionalPropagation(network).attribute(images, 1, [2])
    torch.testing.assert_close(totals(found), torch.ones(5))
    assert seen == [("4", True)]


def test_a_rule_for_the_layer_type_that_relevance_starts_from(network, images):
    expected = RelativeSectionalPropagation(network).attribute(images, 1, [2])
    register_relevance_rule(nn.ReLU, pass_through)
    found = RelativeSectionalPropagation(network).attribute(images, 1, [2])
    assert torch.equal(found, expected)


def as_the_message_says(error):
    """Run the code in it."""
    code = re.search(r"run: (from .*\))$", str(error.value)).group(1)
    exec(code, {})


@pytest.mark.parametrize(
    "activation", [nn.LeakyReLU, nn.GELU, nn.PReLU, nn.Tanh, lambda: nn.Hardtanh(-1.0, 1.0)]
)
def test_the_advice_about_activations_of_negative_values_works(images, activation):
    layers = [activation() if isinstance(layer, nn.ReLU) else layer for layer in vgg()]
    network = settled(nn.Sequential(*layers))
    rsp = RelativeSectionalPropagation(network, "8")
    text = r"Module '[28]' calls \w+( with a lower end below zero)?, and no .* gives negative"
    with pytest.raises(ValueError, match=text) as error:
        rsp.attribute(images, 1, [2])
    as_the_message_says(error)
    torch.testing.assert_close(totals(rsp.attribute(images, 1, [2])), torch.ones(5))


def test_the_advice_about_gates_works(images):
    register_relevance_rule("hardswish", pass_through)
    rsp = RelativeSectionalPropagation(settled(MobileNet()), "features")
    text = (
        r"'features\.1\.block\.6' calls mul of these inputs .* gate, .* rule of the module's type"
    )
    with pytest.raises(ValueError, match=text):
        rsp.attribute(images, 1, [2])
    register_relevance_rule(SqueezeExcitation, pass_through)
    with lost_relevance() as lost:
        found = rsp.attribute(images, 1, [2])
    assert found.sum().item() == pytest.approx(5 - sum(lost), abs=1e-4)


@pytest.mark.parametrize("layer", [nn.GELU(), int, None])
def test_what_is_no_key_of_a_rule(layer):
    text = r"layer must be the name of a torch function or a subclass of torch\.nn\.Module; got "
    with pytest.raises(TypeError, match=text):
        register_relevance_rule(layer, pass_through)


@pytest.mark.parametrize("rule", ["pass_through", None, nn.ReLU])
def test_what_is_no_rule(rule):
    with pytest.raises(TypeError, match=r"rule must be a function \(call, relevance, \*inputs\)"):
        register_relevance_rule("gelu", rule)


# errors -------------------------------------------------------------------------------------


class Calls(nn.Module):
    """A small network around one function of its features."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.after, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), head(4)
        self.inner = Inner(function)

    def forward(self, x):
        return self.head(F.relu(self.after(self.inner(self.conv(x)))))


class Inner(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (torch.tanh, "Module 'inner' calls tanh, and"),
        (torch.arctan_, "Module 'inner' calls arctan, and"),
        (lambda x: x.clamp(-1), "Module 'inner' calls clamp with a lower end below zero, and"),
        (lambda x: x * x, "Module 'inner' calls mul of these inputs together, and"),
        (lambda x: x * x.sigmoid(), "Module 'inner' calls mul of these inputs together, and"),
        (lambda x: 1 - x, "Module 'inner' calls __rsub__, and"),
        (
            lambda x: torch.div(1.0 + torch.ones(4, 6, 6), x),
            "Module 'inner' calls div with its input in",
        ),
        (lambda x: F.normalize(x), "Module 'inner' calls normalize, and"),
        (
            lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
            "Module 'inner' calls max_pool2d_with_ind",
        ),
        (lambda x: torch.einsum("nchw,cd->ndhw", x, torch.ones(4, 4).double()), "calls einsum"),
    ],
)
def test_calls_without_a_rule(images, function, text):
    with pytest.raises(ValueError, match=text) as error:
        RelativeSectionalPropagation(Calls(function)).attribute(images)
    assert "no relevance rule tells how relevance passes back through that" in str(error.value)
    assert "There are rules for adaptive_avg_pool1d, " in str(error.value)
    assert "rule with register_relevance_rule." in str(error.value)


def test_what_clips_large_values_only_has_a_rule(images):
    network = Calls(F.relu6)
    expected = RelativeSectionalPropagation(network).attribute(images, 1, [2])
    network.inner.function = lambda x: x.relu().clamp(max=6)
    assert torch.equal(RelativeSectionalPropagation(network).attribute(images, 1, [2]), expected)


def test_linear_layers_are_not_propagated_through(images):
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(6, 6), nn.Conv2d(4, 4, 3), nn.ReLU(), head(4)
    )
    with pytest.raises(
        ValueError, match=r"Module '2' calls linear, and .* start at an earlier layer="
    ):
        RelativeSectionalPropagation(network).attribute(images)
    RelativeSectionalPropagation(network, "1").attribute(images)


def test_calls_that_hide_from_torch_are_noticed(images):
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 2

    with pytest.raises(ValueError, match=r"calls HiddenBackward, and no relevance rule"):
        RelativeSectionalPropagation(Calls(Hidden.apply)).attribute(images)


def test_a_ruled_layer_of_more_than_one_tensor(images):
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.two = Two()

        def forward(self, x):
            return self.two(x)[0]

    register_relevance_rule(Two, pass_through)
    text = r"Module 'inner\.function\.two' calls Two for more than one tensor, and no"
    with pytest.raises(ValueError, match=text):
        RelativeSectionalPropagation(Calls(First())).attribute(images)


def test_features_that_are_overwritten_and_read_again(images):
    def overwrite(x):
        x = x.relu()
        y = x + 1
        x *= 2
        return y + x.view_as(x)

    def alias(x):
        kept = x = x.relu()
        x += 1
        return kept

    RelativeSectionalPropagation(Calls(overwrite)).attribute(images)
    with pytest.raises(ValueError, match=r"overwrites a feature .* Use inplace=False"):
        RelativeSectionalPropagation(Calls(alias)).attribute(images)


def test_a_last_activation_in_a_branch(images):
    with pytest.raises(ValueError, match=r"last activation of the network lies on one of several"):
        RelativeSectionalPropagation(Inception()).attribute(images)


def test_no_activation_with_a_feature_map():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r"no activation of more than one .*as layer="):
        RelativeSectionalPropagation(network).attribute(torch.randn(2, *IMAGE))


def test_a_layer_that_gives_no_feature_map(network, images):
    text = r"layer='11' must give one tensor of shape .*; it gives \(n_samples, 16\)\. Pass"
    with pytest.raises(ValueError, match=text):
        RelativeSectionalPropagation(network, "11").attribute(images)


def test_a_layer_that_runs_twice(images):
    text = r"layer='layer1\.0\.relu' runs 2 times .* Pass the block"
    with pytest.raises(ValueError, match=text):
        RelativeSectionalPropagation(ResNet(), "layer1.0.relu").attribute(images)


def test_a_layer_that_the_outputs_do_not_depend_on(images):
    class Idle(Calls):
        def forward(self, x):
            x = self.conv(x)
            self.after(x)
            return self.head(x)

    with pytest.raises(ValueError, match=r"outputs of the network do not depend on layer="):
        RelativeSectionalPropagation(Idle(nn.Identity()), "after").attribute(images)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        ("9.9", r"layer must be a module of the model, or its path; got '9\.9'\. "),
        ("layer1.0.conv3", r"Did you mean 'layer1\.0\.conv"),
        (nn.ReLU(), r"or its path; got ReLU\. Paths: \['conv1'"),
    ],
)
def test_unknown_layers(layer, text):
    with pytest.raises(ValueError, match=text):
        RelativeSectionalPropagation(ResNet(), layer)


def test_unknown_purging(network):
    with pytest.raises(ValueError, match=r"purge must be None or 'sign'; got 'all'\."):
        RelativeSectionalPropagation(network, purge="all")


@pytest.mark.parametrize(
    ("x", "error", "text"),
    [
        ([[1.0]], TypeError, r"x must be a floating-point tensor.*; got list\. Convert"),
        (torch.ones(2, *IMAGE, dtype=torch.uint8), TypeError, r"tensor.*; got torch\.uint8"),
        (torch.ones(0, *IMAGE), ValueError, r"at least one sample, .*; got shape \(0, 1, 8, 8\)"),
        (torch.full((2, *IMAGE), torch.nan), ValueError, r"got NaN or infinite entries"),
        (torch.ones(2, 3, 8, 8), ValueError, r"The network \(Sequential\) refused X"),
    ],
)
def test_inputs_that_are_refused(network, x, error, text):
    with pytest.raises(error, match=text):
        RelativeSectionalPropagation(network).attribute(x)


def test_bounds_reach_the_first_convolution(network, images):
    with pytest.raises(ValueError, match=r"bounds=\(0\.0, 1\.0\) must hold all inputs"):
        RelativeSectionalPropagation(network, bounds=(0.0, 1.0)).attribute(images)
