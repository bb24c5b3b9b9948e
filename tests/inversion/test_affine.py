"""Affine layers against numpy's least squares on their Jacobian.

λ = 0 is tested while the nonzero singular values lie within a factor 1e4.
"""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Size, nn

from featprop_sklearn.inversion.affine import INVERTERS, AffineInverter, RearrangementInverter
from featprop_sklearn.inversion.base import InversionOptions

SOLVERS = ("direct", "lsqr", "torch")


def frozen(layer):
    return layer.double().eval().requires_grad_(False)


def normalised(layer):
    """Batch normalisation with statistics and weights of its own."""
    layer.running_mean.uniform_(-1, 1)
    layer.running_var.uniform_(0.5, 4)
    if layer.affine:
        layer.weight.data.uniform_(-2, 2)
        layer.bias.data.uniform_(-2, 2)
    return layer


LAYERS = [
    (lambda: nn.Linear(5, 3), (5,)),
    (lambda: nn.Linear(3, 5, bias=False), (2, 2, 3)),
    (lambda: nn.Conv1d(2, 3, 3, 2, 1), (2, 7)),
    (lambda: nn.Conv2d(2, 3, 3, padding="same", dilation=2), (2, 4, 5)),
    (lambda: nn.Conv2d(2, 2, 3, padding="valid"), (2, 4, 5)),
    (lambda: nn.Conv2d(2, 4, 3, padding=1, groups=2, padding_mode="reflect"), (2, 4, 4)),
    (lambda: nn.Conv2d(1, 2, 3, padding=2, padding_mode="circular"), (1, 4, 4)),
    (lambda: nn.Conv3d(1, 2, 2, padding=1, padding_mode="replicate"), (1, 2, 3, 2)),
    (lambda: nn.ConvTranspose1d(2, 1, 3, 2, output_padding=1), (2, 4)),
    (lambda: nn.ConvTranspose2d(2, 2, 3, 2, 1, groups=2, dilation=2), (2, 3, 3)),
    (lambda: nn.ConvTranspose3d(1, 2, 2), (1, 2, 2, 2)),
    (lambda: normalised(nn.BatchNorm1d(4)), (4,)),
    (lambda: normalised(nn.BatchNorm1d(4)), (4, 3)),
    (lambda: normalised(nn.BatchNorm2d(2, affine=False)), (2, 2, 3)),
    (lambda: normalised(nn.BatchNorm3d(2)), (2, 2, 1, 2)),
    (lambda: nn.AvgPool1d(3, 2, 1), (2, 7)),
    (lambda: nn.AvgPool1d(2), (6,)),
    (lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (2, 6, 5)),
    (lambda: nn.AvgPool3d(2, divisor_override=3), (2, 4, 2, 2)),
    (lambda: nn.AdaptiveAvgPool1d(3), (2, 7)),
    (lambda: nn.AdaptiveAvgPool2d((None, 2)), (2, 3, 5)),
    (lambda: nn.AdaptiveAvgPool3d(1), (2, 2, 3, 2)),
    (lambda: nn.Upsample(scale_factor=2), (2, 3, 2)),
    (lambda: nn.Upsample(size=5, mode="nearest-exact"), (2, 3)),
    (lambda: nn.Upsample(scale_factor=0.5), (2, 4, 6)),
    (lambda: nn.Upsample(size=7, mode="linear"), (2, 4)),
    (lambda: nn.Upsample(size=(4, 3), mode="bicubic", align_corners=True), (1, 3, 4)),
    (lambda: nn.Upsample(scale_factor=1.5, mode="trilinear"), (1, 2, 2, 2)),
    (lambda: nn.UpsamplingNearest2d(scale_factor=2), (1, 2, 3)),
    (lambda: nn.UpsamplingBilinear2d(scale_factor=2), (2, 2, 3)),
    (lambda: nn.ZeroPad1d((1, -1)), (2, 4)),
    (lambda: nn.ZeroPad2d((1, 0, 2, 1)), (2, 3, 3)),
    (lambda: nn.ZeroPad3d(1), (1, 2, 2, 2)),
    (lambda: nn.ConstantPad1d(2, 0.7), (2, 4)),
    (lambda: nn.ConstantPad2d(1, -3.0), (2, 2, 2)),
    (lambda: nn.ConstantPad3d(1, 2.0), (1, 2, 2, 2)),
    (lambda: nn.ReflectionPad1d(2), (2, 4)),
    (lambda: nn.ReflectionPad2d((1, 2, 0, 1)), (2, 3, 3)),
    (lambda: nn.ReflectionPad3d(1), (1, 2, 3, 2)),
    (lambda: nn.ReplicationPad1d(2), (2, 3)),
    (lambda: nn.ReplicationPad2d(1), (2, 2, 2)),
    (lambda: nn.ReplicationPad3d(1), (1, 2, 2, 2)),
    (lambda: nn.CircularPad1d(2), (2, 3)),
    (lambda: nn.CircularPad2d(1), (2, 2, 2)),
    (lambda: nn.CircularPad3d(1), (1, 2, 2, 2)),
]
REARRANGEMENTS = [
    (nn.Identity, (2, 3)),
    (nn.Flatten, (2, 3, 2)),
    (lambda: nn.Unflatten(1, (2, 3)), (6,)),
    (lambda: nn.PixelShuffle(2), (4, 2, 3)),
    (lambda: nn.PixelUnshuffle(2), (1, 4, 2)),
    (lambda: nn.ChannelShuffle(2), (4, 3, 1)),
    *[(kind, (4, 2)) for kind in (nn.Dropout, nn.Dropout1d, nn.AlphaDropout)],
    *[(kind, (4, 2, 2)) for kind in (nn.Dropout2d, nn.FeatureAlphaDropout)],
    (nn.Dropout3d, (1, 2, 2, 2)),
]
each_layer = pytest.mark.parametrize(("build", "in_shape"), LAYERS)
each_solver = pytest.mark.parametrize("solver", SOLVERS)


