"""What solver="auto" chooses, within which memory, and what it says about it."""

import pytest
import torch
from torch import nn

from featprop_sklearn import LayerInverter
from featprop_sklearn.inversion.affine import convolution_map
from featprop_sklearn.least_squares import (
    SOLVERS,
    AutoSolver,
    BatchMap,
    Cost,
    DiagonalMap,
    DirectSolver,
    MatrixMap,
    PreparedSolver,
    SolveResult,
)


class Huge(MatrixMap):
    def __init__(self, rows, columns):
        super().__init__(torch.zeros(1, 1))
        self.shape = (rows, columns)


def convolution(in_channels, out_channels, size, **options):
    torch.manual_seed(0)
    layer = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False, **options).double()
    return convolution_map(layer.requires_grad_(False), (in_channels, size, size))


@pytest.mark.parametrize(
    ("linear_map", "expected"),
    [
        (MatrixMap(torch.ones(3, 4)), "direct"),
        (DiagonalMap(torch.ones(50_000)), "direct"),
        (BatchMap(lambda d: d, lambda r: r, (3,), (3,)), "torch"),
        (Huge(2000, 8192), "direct"),
        (Huge(20_000, 20_000), "torch"),
        (convolution(1, 8, 8), "direct"),
        (convolution(2, 1, 64), "torus"),
        (convolution(16, 32, 32), "torus"),
    ],
)
def test_the_choice(linear_map, expected):
    assert AutoSolver().choose(linear_map, 0.0) == expected


def test_less_memory_leaves_less_to_choose_from():
    linear_map = convolution(8, 8, 32)
    costs = AutoSolver().costs(linear_map, 0.1)
    assert next(iter(costs)) == "torus"
    needed = costs["torus"].n_bytes
    chosen = AutoSolver(max_bytes=int(needed) - 1).choose(linear_map, 0.1)
    assert costs[chosen].n_bytes < needed
    assert AutoSolver(max_bytes=0).choose(linear_map, 0.1) in {"torch", "lsqr"}


def test_what_no_memory_suffices_for_is_left_to_the_least():
    costs = {"fat": Cost(1.0, 1.0, 1000.0), "fatter": Cost(0.1, 0.1, 2000.0)}
    assert [*AutoSolver(max_bytes=10)._within(costs)] == ["fat"]


@pytest.mark.parametrize(("set_up", "expected"), [(0.4, "second"), (0.6, "first")])
def test_what_takes_hardly_more_in_all_is_taken_if_its_calls_take_less(set_up, expected):
    costs = {"first": Cost(0.0, 1e-3, 0.0), "second": Cost(set_up, 0.9e-3, 0.0)}
    assert AutoSolver(n_samples=1000)._preferred(costs) == expected


def test_few_samples_are_not_worth_a_factorisation():
    linear_map = MatrixMap(torch.eye(1000) + 0.01 * torch.randn(1000, 1000))
    assert AutoSolver(n_samples=1).choose(linear_map, 1.0) == "torch"
    assert AutoSolver(n_samples=10_000).choose(linear_map, 1.0) == "direct"


def test_the_reason_names_the_chosen_first_and_the_others():
    rhs = torch.randn(2, 3).double()
    result = AutoSolver().prepare(MatrixMap(torch.randn(3, 4)), 0.0).solve(rhs)
    assert result.solver == "direct"
    assert result.reason.startswith("direct: ")
    assert "torch: " in result.reason
    named = DirectSolver().prepare(MatrixMap(torch.randn(3, 4)), 0.0).solve(rhs)
    assert named.reason == ""


def test_the_reason_says_what_had_too_much_memory():
    linear_map = convolution(4, 4, 16)
    prepared = AutoSolver(max_bytes=2**20).prepare(linear_map, 1.0)
    result = prepared.solve(torch.randn(1, *linear_map.out_shape).double())
    assert result.converged
    assert "MiB (too much memory)" in result.reason


