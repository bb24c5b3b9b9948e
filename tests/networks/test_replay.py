"""Networks that torch.fx cannot follow: cut where they can be, exact, and harmless."""

import copy
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F

from featprop_sklearn.inversion.prepare import prepare_inverter
from featprop_sklearn.networks import affine_sites, build_chain, private_copy, resolve_splits
from featprop_sklearn.networks.cutting import replay_segments
from featprop_sklearn.networks.fingerprint import network_fingerprint
from featprop_sklearn.networks.replay import Replay
from featprop_sklearn.networks.tracing import CannotOpenError

WIDTH = 6


def normal(rows=5, width=WIDTH):
    return torch.randn(rows, width, dtype=torch.float64)


def chain_of(network, rows=8):
    return build_chain(private_copy(network.double()), normal(rows))


def refuse_tracing(x):
    """Stop torch.fx, as checks of values do in many libraries."""
    if x.abs().max() > 1e9:
        raise ValueError("too large")


@dataclass
class Output:
    logits: torch.Tensor
    states: tuple


class Attended(nn.Module):
    """A residual block that returns a tuple, and is called by keyword."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.LayerNorm(WIDTH), nn.Dropout(0.5)
        self.mix, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, *, states, mask):
        mixed = F.gelu(self.mix(self.norm(states))) * mask
        return states + self.drop(self.out(mixed)), mixed


class Body(nn.Module):
    """Written as in transformers: a loop over blocks that are called by keyword."""

    def __init__(self):
        super().__init__()
        self.embed, self.token = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.randn(1, WIDTH))
        self.blocks = nn.ModuleList([Attended(), Attended()])
        self.norm, self.head = nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x, mask=None):
        refuse_tracing(x)
        mask = torch.ones(1, WIDTH, dtype=x.dtype) if mask is None else mask
        states = self.embed(x) + self.token
        kept = ()
        for block in self.blocks:
            states, mixed = block(states=states, mask=mask)
            kept += (mixed,)
        return Output(self.head(torch.tanh(self.norm(states))), kept)


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        x = self.a(x)
        x = torch.relu(x) if x.sum() > 0 else torch.tanh(x)
        return self.c(F.dropout(self.b(x), 0.5, self.training))


class Tied(nn.Module):
    """The weights of a module at work before its end, and of one that is never called."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.unused = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        refuse_tracing(x)
        x = self.b(torch.relu(self.a(x)))
        return F.linear(torch.tanh(F.linear(x, self.a.weight.t())), self.c.weight, self.c.bias)


class SharedBias(nn.Module):
    """Something computed from parameters alone is used in all layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.table = nn.Linear(2, WIDTH)

    def forward(self, x):
        refuse_tracing(x)
        x = self.a(x)
        bias = self.table(torch.ones(1, 2, dtype=x.dtype))
        return self.d(self.c(self.b(x + bias) + bias))


class LateToken(nn.Module):
    """A view of a parameter is handed on past a module."""

    def __init__(self):
        super().__init__()
        self.token, self.a = Token(), nn.Linear(WIDTH, WIDTH)
        self.b, self.c = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        refuse_tracing(x)
        token = self.token(len(x))
        return self.c(torch.relu(self.b(self.a(x) + token)))


class Token(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, WIDTH))

    def forward(self, rows):
        return self.weight.expand(rows, -1)


class Halves(nn.Module):
    """Two views of one tensor, and a part of one that is all that is left."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(3, 3)
        self.c, self.d = nn.Linear(3, WIDTH), nn.Linear(3, 3)

    def forward(self, x):
        refuse_tracing(x)
        upper, lower = self.a(x).chunk(2, dim=1)
        return self.d(self.c(self.b(upper) * lower)[:, 1:4])


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        refuse_tracing(x)
        h = self.act(self.a(x))
        out = self.b(h)
        out += h
        self.act(out)  # what it returns is not used
        return self.c(out)


class TimeFirst(nn.Module):
    """The batch is not the first dimension of what an idle module returned."""

    def __init__(self):
        super().__init__()
        self.rnn, self.a = nn.GRU(1, 4), nn.Linear(4, WIDTH)
        self.b, self.c = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x):
        refuse_tracing(x)
        sequence, _ = self.rnn(x.t()[..., None])
        x = self.a(sequence[-1])
        return self.c(torch.relu(self.b(x)) + x)


