"""Chains: equal to the network for every batch size, well named, and harmless to it."""

import copy
import pickle
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from featprop_sklearn.networks import (
    Chain,
    Permute,
    Reshape,
    build_chain,
    chain,
    is_layer,
    layers,
    open_sequential,
    private_copy,
    private_layer,
    treat_as_layer,
)
from featprop_sklearn.networks.agreement import is_close
from tests.networks.cases import (
    CASES,
    FunctionalCNN,
    InPlaceClosed,
    OwnParameters,
    Permuted,
    Residual,
    TimeFirst,
    ViewBySize,
)

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def normal(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


def chain_of(case, rows=8, dtype=torch.float64):
    network = private_copy(case.make().to(dtype))
    return network, build_chain(network, normal(rows, *case.shape, dtype=dtype))


def stages_by_name(module, *shape):
    return {s.name: s for s in build_chain(private_copy(module.double()), normal(3, *shape))}


@each_case
def test_names_of_the_stages(case):
    assert chain_of(case)[1].names == case.names


@each_case
@each_dtype
def test_chain_equals_the_network_on_other_data_and_batch_sizes(case, dtype):
    network = case.make().to(dtype).eval()  # the user's own
    chain = build_chain(private_copy(network), normal(8, *case.shape, dtype=dtype))
    for rows in case.batch_sizes:
        x = normal(rows, *case.shape, dtype=dtype)
        assert torch.equal(chain(x.clone()), network(x.clone()))


@pytest.mark.parametrize("name", [name for name in CASES if 1 in CASES[name].batch_sizes])
def test_one_row_of_data_opens_the_network_as_well(name):
    case = CASES[name]
    network, chain = chain_of(case, rows=1)
    assert chain.names == case.names
    x = normal(5, *case.shape)
    assert torch.equal(chain(x.clone()), network(x.clone()))


@each_case
def test_shapes_of_the_stages_are_those_of_the_features(case):
    _, chain = chain_of(case)
    before = torch.Size(case.shape)
    for stage, feature in zip(chain, chain.features(normal(5, *case.shape)), strict=True):
        assert (stage.in_shape, torch.Size([5, *stage.out_shape])) == (before, feature.shape)
        before = stage.out_shape


@each_case
def test_no_stage_overwrites_the_data_or_a_feature(case):
    _, chain = chain_of(case)
    x = normal(5, *case.shape)
    given_x = x.clone()
    kept = list(chain.features(x))
    at_once = [f.clone() for f in chain.features(given_x.clone())]
    assert torch.equal(x, given_x)
    assert all(map(torch.equal, kept, at_once))


@each_case
def test_the_example_data_is_not_overwritten(case):
    x = normal(8, *case.shape)
    kept = x.clone()
    network = private_copy(case.make().double())
    build_chain(network, x)
    assert torch.equal(x, kept)
    network(x)  # the network itself may be run on the training data
    assert torch.equal(x, kept)


@each_case
def test_the_stages_hold_the_networks_own_parameters(case):
    network, chain = chain_of(case)
    assert {id(p) for p in chain.parameters()} == {id(p) for p in network.parameters()}
    assert len(chain.parameters()) == len(list(network.parameters()))


@each_case
def test_chain_survives_copy_and_pickle(case):
    _, chain = chain_of(case)
    x = normal(5, *case.shape)
    expected = chain(x)
    assert torch.equal(copy.deepcopy(chain)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(chain))(x), expected)


@given(data=st.data())
def test_random_nested_networks_keep_their_layers_in_order(data):
    width = 3
    leaves = st.sampled_from([nn.Linear, nn.Tanh, nn.ReLU, Residual])
    tree = data.draw(st.recursive(leaves, lambda inner: st.lists(inner, min_size=1, max_size=3)))

    def build(node):
        if isinstance(node, list):
            return nn.Sequential(*map(build, node))
        if node is nn.Linear:
            return nn.Linear(width, width)
        return node(width) if node is Residual else node()

    network = private_copy(nn.Sequential(build(tree)).double())
    chain = build_chain(network, normal(3, width))
    x = normal(2, width)
    assert torch.equal(chain(x), network(x))
    assert len(set(chain.names)) == len(chain)
    paths = {name for name, _ in network.named_modules()}
    assert set(chain.names) <= paths


