"""The projection onto the margin set, against a constrained optimiser and a root search."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize

from featprop_sklearn.output_targets import margin_violation, nearest_target


def problem(seed, n, c, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, c, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(c, (n,), generator=generator)


def target_by_optimiser(logits, label, margin):
    """Solve the quadratic programme of one sample by SLSQP."""
    rows = -np.eye(len(logits))
    rows[:, label] += 1.0
    rows = np.delete(rows, label, axis=0)
    found = minimize(
        lambda t: 0.5 * ((t - logits) ** 2).sum(),
        np.where(np.arange(len(logits)) == label, logits.max() + margin, logits),
        jac=lambda t: t - logits,
        constraints={"type": "ineq", "fun": lambda t: rows @ t - margin, "jac": lambda t: rows},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return found.x


def target_by_level_search(logits, label, margin):
    """Find the level at which what competitors lose is what the label gains."""
    competitors = np.delete(logits, label)
    if competitors.max() + margin <= logits[label]:
        return logits

    def surplus(level):
        return level + margin - logits[label] - np.maximum(competitors - level, 0).sum()

    level = brentq(surplus, logits[label] - margin, competitors.max(), xtol=1e-15, rtol=1e-15)
    target = np.minimum(logits, level)
    target[label] = level + margin
    return target


@pytest.mark.parametrize("c", [2, 3, 5, 8])
@pytest.mark.parametrize("margin", [0.0, 0.5, 4.0])
def test_agrees_with_a_constrained_optimiser(c, margin):
    logits, labels = problem(c, 6, c, scale=2.0)
    expected = [
        target_by_optimiser(o, y, margin)
        for o, y in zip(logits.numpy(), labels.tolist(), strict=True)
    ]
    np.testing.assert_allclose(nearest_target(logits, labels, margin), expected, atol=1e-6)


@pytest.mark.parametrize("c", [2, 10, 1000])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e8])
@pytest.mark.parametrize("relative_margin", [0.0, 1.0, 10.0])
def test_agrees_with_a_search_for_the_level(c, scale, relative_margin):
    logits, labels = problem(c, 10, c, scale)
    margin = relative_margin * scale
    expected = [
        target_by_level_search(o, y, margin)
        for o, y in zip(logits.numpy(), labels.tolist(), strict=True)
    ]
    target = nearest_target(logits, labels, margin)
    np.testing.assert_allclose(target, expected, rtol=0, atol=1e-12 * scale)


def test_every_number_of_joining_competitors():
    logits = torch.arange(6.0, dtype=torch.float64).flip(0).expand(6, 6)
    labels = torch.arange(6)
    for margin in (0.0, 0.1, 1.0, 2.5, 20.0):
        expected = [target_by_level_search(logits[0].numpy(), y, margin) for y in range(6)]
        np.testing.assert_allclose(nearest_target(logits, labels, margin), expected, atol=1e-12)


def test_tied_competitors_share_the_change():
    logits = torch.tensor([[0.0, 3.0, 3.0, -1.0]], dtype=torch.float64)
    target = nearest_target(logits, torch.tensor([0]), 0.0)
    np.testing.assert_allclose(target, [[2.0, 2.0, 2.0, -1.0]], rtol=1e-15)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    c=st.integers(2, 40),
    margin=st.floats(0, 1e3),
    exponent=st.integers(-6, 12),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16]),
)
def test_feasible_idempotent_and_identical_where_feasible(seed, c, margin, exponent, dtype):
    scale = 10.0 ** min(exponent, 3 if dtype is torch.float16 else 12)
    logits, labels = problem(seed, 30, c, scale, dtype)
    target = nearest_target(logits, labels, margin)
    assert target.dtype == dtype
    assert (margin_violation(target, labels, margin) <= 0).all()
    inside = margin_violation(logits, labels, margin) <= 0
    assert torch.equal(target[inside], logits[inside])
    assert torch.equal(nearest_target(target, labels, margin), target)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(seed=st.integers(0, 10**6), c=st.integers(2, 12), margin=st.floats(0, 5))
def test_no_feasible_candidate_is_nearer(seed, c, margin):
    logits, labels = problem(seed, 1, c)
    target = nearest_target(logits, labels, margin)
    generator = torch.Generator().manual_seed(seed + 1)
    widths = 10.0 ** torch.randint(-6, 1, (500, 1), generator=generator)
    noise = torch.randn(500, c, generator=generator, dtype=torch.float64)
    candidates = target + widths * noise
    label = labels.expand(500)
    # feasible by construction, without the code under test: lower whatever is above o_y - margin
    cap = candidates.gather(1, label[:, None]) - margin
    feasible = torch.where(torch.arange(c) == labels[0], candidates, candidates.minimum(cap))
    distances = torch.linalg.vector_norm(feasible - logits, dim=1)
    # the cap is met up to rounding in one subtraction
    assert (distances >= torch.linalg.vector_norm(target - logits) - 1e-13).all()


@settings(deadline=None, max_examples=25, derandomize=True)
@given(seed=st.integers(0, 10**6), c=st.integers(2, 12), margin=st.floats(0, 5))
def test_permuting_classes_permutes_targets(seed, c, margin):
    logits, labels = problem(seed, 20, c)
    order = torch.randperm(c, generator=torch.Generator().manual_seed(seed))
    permuted = nearest_target(logits[:, order], order.argsort()[labels], margin)
    assert torch.equal(permuted, nearest_target(logits, labels, margin)[:, order])


@settings(deadline=None, max_examples=25, derandomize=True)
@given(seed=st.integers(0, 10**6), c=st.integers(2, 12), margin=st.floats(0, 5))
def test_samples_do_not_influence_each_other(seed, c, margin):
    logits, labels = problem(seed, 8, c)
    together = nearest_target(logits, labels, margin)
    alone = [nearest_target(logits[i : i + 1], labels[i : i + 1], margin) for i in range(8)]
    assert torch.equal(together, torch.cat(alone))


def test_float32_is_the_rounded_float64_answer():
    logits, labels = problem(0, 50, 5000, dtype=torch.float32)
    logits[torch.arange(50), labels] = -1e5  # nearly all competitors join
    single = nearest_target(logits, labels, 2.0)
    double = nearest_target(logits.double(), labels, 2.0)
    eps = torch.finfo(torch.float32).eps
    np.testing.assert_allclose(single, double, rtol=2 * eps, atol=2 * eps)


def test_huge_logits_stay_finite():
    logits = torch.tensor([[1e150, -1e150, 3e149]], dtype=torch.float64)
    target = nearest_target(logits, torch.tensor([1]), 1.0)
    np.testing.assert_allclose(target, [[1e149, 1e149, 1e149]], rtol=1e-12)


def test_no_samples():
    empty = nearest_target(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 1.0)
    assert empty.shape == (0, 3)


@pytest.mark.parametrize("margin", [-1.0, float("nan"), float("inf"), "1"])
def test_refuses_bad_margins(margin):
    with pytest.raises(
        ValueError, match=r"margin must be 'auto' or a finite number >= 0, got .*'auto' takes one"
    ):
        nearest_target(torch.zeros(1, 2), torch.tensor([0]), margin)
