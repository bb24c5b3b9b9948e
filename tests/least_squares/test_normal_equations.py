"""Factorised normal equations: refined as far as needed, verified, and honest about failure."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from featprop_sklearn.least_squares import MatrixMap
from featprop_sklearn.least_squares.normal_equations import (
    EXACT,
    Exact,
    Iterated,
    NormalEquations,
)
from tests.least_squares.cases import lstsq


class Rounded:
    """An inverse that is off by a relative error."""

    def __init__(self, matrix, error):
        self.inverse = torch.linalg.inv(matrix)
        self.inverse = self.inverse * (1 + error * torch.randn_like(self.inverse))

    def solve(self, values):
        return values @ self.inverse.T


class Dense(NormalEquations):
    """Equations of a matrix, factorised as badly as told."""

    name = "dense"
    what = "matrix"

    def __init__(self, matrix, damping, error=0.0):
        super().__init__(MatrixMap(torch.as_tensor(matrix)), damping)
        self.error = error

    def apply(self, rows):
        return self.linear_map.apply(rows)

    def adjoint(self, rows):
        return self.linear_map.adjoint(rows)

    def factorise(self, squared_damping):
        matrix = self.linear_map.matrix()
        gram = matrix @ matrix.T if self.wide else matrix.T @ matrix
        gram = gram + squared_damping * torch.eye(len(gram)).double()
        failed = torch.linalg.cholesky_ex(gram)[1]
        return None if failed else Rounded(gram, self.error)

    def norm(self):
        return float(torch.linalg.matrix_norm(self.linear_map.matrix(), ord=2))


def relative_error(result, matrix, rhs, damping):
    expected = lstsq(matrix, rhs.numpy(), damping)
    return np.linalg.norm(result.solution.numpy() - expected) / np.linalg.norm(expected)


def matrix_of(rows, columns, rank, condition, seed):
    generator = np.random.default_rng(seed)
    left = np.linalg.qr(generator.normal(size=(rows, rank)))[0]
    right = np.linalg.qr(generator.normal(size=(columns, rank)))[0]
    return left * np.geomspace(1, 1 / condition, rank) @ right.T


@pytest.mark.parametrize("shape", [(6, 9), (7, 7), (9, 6)])
@pytest.mark.parametrize(("error", "refinements"), [(0.0, 0), (1e-7, 1), (1e-5, 2)])
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_refined_as_often_as_needed(shape, error, refinements, damping):
    matrix = matrix_of(*shape, min(shape), 3, 0)
    prepared = Exact.attempt(Dense(matrix, damping, error))
    assert prepared.effort == 1 + 2 * prepared.refinements
    assert prepared.refinements == refinements
    rhs = torch.randn(4, shape[0]).double()
    result = prepared.solve(rhs)
    assert result.converged
    assert (result.solver, result.damping) == ("dense", damping)
    # the residual is at most EXACT; the condition of the system is at most 9
    assert relative_error(result, matrix, rhs, damping) <= 100 * EXACT


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_what_the_probe_cannot_verify_is_refused(shape):
    regular = matrix_of(*shape, 6, 3, 0)
    assert Exact.attempt(Dense(regular, 0.0, error=0.1)) is None
    assert Exact.attempt(Dense(matrix_of(*shape, 6, 1e7, 0), 0.0)) is None
    assert Exact.attempt(Dense(matrix_of(*shape, 4, 3, 0), 0.0)) is None
    assert Exact.attempt(Dense(matrix_of(*shape, 4, 3, 0), 0.5)) is not None


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from((1.0, 30.0, 1e3)),
    st.integers(0, 1000),
)
def test_iterated_to_the_solution_of_least_norm(rows, columns, rank, condition, seed):
    assume(rank <= min(rows, columns))
    matrix = matrix_of(rows, columns, rank, condition, seed)
    prepared = Iterated(Dense(matrix, 0.0))
    assert prepared.effort > 1
    rhs = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, rows)))
    result = prepared.solve(rhs)
    assert result.converged
    assert result.residual <= 1e-10
    assert relative_error(result, matrix, rhs, 0.0) <= 1e-8


@pytest.mark.parametrize("shape", [(25, 25), (20, 30)])
@pytest.mark.parametrize("condition", [1e5, 1e6])
def test_wide_systems_lose_their_condition_and_not_its_square(shape, condition):
    matrix = matrix_of(*shape, min(shape), condition, 0)
    assert Exact.attempt(Dense(matrix, 0.0)) is None
    prepared = Iterated(Dense(matrix, 0.0))
    rhs = torch.randn(4, shape[0]).double()
    result = prepared.solve(rhs)
    assert result.converged
    assert result.iterations <= 20
    assert relative_error(result, matrix, rhs, 0.0) <= condition * 1e-14


def test_a_hopeless_problem_is_reported_with_advice():
    matrix = matrix_of(30, 20, 20, 1e8, 0)
    result = Iterated(Dense(matrix, 0.0)).solve(torch.randn(2, 30).double())
    assert not result.converged
    assert result.residual > 1e-10
    assert "The matrix is close to rank-deficient. Use damping='auto'" in result.advice


def test_zero_and_empty():
    zero = Iterated(Dense(np.zeros((3, 5)), 0.0)).solve(torch.randn(2, 3).double())
    assert zero.converged
    assert not zero.solution.any()
    for prepared in (
        Exact.attempt(Dense(matrix_of(5, 3, 3, 2, 0), 0.0)),
        Iterated(Dense(matrix_of(5, 3, 2, 2, 0), 0.0)),
    ):
        empty = prepared.solve(torch.zeros(0, 5).double())
        assert empty.converged
        assert empty.solution.shape == (0, 3)
