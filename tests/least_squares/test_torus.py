"""The torus solver against numpy on the layer's matrix, over random geometry."""

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from featprop_sklearn import LayerInverter
from featprop_sklearn.inversion.affine import convolution_map
from featprop_sklearn.least_squares import (
    AutoSolver,
    FunctionMap,
    TorusSolver,
    quasi_definite,
    torus_axis_end,
    torus_gram,
)
from featprop_sklearn.least_squares.conjugate_gradients import conjugate_gradients
from featprop_sklearn.least_squares.torus_embedding import TorusEmbedding
from featprop_sklearn.least_squares.torus_frame_gram import FrameGram
from featprop_sklearn.least_squares.torus_regions import Region
from featprop_sklearn.least_squares.torus_strip_gram import StripGram
from featprop_sklearn.least_squares.torus_transform import FrameTransform, TorusTransform
from tests.least_squares.cases import convolutions, lstsq

SMALL = convolutions({1: 8, 2: 8, 3: 4}, most_dilated=2)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(SMALL, st.sampled_from((0.0, 0.0, 1e-3, 1e-2, 0.1)))
def test_solutions_are_those_of_numpy(convolution, damping):
    layer, shape = convolution
    linear_map = convolution_map(layer, shape)
    matrix = linear_map.matrix().numpy()
    sizes = np.linalg.svd(matrix, compute_uv=False)
    sizes = sizes[sizes > 1e-12 * sizes[0]]
    assume(damping > 0 or sizes[0] < 1e4 * sizes[-1])
    damping = damping * sizes[0]
    rhs = torch.randn(3, *linear_map.out_shape).double()
    result = TorusSolver().prepare(linear_map, damping).solve(rhs)
    expected = lstsq(matrix, rhs.reshape(3, -1).numpy(), damping)
    found = result.solution.reshape(3, -1).numpy()
    # what it could not solve it says: rank-deficient, undamped, and the torus no better
    if result.converged:
        assert np.linalg.norm(found - expected) <= 1e-8 * np.linalg.norm(expected)
    else:
        assert damping == 0
        assert len(sizes) < min(matrix.shape)


def _embedded(convolution):
    layer, shape = convolution
    linear_map = convolution_map(layer, shape)
    inputs, outputs = linear_map.in_shape[1:], linear_map.out_shape[1:]
    if linear_map.kernel.transposed:
        inputs, outputs = outputs, inputs
    matrix = linear_map.matrix()
    matrix = matrix.T if linear_map.kernel.transposed else matrix
    return TorusEmbedding(linear_map.kernel, inputs, outputs), matrix


def _shaped(torus, region, rows):
    channels = torus.channels_of(region)
    return rows.reshape(len(rows), torus.groups, channels, *region.length)


