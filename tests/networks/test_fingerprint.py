"""Fingerprints: the same for copies, different for whatever could give another result."""

import copy
import itertools
import operator
import os
import pickle
import subprocess
import sys
import threading
import types
from enum import Enum
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from featprop_sklearn.networks import build_chain, private_copy
from featprop_sklearn.networks.fingerprint import fingerprint, network_fingerprint
from tests.networks.cases import CASES

ROOT = Path(__file__).parents[2]


class Attributes(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.activation = torch.relu
        self.scales = [0.5, (1, 2), {"a": torch.ones(2), "b": np.arange(3)}]
        self.kept = {"p", "q", "r"}

    def forward(self, x):
        return self.activation(self.fc(x)) * self.scales[0]


def double_output(module, args, output):
    return 2 * output


def with_hook(hook=double_output):
    net = nn.Linear(2, 2)
    net.register_forward_hook(hook)
    return net


LAYERS = {
    "LSTM": lambda: nn.LSTM(2, 3),
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "encoder": lambda: nn.TransformerEncoderLayer(4, 2),
    "parameter list": lambda: nn.ParameterList([torch.ones(2), torch.zeros(1)]),
    "bfloat16": lambda: nn.Linear(2, 2, dtype=torch.bfloat16),
    "complex": lambda: nn.Linear(2, 2, dtype=torch.complex64),
    "attributes": Attributes,
    "hook": with_hook,
    "traced": lambda: torch.fx.symbolic_trace(Attributes()),
}
PARAMETRISED = {
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(2, 2)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(2, 2)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(2, 2)),
}
NETWORKS = {**{name: case.make for name, case in CASES.items()}, **LAYERS}


def fixed(make):
    torch.manual_seed(0)
    return make()


# equal ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_copies(name):
    net = fixed(NETWORKS[name])
    expected = network_fingerprint(net)
    assert len(expected) == 40
    assert network_fingerprint(net) == expected
    assert network_fingerprint(copy.deepcopy(net)) == expected
    assert network_fingerprint(pickle.loads(pickle.dumps(net))) == expected
    assert network_fingerprint(fixed(NETWORKS[name])) == expected


@pytest.mark.parametrize("name", PARAMETRISED)
def test_copies_of_parametrised_layers(name):
    net = fixed(PARAMETRISED[name])
    expected = network_fingerprint(net)
    assert network_fingerprint(copy.deepcopy(net)) == expected
    twin = copy.deepcopy(net)
    with torch.no_grad():
        next(twin.parametrizations.parameters()).add_(1.0)
    assert network_fingerprint(twin) != expected


@pytest.mark.parametrize("name", CASES)
def test_chains_of_copies(name):
    case = CASES[name]
    x = torch.rand(5, *case.shape, dtype=torch.float64)
    net = case.make().double()
    chains = [build_chain(private_copy(net), x) for _ in range(2)]
    assert network_fingerprint(chains[0]) == network_fingerprint(chains[1])
    with torch.no_grad():
        for parameter in chains[1].parameters()[-1:]:
            parameter += 1.0
    has_parameters = bool(chains[1].parameters())
    assert (network_fingerprint(chains[0]) != network_fingerprint(chains[1])) == has_parameters


PRINT_ALL = """
from tests.networks.test_fingerprint import NETWORKS, PARAMETRISED, fixed, network_fingerprint
for make in {**NETWORKS, **PARAMETRISED}.values():
    print(network_fingerprint(fixed(make)))
"""


