"""Conditions of what follows a feature: derivatives against torch's own and finite differences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.propagation import downstream as module
from featprop_sklearn.propagation.downstream import Downstream

N_SAMPLES, N_COORDINATES, N_OUTPUTS = 7, 6, 4


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(N_COORDINATES, 9), nn.Tanh(), nn.Linear(9, N_OUTPUTS))
    return net.double()


def tail_by_row(net):
    """Depend on the sample's number as well, as what leads past the split does."""
    return lambda value, rows: net(value.flatten(1)) * (1 + rows[:, None]).double().sqrt()


def downstream_of(tail):
    torch.manual_seed(1)
    feature = torch.randn(N_SAMPLES, 2, N_COORDINATES // 2).double()
    rows = torch.randperm(20)[:N_SAMPLES]
    y = torch.arange(N_SAMPLES) % N_OUTPUTS
    conditions = OutputTargets("multiclass", margin=0.5).conditions(tail(feature, rows).detach(), y)
    return Downstream(tail, feature, rows, conditions)


def jacobian_of(downstream, move, chosen, used):
    point, slack = downstream.slack(move, graph=True)
    return downstream.jacobian(move, chosen, used, point, slack)


def torch_jacobian(downstream, move):
    """Of every condition, one sample at a time."""
    found = []
    for i in range(len(downstream)):
        alone = downstream[torch.tensor([i])]

        def slack(flat, alone=alone):
            moved = (alone.feature.flatten(1) + flat).view_as(alone.feature)
            return alone.conditions.slack(alone.tail(moved, alone.rows))[0]

        found.append(torch.autograd.functional.jacobian(slack, move[i : i + 1])[:, 0])
    return torch.stack(found)


def pick(expected, chosen, used):
    rows = torch.arange(len(chosen))[:, None]
    return expected[rows, chosen] * used[..., None]


@given(
    seed=st.integers(0, 1000), share=st.floats(0, 1), common=st.sampled_from([0.0, 0.5, torch.inf])
)
def test_jacobian_is_that_of_torch(seed, share, common):
    downstream = downstream_of(tail_by_row(network()))
    torch.manual_seed(seed)
    move = torch.randn(N_SAMPLES, N_COORDINATES).double()
    chosen = torch.rand(N_SAMPLES, N_OUTPUTS).argsort(dim=1)[:, :3]
    used = torch.rand(N_SAMPLES, 3) < share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "COMMON", common)
        found = jacobian_of(downstream, move, chosen, used)
    expected = pick(torch_jacobian(downstream, move), chosen, used)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_jacobian_is_that_of_finite_differences():
    downstream = downstream_of(tail_by_row(network()))
    move = torch.zeros(N_SAMPLES, N_COORDINATES).double()
    chosen = torch.arange(N_OUTPUTS).expand(N_SAMPLES, -1)
    found = jacobian_of(downstream, move, chosen, torch.ones_like(chosen, dtype=torch.bool))
    label = torch.arange(N_SAMPLES) % N_OUTPUTS
    assert not found[torch.arange(N_SAMPLES), label].any()  # of no lead over itself
    width = 1e-6
    for k in range(N_COORDINATES):
        nudge = torch.zeros_like(move)
        nudge[:, k] = width
        after, before = downstream.slack(nudge)[1], downstream.slack(-nudge)[1]
        slope = torch.where(after.isfinite(), (after - before) / (2 * width), 0)
        torch.testing.assert_close(found[..., k], slope, rtol=0, atol=1e-8)


def test_derivatives_under_no_grad():
    downstream = downstream_of(tail_by_row(network()))
    move = torch.randn(N_SAMPLES, N_COORDINATES).double()
    chosen, used = torch.zeros(N_SAMPLES, 1).long(), torch.ones(N_SAMPLES, 1).bool()
    expected = pick(torch_jacobian(downstream, move), chosen, used)
    rare = used & (torch.arange(N_SAMPLES) == 3)[:, None]
    with torch.no_grad():
        torch.testing.assert_close(jacobian_of(downstream, move, chosen, used), expected)
        torch.testing.assert_close(
            jacobian_of(downstream, move, chosen, rare), expected * rare[..., None]
        )
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_a_tail_may_work_in_place(share):
    net = network()

    def in_place(value, rows):
        return net(value.mul_(2).flatten(1))

    downstream = downstream_of(lambda value, rows: net(2 * value.flatten(1)))
    expected = torch_jacobian(downstream, torch.zeros(N_SAMPLES, N_COORDINATES).double())
    feature = downstream.feature.clone()
    downstream = Downstream(in_place, downstream.feature, downstream.rows, downstream.conditions)
    torch.manual_seed(2)
    used = torch.rand(N_SAMPLES, N_OUTPUTS) < share
    chosen = torch.arange(N_OUTPUTS).expand(N_SAMPLES, -1)
    move = torch.zeros(N_SAMPLES, N_COORDINATES).double()
    found = jacobian_of(downstream, move, chosen, used)
    torch.testing.assert_close(found, expected * used[..., None])
    downstream.slack(move)
    assert torch.equal(downstream.feature, feature)


@pytest.mark.parametrize(
    "tail",
    [
        lambda value, rows: value.detach().flatten(1)[:, :N_OUTPUTS],
        lambda value, rows: torch.ones(len(rows), N_OUTPUTS).double().requires_grad_(),
    ],
    ids=["detached", "of something else"],
)
@pytest.mark.parametrize("common", [0.0, torch.inf])
def test_a_tail_without_derivatives_has_a_jacobian_of_zeros(monkeypatch, tail, common):
    monkeypatch.setattr(module, "COMMON", common)
    downstream = downstream_of(tail)
    move = torch.zeros(N_SAMPLES, N_COORDINATES).double()
    chosen = torch.arange(2).expand(N_SAMPLES, -1)
    found = jacobian_of(downstream, move, chosen, torch.ones_like(chosen, dtype=torch.bool))
    assert torch.equal(found, torch.zeros(N_SAMPLES, 2, N_COORDINATES).double())


def test_a_slack_without_a_graph_asks_for_none():
    downstream = downstream_of(tail_by_row(network().requires_grad_(False)))
    move = torch.randn(N_SAMPLES, N_COORDINATES).double()
    point, slack = downstream.slack(move)
    assert not point.requires_grad
    assert not slack.requires_grad
    assert point.shape == downstream.feature.shape
    torch.testing.assert_close(point.flatten(1), downstream.feature.flatten(1) + move)


def test_rare_conditions_take_one_row_each_and_common_ones_one_batch():
    net, sizes = network(), []

    def tail(value, rows):
        sizes.append(len(rows))
        return net(value.flatten(1))

    downstream = downstream_of(tail)
    chosen = torch.arange(3).expand(N_SAMPLES, -1)
    used = torch.zeros_like(chosen, dtype=torch.bool)
    used[:, 0] = True
    used[2, 1] = used[5, 2] = used[6, 1] = True
    move = torch.zeros(N_SAMPLES, N_COORDINATES).double()
    point, slack = downstream.slack(move, graph=True)
    sizes.clear()
    downstream.jacobian(move, chosen, used, point, slack)
    assert sizes == [3]
