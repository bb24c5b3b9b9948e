"""Split points and the table of stages, on networks of every origin."""

import copy
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from skorch import NeuralNetClassifier
from torch import nn
from torch.nn import functional as F

from featprop_sklearn import describe, split_points
from featprop_sklearn.least_squares import damping

IMAGES = np.random.default_rng(0).normal(size=(20, 1, 8, 8))
ROWS = np.random.default_rng(1).normal(size=(20, 4))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return x + torch.relu(self.conv(x))


class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True))
        self.block = Block()
        self.fc = nn.Linear(27, 5)

    def forward(self, x):
        x = F.max_pool2d((x - 0.5) * 2, 1)
        x = F.max_pool2d(self.block(self.stem(x)), 2)
        return self.fc(x.view(x.size(0), -1))


def mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def test_table_of_a_cnn():
    columns = ["layer", "in_shape", "out_shape", "parameters", "refitted", "split", "inversion"]
    image, closed, solved = (3, 6, 6), "closed form", "least squares"
    expected = pd.DataFrame(
        [
            ("sub", "Composite", (1, 8, 8), (1, 8, 8), 0, 0, False, "Gauss-Newton"),
            ("mul", "Composite", (1, 8, 8), (1, 8, 8), 0, 0, False, "Gauss-Newton"),
            ("max_pool2d", "MaxPool2d", (1, 8, 8), (1, 8, 8), 0, 0, False, closed),
            ("stem.0", "Conv2d", (1, 8, 8), image, 30, 30, True, solved),
            ("stem.1", "ReLU", image, image, 0, 0, True, closed),
            ("block", "Block", image, image, 84, 84, True, "Gauss-Newton"),
            ("max_pool2d_1", "MaxPool2d", image, (3, 3, 3), 0, 0, True, closed),
            ("view", "Flatten", (3, 3, 3), (27,), 0, 0, True, closed),
            ("fc", "Linear", (27,), (5,), 140, 140, True, solved),
        ],
        columns=["stage", *columns],
    ).set_index("stage")
    table = describe(CNN(), IMAGES)
    pd.testing.assert_frame_equal(table.drop(columns="condition"), expected)
    affine = table["layer"].isin(["Conv2d", "Linear", "Flatten"])
    assert table["condition"].notna().tolist() == affine.tolist()


