"""Attribution of displacements: other solvers' answers, sums, mistaken digits, refusals."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares, lsq_linear
from sklearn.datasets import load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from torch import nn

from featprop_sklearn import (
    FeatureBackpropClassifier,
    FeatureBackpropRegressor,
    GradientTrainer,
)
from featprop_sklearn.inspection import (
    attribute,
    attribute_displacement,
    make_attribution_report,
    wanted_input,
)
from featprop_sklearn.networks import build_chain
from tests.inspection.relevance_networks import left_alone
from tests.networks.zoo import ViT

AS_IT_IS = GradientTrainer(max_epochs=0)


def norms(values):
    return np.linalg.norm(np.reshape(values, (len(values), -1)), axis=1)


def displacements(estimator, X, y):
    """Features and displacements at the estimator's own split, by its public methods."""
    chain = build_chain(estimator.module_, torch.from_numpy(X[:8]))
    with torch.no_grad():
        features = chain[: chain.names.index(estimator.split_) + 1](torch.from_numpy(X)).numpy()
    return features, np.asarray(estimator.feature_targets(X, y)) - features


# linear networks: one least-squares problem a sample ----------------------------------------------


@pytest.fixture(scope="module")
def linear():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 4).double(), nn.Linear(4, 3).double())
    X = np.random.default_rng(0).normal(size=(12, 6))
    y = np.arange(12) % 3
    estimator = FeatureBackpropClassifier(network, split="0", trainer=AS_IT_IS).fit(X, y)
    return estimator, X, y, network[0].weight.detach().numpy()


def systems(linear, damping):
    """Matrix and right-hand side of min ‖A m − b‖ in the move m, a sample each."""
    estimator, X, y, weight = linear
    for x, e in zip(X, displacements(estimator, X, y)[1], strict=True):
        size = np.linalg.norm(e) or 1.0
        matrix = np.vstack([weight / size, damping / np.ptp(X, axis=0) / np.sqrt(6) * np.eye(6)])
        yield x, e, matrix, np.r_[e / size, np.zeros(6)]


@pytest.fixture
def exact(monkeypatch):
    """Search until nothing falls any more."""
    monkeypatch.setattr(wanted_input, "TOLERANCE", 1e-15)


@pytest.mark.parametrize("damping", [0.1, 1.0, 10.0])
def test_the_wanted_input_of_a_linear_part_is_a_least_squares_solution(linear, damping, exact):
    estimator, X, y, weight = linear
    found = attribute_displacement(estimator, X, y, damping=damping)
    for i, (x, e, matrix, rhs) in enumerate(systems(linear, damping)):
        move = np.linalg.lstsq(matrix, rhs)[0]
        np.testing.assert_allclose(found.wanted[i] - x, move, atol=1e-5)
        if e.any():
            shares = (found.wanted[i] - x) * (weight.T @ e) / (e @ e)
            np.testing.assert_allclose(found.maps[i], shares, atol=1e-12)


def test_the_wanted_input_stays_in_its_range(linear, exact):
    estimator, X, y, _ = linear
    low, high = X.min(axis=0), np.full(6, X.max())
    low[0], high[1] = -10, 10
    found = attribute_displacement(estimator, X, y, bounds=(low, high), unit=np.ptp(X, axis=0))
    assert (found.wanted == high).any()
    assert (found.wanted == low).any()
    for i, (x, e, matrix, rhs) in enumerate(systems(linear, 0.5)):
        if e.any():
            best = lsq_linear(matrix, rhs + matrix @ x, (low, high), tol=1e-12).x
            np.testing.assert_allclose(found.wanted[i], best, atol=1e-5)


def test_units_of_the_columns_do_not_matter(linear):
    """Inches or metres, with a network that takes either: the same answer."""
    estimator, X, y, _ = linear
    scale = np.array([1e-3, 1, 1, 1e3, 1, 1])
    network = copy.deepcopy(estimator.network_)
    with torch.no_grad():
        network[0].weight.div_(torch.from_numpy(scale))
    other = FeatureBackpropClassifier(network, split="0", trainer=AS_IT_IS).fit(X * scale, y)
    found = attribute_displacement(estimator, X, y)
    same = attribute_displacement(other, X * scale, y)
    np.testing.assert_allclose(same.maps, found.maps, atol=1e-8)


def test_without_a_price_a_wide_part_meets_the_whole_displacement(linear):
    estimator, X, y, _ = linear
    found = attribute_displacement(estimator, X, y, damping=0)
    np.testing.assert_allclose(found.residual, 0, atol=1e-3)