def inverter(layer, in_shape, solver="auto", damping=0.0, bounds=None):
    options = InversionOptions(solver, damping, bounds)
    return AffineInverter(layer, Size(in_shape), options)


def jacobian(layer, in_shape):
    origin = torch.zeros(1, *in_shape, dtype=torch.float64)
    found = torch.autograd.functional.jacobian(layer, origin)
    return found.reshape(-1, origin.numel()).numpy()


def random_pair(layer, in_shape, count=3):
    reference = torch.randn(count, *in_shape, dtype=torch.float64)
    return torch.randn_like(layer(reference)), reference


def by_lstsq(layer, wanted, reference, damping=0.0):
    a = jacobian(layer, reference.shape[1:])
    r = (wanted - layer(reference)).reshape(len(wanted), -1).numpy()
    n = a.shape[1]
    stacked = np.vstack([a, damping * np.eye(n)]) if damping else a
    padded = np.hstack([r, np.zeros((len(r), n))]) if damping else r
    d = np.linalg.lstsq(stacked, padded.T, rcond=None)[0].T
    return reference + torch.from_numpy(d).reshape(reference.shape)


def assert_near(found, expected, relative):
    error = torch.linalg.vector_norm((found - expected).flatten(1), dim=1)
    assert (error <= relative * torch.linalg.vector_norm(expected.flatten(1), dim=1)).all(), error


def singular_ratio(layer, in_shape):
    a = jacobian(layer, in_shape)
    values = np.linalg.svd(a, compute_uv=False)
    seen = values[values > max(a.shape) * np.finfo(float).eps * values[0]]
    return seen[0] / seen[-1] if len(seen) else 1.0


def test_every_registered_type_is_in_the_tables():
    built = {type(build()) for build, _ in LAYERS + REARRANGEMENTS}
    assert set(INVERTERS) <= built


