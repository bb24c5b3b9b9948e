"""Every solver on every structure, against ``numpy.linalg.lstsq`` on the stacked system.

Exact solves (λ = 0) are tested for nonzero singular values within a factor 1e4; beyond that
the damping takes over, and solvers are compared under it.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featprop_sklearn.least_squares import (
    SOLVERS,
    BatchMap,
    DiagonalMap,
    DirectSolver,
    KrylovSolver,
    LsqrSolver,
    MatrixMap,
    SelectionMap,
    direct,
    get_solver,
    lsqr,
    resolve_damping,
    solver,
)

# the torus solver knows convolutions alone: test_torus.py
each_solver = pytest.mark.parametrize("name", sorted(set(SOLVERS) - {"torus"}))


def matrix(rows, columns, condition=10.0, rank=None, seed=0):
    generator = np.random.default_rng(seed)
    rank = min(rows, columns) if rank is None else rank
    left = np.linalg.qr(generator.normal(size=(rows, rank)))[0]
    right = np.linalg.qr(generator.normal(size=(columns, rank)))[0]
    values = 3 * np.logspace(0, -np.log10(condition), rank)
    return torch.from_numpy(left * values @ right.T)


def right_hand_sides(rows, count=3, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, rows)))


def by_lstsq(a, rhs, damping):
    stacked = np.vstack([a.numpy(), damping * np.eye(a.shape[1])])
    padded = np.hstack([rhs.numpy(), np.zeros((len(rhs), a.shape[1]))])
    return torch.from_numpy(np.linalg.lstsq(stacked, padded.T, rcond=None)[0].T)


def assert_near(found, expected, relative):
    error = torch.linalg.vector_norm(found - expected, dim=-1)
    assert (error <= relative * torch.linalg.vector_norm(expected, dim=-1)).all(), error


STRUCTURES = {
    "wide": (12, 20, None),
    "tall": (20, 12, None),
    "square": (15, 15, None),
    "rank-deficient wide": (12, 20, 7),
    "rank-deficient tall": (20, 12, 7),
    "one row": (1, 9, None),
    "one column": (9, 1, None),
}


@each_solver
@pytest.mark.parametrize("shape", STRUCTURES.values(), ids=STRUCTURES)
@pytest.mark.parametrize("damping", [0.0, 0.01, 2.0])
@pytest.mark.parametrize("condition", [5.0, 1e4])
def test_agrees_with_lstsq(name, shape, damping, condition):
    a = matrix(*shape[:2], condition, shape[2])
    rhs = right_hand_sides(shape[0])
    result = get_solver(name).prepare(MatrixMap(a), damping).solve(rhs)
    assert_near(result.solution, by_lstsq(a, rhs, damping), 1e-8)
    assert (result.status, result.advice, result.damping) == ("converged", "", damping)
    assert result.solver == (name if name != "auto" else "direct")


@each_solver
@given(
    rows=st.integers(1, 8),
    columns=st.integers(1, 8),
    rank=st.integers(1, 8),
    damping=st.sampled_from([0.0, 0.1]),
    count=st.integers(1, 5),
)
def test_gradient_vanishes_and_the_norm_is_least(name, rows, columns, rank, damping, count):
    a = matrix(rows, columns, 100.0, min(rank, rows, columns))
    rhs = right_hand_sides(rows, count)
    d = get_solver(name).prepare(MatrixMap(a), damping).solve(rhs).solution
    gradient = (rhs - d @ a.T) @ a - damping**2 * d
    assert gradient.abs().max() <= 1e-11
    onto_row_space = torch.linalg.pinv(a, rtol=1e-12) @ a
    torch.testing.assert_close(d @ onto_row_space, d, rtol=0, atol=1e-10)


@each_solver
def test_condition_1e8_is_tamed_by_the_automatic_damping(name):
    a = MatrixMap(matrix(40, 40, 1e8))
    damping = resolve_damping(a, "auto")
    rhs = right_hand_sides(40)
    result = get_solver(name).prepare(a, damping).solve(rhs)
    assert result.damping == damping == pytest.approx(3e-3, rel=1e-6)
    assert result.converged
    assert_near(result.solution, by_lstsq(a.matrix(), rhs, damping), 1e-6)


@each_solver
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_shaped_maps_in_closed_form_or_not(name, damping):
    maps = [
        DiagonalMap(torch.tensor([[2.0, 0.0], [-1.0, 1e-3]])),
        SelectionMap(torch.tensor([1, 1, -1, 0, 3, 1]), (2, 2)),
    ]
    for a in maps:
        rhs = right_hand_sides(a.shape[0]).reshape(-1, *a.out_shape)
        d = get_solver(name).prepare(a, damping).solve(rhs).solution
        assert d.shape == (3, *a.in_shape)
        expected = by_lstsq(a.matrix(), rhs.reshape(3, -1), damping)
        assert_near(d.reshape(3, -1), expected, 1e-8)


@each_solver
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_nothing_to_do(name, damping):
    rhs = right_hand_sides(3)
    zero_map = MatrixMap(torch.zeros(3, 4, dtype=torch.float64))
    of_zero_map = get_solver(name).prepare(zero_map, damping).solve(rhs)
    prepared = get_solver(name).prepare(MatrixMap(matrix(3, 4)), damping)
    for result in (of_zero_map, prepared.solve(0 * rhs)):
        assert result.converged
        assert torch.equal(result.solution, torch.zeros(3, 4, dtype=torch.float64))
    assert prepared.solve(rhs[:0]).solution.shape == (0, 4)


@each_solver
@pytest.mark.parametrize("size", [1e-120, 1e-9, 1e9, 1e120])
def test_solution_scales_with_the_right_hand_side(name, size):
    prepared = get_solver(name).prepare(MatrixMap(matrix(8, 6)), 0.1)
    rhs = right_hand_sides(8)
    assert_near(prepared.solve(size * rhs).solution / size, prepared.solve(rhs).solution, 1e-10)


@pytest.mark.parametrize("damping", [0.0, 1e-3, 0.3])
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (15, 15)])
@pytest.mark.parametrize("condition", [10.0, 1e6])
def test_the_decomposition_is_only_taken_where_rank_is_in_doubt(shape, condition, damping):
    a = matrix(*shape, condition)
    inverse = direct.by_factors(a, damping)
    # both lose the condition, and neither its square
    expected = direct.by_svd(MatrixMap(a), damping)
    assert_near(inverse, expected, 1e-14 * condition)
    wanted = right_hand_sides(shape[1]) @ torch.linalg.pinv(a) @ a
    rhs = wanted @ a.T
    assert_near(rhs @ inverse, by_lstsq(a, rhs, damping), 1e-14 * condition)
    for little in (0.0, 1e-5):
        assert direct.by_factors(matrix(*shape, 10.0, rank=7), little) is None
    assert direct.by_factors(matrix(*shape, 1e12), 0.0) is None
    assert direct.by_factors(torch.full(shape, torch.nan).double(), damping) is None


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (15, 15)])
@pytest.mark.parametrize("damping", [1e-8, 1e-6, 1e-4, 1e-2])
def test_a_little_damping_does_not_magnify_what_rounding_makes_of_zero(shape, damping):
    a = matrix(*shape, 10.0, rank=7)
    rhs = right_hand_sides(shape[0])
    found = DirectSolver().prepare(MatrixMap(a), damping).solve(rhs).solution
    left, values, right = torch.linalg.svd(a, full_matrices=False)
    factors = torch.where(values > 0.1, values / (values**2 + damping**2), 0.0)
    assert_near(found, rhs @ (left * factors) @ right, 1e-7)


def test_a_decomposition_that_is_there_is_used(monkeypatch):
    a = MatrixMap(matrix(12, 20))
    expected = DirectSolver().prepare(a, 0.1).solve(right_hand_sides(12)).solution
    a.svd()
    monkeypatch.setattr(direct, "by_factors", None)
    found = DirectSolver().prepare(a, 0.1).solve(right_hand_sides(12)).solution
    assert_near(found, expected, 1e-12)


def test_direct_refuses_a_matrix_beyond_one_gibibyte():
    a = BatchMap(None, None, (20_000,), (10_000,))
    a.provides = ("apply", "adjoint", "matrix")
    message = r"needs the dense matrix of the BatchMap.*shape \(10000, 20000\) would take 1.5 GiB"
    with pytest.raises(ValueError, match=message):
        DirectSolver().prepare(a, 0.0)


def test_lsqr_says_when_it_stops_early():
    result = (
        LsqrSolver(iter_lim=2)
        .prepare(MatrixMap(matrix(20, 20, 1e3)), 0.0)
        .solve(right_hand_sides(20))
    )
    assert result.status == "not_converged"
    assert result.iterations == 2
    assert result.residual > 1e-6
    assert "3 of 3 samples: the limit on iterations was reached" in result.advice
    assert "larger damping" in result.advice


@pytest.mark.parametrize(("stop", "reason"), [(3, "passed its limit"), (6, "float64 can carry")])
def test_lsqr_reports_every_stop_on_the_condition(stop, reason, monkeypatch):
    answer = (np.zeros(4), stop, 5, 1.0, 1.0, 1.0, 1.0, 0.1, 0.0, None)
    monkeypatch.setattr(lsqr, "lsqr", lambda *_, **__: answer)
    result = LsqrSolver().prepare(MatrixMap(matrix(4, 4)), 0.0).solve(right_hand_sides(4))
    assert result.status == "not_converged"
    assert reason in result.advice


def test_lsqr_without_an_assembled_matrix(monkeypatch):
    monkeypatch.setattr(solver, "MATRIX_BYTES", 0)
    a, rhs = matrix(6, 9), right_hand_sides(6)
    linear_map = MatrixMap(a)
    monkeypatch.setattr(linear_map, "sparse", None)
    result = LsqrSolver().prepare(linear_map, 0.1).solve(rhs)
    assert_near(result.solution, by_lstsq(a, rhs, 0.1), 1e-10)


def batch_of_matrices(matrices):
    return BatchMap(
        lambda d: torch.einsum("nij,nj->ni", matrices, d),
        lambda r: torch.einsum("nij,ni->nj", matrices, r),
        tuple(matrices.shape[2:]),
        tuple(matrices.shape[1:2]),
    )


@pytest.mark.parametrize("damping", [0.0, 0.2])
def test_torch_solves_a_different_matrix_for_each_sample(damping):
    conditions = [(1.0, 9), (1e4, 9), (100.0, 4), (1e3, 1)]
    matrices = torch.stack([matrix(9, 13, *case, seed=i) for i, case in enumerate(conditions)])
    rhs = right_hand_sides(9, 4) * torch.tensor([[1.0], [1e6], [1e-6], [0.0]])
    result = KrylovSolver().prepare(batch_of_matrices(matrices), damping).solve(rhs)
    assert result.converged
    for a, one, found in zip(matrices, rhs, result.solution, strict=True):
        assert_near(found[None], by_lstsq(a, one[None], damping), 1e-8)


def test_torch_treats_each_sample_as_if_it_were_alone():
    a, rhs = MatrixMap(matrix(20, 30, 1e3)), right_hand_sides(20, 4)
    rhs[1] = a.matrix()[:, 0] * 1e-5  # needs another number of iterations
    prepared = KrylovSolver().prepare(a, 0.0)
    alone = torch.cat([prepared.solve(one[None]).solution for one in rhs])
    assert_near(prepared.solve(rhs).solution, alone, 1e-10)


def test_torch_says_when_the_limit_is_reached():
    prepared = KrylovSolver(max_iterations=3).prepare(MatrixMap(matrix(20, 20, 1e3)), 0.0)
    rhs = right_hand_sides(20)
    rhs[0] = 0.0
    result = prepared.solve(rhs)
    assert (result.status, result.iterations) == ("not_converged", 3)
    assert "2 of 3 samples short" in result.advice
    assert "larger damping" in result.advice


def test_torch_verifies_the_true_residual():
    a = matrix(20, 20, 1e3)
    noisy = BatchMap(  # products good to 1e-6 only: no recursion can be trusted below that
        lambda d: (d @ a.T).float().double(), lambda r: (r @ a).float().double(), (20,), (20,)
    )
    result = KrylovSolver().prepare(noisy, 0.0).solve(right_hand_sides(20))
    assert result.status == "not_converged"
    assert result.residual > 1e-13
    assert KrylovSolver(tolerance=1e-6).prepare(noisy, 0.0).solve(right_hand_sides(20)).converged
