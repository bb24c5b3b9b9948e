"""The picture of the feature gap: its numbers, what is drawn, and what is refused."""

import sys
from itertools import pairwise

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from torch import nn
from torch.utils.data import TensorDataset

from featprop_sklearn import (
    FeatureBackpropClassifier,
    FeatureBackpropRegressor,
    GradientTrainer,
    feature_gap,
)
from featprop_sklearn.inspection import FeatureGapDisplay
from featprop_sklearn.inspection.displays.axes import spread_out

matplotlib.use("agg")
from matplotlib import pyplot

X, Y = load_iris(return_X_y=True)
X = X.astype("float32")
MANY = np.random.default_rng(0).random((5, 9))
SPLITS = ["first", "second", "third", "fourth", "fifth"]


@pytest.fixture(autouse=True)
def _no_figures_left():
    yield
    pyplot.close("all")


def untouched(kind, module, X, y, **parameters):
    """An estimator of the network as it is."""
    return kind(module, trainer=GradientTrainer(max_epochs=0), **parameters).fit(X, y)


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
    for _ in range(6):
        loss = nn.functional.cross_entropy(module(torch.from_numpy(X)), torch.from_numpy(Y))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = untouched(FeatureBackpropClassifier, module, X, Y, propagation="layerwise")
    assert 0.5 < found.score(X, Y) < 0.95  # some are right and some are wrong, of each group
    return found


@pytest.mark.parametrize("relative", [True, False])
def test_classes_are_measured_as_if_alone(classifier, relative):
    table = FeatureGapDisplay.from_estimator(
        classifier, X, Y, by="class", relative=relative
    ).to_frame()
    column = "relative_displacement" if relative else "displacement"
    alone = {
        label: feature_gap(classifier, X[label == Y], Y[label == Y])[column] for label in range(3)
    }
    expected = pd.DataFrame(alone).rename_axis(columns="class")
    pd.testing.assert_frame_equal(table, expected, rtol=1e-5)


def test_right_and_wrong_at_the_output(classifier):
    display = FeatureGapDisplay.from_estimator(
        classifier, X, Y, by="prediction", relative=False, splits="auto"
    )
    moved = classifier.feature_targets(X, Y) - classifier.decision_function(X)
    distances = np.linalg.norm(moved, axis=1)
    right = classifier.predict(X) == Y
    assert display.to_frame().loc["2"].to_dict() == pytest.approx(
        {"right": distances[right].mean(), "wrong": distances[~right].mean()}
    )
    assert [text.get_text() for text in display.text_] == [
        f"right ({right.sum()})",
        f"wrong ({(~right).sum()})",
    ]


@pytest.mark.parametrize("by", ["class", "prediction"])
def test_groups_together_are_all(classifier, by):
    groups = FeatureGapDisplay.from_estimator(classifier, X, Y, by=by)
    everything = FeatureGapDisplay.from_estimator(classifier, X, Y).to_frame()["all"]
    means = np.average(groups.displacement, axis=1, weights=groups.n_samples)
    np.testing.assert_allclose(means, everything)
    expected = feature_gap(classifier, X, Y)["relative_displacement"]
    np.testing.assert_allclose(everything, expected)


def test_a_group_without_samples_is_not_drawn(classifier):
    right = classifier.predict(X) == Y
    display = FeatureGapDisplay.from_estimator(classifier, X[right], Y[right], by="prediction")
    assert display.groups == ["right"]


def test_a_dataset_brings_its_labels(classifier):
    pairs = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    from_pairs = FeatureGapDisplay.from_estimator(classifier, pairs, by="class").to_frame()
    from_arrays = FeatureGapDisplay.from_estimator(classifier, X, Y, by="class").to_frame()
    pd.testing.assert_frame_equal(from_pairs, from_arrays)


@pytest.mark.parametrize(
    ("splits", "names"), [(None, ["0", "1", "2"]), (0, ["0"]), ("1", ["1"]), ([2, 0], ["0", "2"])]
)
def test_splits_in_forward_order(classifier, splits, names):
    display = FeatureGapDisplay.from_estimator(classifier, X, Y, splits=splits)
    assert list(display.to_frame().index) == names
    assert [tick.get_text() for tick in display.ax_.get_xticklabels()] == names