def test_nothing_is_attributed_where_nothing_is_displaced(linear):
    estimator, X, y, _ = linear
    met = displacements(estimator, X, y)[1].any(axis=1) == 0
    assert 0 < met.sum() < len(X)
    found = attribute_displacement(estimator, X, y)
    assert not found.maps[met].any()
    assert not found.residual[met].any()
    np.testing.assert_array_equal(found.wanted[met], X[met])
    assert found.maps[~met].any(axis=1).all()


# a convolutional network on digits ----------------------------------------------------------------


def cnn(activation=nn.ReLU):
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), activation(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), activation(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(64, 10)),
    )


@pytest.fixture(scope="module")
def digits():
    """A network that learnt 300 digits, and those among 500 others that it gets wrong."""
    X, y = load_digits(return_X_y=True)
    X = (X / 16).reshape(-1, 1, 8, 8).astype(np.float32)
    torch.manual_seed(0)
    network = cnn()
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(15):
        for rows in torch.randperm(300).split(50):
            logits = network(torch.from_numpy(X[rows]))
            nn.functional.cross_entropy(logits, torch.from_numpy(y[rows])).backward()
            optimizer.step()
            optimizer.zero_grad()
    estimator = FeatureBackpropClassifier(network, trainer=AS_IT_IS).fit(X[:300], y[:300])
    wrong = 300 + np.flatnonzero(estimator.predict(X[300:800]) != y[300:800])
    assert len(wrong) > 30
    return estimator, X[wrong[:40]], y[wrong[:40]]


@pytest.mark.parametrize("split", ["2", "5", "7"])
def test_maps_sum_to_the_share_of_the_displacement_that_is_met(digits, split):
    estimator, X, y = digits
    X, y = X[:20], y[:20]
    fitted = FeatureBackpropClassifier(estimator.network_, split=split, trainer=AS_IT_IS)
    fitted.fit(X, y)
    found = attribute_displacement(fitted, X, y, n_steps=400)
    before, e = displacements(fitted, X, y)
    with torch.no_grad():
        stages = fitted.network_[: int(split) + 1]
        after = stages(torch.from_numpy(found.wanted).float()).numpy()
    met = ((after - before) * e).reshape(len(X), -1).sum(1) / norms(e) ** 2
    np.testing.assert_allclose(found.maps.sum((1, 2)), met, atol=0.01)
    np.testing.assert_allclose(found.residual, 1 - met, atol=0.01)
    assert (met > 0).all()
    assert (norms(before + e - after) < norms(e)).all()


@pytest.fixture(scope="module")
def smooth():
    torch.manual_seed(1)
    X = np.random.default_rng(0).uniform(size=(10, 1, 8, 8))
    y = np.arange(10)
    network = cnn(nn.Tanh).double()
    return FeatureBackpropClassifier(network, split="1", trainer=AS_IT_IS).fit(X, y), X, y


def test_the_sum_is_exact_where_the_network_is_smooth(smooth):
    estimator, X, y = smooth
    found = attribute_displacement(estimator, X, y, n_steps=1000)
    before, e = displacements(estimator, X, y)
    with torch.no_grad():
        after = estimator.network_[:2](torch.from_numpy(found.wanted)).numpy()
    size = norms(e)
    met = ((after - before) * e).reshape(10, -1).sum(1)[size > 0] / size[size > 0] ** 2
    np.testing.assert_allclose(1 - found.residual[size > 0], met, atol=1e-6)


def test_each_sample_is_answered_alone(smooth):
    estimator, X, y = smooth
    X = X * np.linspace(0.2, 1, 10)[:, None, None, None]  # each has a range of its own
    together = attribute_displacement(estimator, X, y)
    for i in range(4):
        row = slice(i, i + 1)
        alone = attribute_displacement(estimator, X[row], y[row])
        np.testing.assert_allclose(alone.maps, together.maps[row], atol=1e-8)
        np.testing.assert_allclose(alone.wanted, together.wanted[row], atol=1e-7)


def test_another_solver_finds_nothing_better_on_average(digits):
    """SciPy's trust-region method, on the stacked residuals: kinks leave both local minima."""
    estimator, X, y = digits
    X, y = X[:10], y[:10]
    estimator = FeatureBackpropClassifier(estimator.network_, split="5", trainer=AS_IT_IS).fit(X, y)
    part = copy.deepcopy(estimator.network_[:6]).double()
    found = attribute_displacement(estimator, X, y, bounds=(0, 1))
    merits = []
    for x, a, e, wanted in zip(X, *displacements(estimator, X, y), found.wanted, strict=True):

        def residuals(flat, x=x, a=a, e=e):
            with torch.no_grad():
                feature = part(torch.from_numpy(flat).reshape(1, 1, 8, 8))[0].numpy()
            missed = (feature - a - e).ravel() / np.linalg.norm(e)
            return np.r_[missed, 0.5 * (flat - x.ravel()) / 8]

        start = x.ravel().astype(float)
        rival = least_squares(residuals, start.clip(1e-6, 1 - 1e-6), bounds=(0, 1), max_nfev=60)
        answers = wanted.ravel(), rival.x, start
        merits.append([np.square(residuals(answer)).sum() for answer in answers])
    ours, rivals, before = np.transpose(merits)
    assert ours.mean() <= rivals.mean()
    assert (ours < before).all()


