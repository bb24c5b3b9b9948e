"""The picture of feature targets: the right samples, channels and scales, and what is refused."""

import sys

import matplotlib
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from featprop_sklearn import (
    FeatureBackpropClassifier,
    FeatureBackpropRegressor,
    GradientTrainer,
)
from featprop_sklearn.data import sources
from featprop_sklearn.inspection import FeatureTargetDisplay

matplotlib.use("agg")
from matplotlib import pyplot

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 2, 6, 6)).astype("float32")
Y = RNG.integers(0, 3, 30)
FEATURE = RNG.normal(size=(2, 5, 4))
TARGET = FEATURE + RNG.normal(size=(2, 5, 4))


@pytest.fixture(autouse=True)
def _no_figures_left():
    yield
    pyplot.close("all")


def network(n_outputs):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, n_outputs),
    )


def untouched(kind, module, X, y, **parameters):
    """An estimator of the network as it is."""
    trainer = GradientTrainer(max_epochs=0)
    return kind(module, trainer=trainer, margin=1.0, **parameters).fit(X, y)


@pytest.fixture(scope="module")
def classifier():
    return untouched(FeatureBackpropClassifier, network(3), X, Y, split="2")


def activation(classifier, path, rows):
    """What a hook on the user's network sees."""
    seen = []
    layer = classifier.network_.get_submodule(path)
    handle = layer.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        classifier.network_(torch.from_numpy(X[rows]))
    handle.remove()
    return seen[0].numpy()


def test_rows_are_the_samples_and_channels(classifier):
    rows, channels = [4, 29], [2, 0]
    display = FeatureTargetDisplay.from_estimator(
        classifier, X, Y, samples=[4, -1], channels=[2, -3]
    )
    feature = activation(classifier, "2", rows)[:, channels].reshape(4, 2, 2)
    target = classifier.feature_targets(X[rows], Y[rows])[:, channels].reshape(4, 2, 2)
    np.testing.assert_allclose(display.feature, feature, atol=1e-6)
    np.testing.assert_allclose(display.target, target, atol=1e-6)
    assert np.abs(target - feature).max() > 0.01
    right = classifier.predict(X[rows]) == Y[rows]
    assert list(display.to_frame().index) == [
        f"sample {row}, label {Y[row]}, got {'right' if ok else 'wrong'}, channel {channel}"
        for row, ok in zip(rows, right, strict=True)
        for channel in channels
    ]
    assert display.axes_.shape == (4, 3)


def test_by_default_the_channel_that_moves_most(classifier):
    display = FeatureTargetDisplay.from_estimator(classifier, X, Y)
    rows = [0, 1, 2]
    target = classifier.feature_targets(X[rows], Y[rows])
    moved = np.linalg.norm(target - activation(classifier, "2", rows), axis=(2, 3))
    expected = [f"channel {channel}" for channel in moved.argmax(axis=1)]
    assert [name.split("\n")[-1] for name in display.names] == expected
    np.testing.assert_allclose(display.to_frame()["displacement"], moved.max(axis=1), rtol=1e-4)


@pytest.mark.parametrize(
    ("own", "split", "expected"),
    [
        ("2", None, "2"),
        ("auto", None, "0"),
        (["1", "2"], None, "1"),
        ("2", 0, "0"),
        ("2", "1", "1"),
    ],
)
def test_where_to_look(own, split, expected):
    found = untouched(FeatureBackpropClassifier, network(3), X, Y, split=own)
    display = FeatureTargetDisplay.from_estimator(found, X, Y, split=split, samples=3, channels=1)
    assert display.split == expected
    assert display.axes_[0, 0].get_title() == f"feature at {expected}"
    np.testing.assert_allclose(
        display.feature[0], activation(found, expected, [3])[0, 1], atol=1e-6
    )


def test_scales_are_common():
    display = FeatureTargetDisplay(FEATURE, TARGET, names=["a", "b"]).plot()
    images = [[image.get_array() for image in row] for row in display.im_]
    for row, (feature, target, difference) in enumerate(images):
        np.testing.assert_array_equal(feature, FEATURE[row])
        np.testing.assert_array_equal(target, TARGET[row])
        np.testing.assert_array_equal(difference, TARGET[row] - FEATURE[row])
    low, high = min(FEATURE.min(), TARGET.min()), max(FEATURE.max(), TARGET.max())
    assert {image.get_clim() for image in display.im_[:, :2].flat} == {(low, high)}
    furthest = np.abs(TARGET - FEATURE).max()
    assert {image.get_clim() for image in display.im_[:, 2]} == {(-furthest, furthest)}


def test_signs_are_told_apart_in_grey():
    display = FeatureTargetDisplay(FEATURE, TARGET).plot()
    colours = display.im_[0, 2].cmap(np.linspace(0, 1, 21))[:, :3]
    luminance = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()


def test_numbers_of_the_table():
    frame = FeatureTargetDisplay(FEATURE, TARGET).to_frame()
    moved, size = (
        np.linalg.norm(TARGET - FEATURE, axis=(1, 2)),
        np.linalg.norm(FEATURE, axis=(1, 2)),
    )
    np.testing.assert_allclose(frame["displacement"], moved)
    np.testing.assert_allclose(frame["relative_displacement"], moved / size)
    np.testing.assert_allclose(frame["lowest"], (TARGET - FEATURE).min(axis=(1, 2)))
    np.testing.assert_allclose(frame["highest"], (TARGET - FEATURE).max(axis=(1, 2)))


