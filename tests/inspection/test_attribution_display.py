"""Pictures of attribution maps: what is drawn, on which scale, and as a table."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_wine
from torch import nn

from featprop_sklearn import FeatureBackpropClassifier
from featprop_sklearn.inspection import AttributionDisplay, AttributionResult, attribute
from tests.inspection.relevance_networks import IMAGE, settled, vgg

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def _closed():
    yield
    pyplot.close("all")


def shown(panel):
    """What an image panel shows, from 0 to 1 on its scale."""
    (image,) = panel.get_images()
    assert image.get_clim() == (0, 1)
    return np.asarray(image.get_array())


def test_images_and_wanted_images_are_on_one_scale():
    images = np.array([[0.1, 0.2], [0.3, 0.5]]).reshape(1, 1, 2, 2)
    wanted = np.array([[0.0, 0.2], [0.3, 1.0]]).reshape(1, 1, 2, 2)
    display = AttributionDisplay(np.ones((1, 2, 2)), images=images, wanted=wanted).plot()
    np.testing.assert_allclose(shown(display.axes_[0, 0]), images[0, 0])
    np.testing.assert_allclose(shown(display.axes_[1, 0]), wanted[0, 0])
    assert [panel.get_ylabel() for panel in display.axes_[:, 0]] == ["images", "wanted", ""]


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_that_are_no_colours_are_averaged(channels):
    images = np.random.default_rng(0).uniform(size=(1, channels, 3, 3))
    display = AttributionDisplay(np.ones((1, 3, 3)), images=images).plot()
    grey = images[0].mean(axis=0)
    expected = (grey - grey.min()) / np.ptp(grey)
    np.testing.assert_allclose(shown(display.axes_[0, 0]), expected)


def test_colours_are_on_one_scale():
    images = np.random.default_rng(0).normal(3, 2, size=(2, 3, 4, 4))
    display = AttributionDisplay(np.ones((2, 4, 4)), images=images).plot()
    for panel, image in zip(display.axes_[0], images, strict=True):
        expected = (np.moveaxis(image, 0, -1) - images.min()) / np.ptp(images)
        np.testing.assert_allclose(np.asarray(panel.get_images()[0].get_array()), expected)


def test_each_map_has_a_scale_of_its_own():
    maps = np.array([[[1.0, -2.0]], [[100.0, 50.0]], [[0.0, 0.0]]])
    display = AttributionDisplay(maps).plot()
    drawn = [np.asarray(panel.get_images()[0].get_array()) for panel in display.axes_[0]]
    np.testing.assert_allclose(drawn, [[[0.5, -1]], [[1, 0.5]], [[0, 0]]])
    assert all(panel.get_images()[0].get_clim() == (-1, 1) for panel in display.axes_[0])


def test_tables_are_bars_with_the_names_of_their_columns():
    X, y = load_wine(return_X_y=True, as_frame=True)
    estimator = FeatureBackpropClassifier(random_state=0).fit(X, y)
    found = attribute(estimator, X[:3], "displacement", target=2)
    display = found.plot()
    assert display.axes_.shape == (1, 3)
    names = [label.get_text() for label in display.axes_[0, 0].get_yticklabels()]
    assert names == list(X.columns)
    widths = [bar.get_width() for bar in display.axes_[0, 1].patches]
    np.testing.assert_allclose(widths, found.maps[1] / np.abs(found.maps[1]).max())
    assert found.to_frame()["peak"][1] == X.columns[found.maps[1].argmax()]
    table = display.to_frame()
    assert list(table.columns) == list(X.columns)
    np.testing.assert_array_equal(table, found.maps)


def test_positions_in_the_table():
    maps = np.arange(12.0).reshape(2, 2, 3)
    table = AttributionDisplay(maps, titles=["a", "b"]).to_frame()
    assert table.loc["b", (1, 0)] == maps[1, 1, 0]
    assert isinstance(table.columns, pd.MultiIndex)


def test_picture_of_a_result():
    found = attribute(settled(vgg()), torch.randn(5, *IMAGE), target=[0, 1, 2, 3, 4])
    display = found.plot([0, 3])
    assert display.axes_.shape == (2, 2)
    assert [panel.get_title() for panel in display.axes_[0]] == ["0", "3"]
    assert display.axes_[1, 0].get_ylabel() == "rsp"
    drawn = display.axes_[1, 1].get_images()[0].get_array()
    np.testing.assert_allclose(drawn, found.maps[3] / abs(found.maps[3]).max())


def test_default_colours_are_signed_in_grey():
    """Luminance grows from against over 0, mid-grey, to for."""
    display = AttributionDisplay(np.zeros((1, 2, 2))).plot()
    drawn = display.axes_[0, 0].images[0]
    shades = drawn.cmap(np.linspace(0, 1, 101))[:, :3] @ [0.299, 0.587, 0.114]
    assert (np.diff(shades) > 0).all()
    assert shades[50] == pytest.approx(0.5, abs=0.06)


def test_a_sample_may_be_chosen_by_its_number():
    found = AttributionResult(
        np.ones((4, 2, 2)), np.zeros(4), np.array([0.123456, 1, 2, 3]), "m", np.ones((4, 1, 2, 2))
    )
    assert found.plot(2).axes_.shape == (2, 1)
    assert found.plot([0, -1]).axes_[0, 0].get_title() == "0.123"
    with pytest.raises(ValueError, match="maps must be of shape"):
        found.plot([])


def test_long_labels_are_written_in_several_lines():
    target = np.array(["Ankle boot or sandal", "bag"])
    found = AttributionResult(
        np.ones((2, 2, 2)), np.zeros(2), target, "m", np.ones((2, 1, 2, 2))
    ).plot()
    assert found.axes_[0, 0].get_title() == "Ankle boot\nor sandal"


def test_axes_and_colours_of_ones_own():
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    X = torch.rand(2, 1, 3, 3)
    axes = pyplot.subplots(2, 2)[1]

    def by_input(model, x, target):
        return x

    display = AttributionDisplay.from_estimator(network, X, by_input, axes=axes, cmap="PuOr")
    assert display.axes_[1, 0] is axes[1, 0]
    assert display.axes_[1, 0].get_images()[0].get_cmap().name == "PuOr"


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        (np.ones((2, 3)), {"titles": ["a"]}, "titles must hold 2 names; got 1"),
        (np.ones((2, 3)), {"feature_names": ["a"]}, "feature_names must hold 3 names; got 1"),
        (np.ones((2, 3)), {"images": np.ones((2, 1, 3, 3))}, r"for maps of shape \(2, 3\)"),
        (np.ones((2, 5, 5)), {"images": np.ones((2, 5, 5))}, r"images must .* got \(2, 5, 5\)"),
        (np.ones((2, 5, 5, 5)), {}, r"maps must be of shape .* got \(2, 5, 5, 5\).*to_frame"),
    ],
)
def test_what_does_not_fit(maps, options, message):
    with pytest.raises(ValueError, match=message):
        AttributionDisplay(maps, **options).plot()


def test_too_few_axes():
    axes = pyplot.subplots(1, 2)[1]
    with pytest.raises(ValueError, match=r"axes must hold 1 × 3 Axes, .* got 2"):
        AttributionDisplay(np.zeros((3, 5, 5))).plot(axes)


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'featprop_sklearn\[plots\]'"):
        AttributionDisplay(np.zeros((1, 2, 2))).plot()
