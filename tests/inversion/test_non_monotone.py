"""Activations with one minimum: scipy's root finder and minimiser as oracles, branch by branch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from torch import nn

from featprop_sklearn.inversion.base import InversionOptions
from featprop_sklearn.inversion.non_monotone import INVERTERS

SMOOTH = [nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish()]
LAYERS = [*SMOOTH, nn.Hardswish()]
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def f(layer, x):
    return layer(f64(x)).item()


def invert(layer, wanted, reference, bounds=None):
    inverter = INVERTERS[type(layer)](layer, reference.shape[1:], InversionOptions(bounds=bounds))
    return inverter.invert(wanted, reference).solution


def minimum(layer):
    found = minimize_scalar(lambda t: f(layer, t), bounds=(-3, 0), options={"xatol": 1e-12})
    return found.x, found.fun


def roots(layer, y):
    least, _ = minimum(layer)
    brackets = [(least, max(y, 0) + 2)] + ([(-40.0, least)] if y < 0 else [])
    return [brentq(lambda t: f(layer, t) - y, low, high, xtol=1e-15) for low, high in brackets]


@each_layer
@given(share=st.floats(0.02, 0.98), reference=st.floats(-9, 3))
def test_below_zero_the_nearest_of_the_two_roots(layer, share, reference):
    y = share * minimum(layer)[1]
    expected = min(roots(layer, y), key=lambda root: abs(root - reference))
    x = invert(layer, f64(y), f64(reference)).item()
    assert abs(x - reference) == pytest.approx(abs(expected - reference), abs=1e-12)
    assert f(layer, x) == pytest.approx(y, abs=1e-15)


@each_layer
@given(y=st.floats(1e-6, 50), reference=st.floats(-60, 60))
def test_above_zero_the_only_root(layer, y, reference):
    x = invert(layer, f64(y), f64(reference)).item()
    assert x == pytest.approx(roots(layer, y)[0], rel=1e-13)


@each_layer
@given(below=st.floats(0, 1e300), reference=st.floats(-1e300, 1e300))
def test_at_and_below_the_minimum_the_minimiser(layer, below, reference):
    least, value = minimum(layer)
    x = invert(layer, f64(value - 1e-9 - below), f64(reference)).item()
    assert x == pytest.approx(least, abs=1e-6)  # where scipy's flat objective ends its search
    assert f(layer, x) <= value + 1e-16


@each_layer
@given(reference=st.floats(-1e300, 1e300) | st.floats(-800, 5))
def test_reached_output_returns_the_reference_itself(layer, reference):
    reference = f64(reference)
    assert torch.equal(invert(layer, layer(reference), reference), reference)


@each_layer
def test_huge_outputs_and_references_stay_finite(layer):
    extremes = f64(-1e300, -1e3, -1e-9, -1e-300, -0.0, 0.0, 1e-300, 1e3, 1e300)
    wanted, reference = (
        grid.flatten() for grid in torch.meshgrid(extremes, extremes, indexing="ij")
    )
    x = invert(layer, wanted, reference)
    assert x.isfinite().all()
    reachable = wanted > -0.1
    torch.testing.assert_close(layer(x)[reachable], wanted[reachable], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("layer", [nn.SiLU(), nn.Mish()], ids=str)
def test_far_tail_has_a_root_too(layer):
    wanted = layer(f64(-30.0, -100.0))
    x = invert(layer, wanted, f64(-31.0, -101.0))
    torch.testing.assert_close(x, f64(-30.0, -100.0), rtol=0, atol=1e-12)


def test_flat_part_of_hardswish_keeps_the_reference():
    x = invert(nn.Hardswish(), f64(0.0, 0.0, 0.0), f64(-7.0, -1.6, -1.4))
    assert torch.equal(x, f64(-7.0, -3.0, 0.0))


@each_layer
@given(y=st.floats(-1, 4), reference=st.floats(-6, 6), low=st.floats(-6, 6), width=st.floats(0, 6))
def test_a_range_is_kept_and_nothing_in_it_is_better(layer, y, reference, low, width):
    wanted, reference = f64(y), f64(reference)
    x = invert(layer, wanted, reference, bounds=(low, low + width))
    assert low <= x.item() <= low + width
    candidates = torch.linspace(low, low + width, 1001, dtype=torch.float64)
    gap, gaps = (layer(x) - wanted).abs(), (layer(candidates) - wanted).abs()
    assert (gap <= gaps + 1e-14).all()
    as_good = candidates[gaps <= gap] - reference
    assert (as_good.abs() >= (x - reference).abs() - 1e-12).all()


def test_range_that_hides_the_nearer_root_gives_the_other():
    assert invert(nn.SiLU(), f64(-0.2), f64(-3.0), bounds=(-1.0, 1.0)).item() == pytest.approx(
        roots(nn.SiLU(), -0.2)[0]
    )
