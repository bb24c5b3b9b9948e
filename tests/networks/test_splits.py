"""Split points and the ``split`` parameter."""

import numpy as np
import pytest
import torch
from torch import nn

from featprop_sklearn.networks import (
    Rescale,
    build_chain,
    chain_splits,
    private_copy,
    resolve_splits,
)

POINTS = ["conv1", "relu1", "flatten", "head"]


def network():
    net = nn.Sequential()
    net.add_module("scale", Rescale(torch.full((4, 4), 2.0), torch.zeros(4, 4)))
    net.add_module("pad", nn.ZeroPad2d(1))
    net.add_module("conv1", nn.Conv2d(1, 2, 3))
    net.add_module("relu1", nn.ReLU())
    net.add_module("flatten", nn.Flatten())
    net.add_module("head", nn.Linear(32, 3))
    return net


@pytest.fixture
def chain():
    return build_chain(private_copy(network()), torch.zeros(2, 1, 4, 4))


def test_split_points_begin_with_the_first_parameters(chain):
    """Pre-activations are split points; what nothing trainable feeds is not."""
    assert chain.names == ["scale", "pad", *POINTS]
    assert chain_splits(chain) == POINTS


def test_what_the_user_froze_is_not_to_be_trained():
    net = network()
    net.conv1.requires_grad_(False)
    assert chain_splits(build_chain(net, torch.zeros(2, 1, 4, 4))) == POINTS[-1:]


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("relu1", ["relu1"]),
        ("auto", ["head"]),
        (0, ["conv1"]),
        (-1, ["head"]),
        (-4, ["conv1"]),
        (np.int64(2), ["flatten"]),
        (["head", "conv1"], ["conv1", "head"]),
        ((-1, "relu1", 0), ["conv1", "relu1", "head"]),
        (["auto"], ["head"]),
    ],
    ids=str,
)
def test_resolve_splits(chain, split, names):
    assert resolve_splits(split, chain) == names


def test_a_stage_called_auto_is_meant_by_its_name():
    net = nn.Sequential()
    net.add_module("auto", nn.Linear(2, 2))
    net.add_module("head", nn.Linear(2, 2))
    chain = build_chain(private_copy(net), torch.zeros(2, 2))
    assert resolve_splits("auto", chain) == ["auto"]


@pytest.mark.parametrize(
    ("split", "error", "text"),
    [
        (
            "rleu1",
            ValueError,
            r"split='rleu1' is not a split point of this network\. Did you mean 'relu1'\? All: "
            r"\['conv1', 'relu1', 'flatten', 'head'\]",
        ),
        ("zzzzzz", ValueError, r"split='zzzzzz' is not a split point of this network\. All: \["),
        (
            "pad",
            ValueError,
            r"split='pad' has nothing to train before it: .*first split point is 'conv1'",
        ),
        (4, ValueError, r"split=4 is out of range: the network has 4 split points, 0 to 3: \["),
        (-5, ValueError, r"split=-5 is out of range"),
        (["conv1", 0], ValueError, r"split=\['conv1', 0\] names a split point twice"),
        (("auto", -1), ValueError, r"split=\['auto', -1\] names a split point twice"),
        (True, TypeError, r"split must hold names or indices; got True\. Names: \['conv1'"),
        ([None], TypeError, r"split must hold names or indices; got None"),
        (1.5, TypeError, r"split must be a name, an index, a non-empty list .*; got 1\.5\. The na"),
        ([], TypeError, r"split must be a name, an index, a non-empty list of them.*; got \[\]"),
        (None, TypeError, r"split must be a name, .*; got None"),
        ({"head"}, TypeError, r"split must be a name, .*; got \{'head'\}"),
    ],
    ids=str,
)
def test_errors(chain, split, error, text):
    with pytest.raises(error, match=text):
        resolve_splits(split, chain)


def test_nothing_to_train():
    chain = build_chain(nn.Sequential(nn.ReLU(), nn.Flatten()), torch.zeros(2, 2, 2))
    assert chain_splits(chain) == []
    with pytest.raises(
        ValueError, match=r"module has no parameters, so there is nothing to train\. Pass a net"
    ):
        resolve_splits("auto", chain)
