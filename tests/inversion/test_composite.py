"""Gauss-Newton on composite stages, against numpy's least squares and scipy's optimisers."""

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares, minimize
from torch import nn

from featprop_sklearn.inversion import (
    InversionOptions,
    UnsupportedLayerError,
    composite,
    prepare_inverter,
)
from featprop_sklearn.inversion import jacobian as jacobians
from featprop_sklearn.inversion.composite import GaussNewton
from tests.inversion.cases import Gate, Residual, SelfAttention


def f64(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def norms(batch):
    return torch.linalg.vector_norm(batch.flatten(1), dim=1)


def prepare(layer, in_shape, damping="auto"):
    inverter = prepare_inverter(layer, in_shape, InversionOptions(damping=damping))
    assert isinstance(inverter, GaussNewton)
    return inverter


def residual_mlp(width=4, hidden=6):
    layers = nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, width)
    return Residual(nn.Sequential(*layers))


class Affine(nn.Module):
    """Two linear layers in parallel: affine, but no layer that the registry knows."""

    def __init__(self, n_in, n_out, rank):
        super().__init__()
        self.one, self.other = nn.Linear(n_in, rank, bias=False), nn.Linear(rank, n_out)
        self.double()

    def forward(self, x):
        return self.other(self.one(x)) + 0.5

    def matrix(self):
        return (self.other.weight @ self.one.weight).detach().numpy()


def for_scipy(layer, shape):
    """Return f and its Jacobian for one flat sample."""

    def value(x):
        return layer(torch.tensor(x).reshape(1, *shape)).detach().numpy().ravel()

    def jacobian(x):
        derivative = torch.func.jacrev(layer)(torch.tensor(x).reshape(1, *shape))
        return derivative.detach().numpy().reshape(-1, x.size)

    return value, jacobian


