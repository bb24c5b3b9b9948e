"""Several inputs and integers, from fit to feature_gap, on real data."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder
from skorch.helper import SliceDict
from torch import nn
from torch.nn import functional as F

from featprop_sklearn import (
    ClosedFormTrainer,
    FeatureBackpropClassifier,
    FeatureBackpropRegressor,
    GradientTrainer,
    describe,
    feature_gap,
    split_points,
)
from tests.estimators.snapshot import assert_unchanged, snapshot

DIGITS = load_digits()
Y = DIGITS.target
HALVES = {
    "upper": DIGITS.data[:, :32].astype(np.float32) / 16,
    "lower": DIGITS.images[:, 4:].astype(np.float32) / 16,
}
TOKENS = DIGITS.data.astype(np.int64) // 2
PRETRAINING, TRAINING, TEST = slice(0, 300), slice(300, 700), slice(700, 1200)


class TwoInputs(nn.Module):
    def __init__(self, n_outputs=10):
        super().__init__()
        self.upper, self.lower = nn.Linear(32, 16), nn.Linear(32, 16)
        self.mix, self.act, self.fc = nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, n_outputs)

    def forward(self, upper, lower):
        features = torch.cat([self.upper(upper), self.lower(lower.flatten(1))], dim=1)
        return self.fc(self.act(self.mix(features.relu())))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.fc1, self.fc2 = nn.Linear(256, 24), nn.Linear(24, 10)

    def forward(self, tokens):
        return self.fc2(F.relu(self.fc1(self.embed(tokens).flatten(1))))


def rows(X, chosen):
    return {name: values[chosen] for name, values in X.items()}


def pretrained(network, inputs, n_steps=40):
    """As a user would: torch's own loop, each input by name."""
    given = {name: torch.from_numpy(values[PRETRAINING]) for name, values in inputs.items()}
    y = torch.from_numpy(Y[PRETRAINING])
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(n_steps):
        loss = F.cross_entropy(network(**given), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    optimiser.zero_grad()
    return network


@pytest.fixture(scope="module")
def two():
    torch.manual_seed(0)
    return pretrained(TwoInputs(), HALVES)


@pytest.fixture(scope="module")
def tokens():
    torch.manual_seed(0)
    return pretrained(Tokens(), {"tokens": TOKENS})


@pytest.fixture(scope="module")
def fitted(two):
    return FeatureBackpropClassifier(two, random_state=0).fit(rows(HALVES, TRAINING), Y[TRAINING])


@torch.no_grad()
def accuracy(network, X):
    outputs = network.eval()(**{name: torch.from_numpy(v[TEST]) for name, v in X.items()})
    return float((outputs.argmax(dim=1).numpy() == Y[TEST]).mean())


def test_several_inputs_from_fit_to_predict(two, fitted):
    test = rows(HALVES, TEST)
    assert fitted.score(test, Y[TEST]) > accuracy(copy.deepcopy(two), HALVES)
    assert fitted.report_["reached"] == 1
    assert fitted.n_features_in_ == 64
    assert not hasattr(fitted, "feature_names_in_")
    probabilities = fitted.predict_proba(test)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), fitted.predict(test))
    assert fitted.decision_function(test).shape == (500, 10)
    np.testing.assert_array_equal(
        fitted.predict(rows(HALVES, slice(700, 701))), fitted.predict(test)[:1]
    )


def test_the_trained_network_takes_the_inputs_by_name(two, fitted):
    trained = fitted.network_
    assert type(trained) is TwoInputs
    assert accuracy(trained, HALVES) == fitted.score(rows(HALVES, TEST), Y[TEST])
    mine = copy.deepcopy(two)
    mine.load_state_dict(fitted.module_.state_dict())  # the names are the user's own
    assert accuracy(mine, HALVES) == fitted.score(rows(HALVES, TEST), Y[TEST])


def test_the_user_s_network_is_left_alone(two):
    before = snapshot(two)
    X = rows(HALVES, TRAINING)
    FeatureBackpropClassifier(two, trainer="closed_form").fit(X, Y[TRAINING])
    describe(two, X)
    with pytest.raises(ValueError, match="X lacks 'lower'"):
        FeatureBackpropClassifier(two).fit({"upper": X["upper"]}, Y[TRAINING])
    assert_unchanged(two, before)