def test_nothing_moves_and_nothing_is_there():
    display = FeatureTargetDisplay(np.zeros((1, 2, 2)), np.zeros((1, 2, 2))).plot()
    display.figure_.draw_without_rendering()
    assert display.to_frame()["relative_displacement"].isna().all()


def test_axes_that_are_given_are_drawn_on():
    figure, axes = pyplot.subplots(2, 3)
    display = FeatureTargetDisplay(FEATURE, TARGET)
    assert display.plot(axes.ravel(), cmap="gray") is display
    assert display.figure_ is figure
    assert (display.axes_ == axes).all()
    assert len(figure.axes) == 6


def test_a_regressor_has_values_and_several_labels_are_left_out():
    values = X.sum(axis=(1, 2, 3))
    trainer = GradientTrainer(max_epochs=0)
    regressor = FeatureBackpropRegressor(network(1), trainer=trainer).fit(X, values)
    display = FeatureTargetDisplay.from_estimator(regressor, X, values, samples=5)
    assert display.names[0].startswith(f"sample 5\ny = {values[5]:.3g}\nchannel ")
    labels = np.stack([Y > 0, Y > 1], axis=1).astype(int)
    classifier = untouched(FeatureBackpropClassifier, network(2), X, labels)
    display = FeatureTargetDisplay.from_estimator(classifier, X, labels, samples=5, channels=0)
    assert display.names == ["sample 5\nchannel 0"]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_dataset_brings_its_labels(classifier, monkeypatch, at_once):
    if not at_once:
        monkeypatch.setattr(sources, "READ_AT_ONCE", 0)
    pairs = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    found = FeatureTargetDisplay.from_estimator(classifier, pairs, samples=[7, 3])
    expected = FeatureTargetDisplay.from_estimator(classifier, X, Y, samples=[7, 3])
    assert found.names == expected.names
    np.testing.assert_allclose(found.target, expected.target, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": [0, 30]}, r"samples must hold .* 0 to 29: X holds 30 samples; got \[30\]"),
        ({"samples": -31}, r"samples must hold .*; got \[-31\]"),
        ({"samples": []}, r"samples must hold at least one number of 0 to 29.*; got \[\]"),
        ({"channels": 3}, r"channels must .* 0 to 2: the features at '2' have 3 channels; got \[3"),
        ({"split": "4"}, r"split='4' has features of shape \(3,\), which are no images"),
        ({"split": "3"}, r"of shape \(3, 1, 1\), .*whose features are images: \['0', '1', '2'\]"),
        ({"split": "conv"}, "split='conv' is not a split point of this network"),
        ({"split": 6}, "split=6 is out of range: the network has 6 split points"),
    ],
)
def test_what_there_is_not(classifier, options, message):
    with pytest.raises(ValueError, match=message):
        FeatureTargetDisplay.from_estimator(classifier, X, Y, **options)


@pytest.mark.parametrize("samples", [1.5, True, "0"])
def test_numbers_that_are_no_integers(classifier, samples):
    with pytest.raises(TypeError, match="samples must be an integer or a sequence of them; got"):
        FeatureTargetDisplay.from_estimator(classifier, X, Y, samples=samples)


def test_a_network_without_images():
    table = X[:, 0, 0]
    found = untouched(FeatureBackpropClassifier, nn.Linear(6, 3), table, Y)
    message = r"No split point of this network has images for features.*: \[\]. FeatureGapDisplay"
    with pytest.raises(ValueError, match=message):
        FeatureTargetDisplay.from_estimator(found, table, Y)


def test_what_is_no_estimator():
    with pytest.raises(TypeError, match=r"estimator must be a fitted .*; got Sequential"):
        FeatureTargetDisplay.from_estimator(network(3), X, Y)


@pytest.mark.parametrize(
    ("feature", "target", "names", "message"),
    [
        (FEATURE, TARGET[:1], None, r"not empty; got \(2, 5, 4\) and \(1, 5, 4\)"),
        (FEATURE[0], TARGET[0], None, r"one shape \(n_rows, height, width\)"),
        (FEATURE[:0], TARGET[:0], None, r"got \(0, 5, 4\) and \(0, 5, 4\)"),
        (FEATURE, TARGET, ["a"], "names must be one a row, 2 here; got 1"),
    ],
)
def test_arrays_that_do_not_belong_together(feature, target, names, message):
    with pytest.raises(ValueError, match=message):
        FeatureTargetDisplay(feature, target, names=names).plot()


def test_axes_that_are_not_as_many():
    _, axes = pyplot.subplots(1, 3)
    message = "axes must hold 2 × 3 Axes, a row for each channel of each sample; got 3"
    with pytest.raises(ValueError, match=message):
        FeatureTargetDisplay(FEATURE, TARGET).plot(axes)


def test_without_matplotlib(classifier, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'featprop_sklearn\[plots\]'"):
        FeatureTargetDisplay.from_estimator(classifier, X, Y)
    with pytest.raises(ImportError, match="Plots need matplotlib, which is not installed"):
        FeatureTargetDisplay(FEATURE, TARGET).plot()