@each_layer
def test_map_is_the_jacobian_and_passes_the_adjoint_test(build, in_shape):
    layer = frozen(build())
    a = inverter(layer, in_shape).linear_map
    d = torch.randn(2, *in_shape, dtype=torch.float64)
    change = layer(d) - layer(torch.zeros_like(d))
    image = a.apply(d.reshape(-1, *a.in_shape))
    torch.testing.assert_close(image.reshape(change.shape), change, rtol=1e-12, atol=1e-12)
    blocks = d[0].numel() // a.shape[1]  # channels or rows, all alike
    whole = np.kron(np.eye(blocks), a.matrix())
    np.testing.assert_allclose(whole, jacobian(layer, in_shape), rtol=0, atol=1e-12)
    np.testing.assert_allclose(a.sparse().toarray(), a.matrix(), rtol=0, atol=1e-12)
    r = torch.randn_like(image)
    left = (image * r).sum()
    right = (d.reshape(-1, *a.in_shape) * a.adjoint(r)).sum()
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@each_solver
@each_layer
def test_nearest_preimage(build, in_shape, solver):
    layer = frozen(build())
    wanted, reference = random_pair(layer, in_shape)
    found = inverter(layer, in_shape, solver)
    assert singular_ratio(layer, in_shape) < 1e4
    result = found.invert(wanted, reference)
    assert (result.status, result.solver, result.damping) == ("converged", solver, 0.0)
    assert_near(result.solution, by_lstsq(layer, wanted, reference), 1e-8)


@each_solver
@each_layer
def test_damped_preimage(build, in_shape, solver):
    layer = frozen(build())
    wanted, reference = random_pair(layer, in_shape)
    result = inverter(layer, in_shape, solver, 0.3).invert(wanted, reference)
    assert result.damping == 0.3
    assert_near(result.solution, by_lstsq(layer, wanted, reference, 0.3), 1e-10)


@st.composite
def convolutions(draw):
    """Random geometry; small enough for a dense oracle."""
    dims = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2]))
    channels = [groups * draw(st.integers(1, 2)) for _ in range(2)]
    size = tuple(draw(st.integers(2, {1: 9, 2: 5, 3: 3}[dims])) for _ in range(dims))
    kernel, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    stride, padding = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    transposed = draw(st.booleans())
    if transposed:
        extra = draw(st.integers(0, max(stride, dilation) - 1))
        options = {"output_padding": extra}
        assume(all((s - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra >= 0
                   for s in size))  # fmt: skip
    else:
        mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        options = {"padding_mode": mode}
        assume(all(s + 2 * padding >= dilation * (kernel - 1) + 1 for s in size))
        assume(all(padding < s for s in size))
    torch.manual_seed(draw(st.integers(0, 99)))
    kind = getattr(nn, f"Conv{'Transpose' * transposed}{dims}d")
    layer = kind(*channels, kernel, stride, padding, dilation=dilation, groups=groups, **options)
    if draw(st.booleans()):  # rank-deficient
        layer.weight.data[:, :1] = 0.0
    return frozen(layer), (channels[0], *size)


@each_solver
@given(case=convolutions(), count=st.integers(1, 5))
def test_any_convolution(solver, case, count):
    layer, in_shape = case
    assume(singular_ratio(layer, in_shape) < 1e4)
    wanted, reference = random_pair(layer, in_shape, count)
    result = inverter(layer, in_shape, solver).invert(wanted, reference)
    assert result.converged, result.advice
    assert_near(result.solution, by_lstsq(layer, wanted, reference), 1e-8)


@each_solver
def test_automatic_damping_keeps_an_ill_conditioned_layer_in_hand(solver):
    layer = frozen(nn.Linear(20, 20))
    left, _, right = torch.linalg.svd(layer.weight)
    layer.weight.data = left * torch.logspace(0, -8, 20, dtype=torch.float64) @ right
    wanted, reference = random_pair(layer, (20,))
    found = inverter(layer, (20,), solver, "auto")
    result = found.invert(wanted, reference)
    assert found.damping == result.damping == pytest.approx(1e-3, rel=1e-6)
    assert result.solution.isfinite().all()
    assert_near(result.solution, by_lstsq(layer, wanted, reference, found.damping), 1e-6)


@each_layer
def test_reference_is_kept_where_it_gives_the_wanted_output(build, in_shape):
    layer = frozen(build())
    _, reference = random_pair(layer, in_shape)
    found = inverter(layer, in_shape, damping="auto").invert(layer(reference), reference)
    torch.testing.assert_close(found.solution, reference, rtol=0, atol=1e-14)


@pytest.mark.parametrize("solver", sorted(set(SOLVERS) - {"torus"}))
def test_solver_is_reported(solver):
    layer = frozen(nn.Linear(4, 3))
    result = inverter(layer, (4,), solver).invert(*random_pair(layer, (4,)))
    assert result.solver == (solver if solver != "auto" else "direct")
    assert result.reason.startswith("direct: ") == (solver == "auto")


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_unknown_solver(bounds):
    with pytest.raises(ValueError, match="Did you mean 'direct'"):
        inverter(frozen(nn.Linear(4, 3)), (4,), "directt", bounds=bounds)


def test_bad_damping():
    with pytest.raises(ValueError, match="damping must be 'auto' or a finite number >= 0; got -1"):
        inverter(frozen(nn.Linear(4, 3)), (4,), damping=-1.0)


@each_layer
def test_bounds_are_kept(build, in_shape):
    layer = frozen(build())
    wanted, reference = random_pair(layer, in_shape)
    bounded = inverter(layer, in_shape, damping=0.1, bounds=(-0.5, 1.0))
    x = bounded.invert(wanted, reference).solution
    assert ((x >= -0.5) & (x <= 1.0)).all()

    def objective(at):
        return (layer(at) - wanted).square().sum() + 0.01 * (at - reference).square().sum()

    for _ in range(20):
        other = (x + 0.1 * torch.randn_like(x)).clamp(-0.5, 1.0)
        assert objective(x) <= objective(other)


def test_batch_norm_without_running_statistics():
    layer = frozen(nn.BatchNorm2d(3, track_running_stats=False))
    message = r"BatchNorm2d without running statistics .* Build it with track_running_stats=True"
    with pytest.raises(ValueError, match=message):
        inverter(layer, (3, 2, 2))


class RectifiedLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x).relu()