def test_few_groups_are_lines_told_apart_without_colour():
    values = MANY[:, :4]
    display = FeatureGapDisplay(values, splits=SPLITS, by="class").plot()
    drawn = np.array([line.get_ydata() for line in display.lines_]).T
    np.testing.assert_array_equal(drawn, values)
    looks = {(line.get_marker(), line.get_linestyle()) for line in display.lines_}
    assert len(looks) == 4
    assert [text.get_text() for text in display.text_] == [f"class {n}" for n in range(4)]
    assert display.im_ is None
    assert display.ax_.get_ylim()[0] == 0


def test_of_many_groups_the_greatest_stand_out():
    values = MANY.copy()
    values[:, [6, 1, 4]] += [3, 2, 1]
    display = FeatureGapDisplay(values, splits=SPLITS, by="class").plot()
    assert [text.get_text() for text in display.text_] == [
        *("class 6", "class 1", "class 4"),
        "the other 6",
    ]
    np.testing.assert_array_equal([line.get_ydata() for line in display.lines_], values.T)
    assert sum(line.get_color() == "0.6" for line in display.lines_) == 6
    assert len(display.ax_.lines) == 9


def test_an_early_layer_of_great_gaps_does_not_decide_alone():
    values = np.tile(np.arange(1.0, 7.0), (5, 1))
    values[0] = 1000 * values[0, ::-1]
    display = FeatureGapDisplay(values, splits=SPLITS).plot()
    assert display.text_[0].get_text() == "5"


def test_a_heat_map_shows_each_group_the_greatest_on_top():
    values = MANY.copy()
    values[:, 7] += 1
    n_samples = np.arange(9)
    display = FeatureGapDisplay(values, splits=SPLITS, by="class", n_samples=n_samples).plot(
        kind="heatmap"
    )
    names = [label.get_text() for label in display.ax_.get_yticklabels()]
    assert names[0] == "class 7 (7)"
    order = [int(name.split()[1]) for name in names]
    assert sorted(order) == list(range(9))
    np.testing.assert_array_equal(display.im_.get_array(), values.T[order])
    assert display.lines_ is None
    assert display.text_ is None


@pytest.mark.parametrize("n_splits", [3, 12, 34, 150])
@pytest.mark.parametrize("kind", ["lines", "heatmap"])
def test_names_of_layers_do_not_overlap(n_splits, kind):
    values = np.random.default_rng(0).random((n_splits, 9))
    splits = [f"layer{index}.conv" for index in range(n_splits)]
    display = FeatureGapDisplay(values, splits=splits).plot(kind=kind)
    display.figure_.draw_without_rendering()
    labels = [label for label in display.ax_.get_xticklabels() if label.get_visible()]
    boxes = [label.get_window_extent() for label in labels]
    assert not any(a.overlaps(b) for a, b in pairwise(boxes))
    assert labels[-1].get_text() == splits[-1]
    assert len(labels) >= min(n_splits, 25)


def test_names_of_lines_do_not_overlap():
    values = np.tile([[1.0, 1.0, 1.001, 0.0]], (3, 1))
    display = FeatureGapDisplay(values, splits=SPLITS[:3]).plot()
    display.figure_.draw_without_rendering()
    boxes = [matplotlib.text.Text.get_window_extent(text) for text in display.text_]
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert not any(a.overlaps(b) for a, b in pairs)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_names_stand_beside_the_ends_of_their_lines(scale):
    figure, ax = pyplot.subplots()
    ax.set_yscale(scale)
    values = np.array([[50.0, 60, 20], [1, 10, 5]])
    display = FeatureGapDisplay(values, splits=["a", "b"]).plot(ax)
    figure.draw_without_rendering()
    ends = ax.transData.transform([[1, end] for end in values[-1]])[:, 1]
    boxes = [matplotlib.text.Text.get_window_extent(text) for text in display.text_]
    middles = np.array([(box.y0 + box.y1) / 2 for box in boxes])
    assert (np.argsort(middles) == np.argsort(ends)).all()
    assert np.abs(middles - ends).max() < figure.dpi * 20 / 72  # 20 points


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 0.125))
def test_labels_are_spread_out(heights, distance):
    placed = spread_out(heights, distance)
    order = np.argsort(heights, kind="stable")
    assert (np.diff(placed[order]) >= distance - 1e-12).all()
    assert placed.min() >= -1e-12
    assert placed.max() <= 1 + 1e-12
    np.testing.assert_allclose(spread_out(placed, distance), placed, atol=1e-12)


