"""A network as a Pipeline: forward it is the network, backward it is feature backpropagation."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_digits, make_classification
from sklearn.exceptions import NotFittedError
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from skorch import NeuralNetClassifier
from torch import nn

from featprop_sklearn import LayerInverter, make_inversion_pipeline
from featprop_sklearn.inversion import pipeline_of_layers

RANDOM = np.random.default_rng(0)
DTYPES = {np.float32: torch.float32, np.float64: torch.float64}


def cnn():
    layers = (
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 3, 2),
        nn.Flatten(),
        nn.Linear(27, 5),
    )
    return nn.Sequential(*layers).eval()


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.Softmax(dim=1)).eval()


NETWORKS = {"CNN": (cnn, (2, 8, 8)), "MLP": (mlp, (6,))}


class OwnForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.relu(self.hidden(x)))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("build", "shape"), NETWORKS.values(), ids=NETWORKS)
def test_transform_is_the_network(build, shape, dtype):
    network = build().to(DTYPES[dtype])
    X = RANDOM.normal(size=(7, *shape)).astype(dtype)
    with torch.no_grad():
        expected = network(torch.from_numpy(X)).numpy()
    found = make_inversion_pipeline(network).fit(X).transform(X)
    assert found.dtype == dtype
    assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("build", "shape"), NETWORKS.values(), ids=NETWORKS)
def test_fitted_on_one_row_it_returns_that_row(build, shape, dtype):
    row = RANDOM.normal(size=(1, *shape)).astype(dtype)
    pipeline = make_inversion_pipeline(build().to(DTYPES[dtype])).fit(row)
    found = pipeline.inverse_transform(pipeline.transform(row))
    assert found.dtype == dtype
    assert_allclose(found, row, rtol=0, atol=1e-6)


def test_wanted_outputs_are_met():
    network = mlp().double()
    X = RANDOM.normal(size=(20, 6))
    pipeline = make_inversion_pipeline(network, damping=0.0).fit(X)
    wanted = np.full((2, 4), 0.1) + 0.6 * np.eye(4)[:2]
    assert_allclose(
        pipeline[2:].transform(pipeline[2:].inverse_transform(wanted)), wanted, atol=1e-9
    )


def test_steps_are_layer_inverters_named_after_the_stages():
    pipeline = make_inversion_pipeline(cnn(), solver="lsqr", damping=0.5)
    assert isinstance(pipeline, Pipeline)
    assert [name for name, _ in pipeline.steps] == list("0123456")
    assert all(isinstance(step, LayerInverter) for _, step in pipeline.steps)
    assert {(step.solver, step.damping) for _, step in pipeline.steps} == {("lsqr", 0.5)}
    with pytest.raises(NotFittedError):
        pipeline.transform(np.zeros((1, 2, 8, 8)))


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (None, None, ["body.0", "body.1", "head"]),
        ("body.1", None, ["body.1", "head"]),
        (None, "head", ["body.0", "body.1"]),
        (1, 2, ["body.1"]),
        (-1, None, ["head"]),
        (np.int64(0), -1, ["body.0", "body.1"]),
    ],
)
def test_start_and_stop_cut_as_a_slice(start, stop, expected):
    network = nn.Sequential()
    network.add_module("body", nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    network.add_module("head", nn.Linear(3, 2))
    pipeline = make_inversion_pipeline(network, start, stop)
    assert [name for name, _ in pipeline.steps] == expected


@pytest.mark.parametrize("parameter", ["start", "stop"])
@pytest.mark.parametrize("stage", ["head", 9, -9, 1.0])
def test_unknown_stages_are_refused(parameter, stage):
    text = rf"{parameter}={stage!r} is not a stage of this network; stages: \['0', '1', '2', '3'\]"
    with pytest.raises(ValueError, match=text):
        make_inversion_pipeline(mlp(), **{parameter: stage})


def test_nothing_between_start_and_stop_is_refused():
    with pytest.raises(ValueError, match=r"start=2 and stop=2 leave no stage; stages: \['0'"):
        make_inversion_pipeline(mlp(), 2, 2)


def test_a_forward_of_its_own_is_read_with_data():
    network = OwnForward().double()
    X = RANDOM.normal(size=(5, 4))
    with pytest.raises(ValueError, match=r"module \(OwnForward\) is neither .* Pass a few rows"):
        make_inversion_pipeline(network)
    pipeline = make_inversion_pipeline(network, X=X).fit(X)
    assert [name for name, _ in pipeline.steps] == ["hidden", "relu", "out"]
    with torch.no_grad():
        assert_array_equal(pipeline.transform(X), network(torch.from_numpy(X)).numpy())


def test_names_are_made_fit_for_a_pipeline():
    network = nn.Sequential()
    for name in ("my__layer", "steps", "memory"):
        network.add_module(name, nn.Linear(2, 2))
    pipeline = make_inversion_pipeline(network)
    assert [name for name, _ in pipeline.steps] == ["my_layer", "steps_", "memory_"]
    assert pipeline.get_params()["my_layer__damping"] == "auto"
    pipeline.fit(np.ones((2, 2)))


def test_names_that_become_alike_are_kept_apart():
    network = nn.Sequential()
    network.add_module("a__b", nn.Linear(2, 2))
    network.add_module("a_b", nn.Linear(2, 2))
    names = [name for name, _ in make_inversion_pipeline(network).fit(np.ones((2, 2))).steps]
    assert len(set(names)) == 2


def test_network_is_left_alone():
    network = cnn().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    X = RANDOM.normal(size=(4, 2, 8, 8)).astype(np.float32)
    pipeline = make_inversion_pipeline(network).fit(X)
    pipeline.inverse_transform(pipeline.transform(X))
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(p.requires_grad for p in network.parameters())


def test_later_training_of_the_network_does_not_reach_the_pipeline():
    network = mlp().double()
    X = RANDOM.normal(size=(4, 6))
    pipeline = make_inversion_pipeline(network).fit(X)
    expected = pipeline.transform(X)
    with torch.no_grad():
        network[0].weight.mul_(2)
    assert_array_equal(pipeline.transform(X), expected)


def test_clone_shares_the_layers():
    pipeline = make_inversion_pipeline(mlp())
    twin = clone(pipeline)
    for (_, one), (_, other) in zip(pipeline.steps, twin.steps, strict=True):
        assert one is not other
        assert one.layer is other.layer


def test_ranges_of_named_layers():
    layers = [("linear", nn.Linear(3, 2)), ("relu", nn.ReLU())]
    bounds = [(0.0, 1.0), None]
    pipeline = pipeline_of_layers(layers, solver="auto", damping="auto", bounds=bounds)
    X = RANDOM.uniform(size=(5, 3))
    found = pipeline.fit(X).inverse_transform(10 * RANDOM.normal(size=(5, 2)))
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.fixture(scope="module")
def table():
    X, y = make_classification(60, 6, n_informative=4, n_classes=3, random_state=0)
    return X, y


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_fitted_mlp_classifier(table):
    X, y = table
    source = MLPClassifier((5,), activation="tanh", max_iter=20, random_state=0).fit(X, y)
    pipeline = make_inversion_pipeline(source).fit(X)
    assert [name for name, _ in pipeline.steps] == ["hidden1", "tanh1", "output"]
    logits = pipeline.transform(X)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert_allclose(probabilities, source.predict_proba(X), rtol=0, atol=1e-12)


def test_fitted_skorch_net(table):
    X, y = table
    net = NeuralNetClassifier(
        mlp_for_skorch, max_epochs=1, verbose=0, train_split=None, criterion=nn.CrossEntropyLoss
    ).fit(X.astype(np.float32), y)
    pipeline = make_inversion_pipeline(net).fit(X.astype(np.float32))
    expected = net.forward(X.astype(np.float32)).numpy()
    assert_allclose(pipeline.transform(X.astype(np.float32)), expected, rtol=0, atol=1e-6)


def mlp_for_skorch():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def test_what_is_not_fitted_or_no_network_is_refused():
    with pytest.raises(NotFittedError, match=r"MLPClassifier that has not been fitted"):
        make_inversion_pipeline(MLPClassifier())
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, .* got 3"):
        make_inversion_pipeline(3)


def test_references_are_seen_in_the_precision_of_the_fit():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    row = load_digits().data[7].reshape(1, 1, 8, 8)
    for net in (network, copy.deepcopy(network).double()):
        for dtype in ("float32", "float64"):
            pipeline = make_inversion_pipeline(net).fit(row.astype(dtype))
            back = pipeline.inverse_transform(pipeline.transform(row.astype(dtype)))
            np.testing.assert_allclose(back, row, atol=1e-6)
