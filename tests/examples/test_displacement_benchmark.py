"""The displacement benchmark: what it spoils, and a small run of it with its page."""

import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from featprop_sklearn import FeatureBackpropClassifier, GradientTrainer

pytest.importorskip("captum")


@pytest.fixture(scope="module")
def benchmark(scripts):
    return scripts("displacement")


def test_spoilt_digits_differ_in_their_squares_and_were_right(benchmark):
    X, y = load_digits(return_X_y=True)
    X = (X / 16).reshape(-1, 1, 8, 8).astype(np.float32)[:400]
    make, _ = benchmark.NETWORKS["MLP"]
    network = benchmark.trained(make, 0, X[:300], y[:300])
    estimator = FeatureBackpropClassifier(network, trainer=GradientTrainer(max_epochs=0))
    estimator.fit(X[:300], y[:300])
    right = estimator.predict(X) == y[:400]
    images, originals, labels, masks = benchmark.spoilt(
        estimator, X[right], y[:400][right], "inverted", 20
    )
    assert (masks.sum(axis=(1, 2)) == 9).all()
    assert ((images != originals)[:, 0] <= masks).all()
    np.testing.assert_allclose((images + originals)[:, 0][masks], 1, atol=1e-6)
    assert (estimator.predict(originals) == labels).all()
    assert (estimator.predict(images) != labels).all()


def test_a_small_run(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "NETWORKS", {"CNN": benchmark.NETWORKS["CNN"]})
    monkeypatch.setattr(benchmark, "SPOILT", {"erased": benchmark.SPOILT["erased"]})
    monkeypatch.setattr(benchmark, "TRAINED_ON", 200)
    monkeypatch.setattr(benchmark, "SCENES", 200)
    monkeypatch.setattr(benchmark, "STEPS", 150)
    monkeypatch.setattr(sys.modules["attribution_networks"], "SCENES", 600)
    found = benchmark.measure(1, 20)
    methods = found.set_index("method")
    assert methods.loc["displacement, output", "pointing"] > methods.loc["chance", "pointing"]
    assert methods.loc["integrated_gradients", "inside"] < 1e-6  # nothing is there
    in_scenes = benchmark.overlooked(1, 3)
    text = benchmark.page(found, in_scenes, 20)
    pointing = methods.loc["displacement, output", "pointing"]
    assert f"| displacement, output | {pointing:.2f} ± nan |" in text
    assert "| third convolution |" in text