@settings(deadline=None, max_examples=12, derandomize=True)
@given(SMALL)
def test_the_embedding_is_the_convolution(convolution):
    torus, matrix = _embedded(convolution)
    inputs, outputs = torch.randn(2, matrix.shape[1]), torch.randn(2, matrix.shape[0])
    inputs, outputs = inputs.double(), outputs.double()
    forth = torus.convolve(_shaped(torus, torus.inputs, inputs)).flatten(1)
    back = torus.adjoint(_shaped(torus, torus.outputs, outputs)).flatten(1)
    torch.testing.assert_close(forth, inputs @ matrix.T, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(back, outputs @ matrix, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("inverse", [FrameGram, StripGram])
@settings(deadline=None, max_examples=20, derandomize=True)
@given(convolution=SMALL, of_outputs=..., from_other=..., to_other=...)
def test_gram_matrices_are_inverted_on_either_side(
    inverse, convolution, of_outputs: bool, from_other: bool, to_other: bool
):
    torus, matrix = _embedded(convolution)
    own, other = torus.outputs, torus.inputs
    if not of_outputs:
        matrix, own, other = matrix.T, other, own
    gram = inverse(torus, 0.25, of_outputs=of_outputs)
    product = torch.linalg.inv(matrix @ matrix.T + 0.25 * torch.eye(len(matrix)).double())
    product = product @ matrix if from_other else product
    product = matrix.T @ product if to_other else product
    values = torch.randn(2, product.shape[1]).double()
    shaped = _shaped(torus, other if from_other else own, values)
    found = gram.solve(shaped, from_other=from_other, to_other=to_other)
    torch.testing.assert_close(found.flatten(1), values @ product.T, rtol=1e-9, atol=1e-11)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 4)),
        min_size=1,
        max_size=3,
    )
)
def test_the_frame_is_what_an_array_leaves_free(axes):
    length, stride, _ = zip(*axes, strict=True)
    size = [-(-n // s) + m for n, s, m in axes]
    region = Region(size, length, stride)
    transform = TorusTransform(size, torch.device("cpu"))
    filled = transform.back(transform.transform(region.lay(torch.ones(1, 1, *length).double())))
    assert region.frame_size == filled.numel() - prod(length)
    frame = FrameTransform(transform, region)
    cells = torch.randn(2, 1, 2 * region.n_phases, *size).double()
    on_frame = frame.back(transform.transform(cells))
    assert on_frame.shape == (2, 1, 2, region.frame_size)
    # back from the frame alone: the array's own cells empty, the others as they were
    expected = torch.where(filled[0].repeat(2, *[1] * len(size)) > 0.5, 0.0, cells)
    found = transform.back(frame.transform(on_frame))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    values = torch.randn(2, 3, *length).double()
    torus = transform.back(transform.transform(region.lay(values)))
    torch.testing.assert_close(region.cut(torus), values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [16, 33])
@pytest.mark.parametrize("out_channels", [1, 4])
def test_images(size, out_channels):
    torch.manual_seed(0)
    layer = nn.Conv2d(2, out_channels, 5, padding=2).double().requires_grad_(False)
    linear_map = convolution_map(layer, (2, size, size))
    rhs = torch.randn(70, *linear_map.out_shape).double()
    found = TorusSolver().prepare(linear_map, 0.0).solve(rhs).solution.reshape(70, -1)
    expected = torch.linalg.lstsq(linear_map.matrix(), rhs.reshape(70, -1).T, driver="gelsd")
    torch.testing.assert_close(found, expected.solution.T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("damping", [1e-3, 0.1])
def test_a_damped_solution_is_exact_at_any_condition(damping):
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 2, 3, padding=1).double().requires_grad_(False)
    layer.weight[1] = layer.weight[0] + 1e-8 * layer.weight[1]  # condition about 1e8
    linear_map = convolution_map(layer, (2, 10, 10))
    scale = float(torch.linalg.matrix_norm(linear_map.matrix(), ord=2))
    rhs = torch.randn(3, *linear_map.out_shape).double()
    result = TorusSolver().prepare(linear_map, damping * scale).solve(rhs)
    expected = lstsq(linear_map.matrix().numpy(), rhs.reshape(3, -1).numpy(), damping * scale)
    found = result.solution.reshape(3, -1).numpy()
    assert np.linalg.norm(found - expected) <= 1e-10 * np.linalg.norm(expected)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.integers(1, 12), st.integers(0, 12), st.integers(1, 2), st.integers(1, 5))
def test_quasi_definite_systems(n_positive, n_negative, groups, panel):
    generator = torch.Generator().manual_seed(n_positive + 100 * n_negative)
    n = n_positive + n_negative
    rows = torch.randn(groups, n, n, generator=generator).double()
    matrix = rows.mT + rows
    for part, sign in ((slice(n_positive), 1), (slice(n_positive, None), -1)):
        block = rows[:, part, part]
        matrix[:, part, part] = sign * (block @ block.mT + torch.eye(block.shape[1]))
    rhs = torch.randn(groups, n, 3, generator=generator).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quasi_definite, "PANEL", panel)
        system = quasi_definite.QuasiDefinite(matrix.clone(), n_positive)
    expected = torch.linalg.solve(matrix, rhs)
    torch.testing.assert_close(system.solve(rhs), expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(torch.linalg.LinAlgError):
        quasi_definite.QuasiDefinite(-matrix, n_positive)
    # a Hermitian matrix as well
    twist = torch.polar(torch.ones(n), torch.arange(n).float()).to(torch.complex128)
    for real_or_complex in (matrix, twist[:, None] * matrix * twist.conj()):
        inverse = quasi_definite.quasi_definite_inverse(real_or_complex, n_positive)
        expected = torch.linalg.inv(real_or_complex)
        torch.testing.assert_close(inverse, expected, rtol=1e-9, atol=1e-9)
    with pytest.raises(torch.linalg.LinAlgError):
        quasi_definite.quasi_definite_inverse(-matrix, n_positive)


@settings(deadline=None, max_examples=20, derandomize=True)
@given(SMALL, st.booleans())
def test_what_frames_see_of_a_strip_and_give_back_are_adjoint(convolution, of_outputs):
    torus, _ = _embedded(convolution)
    symbol = torus.symbol.mH if of_outputs else torus.symbol
    generator = torch.Generator().manual_seed(0)
    for strip in torus.strips(of_outputs=of_outputs):
        kernels = strip.kernels(symbol, torus.transform)
        count = torus.groups * prod(torus.transform.half_size[strip.axis + 1 :])
        eye = torch.eye(strip.size, dtype=next(iter(kernels.values())).dtype)
        seen = strip.to_frames(kernels, eye.expand(count, -1, -1))
        held = torch.randn(count, seen.shape[1], 2, generator=generator).to(eye.dtype)
        given_back = strip.from_frames(kernels, held)
        torch.testing.assert_close(given_back, seen.mH @ held, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("n_samples", [1, 7])
def test_parts_make_no_difference(n_samples, monkeypatch):
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, padding=1, stride=(1, 2)).double().requires_grad_(False)
    linear_map = convolution_map(layer, (2, 9, 10))
    rhs = torch.randn(n_samples, *linear_map.out_shape).double()
    whole = TorusSolver().prepare(linear_map, 0.1).solve(rhs).solution
    for module in (torus_gram, torus_axis_end):
        monkeypatch.setattr(module, "CHUNK", 1)
    monkeypatch.setattr(torus_gram, "BATCH", 3 * 2000)
    in_parts = TorusSolver().prepare(linear_map, 0.1).solve(rhs).solution
    torch.testing.assert_close(in_parts, whole, rtol=1e-11, atol=1e-12)


def test_strips_serve_where_rounding_permits():
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 2, 3, padding=1).double().requires_grad_(False)
    layer.weight[1] = layer.weight[0] + 1e-3 * layer.weight[1]
    linear_map = convolution_map(layer, (2, 12, 12))
    scale = float(torch.linalg.matrix_norm(linear_map.matrix(), ord=2))
    rhs = torch.randn(3, *linear_map.out_shape).double()
    for damping, expected in ((0.01, FrameGram), (0.1, StripGram)):
        solver = TorusSolver().prepare(linear_map, damping * scale)
        assert type(solver.factor.gram) is expected
        assert solver.refinements == 0
        answer = lstsq(linear_map.matrix().numpy(), rhs.reshape(3, -1).numpy(), damping * scale)
        found = solver.solve(rhs).solution.reshape(3, -1).numpy()
        assert np.linalg.norm(found - answer) <= 1e-11 * np.linalg.norm(answer)


