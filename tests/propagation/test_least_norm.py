"""The shortest step under linear conditions and a range, against scipy's least distances."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from featprop_sklearn.propagation import least_norm as module
from featprop_sklearn.propagation.least_norm import REGULARISATION, least_norm


def least_distance(rows, bound):
    """Solve min ‖e‖ with rows @ e >= bound by scipy (Lawson, Hanson 1974, chapter 23)."""
    system = np.vstack([rows.T, bound])
    wanted = np.append(np.zeros(rows.shape[1]), 1)
    residual = system @ nnls(system, wanted, maxiter=1000)[0] - wanted
    return -residual[:-1] / residual[-1]


def scipy_step(J, b, low, high, equality):
    asked, unit = np.isfinite(b), np.eye(J.shape[1])
    rows, bound = [J[asked]], [b[asked]]
    if equality:
        rows, bound = [*rows, -J[asked]], [*bound, -b[asked]]
    below, above = np.isfinite(low), np.isfinite(high)
    rows = np.vstack([*rows, unit[below], -unit[above]])
    return least_distance(rows, np.concatenate([*bound, low[below], -high[above]]))


def problem(seed, n_samples, n_conditions, n_coordinates, equality):
    """Conditions and a range that some step meets."""
    rng = np.random.default_rng(seed)
    J = rng.normal(size=(n_samples, n_conditions, n_coordinates))
    low, high = -rng.uniform(0.2, 2, (2, n_samples, n_coordinates))
    high = np.where(rng.random(high.shape) < 0.3, np.inf, -high)
    low = np.where(rng.random(low.shape) < 0.3, -np.inf, low)
    met = rng.uniform(-1, 1, low.shape)
    met *= 0.9 * np.minimum(np.minimum(-low, high), 2)
    b = np.einsum("nij,nj->ni", J, met)
    return J, b if equality else b - rng.uniform(0, 1, b.shape), low, high


def solve(J, b, low=None, high=None, *, equality=False):
    allowed = None if low is None else (torch.tensor(low), torch.tensor(high))
    return least_norm(torch.tensor(J), torch.tensor(b), equality=equality, allowed=allowed)


shapes = {
    "seed": st.integers(0, 10_000),
    "n_samples": st.integers(1, 6),
    "n_conditions": st.integers(1, 5),
    "n_coordinates": st.integers(7, 12),
    "equality": st.booleans(),
    "ranged": st.booleans(),
}


@given(**shapes)
def test_the_step_is_the_shortest(seed, n_samples, n_conditions, n_coordinates, equality, ranged):
    J, b, low, high = problem(seed, n_samples, n_conditions, n_coordinates, equality)
    if not ranged:
        low, high = np.full_like(low, -np.inf), np.full_like(high, np.inf)
    step, _ = solve(J, b, *((low, high) if ranged else ()), equality=equality)
    for i in range(n_samples):
        expected = scipy_step(J[i], b[i], low[i], high[i], equality)
        np.testing.assert_allclose(step[i], expected, rtol=0, atol=1e-4)


@given(**shapes)
def test_optimality_conditions(seed, n_samples, n_conditions, n_coordinates, equality, ranged):
    """Of the regularised problem, whatever the conditioning: of a saddle point, e and λ."""
    J, b, low, high = problem(seed, n_samples, n_conditions, n_coordinates, equality)
    step, multipliers = (
        found.numpy() for found in solve(J, b, *((low, high) if ranged else ()), equality=equality)
    )
    norm = np.linalg.norm(J, axis=2)
    J, b = J / norm[..., None], b / norm
    pulled = np.einsum("nij,ni->nj", J, multipliers)
    if not ranged:
        low, high = -np.inf, np.inf
    assert ((low <= step) & (step <= high)).all()
    np.testing.assert_allclose(step, np.clip(pulled, low, high), rtol=0, atol=1e-12)
    slack = np.einsum("nij,nj->ni", J, step) + REGULARISATION * multipliers - b
    tiny = 1e-8 * np.abs(b).max(axis=1, keepdims=True)
    if equality:
        assert (np.abs(slack) <= tiny).all()
    else:
        assert (multipliers >= 0).all()
        assert (slack >= -tiny).all()
        assert (np.abs(np.where(multipliers > 0, slack, 0)) <= tiny).all()


@pytest.mark.parametrize("equality", [False, True])
def test_a_range_may_be_scalar_one_for_all_samples_or_infinite(equality):
    J, b, *_ = problem(0, 8, 2, 7, equality)
    b *= 2
    whole = np.full((8, 7), -0.5), np.full((8, 7), 0.8)
    expected, _ = solve(J, b, *whole, equality=equality)
    assert (expected == -0.5).any()
    for shape in ((), (7,), (1, 7), (8, 1)):
        low, high = np.full(shape, -0.5), np.full(shape, 0.8)
        assert torch.equal(solve(J, b, low, high, equality=equality)[0], expected)
    free, _ = solve(J, b, equality=equality)
    infinite, _ = solve(J, b, np.array(-np.inf), np.array(np.inf), equality=equality)
    torch.testing.assert_close(infinite, free, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("ranged", [False, True])
@pytest.mark.parametrize("broken", [0.0, np.nan, np.inf])
def test_what_no_step_can_serve_is_left_out(broken, ranged):
    J, b, low, high = problem(1, 5, 3, 8, False)
    allowed = (low, high) if ranged else ()
    expected, _ = solve(J[:, [0, 2]], b[:, [0, 2]], *allowed)
    J[:, 1] = broken
    step, multipliers = solve(J, b, *allowed)
    torch.testing.assert_close(step, expected, rtol=1e-9, atol=1e-12)
    assert not multipliers[:, 1].any()


@pytest.mark.parametrize("ranged", [False, True])
def test_a_bound_of_minus_infinity_asks_for_nothing(ranged):
    J, b, low, high = problem(2, 5, 3, 8, False)
    allowed = (low, high) if ranged else ()
    expected, _ = solve(J[:, :2], b[:, :2], *allowed)
    b[:, 2] = -np.inf
    step, multipliers = solve(J, b, *allowed)
    torch.testing.assert_close(step, expected, rtol=1e-9, atol=1e-12)
    assert not multipliers[:, 2].any()
    nothing, _ = solve(J, np.full_like(b, -np.inf), *allowed)
    assert not nothing.any()


@pytest.mark.parametrize("equality", [False, True])
def test_conditions_that_are_met_cost_no_step(equality):
    J, b, low, high = problem(3, 5, 3, 8, equality)
    step, multipliers = solve(J, 0 * b if equality else -np.abs(b), low, high, equality=equality)
    assert not step.any()
    assert not multipliers.any()


@pytest.mark.parametrize("ranged", [False, True])
@pytest.mark.parametrize("equality", [False, True])
def test_contradictory_conditions_share_the_miss(equality, ranged):
    row = torch.randn(4, 1, 6).double()
    row /= row.norm(dim=2, keepdim=True)
    J = torch.cat([row, row if equality else -row], dim=1).numpy()
    b = np.array([[1.0, 3.0]]).repeat(4, axis=0)
    allowed = (np.full((4, 6), -50.0), np.full((4, 6), 50.0)) if ranged else ()
    step, _ = solve(J, b, *allowed, equality=equality)
    along = (torch.tensor(J) @ step[..., None])[..., 0]
    middle = torch.tensor([2.0, 2] if equality else [-1.0, 1]).double().expand(4, 2)
    torch.testing.assert_close(along, middle, rtol=1e-4, atol=0)


@pytest.mark.parametrize("equality", [False, True])
def test_conditions_beyond_the_range_end_at_finite_steps_within_it(equality):
    J, b, low, high = problem(4, 20, 3, 7, equality)
    low, high = np.maximum(low, -2), np.minimum(high, 2)
    step, multipliers = (found.numpy() for found in solve(J, 1e3 * b, low, high, equality=equality))
    assert np.isfinite(step).all()
    assert np.isfinite(multipliers).all()
    assert (step >= low).all()
    assert (step <= high).all()


@pytest.mark.parametrize("equality", [False, True])
def test_float32_in_float32_out(equality):
    J, b, low, high = problem(5, 6, 3, 8, equality)
    expected, _ = solve(J, b, low, high, equality=equality)
    single = [value.astype(np.float32) for value in (J, b, low, high)]
    step, multipliers = solve(*single, equality=equality)
    assert step.dtype == torch.float32
    assert multipliers.dtype == torch.float64
    torch.testing.assert_close(step.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 60, 10_000])
@pytest.mark.parametrize("ranged", [False, True])
def test_chunks_are_solved_like_the_whole(monkeypatch, chunk, ranged):
    J, b, low, high = problem(6, 11, 3, 8, False)
    allowed = (low, high) if ranged else ()
    whole = solve(J, b, *allowed)
    monkeypatch.setattr(module, "CHUNK", chunk)
    for found, expected in zip(solve(J, b, *allowed), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_no_samples():
    step, multipliers = solve(np.zeros((0, 3, 5)), np.zeros((0, 3)))
    assert step.shape == (0, 5)
    assert multipliers.shape == (0, 3)