def test_targets_splits_and_gaps(two, fitted):
    X = rows(HALVES, TRAINING)
    names = ["cat", "relu", "mix", "act", "fc"]
    assert split_points(two, X) == names
    assert list(describe(two, X).index) == names
    table = feature_gap(fitted, X, Y[TRAINING])
    assert list(table.index) == names
    assert (table.repair_rate.dropna() == 1).all()
    assert fitted.feature_targets(X, Y[TRAINING]).shape == (400, 10)
    several = FeatureBackpropClassifier(
        two, split=["relu", "act"], trainer=GradientTrainer(max_epochs=1), random_state=0
    ).fit(X, Y[TRAINING])
    targets = several.feature_targets(X, Y[TRAINING])
    assert {name: target.shape for name, target in targets.items()} == {
        "relu": (400, 32),
        "act": (400, 24),
    }


def test_a_network_that_torch_fx_cannot_follow(two):
    class Closed(TwoInputs):
        def forward(self, upper, lower):
            if not bool((upper >= 0).all()):
                raise ValueError("pixels are never negative")
            return super().forward(upper, lower)

    network = Closed()
    network.load_state_dict(two.state_dict())
    X, test = rows(HALVES, TRAINING), rows(HALVES, TEST)
    assert split_points(network, X) == ["relu", "mix", "act", "fc"]
    for trainer in ("auto", GradientTrainer(lr=3e-3)):
        classifier = FeatureBackpropClassifier(network, trainer=trainer, random_state=0)
        classifier.fit(X, Y[TRAINING])
        assert classifier.score(test, Y[TEST]) > accuracy(copy.deepcopy(two), HALVES)
        trained = classifier.network_
        assert accuracy(trained, HALVES) == classifier.score(test, Y[TEST])


def test_order_and_kind_of_the_arrays_do_not_matter(fitted):
    test = rows(HALVES, TEST)
    expected = fitted.predict_proba(test)
    for other in (
        dict(reversed(test.items())),
        {"upper": torch.from_numpy(test["upper"]), "lower": test["lower"].tolist()},
        {"upper": pd.DataFrame(test["upper"]), "lower": test["lower"]},
        SliceDict(**test),
    ):
        np.testing.assert_array_equal(fitted.predict_proba(other), expected)


def test_pickled_and_cloned(two, fitted):
    test = rows(HALVES, TEST)
    twin = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(twin.predict_proba(test), fitted.predict_proba(test))
    assert clone(fitted).module is two
    twin.set_params(warm_start=True, trainer=GradientTrainer(max_epochs=0))
    twin.fit(rows(HALVES, TRAINING), Y[TRAINING])
    np.testing.assert_array_equal(twin.predict_proba(test), fitted.predict_proba(test))


def test_zero_weights_are_absent_rows(two):
    X, y = rows(HALVES, TRAINING), Y[TRAINING]
    weights = np.where(np.arange(400) < 150, 1.0, 0.0)
    classifier = FeatureBackpropClassifier(
        two, trainer=ClosedFormTrainer(sweeps=1), validation_fraction=0, random_state=0
    )
    weighted = clone(classifier).fit(X, y, sample_weight=weights)
    fewer = clone(classifier).fit(rows(X, slice(0, 150)), y[:150])
    np.testing.assert_array_equal(
        weighted.predict_proba(rows(HALVES, TEST)), fewer.predict_proba(rows(HALVES, TEST))
    )


def test_chunks(two):
    classifier = FeatureBackpropClassifier(two, trainer="closed_form", random_state=0)
    for start in (300, 500):
        chunk = slice(start, start + 200)
        classifier.partial_fit(rows(HALVES, chunk), Y[chunk])
    assert classifier.score(rows(HALVES, TEST), Y[TEST]) > accuracy(copy.deepcopy(two), HALVES)
    with pytest.raises(ValueError, match=r"X\['upper'\] holds samples of shape \(31,\), but "):
        classifier.partial_fit({**HALVES, "upper": HALVES["upper"][:, 1:]}, Y)