@pytest.mark.parametrize("damping", [0.0, "auto"])
@pytest.mark.parametrize(
    ("n_in", "n_out", "rank"), [(6, 3, 3), (3, 6, 3), (4, 4, 4), (6, 5, 2)], ids=str
)
def test_affine_stage_gives_the_exact_nearest_preimage(n_in, n_out, rank, damping):
    layer = Affine(n_in, n_out, rank)
    wanted, reference = f64(5, n_out), f64(5, n_in)
    remainder = (wanted - layer(reference)).detach().numpy()
    step = np.linalg.lstsq(layer.matrix(), remainder.T, rcond=1e-10)[0].T
    result = prepare(layer, (n_in,), damping).invert(wanted, reference)
    assert result.converged
    # "auto": what is out of reach is approached to the stopping rule
    tolerance = 1e-9 if damping == 0.0 else 1e-6
    expected = reference.numpy() + step
    np.testing.assert_allclose(result.solution.numpy(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("damping", [0.0, "auto"])
def test_affine_stage_meets_reachable_outputs_to_rounding(damping):
    layer = Affine(6, 3, 3)
    wanted = layer(f64(5, 6)).detach()
    result = prepare(layer, (6,), damping).invert(wanted, f64(5, 6))
    assert result.converged
    assert (norms(layer(result.solution) - wanted) <= 1e-10 * norms(wanted)).all()


@pytest.mark.parametrize("build", [lambda: Gate(6, 2), lambda: nn.GLU()], ids=["gate", "GLU"])
@pytest.mark.parametrize("reach", [0.3, 1.0])
def test_as_near_to_the_reference_as_slsqp(build, reach):
    layer = build().double()
    reference = f64(8, 6)
    wanted = layer(reference + reach * f64(8, 6)).detach()
    result = prepare(layer, (6,), 0.0).invert(wanted, reference)
    assert (norms(layer(result.solution) - wanted) <= 1e-6 * norms(wanted)).all()
    distance = norms(result.solution - reference).numpy()
    value, jacobian = for_scipy(layer, (6,))
    rivals = [
        minimize(
            lambda x, x0=x0: np.sum((x - x0) ** 2),
            x0,
            jac=lambda x, x0=x0: 2 * (x - x0),
            constraints={"type": "eq", "fun": lambda x, y=y: value(x) - y, "jac": jacobian},
            method="SLSQP",
            options={"maxiter": 200, "ftol": 1e-12},
        )
        for x0, y in zip(reference.numpy(), wanted.numpy(), strict=True)
    ]
    solved = np.array([rival.success for rival in rivals])
    ratio = distance[solved] / np.sqrt([rival.fun for rival in rivals])[solved]
    assert solved.sum() >= 6
    assert ratio.max() <= 1 + 1e-6


@pytest.mark.parametrize("damping", [0.1, 1.0])
@pytest.mark.parametrize(
    ("build", "shape"),
    [(residual_mlp, (4,)), (lambda: Gate(5, 3), (5,)), (lambda: SelfAttention(4, 2), (2, 4))],
    ids=["residual", "gate", "attention"],
)
def test_damping_number_minimises_the_penalised_problem(build, shape, damping):
    layer = build().double()
    reference = f64(4, *shape)
    wanted = layer(reference).detach() + 0.5 * f64(4, *layer(reference).shape[1:])
    result = prepare(layer, shape, damping).invert(wanted, reference)
    assert result.damping == damping
    value, _ = for_scipy(layer, shape)
    flat = (batch.flatten(1).numpy() for batch in (reference, wanted, result.solution))
    for x0, y, found in zip(*flat, strict=True):

        def stacked(x, x0=x0, y=y):
            return np.concatenate([value(x) - y, damping * (x - x0)])

        rival = least_squares(stacked, x0, xtol=1e-12, ftol=1e-12, gtol=1e-12)
        assert np.sum(stacked(found) ** 2) <= 2 * rival.cost * (1 + 1e-3)


class Squares(nn.Module):
    def forward(self, x):
        return x.square()


class Curve(nn.Module):
    """tanh of a linear layer that expands: most outputs are out of reach."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)

    def forward(self, x):
        return self.linear(x).tanh()


@pytest.mark.parametrize("damping", [0.0, "auto"])
def test_out_of_reach_outputs_end_where_the_residual_is_stationary(damping):
    inverter = prepare(Curve(3, 6), (3,), damping)
    reference = f64(6, 3)
    wanted = inverter.layer(reference + f64(6, 3)) + 0.1 * f64(6, 6)
    result = inverter.invert(wanted, reference)
    residual, pull = torch.func.vjp(lambda x: inverter.layer(x) - wanted, result.solution)
    assert result.converged
    assert (norms(pull(residual)[0]) <= 1e-6 * norms(residual)).all()
    value, jacobian = for_scipy(inverter.layer, (3,))
    for x0, y, mine in zip(reference.numpy(), wanted.numpy(), norms(residual), strict=True):
        rival = least_squares(lambda x, y=y: value(x) - y, x0, jacobian, method="lm")
        assert mine <= np.sqrt(2 * rival.cost) * (1 + 1e-6)


@pytest.mark.parametrize("damping", [0.0, "auto", 0.1])
def test_far_outputs_are_never_worse_than_the_reference(damping):
    inverter = prepare(Gate(4, 6), (4,), damping)
    wanted, reference = 3 * f64(10, 6), f64(10, 4)
    result = inverter.invert(wanted, reference)
    before, after = (norms(inverter.layer(x) - wanted) for x in (reference, result.solution))
    assert (after <= before).all()


def test_reference_that_gives_the_wanted_output_is_returned_itself():
    inverter = prepare(residual_mlp(), (4,))
    reference = f64(3, 4)
    result = inverter.invert(inverter.layer(reference), reference)
    assert torch.equal(result.solution, reference)
    assert result.iterations == 0


def test_samples_do_not_depend_on_each_other():
    inverter = prepare(residual_mlp(), (4,), 0.0)
    reference, wanted = f64(5, 4), f64(5, 4)
    together = inverter.invert(wanted, reference).solution
    alone = torch.cat(
        [inverter.invert(wanted[i : i + 1], reference[i : i + 1]).solution for i in range(5)]
    )
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-7)


class Spectral(nn.Module):
    """Multiplies frequencies by complex numbers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2, 1 + 1j, 1 - 2j, 1j, 1.5], dtype=torch.cfloat))

    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=8)


def test_stages_with_complex_weights():
    layer = Spectral().requires_grad_(False)
    source, reference = torch.randn(5, 8), f64(5, 8)
    result = prepare(layer, (8,)).invert(layer(source).double(), reference)
    torch.testing.assert_close(layer(result.solution.float()), layer(source))


