"""Where there is a GPU, estimators give there what they give on the processor."""

import numpy as np
import pytest
import torch
from torch import nn

from featprop_sklearn import (
    FeatureBackpropClassifier,
    FeatureBackpropRegressor,
    GradientTrainer,
    LayerInverter,
    feature_gap,
)
from featprop_sklearn.inspection import RelativeSectionalPropagation, attribute
from tests.networks.zoo import ViT

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-9}
AS_IT_IS = GradientTrainer(max_epochs=0)


def network():
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)),
    )


def rows(dtype=torch.float64):
    random = np.random.default_rng(0)
    X = random.uniform(size=(60, 1, 8, 8)).astype(str(dtype).removeprefix("torch."))
    return X, np.arange(60) % 10


def on_both(make, X, y, **parameters):
    """Fit on either device; the networks of equal weights."""
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        estimator = FeatureBackpropClassifier(make(), device=device, random_state=0, **parameters)
        yield estimator.fit(X, y)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("propagation", ["joint", "layerwise", "layerwise_in_range"])
@pytest.mark.parametrize("split", ["1", "4", "auto"])
def test_targets(dtype, propagation, split):
    X, y = rows(dtype)
    parameters = {"propagation": propagation, "split": split, "trainer": AS_IT_IS}
    here, there = on_both(lambda: network().to(dtype), X, y, **parameters)
    assert next(there.module_.parameters()).is_cuda
    expected = here.feature_targets(X, y)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        there.feature_targets(X, y) / scale, expected / scale, atol=TOLERANCES[dtype]
    )


def test_targets_within_attention():
    X, y = rows()
    here, there = on_both(lambda: ViT().double(), X, y, split="blocks.0", trainer=AS_IT_IS)
    np.testing.assert_allclose(
        feature_gap(there, X, y)["reached"], feature_gap(here, X, y)["reached"]
    )


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(12, 7), (12,)),
        (nn.Conv2d(2, 3, 3, padding=1), (2, 8, 8)),
        (nn.Conv2d(4, 2, 3), (4, 8, 8)),
        (nn.MaxPool2d(2), (2, 8, 8)),
        (nn.BatchNorm1d(5), (5,)),
        (nn.LayerNorm(6), (6,)),
        (nn.Softmax(dim=1), (6,)),
        (nn.Sequential(nn.Linear(6, 4), nn.Tanh()), (6,)),
    ],
    ids=str,
)
def test_inversions(layer, shape, dtype):
    kind = str(dtype).removeprefix("torch.")
    X = np.random.default_rng(0).normal(size=(20, *shape)).astype(kind)
    found = []
    for device in ("cpu", "cuda"):
        inverter = LayerInverter(layer.to(device=device, dtype=dtype)).fit(X)
        found.append(inverter.inverse_transform(inverter.transform(X[::-1]), reference=X))
    layer.cpu()
    np.testing.assert_allclose(found[1], found[0], atol=10 * TOLERANCES[dtype])


@pytest.mark.parametrize("trainer", ["auto", "closed_form", "gradient"])
def test_what_is_learnt(trainer, digits):
    X, labels = digits[0], digits[2]
    here, there = on_both(network, X[:400], labels[:400], trainer=trainer)
    assert abs(here.score(X[400:], labels[400:]) - there.score(X[400:], labels[400:])) < 0.03


def test_rows_that_lie_in_a_file(tmp_path, digits):
    X, labels = digits[0], digits[2]
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    torch.manual_seed(0)
    estimator = FeatureBackpropClassifier(network(), device="cuda", random_state=0)
    predicted = estimator.fit(X[:300], labels[:300]).predict(X)
    np.testing.assert_array_equal(estimator.predict(mapped), predicted)


def test_a_table():
    X = np.random.default_rng(0).normal(size=(100, 5))
    estimator = FeatureBackpropRegressor(device="cuda", random_state=0).fit(X, X[:, 0])
    assert estimator.score(X, X[:, 0]) > 0.9


@pytest.mark.parametrize("method", ["rsp", "displacement"])
def test_attributions(method):
    X, y = rows()
    here, there = on_both(lambda: network().double(), X, y, trainer=AS_IT_IS)
    expected = attribute(here, X[:5], method, target=y[:5])
    found = attribute(there, X[:5], method, target=y[:5])
    np.testing.assert_allclose(found.residual, expected.residual, atol=1e-3)
    if method == "rsp":
        np.testing.assert_allclose(found.maps, expected.maps, atol=1e-8)


def test_relevance_of_a_module():
    torch.manual_seed(0)
    model = network().double().eval()
    x = torch.rand(3, 1, 8, 8).double()
    expected = RelativeSectionalPropagation(model).attribute(x, 1, [2])
    found = RelativeSectionalPropagation(model.cuda()).attribute(x.cuda(), 1, [2])
    torch.testing.assert_close(found.cpu(), expected)