def test_cached_targets(two, tmp_path):
    X, y = rows(HALVES, TRAINING), Y[TRAINING]
    classifier = FeatureBackpropClassifier(
        two, memory=str(tmp_path), trainer=GradientTrainer(max_epochs=0), random_state=0
    ).fit(X, y)
    first = classifier.feature_targets(X, y)
    np.testing.assert_array_equal(classifier.feature_targets(X, y), first)
    tokens_too = {"upper": X["upper"][:, ::-1].copy(), "lower": X["lower"]}
    assert not np.array_equal(classifier.feature_targets(tokens_too, y), first)


def test_searches_and_cross_validation_take_a_slice_dict(two):
    X, y = rows(HALVES, TRAINING), Y[TRAINING]
    folds = StratifiedKFold(2)
    classifier = FeatureBackpropClassifier(two, trainer=ClosedFormTrainer(sweeps=1), random_state=0)
    search = GridSearchCV(classifier, {"split": ["mix", "fc"]}, cv=folds).fit(SliceDict(**X), y)
    by_hand = [
        [
            clone(classifier).set_params(split=split).fit(rows(X, a), y[a]).score(rows(X, b), y[b])
            for a, b in folds.split(y, y)
        ]
        for split in ("mix", "fc")
    ]
    scores = [search.cv_results_[f"split{fold}_test_score"] for fold in range(2)]
    np.testing.assert_array_equal(np.transpose(scores), by_hand)
    assert cross_val_score(classifier, SliceDict(**X), y, cv=folds).tolist() == by_hand[1]
    assert search.predict(rows(HALVES, TEST)).shape == (500,)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, pd.DataFrame, lambda x: x * 1.0])
def test_one_array_of_tokens(tokens, kind):
    X, test = kind(TOKENS[TRAINING]), kind(TOKENS[TEST])
    classifier = FeatureBackpropClassifier(tokens, random_state=0).fit(X, Y[TRAINING])
    assert classifier.score(test, Y[TEST]) > accuracy(copy.deepcopy(tokens), {"tokens": TOKENS})
    assert classifier.feature_targets(X, Y[TRAINING]).shape == (400, 10)
    assert split_points(tokens, X) == ["embed", "flatten", "fc1", "relu", "fc2"]
    with torch.no_grad():
        direct = classifier.network_(torch.from_numpy(TOKENS[TEST]))
    np.testing.assert_allclose(classifier.decision_function(test), direct, rtol=1e-6)


def test_tokens_by_name_are_the_same_tokens(tokens):
    def fit(X):
        return FeatureBackpropClassifier(tokens, split="fc1", random_state=0).fit(X, Y[TRAINING])

    one, named = fit(TOKENS[TRAINING]), fit({"tokens": TOKENS[TRAINING]})
    np.testing.assert_allclose(
        named.predict_proba({"tokens": TOKENS[TEST]}),
        one.predict_proba(TOKENS[TEST]),
        rtol=1e-5,
        atol=1e-7,
    )


def test_tokens_from_an_encoder_in_a_pipeline(tokens):
    letters = np.array(list("abcdefghi"))[TOKENS]
    encoder = OrdinalEncoder(categories=[list("abcdefghi")] * 64)  # gives floats
    pipeline = make_pipeline(encoder, FeatureBackpropClassifier(tokens, random_state=0))
    pipeline.fit(letters[TRAINING], Y[TRAINING])
    assert pipeline.score(letters[TEST], Y[TEST]) > accuracy(
        copy.deepcopy(tokens), {"tokens": TOKENS}
    )