def test_a_solver_of_ones_own_takes_part(monkeypatch):
    class Mine(DirectSolver):
        name = "mine"

        def cost(self, linear_map, damping):
            return Cost(0.0, 0.0, 0.0)

    class Shy(DirectSolver):
        name = "shy"

        def cost(self, linear_map, damping):
            return super(DirectSolver, self).cost(linear_map, damping)

    for solver in (Mine, Shy):
        monkeypatch.setitem(SOLVERS, solver.name, solver)
    costs = AutoSolver().costs(MatrixMap(torch.randn(3, 4)), 0.0)
    assert next(iter(costs)) == "mine"
    assert costs["shy"] == Cost()


class Stub(PreparedSolver):
    def __init__(self, name):
        self.name = name
        self.effort = 100.0 if name == "first" else 1.0

    def solve(self, rhs):
        return SolveResult(rhs, solver=self.name)


def stub(label, cost, prepared, squares=False):
    class One(DirectSolver):
        name = label

        def cost(self, linear_map, damping):
            return Cost(0.0, cost / 1000, 0.0)

        def prepare(self, linear_map, damping):
            prepared.append(label)
            return Stub(label)

    One.squares = squares
    return One


@pytest.mark.parametrize(
    ("costs", "tried", "taken"),
    [
        ((1e-12, 5e-11, 6e-11), ["first", "second"], "second"),
        ((1e-12, 1.5e-10, 6e-11), ["first", "third"], "third"),
        ((1e-12, 1.5e-10, 1.5e-10), ["first"], "first"),
    ],
)
def test_where_the_cheapest_has_to_iterate_the_next_is_tried(monkeypatch, costs, tried, taken):
    prepared = []
    for label, cost in zip(("first", "second", "third"), costs, strict=True):
        monkeypatch.setitem(SOLVERS, label, stub(label, cost, prepared))
    solver = AutoSolver().prepare(MatrixMap(torch.randn(3, 4)), 0.0)
    assert solver.solve(torch.randn(1, 3)).solver == taken
    assert prepared == tried


@pytest.mark.parametrize(
    ("second", "squares", "tried", "taken"),
    [
        # an effort of 100 lets one of 21 be expected of those that square the condition, too
        (4.7e-12, True, ["first", "second"], "second"),
        (4.9e-12, True, ["first"], "first"),
        (4.9e-12, False, ["first", "second"], "second"),
    ],
)
def test_an_effort_is_expected_of_others_alike(monkeypatch, second, squares, tried, taken):
    prepared = []
    monkeypatch.setitem(SOLVERS, "first", stub("first", 1e-12, prepared, squares=True))
    monkeypatch.setitem(SOLVERS, "second", stub("second", second, prepared, squares=squares))
    solver = AutoSolver().prepare(MatrixMap(torch.randn(3, 4)), 0.0)
    assert solver.solve(torch.randn(1, 3)).solver == taken
    assert prepared == tried


@pytest.mark.parametrize("limits", [{"max_bytes": "1 GB"}, {"max_bytes": -1}, {"n_samples": None}])
def test_limits_are_numbers(limits):
    (name,) = limits
    with pytest.raises(ValueError, match=f"{name} of AutoSolver must be a number >= 0; got"):
        AutoSolver(**limits).choose(MatrixMap(torch.randn(3, 4)), 0.0)


def test_a_class_is_not_a_solver():
    with pytest.raises(ValueError, match=r"Pass an instance, AutoSolver\(\)"):
        LayerInverter(nn.Linear(6, 3), solver=AutoSolver).fit(torch.randn(5, 6).numpy())


def test_a_solver_with_its_settings_serves_a_layer():
    X = torch.randn(5, 6).numpy()
    inverter = LayerInverter(nn.Linear(6, 3), solver=AutoSolver(max_bytes=2**20)).fit(X)
    assert inverter.result_.solver == "direct"
    assert "torch: " in inverter.result_.reason
    assert "AutoSolver(max_bytes=1048576)" in repr(inverter)
