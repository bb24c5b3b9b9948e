"""Subclasses that add activations to BatchNorm: nearest preimages in closed form."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from featprop_sklearn import make_inversion_pipeline
from featprop_sklearn.inversion import LayerInverter, prepare_inverter
from featprop_sklearn.inversion.composite import GaussNewton
from featprop_sklearn.inversion.in_parts import InParts
from featprop_sklearn.networks import layers, treat_as_layer


class Plus:
    """Dropout and an activation, as timm's layers have them."""

    def __init__(self, *args, act=None, **options):
        super().__init__(*args, **options)
        self.drop, self.act = nn.Dropout(), act or nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.drop(self.normalised(x)))


class BatchNormAct(Plus, nn.BatchNorm2d):
    def normalised(self, x):
        torch._assert(x.ndim == 4, "images")
        batch = self.training or not self.track_running_stats
        moments = self.running_mean, self.running_var
        return F.batch_norm(x, *moments, self.weight, self.bias, batch, 0.1, self.eps)


class LayerNormAct(Plus, nn.LayerNorm):
    def normalised(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class Inherited(BatchNormAct):
    """What torch.fx cannot follow: torch checks the dimensions with an if."""

    def normalised(self, x):
        return nn.BatchNorm2d.forward(self, x)


class Childless(nn.BatchNorm2d):
    def forward(self, x):
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)
        return y.relu()


def trained(layer):
    for name, tensor in layer.state_dict().items():
        if name in ("weight", "bias", "running_mean"):
            tensor.normal_()
        elif name == "running_var":
            tensor.uniform_(0.5, 2.0)
    return layer.double().eval()


def batch(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("affine", [True, False])
def test_nearest_preimages(affine):
    layer = trained(BatchNormAct(3, affine=affine))
    reference = batch(6, 3, 4, 5)
    wanted = layer(reference.clone()).detach() + batch(6, 3, 4, 5)
    inverter = prepare_inverter(layer, (3, 4, 5))
    assert isinstance(inverter, InParts)
    kept = reference.clone()
    result = inverter.invert(wanted, reference)
    assert result.converged
    assert torch.equal(reference, kept)  # though the activation works in place
    y, x0 = wanted.numpy(), reference.numpy()
    mean, variance = (
        moment.numpy()[:, None, None] for moment in (layer.running_mean, layer.running_var)
    )
    weight, bias = (
        tensor.detach().numpy()[:, None, None] if affine else start
        for tensor, start in ((layer.weight, 1.0), (layer.bias, 0.0))
    )
    scale = weight / np.sqrt(variance + layer.eps)
    before = (x0 - mean) * scale + bias
    best = np.where(y > 0, y, np.minimum(before, 0))
    np.testing.assert_allclose(result.solution, (best - bias) / scale + mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("act", [nn.SiLU(), nn.Tanh(), nn.Identity()], ids=repr)
def test_as_the_layers_one_after_the_other(act):
    layer = trained(BatchNormAct(2, act=act))
    plain = nn.BatchNorm2d(2).double()
    plain.load_state_dict(layer.state_dict())
    X, Y = batch(9, 2, 3, 3).numpy(), 0.3 * batch(9, 2, 3, 3).numpy()
    pipeline = make_inversion_pipeline(nn.Sequential(plain.eval(), act), X=X)
    expected = pipeline.fit(X).inverse_transform(Y)
    found = LayerInverter(layer).fit(X).inverse_transform(Y)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "layer",
    [
        *(LayerNormAct(4), Inherited(3), Childless(3)),
        BatchNormAct(3, track_running_stats=False),
        BatchNormAct(3, act=nn.Softmax(dim=1)),
    ],
    ids=["LayerNorm", "inherited", "childless", "statistics of the batch", "Softmax"],
)
def test_others_are_inverted_as_a_whole(layer):
    assert isinstance(prepare_inverter(trained(layer), (3, 4, 4)), GaussNewton)


def test_declared_layers_are_inverted_as_a_whole(monkeypatch):
    monkeypatch.setattr(layers, "_TREATED_AS_LAYERS", set(layers._TREATED_AS_LAYERS))
    treat_as_layer(BatchNormAct)

    class Deeper(BatchNormAct):
        pass

    for kind in (BatchNormAct, Deeper):
        assert isinstance(prepare_inverter(trained(kind(3)), (3, 4, 4)), GaussNewton)


def test_chains_keep_them_whole():
    network = nn.Sequential(nn.Conv2d(1, 3, 3), BatchNormAct(3))
    assert len(make_inversion_pipeline(network, X=batch(4, 1, 6, 6).float().numpy())) == 2
