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


# Paths of modules -------------------------------------------------------------------------


class Block(nn.Module):
    """As they are written: the last convolution's output is overwritten."""

    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.b(torch.relu(self.a(x)))
        out += x
        return self.act(out)


class Normed(nn.Module):
    """A composite stage that ends in a module, which ends in another one."""

    def __init__(self, width):
        super().__init__()
        self.gate = nn.Linear(width, width)
        self.out = nn.Sequential(nn.Linear(width, width), nn.Dropout())

    def forward(self, x):
        return self.out((x, self.gate(x))[1] * x)


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.layer1 = nn.Sequential(Block(4), Block(4))
        self.layer2 = nn.Sequential(Block(4))
        self.normed = Normed(4)
        self.unused = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.layer2(self.layer1(self.stem(x)))
        return self.head(self.normed(x))


class Branching(nn.Module):
    """The trace ends at the condition."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.body(x)
        if x.sum() > 1e9:
            x = -x
        return self.head(x)


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.loop = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.alias = self.loop

    def forward(self, x):
        return self.loop(self.loop(x))


class TwiceInside(nn.Module):
    """The same module makes the output, and something before."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(self.fc(x)) if x.sum() < 1e9 else x


class Summed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.fc(x)


class Recurrent(nn.Module):
    """Its first part returns a sequence, and states beside it."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Unflatten(1, (2, 2))
        self.rnn, self.states = (nn.LSTM(2, 2, batch_first=True) for _ in range(2))
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        sequence, _ = self.rnn(self.rows(x))
        _, (state, _) = self.states(sequence)
        return self.head(state[-1])


def chain_of(make):
    return build_chain(private_copy(make()), torch.randn(3, 4))


@pytest.mark.parametrize(
    ("make", "path", "name"),
    [
        (Blocks, "layer1", "layer1.1.act"),
        (Blocks, "layer1.0", "layer1.0.act"),
        (Blocks, "layer2", "layer2.0.act"),
        (Blocks, "layer2.0.act", "layer2.0.act"),
        (Blocks, ["head", "layer1"], ["layer1.1.act", "head"]),
        (Blocks, "normed.out", "normed.out.1"),
        (lambda: nn.Sequential(nn.Linear(4, 4), Branching()), "1", "1.head"),
        (Branching, "body", "body.1"),
        (Recurrent, "rnn", "getitem"),
        (Reused, "loop", "loop.1"),
        (Reused, "alias", "loop.1"),
        (lambda: nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(4, 4)))), "0.0", "0.0.0"),
    ],
)
def test_a_module_path_is_the_stage_that_it_ends_at(make, path, name):
    assert resolve_splits(path, chain_of(make)) == ([name] if isinstance(name, str) else name)


@pytest.mark.parametrize("make", [Blocks, Branching, Reused, TwiceInside])
def test_the_output_of_the_module_is_the_feature_at_the_stage(make):
    net, x = private_copy(make().double()), torch.randn(3, 4, dtype=torch.float64)
    chain = build_chain(net, x)
    seen = {}
    for path, module in net.named_modules():
        module.register_forward_hook(
            lambda _, args, out, path=path: seen.setdefault(path, out.clone())
        )
    net(x)
    features = dict(zip(chain.names, chain.features(x), strict=True))
    ends = [(path, stage.name) for stage in chain for path in stage.ends]
    assert len(ends) >= (0 if make is TwiceInside else 1)
    for path, name in ends:
        if path in seen:  # not the second name of a module
            torch.testing.assert_close(features[name], seen[path])
    assert not any(
        "layer" in path and path.endswith(".b") for path, _ in ends
    )  # what is overwritten is no output


@pytest.mark.parametrize(
    ("make", "path", "text"),
    [
        (
            Blocks,
            "layer2.0.b",
            r"split='layer2\.0\.b' lies inside stage 'layer2\.0\.add', which is not "
            r"opened: more than one tensor is under way inside it\. Nearest split points: "
            r"'layer1\.1\.act' before it, 'layer2\.0\.add' after it\. All: \['stem', ",
        ),
        (
            TwiceInside,
            "fc",
            r"split='fc' lies inside stage 'network', which is not opened: torch\.fx cannot follow "
            r"its forward \(symbolically traced variables cannot be used as inputs to control flow"
            r"\)\. To set targets inside it, pass the network as an nn\.Sequential of modules that "
            r"each take and return one tensor\. Nearest split points: 'network' after it\.",
        ),
        (
            TwiceInside,
            "fx",
            r"is not a split point of this network\. All: \['network'\]\. The network stays one "
            r"stage: torch\.fx cannot follow its forward \(sym.*\)\. To set targets in",
        ),
        (
            Summed,
            "fc",
            r"split='fc' lies inside stage 'network', which is not opened: nowhere inside it is "
            r"one tensor, one row a sample, all that is passed on\. To set targets inside it, pass",
        ),
        (
            lambda: nn.Sequential(
                nn.Unflatten(1, (2, 2)), nn.TransformerEncoderLayer(2, 1, 4, batch_first=True)
            ),
            "1.linear1",
            r"lies inside stage '1', which is not opened: it counts as "
            r"one layer\. Nearest split points: '1' after it",
        ),
        (
            Recurrent,
            "states",
            r"'states' lies inside stage 'getitem_6', which .* points: 'getitem' before it, '",
        ),
        (Blocks, "layer_2", r"is not a split point of this network\. Did you mean 'layer2'"),
        (Blocks, "unused", r"split='unused' is not a split point of this network\."),
    ],
)
def test_what_is_said_of_other_paths(make, path, text):
    with pytest.raises(ValueError, match=text):
        resolve_splits(path, chain_of(make))


def test_a_path_before_everything_that_learns():
    net = nn.Sequential(nn.Sequential(nn.Flatten(), nn.ReLU()), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"split='0' has nothing to train before it: .* is '1'"):
        resolve_splits("0", build_chain(net, torch.zeros(2, 4)))
