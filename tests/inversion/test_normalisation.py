"""Normalisations: projection on what is reachable, nearest group, the layers themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import nn

from featprop_sklearn.inversion.base import InversionOptions
from featprop_sklearn.inversion.normalisation import INVERTERS, NormalisationInverter
from featprop_sklearn.inversion.normalised_values import nearest_group, reachable_values

LAYERS = [
    pytest.param(lambda: nn.LayerNorm(5), (5,), id="LayerNorm"),
    pytest.param(lambda: nn.LayerNorm((3, 4)), (2, 3, 4), id="LayerNorm, two dimensions"),
    pytest.param(lambda: nn.LayerNorm(6, elementwise_affine=False), (2, 6), id="no weights"),
    pytest.param(lambda: nn.LayerNorm(6, bias=False, eps=0.1), (6,), id="no bias, large eps"),
    pytest.param(lambda: nn.LayerNorm(1), (3, 1), id="LayerNorm of size 1"),
    pytest.param(lambda: nn.RMSNorm(5), (5,), id="RMSNorm"),
    pytest.param(lambda: nn.RMSNorm(5, eps=1e-2), (2, 5), id="RMSNorm with eps"),
    pytest.param(lambda: nn.GroupNorm(2, 4), (4, 3, 2), id="GroupNorm"),
    pytest.param(lambda: nn.InstanceNorm1d(3), (3, 6), id="InstanceNorm1d"),
    pytest.param(lambda: nn.InstanceNorm2d(3, affine=True), (3, 3, 2), id="InstanceNorm2d"),
    pytest.param(lambda: nn.InstanceNorm3d(2), (2, 3, 2, 2), id="InstanceNorm3d"),
]


def prepared(make, in_shape, n_zeros=0, options=None):
    torch.manual_seed(0)
    layer = make().double().eval().requires_grad_(False)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    if getattr(layer, "weight", None) is not None:
        layer.weight.view(-1)[:n_zeros] = 0
    options = options or InversionOptions()
    return layer, INVERTERS[type(layer)](layer, torch.Size(in_shape), options)


def draw(shape, seed) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def residuals(layer, x, y) -> torch.Tensor:
    return (layer(x) - y).square().flatten(1).sum(1)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("n_zeros", [0, 1, 2, 3])
@pytest.mark.parametrize(("make", "in_shape"), LAYERS)
def test_reachable_outputs_are_met_to_1e_5(make, in_shape, n_zeros, scale):
    layer, inverter = prepared(make, in_shape, n_zeros)
    wanted = layer(scale * draw((20, *in_shape), 1))
    x = inverter.invert(wanted, 1 + draw((20, *in_shape), 2)).solution
    bias = layer(torch.zeros(1, *in_shape, dtype=torch.float64))
    size = (wanted - bias).square().flatten(1).sum(1)
    assert (residuals(layer, x, wanted).sqrt() <= 1.000001e-5 * size.sqrt()).all()


@pytest.mark.parametrize("n_zeros", [0, 3])
@pytest.mark.parametrize(("make", "in_shape"), LAYERS)
@given(seed=st.integers(0, 2**20), scale=st.sampled_from([0.0, 1e-3, 1.0, 1e150]))
@settings(deadline=None, max_examples=8, derandomize=True)
def test_own_output_returns_the_reference(make, in_shape, n_zeros, seed, scale):
    layer, inverter = prepared(make, in_shape, n_zeros)
    reference = scale * draw((3, *in_shape), seed)
    assert torch.equal(inverter.invert(layer(reference), reference).solution, reference)


@pytest.mark.parametrize("n_zeros", [0, 3])
@pytest.mark.parametrize(("make", "in_shape"), LAYERS)
@given(
    seed=st.integers(0, 2**20),
    size=st.sampled_from([0.0, 1e-3, 1.0, 1e150]),
    reference_size=st.sampled_from([0.0, 1e-3, 1.0, 1e150]),
)
@settings(deadline=None, max_examples=10, derandomize=True)
def test_never_worse_than_the_reference_or_a_candidate(
    make, in_shape, n_zeros, seed, size, reference_size
):
    layer, inverter = prepared(make, in_shape, n_zeros)
    wanted = size * draw((3, *in_shape), seed)
    reference = reference_size * (draw((3, *in_shape), seed + 1) if seed % 3 else 1)
    reference = reference * torch.ones_like(wanted)
    x = inverter.invert(wanted, reference).solution
    assert x.isfinite().all()
    best = residuals(layer, x, wanted)
    assert (best <= residuals(layer, reference, wanted) * (1 + 1e-12)).all()
    if reference_size > 1:
        return  # a shift of 1e150 has no room for the digits of a smaller scale
    slack = 1e-4 * (1 + best.sqrt())  # 1e-5 of the weighted values, which are below 10
    for candidate in (x + 0.1 * draw(x.shape, seed + 2), draw(x.shape, seed + 3), 3 * x, x / 3):
        assert (best.sqrt() <= residuals(layer, candidate, wanted).sqrt() + slack).all()


@pytest.mark.parametrize("centred", [True, False], ids=["centred", "rms"])
@pytest.mark.parametrize("n_zeros", [0, 1, 2])
def test_projection_agrees_with_scipy(n_zeros, centred):
    generator = np.random.default_rng(0)
    for size in (0.3, 1.0, 5.0, 5.0, 5.0):
        weight = generator.normal(size=5)
        weight[:n_zeros] = 0
        wanted = size * generator.normal(size=5)
        ours = reachable_values(
            torch.tensor(wanted).reshape(1, 1, -1), torch.tensor(weight)[None], centred
        ).flatten()
        constraints = [{"type": "ineq", "fun": lambda v: 1 - np.mean(v**2)}]
        if centred:
            constraints.append({"type": "eq", "fun": np.mean})
            assert abs(ours.mean()) < 1e-12
        theirs = minimize(
            lambda v, w=weight, t=wanted: np.sum((w * v - t) ** 2),
            generator.normal(size=5),
            constraints=constraints,
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert ours.square().mean() <= 1 + 1e-12
        assert np.sum((weight * ours.numpy() - wanted) ** 2) <= theirs.fun * (1 + 1e-7) + 1e-9
        np.testing.assert_allclose(weight * ours.numpy(), weight * theirs.x, atol=2e-4)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_projection_with_equal_weights_is_the_clipped_centred_output(scale):
    wanted = scale * draw((4, 2, 7), 3)
    weight = torch.tensor([[0.5], [-2.0]], dtype=torch.float64).expand(2, 7)
    centred = (wanted - wanted.mean(-1, keepdim=True)) / weight
    size = centred.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(
        reachable_values(wanted, weight, True), centred / size.clamp_min(1), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-7, 1e-12])
def test_projection_is_stationary_for_very_unequal_weights(spread):
    weight = torch.logspace(0, np.log10(spread), 6, dtype=torch.float64)[None]
    wanted = 3 * draw((50, 1, 6), 4)
    values = reachable_values(wanted, weight, True)
    assert (values.square().mean(-1) <= 1 + 1e-12).all()
    # optimal on a ball: the gradient is a multiple of v plus a constant (lstsq as oracle)
    gradient = weight * (wanted - weight * values)
    for v, g in zip(values.squeeze(1).numpy(), gradient.squeeze(1).numpy(), strict=True):
        basis = np.stack([v, np.ones_like(v)], 1)
        fit, *_ = np.linalg.lstsq(basis, g, rcond=None)
        assert fit[0] >= -1e-9
        np.testing.assert_allclose(basis @ fit, g, atol=1e-9)


@pytest.mark.parametrize("centred", [True, False], ids=["centred", "rms"])
@pytest.mark.parametrize("reference_size", [0.05, 1.0, 20.0])
def test_nearest_group_with_zero_weights_agrees_with_scipy(centred, reference_size):
    generator = np.random.default_rng(1)
    eps, free = 0.1, np.array([True, True, True, False, False])

    def normalise(x):
        offset = x - x.mean() if centred else x
        return offset / np.sqrt(np.mean(offset**2) + eps)

    for _ in range(4):
        origin = generator.normal(size=5)
        reference = reference_size * generator.normal(size=5)
        wanted = normalise(origin)[~free]
        values = np.zeros(5)
        values[~free] = wanted
        values[free] = -wanted.sum() / 3 if centred else 0.0
        ours = nearest_group(
            torch.tensor(values).reshape(1, 1, -1),
            torch.tensor(free)[None],
            torch.tensor(reference).reshape(1, 1, -1),
            eps,
            centred,
            1e-12,
        )
        ours = ours.flatten().numpy()
        np.testing.assert_allclose(normalise(ours)[~free], wanted, atol=1e-9)
        tries = [
            minimize(
                lambda x, r=reference: np.sum((x - r) ** 2),
                start,
                constraints={
                    "type": "eq",
                    "fun": lambda x, w=wanted: normalise(x)[~free] - w,
                },
                method="SLSQP",
                options={"ftol": 1e-12, "maxiter": 500},
            )
            for start in (origin, reference, generator.normal(size=5))
        ]
        theirs = [t.fun for t in tries if np.allclose(normalise(t.x)[~free], wanted, atol=1e-6)]
        assert theirs
        assert np.sum((ours - reference) ** 2) <= min(theirs) * (1 + 1e-6) + 1e-6


def test_scale_and_shift_are_the_least_squares_fit_on_the_sphere():
    layer, inverter = prepared(lambda: nn.LayerNorm(6), (6,))
    values = draw((8, 6), 5)
    values = (values - values.mean(1, keepdim=True)) / values.std(1, correction=0, keepdim=True)
    reference = 2 + 5 * values + draw((8, 6), 6)
    x = inverter.invert(layer.weight * values + layer.bias, reference).solution
    for v, x0, ours in zip(values.numpy(), reference.numpy(), x.numpy(), strict=True):
        basis = np.stack([v, np.ones(6)], 1)
        fit, *_ = np.linalg.lstsq(basis, x0, rcond=None)
        np.testing.assert_allclose(ours, basis @ fit, rtol=1e-9)


def test_scale_is_fixed_inside_the_ball():
    # v = 0.6 of the sphere: s / sqrt(s^2 + eps) = 0.6 has the one root s = 0.75 sqrt(eps)
    inverter = prepared(lambda: nn.LayerNorm(4, eps=0.04, elementwise_affine=False), (4,))[1]
    sphere = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    x = inverter.invert(0.6 * sphere, 9 + 7 * sphere).solution
    torch.testing.assert_close(x, 9 + 0.15 * sphere, rtol=1e-4, atol=0)


@pytest.mark.parametrize("n_zeros", [0, 2])
@pytest.mark.parametrize("damping", ["auto", 0.7])
def test_running_statistics_make_it_affine(n_zeros, damping):
    def make():
        layer = nn.InstanceNorm1d(3, affine=True, track_running_stats=True)
        layer.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
        layer.running_var.copy_(torch.tensor([0.5, 1.0, 4.0]))
        return layer

    options = InversionOptions(damping=damping)
    layer, inverter = prepared(make, (3, 4), n_zeros, options)
    wanted, reference = draw((2, 3, 4), 7), draw((2, 3, 4), 8)
    result = inverter.invert(wanted, reference)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: layer(x.reshape(1, 3, 4)).flatten(), torch.zeros(12, dtype=torch.float64)
    )
    assert result.damping == (0.0 if damping == "auto" else damping)
    stacked = np.vstack([jacobian.numpy(), result.damping * np.eye(12)])
    right = np.vstack([(wanted - layer(reference)).flatten(1).numpy().T, np.zeros((12, 2))])
    step, *_ = np.linalg.lstsq(stacked, right, rcond=None)
    np.testing.assert_allclose((result.solution - reference).flatten(1).numpy().T, step, atol=1e-12)


def test_running_statistics_of_zero_weight_keep_the_reference():
    inverter = prepared(
        lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True), (3, 4), 3
    )[1]
    wanted, reference = draw((2, 3, 4), 7), draw((2, 3, 4), 8)
    assert torch.equal(inverter.invert(wanted, reference).solution, reference)


def test_auto_damping_begins_at_condition_1000():
    make = lambda: nn.InstanceNorm1d(2, affine=True, track_running_stats=True)  # noqa: E731
    layer, inverter = prepared(make, (2, 4))
    for ratio, damped in ((2e-3, False), (1e-4, True)):
        inverter.weight[:, 0] = layer.weight[:] = torch.tensor([1.0, ratio])
        result = inverter.invert(draw((1, 2, 4), 9), draw((1, 2, 4), 10))
        expected = np.sqrt(1e-6 - ratio**2) if damped else 0.0
        assert result.damping == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("eps", [0.0, -1e-5])
def test_eps_must_be_positive(eps):
    with pytest.raises(ValueError, match=r"eps of LayerNorm must be > 0 .* got (0\.0|-1e-05)"):
        NormalisationInverter(nn.LayerNorm(3, eps=eps), torch.Size((3,)), InversionOptions())