def jacobian_condition(layer, shape):
    """Condition number of the dense Jacobian, zeros left out."""
    x = torch.zeros(shape)
    matrix = torch.autograd.functional.jacobian(lambda x: layer(x[None])[0], x)
    values = torch.linalg.svdvals(matrix.reshape(-1, x.numel()).double()).numpy()
    return values[0] / values[values > 1e-9 * values[0]].min()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(7, 4), (7,)),
        (nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 7, 6)),
        (nn.ConvTranspose1d(3, 2, 4), (3, 9)),
        (nn.AvgPool2d(2), (2, 6, 6)),
        (nn.Flatten(), (2, 3)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_condition_numbers(layer, shape):
    torch.manual_seed(0)
    found = describe(nn.Sequential(layer), np.ones((2, *shape)))["condition"].item()
    assert found == pytest.approx(jacobian_condition(layer, shape), rel=1e-5)


def test_condition_numbers_of_large_layers_are_iterated_where_asked_for(monkeypatch):
    torch.manual_seed(0)
    net, X = nn.Sequential(nn.Conv2d(3, 2, 3)), np.ones((2, 3, 9, 9))
    deficient = nn.Sequential(nn.Conv2d(2, 3, 3))
    exact = describe(net, X)["condition"].item()
    monkeypatch.setattr(damping, "SVD_LIMIT", 10)
    assert np.isnan(describe(net, X)["condition"].item())
    assert describe(net, X, iterate=True)["condition"].item() == pytest.approx(exact, rel=0.1)
    assert np.isinf(describe(deficient, X[:, :2], iterate=True)["condition"].item())
    nothing = nn.Sequential(nn.Linear(4, 3))
    nn.init.zeros_(nothing[0].weight)
    assert np.isnan(describe(nothing, ROWS)["condition"].item())


def test_the_table_tells_how_much_the_closed_form_refits():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.norm = nn.LSTM(4, 3, batch_first=True), nn.LayerNorm(3)
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(self.norm(self.rnn(x)[0][:, -1]))

    table = describe(Recurrent(), np.zeros((3, 5, 4)))
    assert list(table["parameters"]) == [108, 0, 6, 8]
    assert list(table["refitted"]) == [0, 0, 0, 8]


def test_split_points_are_the_marked_stages():
    table = describe(CNN(), IMAGES)
    assert split_points(CNN(), IMAGES) == list(table.index[table.split])


@pytest.mark.parametrize("look", [split_points, describe])
def test_the_network_is_left_alone(look):
    network = CNN()
    network.stem[0].weight.requires_grad_(False)
    handle = network.fc.register_forward_hook(lambda *_: None)
    before = copy.deepcopy(network.state_dict())
    look(network, IMAGES)
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert network.stem[1].inplace
    assert [p.requires_grad for p in network.parameters()] == [False] + [True] * 5
    assert all(p.grad is None for p in network.parameters())
    assert list(network.fc._forward_hooks) == [handle.id]


@pytest.mark.parametrize("look", [split_points, describe])
def test_the_network_is_left_alone_after_an_error(look):
    network = CNN()
    network.register_buffer("count", torch.zeros(1))
    with pytest.raises(ValueError, match=r"The network \(CNN\) refused X of shape \(n_samples, 4"):
        look(network, ROWS)
    assert all(module.training for module in network.modules())
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize(
    "kind",
    [
        np.asarray,
        lambda x: x.astype(np.float32),
        lambda x: x.tolist(),
        pd.DataFrame,
        pl.DataFrame,
        torch.from_numpy,
        lambda x: torch.from_numpy(x).requires_grad_(),
    ],
    ids=["ndarray", "float32", "list", "pandas", "polars", "tensor", "tensor with gradient"],
)
def test_kinds_of_samples(kind):
    assert split_points(mlp(), kind(ROWS.copy())) == ["0", "1", "2"]


@pytest.mark.parametrize("look", [split_points, describe])
@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (sparse.csr_array(ROWS), TypeError, "Sparse data was passed for X, but dense"),
        (ROWS[:0], ValueError, r"0 sample\(s\) \(shape=\(0, 4\)\) while a minimum of 1"),
        ([[1.0, 2.0], [1.0]], ValueError, "inhomogeneous shape after 1 dimensions"),
        (None, ValueError, "Expected 2D array, got scalar array instead"),
        (ROWS[0], ValueError, "Expected 2D array, got 1D array instead"),
        ([["a"] * 4] * 2, ValueError, "could not convert string to float"),
        (ROWS * np.nan, ValueError, "Input X contains NaN"),
    ],
    ids=["sparse", "no rows", "ragged", "None", "one row", "strings", "NaN"],
)
def test_what_is_no_table_of_numbers(look, X, error, message):
    with pytest.raises(error, match=message):
        look(mlp(), X)


def test_double_and_frozen_networks():
    network = mlp().double().requires_grad_(False).eval()
    assert split_points(network, ROWS) == ["0", "1", "2"]
    assert not network.training


def test_fitted_networks_of_other_libraries():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        sklearn_mlp = MLPClassifier((6,), max_iter=2).fit(ROWS, ROWS[:, 0] > 0)
    assert split_points(sklearn_mlp, ROWS) == ["hidden1", "relu1", "output"]
    assert list(describe(sklearn_mlp, ROWS)["parameters"]) == [30, 0, 7]
    net = NeuralNetClassifier(mlp()).initialize()
    assert split_points(net, ROWS) == ["0", "1", "2"]


def test_what_is_no_network():
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, a fitted skorch net"):
        split_points("resnet18", ROWS)
