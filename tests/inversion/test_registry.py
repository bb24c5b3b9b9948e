"""Which inverter serves which layer, and what a registration must look like."""

import numpy as np
import pytest
import torch
from torch import nn

from featprop_sklearn import LayerInverter, make_inversion_pipeline, register_inverter
from featprop_sklearn.inversion import (
    Inverter,
    keeps_bounds,
    prepare_inverter,
    registered_layers,
    registry,
)
from featprop_sklearn.inversion.base import ClosedForm
from featprop_sklearn.inversion.composite import GaussNewton
from featprop_sklearn.least_squares import SolveResult
from featprop_sklearn.networks import layers


@pytest.fixture(autouse=True)
def _registry_as_before(monkeypatch):
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    monkeypatch.setattr(layers, "_TREATED_AS_LAYERS", set(layers._TREATED_AS_LAYERS))


class Cube(nn.Module):
    def forward(self, x):
        return x**3


class ScaledCube(Cube):
    def forward(self, x):
        return 2 * super().forward(x)


def cube_root(layer, wanted, reference):
    return wanted.sign() * wanted.abs() ** (1 / 3)


class CubeInverter(Inverter):
    supports_bounds = True

    def invert(self, wanted, reference):
        low, high = self.options.bounds or (-np.inf, np.inf)
        return SolveResult(cube_root(self.layer, wanted, reference).clamp(low, high))


def test_function():
    register_inverter(Cube, cube_root)
    assert Cube in registered_layers()
    X = np.array([[-2.0, 0.5], [1.0, 3.0]])
    cube = LayerInverter(Cube()).fit(X)
    np.testing.assert_allclose(cube.inverse_transform(X**3), X, rtol=1e-12)
    assert cube.result_.solver == "closed_form"
    assert not keeps_bounds(Cube())


def test_class():
    register_inverter(Cube, CubeInverter)
    assert keeps_bounds(Cube())
    X = np.array([[0.2, 0.5], [0.1, 0.9]])
    cube = LayerInverter(Cube(), bounds=(0, 1)).fit(X)
    np.testing.assert_allclose(cube.inverse_transform([[-8.0, 0.125]]), [[0.0, 0.5]])


def test_subclasses_are_served_until_they_have_an_entry_of_their_own():
    assert isinstance(prepare_inverter(ScaledCube(), (2,)), GaussNewton)
    register_inverter(Cube, cube_root)
    assert isinstance(prepare_inverter(ScaledCube(), (2,)), ClosedForm)
    register_inverter(ScaledCube, CubeInverter)
    assert isinstance(prepare_inverter(ScaledCube(), (2,)), CubeInverter)
    assert isinstance(prepare_inverter(Cube(), (2,)), ClosedForm)


def test_subclass_of_a_torch_layer_is_served():
    class QuietReLU(nn.ReLU):
        pass

    inverter = prepare_inverter(QuietReLU(), (2,))
    assert type(inverter) is type(prepare_inverter(nn.ReLU(), (2,)))


def test_subclass_of_a_torch_layer_with_another_forward_is_another_layer():
    class ChannelsFirst(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.transpose(1, 2)).transpose(1, 2)

    assert isinstance(prepare_inverter(ChannelsFirst(3), (3, 4)), GaussNewton)
    register_inverter(ChannelsFirst, cube_root)
    assert isinstance(prepare_inverter(ChannelsFirst(3), (3, 4)), ClosedForm)


def test_later_registration_replaces_the_earlier():
    register_inverter(Cube, cube_root)
    register_inverter(Cube, CubeInverter)
    assert isinstance(prepare_inverter(Cube(), (2,)), CubeInverter)


def test_registered_module_stays_one_stage_of_a_chain():
    class TwoSteps(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Tanh(), Cube()

        def forward(self, x):
            return self.second(self.first(x))

    network = nn.Sequential(nn.Linear(2, 2), TwoSteps())
    X = np.ones((2, 2), dtype=np.float32)
    assert len(make_inversion_pipeline(network, X=X)) == 3
    register_inverter(TwoSteps, lambda layer, wanted, reference: reference)
    assert len(make_inversion_pipeline(network)) == 2


def test_functions_see_float64_and_a_copy_in_eval_mode():
    seen = {}

    def look(layer, wanted, reference):
        seen.update(layer=layer, dtypes={wanted.dtype, reference.dtype}, training=layer.training)
        return reference

    register_inverter(Cube, look)
    layer = Cube().train()
    X = np.ones((2, 2), dtype=np.float32)
    LayerInverter(layer).fit(X).inverse_transform(X)
    assert seen["layer"] is not layer
    assert seen["dtypes"] == {torch.float64}
    assert not seen["training"]
    assert layer.training


@pytest.mark.parametrize("layer_type", [Cube(), "Cube", int, None])
def test_what_is_no_layer_type_is_refused(layer_type):
    text = r"layer_type must be a subclass of torch\.nn\.Module; got .*\. Pass the class"
    with pytest.raises(TypeError, match=text):
        register_inverter(layer_type, cube_root)


@pytest.mark.parametrize("inverter", [None, "cube_root", int, 3.0])
def test_what_is_no_inverter_is_refused(inverter):
    text = r"inverter must be a subclass of .*Inverter or a function \(layer, wanted, reference\)"
    with pytest.raises(TypeError, match=text):
        register_inverter(Cube, inverter)


def test_a_refused_registration_changes_nothing():
    before = registered_layers()
    with pytest.raises(TypeError):
        register_inverter(Cube, 3)
    assert registered_layers() == before


def test_range_is_refused_where_an_inverter_keeps_none():
    register_inverter(Cube, cube_root)
    text = r"bounds=\(0\.0, 1\.0\) is not available for Cube: .*Use bounds=None"
    with pytest.raises(ValueError, match=text):
        LayerInverter(Cube(), bounds=(0, 1)).fit(np.ones((2, 2)))