class Parallel(nn.Module):
    """Outputs beside the logits, some of them before."""

    def __init__(self):
        super().__init__()
        self.stem, self.side, self.late = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.body = Body()

    def forward(self, x):
        refuse_tracing(x)
        h = self.stem(x)
        side = self.side(h)
        out = self.body(h)
        return {"logits": out.logits, "side": side, "late": self.late(out.states[0])}


class Beside(nn.Module):
    """Like Parallel, but the logits alone are returned."""

    def __init__(self):
        super().__init__()
        self.stem, self.side = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.inner = nn.Sequential(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        refuse_tracing(x)
        h = self.stem(x)
        self.side(h)
        return self.head(self.inner(h))


NETWORKS = {
    Body: ["embed.input", "embed", "add", "blocks.0", "blocks.1", "norm", "tanh", "head"],
    DataDependent: ["a", "relu", "b", "dropout", "c"],
    Tied: ["a.input", "a", "relu", "b", "linear"],
    SharedBias: ["a.input", "a", "add", "c", "d"],
    LateToken: ["add", "b", "relu", "c"],
    Halves: ["a.input", "a", "mul", "c", "getitem", "d"],
    InPlace: ["a.input", "a", "act.relu", "c"],
    TimeFirst: ["getitem", "a", "add", "c"],
    Parallel: [
        *("stem.input", "stem", "body.input", "body.embed.input", "body.embed", "body.add"),
        "body.head.linear",
    ],
    Beside: ["stem.input", "stem", "inner.input", "inner.0.0", "inner.0.1", "head"],
}
each_network = pytest.mark.parametrize("make", NETWORKS)


def read(result):
    result = getattr(result, "logits", result)
    return result["logits"] if isinstance(result, dict) else result


def gradients(output, parameters):
    weights = torch.arange(output.numel(), dtype=output.dtype).sin().reshape(output.shape)
    return torch.autograd.grad((output * weights).sum(), parameters, allow_unused=True)


@pytest.fixture(autouse=True)
def _mostly_positive_sums():
    """One branch of the data-dependent networks for the rows that they are read on."""
    torch.manual_seed(1)


@each_network
def test_names_are_paths_or_functions(make):
    assert chain_of(make()).names == NETWORKS[make]


@each_network
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_chain_is_the_network_on_other_rows(make, rows):
    network = make().double().eval()
    chain = chain_of(network)
    for _ in range(3):
        x = normal(rows)
        torch.testing.assert_close(chain(x), read(network(x)), rtol=1e-12, atol=1e-12)


@each_network
def test_gradients_are_the_network_s(make):
    network = private_copy(make().double())
    chain = build_chain(network, normal(8))
    parameters, x = list(network.parameters()), normal()
    found = gradients(chain(x), parameters)
    for a, b in zip(found, gradients(read(network(x)), parameters), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@each_network
def test_every_parameter_is_at_work_in_one_stage(make):
    network = private_copy(make().double())
    chain = build_chain(network, normal(8))
    counts = Counter(id(p) for stage in chain for p in dict.fromkeys(stage.module.parameters()))
    own = {id(p): name for name, p in network.named_parameters()}
    assert set(counts) <= set(own)
    several = {own[key] for key, count in counts.items() if count > 1}
    if make is Tied:
        assert "a.weight" in several
        several -= {"a.weight", "unused.weight", "unused.bias"}  # another branch might use it
    assert not several


@each_network
def test_copies_share_parameters_among_themselves_alone(make):
    chain = chain_of(make())
    x = normal()
    for twin in (copy.deepcopy(chain), pickle.loads(pickle.dumps(chain))):
        assert torch.equal(twin(x), chain(x))
        assert len(twin.parameters()) == len(chain.parameters())
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in chain.parameters()}
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(0.5)
        assert not torch.equal(twin(x), chain(x))


def test_a_copied_stage_reads_a_parameter_where_the_others_train_it():
    network = private_copy(Tied().double())
    stages = copy.deepcopy(build_chain(network, normal(8)))
    by_name = dict(zip(stages.names, stages, strict=True))
    before = by_name["linear"].module(x := normal())
    with torch.no_grad():
        by_name["a"].module.weight.add_(1.0)
    assert not torch.equal(by_name["linear"].module(x), before)


@each_network
def test_states_of_the_stages_are_the_network_s(make):
    network = private_copy(make().double())
    chain = build_chain(network, normal(8))
    x = normal()
    before = read(network(x))
    states = [copy.deepcopy(stage.module.state_dict()) for stage in chain]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3)
    for stage, state in zip(chain, states, strict=True):
        stage.module.load_state_dict(state)
    assert torch.equal(read(network(x)), before)