def test_another_process():
    done = subprocess.run(
        [sys.executable, "-c", PRINT_ALL],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.split()
    here = [network_fingerprint(fixed(make)) for make in {**NETWORKS, **PARAMETRISED}.values()]
    assert printed == here
    assert len(set(here)) == len(here)


def test_device_attributes():
    nets = [nn.Linear(2, 2) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    nets[0].home, nets[1].home = torch.device("cpu"), torch.device("cuda", 1)
    assert network_fingerprint(nets[0]) == network_fingerprint(nets[1])


def test_hooks_count_from_zero():
    first, second = fixed(with_hook), fixed(with_hook)
    assert first._forward_hooks.keys() != second._forward_hooks.keys()
    assert network_fingerprint(first) == network_fingerprint(second)


# different -------------------------------------------------------------------------------


def change(name, make, alter):
    return pytest.param(make, alter, id=name)


def set_weight(net):
    with torch.no_grad():
        net.weight[1, 1] = torch.nextafter(net.weight[1, 1], torch.tensor(torch.inf))


def untie(net):
    net[1].weight = nn.Parameter(net[0].weight.detach().clone())


def tied():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    return net


def reverse(net):
    net._modules = dict(reversed(net._modules.items()))


def add_for_mul(net):
    for node in net.graph.nodes:
        node.target = operator.add if node.target is operator.mul else node.target
    net.recompile()


class SameLinear(nn.Linear):
    pass


def prepend_hook(net):
    net.register_forward_hook(lambda *_: None, prepend=True)


def with_two_hooks():
    net = with_hook()
    net.register_forward_hook(lambda *_: None)
    return net


@pytest.mark.parametrize(
    ("make", "alter"),
    [
        change("weight, last bit", lambda: nn.Linear(2, 2), set_weight),
        change("buffer", lambda: nn.BatchNorm1d(2), lambda net: net.running_var.mul_(2)),
        change("dtype", lambda: nn.Linear(2, 2), lambda net: net.to(torch.float64)),
        change("stride", lambda: nn.Conv2d(1, 1, 3), lambda net: setattr(net, "stride", (2, 2))),
        change("eps", lambda: nn.LayerNorm(2), lambda net: setattr(net, "eps", 1e-6)),
        change("dropout", lambda: nn.Dropout(0.5), lambda net: setattr(net, "p", 0.25)),
        change("mode", lambda: nn.Dropout(0.5), lambda net: net.eval()),
        change("frozen", lambda: nn.Linear(2, 2), lambda net: net.requires_grad_(False)),
        change("class", lambda: nn.Linear(2, 2), lambda net: setattr(net, "__class__", SameLinear)),
        change("order", lambda: nn.Sequential(nn.ReLU(), nn.Tanh()), reverse),
        change("name", lambda: nn.Sequential(nn.ReLU()), lambda net: net.add_module("1", net[0])),
        change("untied", tied, untie),
        change("hook added", lambda: nn.Linear(2, 2), prepend_hook),
        change("hooks reordered", with_two_hooks,
               lambda net: net._forward_hooks.move_to_end(next(iter(net._forward_hooks)))),
        change("forward of an instance", lambda: nn.ReLU(),
               lambda net: setattr(net, "forward", lambda x: x)),
        change("traced code", LAYERS["traced"], add_for_mul),
        change("function", Attributes, lambda net: setattr(net, "activation", torch.tanh)),
        change("number in a list", Attributes, lambda net: net.scales.__setitem__(0, 0.25)),
        change("tensor in a dict", Attributes, lambda net: net.scales[2]["a"].add_(1)),
        change("array in a dict", Attributes, lambda net: net.scales[2]["b"].sort()
               or net.scales[2]["b"].__setitem__(0, 7)),
        change("set", Attributes, lambda net: net.kept.add("s")),
        change("new attribute", Attributes, lambda net: setattr(net, "text", "x")),
        change("weight of an LSTM", lambda: nn.LSTM(2, 3),
               lambda net: net.weight_hh_l0.data.mul_(2)),
    ],
)  # fmt: skip
def test_changes(make, alter):
    net = make()
    before, twin = network_fingerprint(net), copy.deepcopy(net)
    alter(net)
    assert network_fingerprint(net) != before
    assert network_fingerprint(twin) == before


SOURCE = """
import torch
from torch import nn
import {helpers} as helpers

FACTOR = {factor}

def inner(x):
    return x * {inner}

def helper(x):
    return inner(x) + FACTOR

def make_local(offset):
    return lambda x: x + offset

class Parent(nn.Module):
    def post(self, x):
        return x - {parent}

class Net(Parent):
    bias = {member}

    def __init__(self):
        super().__init__()
        self.local = make_local({closure})
        self.literal = lambda x: x ** {literal}

    @property
    def width(self):
        return {property}

    @staticmethod
    def fixed(x, by={default}):
        return x + by

    def forward(self, x):
        if {forward} in (1, 2, 3):
            x = [helper(y) for y in x]
        return self.post(helpers.shift(x))
"""
FIELDS = (
    "factor", "inner", "parent", "member", "closure", "literal", "property", "default", "forward",
)  # fmt: skip


def from_source(monkeypatch, shift=1, **values):
    """Build a network as a user's file does whose import gives it these values."""
    helpers = types.ModuleType("users_helpers")
    exec(f"def shift(x):\n    return x + {shift}\nunused = {values}", helpers.__dict__)
    monkeypatch.setitem(sys.modules, "users_helpers", helpers)
    namespace = {"__name__": "users_network"}
    text = SOURCE.format(helpers="users_helpers", **{**dict.fromkeys(FIELDS, 1), **values})
    exec(text, namespace)
    return namespace["Net"]()


def test_the_same_code_again(monkeypatch):
    first, second = from_source(monkeypatch), from_source(monkeypatch)
    assert type(first) is not type(second)
    assert network_fingerprint(first) == network_fingerprint(second)


@pytest.mark.parametrize("field", [*FIELDS, "shift"])
def test_changes_of_code(monkeypatch, field):
    before = network_fingerprint(from_source(monkeypatch))
    assert network_fingerprint(from_source(monkeypatch, **{field: 2})) != before


def imports_a_users_module(x):
    from tests.networks import cases

    return cases, x


def imports_a_library(x):
    from torch import relu

    return relu(x)


def test_what_cannot_be_described_is_never_the_same():
    net = nn.Linear(2, 2)
    net.lock = threading.Lock()
    assert network_fingerprint(net) != network_fingerprint(net)
    del net.lock
    assert network_fingerprint(net) == network_fingerprint(net)
    assert fingerprint(x for x in ()) != fingerprint(x for x in ())
    net.hook = imports_a_users_module
    assert network_fingerprint(net) != network_fingerprint(net)
    net.hook = imports_a_library
    assert network_fingerprint(net) == network_fingerprint(net)
    lazy = nn.LazyLinear(2)
    assert network_fingerprint(lazy) != network_fingerprint(lazy)


# values ----------------------------------------------------------------------------------


class Choice(Enum):
    A = 1
    B = 2


DISTINCT = [
    (), (None,), (1,), (1.0,), (True,), ("1",), (b"1",), (1, 2), ((1, 2),), ((1,), 2), ([1, 2],),
    ({1, 2},), (frozenset({1, 2}),), ({1: 2},), ({2: 1},), ({"a": 1, "b": 2},), (0.0,), (-0.0,),
    (np.arange(4),), (np.arange(4.0),), (np.arange(4).reshape(2, 2),), (np.arange(4)[::-1],),
    (np.float64(1),), (np.array(1.0),), (np.array([1, "a"], dtype=object),),
    (torch.arange(4),), (torch.arange(4.0),), (torch.arange(4).reshape(2, 2),),
    (torch.tensor(1.0),), (torch.zeros(0),), (torch.zeros(0, 2),),
    (torch.zeros(2),), (torch.zeros(2, dtype=torch.int32),), (np.zeros(2),), (np.zeros(2, int),),
    (nn.Parameter(torch.tensor(1.0)),), (torch.float32,), ("torch.float32",),
    (Choice.A,), (Choice.B,), (nn.ReLU,), (nn.Tanh,), (torch.relu,),
    (nn.functional.max_pool1d,), (nn.functional.max_pool2d,),
    (partial(torch.flatten, start_dim=1),), (partial(torch.flatten, start_dim=2),),
    (types.SimpleNamespace(a=1),), (types.SimpleNamespace(a=2),), (slice(0, 2),), (slice(0, 3),),
]  # fmt: skip


def test_distinct_values():
    found = [fingerprint(*values) for values in DISTINCT]
    assert [fingerprint(*copy.deepcopy(values)) for values in DISTINCT] == found
    pairs = itertools.combinations(range(len(DISTINCT)), 2)
    assert not [(DISTINCT[i], DISTINCT[j]) for i, j in pairs if found[i] == found[j]]


def test_equal_values():
    array = np.arange(12.0).reshape(3, 4)
    assert fingerprint(array.T) == fingerprint(np.ascontiguousarray(array.T))
    tensor = torch.arange(12.0).reshape(3, 4)
    assert fingerprint(tensor.T) == fingerprint(tensor.T.contiguous())
    word = "".join(["a", "b"])
    assert fingerprint((word, "ab")) == fingerprint(("ab", "ab"))
    assert fingerprint({"a", "b", "c"}) == fingerprint({"c", "b", "a"})


def test_values_that_hold_themselves():
    loops = []
    for _ in range(2):
        loop = [1]
        loop.append(loop)
        loops.append(loop)
    assert fingerprint(loops[0]) == fingerprint(loops[1]) != fingerprint([1, [1]])
