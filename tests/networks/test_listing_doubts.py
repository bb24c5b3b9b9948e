"""Split points of networks that route, permute or leave out rows, or switch modes of torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from featprop_sklearn import describe, split_points
from featprop_sklearn.networks import WatchedRun, build_chain, chain_splits, private_copy

WIDTH = 4


def experts(x, gate):
    return gate(x).argmax(1)


# rows of their own for each module -----------------------------------------------------------


def masked(x, a, b, gate):
    out, chosen = torch.zeros_like(x), experts(x, gate)
    for number, expert in enumerate((a, b)):
        out[chosen == number] = expert(x[chosen == number])
    return out


def masked_if_any(x, a, b, gate):
    out, chosen = torch.zeros_like(x), experts(x, gate)
    for number, expert in enumerate((a, b)):
        mask = chosen == number
        if mask.any():
            out[mask] = expert(x[mask])
    return out


def indexed(x, a, b, gate):
    out, chosen = torch.zeros_like(x), experts(x, gate)
    for number, expert in enumerate((a, b)):
        rows = (chosen == number).nonzero()[:, 0]
        out = out.index_add(0, rows, expert(x.index_select(0, rows)))
    return out


def weighted(x, a, b, gate):
    out, shares = torch.zeros_like(x), gate(x).softmax(1)
    for number, expert in enumerate((a, b)):
        rows = torch.where(shares[:, number] > 0.4)[0]
        out.index_add_(0, rows, expert(x[rows]) * shares[rows, number, None])
    return out


def in_order(x, a, b, gate):
    chosen = experts(x, gate)
    order, first = chosen.argsort(), (chosen == 0).sum()
    y = x[order]
    return torch.cat([a(y[:first]), b(y[first:])])[order.argsort()]


def early_exit(x, a, b, gate):
    y = a(x)
    going_on = experts(y, gate) > 0
    out = y.clone()
    out[going_on] = b(y[going_on])
    return out


def early_exit_unless_empty(x, a, b, gate):
    y = a(x)
    rows = (gate(y)[:, 0] > 0).nonzero().flatten()
    return y.index_copy(0, rows, b(y[rows])) if len(rows) else y


# other rows, or all of them in another order -------------------------------------------------


def early_exit_in_place(x, a, b, gate):
    y = a(x)
    return torch.where(gate(y)[:, :1] > 0, y, b(y))


def flipped(x, a, b, gate):
    return b(a(x.flip(0)).flip(0))


def by_size(x, a, b, gate):
    order = gate(x)[:, 0].argsort()
    return b(a(x[order])[order.argsort()])


def mirrored(x, a, b, gate):
    right, left = a(torch.cat([x, -x])).chunk(2)
    return b(right - left)


def row_by_row(x, a, b, gate):
    return b(torch.cat([a(row) for row in x.split(1)]))


# modes of torch, and values that leave it ----------------------------------------------------


def autocast_inside(x, a, b, gate):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = a(x)
    return b(y.to(x.dtype))


def autocast_around(x, a, b, gate):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = b(torch.relu(a(x)))
    return y.to(x.dtype)


def no_grad_first(x, a, b, gate):
    with torch.no_grad():
        y = a(x)
    return b(y)


def no_grad_last(x, a, b, gate):
    y = b(torch.relu(a(x)))
    with torch.no_grad():
        scale = gate(y)[:, :1].sigmoid()
    return y * scale


def by_value(x, a, b, gate):
    y = a(x)
    return b(y) if y.sum().item() > 0 else torch.relu(y)


def through_numpy(x, a, b, gate):
    return b(torch.from_numpy(np.tanh(a(x).detach().numpy())))


def masked_by_attribute(x, a, b, gate):
    a.mask = torch.sigmoid(x)
    return b(a(x))


def plain(x, a, b, gate):
    return b(torch.relu(a(x)))


def same_dtype(x, a, b, gate):
    return b(a(x).to(x.dtype))


STEPS = {
    step.__name__: step
    for step in (
        *(masked, masked_if_any, indexed, weighted, in_order, early_exit, early_exit_unless_empty),
        *(early_exit_in_place, flipped, by_size, mirrored, row_by_row),
        *(autocast_inside, autocast_around, no_grad_first, no_grad_last),
        *(by_value, through_numpy, masked_by_attribute, plain, same_dtype),
    )
}


class Masked(nn.Module):
    """Multiplies by what others set on it."""

    def __init__(self):
        super().__init__()
        self.fc, self.mask = nn.Linear(WIDTH, WIDTH), None

    def forward(self, x):
        return self.fc(x) if self.mask is None else self.fc(x) * self.mask


MODULES = [
    lambda: nn.Linear(WIDTH, WIDTH),
    lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True), nn.Linear(WIDTH, WIDTH)),
    nn.Identity,
    Masked,
]


class Steps(nn.Module):
    """Steps one after the other; a check of the width stops torch.fx, if it is to."""

    def __init__(self, steps, *, traceable, kinds=(0,)):
        super().__init__()
        self.steps, self.traceable = steps, traceable
        self.parts = nn.ModuleList()
        for number, _ in enumerate(steps):
            chosen = [MODULES[kinds[(2 * number + i) % len(kinds)]]() for i in range(2)]
            self.parts.append(nn.ModuleList([*chosen, nn.Linear(WIDTH, 2)]))

    def forward(self, x):
        if not self.traceable and x.shape[1] != WIDTH:
            raise ValueError("another width")
        for step, parts in zip(self.steps, self.parts, strict=True):
            x = STEPS[step](x, *parts)
        return x


def of_chain(network, x):
    """List the split points of the chain, or say that there is none."""
    try:
        return chain_splits(build_chain(private_copy(network), x))
    except ValueError as error:
        return str(error)


def listed(network, x):
    """Return what one run tells, or None."""
    network, run = private_copy(network), WatchedRun()
    with torch.no_grad():
        try:
            run(network, x)
        except (RuntimeError, ValueError):  # as row_by_row, for no rows at all
            return None
    return run.splits(network)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("traceable", [True, False])
@pytest.mark.parametrize("step", STEPS)
def test_each_way(step, traceable, dtype):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(WIDTH, WIDTH), Steps([step], traceable=traceable)).to(dtype)
    x = torch.randn(8, WIDTH, dtype=dtype)
    expected = of_chain(network, x)
    assert listed(network, x) in (None, expected)
    assert split_points(network, x) == expected
    table = describe(network, x)
    assert list(table.index[table.split]) == expected


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    steps=st.lists(st.sampled_from(list(STEPS)), min_size=1, max_size=3),
    kinds=st.lists(st.integers(0, len(MODULES) - 1), min_size=1, max_size=6),
    traceable=st.booleans(),
    seed=st.integers(0, 3),
    double=st.booleans(),
)
def test_random_ways(steps, kinds, traceable, seed, double):
    torch.manual_seed(seed)
    dtype = torch.float64 if double else torch.float32
    network = Steps(steps, traceable=traceable, kinds=kinds).to(dtype)
    x = torch.randn(8, WIDTH, dtype=dtype)
    assert listed(network, x) in (None, of_chain(network, x))


@pytest.mark.parametrize("traceable", [True, False])
@pytest.mark.parametrize("step", ["early_exit_in_place", "flipped", "mirrored", "plain"])
def test_what_depends_on_no_values_is_listed_at_once(step, traceable):
    network, x = Steps([step], traceable=traceable), torch.randn(8, WIDTH)
    assert listed(network, x) == of_chain(network, x)


class Ordered(nn.Module):
    """Puts rows in order, and back; two in order already are the same in all three."""

    def __init__(self):
        super().__init__()
        self.gate, self.same, self.fc = nn.Linear(WIDTH, 1), nn.Identity(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        order = self.gate(x)[:, 0].argsort()
        return self.fc(self.same(x[order])[order.argsort()])


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.fc = Ordered(), nn.Linear(WIDTH, 2)

    def forward(self, x):
        return self.fc(self.inner(x).to(x.dtype))


def test_values_that_happen_to_be_the_same():
    torch.manual_seed(0)
    network, x = Around().double(), torch.randn(8, WIDTH, dtype=torch.float64)
    x = x[network.inner.gate(x)[:, 0].argsort()]
    assert of_chain(network, x) == ["inner.getitem", "inner.fc", "fc"]
    assert split_points(network, x) == of_chain(network, x)


class HandedOn(nn.Module):
    """A block as in networks without normalisation: a scale of one, a branch that starts at 0."""

    def __init__(self):
        super().__init__()
        self.act, self.fc = nn.ReLU(), nn.Linear(WIDTH, WIDTH)
        self.shortcut = nn.Sequential(nn.Identity(), nn.Linear(WIDTH, WIDTH))
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        x = self.act(x) * 1.0
        return self.shortcut(x) + self.gain * self.fc(x)


def test_the_same_values_where_a_module_hands_them_on():
    network, x = nn.Sequential(nn.Linear(WIDTH, WIDTH), HandedOn()), torch.randn(8, WIDTH)
    assert listed(network, x) == of_chain(network, x) == ["0", "1.act", "1.mul", "1.add"]


class Constants(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.mean = nn.Linear(2, 2), nn.Linear(2, 2), torch.ones(2)

    def forward(self, x):
        return self.b(self.a(x) * torch.tensor([1.0, 2.0]) - self.mean)


def test_constant_tensors_do_not_stop_a_trace():
    network, x = private_copy(Constants()), torch.randn(8, 2)
    chain = build_chain(network, x)
    assert chain.names == ["a", "mul", "sub", "b"]
    torch.testing.assert_close(chain(x[:3]), network(x[:3]))


def test_a_trace_leaves_nothing_on_submodules():
    network = private_copy(Steps(["masked_by_attribute"], traceable=True, kinds=[3]))
    build_chain(network, x := torch.randn(8, WIDTH))
    part = network.parts[0][0]
    assert part.mask is None or type(part.mask) is torch.Tensor
    assert torch.equal(network(x), network(x))
