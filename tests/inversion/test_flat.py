"""Activations with flat pieces: brute force over a grid as oracle."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from featprop_sklearn.inversion import prepare_inverter
from featprop_sklearn.inversion.base import InversionOptions
from featprop_sklearn.inversion.flat import INVERTERS
from featprop_sklearn.inversion.monotone import INSIDE

LAYERS = [
    nn.ReLU(),
    nn.ReLU6(),
    nn.Hardtanh(-0.5, 2.0),
    nn.Hardsigmoid(),
    nn.Threshold(0.0, 0.0),
    nn.Threshold(1.0, -2.0),
    nn.Threshold(-1.0, 3.0),
    nn.Hardshrink(0.5),
    nn.Softshrink(0.5),
]
GRID = torch.linspace(-10, 10, 2001, dtype=torch.float64)  # every end of a piece lies on it
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)
# on the grid too, so that ties and ends are met exactly
on_grid = st.integers(-1000, 1000).map(lambda i: float(GRID[1000 + i]))


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def invert(layer, wanted, reference, bounds=None):
    inverter = INVERTERS[type(layer)](layer, reference.shape[1:], InversionOptions(bounds=bounds))
    return inverter.invert(wanted, reference).solution


def assert_unbeaten(layer, wanted, reference, x, candidates):
    gap, gaps = (layer(x) - wanted).abs(), (layer(candidates) - wanted).abs()
    assert (gap <= gaps + 1.0001 * INSIDE).all()
    as_good = candidates[gaps <= gap - 1e-12 if gap > 1e-12 else gaps == 0]
    distance = (x - reference).abs()
    assert ((as_good - reference).abs() >= distance - 1.0001 * INSIDE).all()


@each_layer
@given(wanted=st.floats(-8, 8) | on_grid, reference=st.floats(-9, 9) | on_grid)
def test_no_grid_point_is_better_or_as_good_and_nearer(layer, wanted, reference):
    wanted, reference = f64(wanted), f64(reference)
    assert_unbeaten(layer, wanted, reference, invert(layer, wanted, reference), GRID)


@each_layer
@given(wanted=on_grid, reference=on_grid, low=on_grid, width=st.floats(0, 6))
def test_the_same_within_a_range(layer, wanted, reference, low, width):
    wanted, reference = f64(wanted), f64(reference)
    x = invert(layer, wanted, reference, bounds=(low, low + width))
    assert low <= x.item() <= low + width
    within = GRID[(low <= GRID) & (low + width >= GRID)]
    assert_unbeaten(layer, wanted, reference, x, within)


@each_layer
@given(reference=st.floats(-1e300, 1e300) | on_grid)
def test_reached_output_returns_the_reference_itself(layer, reference):
    reference = f64(reference)
    assert torch.equal(invert(layer, layer(reference), reference), reference)


@each_layer
def test_huge_outputs_and_references_stay_finite(layer):
    extremes = f64(-1e300, -1.0, 0.0, 1.0, 1e300)
    wanted, reference = (
        grid.flatten() for grid in torch.meshgrid(extremes, extremes, indexing="ij")
    )
    x = invert(layer, wanted, reference)
    assert x.isfinite().all()
    assert ((layer(x) - wanted).abs() <= (layer(reference) - wanted).abs() + INSIDE).all()


def test_relu_keeps_what_is_off_and_switches_off_at_zero():
    x = invert(nn.ReLU(), f64(-1.0, 0.0, 0.0, 2.0), f64(-3.0, -3.0, 3.0, -3.0))
    assert torch.equal(x, f64(-3.0, -3.0, 0.0, 2.0))


def test_in_place_layer_leaves_the_reference_alone():
    reference = f64(-1.0, 2.0)
    inverter = prepare_inverter(nn.ReLU(inplace=True), (2,))
    x = inverter.invert(f64(0.0, 1.0)[None], reference[None]).solution
    assert torch.equal(x, f64(-1.0, 1.0)[None])
    assert torch.equal(reference, f64(-1.0, 2.0))


def test_step_over_a_jump_survives_rounding_to_float32():
    layer = nn.Threshold(1.0, -2.0)
    x = invert(layer, f64(1.0), f64(0.0))
    assert layer(x.float()).item() == pytest.approx(1.0, abs=2 * INSIDE)
