"""LSQR over batches: a common inverse, first guesses, threads, and what it costs."""

import pickle

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from featprop_sklearn.inversion.affine import convolution_map
from featprop_sklearn.least_squares import (
    DiagonalMap,
    FunctionMap,
    LsqrSolver,
    MatrixMap,
    lsqr,
    solver,
)

STRUCTURES = {"wide": (12, 20, 12), "tall": (20, 12, 12), "deficient": (12, 20, 7)}


def factors(rows, columns, rank, condition):
    generator = np.random.default_rng(0)
    left = np.linalg.qr(generator.normal(size=(rows, rank)))[0]
    right = np.linalg.qr(generator.normal(size=(columns, rank)))[0]
    values = 3 * np.logspace(0, -np.log10(condition), rank)
    return left, torch.from_numpy(left * values @ right.T)


def right_hand_sides(rows, count, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, rows)))


def by_lstsq(a, rhs, damping):
    stacked = np.vstack([a.numpy(), damping * np.eye(a.shape[1])])
    padded = np.hstack([rhs.numpy(), np.zeros((len(rhs), a.shape[1]))])
    return torch.from_numpy(np.linalg.lstsq(stacked, padded.T, rcond=1e-12)[0].T)


def errors(found, expected):
    size = torch.linalg.vector_norm(expected, dim=1)
    return torch.linalg.vector_norm(found - expected, dim=1) / size


def convolution(c_in, c_out, size, **options):
    torch.manual_seed(0)
    layer = nn.Conv2d(c_in, c_out, 3, **options).double().requires_grad_(False)
    return convolution_map(layer, torch.Size((c_in, size, size)))


class Counter:
    """scipy's lsqr, keeping the iterations of each call."""

    def __init__(self, monkeypatch):
        self.iterations = []
        self.original = lsqr.lsqr
        monkeypatch.setattr(lsqr, "lsqr", self)

    def __call__(self, *arguments, **options):
        answer = self.original(*arguments, **options)
        self.iterations.append(answer[2])
        return answer


@pytest.mark.parametrize("shape", STRUCTURES.values(), ids=STRUCTURES)
@pytest.mark.parametrize("damping", [0.0, 0.01, 2.0])
@pytest.mark.parametrize("condition", [5.0, 1e4, 1e6])
def test_large_batches_are_as_accurate_as_samples_alone(shape, damping, condition):
    left, a = factors(*shape, condition)
    benign = torch.from_numpy(left[:, :2].T)  # small solutions, made of large ones that cancel
    rhs = torch.cat([right_hand_sides(shape[0], 60), benign])
    solve = LsqrSolver().prepare(MatrixMap(a), damping).solve
    result = solve(rhs)
    alone = torch.cat([solve(one[None]).solution for one in rhs])
    expected = by_lstsq(a, rhs, damping)
    assert result.converged
    assert errors(result.solution, expected).max() <= max(3 * errors(alone, expected).max(), 1e-13)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 8),
    rank=st.integers(1, 6),
    damping=st.sampled_from([0.0, 0.1]),
)
def test_gradient_vanishes_and_the_norm_is_least(rows, columns, rank, damping):
    _, a = factors(rows, columns, min(rank, rows, columns), 100.0)
    rhs = right_hand_sides(rows, 3 * rows)
    d = LsqrSolver().prepare(MatrixMap(a), damping).solve(rhs).solution
    assert ((rhs - d @ a.T) @ a - damping**2 * d).abs().max() <= 1e-11
    onto_row_space = torch.linalg.pinv(a, rtol=1e-12) @ a
    torch.testing.assert_close(d @ onto_row_space, d, rtol=0, atol=1e-10)


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_a_guess_far_off_is_corrected_to_the_damped_solution(damping, monkeypatch):
    _, a = factors(12, 20, 12, 30.0)
    rhs = right_hand_sides(12, 30)
    prepared = LsqrSolver().prepare(MatrixMap(a), damping)
    prepared.solve(rhs)
    off = prepared._inverse.rows + 0.1 * right_hand_sides(12, 12).numpy() @ a.numpy()
    prepared._inverse = prepared._inverse._replace(rows=off)
    calls = Counter(monkeypatch)
    solution = prepared.solve(rhs).solution
    assert min(calls.iterations) > 1
    assert errors(solution, by_lstsq(a, rhs, damping)).max() <= 1e-12


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_large_batches_take_far_fewer_iterations(damping, monkeypatch):
    _, a = factors(24, 96, 24, 30.0)
    rhs = right_hand_sides(24, 240)
    calls = Counter(monkeypatch)
    prepared = LsqrSolver().prepare(MatrixMap(a), damping)
    prepared.solve(rhs)
    shared = sum(calls.iterations)
    calls.iterations.clear()
    prepared.solve(rhs)
    again = sum(calls.iterations)
    calls.iterations.clear()
    for one in rhs:
        prepared.solve(one[None])
    alone = sum(calls.iterations)
    assert shared <= 0.4 * alone
    assert again <= 0.2 * alone


def test_nothing_depends_on_what_was_solved_before():
    _, a = factors(12, 20, 12, 1e3)
    small, large = right_hand_sides(12, 5), right_hand_sides(12, 40, seed=2)
    other = LsqrSolver().prepare(MatrixMap(2 * a), 0.1)
    first = LsqrSolver().prepare(MatrixMap(a), 0.1)
    second = LsqrSolver().prepare(MatrixMap(a), 0.1)
    before = first.solve(small), first.solve(large)
    other.solve(large)
    after = second.solve(large), second.solve(small)
    for one, same in zip(before, reversed(after), strict=True):
        assert torch.equal(one.solution, same.solution)
        assert one.iterations == same.iterations
    assert torch.equal(first.solve(large).solution, before[1].solution)