def test_axes_that_are_given_are_drawn_on():
    figure, (left, right) = pyplot.subplots(1, 2)
    left.set_yscale("log")
    values = MANY[:, :2].copy()
    values[0] = 0
    values[-1, 0] = np.nan
    display = FeatureGapDisplay(values, splits=SPLITS, groups=["a", "b"]).plot(
        left, line_kw={"alpha": 0.5}
    )
    assert display.ax_ is left
    assert display.figure_ is figure
    assert left.get_yscale() == "log"
    assert display.lines_[0].get_alpha() == 0.5
    assert display.plot(right, kind="heatmap") is display
    figure.draw_without_rendering()
    assert len(pyplot.get_fignums()) == 1


def test_no_gap_at_all():
    display = FeatureGapDisplay(np.zeros((2, 3)), splits=["a", "b"]).plot()
    assert len(display.lines_) == 3
    display.figure_.draw_without_rendering()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "label"}, "by must be 'class', 'prediction' or None; got 'label'"),
        ({"kind": "bars"}, "kind must be 'lines' or 'heatmap'; got 'bars'"),
        ({"splits": "3"}, "split='3' is not a split point of this network"),
        ({"splits": 3}, "split=3 is out of range: the network has 3 split points"),
    ],
)
def test_unknown_options(classifier, options, message):
    with pytest.raises(ValueError, match=message):
        FeatureGapDisplay.from_estimator(classifier, X, Y, **options)


def test_no_splits_at_all(classifier):
    with pytest.raises(TypeError, match="a non-empty list of them"):
        FeatureGapDisplay.from_estimator(classifier, X, Y, splits=[])


def test_what_is_no_fitted_estimator(classifier):
    with pytest.raises(TypeError, match=r"got Pipeline\. Of a Pipeline pass the last step"):
        FeatureGapDisplay.from_estimator(make_pipeline(classifier), X, Y)
    with pytest.raises(NotFittedError, match="is not fitted yet"):
        FeatureGapDisplay.from_estimator(FeatureBackpropClassifier(), X, Y)


@pytest.mark.parametrize("by", ["class", "prediction"])
def test_a_regressor_has_no_classes(by):
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    regressor = untouched(FeatureBackpropRegressor, module, X, X[:, 0])
    assert FeatureGapDisplay.from_estimator(regressor, X, X[:, 0]).groups == ["all"]
    with pytest.raises(ValueError, match=f"by='{by}' is for classifiers; a FeatureBackpropRegr"):
        FeatureGapDisplay.from_estimator(regressor, X, X[:, 0], by=by)


def test_several_labels_a_sample_are_no_classes():
    labels = np.stack([Y > 0, Y > 1], axis=1).astype(int)
    found = untouched(FeatureBackpropClassifier, nn.Linear(4, 2), X, labels)
    assert set(FeatureGapDisplay.from_estimator(found, X, labels, by="prediction").groups) <= {
        "right",
        "wrong",
    }
    with pytest.raises(ValueError, match=r"y has shape \(150, 2\). Pass by='prediction'"):
        FeatureGapDisplay.from_estimator(found, X, labels, by="class")


@pytest.mark.parametrize(
    ("values", "groups", "message"),
    [
        (np.ones((2, 3)), None, r"here \(5, 3\), and not empty; got \(2, 3\)"),
        (np.ones((5, 3)), ["a"], r"here \(5, 1\), and not empty; got \(5, 3\)"),
        (np.ones(5), None, r"here \(5, 0\), and not empty; got \(5,\)"),
    ],
)
def test_arrays_that_do_not_belong_together(values, groups, message):
    display = FeatureGapDisplay(values, splits=SPLITS, groups=groups)
    with pytest.raises(ValueError, match=message):
        display.plot()


def test_without_matplotlib(classifier, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'featprop_sklearn\[plots\]'"):
        FeatureGapDisplay.from_estimator(classifier, X, Y)
    with pytest.raises(ImportError, match="Plots need matplotlib, which is not installed"):
        FeatureGapDisplay(np.ones((5, 1)), splits=SPLITS).plot()
