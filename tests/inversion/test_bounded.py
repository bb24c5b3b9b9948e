"""Least squares in a range, against scipy's bounded solvers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import lsq_linear, minimize

from featprop_sklearn.inversion import bounded
from featprop_sklearn.inversion.bounded import BoundedLeastSquares
from featprop_sklearn.least_squares import DiagonalMap, MatrixMap, SelectionMap, solver

RANGES = [(0.0, np.inf), (-1.0, 1.0), (-np.inf, 0.3), (0.2, 0.2)]
each_range = pytest.mark.parametrize("bounds", RANGES, ids=str)


def matrix(rows, columns, condition=10.0, rank=None, seed=0):
    generator = np.random.default_rng(seed)
    rank = min(rows, columns) if rank is None else rank
    left = np.linalg.qr(generator.normal(size=(rows, rank)))[0]
    right = np.linalg.qr(generator.normal(size=(columns, rank)))[0]
    return 3 * left * np.logspace(0, -np.log10(condition), rank) @ right.T


def data(a, bounds, reachable=False, count=4, seed=1):
    """Wanted outputs and references, these in the range or not."""
    generator = np.random.default_rng(seed)
    reference = 2 * generator.normal(size=(count, a.shape[1]))
    wanted = 3 * generator.normal(size=(count, a.shape[0]))
    if reachable:
        wanted = np.clip(generator.normal(size=reference.shape), *bounds) @ a.T
    return wanted, reference


def solve(a, wanted, reference, damping, bounds):
    rhs = torch.from_numpy(wanted - reference @ a.T)
    problem = BoundedLeastSquares(MatrixMap(torch.from_numpy(a)), damping, bounds)
    result = problem.solve(rhs, torch.from_numpy(reference))
    x = result.solution.numpy()
    assert result.converged, result.advice
    assert ((x >= bounds[0]) & (x <= bounds[1])).all()
    return x, result


def by_scipy(a, wanted, reference, damping, bounds):
    """Active sets on the stacked system [A; λI]."""
    if bounds[0] == bounds[1]:
        return np.full_like(reference, bounds[0])
    stacked = np.vstack([a, damping * np.eye(a.shape[1])])
    targets = np.hstack([wanted, damping * reference])
    options = {"bounds": bounds, "method": "bvls", "tol": 1e-15, "max_iter": 500}
    return np.stack([lsq_linear(stacked, target, **options).x for target in targets])


SHAPES = [(4, 9, None), (9, 4, None), (7, 7, None), (8, 6, 3), (6, 12, 4)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@each_shape
@each_range
@pytest.mark.parametrize(("damping", "condition"), [(0.5, 10.0), (0.01, 1e3)])
def test_damped_problem(shape, bounds, damping, condition):
    a = matrix(*shape[:2], condition, shape[2])
    wanted, reference = data(a, bounds)
    x, result = solve(a, wanted, reference, damping, bounds)
    np.testing.assert_allclose(
        x, by_scipy(a, wanted, reference, damping, bounds), rtol=0, atol=1e-7
    )
    assert (result.solver, result.damping) == ("semismooth_newton", damping)


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    low=st.floats(-2, 1),
    width=st.floats(0.1, 3),
    damping=st.sampled_from([0.05, 1.0, 10.0]),
    seed=st.integers(0, 99),
)
def test_any_damped_problem(rows, columns, low, width, damping, seed):
    a = np.random.default_rng(seed).normal(size=(rows, columns))
    bounds = (low, low + width)
    wanted, reference = data(a, bounds, seed=seed)
    x, _ = solve(a, wanted, reference, damping, bounds)
    expected = by_scipy(a, wanted, reference, damping, bounds)
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-7)


@each_shape
@each_range
@pytest.mark.parametrize("reachable", [True, False])
def test_exact_problem_has_the_least_residual(shape, bounds, reachable):
    a = matrix(*shape[:2], 30.0, shape[2])
    wanted, reference = data(a, bounds, reachable)
    x, _ = solve(a, wanted, reference, 0.0, bounds)
    best = by_scipy(a, wanted, reference, 0.0, bounds)
    np.testing.assert_allclose(x @ a.T, best @ a.T, rtol=0, atol=1e-7)  # unique, though best is not


@pytest.mark.parametrize("shape", [(4, 9, None), (8, 6, 3), (6, 12, 4)], ids=str)
@pytest.mark.parametrize("bounds", RANGES[:2], ids=str)
@pytest.mark.parametrize("reachable", [True, False])
def test_exact_problem_is_nearest_among_them(shape, bounds, reachable):
    a = matrix(*shape[:2], 30.0, shape[2])
    wanted, reference = data(a, bounds, reachable)
    x, _ = solve(a, wanted, reference, 0.0, bounds)
    values, rows = np.linalg.svd(a)[1:]
    rows = rows[: (values > 1e-10).sum()]  # the same equations, independent
    for found, origin in zip(x, reference, strict=True):
        oracle = minimize(
            lambda v, origin=origin: ((v - origin) ** 2).sum(),
            found,
            jac=lambda v, origin=origin: 2 * (v - origin),
            bounds=[bounds] * len(origin),
            constraints={
                "type": "eq",
                "fun": lambda v, found=found: rows @ (v - found),
                "jac": lambda v: rows,
            },
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 300},
        )
        np.testing.assert_allclose(found, oracle.x, rtol=0, atol=1e-5)  # SLSQP's own accuracy
        assert ((found - origin) ** 2).sum() <= oracle.fun * (1 + 1e-7) + 1e-12


def test_a_range_that_does_not_bind_changes_nothing():
    a = matrix(5, 8)
    wanted, reference = data(a, (-1, 1))
    x, _ = solve(a, wanted, reference, 0.0, (-np.inf, np.inf))
    expected = reference + np.linalg.lstsq(a, (wanted - reference @ a.T).T, rcond=None)[0].T
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-10)


def test_tall_convolution_sized_problem_takes_few_newton_steps():
    a = matrix(150, 60, 5.0)
    wanted, reference = data(a, (0, 1))
    x, result = solve(a, wanted, reference, 0.0, (0.0, 1.0))
    best = by_scipy(a, wanted, reference, 0.0, (0.0, 1.0))
    np.testing.assert_allclose(x, best, rtol=0, atol=1e-7)
    assert result.iterations < 250


@each_range
@pytest.mark.parametrize("damping", [0.0, 0.4])
def test_closed_form_where_entries_do_not_interact(bounds, damping):
    maps = [
        DiagonalMap(torch.tensor([2.0, 0.0, -1.0, 0.5])),
        SelectionMap(torch.tensor([1, 1, -1, 0, 3]), (4,)),
    ]
    for linear_map in maps:
        a = linear_map.matrix().numpy()
        wanted, reference = data(a, bounds)
        rhs = torch.from_numpy(wanted - reference @ a.T)
        result = BoundedLeastSquares(linear_map, damping, bounds).solve(
            rhs, torch.from_numpy(reference)
        )
        x = result.solution.numpy()
        expected = by_scipy(a, wanted, reference, max(damping, 1e-6), bounds)
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-9)
        assert (result.solver, result.iterations) == ("closed_form", 0)


def test_chunks_and_shapes(monkeypatch):
    a = matrix(4, 6)
    wanted, reference = data(a, (0, 1), count=7)
    whole, _ = solve(a, wanted, reference, 0.1, (0.0, 1.0))
    monkeypatch.setattr(bounded, "CHUNK_BYTES", 1)
    chunked, _ = solve(a, wanted, reference, 0.1, (0.0, 1.0))
    np.testing.assert_allclose(chunked, whole, rtol=0, atol=1e-12)
    empty, _ = solve(a, wanted[:0], reference[:0], 0.1, (0.0, 1.0))
    assert empty.shape == (0, 6)


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_zero_map(damping):
    reference = np.array([[-1.0, 0.5, 2.0]])
    x, _ = solve(np.zeros((2, 3)), np.ones((1, 2)), reference, damping, (0.0, 1.0))
    np.testing.assert_array_equal(x, [[0.0, 0.5, 1.0]])


def test_not_converging_is_reported(monkeypatch):
    monkeypatch.setattr(bounded, "NEWTON_STEPS", 1)
    monkeypatch.setattr(bounded, "PROXIMAL_STEPS", 1)
    a = matrix(6, 6, 1e3)
    wanted, reference = data(a, (0, 1))
    problem = BoundedLeastSquares(MatrixMap(torch.from_numpy(a)), 0.0, (0.0, 1.0))
    rhs = torch.from_numpy(wanted - reference @ a.T)
    result = problem.solve(rhs, torch.from_numpy(reference))
    assert result.status == "not_converged"
    assert "of 4 samples are not optimal in the range" in result.advice
    assert "larger damping" in result.advice


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (float("nan"), 1.0)])
def test_empty_range(bounds):
    with pytest.raises(ValueError, match=r"bounds must be \(low, high\) with low <= high"):
        BoundedLeastSquares(MatrixMap(torch.ones(2, 2)), 0.0, bounds)


def test_matrix_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(solver, "MATRIX_BYTES", 8)
    message = r"bounds=\(0.0, 1.0\) needs the dense matrix .* \(2, 3\) .* Use bounds=None"
    with pytest.raises(ValueError, match=message):
        BoundedLeastSquares(MatrixMap(torch.ones(2, 3)), 0.0, (0.0, 1.0))