@each_network
def test_fingerprints_are_equal_for_copies_and_differ_for_other_weights(make):
    torch.manual_seed(3)
    network, x = private_copy(make().double()), normal(8)
    chain = build_chain(network, x)
    twin = build_chain(copy.deepcopy(network), x)
    assert network_fingerprint(chain) == network_fingerprint(twin)
    assert network_fingerprint(chain) == network_fingerprint(copy.deepcopy(chain))
    with torch.no_grad():
        next(chain[-1].module.parameters()).add_(1.0)
    assert network_fingerprint(chain) != network_fingerprint(twin)


def test_stages_before_keep_their_statistics_and_dropout_in_train_mode():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)
            self.block, self.last = Attended(), nn.BatchNorm1d(WIDTH)

        def forward(self, x):
            refuse_tracing(x)
            x = self.norm(self.a(x)) * 2.0
            return self.last(self.block(states=x, mask=1.0)[0])

    network = private_copy(Network().double())
    by_name = {s.name: s.module for s in build_chain(network, normal(8))}
    block = by_name["block"]
    block.train()
    before = copy.deepcopy(network.state_dict())
    x = normal()
    draws = [block(x) for _ in range(2)]
    assert not torch.equal(*draws)  # its own dropout is at work
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    by_name["mul"].train()(x)
    assert torch.equal(network.norm.running_mean, before["norm.running_mean"])


def test_work_of_other_stages_is_not_done_again():
    network = private_copy(Body().double())
    runs = Counter()
    for path, module in network.named_modules():
        module.register_forward_hook(lambda *_, path=path: runs.update([path]))
    chain = build_chain(network, normal(8))
    runs.clear()
    chain(normal())
    assert set(runs.values()) == {1}


def test_a_stage_runs_in_several_threads():
    network = private_copy(Body().double())
    stage = build_chain(network, normal(8))[3].module
    assert isinstance(stage, Replay)
    inputs = [normal(rows) for rows in range(1, 9)] * 20
    expected = [stage(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for got, wanted in zip(pool.map(stage, inputs), expected, strict=True):
            assert torch.equal(got, wanted)


@each_network
def test_the_network_is_left_alone(make):
    network = private_copy(make().double())
    state = copy.deepcopy(network.state_dict())
    x = normal(8)
    given_x, expected = x.clone(), read(network(x))
    chain = build_chain(network, x)
    chain(x)
    assert torch.equal(x, given_x)
    assert torch.equal(read(network(x)), expected)
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("make", "path", "name"),
    [
        (Body, "blocks.0", "blocks.0"),
        (Body, "blocks.1", "blocks.1"),
        (Beside, "inner", "inner.0.1"),
        (Beside, "inner.0", "inner.0.1"),
        (Parallel, "body.head", "body.head.linear"),
    ],
)
def test_paths_of_modules_are_splits(make, path, name):
    assert resolve_splits(path, chain_of(make())) == [name]


def test_a_path_inside_a_replayed_stage():
    with pytest.raises(
        ValueError, match=r"split='blocks\.0\.mix' lies inside stage 'blocks\.0', which is not op"
    ):
        resolve_splits("blocks.0.mix", chain_of(Body()))


def test_affine_layers_in_replayed_stages_are_found_and_replaced():
    network = private_copy(Body().double())
    chain = build_chain(network, normal(8))
    x = normal()
    sites = {site.name: site for site in affine_sites(chain, normal(4))}
    linear = {m for m in network.modules() if isinstance(m, nn.Linear)}
    assert {site.layer for site in sites.values()} == linear
    for site in sites.values():
        inputs = chain[: site.stage](x)
        given, output = site.read(chain, inputs)
        torch.testing.assert_close(site.layer(given), output)
        rows = torch.tensor([3, 1])
        expected = chain(x)[rows]
        torch.testing.assert_close(site.tail(chain, inputs)(output[rows], rows), expected)


def test_targets_pass_backwards_as_through_the_same_function_written_alone():
    network = private_copy(Body().double())
    stage = build_chain(network, normal(8))[3]

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = network.blocks[0]

        def forward(self, x):
            return self.block(states=x, mask=torch.ones(1, WIDTH, dtype=x.dtype))[0]

    wanted, reference = normal(), normal()
    found, expected = (
        prepare_inverter(module, (WIDTH,)).invert(wanted, reference).solution
        for module in (stage.module, Alone().eval())
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_stage_changes_its_dtype_as_modules_do():
    network = private_copy(Body().float())
    chain = build_chain(network, normal(8).float())
    stage = copy.deepcopy(chain[3].module).double()
    assert isinstance(stage, Replay)
    x = normal()
    assert stage(x).dtype == torch.float64
    torch.testing.assert_close(stage(x), chain[3].module(x.float()).double(), rtol=1e-5, atol=1e-5)


def test_layers_of_torch_are_not_cut():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(WIDTH, WIDTH)
            self.layers = nn.ModuleList(
                nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True) for _ in range(2)
            )
            self.head = nn.Linear(WIDTH, 2)

        def forward(self, x):
            refuse_tracing(x)
            x = self.embed(x)[:, None]
            for layer in self.layers:
                x = layer(x)
            return self.head(x[:, 0])

    network = Encoder().double().eval()
    chain = chain_of(network)
    names = ["embed.input", "embed", "getitem", "layers.0", "layers.1", "getitem_2", "head"]
    assert chain.names == names
    x = normal()
    torch.testing.assert_close(chain(x), network(x))


def test_closed_parts_of_a_traced_network_are_opened():
    network = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), Beside(), nn.Softmax(dim=1))
    assert chain_of(network).names == [
        *("0", "1", "2.stem.input", "2.stem", "2.inner.input", "2.inner.0.0", "2.inner.0.1"),
        *("2.head", "3"),
    ]