def test_a_limit_on_iterations_is_reported_for_large_batches():
    _, a = factors(12, 20, 12, 1e3)
    result = LsqrSolver(iter_lim=2).prepare(MatrixMap(a), 0.0).solve(right_hand_sides(12, 30))
    assert result.status == "not_converged"
    assert "30 of 30 samples: the limit on iterations was reached" in result.advice


def test_empty_rows_in_large_batches():
    _, a = factors(6, 9, 6, 10.0)
    rhs = right_hand_sides(6, 40)
    rhs[::3] = 0.0
    solution = LsqrSolver().prepare(MatrixMap(a), 0.0).solve(rhs).solution
    assert not solution[::3].any()
    assert errors(solution[1::3], by_lstsq(a, rhs, 0.0)[1::3]).max() <= 1e-13


@pytest.mark.parametrize("assembled", [True, False])
def test_threads_change_nothing(assembled, monkeypatch):
    if not assembled:
        monkeypatch.setattr(solver, "MATRIX_BYTES", 0)
    rhs = right_hand_sides(3 * 36, 12).reshape(12, 3, 6, 6)
    a = convolution(2, 3, 6, padding=1)
    alone = LsqrSolver().prepare(a, 0.1).solve(rhs)
    before = torch.get_num_threads()
    threaded = LsqrSolver(n_jobs=3).prepare(convolution(2, 3, 6, padding=1), 0.1).solve(rhs)
    assert torch.equal(alone.solution, threaded.solution)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("configured", [None, 2])
def test_threads_follow_joblib_and_do_not_multiply(configured, monkeypatch):
    seen = []

    def watched(*arguments, **options):
        seen.append(torch.get_num_threads())
        return original(*arguments, **options)

    original = lsqr.lsqr
    monkeypatch.setattr(lsqr, "lsqr", watched)
    monkeypatch.setattr(solver, "MATRIX_BYTES", 0)
    _, a = factors(12, 20, 12, 10.0)
    prepared = LsqrSolver().prepare(MatrixMap(a), 0.0)
    torch.set_num_threads(2)
    try:
        with joblib.parallel_config(backend="loky", n_jobs=configured):
            prepared.solve(right_hand_sides(12, 4))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert seen == [2 if configured is None else 1] * 4


def test_adjoint_keeps_its_own_graph_when_another_thread_replaces_it():
    class Interrupted(FunctionMap):
        """Between any two reads another thread has recorded a graph for another batch size."""

        @property
        def _graph(self):
            kept, self.kept = self.kept, (torch.zeros(5, 4), None)
            return kept

        @_graph.setter
        def _graph(self, value):
            self.kept = value

    linear_map = Interrupted(lambda values: 2 * values, (4,), (4,))
    rows = right_hand_sides(4, 3)
    origin = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    linear_map._graph = origin, 5 * origin
    assert torch.equal(linear_map.adjoint(rows), 5 * rows)


def test_prepared_solvers_can_be_pickled():
    rhs = right_hand_sides(2 * 16, 70).reshape(70, 2, 4, 4)
    prepared = LsqrSolver().prepare(convolution(3, 2, 4, padding=1), 0.0)
    expected = prepared.solve(rhs).solution
    assert torch.equal(pickle.loads(pickle.dumps(prepared)).solve(rhs).solution, expected)


@pytest.mark.parametrize(
    "linear_map",
    [
        MatrixMap(factors(12, 20, 12, 10.0)[1]),
        convolution(4, 6, 6, stride=2, groups=2),
        convolution(2, 3, 6, padding=1, dilation=2),
        convolution_map(nn.ConvTranspose2d(2, 4, 3, stride=2, groups=2).double(), (2, 3, 3)),
    ],
)
def test_the_cost_bounds_norm_and_memory(linear_map):
    stored = linear_map.sparse()
    assert linear_map.norm_bound() >= np.linalg.norm(stored.toarray(), 2)
    held = stored.data.nbytes + stored.indices.nbytes + stored.indptr.nbytes
    assert LsqrSolver().cost(linear_map, 0.0).n_bytes >= held - 8


def test_the_cost_counts_iterations():
    linear_map = convolution(4, 4, 16, padding=1)
    costs = [LsqrSolver().cost(linear_map, damping) for damping in (0.0, 1e-3, 1.0, 100.0)]
    times = [cost.per_sample for cost in costs]
    assert times[0] == times[1] > times[2] > times[3] > 0
    generic = FunctionMap(linear_map.apply, linear_map.in_shape, linear_map.out_shape)
    assert LsqrSolver().cost(generic, 1.0).per_sample > times[0]
    assert LsqrSolver().cost(DiagonalMap(torch.ones(1024)), 0.0).n_bytes == 16 * 1024


def test_nothing_is_assembled_beyond_one_gibibyte(monkeypatch):
    monkeypatch.setattr(solver, "MATRIX_BYTES", 0)
    cost = LsqrSolver().cost(convolution(2, 3, 6), 0.0)
    assert (cost.set_up, cost.n_bytes) == (0.0, 0.0)


@pytest.mark.parametrize(("channels", "assembled"), [(2, True), (8, False)])
def test_torch_multiplies_where_the_matrix_would_be_slower(channels, assembled):
    linear_map = convolution(channels, channels, 12, padding=1)
    rhs = right_hand_sides(linear_map.shape[0], 2)
    found = LsqrSolver().prepare(linear_map, 0.5).solve(rhs.reshape(2, *linear_map.out_shape))
    assert (linear_map._sparse is not None) == assembled
    expected = by_lstsq(linear_map.matrix(), rhs, 0.5)
    assert errors(found.solution.flatten(1), expected).max() <= 1e-11
