"""Ridge regression from sums, against scikit-learn, numpy and the hat matrix on stacked rows."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from featprop_sklearn.training import gram
from featprop_sklearn.training.gram import (
    MOST_FREEDOM,
    PRECISION,
    RIDGES,
    TIE,
    GramSums,
    solve_ridge,
)


def data(groups=1, n_samples=30, positions=2, coefficients=5, outputs=3, seed=0, noise=1.0):
    """Rows, residuals with some truth in them, whole-number weights."""
    draw = torch.Generator().manual_seed(seed)
    shape = (groups, n_samples, positions)
    rows = torch.randn(*shape, coefficients, dtype=torch.float64, generator=draw)
    truth = torch.randn(groups, 1, coefficients, outputs, dtype=torch.float64, generator=draw)
    errors = torch.randn(*shape, outputs, dtype=torch.float64, generator=draw)
    weights = torch.randint(1, 4, (n_samples,), generator=draw).double()
    return rows, rows @ truth + noise * errors, weights


def stacked(rows, residual, weights, group=0):
    """One group as numpy matrices, each sample as often as its weight says."""
    repeats = weights.long()
    return tuple(
        part[group].repeat_interleave(repeats, dim=0).flatten(0, 1).numpy()
        for part in (rows, residual)
    )


def gcv(cases, ridge, n_rows):
    """Generalised cross-validation by its definition, all groups together."""
    rss, freedom = 0.0, []
    for a, r in cases:
        hat = a @ np.linalg.solve(a.T @ a + ridge * np.eye(a.shape[1]), a.T)
        rss += max(np.square(r - hat @ r).sum(), PRECISION * np.square(r).sum())
        freedom.append(np.trace(hat))
    freedom = np.mean(freedom)
    return rss / (1 - freedom / n_rows) ** 2 if freedom < MOST_FREEDOM * n_rows else np.inf


def largest_eigenvalue(cases):
    return max(np.linalg.norm(a, 2) ** 2 for a, _ in cases)


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 3.0])
def test_it_is_ridge_regression_on_the_repeated_rows(ridge):
    rows, residual, weights = data(groups=2)
    found, used = solve_ridge(GramSums.of(rows, residual, weights), ridge)
    assert used == ridge
    cases = [stacked(rows, residual, weights, group) for group in range(2)]
    strength = ridge * largest_eigenvalue(cases)
    for (a, r), mine in zip(cases, found, strict=True):
        theirs = Ridge(alpha=strength, fit_intercept=False, solver="svd").fit(a, r).coef_.T
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("n_samples", "coefficients"), [(40, 6), (4, 20), (300, 200)])
def test_without_ridge_it_is_the_least_norm_least_squares_solution(n_samples, coefficients):
    rows, residual, weights = data(n_samples=n_samples, positions=1, coefficients=coefficients)
    rows[..., -1] = rows[..., 0] + rows[..., 1]  # a dependent column, and one of nothing
    rows[..., 2] = 0
    found, _ = solve_ridge(GramSums.of(rows, residual, weights), 0.0)
    theirs = np.linalg.lstsq(*stacked(rows, residual, weights), rcond=None)[0]
    np.testing.assert_allclose(found[0], theirs, rtol=1e-6, atol=1e-9)


def test_a_group_of_small_numbers_is_solved_as_well_as_a_group_of_large_ones():
    rows, residual, weights = data(groups=2)
    rows[1] *= 1e-9
    found, _ = solve_ridge(GramSums.of(rows, residual, weights), 0.0)
    for group in range(2):
        theirs = np.linalg.lstsq(*stacked(rows, residual, weights, group), rcond=None)[0]
        np.testing.assert_allclose(found[group], theirs, rtol=1e-6)


@given(
    groups=st.integers(1, 2),
    n_samples=st.integers(2, 25),
    positions=st.integers(1, 3),
    coefficients=st.integers(1, 12),
    noise=st.sampled_from([0.01, 1.0, 30.0]),
    seed=st.integers(0, 10_000),
)
def test_the_ridge_is_that_of_generalised_cross_validation(
    groups, n_samples, positions, coefficients, noise, seed
):
    rows, residual, weights = data(groups, n_samples, positions, coefficients, 2, seed, noise)
    found, ridge = solve_ridge(GramSums.of(rows, residual, weights))
    cases = [stacked(rows, residual, weights, group) for group in range(groups)]
    scale, n = largest_eigenvalue(cases), len(cases[0][0])
    scores = {candidate: gcv(cases, candidate * scale, n) for candidate in RIDGES}
    limit = (1 + TIE) * min(scores.values())
    assert scores[ridge] <= limit * (1 + 1e-6)
    assert all(scores[stronger] > limit * (1 - 1e-6) for stronger in RIDGES[ridge < RIDGES])
    for (a, r), mine in zip(cases, found, strict=True):
        gram = a.T @ a + ridge * scale * np.eye(coefficients)
        np.testing.assert_allclose(mine, np.linalg.solve(gram, a.T @ r), rtol=1e-5, atol=1e-8)


def test_where_every_model_could_interpolate_the_strongest_ridge_is_taken():
    rows, residual, _ = data(n_samples=1, positions=200, coefficients=20)
    sums = GramSums.of(rows, residual, torch.full((1,), 1e-3, dtype=torch.float64))
    assert solve_ridge(sums)[1] == RIDGES[-1]


def test_noise_asks_for_more_ridge_than_signal():
    strengths = [
        solve_ridge(GramSums.of(*data(n_samples=12, positions=1, coefficients=10, noise=noise)))[1]
        for noise in (1e-3, 100.0)
    ]
    assert strengths[0] < strengths[1]


def test_sums_add_up_and_weights_are_repetitions():
    rows, residual, weights = data(groups=2)
    whole = GramSums.of(rows, residual, weights)
    parts = [
        GramSums.of(rows[:, at], residual[:, at], weights[at])
        for at in (slice(0, 7), slice(7, 20), slice(20, None))
    ]
    repeats = weights.long()
    repeated = GramSums.of(
        rows.repeat_interleave(repeats, dim=1),
        residual.repeat_interleave(repeats, dim=1),
        torch.ones(int(repeats.sum())),
    )
    for other in (parts[0] + parts[1] + parts[2], repeated):
        for mine, theirs in zip(vars(whole).values(), vars(other).values(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_shifted_sums_are_those_of_the_shifted_residuals():
    rows, residual, weights = data(groups=2)
    coefficients = torch.randn(2, 5, 3, dtype=torch.float64)
    shifted = GramSums.of(rows, residual, weights).shifted(coefficients)
    direct = GramSums.of(rows, residual - rows @ coefficients[:, None], weights)
    for mine, theirs in zip(vars(shifted).values(), vars(direct).values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ridge", ["auto", 0.0, 1.0])
@pytest.mark.parametrize(
    ("rows_factor", "residual_factor"), [(0, 1), (1, 0), (0, 0), (float("inf"), 1), (1, np.nan)]
)
def test_nothing_changes_where_nothing_can_be_said(ridge, rows_factor, residual_factor):
    rows, residual, weights = data()
    sums = GramSums.of(rows * rows_factor, residual * residual_factor, weights)
    found, _ = solve_ridge(sums, ridge)
    assert found.shape == sums.cross.shape
    assert (found == 0).all()


def test_a_group_without_rows_does_not_spoil_the_others():
    rows, residual, weights = data(groups=2)
    rows[1] = 0
    found, _ = solve_ridge(GramSums.of(rows, residual, weights), 0.0)
    theirs = np.linalg.lstsq(*stacked(rows, residual, weights), rcond=None)[0]
    np.testing.assert_allclose(found[0], theirs, rtol=1e-9)
    assert (found[1] == 0).all()


@given(
    n_samples=st.integers(2, 12),
    coefficients=st.integers(20, 40),
    ridge=st.sampled_from(["auto", 1e-4, 0.0]),
    noise=st.sampled_from([0.01, 1.0]),
    seed=st.integers(0, 10_000),
)
def test_fewer_rows_than_coefficients_are_solved_as_if_they_were_many(
    n_samples, coefficients, ridge, noise, seed
):
    sums = GramSums.of(*data(1, n_samples, 1, coefficients, 2, seed, noise))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gram, "LARGE", 1)
        found, used = solve_ridge(sums, ridge)
        patch.setattr(gram, "LARGE", 1 << 30)
        expected, wanted = solve_ridge(sums, ridge)
    assert used == wanted
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))


def test_many_coefficients_and_few_rows_are_ridge_regression():
    rows, residual, weights = data(n_samples=60, positions=2, coefficients=gram.LARGE, seed=1)
    found, used = solve_ridge(GramSums.of(rows, residual, weights))
    a, r = stacked(rows, residual, weights)
    strength = used * largest_eigenvalue([(a, r)])
    theirs = Ridge(alpha=strength, fit_intercept=False, solver="svd").fit(a, r).coef_.T
    np.testing.assert_allclose(found[0], theirs, rtol=0, atol=1e-8 * np.abs(theirs).max())
