"""Strictly monotone activations: scipy's root finder as oracle, then every kind of slope."""

import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import nn

from featprop_sklearn.inversion.base import InversionOptions
from featprop_sklearn.inversion.monotone import INSIDE, INVERTERS
from featprop_sklearn.networks.functional import Exp

LAYERS = [
    nn.Tanh(),
    nn.Sigmoid(),
    nn.LogSigmoid(),
    nn.Softsign(),
    nn.Tanhshrink(),
    Exp(),
    nn.LeakyReLU(0.2),
    nn.PReLU(init=0.3).double(),
    nn.RReLU(0.1, 0.5).eval(),
    nn.ELU(0.7),
    nn.CELU(2.0),
    nn.CELU(-2.0),
    nn.SELU(),
    nn.Softplus(),
    nn.Softplus(beta=3.0, threshold=40.0),
]
RANGES = [  # layer, infimum, supremum
    (nn.Tanh(), -1.0, 1.0),
    (nn.Sigmoid(), 0.0, 1.0),
    (nn.LogSigmoid(), -math.inf, 0.0),
    (nn.Softsign(), -1.0, 1.0),
    (Exp(), 0.0, math.inf),
    (nn.ELU(), -1.0, math.inf),
    (nn.CELU(0.5), -0.5, math.inf),
    (nn.SELU(), -1.7580993408473766, math.inf),
    (nn.Softplus(), 0.0, math.inf),
]
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)
moderate = st.floats(-8, 8)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def invert(layer, wanted, reference, bounds=None):
    options = InversionOptions(bounds=bounds)
    inverter = INVERTERS[type(layer)](layer, reference.shape[1:], options)
    with torch.no_grad():
        return inverter.invert(wanted, reference).solution


def f(layer, x):
    with torch.no_grad():
        return layer(torch.as_tensor(x, dtype=torch.float64))


@each_layer
def test_inverse_is_the_root_that_scipy_finds(layer):
    roots = torch.linspace(-3, 3, 30, dtype=torch.float64)  # near enough for no clipping
    wanted = f(layer, roots)
    x = invert(layer, wanted, torch.full_like(roots, 0.1))
    expected = [
        brentq(lambda t, y=y: f(layer, t).item() - y, -50, 50, xtol=1e-14) for y in wanted.tolist()
    ]
    torch.testing.assert_close(x, f64(*expected), rtol=0, atol=1e-12)
    torch.testing.assert_close(f(layer, x), wanted, rtol=1e-14, atol=1e-14)


@each_layer
@given(reference=moderate)
def test_reached_output_returns_the_reference_itself(layer, reference):
    reference = f64(reference)
    assert torch.equal(invert(layer, f(layer, reference), reference), reference)


@each_layer
def test_huge_and_unreachable_outputs_stay_finite(layer):
    extremes = f64(-1e300, -1e3, -1.0, -1e-300, 0.0, 1e-300, 1.0, 1e3, 1e300)
    wanted, reference = (
        grid.flatten() for grid in torch.meshgrid(extremes, extremes, indexing="ij")
    )
    x = invert(layer, wanted, reference)
    assert x.isfinite().all()
    gap, present_gap = ((f(layer, at) - wanted).abs() for at in (x, reference))
    assert (gap <= present_gap + 1e-12 * wanted.abs() + 1e-12).all()


@pytest.mark.parametrize(("layer", "lowest", "highest"), RANGES, ids=str)
@given(beyond=st.floats(0, 1e6), reference=moderate)
def test_outside_the_open_range_the_end_is_approached(layer, lowest, highest, beyond, reference):
    reference = f64(reference)
    for end, wanted in ((lowest, lowest - beyond), (highest, highest + beyond)):
        if math.isfinite(end):
            x = invert(layer, f64(wanted), reference)
            assert abs(f(layer, x).item() - end) <= 2 * INSIDE
            assert abs(f(layer, x).item() - end) <= abs(f(layer, reference).item() - end) + 1e-12


def test_saturated_reference_is_kept_rather_than_pulled_back():
    reference = f64(30.0, 20.0)
    assert torch.equal(invert(nn.Sigmoid(), f64(1.0, 2.0), reference), reference)


def test_slopes_of_every_sign_per_channel():
    layer = nn.PReLU(3).double()
    layer.weight.data = f64(0.5, 0.0, -2.0)
    wanted = f64(-1.0, -1.0, -1.0, 4.0, 4.0, 4.0).reshape(2, 3, 1)
    reference = f64(1.0, -3.0, 1.0, -1.0, -1.0, -1.0).reshape(2, 3, 1)
    expected = f64(-2.0, -3.0, 0.0, 4.0, 4.0, -2.0).reshape(2, 3, 1)
    assert torch.equal(invert(layer, wanted, reference), expected)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.ELU(0.0), -4.0),
        (nn.ELU(-1.0), 0.0),
        (nn.LeakyReLU(0.0), -4.0),
        (nn.LeakyReLU(-1.0), 0.0),
    ],
    ids=str,
)
def test_where_the_left_side_is_flat_or_falls_the_nearest_best_input_is_taken(layer, expected):
    assert invert(layer, f64(-0.5), f64(-4.0)).item() == expected


def test_falling_exponential_has_a_root_on_each_side():
    wanted = f64(0.5, 0.5)
    x = invert(nn.ELU(-1.0), wanted, f64(-3.0, 3.0))
    torch.testing.assert_close(x, f64(math.log(0.5), 0.5))


def test_softplus_that_jumps_down_at_its_threshold():
    layer = nn.Softplus(threshold=1.0)  # softplus(1) = 1.313, then x from 1 on
    wanted = f64(1.2, 1.2)
    x = invert(layer, wanted, f64(0.0, 3.0))
    torch.testing.assert_close(x, f64(math.log(math.expm1(1.2)), 1.2))
    torch.testing.assert_close(f(layer, x), wanted)


def test_softplus_with_a_falling_scale_is_refused():
    with pytest.raises(ValueError, match=r"beta of Softplus must be positive .* got -1\.0"):
        invert(nn.Softplus(beta=-1.0), f64(1.0), f64(1.0))


@each_layer
@given(wanted=moderate, reference=moderate, low=moderate, width=st.floats(0, 5))
def test_a_range_is_kept_and_nothing_in_it_is_better(layer, wanted, reference, low, width):
    wanted, reference = f64(wanted), f64(reference)
    x = invert(layer, wanted, reference, bounds=(low, low + width))
    assert low <= x.item() <= low + width
    candidates = torch.linspace(low, low + width, 101, dtype=torch.float64)
    gaps = (f(layer, candidates) - wanted).abs()
    gap = (f(layer, x) - wanted).abs()
    assert (gap <= gaps + 2.0001 * INSIDE).all()  # the ranges of CELU(2) and SELU are wider
    if low <= reference.item() <= low + width:
        free = invert(layer, wanted, reference)
        torch.testing.assert_close(f(layer, x), f(layer, free.clamp(low, low + width)))


def test_reference_outside_the_range_is_clipped_first():
    assert torch.equal(invert(nn.Tanh(), f64(0.0), f64(5.0), bounds=(1.0, 2.0)), f64(1.0))


@each_layer
def test_inverters_can_be_pickled(layer):
    inverter = INVERTERS[type(layer)](layer, torch.Size(), InversionOptions())
    again = pickle.loads(pickle.dumps(inverter))
    wanted = f(layer, f64(0.5))
    assert torch.equal(
        again.invert(wanted, f64(0.0)).solution, inverter.invert(wanted, f64(0.0)).solution
    )