def test_what_mistaken_digits_should_have_looked_like(digits):
    """The network takes the wanted images for their labels, and few of their pixels are enough."""
    estimator, X, y = digits
    found = attribute(estimator, X, "displacement", target=y)
    assert found.wanted.min() >= 0
    assert found.wanted.max() <= 1
    assert np.mean(estimator.predict(found.wanted.astype(np.float32)) == y) > 0.9

    def repaired(order, count=16):
        """Share of digits that the first quarter of the wanted pixels sets right."""
        flat, new = X.reshape(len(X), -1).copy(), found.wanted.reshape(len(X), -1)
        chosen = np.argsort(-order, axis=1)[:, :count]
        np.put_along_axis(flat, chosen, np.take_along_axis(new, chosen, 1).astype(np.float32), 1)
        return np.mean(estimator.predict(flat.reshape(X.shape)) == y)

    chance = np.random.default_rng(0).uniform(size=(len(X), 64))
    assert repaired(found.maps.reshape(len(X), -1)) > repaired(chance) + 0.3


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_network_is_left_as_it_is(digits, monkeypatch, error):
    estimator, X, y = digits

    def interrupted(*args, **options):
        raise error

    if error:
        monkeypatch.setattr(wanted_input, "minimize", interrupted)
    with left_alone(estimator.module_), pytest.raises(error) if error else nullcontext():
        attribute_displacement(estimator, X[:3], y[:3])


# estimators of other kinds ------------------------------------------------------------------------


def test_values_of_a_regressor_on_a_table():
    X, y = load_diabetes(return_X_y=True)
    y = (y - y.mean()) / y.std()
    estimator = FeatureBackpropRegressor(random_state=0).fit(X, y)
    found = attribute(estimator, X[:20], "displacement", target=y[:20], damping=0.1)
    assert found.maps.shape == (20, 10)
    np.testing.assert_array_equal(found.target, y[:20])
    before, after = estimator.predict(X[:20]), estimator.predict(found.wanted)
    assert np.mean(np.abs(after - y[:20]) < np.abs(before - y[:20])) > 0.9
    assert list(found.to_frame().columns[:2]) == ["target", "residual"]


def test_several_labels_a_sample():
    X = np.random.default_rng(0).normal(size=(60, 5))
    y = (X[:, :3] > 0).astype(int)
    estimator = FeatureBackpropClassifier(random_state=0).fit(X, y)
    found = attribute(estimator, X[:6], "displacement", target=1 - y[:6], damping=0.05)
    assert np.mean(estimator.predict(found.wanted) == 1 - y[:6]) > 0.9
    assert found.to_frame()["target"][0].tolist() == (1 - y[0]).tolist()


@pytest.mark.parametrize("split", [["1", "5"], "1"])
def test_networks_that_work_in_place_and_of_several_splits(digits, split):
    _, X, y = digits
    torch.manual_seed(0)
    network = nn.Sequential(nn.ReLU(inplace=True), *cnn())
    estimator = FeatureBackpropClassifier(network, split=split, trainer=AS_IT_IS).fit(X, y)
    found = attribute_displacement(estimator, X[:3], y[:3])
    same = attribute_displacement(estimator, X[:3], y[:3], split=split[-1])
    np.testing.assert_array_equal(found.maps, same.maps)


class OneLogit(nn.Module):
    """Whether a digit is odd, as a vector of logits."""

    def __init__(self):
        super().__init__()
        self.layers = cnn()

    def forward(self, x):
        return self.layers(x)[:, 0]


@pytest.mark.parametrize("make", [ViT, OneLogit])
def test_attention_and_one_logit(digits, make):
    _, X, y = digits
    torch.manual_seed(0)
    labels = y % 2 if make is OneLogit else y
    estimator = FeatureBackpropClassifier(make(), trainer=AS_IT_IS).fit(X, labels)
    found = attribute_displacement(estimator, X[:6], labels[:6])
    assert (found.residual < 1).all()
    assert found.maps.any()