def test_what_is_no_convolution_is_refused():
    plain = FunctionMap(lambda x: 2 * x, (3,), (3,))
    with pytest.raises(ValueError, match="solver='torus' needs kernel of the linear map"):
        TorusSolver().prepare(plain, 0.0)


def test_too_long_a_strip_is_refused():
    linear_map = convolution_map(nn.Conv2d(4, 4, 3, padding=1).double(), (4, 9, 9))
    with pytest.raises(
        ValueError, match=r"here 108 unknowns, 0.[0-9]+ MiB in all, .* solver='torch'"
    ):
        TorusSolver(max_bytes=1000).prepare(linear_map, 0.0)


def test_conjugate_gradients_keep_the_best_and_say_how_good():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(12, 12, generator=generator).double()
    matrix = root @ root.T
    x = torch.randn(5, 12, generator=generator).double()
    # two that are solved at once, by an eigenvector each, while the others go on
    x[:2] = torch.linalg.eigh(matrix).eigenvectors[:, :2].T
    rhs = x @ matrix

    found, residual, iterations = conjugate_gradients(
        lambda rows: rows @ matrix, lambda rows: rows, rhs, tolerance=1e-12, max_iterations=500
    )
    true = (rhs - found @ matrix).norm(dim=1) / rhs.norm(dim=1)
    torch.testing.assert_close(residual, true, rtol=1e-6, atol=1e-15)
    assert residual.max() < 1e-8
    assert iterations > 10
    exact = torch.linalg.inv(matrix)
    _, residual, iterations = conjugate_gradients(
        lambda rows: rows @ matrix,
        lambda rows: rows @ exact,
        rhs,
        tolerance=1e-12,
        max_iterations=500,
    )
    assert residual.max() <= 1e-12
    assert iterations <= 3


