"""The table of attribution methods: what it is made of, whose probabilities, which targets."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from skorch import NeuralNetRegressor
from torch import nn

from featprop_sklearn import FeatureBackpropClassifier, FeatureBackpropRegressor, GradientTrainer
from featprop_sklearn.inspection import (
    attribute,
    average_drop,
    best_threshold,
    class_mean,
    curve_area,
    deletion_curve,
    make_attribution_report,
    make_digit_scenes,
    masked_scores,
    mass_inside,
    mean_iou,
    pointing_game,
)

FAITHFULNESS = ["average_drop", "average_increase", "average_gain", "insertion", "deletion"]


@pytest.fixture
def network():
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(8, 10),
    )


def test_report_is_made_of_the_metrics(network):
    pytest.importorskip("captum")
    scenes = make_digit_scenes(20, random_state=0)
    perfect = lambda model, x, target: scenes.masks[:, 0]  # noqa: E731
    cam = attribute(network, scenes.images, "grad_cam", target=scenes.target)
    report = make_attribution_report(
        network,
        scenes.images,
        {"rsp": "rsp", "perfect": perfect, "CAM": cam},
        target=scenes.target,
        hostile=scenes.hostile[:, None],
        masks=scenes.masks[:, 0],
        hostile_masks=scenes.masks[:, 1],
        steps=4,
    )
    assert list(report.index) == ["rsp", "perfect", "CAM"]
    assert report.index.name == "method"
    ones = ["pointing_game", "mean_iou", "tuned_iou", "positive_inside"]
    assert (report.loc["perfect", ones] == 1).all()
    assert report.outside_inside["perfect"] == 0
    assert report.residual["rsp"] < 1e-8
    assert np.isnan(report.residual["CAM"])
    rsp = attribute(network, scenes.images, target=scenes.target, hostile=scenes.hostile[:, None])
    against = mass_inside(-rsp.maps, scenes.masks[:, 1])
    assert report.negative_inside["rsp"] == pytest.approx(against.mean())
    assert np.isnan(report.negative_inside["CAM"])
    hits = class_mean(pointing_game(cam.maps, scenes.masks[:, 0]), scenes.target)
    assert report.pointing_game["CAM"] == hits


def test_report_without_known_positions(network):
    scenes = make_digit_scenes(6, random_state=0)

    def predict_proba(X):
        with torch.no_grad():
            return torch.softmax(network(torch.tensor(X)).double(), 1).numpy()

    found = make_attribution_report(network, scenes.images, ["rsp"], steps=2)
    assert "pointing_game" not in found
    maps = attribute(network, scenes.images).maps
    expected = curve_area(deletion_curve(predict_proba, scenes.images, maps, steps=2)).mean()
    assert found.deletion["rsp"] == pytest.approx(expected)
    given = make_attribution_report(
        network, scenes.images, ["rsp"], steps=2, predict_proba=predict_proba
    )
    np.testing.assert_allclose(given, found)


def test_tuned_samples_are_left_out(network):
    """Of maps as good as chance, the best threshold of a fifth is not that of the others."""
    scenes = make_digit_scenes(25, random_state=0)
    noise = torch.randn(25, 32, 32, generator=torch.Generator().manual_seed(0)).numpy()
    masks, maps = scenes.masks[:, 0], noise + 0.1 * scenes.masks[:, 0]
    report = make_attribution_report(
        network, scenes.images, {"noise": lambda *_: maps}, masks=masks, steps=1
    )
    tuning = np.isin(np.arange(25), [0, 5, 10, 15, 20])
    threshold = best_threshold(maps[tuning], masks[tuning])
    assert report.threshold["noise"] == threshold
    rest, tuned = (
        mean_iou(maps[rows], masks[rows], threshold=threshold).mean() for rows in (~tuning, tuning)
    )
    assert abs(rest - tuned) > 1e-3
    assert report.tuned_iou["noise"] == pytest.approx(rest)


def test_residuals_of_either_sign(network):
    scenes = make_digit_scenes(3, random_state=0)
    found = attribute(network, scenes.images, target=scenes.target)
    found = replace(found, residual=np.array([-3.0, 1.0, -2.0]))
    report = make_attribution_report(
        network, scenes.images, {"given": found}, target=scenes.target, steps=1
    )
    assert report.residual["given"] == 2


def test_one_name_is_one_method(network):
    scenes = make_digit_scenes(3, random_state=0)
    one = make_attribution_report(network, scenes.images, "rsp", steps=1)
    assert one.equals(make_attribution_report(network, scenes.images, ["rsp"], steps=1))


def test_flat_hostile_classes_with_a_target_a_sample(network):
    scenes = make_digit_scenes(3, random_state=0)
    with pytest.raises(ValueError, match="may be one class for each of the 3 samples"):
        make_attribution_report(
            network, scenes.images, ["rsp"], target=scenes.target, hostile=scenes.hostile
        )


# whose probabilities ------------------------------------------------------------------------


def small(width, *head):
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten()),
        *(nn.Linear(24, width), *head),
    )


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("captum")
    X, y = load_digits(return_X_y=True)
    return (X.reshape(-1, 1, 8, 8)[:300] / 16).astype("float32"), y[:300]


def classifier(network, X, y, **params):
    trainer = GradientTrainer(alpha=0, max_epochs=3, lr=1e-2)
    return FeatureBackpropClassifier(network, trainer=trainer, random_state=0, **params).fit(X, y)


def scores(predict_proba, X, maps, columns):
    """Average drop, and area of the deletion curve of two steps."""
    drop = average_drop(*masked_scores(predict_proba, X, maps, target=columns))
    curves = deletion_curve(predict_proba, X, maps, target=columns, steps=2)
    return pytest.approx([drop, curve_area(curves).mean()])


@pytest.mark.parametrize("head", [(), (nn.Sigmoid(),), (nn.Sigmoid(), nn.Flatten(0))])
def test_a_single_logit_has_two_sides(digits, head):
    X, y = digits
    y = np.where(y % 2, "odd", "even")
    estimator = classifier(small(1, *head), X, y, head="probabilities" if head else "auto")
    X, y = X[:30], y[:30]
    answered = estimator.predict(X)
    assert len(set(answered)) == 2
    positive = attribute(estimator.network_, X, "gradient").maps
    for target in (None, "even", y):
        of = answered if target is None else np.broadcast_to(target, 30)
        sign = np.where(of == "odd", 1, -1)
        found = attribute(estimator, X, "gradient", target=target)
        assert (found.target == of).all()
        np.testing.assert_allclose(found.maps, positive * sign[:, None, None], atol=1e-6)
        report = make_attribution_report(estimator, X, ["gradient"], target=target, steps=2)
        expected = scores(estimator.predict_proba, X, found.maps, (of == "odd").astype(int))
        assert report.loc["gradient", ["average_drop", "deletion"]].tolist() == expected


def test_all_methods_explain_either_side(digits):
    X, y = digits
    estimator = classifier(small(1), X, np.where(y % 2, "odd", "even"))
    methods = ["rsp", "occlusion", "displacement"]
    report = make_attribution_report(estimator, X[:9], methods, target="odd", steps=2)
    assert report[FAITHFULNESS].notna().all(axis=None)
    assert report.residual["rsp"] < 1e-6
    cam = attribute(estimator, X[:9], "grad_cam", target="odd", layer=estimator.network_[0])
    by_index = attribute(estimator.network_, X[:9], "grad_cam", target=0, layer="0")
    np.testing.assert_allclose(cam.maps, by_index.maps, atol=1e-6)
    lrp = [attribute(estimator, X[:9], "lrp", target=side) for side in ("odd", "even")]
    np.testing.assert_allclose(lrp[0].maps, -lrp[1].maps)
    by_index = attribute(estimator.network_, X[:9], "lrp")
    np.testing.assert_allclose(lrp[0].maps, by_index.maps)
    np.testing.assert_allclose(lrp[0].residual, by_index.residual)
    one, other = (
        attribute(estimator, X[:9], target=side, layer="1").maps for side in ("odd", "even")
    )
    assert not np.allclose(one, other)
    against = attribute(estimator, X[:9], target="odd", hostile=["even"], layer="1").maps
    np.testing.assert_array_equal(one, against)
    with pytest.raises(ValueError, match=r"'both' is no class of this .* are 'even', 'odd'"):
        make_attribution_report(estimator, X[:9], ["rsp"], target="both")


def test_several_labels(digits):
    X, y = digits
    labels = np.stack([y % 2, y > 4, y % 3 == 0], axis=1).astype(int)
    estimator = classifier(small(3), X, labels)
    X = X[:9]
    result = attribute(estimator, X, "gradient", target=1)
    wanted = estimator.predict(X)
    wanted[:, 1] = 1
    displaced = attribute(estimator, X, "displacement", target=wanted)
    methods = {"gradient": "gradient", "result": result, "displacement": "displacement"}
    report = make_attribution_report(
        estimator, X, {**methods, "displaced": displaced}, target=1, steps=2
    )
    expected = scores(estimator.predict_proba, X, result.maps, np.ones(9, dtype=int))
    assert report.loc["gradient", ["average_drop", "deletion"]].tolist() == expected
    assert report.loc["gradient"].equals(report.loc["result"])
    assert report.loc["displacement"].equals(report.loc["displaced"])
    wanted[2, 1] = 0
    other = attribute(estimator, X, "displacement", target=wanted)
    with pytest.raises(ValueError, match=r"'it' explains \[.*\] for sample 2, and the report 1"):
        make_attribution_report(estimator, X, {"it": other}, target=1)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("head", [(), (nn.Sigmoid(),)])
def test_networks_without_an_estimator(digits, width, head):
    """One logit, or logits under a sigmoid, are decisions of their own; others compete."""
    X, network = digits[0][:9], small(width, *head)
    maps = attribute(network, X, "gradient", target=0).maps

    def predict_proba(X):
        with torch.no_grad():
            logits = network[:5](torch.as_tensor(X)).double()
        per_logit = width == 1 or head
        return (logits.sigmoid() if per_logit else logits.softmax(1)).numpy()

    report = make_attribution_report(network, X, ["gradient"], target=0, steps=2)
    expected = scores(predict_proba, X, maps, np.zeros(9, dtype=int))
    assert report.loc["gradient", ["average_drop", "deletion"]].tolist() == expected


def test_scikit_learn_mlp_of_several_labels(digits):
    X, y = digits
    X, labels = X.reshape(300, 64), np.stack([y % 2, y > 4], axis=1)
    mlp = MLPClassifier((8,), random_state=0, max_iter=400, tol=1e-2).fit(X, labels)
    X = X[:9]
    maps = attribute(mlp, X, "gradient", target=1).maps
    report = make_attribution_report(mlp, X, ["gradient"], target=1, steps=2)
    expected = scores(mlp.predict_proba, X, maps, np.ones(9, dtype=int))
    assert report.loc["gradient", ["average_drop", "deletion"]].tolist() == expected


def test_probabilities_that_a_network_writes_by_itself(digits):
    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = small(10)

        def forward(self, x):
            z = self.body(x).exp()
            return z / z.sum(1, keepdim=True)

    X, y = digits
    estimator, X = classifier(ByHand(), X, y), X[:9]
    maps = attribute(estimator, X, "gradient", target=3).maps
    report = make_attribution_report(estimator, X, ["gradient"], target=3, steps=2)
    expected = scores(estimator.predict_proba, X, maps, np.full(9, 3))
    assert report.loc["gradient", ["average_drop", "deletion"]].tolist() == expected


@pytest.mark.parametrize("own", [True, False])
def test_regressors_have_no_probabilities(digits, own):
    X, y = digits
    if own:
        trainer = GradientTrainer(alpha=0, max_epochs=1)
        estimator = FeatureBackpropRegressor(small(1), trainer=trainer, random_state=0)
        estimator.fit(X, y.astype(float))
    else:
        estimator = NeuralNetRegressor(small(1)).initialize()
    report = make_attribution_report(estimator, X[:5], ["rsp"], masks=X[:5, 0] > 0.5)
    assert report[FAITHFULNESS].isna().all(axis=None)
    assert report.drop(columns=[*FAITHFULNESS, "residual"]).notna().all(axis=None)
    given = make_attribution_report(
        estimator, X[:5], ["rsp"], predict_proba=lambda X: expit(X.sum((2, 3)))
    )
    assert given[FAITHFULNESS].notna().all(axis=None)


def test_displacements_of_a_regressor(digits):
    X, y = digits
    trainer = GradientTrainer(alpha=0, max_epochs=1)
    estimator = FeatureBackpropRegressor(small(1), trainer=trainer, random_state=0)
    estimator.fit(X, y.astype(float))
    found = attribute(estimator, X[:3], "displacement", target=y[:3] + 1.0)
    report = make_attribution_report(estimator, X[:3], {"wanted": found})
    assert report.residual["wanted"] == pytest.approx(np.median(abs(found.residual)))
    with pytest.raises(ValueError, match=r"cannot know which value .* Pass the result: methods="):
        make_attribution_report(estimator, X[:3], ["displacement"])


# which targets ------------------------------------------------------------------------------


def test_results_of_other_targets_and_samples(digits):
    X, y = digits
    estimator = classifier(small(10), X, np.char.add("c", y.astype(str)))
    found = attribute(estimator, X[:5], "gradient", target="c4")
    same = make_attribution_report(estimator, X[:5], {"x": found}, target="c4", steps=1)
    expected = make_attribution_report(estimator, X[:5], {"x": "gradient"}, target="c4", steps=1)
    assert same.equals(expected)
    with pytest.raises(ValueError, match=r"'x' explains c4 for sample 0, and the report c3\. Pass"):
        make_attribution_report(estimator, X[:5], {"x": found}, target="c3")
    targets = ["c4", "c4", "c1", "c4", "c2"]
    with pytest.raises(ValueError, match=r"'x' explains c4 for sample 2, and the report c1"):
        make_attribution_report(estimator, X[:5], {"x": found}, target=targets)
    of_network = attribute(estimator.network_, X[:5], "gradient", target=4)
    with pytest.raises(ValueError, match=r"'x' explains 4 for sample 0, and the report c4"):
        make_attribution_report(estimator, X[:5], {"x": of_network}, target="c4")
    displaced = attribute(estimator, X[:5], "displacement", target="c4")
    make_attribution_report(estimator, X[:5], {"x": displaced}, target="c4", steps=1)
    with pytest.raises(ValueError, match=r"'x' explains c4 for sample 0, and the report c3"):
        make_attribution_report(estimator, X[:5], {"x": displaced}, target="c3")
    for other in (X[:4], X[5:10]):
        with pytest.raises(ValueError, match=r"'x' explains other samples than X: inputs of shape"):
            make_attribution_report(estimator, other, {"x": found}, target="c4")