def test_a_blank_image_and_one_label_for_all(digits):
    estimator, X, _ = digits
    blank = np.concatenate([0 * X[:1], X[1:3]])
    found = attribute(estimator, blank, "displacement", target=4)
    assert found.target.tolist() == [4, 4, 4]
    assert np.isfinite(found.maps).all()
    assert found.wanted[0].any()
    alone = attribute(estimator, blank[:1], "displacement", target=4)
    np.testing.assert_allclose(alone.wanted, found.wanted[:1], atol=0.02)


class Single(nn.Module):
    """Computes in float32 whatever it is given."""

    def __init__(self):
        super().__init__()
        self.layers = cnn()
        self.factor = torch.ones(1, 1, 8, 8)  # no buffer, so no dtype changes it

    def forward(self, x):
        return self.layers(x.float() * self.factor)


def test_networks_that_know_float32_alone(digits):
    _, X, y = digits
    torch.manual_seed(0)
    estimator = FeatureBackpropClassifier(Single(), trainer=AS_IT_IS).fit(X, y)
    found = attribute_displacement(estimator, X[:3], y[:3])
    torch.manual_seed(0)
    double = FeatureBackpropClassifier(cnn(), trainer=AS_IT_IS).fit(X, y)
    expected = attribute_displacement(double, X[:3], y[:3])
    np.testing.assert_allclose(found.residual, expected.residual, atol=0.05)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_gradients_may_be_switched_off_around_it(digits, around):
    estimator, X, y = digits
    found = attribute_displacement(estimator, X[:2], y[:2])
    with around():
        same = attribute_displacement(estimator, X[:2], y[:2])
    np.testing.assert_array_equal(same.maps, found.maps)


def test_a_row_of_the_report(digits):
    estimator, X, y = digits
    report = make_attribution_report(estimator, X[:5], ["displacement"], target=y[:5], steps=4)
    assert 0 < report.loc["displacement", "residual"] < 1


def test_the_picture_has_the_wanted_images_between(digits):
    pytest.importorskip("matplotlib").use("Agg")
    estimator, X, y = digits
    display = attribute(estimator, X[:2], "displacement", target=y[:2]).plot()
    assert display.axes_.shape == (3, 2)
    labels = [panel.get_ylabel() for panel in display.axes_[:, 0]]
    assert labels == ["images", "wanted", "displacement"]


# refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": -1}, "damping must be a number of at least 0; got -1"),
        ({"damping": True}, "damping must be a number of at least 0; got True"),
        ({"damping": "auto"}, "damping must be a number of at least 0; got 'auto'"),
        ({"bounds": (1, 0)}, r"bounds must be \(low, high\) with low < high, numbers or arrays"),
        ({"bounds": 3}, r"bounds must be \(low, high\) with low < high, .* shape \(1, 8, 8\)"),
        ({"bounds": (0.2, 1)}, r"must hold all inputs; they go from 0 to 1\. Give the range"),
        ({"unit": 0}, r"unit must be positive, .* shape \(1, 8, 8\), or None; got 0"),
        ({"unit": np.ones(3)}, "unit must be positive, a number or an array"),
        ({"n_steps": True}, "n_steps must be an integer of at least 1; got True"),
        ({"n_steps": 0}, "n_steps must be an integer of at least 1; got 0"),
        ({"split": "convv"}, "split"),
        ({"layer": "0"}, "method='displacement' has no option 'layer'; its options are: split"),
    ],
)
def test_options_out_of_range(digits, options, message):
    estimator, X, y = digits
    with pytest.raises(ValueError, match=message):
        attribute(estimator, X, "displacement", target=y, **options)


def test_what_is_needed(digits):
    estimator, X, y = digits
    with pytest.raises(ValueError, match="'displacement' needs target: the label or value that"):
        attribute(estimator, X, "displacement")
    with pytest.raises(TypeError, match=r"A network as it is.*max_epochs=0\)\)\.fit\(X, y\)"):
        attribute(estimator.network_, X, "displacement", target=y)
    with pytest.raises(NotFittedError):
        attribute(FeatureBackpropClassifier(cnn()), X, "displacement", target=y)
    with pytest.raises(ValueError, match="samples and y"):
        attribute(estimator, X, "displacement", target=y[:-1])


def test_a_search_that_is_cut_off_says_so(digits, monkeypatch):
    estimator, X, y = digits
    monkeypatch.setattr(wanted_input, "MAX_STEPS", 1)
    with pytest.warns(ConvergenceWarning, match=r"for 3 of 3 samples.* than 0.5 comes to rest"):
        attribute_displacement(estimator, X[:3], y[:3], damping=0.5)
