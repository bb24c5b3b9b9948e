"""Split points as the chain has them, from one run of two rows and one of a single row."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from featprop_sklearn import split_points
from featprop_sklearn.networks import (
    WatchedRun,
    build_chain,
    chain_splits,
    is_layer,
    private_copy,
    resolve_splits,
)
from featprop_sklearn.networks.excerpt import excerpt
from featprop_sklearn.networks.outputs import tensors_in
from featprop_sklearn.networks.points import find_points
from featprop_sklearn.networks.recording import record
from tests.networks import test_replay as untraceable
from tests.networks.cases import CASES
from tests.networks.zoo import ZOO, call, digits

WIDTH = untraceable.WIDTH
PLAIN = nn.Sequential(
    nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 5)
)


# how often a network runs --------------------------------------------------------------------


def rows_of_calls(network, look):
    """List the rows in each call of the network, and of its layers, while it is looked at."""
    for path, module in network.named_modules():
        module.noted_as = path  # copies keep it
    rows = {}

    def note(module, args, output):
        path = getattr(module, "noted_as", None)
        if path == "" or (path and is_layer(module)):
            rows.setdefault(path, []).append(len(next(tensors_in(output)).value))

    with register_module_forward_hook(note):
        look()
    return rows


@pytest.fixture(params=ZOO, ids=lambda case: case.name)
def case(request):
    if request.param.package:
        pytest.importorskip(request.param.package)
    return request.param


def test_layers_run_on_a_few_rows_and_on_one(case):
    x, _ = digits(slice(0, 20), parity=case.parity)
    X, network = case.view(x), case.make().eval()
    once = rows_of_calls(network, lambda: call(network, X))
    rows = rows_of_calls(network, lambda: split_points(network, X))
    if case.name == "keywords":  # values leave torch, so the chain is built
        assert rows.pop("")[:2] == [2, 1]
        return
    assert rows.pop("") == [2, 1]
    assert rows
    # blocks that end in nn.Identity: whether the next one reads what that returns takes a run
    runs = 3 if case.name == "rtdl-ft-transformer" else 2
    for path, of_calls in rows.items():
        # what works in place has to be seen at it
        if not getattr(network.get_submodule(path), "inplace", False):
            assert len(of_calls) <= runs * len(once[path]), path


def test_a_plain_sequential_runs_twice():
    X = np.zeros((8, 1, 8, 8), dtype=np.float32)
    rows = rows_of_calls(PLAIN, lambda: split_points(PLAIN, X))
    assert rows == {path: [2, 1] for path in ("", "0", "1", "2", "3", "4")}


class InPlace(nn.Module):
    """Not for torch.fx, which cannot tell what a width is compared with."""

    def __init__(self, returned):
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.act, self.returned = nn.ReLU(inplace=True), returned

    def forward(self, x):
        refuse_width(x)
        h = self.a(x)
        out = self.act(h)
        return self.b(out if self.returned else h)


@pytest.mark.parametrize("returned", [True, False])
def test_whether_modules_may_work_on_copies_costs_one_run(returned):
    network, x = InPlace(returned).double(), untraceable.normal(8)
    rows = rows_of_calls(network, lambda: split_points(network, x))
    assert rows[""] == rows["a"] == ([2, 1, 2] if returned else [2, 1, 2, 2])
    assert split_points(network, x) == splits_of_chain(network, x)


# which splits there are ----------------------------------------------------------------------


def splits_of_chain(network, x):
    return chain_splits(build_chain(private_copy(network), x))


def listed(network, x):
    """Return what one run tells, or None."""
    network, run = private_copy(network), WatchedRun()
    with torch.no_grad():
        try:
            run(network, x)
        except Exception:
            return None
    return run.splits(network)


#: a trace is wrong, values leave torch, or a row alone comes back in another form
DOUBTFUL = {"wrong trace", "in-place, closed", "depends on data", "refuses one row"}


@pytest.mark.parametrize("name", CASES)
def test_splits_of_traceable_networks(name):
    network = CASES[name].make().double()
    x = torch.randn(8, *CASES[name].shape, dtype=torch.float64)
    found = listed(network, x)
    assert (found is None) == (name in DOUBTFUL)
    assert split_points(network, x) == splits_of_chain(network, x)
    assert found is None or found == split_points(network, x)


def refuse_width(x):
    """Stop torch.fx, which cannot tell what a width is compared with."""
    if x.shape[1] != WIDTH:
        raise ValueError("another width")


@pytest.fixture
def without_values(monkeypatch):
    """Let what stops torch.fx read no values."""
    monkeypatch.setattr(untraceable, "refuse_tracing", refuse_width)


@pytest.mark.parametrize(
    "make", [make for make in untraceable.NETWORKS if make is not untraceable.DataDependent]
)
@pytest.mark.usefixtures("without_values")
def test_splits_of_networks_that_are_watched(make):
    network, x = make().double(), untraceable.normal(8)
    chain = build_chain(private_copy(network), x)
    found = listed(network, x)
    assert found == chain_splits(chain)
    assert resolve_splits(found, chain) == found  # as fit takes them


@pytest.mark.parametrize("make", untraceable.NETWORKS)
def test_where_values_leave_torch_the_chain_is_built(make):
    network, x = make().double(), untraceable.normal(8)
    assert listed(network, x) is None
    assert split_points(network, x) == splits_of_chain(network, x)


@pytest.mark.parametrize("name", ["Counts", "Unseen", "Turned", "RefusesOneRow"])
def test_in_doubt_the_chain_is_built(name):
    network, x = getattr(untraceable, name)().double(), untraceable.normal(8)
    assert listed(network, x) is None
    if name != "Turned":  # not one row a sample
        assert split_points(network, x) == splits_of_chain(network, x)


def test_other_data_than_the_first_rows_do_not_matter_unless_values_leave_torch():
    torch.manual_seed(1)
    network = untraceable.DataDependent().double()
    x = untraceable.normal(8)
    with torch.no_grad():  # the first two rows take another way than all
        network.a.weight.copy_(torch.eye(WIDTH))
        network.a.bias.zero_()
        x[:2], x[2:] = -1.0, 1.0
    assert "relu" in split_points(network, x)
    assert split_points(network, x[:2])[1] == "tanh"


class Program(untraceable.Program):
    """Like its parent; what stops torch.fx may read no values."""

    def __init__(self, steps, reads):
        super().__init__(steps)
        self.reads = reads

    def forward(self, x):
        refuse_width(x)
        return super().forward(x) if self.reads else self.compute(x)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    steps=st.lists(untraceable.step, min_size=1, max_size=7),
    nested=st.booleans(),
    reads=st.booleans(),
)
def test_splits_of_random_networks(steps, nested, reads):
    network = Program(steps, reads).double()
    if nested:
        network = nn.Sequential(nn.Linear(WIDTH, WIDTH), network, nn.Tanh()).double()
    x = untraceable.normal(8)
    found = listed(network, x)
    assert (found is None) == reads
    assert found in (None, splits_of_chain(network, x))


class Block(nn.Module):
    """Not for torch.fx; a residual block, perhaps."""

    def __init__(self, inner, *, residual):
        super().__init__()
        self.inner, self.act, self.residual = inner, nn.Tanh(), residual

    def forward(self, x):
        refuse_width(x)
        y = self.inner(x)
        return self.act(x + y if self.residual else y)


def linear():
    return nn.Linear(WIDTH, WIDTH)


def shared():
    block = Block(nn.Sequential(linear(), nn.Tanh(), linear()), residual=False)
    return nn.Sequential(block, linear(), block)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(linear(), Block(nn.Identity(), residual=True), linear()),
        lambda: nn.Sequential(linear(), nn.Dropout(), Block(nn.Dropout(), residual=True)),
        lambda: nn.Sequential(linear(), Block(nn.ReLU(inplace=True), residual=True)),
        lambda: nn.Sequential(linear(), Block(nn.ReLU(inplace=True), residual=False), linear()),
        shared,
    ],
)
def test_what_modules_hand_on_or_share(make):
    network, x = make().double(), untraceable.normal(8)
    assert split_points(network, x) == splits_of_chain(network, x)


class Pixelwise(nn.Module):
    """Adds numbers of some hundreds to pixels, in rows of channels."""

    def __init__(self, channels):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(channels), nn.Linear(channels, channels)

    def forward(self, x):
        n, c, h, w = x.shape
        x = x.permute(0, 2, 3, 1).reshape(n, -1, c)
        x = x + 100 * self.fc(self.norm(x))
        return x.reshape(n, h, w, c).permute(0, 3, 1, 2)


def test_sums_in_another_order_do_not_close_a_network():
    torch.manual_seed(0)
    blocks = [Pixelwise(32) for _ in range(6)]
    network = nn.Sequential(nn.Conv2d(1, 32, 3), *blocks, nn.Conv2d(32, 4, 3))
    x = torch.randn(8, 1, 8, 8)
    splits = splits_of_chain(network, x)
    assert "6.permute_1" in splits
    assert split_points(network, x) == splits


def test_no_split_where_nothing_learns():
    assert split_points(nn.Sequential(nn.ReLU(), nn.Flatten()), np.zeros((2, 2, 2))) == []


@pytest.mark.usefixtures("without_values")
def test_what_the_user_froze_is_not_listed():
    network = untraceable.Body().double()
    network.embed.requires_grad_(False)
    network.token.requires_grad_(False)
    x = untraceable.normal(8)
    names = ["blocks.0", "blocks.1", "norm", "tanh", "head"]
    assert listed(network, x) == splits_of_chain(network, x) == names


# excerpts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (untraceable.Beside, "inner"),
        (untraceable.Parallel, "body"),
        (untraceable.Body, "norm"),
    ],
)
@torch.no_grad()
def test_an_excerpt_is_the_recording_of_the_part(make, path):
    network = make().double().eval()
    whole = record(network, untraceable.normal(8))
    part = network.get_submodule(path)
    (of_part,) = whole.calls[part]
    found = excerpt(whole, of_part.enters, of_part.leaves, path)
    alone = record(part, whole.events[of_part.enters].value)

    def looks(run):
        return [
            (event.call.path, event.leaving, event.value.shape, run.is_alone(event))
            for event in run.events
        ]

    assert looks(found) == looks(alone)
    assert [p.place for p in find_points(found)] == [p.place for p in find_points(alone)]
    assert set(found.calls) == set(alone.calls) - {part}
    start, first = found.events[0].time, alone.events[0].time
    for parameter in network.parameters():
        assert [time - start for time in found.reads_of(parameter)] == [
            time - first for time in alone.reads_of(parameter)
        ]