def test_calls_become_layers_with_the_same_options():
    stages = stages_by_name(FunctionalCNN(), 1, 8, 8)
    types = {
        "relu": nn.ReLU,
        "max_pool2d": nn.MaxPool2d,
        "dropout": nn.Dropout,
        "flatten": Reshape,
        "softmax": nn.Softmax,
    }
    assert {name: type(stages[name].module) for name in types} == types
    assert stages["max_pool2d"].module.kernel_size == 2
    assert stages["softmax"].module.dim == 1


def test_a_view_with_sizes_read_from_the_data_becomes_a_reshape():
    assert isinstance(stages_by_name(ViewBySize(), 2, 4, 4)["reshape"].module, nn.Flatten)


def test_reordered_dimensions_are_explicit():
    stages = stages_by_name(Permuted(), 4, 5)
    assert isinstance(stages["transpose"].module, Permute)
    assert (stages["permute"].module.dims, stages["transpose"].module.dims) == ((0, 2, 1),) * 2


def test_names_are_numbered_around_names_that_are_taken():
    act, first, second = nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 3)

    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.act_2, self.act_3 = act, first, second

        def forward(self, x):
            return self.act(self.act_3(self.act(self.act_2(self.act(x)))))

    names = build_chain(private_copy(Again().double()), normal(3, 3)).names
    assert names == ["act", "act_2", "act_4", "act_3", "act_5"]