class Blind(nn.Module):
    """Looks away from some samples."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return torch.where(x[:, :1] > 0, self.linear(x), torch.ones(3, dtype=x.dtype))


@pytest.mark.parametrize("damping", ["auto", 0.0, 0.1])
@pytest.mark.parametrize("dense", [True, False])
def test_samples_that_nothing_moves_stay_and_hold_no_other_up(damping, dense, monkeypatch):
    monkeypatch.setattr(jacobians, "DENSE_BYTES", jacobians.DENSE_BYTES if dense else 0)
    torch.manual_seed(0)
    layer, reference = Blind().double(), torch.randn(8, 4, dtype=torch.float64)
    reference[:, 0] = torch.tensor([9.0, -9.0] * 4)
    wanted = layer(reference).detach() + 0.1
    inverter = prepare(layer, (4,), damping)
    solution = inverter.invert(wanted, reference).solution
    torch.testing.assert_close(solution[1::2], reference[1::2])
    alone = inverter.invert(wanted[::2], reference[::2]).solution
    torch.testing.assert_close(solution[::2], alone)
    assert (norms(layer(alone) - wanted[::2]) < norms(layer(reference) - wanted)[::2]).all()


def test_no_samples():
    result = prepare(residual_mlp(), (4,)).invert(f64(0, 4), f64(0, 4))
    assert result.converged
    assert result.solution.shape == (0, 4)


def test_what_does_not_converge_says_so_and_what_to_do(monkeypatch):
    monkeypatch.setattr(composite, "MAX_STEPS", 1)
    inverter = prepare(Squares(), (3,), 0.0)
    reference = torch.ones(3, 3, dtype=torch.float64)
    wanted = torch.tensor([[100.0], [1.0], [50.0]], dtype=torch.float64).expand(3, 3)
    result = inverter.invert(wanted, reference)
    assert (result.status, result.solver, result.iterations) == ("not_converged", "gauss_newton", 1)
    assert result.residual > 0.1
    assert "short of a stationary point for 2 of 3 samples" in result.advice
    assert "Use target_step < 1, or a split after this stage" in result.advice


def test_outputs_that_are_met_are_not_polished_further():
    layer = Residual(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))).double()
    reference = f64(40, 16)
    wanted = layer(reference + 0.3 * f64(40, 16)).detach()
    result = prepare(layer, (16,)).invert(wanted, reference)
    assert (norms(layer(result.solution) - wanted) <= 1e-10 * norms(wanted)).all()
    assert result.iterations <= 8


class Folded(nn.Module):
    """Kinks at which the residual is least, and its slope is not zero."""

    def forward(self, x):
        return x.abs() + 0.3 * x.roll(1, dims=1).abs()


def test_samples_that_hardly_get_nearer_are_given_up():
    reference = f64(10, 6)
    result = prepare(Folded(), (6,)).invert(-1 - f64(10, 6).abs(), reference)
    assert result.status == "not_converged"
    assert result.iterations < composite.MAX_STEPS
    assert "short of a stationary point" in result.advice


class Embedded(nn.Module):
    """What is looked up by number: the numbers have no derivative."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 2)

    def forward(self, x):
        return self.table(x.long())


class Detached(nn.Module):
    def forward(self, x):
        return x.detach() * 2


class Rounded(nn.Module):
    def forward(self, x):
        return nn.functional.layer_norm(x, x.shape[1:]).round()


class Argmax(nn.Module):
    def forward(self, x):
        return x.argmax(dim=1, keepdim=True)


class Raises(nn.Module):
    def forward(self, x):
        raise RuntimeError("my own trouble\nin two lines")


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Argmax(), r"floating-point"),
        (nn.Embedding(3, 2), r"Expected tensor for argument|indices"),
        (Embedded(), r"its derivative is zero although its output varies"),
        (Detached(), r"its derivative is zero although its output varies"),
        (Rounded(), r"its derivative is zero although its output varies"),
        (Raises(), r"\(my own trouble\)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_undifferentiable_layers_are_refused(layer, reason):
    name = type(layer).__name__
    with pytest.raises(UnsupportedLayerError, match=reason) as caught:
        prepare_inverter(layer, (2,))
    text = str(caught.value)
    assert text.startswith(f"{name} cannot be inverted: it has no inversion of its own")
    assert f"register_inverter({name}, function)" in text
    assert "choose a split after this layer" in text


class Normalised(nn.GroupNorm):
    """Constant inputs give constant outputs, to rounding."""

    def forward(self, x):
        return nn.functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_trained_normalisations_are_differentiable(groups):
    layer = Normalised(groups, 8).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    prepare(layer, (8,))  # groups of one number give constants, to rounding
    reference = f64(3, 8, 6, 6)
    wanted = layer(reference + 0.1 * f64(3, 8, 6, 6)).detach()
    result = prepare(layer, (8, 6, 6)).invert(wanted, reference)
    assert result.converged
    assert (norms(layer(result.solution) - wanted) <= 1e-6 * norms(wanted)).all()


class OneNumber(nn.Module):
    """One number per sample, without a dimension for it."""

    def forward(self, x):
        return (x[:, 0] * 2 + x[:, 1]).tanh()


def test_a_stage_without_output_dimensions():
    reference = 0.1 * f64(4, 2)
    wanted = torch.tensor([-0.5, 0.0, 0.3, 0.6], dtype=torch.float64)
    result = prepare(OneNumber(), (2,), "auto").invert(wanted, reference)
    assert result.converged
    torch.testing.assert_close(OneNumber()(result.solution), wanted)
    # the nearest point of the line 2 x1 + x2 = artanh(y)
    normal = torch.tensor([2.0, 1.0], dtype=torch.float64)
    gap = (wanted.atanh() - reference @ normal) / 5
    torch.testing.assert_close(result.solution, reference + gap[:, None] * normal)
