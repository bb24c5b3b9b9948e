"""Max pooling: its windows, exactness where reachable, compromises elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from featprop_sklearn.inversion.base import InversionOptions
from featprop_sklearn.inversion.max_pool import INVERTERS, MaxPoolInverter
from featprop_sklearn.inversion.max_pool_windows import (
    POOL_DIMENSIONS,
    pooling_windows,
    window_of_each_position,
)

DISJOINT = [
    pytest.param(nn.MaxPool1d(2), (2, 7), id="1d, tail outside every window"),
    pytest.param(nn.MaxPool2d(2, ceil_mode=True), (2, 5, 5), id="ceil mode"),
    pytest.param(nn.MaxPool2d((2, 3), padding=(1, 0)), (2, 4, 6), id="padded"),
    pytest.param(nn.MaxPool2d((3, 1), (3, 2)), (2, 6, 5), id="gaps between windows"),
    pytest.param(nn.MaxPool3d(2), (2, 4, 2, 4), id="3d"),
    pytest.param(nn.AdaptiveMaxPool1d(3), (2, 9), id="adaptive"),
    pytest.param(nn.MaxPool1d(3), (6,), id="no channels"),
]
OVERLAPPING = [
    pytest.param(nn.MaxPool1d(3, 1), (2, 7), id="1d"),
    pytest.param(nn.MaxPool2d(3, 2, 1), (2, 7, 8), id="padded stride 2"),
    pytest.param(nn.MaxPool2d(3, 1, 1, dilation=2, ceil_mode=True), (1, 9, 8), id="dilated"),
    pytest.param(nn.MaxPool3d(2, 1), (1, 3, 4, 3), id="3d"),
    pytest.param(nn.AdaptiveMaxPool2d((3, None)), (2, 7, 5), id="adaptive with None"),
    pytest.param(nn.AdaptiveMaxPool3d(2), (2, 3, 4, 5), id="adaptive 3d"),
]


def inverter(layer, in_shape, bounds=None) -> MaxPoolInverter:
    return MaxPoolInverter(layer, torch.Size(in_shape), InversionOptions(bounds=bounds))


def draw(in_shape, seed, n_samples=6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_samples, *in_shape, generator=generator, dtype=torch.float64)


def residuals(layer, x, y) -> torch.Tensor:
    return (layer(x) - y).square().flatten(1).sum(1)


@pytest.mark.parametrize(("layer", "in_shape"), DISJOINT + OVERLAPPING)
def test_windows_give_the_layer(layer, in_shape):
    x = draw(in_shape, 0)
    windows, n_positions = pooling_windows(layer, torch.Size(in_shape))
    padded = nn.functional.pad(x.reshape(-1, n_positions), (0, 1), value=-torch.inf)
    assert torch.equal(padded[:, windows].amax(2).reshape(layer(x).shape), layer(x))


@pytest.mark.parametrize("rounded", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize(("layer", "in_shape"), DISJOINT + OVERLAPPING)
def test_reachable_outputs_are_met_exactly(layer, in_shape, rounded):
    origin, reference = draw(in_shape, 1), draw(in_shape, 2)
    if rounded:
        origin = origin.round()
    x = inverter(layer, in_shape).invert(layer(origin), reference).solution
    assert torch.equal(layer(x), layer(origin))


@pytest.mark.parametrize(("layer", "in_shape"), DISJOINT + OVERLAPPING)
def test_range_is_kept(layer, in_shape):
    origin, reference = draw(in_shape, 1).clamp(0, 1), draw(in_shape, 2)
    x = inverter(layer, in_shape, (0.0, 1.0)).invert(layer(origin), reference).solution
    assert x.min() >= 0
    assert x.max() <= 1
    assert torch.equal(layer(x), layer(origin))


@pytest.mark.parametrize(("layer", "in_shape"), DISJOINT + OVERLAPPING)
@given(seed=st.integers(0, 2**20), size=st.sampled_from([0.0, 1e-8, 1.0, 1e150]))
@settings(deadline=None, max_examples=8, derandomize=True)
def test_own_output_returns_the_reference_and_none_makes_it_worse(layer, in_shape, seed, size):
    reference = draw(in_shape, seed, 2)
    invert = inverter(layer, in_shape).invert
    assert torch.equal(invert(layer(reference), reference).solution, reference)
    wanted = size * layer(draw(in_shape, seed + 1, 2)) + size * torch.randn_like(layer(reference))
    x = invert(wanted, reference).solution
    assert x.isfinite().all()
    before, after = residuals(layer, reference, wanted), residuals(layer, x, wanted)
    assert (after <= before * (1 + 1e-12)).all()


@pytest.mark.parametrize("bounds", [None, (-0.5, 0.5)])
@pytest.mark.parametrize(("layer", "in_shape"), DISJOINT)
def test_disjoint_windows_agree_with_brute_force(layer, in_shape, bounds):
    wanted, reference = layer(draw(in_shape, 3)), draw(in_shape, 4)
    x = inverter(layer, in_shape, bounds).invert(wanted, reference).solution
    low, high = bounds or (-np.inf, np.inf)
    windows, n_positions = pooling_windows(layer, torch.Size(in_shape))
    rows = reference.reshape(-1, n_positions).numpy()
    expected = rows.clip(low, high)
    for x0, answer, y in zip(rows, expected, wanted.reshape(len(rows), -1).numpy(), strict=True):
        for window, value in zip(windows.numpy(), y.clip(low, high), strict=True):
            held = window[window < n_positions]
            lowered = np.tile(answer[held].clip(max=value), (len(held), 1))
            np.fill_diagonal(lowered, value)
            answer[held] = lowered[((lowered - x0[held]) ** 2).sum(1).argmin()]
    assert np.array_equal(x.reshape(expected.shape).numpy(), expected)


@pytest.mark.parametrize(("layer", "in_shape"), DISJOINT)
@given(
    seed=st.integers(0, 2**20),
    bounds=st.sampled_from([None, (0.0, np.inf), (-0.5, 0.75), (2.0, 2.0)]),
)
@settings(deadline=None, max_examples=25, derandomize=True)
def test_closed_form_gives_what_the_rule_for_overlaps_gives(layer, in_shape, seed, bounds):
    # quarters make ties of entries, and costs without rounding
    wanted, reference = layer(draw(in_shape, seed)), draw(in_shape, seed + 1)
    wanted, reference = (4 * wanted).round() / 4, (4 * reference).round() / 4
    wanted = wanted + seed % 5 - 2
    closed_form, greedy = inverter(layer, in_shape, bounds), inverter(layer, in_shape, bounds)
    greedy.window_of = None
    x = closed_form.invert(wanted, reference).solution
    assert torch.equal(x, greedy.invert(wanted, reference).solution)


@pytest.mark.parametrize(("layer", "in_shape"), DISJOINT + OVERLAPPING)
def test_each_position_knows_its_window_unless_windows_overlap(layer, in_shape):
    windows, n_positions = pooling_windows(layer, torch.Size(in_shape))
    holding = [(windows == i).any(1).nonzero().flatten().tolist() for i in range(n_positions)]
    window_of = window_of_each_position(windows, n_positions)
    if max(map(len, holding)) > 1:
        assert window_of is None
    else:
        assert window_of.tolist() == [(*held, len(windows))[0] for held in holding]


def test_disjoint_windows_that_reach_into_the_padding():
    layer = nn.MaxPool1d(2, 1, 1, dilation=2)
    reference = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64)
    wanted = torch.tensor([[[3.0, 0.5]]], dtype=torch.float64)
    expected = torch.tensor([[[0.5, 3.0]]], dtype=torch.float64)
    stage = inverter(layer, (1, 2))
    assert stage.window_of is not None
    assert torch.equal(stage.invert(wanted, reference).solution, expected)


def test_a_shared_position_is_raised_once():
    # one window from each side: raising the middle costs 1 once, the outer ones 1 each
    layer = nn.MaxPool1d(2, 1)
    x = inverter(layer, (1, 3)).invert(
        torch.ones(1, 1, 2, dtype=torch.float64), torch.zeros(1, 1, 3, dtype=torch.float64)
    )
    assert x.solution.flatten().tolist() == [0.0, 1.0, 0.0]


def test_unreachable_output_is_shared_out():
    # The middle window holds nothing of its own: max(x1, x2) <= max(y0, y2). Best is to
    # give it and one neighbour their mean, residual 2 * 0.5^2.
    layer = nn.MaxPool1d(2, 1)
    wanted = torch.tensor([[[0.0, 1.0, 0.0]]], dtype=torch.float64)
    x = inverter(layer, (1, 4)).invert(wanted, torch.zeros(1, 1, 4, dtype=torch.float64)).solution
    assert residuals(layer, x, wanted).item() == pytest.approx(0.5)


def test_unreachable_outputs_of_a_stride_1_pool_still_come_nearer():
    # Noise on the output of a stride-1 pool is unreachable almost everywhere: clipping
    # alone makes the residual larger than that of the reference (1.7 to 1.9 times).
    layer, in_shape = nn.MaxPool2d(3, 1, 1), (4, 12, 12)
    reference = draw(in_shape, 5)
    wanted = layer(reference) + 0.3 * draw(in_shape, 6)
    x = inverter(layer, in_shape).invert(wanted, reference).solution
    ratio = residuals(layer, x, wanted) / residuals(layer, reference, wanted)
    assert ratio.max() < 0.8


def test_positions_outside_every_window_keep_their_reference():
    layer, reference = nn.MaxPool1d(2), draw((2, 7), 7)
    x = inverter(layer, (2, 7)).invert(layer(draw((2, 7), 8)), reference).solution
    assert torch.equal(x[..., -1], reference[..., -1])


def test_window_of_padding_alone_is_ignored():
    layer = nn.MaxPool1d(2, 1, 1, dilation=2)
    reference = torch.ones(1, 1, 1, dtype=torch.float64)
    assert layer(reference).item() == -torch.inf
    wanted = torch.full((1, 1, 1), 3.0, dtype=torch.float64)
    assert torch.equal(inverter(layer, (1, 1)).invert(wanted, reference).solution, reference)


def test_chunks_give_the_same(monkeypatch):
    layer, in_shape = nn.MaxPool2d(3, 2, 1), (2, 7, 8)
    wanted, reference = draw(layer(draw(in_shape, 0)).shape[1:], 9), draw(in_shape, 10)
    whole = inverter(layer, in_shape).invert(wanted, reference).solution
    monkeypatch.setattr("featprop_sklearn.inversion.max_pool._WINDOW_ENTRIES_AT_ONCE", 300)
    assert torch.equal(inverter(layer, in_shape).invert(wanted, reference).solution, whole)


@pytest.mark.parametrize("layer", [nn.MaxPool2d(2, return_indices=True)])
def test_indices_are_refused(layer):
    with pytest.raises(ValueError, match="return_indices must be False for MaxPool2d"):
        inverter(layer, (1, 4, 4))


def test_every_pool_is_registered():
    assert set(INVERTERS) == set(POOL_DIMENSIONS)
