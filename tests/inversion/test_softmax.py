"""Softmax and log-softmax: scipy's constrained minimiser as oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize
from torch import nn

from featprop_sklearn.inversion.base import InversionOptions
from featprop_sklearn.inversion.monotone import INSIDE
from featprop_sklearn.inversion.softmax import INVERTERS, project_simplex

vectors = arrays(np.float64, 4, elements=st.floats(-6, 6)).map(torch.from_numpy)
LAYERS = [nn.Softmax(-1), nn.Softmin(-1), nn.LogSoftmax(-1)]
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def invert(layer, wanted, reference):
    inverter = INVERTERS[type(layer)](layer, reference.shape[1:], InversionOptions())
    return inverter.invert(wanted, reference).solution


def projection_by_scipy(y, floor):
    found = minimize(
        lambda p: ((p - y) ** 2).sum(),
        np.full(len(y), 1 / len(y)),
        jac=lambda p: 2 * (p - y),
        bounds=[(low, 1) for low in floor],
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 200},
    )
    return torch.from_numpy(found.x)


@given(y=vectors, floor=arrays(np.float64, 4, elements=st.floats(1e-6, 0.2)))
def test_projection_onto_the_simplex_with_floors(y, floor):
    p = project_simplex(y, torch.from_numpy(floor), 0)
    assert p.sum().item() == pytest.approx(1, abs=1e-14)
    torch.testing.assert_close(p, projection_by_scipy(y.numpy(), floor), rtol=0, atol=1e-6)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e3, 1e300])
def test_many_entries_meet_the_condition_of_optimality(spread):
    y = spread * torch.randn(20, 500, dtype=torch.float64)
    floor = torch.full_like(y, 1e-6)
    p = project_simplex(y, floor, 1)
    torch.testing.assert_close(p.sum(1), torch.ones_like(p[:, 0]), rtol=0, atol=1e-13)
    # one θ: y − p on the entries above their floor, and no more than it on the others
    above = p > floor
    theta = (y - p).where(above, torch.inf).amin(1, keepdim=True)
    tolerance = 1e-15 * (1 + y.abs().amax(1, keepdim=True))
    assert ((y - p - theta).abs() <= tolerance)[above].all()
    assert (y - floor <= theta + tolerance)[~above].all()


@each_layer
def test_chunks_give_the_same(layer, monkeypatch):
    wanted, reference = torch.randn(2, 7, 5, dtype=torch.float64)
    whole = invert(layer, wanted, reference)
    monkeypatch.setattr("featprop_sklearn.inversion.softmax._ENTRIES_AT_ONCE", 12)
    assert torch.equal(invert(layer, wanted, reference), whole)


def test_projection_along_any_dimension():
    y = torch.randn(3, 4, 5, dtype=torch.float64)
    floor = torch.full_like(y, 1e-3)
    along = project_simplex(y, floor, 1)
    torch.testing.assert_close(along, project_simplex(y.mT, floor.mT, -1).mT, rtol=0, atol=0)


@pytest.mark.parametrize("layer", [nn.Softmax(-1), nn.Softmin(-1)], ids=str)
@given(y=vectors, reference=vectors)
def test_output_is_the_projection_of_what_is_wanted(layer, y, reference):
    x = invert(layer, y[None], reference[None])[0]
    expected = projection_by_scipy(y.numpy(), np.zeros(4))
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-6 + 4 * INSIDE)


@each_layer
@given(logits=vectors, reference=vectors)
def test_reachable_outputs_are_met_by_the_nearest_shift(layer, logits, reference):
    wanted = (
        layer(logits).clamp(min=2 * INSIDE)
        if not isinstance(layer, nn.LogSoftmax)
        else layer(logits)
    )
    wanted = wanted / wanted.sum() if not isinstance(layer, nn.LogSoftmax) else wanted
    x = invert(layer, wanted[None], reference[None])[0]
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-12)
    assert (x - reference).sum().item() == pytest.approx(0, abs=1e-12)  # no shift is nearer


@each_layer
@given(reference=arrays(np.float64, 4, elements=st.floats(-1e300, 1e300)).map(torch.from_numpy))
def test_reached_output_returns_the_reference_itself(layer, reference):
    assert torch.equal(invert(layer, layer(reference)[None], reference[None])[0], reference)


@each_layer
def test_huge_equal_and_unreachable_outputs_stay_finite(layer):
    wanted = f64(
        *[[0.0] * 4, [1e300] * 4, [-1e300] * 4, [1e300, -1e300, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]]
    )
    for reference in (f64(0.0, 0.0, 0.0, 0.0), f64(1e300, -1e300, 5.0, 0.0), f64(0, -800, 0, 800)):
        assert invert(layer, wanted, reference.expand(5, 4)).isfinite().all()


@pytest.mark.parametrize("layer", [nn.Softmax(-1), nn.Softmin(-1)], ids=str)
@given(y=vectors, reference=vectors)
def test_never_worse_than_the_reference(layer, y, reference):
    reference = 5 * reference  # far into saturation
    x = invert(layer, y[None], reference[None])[0]
    gap, present = (layer(x) - y).norm(), (layer(reference) - y).norm()
    assert gap <= present + 1e-12


def test_saturated_reference_is_kept_rather_than_pulled_back():
    reference = f64([0.0, -40.0, -40.0])
    assert torch.equal(invert(nn.Softmax(-1), f64([1.0, 0.0, 0.0]), reference), reference)


@given(y=vectors, reference=vectors)
def test_log_softmax_keeps_the_differences_that_are_wanted(y, reference):
    layer = nn.LogSoftmax(-1)
    x = invert(layer, y[None], reference[None])[0]
    if torch.equal(x, reference):  # kept where a shift would only be worse
        assert (layer(reference) - y).norm() <= (y.log_softmax(-1) - y).norm() * (1 + 1e-12)
        return
    torch.testing.assert_close(x - x[0], y - y[0], rtol=0, atol=1e-13)
    torch.testing.assert_close(x.mean(), reference.mean(), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Softmax2d(), (3, 2, 2)), (nn.Softmax(1), (3, 2, 2))], ids=str
)
def test_channels_are_normalised_pixel_by_pixel(layer, shape):
    reference, logits = torch.randn(2, 5, *shape, dtype=torch.float64)
    wanted = layer(logits)
    torch.testing.assert_close(layer(invert(layer, wanted, reference)), wanted)


def test_many_classes_leave_room_for_the_floors():
    wanted = torch.zeros(1, 2_000_000, dtype=torch.float64)
    wanted[0, 0] = 1.0
    p = invert(nn.Softmax(-1), wanted, torch.zeros_like(wanted)).softmax(-1)
    assert p.isfinite().all()
    assert p[0, 0].item() == pytest.approx(0.9, abs=1e-6)


@pytest.mark.parametrize("dim", [None, 0, -2])
def test_dimension_that_is_missing_or_the_batch_is_refused(dim):
    reference = f64([0.0, 1.0])
    with pytest.raises(ValueError, match=f"dim of Softmax must be given .* got {dim} for batches"):
        invert(nn.Softmax(dim), reference, reference)
