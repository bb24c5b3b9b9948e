"""Calls inside a forward: each one that has a layer is read as that layer, options included."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from featprop_sklearn.networks import Exp, Permute, Reshape, build_chain, functional

MATRIX, SIGNAL, IMAGE, VOLUME = (5,), (3, 8), (2, 6, 7), (2, 4, 5, 6)
# call, shape of one sample, the layer that it must become
CALLS = {
    "relu": (F.relu, MATRIX, nn.ReLU()),
    "relu in place": (lambda x: F.relu(x, inplace=True), MATRIX, nn.ReLU()),
    "relu6": (F.relu6, MATRIX, nn.ReLU6()),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.3), MATRIX, nn.LeakyReLU(0.3)),
    "elu": (lambda x: F.elu(x, alpha=0.5), MATRIX, nn.ELU(0.5)),
    "celu": (lambda x: F.celu(x, 0.5), MATRIX, nn.CELU(0.5)),
    "selu": (F.selu, MATRIX, nn.SELU()),
    "gelu": (F.gelu, MATRIX, nn.GELU()),
    "gelu, tanh": (lambda x: F.gelu(x, approximate="tanh"), MATRIX, nn.GELU("tanh")),
    "silu": (F.silu, MATRIX, nn.SiLU()),
    "mish": (F.mish, MATRIX, nn.Mish()),
    "softplus": (lambda x: F.softplus(x, 2.0, 9.0), MATRIX, nn.Softplus(2.0, 9.0)),
    "softsign": (F.softsign, MATRIX, nn.Softsign()),
    "logsigmoid": (F.logsigmoid, MATRIX, nn.LogSigmoid()),
    "hardswish": (F.hardswish, MATRIX, nn.Hardswish()),
    "hardsigmoid": (F.hardsigmoid, MATRIX, nn.Hardsigmoid()),
    "hardtanh": (lambda x: F.hardtanh(x, -0.5, 0.25), MATRIX, nn.Hardtanh(-0.5, 0.25)),
    "tanh": (F.tanh, MATRIX, nn.Tanh()),
    "sigmoid": (F.sigmoid, MATRIX, nn.Sigmoid()),
    "softmax": (lambda x: F.softmax(x, dim=-1), SIGNAL, nn.Softmax(-1)),
    "log_softmax": (lambda x: F.log_softmax(x, 1), SIGNAL, nn.LogSoftmax(1)),
    "max_pool1d": (lambda x: F.max_pool1d(x, 2, padding=1), SIGNAL, nn.MaxPool1d(2, padding=1)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2), IMAGE, nn.MaxPool2d(3, 2)),
    "max_pool3d": (
        lambda x: F.max_pool3d(x, 2, ceil_mode=True),
        VOLUME,
        nn.MaxPool3d(2, ceil_mode=True),
    ),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 2, 3, 0), SIGNAL, nn.AvgPool1d(2, 3)),
    "avg_pool2d": (
        lambda x: F.avg_pool2d(x, 2, padding=1, count_include_pad=False),
        IMAGE,
        nn.AvgPool2d(2, padding=1, count_include_pad=False),
    ),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2, 2, 1), VOLUME, nn.AvgPool3d(2, 2, 1)),
    "adaptive_avg_pool1d": (
        lambda x: F.adaptive_avg_pool1d(x, 3),
        SIGNAL,
        nn.AdaptiveAvgPool1d(3),
    ),
    "adaptive_avg_pool2d": (
        lambda x: F.adaptive_avg_pool2d(x, (1, 1)),
        IMAGE,
        nn.AdaptiveAvgPool2d((1, 1)),
    ),
    "adaptive_avg_pool3d": (
        lambda x: F.adaptive_avg_pool3d(x, 2),
        VOLUME,
        nn.AdaptiveAvgPool3d(2),
    ),
    "torch.relu": (torch.relu, MATRIX, nn.ReLU()),
    "x.relu()": (lambda x: x.relu(), MATRIX, nn.ReLU()),
    "x.relu_()": (lambda x: x.relu_(), MATRIX, nn.ReLU()),
    "torch.tanh": (torch.tanh, MATRIX, nn.Tanh()),
    "x.tanh_()": (lambda x: x.tanh_(), MATRIX, nn.Tanh()),
    "x.sigmoid()": (lambda x: x.sigmoid(), MATRIX, nn.Sigmoid()),
    "x.sigmoid_()": (lambda x: x.sigmoid_(), MATRIX, nn.Sigmoid()),
    "torch.exp": (torch.exp, MATRIX, Exp()),
    "torch.softmax": (lambda x: torch.softmax(x, 1), SIGNAL, nn.Softmax(1)),
    "x.softmax()": (lambda x: x.softmax(dim=2), SIGNAL, nn.Softmax(2)),
    "x.log_softmax()": (lambda x: x.log_softmax(-1), SIGNAL, nn.LogSoftmax(-1)),
    "dropout": (lambda x: F.dropout(x, 0.3, training=False), MATRIX, nn.Dropout(0.3)),
    "dropout2d": (lambda x: F.dropout2d(x, training=False), IMAGE, nn.Dropout2d()),
    "dropout1d": (lambda x: F.dropout1d(x, training=False), SIGNAL, nn.Dropout1d()),
    "dropout3d": (lambda x: F.dropout3d(x, training=False), (2, 3, 3, 3), nn.Dropout3d()),
    "alpha_dropout": (lambda x: F.alpha_dropout(x, training=False), MATRIX, nn.AlphaDropout()),
    "feature_alpha_dropout": (
        lambda x: F.feature_alpha_dropout(x, training=False),
        IMAGE,
        nn.FeatureAlphaDropout(),
    ),
    "flatten": (lambda x: torch.flatten(x, 1), IMAGE, Reshape((84,))),
    "x.flatten()": (lambda x: x.flatten(2), IMAGE, Reshape((2, 42))),
    "view": (lambda x: x.view(x.size(0), -1), IMAGE, nn.Flatten()),
    "reshape": (lambda x: x.reshape((x.shape[0], 6, 14)), IMAGE, Reshape((6, 14))),
    "torch.reshape": (lambda x: torch.reshape(x, (-1, 84)), IMAGE, nn.Flatten()),
    "squeeze": (lambda x: x.squeeze(1), (1, 6), Reshape((6,))),
    "unsqueeze": (lambda x: x.unsqueeze(1), MATRIX, Reshape((1, 5))),
    "unflatten": (lambda x: x.unflatten(1, (2, 3)), (6,), Reshape((2, 3))),
    "contiguous": (lambda x: x.contiguous(), MATRIX, Reshape((5,))),
    "permute": (lambda x: x.permute(0, 3, 1, 2), IMAGE, Permute((0, 3, 1, 2))),
    "torch.permute": (lambda x: torch.permute(x, (0, 2, 1)), SIGNAL, Permute((0, 2, 1))),
    "transpose": (lambda x: x.transpose(1, -1), IMAGE, Permute((0, 3, 2, 1))),
    "movedim": (lambda x: x.movedim(1, -1), IMAGE, Permute((0, 2, 3, 1))),
}
PLAIN = {  # no layer computes these: they stay composite
    "x.clamp": (lambda x: x.clamp(-1, 1), MATRIX),
    "x.mean": (lambda x: x.mean((2, 3)), IMAGE),
    "option from data": (lambda x: F.leaky_relu(x, 1 / x.size(1)), MATRIX),
    "dim from data": (lambda x: torch.softmax(x, x.ndim - 1), SIGNAL),
    "keyword": (lambda x: torch.relu(input=x), MATRIX),
}


class Calling(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call
        self.shift = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def forward(self, x):
        return self.call(x + self.shift)


def last_stage(call, shape):
    x = 3 * torch.randn(4, *shape, dtype=torch.float64)
    network = Calling(call).eval()
    chain = build_chain(network, x)
    assert torch.equal(chain(x[:3]), network(x[:3]))
    return chain, chain[-1].module


@pytest.mark.parametrize(("call", "shape", "layer"), CALLS.values(), ids=CALLS.keys())
def test_call_becomes_layer(call, shape, layer):
    chain, found = last_stage(call, shape)
    assert len(chain) == 2
    assert repr(found) == repr(layer)  # shows the options
    assert not found.training


@pytest.mark.parametrize(("call", "shape"), PLAIN.values(), ids=PLAIN.keys())
def test_other_calls_stay_composite(call, shape):
    _, found = last_stage(call, shape)
    assert type(found).__name__ in ("Composite", "Calling")


def test_every_function_of_the_table_is_tested():
    tested = {type(layer) for _, _, layer in CALLS.values()}
    table = {*functional._LAYERS.values(), *functional._LAYERS_BY_NAME.values()}
    assert table <= tested


def test_dropout_left_on_is_no_identity():
    network = Calling(lambda x: F.dropout(x, 0.5, training=True)).eval()
    chain = build_chain(network, torch.ones(4, 5, dtype=torch.float64))
    assert chain.names == ["network"]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [(Reshape((3, 2)), (4, 3, 2)), (Permute((0, 2, 1)), (4, 6, 1)), (Exp(), (4, 1, 6))],
    ids=str,
)
def test_layers_keep_the_batch_dimension(layer, expected):
    assert layer(torch.zeros(4, 1, 6)).shape == expected
