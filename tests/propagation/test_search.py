"""The search itself: starts, limits, and what it keeps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn
from torch.autograd.functional import jacobian

from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.propagation.downstream import Downstream
from featprop_sklearn.propagation.search import Moves, most_competitors, search

AIM = 1e-4


def problem(seed, task="multiclass", hidden=12):
    torch.manual_seed(seed)
    deep = nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), nn.Linear(hidden, 4)) if hidden else None
    net = (deep or nn.Linear(6, 4)).double()
    feature = torch.randn(9, 6).double()
    output = net(feature).detach()
    y = {
        "multiclass": torch.arange(9) % 4,
        "multilabel": torch.arange(36).reshape(9, 4) % 2,
        "regression": output.roll(1, 0),
    }[task]
    conditions = OutputTargets(task, margin=0.0 if task == "regression" else 0.3).conditions(
        output, y
    )
    return Downstream(lambda value, rows: net(value), feature, torch.arange(9), conditions)


def run(downstream, start=None, allowed=None, max_steps=30, refinements=4):
    start = torch.zeros_like(downstream.feature) if start is None else start
    aim = torch.full((len(downstream),), AIM).double()
    return search(downstream, start, aim, allowed, max_steps=max_steps, refinements=refinements)


def violation(downstream, move):
    return downstream.conditions.violation(downstream.slack(move)[1])


problems = st.builds(
    problem,
    seed=st.integers(0, 1000),
    task=st.sampled_from(["multiclass", "multilabel", "regression"]),
    hidden=st.sampled_from([0, 12]),
)


@given(downstream=problems, spread=st.sampled_from([0.0, 0.5, 3.0]))
def test_what_is_kept_is_what_it_says(downstream, spread):
    start = spread * torch.randn_like(downstream.feature)
    found = run(downstream, start)
    missed = violation(downstream, found.move)
    torch.testing.assert_close(found.violation, missed, rtol=1e-9, atol=1e-12)
    allowance = AIM if downstream.conditions.equality else 0
    assert torch.equal(found.reached, missed <= allowance + 1e-15)
    expected = torch.where(found.reached, found.move.norm(dim=1), torch.inf)
    torch.testing.assert_close(found.length, expected)
    assert (missed <= violation(downstream, start) + 1e-12)[~found.reached].all()
    assert not found.blocked.any()  # tanh has derivatives everywhere


@settings(deadline=None, max_examples=15, derandomize=True)
@given(downstream=problems, size=st.floats(0.01, 1))
def test_moves_stay_within_their_limits(downstream, size):
    limits = torch.rand(2, *downstream.feature.shape).double() * size
    allowed = -limits[0], limits[1]
    found = run(downstream, allowed=allowed, max_steps=8)
    assert (found.move >= allowed[0]).all()
    assert (found.move <= allowed[1]).all()


@settings(deadline=None, max_examples=15, derandomize=True)
@given(seed=st.integers(0, 1000), task=st.sampled_from(["multiclass", "multilabel"]))
def test_more_refinements_are_never_longer(seed, task):
    downstream = problem(seed, task)
    start = 2 * torch.randn_like(downstream.feature)
    first, some, many = (run(downstream, start, refinements=n).length for n in (0, 2, 8))
    assert torch.isfinite(first).any()
    assert (some <= first * (1 + 1e-9)).all()
    assert (many <= some * (1 + 1e-9)).all()


def test_without_steps_the_start_is_kept():
    downstream = problem(0)
    start = torch.randn_like(downstream.feature)
    found = run(downstream, start, max_steps=0)
    assert torch.equal(found.move, start)
    torch.testing.assert_close(found.violation, violation(downstream, start))


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_behind_an_affine_tail_the_shortest_move_is_found_at_once(task):
    downstream = problem(3, task, hidden=0)
    passes = []

    def tail(value, rows, affine=downstream.tail):
        passes.append(len(rows))
        return affine(value, rows)

    found = run(Downstream(tail, downstream.feature, downstream.rows, downstream.conditions))
    assert found.reached.all()
    assert sum(passes) <= 6 * len(downstream)
    equality = downstream.conditions.equality
    for row in torch.arange(9):
        alone = downstream[row[None]]
        asked = torch.isfinite(alone.conditions.bounds[0])

        def slack(move, alone=alone, asked=asked):
            output = alone.tail(alone.feature + torch.as_tensor(move), alone.rows)
            return alone.conditions.slack(output)[0, asked] - (0 if equality else AIM)

        if equality or slack(np.zeros(6)).min() < -AIM:
            answer = minimize(
                lambda e: (e @ e / 2, e),
                np.zeros(6),
                jac=True,
                method="SLSQP",
                constraints={
                    "type": "eq" if equality else "ineq",
                    "fun": lambda e, slack=slack: slack(e).detach().numpy(),
                    "jac": lambda e, slack=slack: jacobian(slack, torch.tensor(e)).numpy(),
                },
            )
            assert answer.success
            np.testing.assert_allclose(found.length[row], np.linalg.norm(answer.x), rtol=1e-3)


def test_improve_takes_over_what_was_reached_alone():
    nowhere = torch.full((3,), torch.inf)
    moves = Moves(torch.zeros(3, 2), nowhere, torch.ones(3), torch.ones(3, dtype=torch.bool))
    other = Moves(
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        torch.tensor([torch.inf, 5.0]),
        torch.tensor([0.1, 0.0]),
        torch.tensor([False, False]),
    )
    moves.improve(torch.tensor([2, 0]), other)
    assert moves.move.tolist() == [[3, 4], [0, 0], [0, 0]]
    assert moves.length.tolist() == [5, torch.inf, torch.inf]
    assert moves.violation.tolist() == [0, 1, 1]
    assert moves.blocked.tolist() == [False, True, True]
    assert moves.reached.tolist() == [True, False, False]


def test_competitors_double_with_every_step_up_to_the_most():
    assert [most_competitors(steps, 6) for steps in (1, 2, 3, 30)] == [6, 12, 24, 64]
    assert [most_competitors(steps, 100) for steps in (1, 2, 30)] == [100, 100, 100]


def test_no_step_looks_at_more_competitors_than_the_most(monkeypatch):
    net = nn.Sequential(nn.Linear(40, 80), nn.Tanh(), nn.Linear(80, 300)).double()
    feature = torch.randn(6, 40).double()
    conditions = OutputTargets("multiclass", margin=3.0).conditions(
        net(feature).detach(), torch.arange(6)
    )
    widths, whole = [], Downstream.jacobian

    def jacobian_seen(self, move, chosen, *others):
        widths.append(chosen.shape[1])
        return whole(self, move, chosen, *others)

    monkeypatch.setattr(Downstream, "jacobian", jacobian_seen)
    run(Downstream(lambda value, rows: net(value), feature, torch.arange(6), conditions))
    assert widths[:3] == [6, 12, 24]
    assert max(widths) == 64