def test_conjugate_gradients_go_on_with_those_that_need_it():
    matrix = torch.diag(torch.linspace(1, 100, 30).double())
    eye = torch.eye(30).double()
    rhs = torch.cat([eye[:5], torch.ones(1, 30).double(), eye[5:8]])
    sizes = []

    def product(rows):
        sizes.append(len(rows))
        return rows @ matrix

    found, residual, _ = conjugate_gradients(
        product, lambda rows: rows, rhs, tolerance=1e-10, max_iterations=100
    )
    torch.testing.assert_close(found, rhs / matrix.diagonal(), rtol=1e-8, atol=1e-12)
    assert residual.max() <= 1e-10
    assert sizes[0] == 9
    assert set(sizes[2:]) == {1}


@pytest.mark.parametrize(("accuracy", "most"), [(1e-3, 2), (1e-6, 4), (1e-9, 4)])
def test_conjugate_gradients_see_the_error_of_what_they_lift(accuracy, most):
    generator = np.random.default_rng(0)
    left, right = (np.linalg.qr(generator.normal(size=(n, 12)))[0] for n in (12, 20))
    matrix = torch.from_numpy(left * np.geomspace(1, 1e-4, 12) @ right.T)
    x = torch.from_numpy(generator.normal(size=(4, 12)) @ right.T)  # the one of least norm
    nearly = torch.linalg.inv(matrix @ matrix.T + 1e-9 * torch.eye(12).double())
    found, _, iterations = conjugate_gradients(
        lambda rows: rows @ matrix.T,
        lambda rows: rows @ nearly,
        x @ matrix.T,
        lift=lambda rows: rows @ matrix,
        tolerance=1e-3,
        accuracy=accuracy,
        max_iterations=50,
    )
    error = float(((found - x).norm(dim=1) / x.norm(dim=1)).max())
    # the preconditioner sees at least 1/1.1 of the square
    assert error <= 1.05 * accuracy
    assert iterations <= most


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, (4, 3), padding="same", dilation=2),
        nn.Conv2d(3, 4, 4, padding="valid", dilation=2),
        nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1),
    ],
)
def test_a_layer_inverted_by_it(layer):
    X = torch.randn(4, 3, 10, 10)
    by_torus = LayerInverter(layer, solver="torus", damping=1e-2).fit(X)
    by_matrix = LayerInverter(layer, solver="direct", damping=1e-2).fit(X)
    Y = by_torus.transform(X) + 0.1
    np.testing.assert_allclose(
        by_torus.inverse_transform(Y), by_matrix.inverse_transform(Y), atol=1e-5
    )
    assert by_torus.result_.solver == "torus"


def test_auto_takes_the_matrix_where_the_torus_would_have_to_iterate():
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 2, 5, padding=2).double().requires_grad_(False)
    layer.weight -= layer.weight.mean(dim=(2, 3), keepdim=True)  # nothing passes at frequency 0
    linear_map = convolution_map(layer, (2, 24, 24))
    rhs = torch.randn(1, *linear_map.out_shape).double()
    assert AutoSolver().choose(linear_map, 0.0) == "torus"
    solvers = [AutoSolver().prepare(linear_map, damping) for damping in (0.0, 0.1)]
    assert [solver.solve(rhs).solver for solver in solvers] == ["direct", "torus"]
