"""The transformer around one layer: scikit-learn's habits, dtypes, references, errors."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from torch import nn

from featprop_sklearn import LayerInverter
from featprop_sklearn.inversion import layer_inverter
from featprop_sklearn.least_squares import SolveResult, join_results
from tests.inversion.cases import Residual

RANDOM = np.random.default_rng(0)


def samples(*shape, dtype=np.float64):
    return RANDOM.normal(size=shape).astype(dtype)


class Stubborn(nn.Module):
    """exp on both sides: far outputs are not reached in a few steps."""

    def forward(self, x):
        return x.square().sum(dim=1, keepdim=True).expand(-1, 3).square()


# ---------------------------------------------------------------- what it computes


def test_inverse_is_the_nearest_preimage_of_numpy():
    layer = nn.Linear(5, 3).double()
    X, Y, reference = samples(8, 5), samples(4, 3), samples(4, 5)
    W, b = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    inverter = LayerInverter(layer, damping=0.0).fit(X)
    for given, x0 in ((reference, reference), (None, np.tile(X.mean(axis=0), (4, 1)))):
        step = np.linalg.lstsq(W, (Y - b - x0 @ W.T).T, rcond=None)[0].T
        assert_allclose(inverter.inverse_transform(Y, given), x0 + step, rtol=0, atol=1e-10)
    assert_allclose(inverter.transform(X), X @ W.T + b, rtol=0, atol=1e-12)


def test_default_layer_is_the_identity():
    X = samples(3, 4)
    identity = LayerInverter().fit(X)
    assert_array_equal(identity.transform(X), X)
    assert_array_equal(identity.inverse_transform(X), X)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layer_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("build", [lambda: nn.Linear(4, 4), nn.Tanh], ids=["Linear", "Tanh"])
def test_dtype_of_the_data_is_kept(build, layer_dtype, dtype):
    X = samples(5, 4, dtype=dtype)
    inverter = LayerInverter(build().to(layer_dtype)).fit(X)
    Y = inverter.transform(X)
    assert Y.dtype == dtype
    found = inverter.inverse_transform(Y)
    assert found.dtype == dtype
    assert_allclose(inverter.transform(found), Y, rtol=0, atol=1e-5)


def test_integers_are_taken_as_float64():
    X = np.arange(6).reshape(3, 2)
    relu = LayerInverter(nn.ReLU()).fit(X)
    assert relu.transform(X).dtype == np.float64
    assert relu.inverse_transform(X).dtype == np.float64


def test_tensors_and_images_are_taken():
    X = samples(3, 2, 4, 4, dtype=np.float32)
    inverter = LayerInverter(nn.Conv2d(2, 3, 3)).fit(torch.from_numpy(X))
    assert (inverter.in_shape_, inverter.out_shape_) == ((2, 4, 4), (3, 2, 2))
    assert inverter.n_features_in_ == 2
    assert inverter.mean_.shape == (2, 4, 4)
    assert inverter.inverse_transform(inverter.transform(X), reference=X).shape == X.shape


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reference_with_the_wanted_output_is_returned_exactly(dtype):
    X = samples(5, 4, dtype=dtype)
    inverter = LayerInverter(nn.Sequential(nn.Linear(4, 4), nn.Softplus())[0]).fit(X)
    Y = inverter.transform(X)
    Y[0] += 1
    found = inverter.inverse_transform(Y, reference=X)
    assert_array_equal(found[1:], X[1:])
    assert (found[0] != X[0]).all()


def test_elementwise_layers_keep_the_entries_that_are_met():
    X = samples(2, 4)
    tanh = LayerInverter(nn.Tanh()).fit(X)
    Y = tanh.transform(X)
    Y[:, 0] = 0.1
    found = tanh.inverse_transform(Y, reference=X)
    assert_array_equal(found[:, 1:], X[:, 1:])
    assert_allclose(found[:, 0], np.arctanh(0.1))


def test_range_is_kept():
    X = np.abs(samples(6, 4))
    inverter = LayerInverter(nn.Linear(4, 3), bounds=(0, np.inf)).fit(X)
    assert inverter.inverse_transform(5 * samples(4, 3)).min() >= 0


def test_result_tells_how_it_was_solved():
    X = samples(4, 3)
    inverter = LayerInverter(nn.Linear(3, 3), solver="lsqr", damping=0.25).fit(X)
    found = inverter.inverse_transform(inverter.transform(X) + 1)
    result = inverter.result_
    assert (result.solver, result.damping, result.status) == ("lsqr", 0.25, "converged")
    assert_array_equal(result.solution.numpy(), found)


# ---------------------------------------------------------------- scikit-learn's habits


def test_clone_shares_the_layer_and_copies_the_rest():
    layer = nn.Linear(2, 2)
    inverter = LayerInverter(layer, solver="direct", damping=0.1, bounds=(0, 1))
    inverter.set_output(transform="pandas")
    twin = clone(inverter)
    assert twin.layer is layer
    expected = {"layer": layer, "solver": "direct", "damping": 0.1, "bounds": (0, 1)}
    assert twin.get_params() == expected
    assert twin._sklearn_output_config == {"transform": "pandas"}


def test_set_output_gives_data_frames():
    X = pd.DataFrame(samples(3, 2), columns=["a", "b"], index=[4, 5, 6])
    inverter = LayerInverter(nn.Linear(2, 3).double()).set_output(transform="pandas").fit(X)
    frame = inverter.transform(X)
    assert list(frame.columns) == [f"layerinverter{i}" for i in range(3)]
    assert list(frame.index) == [4, 5, 6]
    assert list(inverter.feature_names_in_) == ["a", "b"]


@pytest.mark.parametrize(
    "build",
    [
        nn.ReLU,
        lambda: nn.Conv1d(2, 1, 2),
        lambda: nn.Softmax(dim=-1),
        lambda: nn.MaxPool1d(2),
        lambda: nn.LayerNorm(4),
        lambda: Residual(nn.Tanh()),
    ],
    ids=["ReLU", "Conv1d", "Softmax", "MaxPool1d", "LayerNorm", "composite"],
)
def test_pickles_after_use(build):
    X = samples(3, 2, 4)
    inverter = LayerInverter(build()).fit(X)
    Y = inverter.transform(X) * 0.5
    expected = inverter.inverse_transform(Y)
    twin = pickle.loads(pickle.dumps(inverter))
    assert_array_equal(twin.inverse_transform(Y), expected)
    assert_array_equal(twin.result_.solution.numpy(), expected)


def test_not_fitted():
    with pytest.raises(NotFittedError):
        LayerInverter().transform(samples(2, 2))
    with pytest.raises(NotFittedError):
        LayerInverter().inverse_transform(samples(2, 2))


# ---------------------------------------------------------------- the layer stays as it was


def state(layer):
    return {
        "weights": [p.detach().clone() for p in layer.state_dict().values()],
        "training": [m.training for m in layer.modules()],
        "requires_grad": [p.requires_grad for p in layer.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in layer.modules()],
        "inplace": [getattr(m, "inplace", None) for m in layer.modules()],
    }


def assert_same_state(before, after):
    for one, other in zip(before.pop("weights"), after.pop("weights"), strict=True):
        assert torch.equal(one, other)
    assert before == after


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.BatchNorm1d(3), (3,)),
        (lambda: nn.ReLU(inplace=True), (3,)),
        (lambda: nn.Dropout(0.5), (3,)),
        (lambda: Residual(nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))), (3,)),
    ],
    ids=["BatchNorm", "in place", "Dropout", "composite"],
)
def test_layer_is_left_alone(build, shape):
    layer = build().train()
    layer.register_forward_hook(lambda *_: None)
    before = state(layer)
    X = samples(4, *shape, dtype=np.float32)
    inverter = LayerInverter(layer).fit(X)
    inverter.inverse_transform(inverter.transform(X) + 0.1)
    with pytest.raises(ValueError, match="Y must hold outputs"):
        inverter.inverse_transform(samples(4, 7))
    assert_same_state(before, state(layer))


def test_layer_is_left_alone_after_an_error_of_its_own():
    layer = nn.Linear(3, 2).train()
    before = state(layer)
    with pytest.raises(ValueError, match="refused X"):
        LayerInverter(layer).fit(samples(4, 5))
    assert_same_state(before, state(layer))


def test_data_is_left_alone():
    X, Y = samples(3, 4), samples(3, 4)
    copies = X.copy(), Y.copy()
    X.setflags(write=False)
    inverter = LayerInverter(nn.ReLU(inplace=True)).fit(X)
    inverter.transform(X)
    inverter.inverse_transform(Y, reference=X)
    assert_array_equal(X, copies[0])
    assert_array_equal(Y, copies[1])


# ---------------------------------------------------------------- warnings and errors


def test_what_does_not_converge_warns_with_advice():
    inverter = LayerInverter(Stubborn()).fit(np.ones((2, 2)))
    text = r"Stubborn: the inversion did not converge for every sample \(solver gauss_newton.*Use t"
    with pytest.warns(ConvergenceWarning, match=text):
        inverter.inverse_transform([[1e6, -3.0, 5.0]], reference=[[0.3, 0.1]])
    assert inverter.result_.status == "not_converged"


@pytest.mark.parametrize("layer", ["relu", nn.ReLU, 3])
def test_layer_of_another_type_is_refused(layer):
    with pytest.raises(TypeError, match=r"layer must be a torch\.nn\.Module instance or None; got"):
        LayerInverter(layer).fit(samples(2, 2))


@pytest.mark.parametrize("bounds", [(1, 0), (0,), "ab", 3, (0, np.nan), (0, 1, 2)])
def test_bad_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match=r"bounds must be \(low, high\) with low <= high, or None"):
        LayerInverter(nn.ReLU(), bounds=bounds).fit(samples(2, 2))


def test_unknown_solver_and_bad_damping_are_refused():
    with pytest.raises(ValueError, match=r"solver must be one of 'auto'.*got 'lsq'.*Did you mean"):
        LayerInverter(nn.Linear(2, 2), solver="lsq").fit(samples(2, 2))
    with pytest.raises(ValueError, match="damping"):
        LayerInverter(nn.Linear(2, 2), damping=-1).fit(samples(2, 2))


def test_wrong_shapes_are_refused():
    inverter = LayerInverter(nn.Linear(3, 2)).fit(samples(4, 3))
    text = r"Y must hold outputs of the layer, shape \(n_samples, 2\); got shape \(4, 3\)"
    with pytest.raises(ValueError, match=text):
        inverter.inverse_transform(samples(4, 3))
    text = r"reference must hold inputs of the layer, shape \(n_samples, 3\); got shape \(4, 2\)"
    with pytest.raises(ValueError, match=text):
        inverter.inverse_transform(samples(4, 2), reference=samples(4, 2))
    text = r"reference must hold one input per row of Y: Y has 4 rows, reference has 1"
    with pytest.raises(ValueError, match=text):
        inverter.inverse_transform(samples(4, 2), reference=samples(1, 3))
    with pytest.raises(ValueError, match="X has 2 features, but LayerInverter is expecting 3"):
        inverter.transform(samples(4, 2))


def test_wrong_shape_beyond_the_first_dimension_is_refused():
    inverter = LayerInverter(nn.ReLU()).fit(samples(4, 3, 2))
    text = r"X must hold inputs of the layer, shape \(n_samples, 3, 2\); got shape \(4, 3, 5\)"
    with pytest.raises(ValueError, match=text):
        inverter.transform(samples(4, 3, 5))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad):
    good, spoilt = samples(2, 2), samples(2, 2)
    spoilt[0, 1] = bad
    inverter = LayerInverter(nn.ReLU()).fit(good)
    for attempt in (
        lambda: LayerInverter(nn.ReLU()).fit(spoilt),
        lambda: inverter.transform(spoilt),
        lambda: inverter.inverse_transform(spoilt),
        lambda: inverter.inverse_transform(good, reference=spoilt),
    ):
        with pytest.raises(ValueError, match=r"contains (NaN|infinity)"):
            attempt()


def test_layers_that_cannot_run_on_the_data():
    X = np.zeros((3, 4))
    with pytest.raises(ValueError, match=r"layer \(Linear\) refused X of shape \(n_samples, 4\)"):
        LayerInverter(nn.Linear(5, 2)).fit(X)
    with pytest.raises(ValueError, match=r"layer \(LSTM\) must return one tensor.*tuple"):
        LayerInverter(nn.LSTM(4, 2)).fit(X)
    with pytest.raises(ValueError, match="solver must be one of"):
        LayerInverter(nn.ReLU(), solver="x").fit(X)
    with pytest.raises(ValueError, match="damping must be 'auto' or a finite number"):
        LayerInverter(nn.ReLU(), damping="y").fit(X)


def test_a_window_of_padding_alone_is_no_obstacle():
    pool = nn.MaxPool1d(2, stride=1, padding=1, dilation=3)
    X = np.random.default_rng(0).normal(size=(3, 1, 2))
    inverter = LayerInverter(pool).fit(X)
    assert np.isfinite(inverter.result_.solution.numpy()).all()


def test_only_rows_that_need_it_are_inverted(monkeypatch):
    X = np.random.default_rng(0).normal(size=(6, 4))
    inverter = LayerInverter(nn.Linear(4, 2).double()).fit(X)
    seen = []
    invert = inverter._inverter.invert
    monkeypatch.setattr(
        inverter._inverter, "invert", lambda y, x0: seen.append(len(y)) or invert(y, x0)
    )
    wanted = inverter.transform(X)
    wanted[2] += 1
    found = inverter.inverse_transform(wanted, X)
    assert seen == [1]
    np.testing.assert_array_equal(np.delete(found, 2, 0), np.delete(X, 2, 0))
    np.testing.assert_allclose(inverter.transform(found), wanted, atol=1e-12)
    assert inverter.result_.solution.shape == X.shape


def test_many_rows_are_inverted_some_at_a_time(monkeypatch):
    X = samples(20, 4)
    inverter = LayerInverter(Stubborn()).fit(X)
    wanted = inverter.transform(X)
    wanted[7] = -1e6
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        at_once = inverter.inverse_transform(wanted, X)
    expected = inverter.result_
    monkeypatch.setattr(layer_inverter, "BYTES_AT_A_TIME", 3 * 8 * 7)
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        assert_allclose(inverter.inverse_transform(wanted, X), at_once, atol=1e-9)
    found = inverter.result_
    assert (found.status, found.solver) == ("not_converged", expected.solver)
    assert found.advice
    assert found.iterations == expected.iterations


def test_joined_results_report_the_worst():
    good = SolveResult(torch.zeros(2, 3), solver="torch", residual=1e-15, iterations=3)
    bad = SolveResult(
        torch.ones(1, 3), "torch", "not_converged", residual=0.1, iterations=9, advice="Damp."
    )
    joined = join_results([good, bad, good])
    assert joined.solution.shape == (5, 3)
    assert (joined.status, joined.residual, joined.iterations) == ("not_converged", 0.1, 9)
    assert joined.advice == "Damp."
    assert join_results([good]) is good
