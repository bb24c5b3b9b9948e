"""The checks for users pass on what is sound, and name the promise that something broken breaks."""

import numpy as np
import pytest
import torch
from torch import nn

from featprop_sklearn.inversion import Inverter, register_inverter, registry
from featprop_sklearn.least_squares import (
    SOLVERS,
    BatchMap,
    DiagonalMap,
    FunctionMap,
    MatrixMap,
    PreparedSolver,
    SelectionMap,
    Solver,
    SolveResult,
    register_solver,
)
from featprop_sklearn.networks import layers
from featprop_sklearn.testing import check_inverter, check_linear_map, check_solver
from featprop_sklearn.testing.promises import norms


def f64(*shape):
    return torch.randn(*shape, dtype=torch.float64)


# ---------------------------------------------------------------- linear maps


class Broken(MatrixMap):
    """Each kind spoils one of the forms of the map."""

    def __init__(self, kind):
        super().__init__(f64(3, 5))
        self.kind = kind

    def apply(self, inputs):
        image = super().apply(inputs)
        if self.kind == "constant":
            return image + 1e-6
        if self.kind == "mixes samples":
            return image + 1e-6 * image.mean(dim=0)
        return image

    def adjoint(self, outputs):
        factor = 1 + 1e-9 if self.kind == "adjoint" else 1.0
        pulled = factor * super().adjoint(outputs)
        return pulled.float() if self.kind == "dtype" else pulled

    def sparse(self):
        factor = 2 if self.kind == "sparse" else 1
        return factor * super().sparse()

    def gram_diagonal(self):
        return torch.ones(5, dtype=torch.float64) if self.kind == "gram" else None


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("adjoint", r"Broken breaks a promise: \(A d\)·r = d·\(A'r\).*Found: .*, allowed .*d = \["),
        ("constant", r"the map is linear, with no constant part|same matrix"),
        ("mixes samples", r"apply treats each sample for itself|same matrix"),
        ("dtype", r"adjoint returns float64 of shape \(5, 5\)\. Found: torch.float32"),
        ("sparse", r"apply agrees with sparse\(\)"),
        ("gram", r"gram_diagonal\(\) is A'A"),
    ],
)
def test_broken_linear_map_is_named(kind, text):
    with pytest.raises(AssertionError, match=text):
        check_linear_map(Broken(kind))


def test_linear_map_with_another_matrix_than_expected_is_named():
    matrix = f64(3, 5)
    with pytest.raises(AssertionError, match="apply agrees with dense"):
        check_linear_map(MatrixMap(matrix), dense=matrix + 1e-6)
    with pytest.raises(AssertionError, match=r"dense has shape \(m, n\) = \(3, 5\)"):
        check_linear_map(MatrixMap(matrix), dense=matrix.T)


def test_not_linear_is_named():
    bent = FunctionMap(torch.tanh, (3,), (3,))
    with pytest.raises(AssertionError, match=r"FunctionMap breaks a promise"):
        check_linear_map(bent)


def test_sound_linear_maps_pass():
    matrix = f64(4, 6)
    check_linear_map(MatrixMap(matrix), dense=matrix)
    check_linear_map(DiagonalMap(f64(2, 3)))
    check_linear_map(SelectionMap(torch.tensor([[2, -1], [2, 0]]), (4,)))
    check_linear_map(FunctionMap(nn.AvgPool1d(2), (2, 6), (2, 3)), seed=3)
    matrices = f64(4, 3, 5)
    per_sample = BatchMap(
        lambda d: torch.einsum("nij,nj->ni", matrices, d),
        lambda r: torch.einsum("nij,ni->nj", matrices, r),
        (5,),
        (3,),
    )
    check_linear_map(per_sample, n_samples=4)


# ---------------------------------------------------------------- solvers


class PinvSolver(Solver):
    """A⁺ r, or its damped form; subclasses below spoil it."""

    name = "pinv"
    needs = ("matrix",)

    def prepare(self, linear_map, damping):
        self.check(linear_map)
        return _PreparedPinv(self, linear_map, damping)

    def matrix(self, linear_map):
        return linear_map.matrix()

    def inverse(self, matrix, damping):
        identity = damping * torch.eye(matrix.shape[1], dtype=matrix.dtype)
        return torch.linalg.pinv(torch.cat([matrix, identity]))[:, : len(matrix)]

    def result(self, solution, damping):
        return SolveResult(solution, solver=self.name, damping=damping)