def test_numbers_and_codes_of_a_table():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.numbers = nn.Embedding(5, 3), nn.Linear(3, 8)
            self.fc = nn.Linear(11, 3)

        def forward(self, numbers, code):
            return self.fc(torch.cat([self.numbers(numbers).relu(), self.embed(code)], dim=1))

    X, y = load_iris(return_X_y=True)
    table = pd.DataFrame(X[:, :3], columns=["a", "b", "c"])
    table["code"] = pd.cut(X[:, 3], 5, labels=False)
    inputs = {"numbers": table[["a", "b", "c"]], "code": table["code"]}
    torch.manual_seed(0)
    classifier = FeatureBackpropClassifier(Table(), random_state=0).fit(inputs, y)
    assert classifier.score(inputs, y) > 0.9
    swapped = {"numbers": table[["c", "b", "a"]], "code": table["code"]}
    with pytest.raises(ValueError, match=r"X\['numbers'\] has the columns \['c', 'b', 'a'\], but "):
        classifier.predict(swapped)


def test_regression():
    X, y = load_diabetes(return_X_y=True)
    X, y = X.astype(np.float32), (y - y.mean()) / y.std()

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(4, 8), nn.Linear(6, 8)
            self.fc = nn.Linear(8, 1)

        def forward(self, left, right):
            return self.fc(torch.tanh(self.left(left) + self.right(right)))

    torch.manual_seed(0)
    inputs = {"left": X[:, :4], "right": X[:, 4:]}
    regressor = FeatureBackpropRegressor(Sum(), random_state=0).fit(inputs, y)
    assert regressor.score(inputs, y) > 0.4
    assert regressor.feature_targets(inputs, y).shape == (442, 1)


@pytest.mark.parametrize(
    ("X", "text"),
    [
        ({"upper": HALVES["upper"]}, r"X lacks 'lower': FeatureBackpropClassifier was fitted on a"),
        (
            {**HALVES, "mask": Y},
            r"X has 'mask' as well: FeatureBackpropClassifier was fitted on a dict with the keys",
        ),
        (
            {**HALVES, "upper": HALVES["upper"][:5]},
            r"same number of rows: X\['upper'\] has 5, X\['lower'\] has 1797",
        ),
        (
            HALVES["upper"],
            r"was fitted on a dict with the keys \['upper', 'lower'\]; X is a ndarray\. Pass a di",
        ),
        (tuple(HALVES.values()), r"X is a tuple of 2 arrays, and the network \(TwoInputs\) takes"),
    ],
)
def test_wrong_inputs_at_predict(fitted, X, text):
    with pytest.raises(ValueError, match=text):
        fitted.predict(X)


@pytest.mark.parametrize(
    ("parameters", "X", "text"),
    [
        ({"module": None}, HALVES, r"module=None trains a small network on one table; X is a dict"),
        ({"input_shape": (64,)}, HALVES, r"input_shape=\(64,\) is for X as one table; X is a dict"),
        ({}, {"uper": 1, **HALVES}, r"X\['uper'\] must be an array with one row per sample; got 1"),
        ({}, {"top": Y, **HALVES}, r"X\['top'\] is no argument of the network's forward \(TwoIn"),
        ({}, tuple(HALVES.values()), r"X=\{'upper': X\[0\], 'lower': X\[1\]\}"),
        ({}, DIGITS.data, r"Its forward takes 2 inputs \(upper, lower\) and got one: pass X "),
    ],
)
def test_wrong_inputs_at_fit(two, parameters, X, text):
    with pytest.raises(ValueError, match=text):
        FeatureBackpropClassifier(**{"module": two, **parameters}).fit(X, Y)


def test_split_points_of_wrong_inputs(two):
    with pytest.raises(ValueError, match=r"X is a list of 2 arrays"):
        split_points(two, list(HALVES.values()))
    with pytest.raises(ValueError, match=r"X\['lower'\] must be an array with one row per sample"):
        split_points(two, {"upper": HALVES["upper"], "lower": None})


def test_a_dict_after_an_array_and_other_tokens(tokens):
    classifier = FeatureBackpropClassifier(tokens, trainer=GradientTrainer(max_epochs=0))
    classifier.fit(TOKENS[TRAINING], Y[TRAINING])
    with pytest.raises(ValueError, match=r"fitted on one array; X is a dict with the keys \['t"):
        classifier.predict({"tokens": TOKENS})
    with pytest.raises(ValueError, match=r"X holds 0\.5, but the network reads whole numbers"):
        classifier.predict(np.full((2, 64), 0.5))