class Cropping(nn.Linear):
    def forward(self, x):
        return super().forward(x)[..., :2]


@pytest.mark.parametrize("kind", [RectifiedLinear, Cropping])
def test_a_subclass_that_computes_something_else(kind):
    message = (
        f"{kind.__name__} is inverted as an affine layer, but its forward does not compute what "
        f"Linear computes. Register an inverter for {kind.__name__}"
    )
    with pytest.raises(ValueError, match=message):
        inverter(frozen(kind(4, 3)), (4,))


@pytest.mark.parametrize(("build", "in_shape"), LAYERS[::5])
def test_empty_batch(build, in_shape):
    layer = frozen(build())
    wanted, reference = random_pair(layer, in_shape)
    for bounds in (None, (0.0, 1.0)):
        found = inverter(layer, in_shape, bounds=bounds).invert(wanted[:0], reference[:0])
        assert found.solution.shape == (0, *in_shape)


@pytest.mark.parametrize(("build", "in_shape"), LAYERS[::4])
def test_layer_is_left_alone_and_the_inverter_pickles(build, in_shape):
    layer = frozen(build())
    before = copy.deepcopy(layer.state_dict()), repr(layer)
    found = inverter(layer, in_shape, "torch")
    wanted, reference = random_pair(layer, in_shape)
    expected = found.invert(wanted, reference).solution
    assert (list(layer.state_dict()), repr(layer)) == (list(before[0]), before[1])
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[0][name])
    again = pickle.loads(pickle.dumps(found)).invert(wanted, reference).solution
    torch.testing.assert_close(again, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("build", "in_shape"), REARRANGEMENTS)
def test_rearrangements_are_exact(build, in_shape):
    layer = frozen(build())
    x = torch.randn(3, *in_shape, dtype=torch.float64)
    reference = torch.randn_like(x)
    found = RearrangementInverter(layer, Size(in_shape), InversionOptions(damping=5.0))
    assert torch.equal(found.invert(layer(x), reference).solution, x)
    bounded = RearrangementInverter(layer, Size(in_shape), InversionOptions(bounds=(-0.1, 0.2)))
    assert torch.equal(bounded.invert(layer(x), reference).solution, x.clamp(-0.1, 0.2))


@pytest.mark.parametrize(
    ("layer", "in_shape"),
    [
        (nn.Softmax(-1), (3,)),
        (nn.ZeroPad1d(1), (2, 3)),
        (nn.Flatten(start_dim=0), (3,)),
        (nn.ReplicationPad1d((0, -1)), (2, 3)),
        (nn.Dropout().train(), (50,)),
    ],
)
def test_what_does_more_than_rearrange(layer, in_shape):
    message = f"{type(layer).__name__} does not only rearrange the entries .* register_inverter"
    with pytest.raises(ValueError, match=message):
        RearrangementInverter(layer, Size(in_shape), InversionOptions())