class _PreparedPinv(PreparedSolver):
    def __init__(self, solver, linear_map, damping):
        self.solver, self.damping, self.in_shape = solver, damping, linear_map.in_shape
        self.inverse = solver.inverse(solver.matrix(linear_map), damping)

    def solve(self, rhs):
        solution = (rhs @ self.inverse.T).reshape(-1, *self.in_shape)
        return self.solver.result(solution, self.damping)


class IgnoresDamping(PinvSolver):
    def inverse(self, matrix, damping):
        return super().inverse(matrix, 0.0)


class NotOfLeastNorm(PinvSolver):
    def inverse(self, matrix, damping):
        exact = super().inverse(matrix, damping)
        kernel = torch.eye(matrix.shape[1], dtype=matrix.dtype) - torch.linalg.pinv(matrix) @ matrix
        return exact if damping else exact + kernel[:, : len(matrix)].sum(dim=1, keepdim=True)


class Undeclared(PinvSolver):
    def matrix(self, linear_map):
        return torch.from_numpy(linear_map.sparse().toarray())


class Unchecked(PinvSolver):
    def check(self, linear_map):
        pass

    def matrix(self, linear_map):
        return torch.eye(2, dtype=torch.float64) if not linear_map.provides else linear_map.matrix()


class Flat(PinvSolver):
    def result(self, solution, damping):
        return super().result(solution.flatten(1), damping)


class GivesUp(PinvSolver):
    def result(self, solution, damping):
        return SolveResult(solution, status="not_converged", advice="try harder")


class ForgetsDamping(PinvSolver):
    def result(self, solution, damping):
        return SolveResult(solution)


class NeedsTheMoon(PinvSolver):
    needs = ("moon",)


class Nameless(PinvSolver):
    name = ""


@pytest.mark.parametrize(
    ("solver", "text"),
    [
        (IgnoresDamping, r"IgnoresDamping .*shrinking problem .*damping 0\.5.*lstsq.*Found: .*r ="),
        (NotOfLeastNorm, r"on a shrinking problem .*damping 0\.0.*numpy\.linalg\.lstsq"),
        (Undeclared, r"asks the map only for needs = \('matrix',\)\. Found: it called sparse"),
        (Unchecked, r"prepare refuses a map without what it needs"),
        (Flat, r"solution is float64 of shape \(n_samples, \*in_shape\) = \(3, 2, 4\)"),
        (GivesUp, r"it converges on a shrinking problem.*Found: not_converged, 'try harder'"),
        (ForgetsDamping, r"result\.damping is 0\.5\. Found: 0\.0"),
        (NeedsTheMoon, r"needs is a tuple of what it asks of the map.*Found: \('moon',\)"),
        (Nameless, r"name is the string that users type"),
    ],
)
def test_broken_solver_is_named(solver, text):
    with pytest.raises(AssertionError, match=text):
        check_solver(solver)


@pytest.mark.parametrize("solver", [PinvSolver, *SOLVERS])
def test_sound_solvers_pass(solver):
    check_solver(solver)


def test_solver_can_be_given_by_its_registered_name(monkeypatch):
    monkeypatch.setitem(SOLVERS, "pinv", PinvSolver)
    register_solver("pinv", IgnoresDamping)
    with pytest.raises(AssertionError, match="IgnoresDamping breaks a promise"):
        check_solver("pinv")


def test_what_is_no_solver_is_refused():
    with pytest.raises(TypeError, match="Pass the class, not an instance"):
        check_solver(PinvSolver())


# ---------------------------------------------------------------- inversions


