"""Small concave quadratics without negative unknowns, against scipy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from featprop_sklearn.propagation.quadratic import nonnegative_maximum


def problems(seed, n_samples, n_unknowns, rank, ridge):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(n_samples, n_unknowns, rank))
    matrix = factor @ factor.transpose(0, 2, 1) + ridge * np.eye(n_unknowns)
    return torch.tensor(matrix), torch.tensor(rng.normal(size=(n_samples, n_unknowns)))


def value(matrix, linear, x):
    return (linear * x).sum(1) - 0.5 * torch.einsum("ni,nij,nj->n", x, matrix, x)


def scipy_maximum(matrix, linear):
    """Use that max cᵀx − ½xᵀHx is min ‖Lᵀx − L⁻¹c‖² where H = LLᵀ."""
    factor = np.linalg.cholesky(matrix.numpy())
    found = [
        nnls(half.T, np.linalg.solve(half, c))[0]
        for half, c in zip(factor, linear.numpy(), strict=True)
    ]
    return torch.tensor(np.array(found))


shapes = {
    "seed": st.integers(0, 10_000),
    "n_samples": st.integers(1, 6),
    "n_unknowns": st.integers(1, 14),
}


@given(**shapes)
def test_the_answer_is_that_of_scipy(seed, n_samples, n_unknowns):
    matrix, linear = problems(seed, n_samples, n_unknowns, n_unknowns + 3, 0.1)
    found = nonnegative_maximum(matrix, linear)
    torch.testing.assert_close(found, scipy_maximum(matrix, linear), rtol=1e-8, atol=1e-10)


@given(rank=st.integers(1, 5), **shapes | {"n_unknowns": st.integers(1, 9)})
def test_all_but_dependent_unknowns_reach_the_same_value(seed, n_samples, n_unknowns, rank):
    matrix, linear = problems(seed, n_samples, n_unknowns, rank, 1e-6)
    found, theirs = nonnegative_maximum(matrix, linear), scipy_maximum(matrix, linear)
    assert (found >= 0).all()
    torch.testing.assert_close(
        value(matrix, linear, found), value(matrix, linear, theirs), rtol=1e-6, atol=1e-8
    )


@given(**shapes)
def test_optimality_conditions(seed, n_samples, n_unknowns):
    matrix, linear = problems(seed, n_samples, n_unknowns, n_unknowns, 1e-2)
    x = nonnegative_maximum(matrix, linear)
    slope = linear - torch.einsum("nij,nj->ni", matrix, x)
    assert (x >= 0).all()
    assert slope.max() <= 1e-9
    assert (slope * x).abs().max() <= 1e-9


def test_a_batch_is_solved_like_its_samples():
    matrix, linear = problems(0, 40, 9, 9, 1e-3)
    whole = nonnegative_maximum(matrix, linear)
    alone = [nonnegative_maximum(matrix[i : i + 1], linear[i : i + 1]) for i in range(40)]
    torch.testing.assert_close(whole, torch.cat(alone), rtol=1e-9, atol=1e-12)


def test_a_slope_that_leads_down_everywhere_stays_at_zero():
    matrix, linear = problems(1, 5, 4, 4, 0.1)
    assert torch.equal(nonnegative_maximum(matrix, -linear.abs()), torch.zeros(5, 4).double())


def test_the_unconstrained_maximum_is_kept_where_it_is_positive():
    matrix, _ = problems(2, 5, 4, 4, 0.1)
    x = torch.rand(5, 4).double() + 0.1
    linear = torch.einsum("nij,nj->ni", matrix, x)
    torch.testing.assert_close(nonnegative_maximum(matrix, linear), x)


@pytest.mark.parametrize("n_unknowns", [30, 60])
def test_dozens_of_unknowns(n_unknowns):
    matrix, linear = problems(3, 8, n_unknowns, n_unknowns, 1e-2)
    found, theirs = nonnegative_maximum(matrix, linear), scipy_maximum(matrix, linear)
    torch.testing.assert_close(found, theirs, rtol=1e-7, atol=1e-9)
