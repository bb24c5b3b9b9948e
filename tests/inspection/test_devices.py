"""On an accelerator, networks are looked at as on the processor."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from featprop_sklearn import describe, make_inversion_pipeline, split_points
from featprop_sklearn.inspection import (
    RelativeSectionalPropagation,
    attribute,
    cascading_randomisation,
    feature_gap,
    make_attribution_report,
)
from featprop_sklearn.inspection.attribute import METHODS
from tests.accelerator.pairs import AS_IT_IS, assert_near, network, on_both, rows


@pytest.fixture
def pair(accelerator):
    X, y = rows()
    return tuple(on_both(accelerator, lambda: network().double(), X, y, trainer=AS_IT_IS))


def small():
    torch.manual_seed(0)
    return network().double().eval()


@pytest.mark.parametrize("method", METHODS)
def test_attributions(method, pair):
    if method not in ("rsp", "displacement"):
        pytest.importorskip("captum")
    X, y = rows()
    expected, found = (attribute(estimator, X[:5], method, target=y[:5]) for estimator in pair)
    assert_near(found.maps, expected.maps, torch.float64)


@pytest.mark.parametrize(
    "hostile",
    [[2], [[2], [3, 4], []], np.eye(10, dtype=bool)[2:5], "runner_up", None],
    ids=["one", "lists", "mask", "name", "none"],
)
def test_relevance_of_a_module(hostile, accelerator):
    model, x = small(), torch.rand(3, 1, 8, 8).double()
    model[0].padding_mode = "replicate"
    expected = RelativeSectionalPropagation(model).attribute(x, 1, hostile)
    there = RelativeSectionalPropagation(model.to(accelerator))
    found = there.attribute(x.to(accelerator), 1, hostile)
    assert found.device.type == accelerator
    torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize("pad", [nn.ReplicationPad2d(1), nn.ZeroPad2d(1)])
def test_relevance_through_padding(pad, accelerator):
    model = nn.Sequential(pad, *small()[:3], nn.Flatten(), nn.Linear(600, 4)).double().eval()
    x = torch.rand(3, 1, 8, 8).double()
    expected = RelativeSectionalPropagation(model).attribute(x, 1)
    there = RelativeSectionalPropagation(model.to(accelerator))
    torch.testing.assert_close(there.attribute(x.to(accelerator), 1).cpu(), expected)


def test_report(pair):
    pytest.importorskip("captum")
    X, y = rows()
    here, there = (
        make_attribution_report(estimator, X[:4], ["rsp", "grad_cam"], target=y[:4])
        for estimator in pair
    )
    pd.testing.assert_frame_equal(there, here)


def test_randomised_layers(accelerator):
    X, _ = rows()
    here, there = (
        cascading_randomisation(model, X[:4], target=2, random_state=0)
        for model in (small(), small().to(accelerator))
    )
    pd.testing.assert_frame_equal(there, here)


def test_gaps(pair):
    X, y = rows()
    here, there = (feature_gap(estimator, X, y) for estimator in pair)
    pd.testing.assert_frame_equal(there, here, rtol=1e-9)


def test_stages(accelerator):
    X, _ = rows()
    model = small()
    names, table = split_points(model, X), describe(model, X)
    there = model.to(accelerator)
    assert split_points(there, X) == names
    pd.testing.assert_frame_equal(describe(there, X), table, rtol=1e-6)


def test_pipeline(accelerator):
    X, _ = rows()
    model = small()
    here = make_inversion_pipeline(model).fit(X)
    wanted = here.transform(X) + 0.1
    expected = here.inverse_transform(wanted)
    there = make_inversion_pipeline(model.to(accelerator)).fit(X)
    np.testing.assert_allclose(there.transform(X), here.transform(X), rtol=1e-9)
    assert_near(there.inverse_transform(wanted), expected, torch.float64)


@pytest.mark.parametrize("method", ["rsp", "integrated_gradients"])
def test_attribution_without_float64(method, without_double):
    if method != "rsp":
        pytest.importorskip("captum")
    X, _ = rows(torch.float32)
    model = small().float()
    expected = attribute(model, X[:4], method, target=2).maps
    found = attribute(model.to(without_double), X[:4], method, target=2).maps
    np.testing.assert_array_equal(found, expected)


def test_relevance_without_float64(without_double):
    model, x = small().float(), torch.rand(3, 1, 8, 8)
    expected = RelativeSectionalPropagation(model).attribute(x, 1, [2])
    there = model.to(without_double)
    found = RelativeSectionalPropagation(there).attribute(x.to(without_double), 1, [2])
    assert found.device.type == without_double
    assert torch.equal(found.cpu(), expected)


def test_stages_without_float64(without_double):
    X, _ = rows(torch.float32)
    model = small().float()
    expected, wanted = describe(model, X), make_inversion_pipeline(model).fit(X).transform(X)
    there = model.to(without_double)
    pd.testing.assert_frame_equal(describe(there, X), expected)
    pipeline = make_inversion_pipeline(there).fit(X)
    np.testing.assert_array_equal(pipeline.transform(X), wanted)