class ScaledSum(nn.Module):
    """y = w (x_1 + x_2), whose nearest preimage is x0 + (y − f(x0)) / 2w in both entries."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.1))

    def forward(self, x):
        return self.factor * x.sum(dim=1, keepdim=True)


def nearest(layer, wanted, reference):
    return reference + (wanted - layer(reference)) / (2 * layer.factor)


def returns_the_reference(layer, wanted, reference):
    return reference


def far_preimage(layer, wanted, reference):
    answer = nearest(layer, wanted, reference)
    met = (layer(reference) - wanted).abs() <= 1e-12
    return torch.where(met, answer, answer + torch.tensor([3.0, -3.0], dtype=torch.float64))


def ignores_the_reference(layer, wanted, reference):
    return (wanted / (2 * layer.factor)).expand_as(reference).clone()


def skewed(layer, wanted, reference):
    step = torch.tensor([0.9, 0.1], dtype=torch.float64)
    return reference + step * (wanted - layer(reference)) / layer.factor


def changes_the_layer(layer, wanted, reference):
    answer = nearest(layer, wanted, reference)
    layer.factor.data += 1e-12
    return answer


def overwrites(layer, wanted, reference):
    wanted.sub_(layer(reference))
    return reference + wanted / (2 * layer.factor)


def not_finite(layer, wanted, reference):
    answer = nearest(layer, wanted, reference)
    return answer / (answer.abs() < 1e20)


def flattened(layer, wanted, reference):
    return nearest(layer, wanted, reference).flatten()


def never_settles(layer, wanted, reference):
    met = layer(reference) == wanted
    drift = torch.tensor([1e-3, -1e-3], dtype=torch.float64)
    return torch.where(met, reference, nearest(layer, wanted, reference) + drift)


@pytest.fixture
def registered(monkeypatch):
    """Register an inversion of ``ScaledSum`` for one test."""
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    monkeypatch.setattr(layers, "_TREATED_AS_LAYERS", set(layers._TREATED_AS_LAYERS))

    def register(function):
        register_inverter(ScaledSum, function)
        return ScaledSum()

    return register


def test_sound_inversion_passes(registered):
    check_inverter(registered(nearest), (2,))


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (returns_the_reference, r"inversion of ScaledSum\(\) .*\(2,\) .* wanted output y is met"),
        (far_preimage, r"no other input with an output as near to y lies nearer to the reference"),
        (ignores_the_reference, r"lies nearer to the reference|x as the reference|x = x0"),
        (skewed, r"no other input with an output as near to y lies nearer to the reference"),
        (changes_the_layer, r"the private copy is left as it was\. Found: \['factor'\] changed"),
        (overwrites, r"y and x0 are left as they were"),
        (not_finite, r"x is finite\. Found: .* for y = \[.*1e\+30"),
        (flattened, r"solution is float64 in the shape of the reference, \(6, 2\)"),
        (never_settles, r"x as the reference gives x again"),
    ],
)
def test_broken_inversion_is_named(registered, function, text):
    with pytest.raises(AssertionError, match=text):
        check_inverter(registered(function), (2,))


def test_figures_and_inputs_are_in_the_message(registered):
    with pytest.raises(AssertionError, match=r"Found: [\d.e-]+, allowed [\d.e-]+, for y = \["):
        check_inverter(registered(returns_the_reference), (2,))


@pytest.mark.parametrize("seed", range(5))
def test_a_skewed_step_is_found_with_every_seed(registered, seed):
    with pytest.raises(AssertionError, match="nearer to the reference"):
        check_inverter(registered(skewed), (2,), seed=seed)


def test_what_is_not_promised_is_not_checked(registered):
    check_inverter(registered(returns_the_reference), (2,), meets_reachable=False, nearest=False)
    check_inverter(registered(skewed), (2,), nearest=False)


def test_worse_than_the_reference_is_named(registered):
    def overshoots(layer, wanted, reference):
        gap = wanted - layer(reference)
        return torch.where(gap.abs() > 1e3, reference - gap, nearest(layer, wanted, reference))

    with pytest.raises(AssertionError, match="never farther from y than that of the reference"):
        check_inverter(registered(overshoots), (2,))


class Unbounded(Inverter):
    """Claims to honour a range and does not."""

    supports_bounds = True

    def invert(self, wanted, reference):
        return SolveResult(nearest(self.layer, wanted, reference))


def test_leaving_the_range_is_named(registered):
    with pytest.raises(AssertionError, match=r"x is within \(0\.0, 0\.8\)"):
        check_inverter(registered(Unbounded), (2,), bounds=(0.0, 0.8))


def test_changing_the_layer_of_the_user_is_named(registered):
    layer = registered(nearest)

    def meddles(_, wanted, reference):
        layer.train(not layer.training)
        return nearest(layer, wanted.to(torch.float64), reference).detach()

    registered(meddles)
    layer.eval()
    with pytest.raises(AssertionError, match="is left as it was"):
        check_inverter(layer, (2,))


def test_norms_of_huge_and_zero_vectors():
    batch = torch.tensor([[3e200, 4e200], [0.0, 0.0]], dtype=torch.float64)
    np.testing.assert_allclose(norms(batch), [5e200, 0.0])
