"""Roots of falling functions against scipy, and at their edges."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from featprop_sklearn.propagation.falling_root import falling_root

SHARE = 0.1


def falling_lines(seed, n_kinks):
    """Piecewise linear functions, falling from above zero to anywhere, by their kinks."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([[0], np.sort(rng.random(n_kinks)), [1]])
    falls = rng.exponential(size=n_kinks + 1) * 10.0 ** rng.integers(-6, 3, n_kinks + 1)
    y = np.concatenate([[0], -falls.cumsum()])
    return x, y - y[-1] * rng.random() * 1.5


@given(st.integers(0, 10_000), st.integers(0, 12))
def test_ends_close_before_the_root(seed, n_kinks):
    lines = [falling_lines(seed + i, n_kinks) for i in range(4)]

    def function(t):
        return torch.tensor([np.interp(float(s), x, y) for s, (x, y) in zip(t, lines, strict=True)])

    low = torch.zeros(4, dtype=torch.float64)
    found = falling_root(function, low, torch.ones_like(low), SHARE)
    values = function(found)
    for root, value, (x, y) in zip(found.tolist(), values.tolist(), lines, strict=True):
        if y[-1] >= 0:
            assert root == 1
        else:
            assert root <= brentq(lambda t, x=x, y=y: np.interp(t, x, y), 0, 1, xtol=1e-15) + 1e-12
            assert 0 <= value <= SHARE * y[0]


def test_functions_that_do_not_fall_from_above_zero_stay():
    low, high = torch.tensor([-1.0, -1.0, 2.0]), torch.tensor([3.0, 3.0, 4.0])
    slope = torch.tensor([0.0, torch.nan, 1.0])
    found = falling_root(lambda t: -1 - slope * t, low, high, SHARE)
    assert found.tolist() == low.tolist()


def test_samples_do_not_depend_on_each_other():
    low, high = torch.zeros(50, dtype=torch.float64), torch.ones(50, dtype=torch.float64)
    power = torch.linspace(0.2, 9, 50, dtype=torch.float64)
    together = falling_root(lambda t: 0.3 - t**power, low, high, SHARE)
    alone = [
        falling_root(lambda t, i=i: 0.3 - t ** power[i : i + 1], low[:1], high[:1], SHARE)
        for i in range(50)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=0)