# what must not be cut ---------------------------------------------------------------------


class Flagged(nn.Module):
    """What is decided early in Python counts late."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        turned = bool(x[0, 0] > 0)
        x = self.b(torch.tanh(self.a(x)))
        return self.c(-x if turned else x)


def test_decisions_that_outlive_a_tensor_are_seen_on_other_rows():
    network = Flagged().double().eval()
    x = normal(8)
    x[:, 0] = torch.linspace(1.0, -1.0, 8)
    chain = build_chain(private_copy(network), x)
    for rows in (x, -x, x[:1], x[-1:]):
        torch.testing.assert_close(chain(rows), network(rows))
    assert chain.names == ["neg", "c"]


class Repeats(nn.Module):
    """How often a module runs depends on the data."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        x = self.b(self.a(x))
        if x.abs().max() > 1e3:
            x = self.b(x)
        if x.abs().max() > 1e3:
            return x
        return self.c(x.exp())


class Leaves(Repeats):
    """Whether a module runs depends on the data."""

    def forward(self, x):
        x = self.a(x) + 1.0
        if x.abs().max() > 1e3:
            return self.b(x)
        return self.c(self.b(x) + x)


class Reenters(Repeats):
    """A part whose input is replaced as it is entered runs a second time."""

    def __init__(self):
        super().__init__()
        self.block = Attended()

    def forward(self, x):
        out, mixed = self.block(states=self.a(x) * 2.0, mask=1.0)
        if out.abs().max() > 1e3:
            out, mixed = self.block(states=out, mask=1.0)
        return self.c(out * mixed)


@pytest.mark.parametrize(
    ("make", "kind"), [(Repeats, "Linear"), (Leaves, "Leaves"), (Reenters, "Attended")]
)
def test_other_ways_through_the_network_are_refused(make, kind):
    chain = chain_of(make())
    assert len(chain) > 2
    with pytest.raises(
        RuntimeError,
        match=rf"{kind} is not called as on the rows that the network was read on: what its "
        r"forward does depends on the data\. Keep it, or the module around it, one stage: "
        r"featprop_sklearn\.networks\.treat_as_layer\(its type\), before fit\.",
    ):
        chain(1e9 * normal())
    x = normal()
    assert torch.equal(chain(x), chain(x.clone()))  # and nothing is left behind