def test_composite_stages_can_be_trained():
    network = private_copy(OwnParameters().double())
    chain = build_chain(network, normal(3, 3))
    chain(normal(5, 3)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_slices_of_a_chain_are_chains():
    network = private_copy(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double())
    chain = build_chain(network, normal(3, 3))
    x = normal(5, 3)
    assert isinstance(chain[1:], Chain)
    assert (chain[-1].name, chain[1:].names) == ("2", ["1", "2"])
    assert torch.equal(chain[1:](chain[:1](x)), network(x))


def test_forwards_that_keep_a_feature_do_not_keep_a_proxy():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            self.feature = self.fc(x)
            if x.sum() > 0:  # the trace ends here
                return self.feature
            return -self.feature

    network = private_copy(Keeps().double())
    build_chain(network, normal(3, 3))
    assert type(network.feature) is torch.Tensor


def test_declared_layers_are_not_opened(monkeypatch):
    monkeypatch.setattr(layers, "_TREATED_AS_LAYERS", set())

    class Block(nn.Sequential):
        pass

    class Deeper(Block):
        pass

    network = nn.Sequential(Block(nn.Linear(3, 3), nn.ReLU()), Deeper(nn.Linear(3, 3), nn.Tanh()))
    assert not is_layer(network[0])
    treat_as_layer(Block)
    assert is_layer(network[1])
    assert build_chain(private_copy(network.double()), normal(3, 3)).names == ["0", "1"]
    assert [name for name, _ in open_sequential(network)] == ["0", "1"]


class Optional(nn.Module):
    """Arguments that nobody has to give, and children called by keyword."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x, mask=None, *, features=False, **more):
        h = self.norm(input=torch.relu(self.a(x)))
        if mask is not None:
            h = h * mask
        return (self.b(h), h) if features else self.b(h)


class Outer(nn.Module):
    """Gives a child what it takes anyway, or something else."""

    def __init__(self, **given):
        super().__init__()
        self.inner, self.given = Optional(), given

    def forward(self, x):
        return torch.tanh(self.inner(x=x, **self.given))


class SecondArgument(nn.Module):
    """The tensor is not what comes first."""

    def __init__(self):
        super().__init__()
        self.inner, self.fc = Backwards(), nn.Linear(3, 3)

    def forward(self, x):
        return self.inner(x=self.fc(x))


class Backwards(nn.Module):
    def forward(self, scale=None, x=None):
        return x.flip(1) if scale is None else scale


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (Optional, ["a", "relu", "norm", "b"]),
        (Outer, ["inner.a", "inner.relu", "inner.norm", "inner.b", "tanh"]),
        (
            lambda: Outer(mask=None, features=False),
            ["inner.a", "inner.relu", "inner.norm", "inner.b", "tanh"],
        ),
        (
            lambda: Outer(mask=2.0),
            ["inner.a", "inner.relu", "inner.norm", "inner.mul", "inner.b", "tanh"],
        ),
        (SecondArgument, ["fc", "inner"]),
    ],
)
def test_optional_arguments_and_keywords_are_no_obstacle(make, names):
    network = private_copy(make().double())
    chain = build_chain(network, normal(4, 3))
    assert chain.names == names
    x = normal(5, 3)
    assert torch.equal(chain(x), network(x))
    assert type(network) is type(make())
    assert torch.equal(pickle.loads(pickle.dumps(chain))(x), network(x))


class Reused(nn.Module):
    """Neither torch.fx can follow it, nor is there a module that runs just once."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(self.fc(x)) if x.sum() < 1e9 else x


class ReusedWrongly(Reused):
    def forward(self, x):
        return self.fc(self.fc(x)) * (1.0 if type(x) is torch.Tensor else 2.0)


def test_why_a_stage_is_closed_is_kept_with_it():
    closed = {
        make: build_chain(private_copy(make().double()), normal(8, 3))[-1].closed
        for make in (Reused, ReusedWrongly, CASES["layer"].make)
    }
    assert closed[Reused].startswith("torch.fx cannot follow its forward (symbolic")
    assert closed[ReusedWrongly] == "what torch.fx reads in its forward gives another output"
    assert closed[CASES["layer"].make] == "it counts as one layer"
    branching = chain_of(CASES["branches"])[1][1]
    assert (branching.name, branching.closed) == (
        "cat",
        "more than one tensor is under way inside it",
    )


def test_why_a_sequential_stays_closed():
    def opened(net, x):
        return chain._open(net, "", x, net(x))

    refuses = opened(CASES["refuses one row"].make().double().eval(), normal(3, 3))
    assert [stage.closed for stage in refuses] == ["its part '1' refuses a single row"]
    turned = nn.Sequential(nn.Linear(3, 3), TimeFirst()).double()
    (stage,) = opened(turned, normal(4, 2, 3))
    assert stage.closed == "its last part does not give one tensor with one row a sample"


def test_long_reasons_are_cut():
    class Talkative(nn.Module):
        def forward(self, x):
            if type(x) is not torch.Tensor:
                raise RuntimeError("no " * 500)
            return x * 1.0

    closed = build_chain(Talkative(), normal(3, 2))[0].closed
    assert closed.endswith("no ...)")
    assert len(closed) < 200


HALF = torch.tensor([1.0, 1.0078125], dtype=torch.bfloat16)  # neighbours
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("got", "expected", "close"),
    [
        (torch.tensor([1e3, 1e-4]), torch.tensor([1e3, 3e-4]), True),  # what is left of 1e3 - 1e3
        (torch.tensor([1e3, 0.0]), torch.tensor([1e3, 1e-1]), False),
        (torch.tensor([1e-8, 2e-8]), torch.tensor([2e-8, 1e-8]), False),
        (torch.tensor([1e3, 1e-4]).double(), torch.tensor([1e3, 3e-4]).double(), False),
        (torch.zeros(2), torch.zeros(2), True),
        (torch.empty(0, 2), torch.empty(0, 2), True),
        (HALF, HALF.flip(0), True),
        (HALF, 2 * HALF, False),
        (torch.tensor([1e3 + 1e-4j]), torch.tensor([1e3 + 3e-4j]), True),
        (torch.tensor([10**6, 0]), torch.tensor([10**6 + 1, 0]), False),
        (torch.tensor([True, False]), torch.tensor([True, False]), True),
        (torch.tensor([INF, 1.0]), torch.tensor([INF, 1.0]), True),
        (torch.tensor([INF, 1.0]), torch.tensor([INF, 2.0]), False),
        (torch.tensor([INF, 1.0]), torch.tensor([-INF, 1.0]), False),
        (torch.tensor([NAN, 1.0]), torch.tensor([NAN, 1.0]), False),  # tells nothing
        (torch.ones(2), torch.ones(2).double(), False),
        (torch.ones(1, 2), torch.ones(2), False),
        ((torch.ones(2),), torch.ones(2), False),
    ],
    ids=str,
)
def test_up_to_rounding(got, expected, close):
    assert is_close(got, expected) == close


