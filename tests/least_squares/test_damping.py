"""The rule for λ, against numpy's singular values, and its estimate for large maps."""

import numpy as np
import pytest
import torch

from featprop_sklearn.least_squares import (
    AutoSolver,
    DiagonalMap,
    KrylovSolver,
    MatrixMap,
    SelectionMap,
    damping,
    resolve_damping,
)


def matrix(rows, columns, values):
    generator = np.random.default_rng(0)
    left = np.linalg.qr(generator.normal(size=(rows, len(values))))[0]
    right = np.linalg.qr(generator.normal(size=(columns, len(values))))[0]
    return MatrixMap(torch.from_numpy(left * values @ right.T))


def rule(values):
    return np.sqrt(max(0, (values.max() / 1e3) ** 2 - values.min() ** 2))


SPECTRA = {
    "well conditioned": 5 * np.logspace(0, -2.9, 30),
    "just beyond": 5 * np.logspace(0, -3.05, 30),
    "beyond": 5 * np.logspace(0, -4, 30),
    "far beyond": 5 * np.logspace(0, -9, 30),
}
each_spectrum = pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA)


@each_spectrum
@pytest.mark.parametrize("shape", [(30, 40), (40, 30), (35, 35)])
def test_automatic_rule(values, shape):
    assert resolve_damping(matrix(*shape, values), "auto") == pytest.approx(rule(values), rel=1e-6)


@each_spectrum
def test_automatic_rule_for_a_diagonal(values):
    signs = np.where(np.arange(30) % 2, 1, -1)
    diagonal = DiagonalMap(torch.from_numpy(np.append(signs * values, 0.0)))
    assert resolve_damping(diagonal, "auto") == pytest.approx(rule(values), rel=1e-12)


def test_no_damping_for_a_selection_or_zero():
    assert resolve_damping(SelectionMap(torch.tensor([0, 0, 0, -1]), (2,)), "auto") == 0.0
    assert resolve_damping(MatrixMap(torch.zeros(2, 3)), "auto") == 0.0
    assert resolve_damping(DiagonalMap(torch.zeros(2)), "auto") == 0.0


@pytest.fixture(params=["factorised", "matrix-free"])
def auto(request, monkeypatch):
    """What treats small maps as large ones."""
    monkeypatch.setattr(damping, "SVD_LIMIT", 0)
    return AutoSolver(max_bytes=0) if request.param == "matrix-free" else None


class TestLargeMaps:
    @each_spectrum
    @pytest.mark.parametrize("shape", [(30, 40), (40, 30)])
    def test_estimate(self, values, shape, auto):
        largest = values.max() / 1e3
        estimate = resolve_damping(matrix(*shape, values), "auto", auto)
        assert abs(estimate - rule(values)) <= 0.02 * largest

    def test_rank_deficiency_counts_as_doubt(self, auto):
        found = resolve_damping(matrix(30, 40, 5 * np.logspace(0, -1, 20)), "auto", auto)
        assert found == pytest.approx(5e-3, rel=0.01)

    def test_zero(self, auto):
        assert resolve_damping(MatrixMap(torch.zeros(3, 4)), "auto", auto) == 0.0


def test_an_estimate_that_does_not_settle_counts_as_doubt(monkeypatch):
    monkeypatch.setattr(damping, "SVD_LIMIT", 0)
    monkeypatch.setattr(damping, "LOOSE", KrylovSolver(tolerance=1e-4, max_iterations=2))
    slight = AutoSolver(max_bytes=0)
    found = resolve_damping(matrix(30, 40, SPECTRA["well conditioned"]), "auto", slight)
    assert found == pytest.approx(5e-3, rel=0.01)


@pytest.mark.parametrize("number", [0, 0.5, np.float32(0.5), 3])
def test_a_number_is_used_as_it_is(number):
    found = resolve_damping(MatrixMap(torch.ones(2, 2)), number)
    assert found == number
    assert type(found) is float


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf"), "none", None, True, [1.0]])
def test_anything_else_is_refused(wrong):
    with pytest.raises(ValueError, match=r"damping must be 'auto' or a finite number >= 0; got"):
        resolve_damping(MatrixMap(torch.ones(2, 2)), wrong)