class Outer(nn.Module):
    """Read by torch.fx, with something inside that is not."""

    def __init__(self):
        super().__init__()
        self.inner, self.c = Leaves(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        h = x * 2.0
        return self.c(self.inner(h).to(h.dtype) * 2.0)


def test_the_user_s_own_module_is_named_that_a_graph_was_read_in():
    chain = chain_of(Outer())
    graphs = [s for s in chain if isinstance(getattr(s.module, "original_network", 0), GraphModule)]
    assert graphs
    for twin in (chain, pickle.loads(pickle.dumps(chain))):
        with pytest.raises(RuntimeError, match=r"^Outer is not called as on the rows that"):
            twin(1e9 * normal())


class Outputs(nn.Module):
    """What is returned was handed on before, and something without rows computed since."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.same = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3), nn.Identity()

    def forward(self, x):
        refuse_tracing(x)
        h = self.b(self.same(self.a(x)))
        self.a(torch.ones(1, WIDTH, dtype=x.dtype))
        return self.same(h)


def test_a_stage_that_ends_with_the_network_is_its_output():
    assert chain_of(Outputs()).names[-1] == "output"
    assert chain_of(nn.Sequential(Outputs())).names[-1] == "0.output"


class OneRow(Repeats):
    def forward(self, x):
        return self.c(torch.relu(self.a(x) if len(x) > 1 else self.b(x)))


class RefusesOneRow(Repeats):
    def forward(self, x):
        return self.c(self.a(x).squeeze()[:, :])


class Counts(Repeats):
    """No run is like the one before."""

    def __init__(self):
        super().__init__()
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        return self.c(self.a(x) + self.runs)


class Unseen(Repeats):
    """Something is computed from parameters behind torch's back."""

    def forward(self, x):
        with torch._C.DisableTorchFunction():
            bias = self.b(torch.ones(1, WIDTH, dtype=x.dtype))
        return self.c(torch.tanh(self.a(x)) + bias)


class Summed(Repeats):
    def forward(self, x):
        return x + self.a(x)


class Turned(Repeats):
    def forward(self, x):
        return self.b(self.a(x)).t()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (nn.Identity, "it has no modules inside"),
        (Summed, "between the modules in it more than one tensor is under way"),
        (OneRow, "other modules in it run for a single row"),
        (RefusesOneRow, r"its runs cannot be followed \(.+\)"),
        (Counts, "no part of it does alone what it does inside"),
        (Unseen, "its parts would get other gradients than they get in it"),
        (Turned, "its input or its output is not one tensor, one row a sample"),
    ],
)
@torch.no_grad()
def test_why_a_module_is_not_cut(make, reason):
    with pytest.raises(CannotOpenError, match=f"^{reason}$"):
        replay_segments(make().double().eval(), normal(8))


# against brute force ----------------------------------------------------------------------


class Program(nn.Module):
    """Linear layers, each on one of the earlier values, some with another one added."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in steps)

    def forward(self, x):
        refuse_tracing(x)
        return self.compute(x)

    def compute(self, x):
        values = [x]
        for layer, (source, other, squash) in zip(self.layers, self.steps, strict=True):
            value = layer(values[max(0, len(values) - source)])
            if other:
                value = value + values[max(0, len(values) - other)]
            values.append(torch.tanh(value) if squash else value)
        return values[-1]


def decides(network, path, x, others):
    """Whether what a module returns, put back on other rows, brings the same output back."""
    kept = []
    module = network.get_submodule(path)
    with module.register_forward_hook(lambda _, args, out: kept.append(out.clone())):
        expected = network(x)
    with module.register_forward_hook(lambda *_: kept[0]):
        return torch.allclose(network(others), expected, rtol=1e-9, atol=1e-9)


step = st.tuples(st.integers(1, 3), st.integers(0, 3), st.booleans())


@settings(deadline=None, max_examples=25, derandomize=True)
@given(steps=st.lists(step, min_size=1, max_size=7))
def test_it_is_cut_wherever_a_module_s_output_decides_alone(steps):
    network = Program(steps).double().eval()
    x, others = normal(), normal()
    chain = build_chain(private_copy(network), normal(8))
    ends = {path for stage in chain for path in (stage.name, *stage.ends)}
    for index in range(len(steps)):
        path = f"layers.{index}"
        assert (path in ends) == decides(network, path, x, others), path
    torch.testing.assert_close(chain(others), network(others), rtol=1e-12, atol=1e-12)