class TestPrivateCopy:
    def test_leaves_the_network_as_it_was(self):
        network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), InPlaceClosed()).double()
        network[0].bias.requires_grad_(False)
        handle = network[1].register_forward_hook(lambda *_: None)
        before = copy.deepcopy(network.state_dict())
        twin = private_copy(network)
        build_chain(twin, normal(3, 3))
        assert network.training
        assert network[1].inplace
        assert not network[0].bias.requires_grad
        assert list(network[1]._forward_hooks) == [handle.id]
        assert not network[2]._forward_pre_hooks
        assert all(torch.equal(before[key], t) for key, t in network.state_dict().items())
        assert not {id(p) for p in network.parameters()} & {id(p) for p in twin.parameters()}

    def test_is_in_eval_mode(self):
        twin = private_copy(nn.Sequential(nn.Dropout(), nn.ReLU()))
        assert not any(layer.training for layer in twin.modules())

    def test_what_is_done_in_place_and_not_returned_still_counts(self):
        class Ignores(nn.Module):
            def __init__(self):
                super().__init__()
                self.act = nn.ReLU(inplace=True)

            def forward(self, x):
                self.act(x)
                return x

        network = nn.Sequential(nn.Linear(3, 4), Ignores(), nn.Linear(4, 2)).double()
        x = normal(5, 3)
        twin = private_copy(network)
        chain = build_chain(twin, x)
        expected = network(x)
        torch.testing.assert_close(chain(x), expected)
        torch.testing.assert_close(twin(x), expected)
        features = list(chain.features(x))
        torch.testing.assert_close(features[0], network[0](x))
        assert (features[1] >= 0).all()

    def test_a_private_layer_overwrites_nothing(self):
        x = normal(5, 3)
        given = x.clone()
        private_layer(nn.ReLU(inplace=True))(given)
        assert torch.equal(given, x)

    def test_what_cannot_be_copied(self):
        network = nn.Linear(2, 2)
        network.lock = threading.Lock()
        with pytest.raises(
            ValueError, match=r"module \(Linear\) cannot be copied with copy\.deepcopy: .*\. The "
        ):
            private_copy(network)


class TestErrors:
    def test_shape_refused(self):
        with pytest.raises(
            ValueError,
            match=r"The network \(Conv2d\) refused X of shape \(n_samples, 16\) and dtype "
            r"torch\.float32: .*Pass X in the shape that the network takes, or 2-D with "
            r"input_shape=\(\.\.\.\)",
        ):
            build_chain(nn.Conv2d(1, 1, 3), torch.zeros(2, 16))

    def test_tuple_returned(self):
        with pytest.raises(
            ValueError,
            match=r"The network \(LSTM\) must return one tensor; it returned tuple, in which no .*"
            r"\[0\] \(2, 5, 2\).*\. Wrap it in a module that returns the logits or values alone",
        ):
            build_chain(nn.LSTM(3, 2, batch_first=True), torch.zeros(2, 5, 3))

    @pytest.mark.parametrize(
        ("layer", "shape"), [(nn.Flatten(0), r"\(12,\)"), (nn.MSELoss(), r"\(\)")]
    )
    def test_wrong_number_of_rows(self, layer, shape):
        class Network(nn.Module):
            def forward(self, x):
                return layer(x, x) if isinstance(layer, nn.MSELoss) else layer(x)

        with pytest.raises(
            ValueError,
            match=r"The network \(Network\) must return one row per sample; for 2 samples it "
            f"returned shape {shape}",
        ):
            build_chain(Network(), torch.zeros(2, 6))

    def test_sequential_opened_without_data(self):
        network = nn.Sequential(nn.Sequential(nn.Linear(3, 3)), nn.Sequential(Residual(3)))
        with pytest.raises(
            ValueError,
            match=r"1\.0 \(Residual\) is neither a torch layer nor an nn\.Sequential: .* Pass a "
            "few rows of data as X=, or register its inversion",
        ):
            open_sequential(network)


def test_sequential_opens_without_data():
    network = CASES["nested Sequential"].make()
    assert [name for name, _ in open_sequential(network)] == CASES["nested Sequential"].names
    layer = nn.ReLU()
    assert open_sequential(layer) == [("network", layer)]


def test_rows_may_be_counted_by_len():
    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 3))
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            x = torch.stack([self.token.expand(len(x), -1), self.first(x)], dim=1)
            return self.second(x).reshape(len(x), 2 * len([1, 2]))

    x = torch.randn(5, 3)
    module = Token().eval()
    chain = build_chain(module, x)
    assert len(chain) > 1
    torch.testing.assert_close(chain(x), module(x))
    torch.testing.assert_close(pickle.loads(pickle.dumps(chain))(x[:2]), module(x[:2]))
    assert "len" not in Token.forward.__globals__
