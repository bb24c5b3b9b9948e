"""The classifier on real data: what it learns, what it takes, what it leaves alone."""

import copy
import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris, make_multilabel_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from featprop_sklearn import (
    FeatureBackpropClassifier,
    GradientTrainer,
    feature_gap,
    split_points,
)
from tests.estimators.snapshot import assert_unchanged, snapshot

QUICK = GradientTrainer(max_epochs=2, lr=1e-3)
REPORT = ["repair_rate", "kept_rate", "reached", "displacement", "relative_displacement"]


def states_equal(a, b):
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_post_training_beats_the_network_as_it_is_on_held_out_digits(cnn, skorch_net, digits):
    X, X_test, y, y_test = digits
    before = (skorch_net.predict(X_test) == y_test).mean()
    classifier = FeatureBackpropClassifier(
        skorch_net,
        split="8",
        trainer=GradientTrainer(alpha=0.1, lr=3e-3, max_epochs=15),
        batch_size=64,
        random_state=0,
    ).fit(X, y)
    assert classifier.score(X_test, y_test) > before + 0.01
    assert classifier.n_iter_ == 15
    assert len(classifier.history_) == 16  # epoch 0 is the network as it is


def test_the_report_agrees_with_the_feature_targets(cnn, digits):
    X, _, y, _ = digits
    classifier = FeatureBackpropClassifier(
        cnn, split="8", trainer=GradientTrainer(max_epochs=0), validation_fraction=0, random_state=0
    ).fit(X, y)
    targets = torch.from_numpy(classifier.feature_targets(X, y))
    module = classifier.module_
    with torch.no_grad():
        feature = module[:9](torch.from_numpy(X))
        right = (module(torch.from_numpy(X)).argmax(1).numpy()) == y
        pushed = module[9:](targets).argmax(1).numpy() == y
    assert classifier.report_["repair_rate"] == pytest.approx(pushed[~right].mean())
    assert classifier.report_["kept_rate"] == pytest.approx(pushed[right].mean())
    distance = (targets - feature).double().norm(dim=1)
    assert classifier.report_["displacement"] == pytest.approx(float(distance.mean()), rel=1e-5)
    relative = (distance / feature.double().norm(dim=1)).mean()
    assert classifier.report_["relative_displacement"] == pytest.approx(float(relative), rel=1e-5)


def test_targets_at_the_output_are_acceptable_for_every_sample(cnn, digits):
    X, _, y, _ = digits
    classifier = FeatureBackpropClassifier(cnn, trainer=QUICK, random_state=0).fit(X, y)
    assert classifier.report_["repair_rate"] == 1.0
    assert classifier.report_["kept_rate"] == 1.0
    assert classifier.report_["reached"] == 1.0
    assert set(REPORT) < set(classifier.report_)
    targets = classifier.feature_targets(X, y)
    others = np.where(np.eye(10, dtype=bool)[y], -np.inf, targets)
    lead = targets[np.arange(len(y)), y] - others.max(axis=1)
    assert lead.min() >= classifier._output_targets.margin * (1 - 1e-5)


def test_frozen_stages_do_not_move_and_upstream_ones_do(digits):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    X, _, y, _ = digits
    classifier = FeatureBackpropClassifier(
        net, split="2", trainer=GradientTrainer(max_epochs=2, lr=1e-2), random_state=0,
        validation_fraction=0,
    ).fit(X, y)  # fmt: skip
    for name, now in classifier.module_.state_dict().items():
        moved = not torch.equal(now, net.state_dict()[name])
        assert moved == (name[0] in "01"), name


@pytest.mark.parametrize("split", ["0", "9", "11"])
def test_the_users_network_is_left_alone(cnn, digits, split):
    X, _, y, _ = digits
    before = snapshot(cnn)
    classifier = FeatureBackpropClassifier(cnn, split=split, trainer=QUICK, random_state=0)
    classifier.fit(X[:100], y[:100]).predict(X)
    feature_gap(classifier, X[:50], y[:50])
    assert_unchanged(cnn, before)
    with pytest.raises(ValueError, match="not a split point"):
        clone(classifier).set_params(split="nowhere").fit(X, y)
    with pytest.raises(ValueError, match="NaN"):
        classifier.fit(np.full_like(X, np.nan), y)
    assert_unchanged(cnn, before)
    assert not classifier.module_.training


def test_two_fits_with_the_same_random_state_are_identical(cnn, digits):
    X, _, y, _ = digits
    classifier = FeatureBackpropClassifier(cnn, split="8", trainer=QUICK, random_state=3)
    first = classifier.fit(X, y).module_
    torch.manual_seed(99)  # the global generator has no say
    second = classifier.fit(X, y).module_
    assert states_equal(first, second)
    other = clone(classifier).set_params(random_state=4).fit(X, y).module_
    assert not states_equal(first, other)


def test_fit_leaves_torchs_generator_as_it_was(cnn, digits):
    X, _, y, _ = digits
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    FeatureBackpropClassifier(cnn, trainer=QUICK, random_state=0).fit(X[:60], y[:60])
    assert torch.equal(torch.rand(3), expected)


def test_pickle_round_trip(cnn, digits):
    X, X_test, y, _ = digits
    classifier = FeatureBackpropClassifier(cnn, split="8", trainer=QUICK, random_state=0)
    classifier.fit(X[:200], y[:200])
    copy = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(copy.predict_proba(X_test), classifier.predict_proba(X_test))
    np.testing.assert_array_equal(
        copy.feature_targets(X[:20], y[:20]), classifier.feature_targets(X[:20], y[:20])
    )


def test_clone_shares_the_network_and_clones_the_trainer(cnn):
    classifier = FeatureBackpropClassifier(cnn, trainer=QUICK, class_weight={0: 2.0})
    copy = clone(classifier)
    assert copy.module is cnn
    assert copy.trainer is not QUICK
    assert copy.trainer.get_params() == QUICK.get_params()
    assert copy.class_weight is not classifier.class_weight


def test_grid_search_in_parallel_gives_the_serial_result(cnn, digits):
    X, _, y, _ = digits
    search = GridSearchCV(
        FeatureBackpropClassifier(cnn, trainer=QUICK, random_state=0),
        {"split": ["8", "auto"], "trainer__alpha": [0.0, 0.1]},
        cv=2,
    )
    serial = clone(search).set_params(n_jobs=1).fit(X[:150], y[:150])
    parallel = clone(search).set_params(n_jobs=2).fit(X[:150], y[:150])
    np.testing.assert_array_equal(
        serial.cv_results_["mean_test_score"], parallel.cv_results_["mean_test_score"]
    )
    assert states_equal(serial.best_estimator_.module_, parallel.best_estimator_.module_)


def test_in_a_pipeline_over_the_splits_of_a_fitted_mlp():
    X, y = load_iris(return_X_y=True, as_frame=True)
    scaler = StandardScaler().fit(X)
    mlp = MLPClassifier((8,), max_iter=2000, solver="lbfgs", random_state=0)
    mlp.fit(scaler.transform(X), y)
    pipeline = make_pipeline(
        StandardScaler(), FeatureBackpropClassifier(mlp, trainer=QUICK, random_state=0)
    )
    points = split_points(mlp, scaler.transform(X))
    assert points == ["hidden1", "relu1", "output"]
    search = GridSearchCV(pipeline, {"featurebackpropclassifier__split": points}, cv=3).fit(X, y)
    assert search.best_score_ > 0.85


def test_every_kind_of_array_gives_the_same_answer(digits, cnn):
    X, _, y, _ = digits
    X, y = X[:80], y[:80]
    classifier = FeatureBackpropClassifier(cnn, trainer=QUICK, random_state=0)
    expected = classifier.fit(X, y).predict_proba(X)
    flat = clone(classifier).set_params(input_shape=(1, 8, 8))
    table = X.reshape(len(X), -1)
    names = [f"pixel{i}" for i in range(64)]
    for samples, estimator in (
        (X.astype(np.float64), classifier),
        (torch.from_numpy(X), classifier),
        (table, flat),
        (pd.DataFrame(table, columns=names), flat),
        (pl.DataFrame(table, schema=names), flat),
        (table.tolist(), flat),
    ):
        fitted = clone(estimator).fit(samples, y)
        np.testing.assert_allclose(fitted.predict_proba(samples), expected, atol=1e-6)
    assert fitted.n_features_in_ == 64


def test_string_labels_and_a_class_that_is_missing(mlp):
    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])
    classifier = FeatureBackpropClassifier(mlp, trainer=QUICK, random_state=0).fit(X, names[y])
    assert list(classifier.classes_) == sorted(names)
    assert set(classifier.predict(X)) <= set(names)

    present = y != 1
    fold = clone(classifier).set_params(classes=names).fit(X[present], names[y[present]])
    assert list(fold.classes_) == list(names)
    assert fold.predict_proba(X).shape == (150, 3)
    as_indices = clone(classifier).fit(X[present], y[present])
    np.testing.assert_array_equal(as_indices.classes_, [0, 1, 2])
    with pytest.raises(ValueError, match=r"2 classes .*3 outputs.*classes="):
        clone(classifier).fit(X[present], names[y[present]])


def test_one_class_only(mlp):
    X, y = load_iris(return_X_y=True)
    only = y == 1
    classifier = FeatureBackpropClassifier(mlp, trainer=QUICK, random_state=0)
    assert np.isfinite(classifier.fit(X[only], y[only]).predict_proba(X)).all()
    with pytest.raises(ValueError, match="one class only"):
        FeatureBackpropClassifier().fit(X[only], y[only])


def test_class_weights_act_as_sample_weights(mlp):
    X, y = load_iris(return_X_y=True)
    weights = {0: 1.0, 1: 5.0, 2: 0.5}
    by_class = FeatureBackpropClassifier(mlp, class_weight=weights, trainer=QUICK, random_state=0)
    by_sample = FeatureBackpropClassifier(mlp, trainer=QUICK, random_state=0)
    by_class.fit(X, y)
    by_sample.fit(X, y, sample_weight=[weights[label] for label in y])
    np.testing.assert_array_equal(by_class.predict_proba(X), by_sample.predict_proba(X))
    plain = clone(by_sample).fit(X, y)
    assert not np.array_equal(plain.predict_proba(X), by_sample.predict_proba(X))


def test_a_weight_equals_a_repetition_in_full_batch_without_a_hold_out(mlp):
    X, y = load_iris(return_X_y=True)
    X, y = X[::3], y[::3]
    weights = np.random.default_rng(0).integers(0, 4, len(y))
    net = mlp.double()
    classifier = FeatureBackpropClassifier(
        net, trainer=QUICK, batch_size=1000, validation_fraction=0, random_state=0
    )
    weighted = clone(classifier).fit(X, y, sample_weight=weights)
    repeated = clone(classifier).fit(np.repeat(X, weights, axis=0), np.repeat(y, weights))
    np.testing.assert_allclose(
        weighted.predict_proba(X), repeated.predict_proba(X), rtol=0, atol=1e-12
    )
    for name in REPORT:
        assert weighted.report_[name] == pytest.approx(repeated.report_[name], nan_ok=True)


def test_binary_with_one_logit_and_with_two():
    X, y = load_iris(return_X_y=True)
    X, y = X[y < 2], np.array(["no", "yes"])[y[y < 2]]
    torch.manual_seed(0)
    trainer = GradientTrainer(alpha=0.1, lr=3e-2, max_epochs=30)
    for width in (1, 2):
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, width))
        classifier = FeatureBackpropClassifier(net, trainer=trainer, random_state=0).fit(X, y)
        decision = classifier.decision_function(X)
        assert decision.shape == (100,)
        np.testing.assert_array_equal(classifier.predict(X) == "yes", decision > 0)
        probability = classifier.predict_proba(X)
        np.testing.assert_allclose(probability.sum(axis=1), 1)
        np.testing.assert_array_equal(probability[:, 1] > 0.5, decision > 0)
        assert classifier.score(X, y) > 0.95
        assert classifier.report_["reached"] == 1.0


def test_multilabel():
    X, Y = make_multilabel_classification(120, 6, n_classes=3, random_state=0)
    mlp = MLPClassifier((16,), max_iter=2000, solver="lbfgs", random_state=0).fit(X, Y)
    classifier = FeatureBackpropClassifier(mlp, split="hidden1", trainer=QUICK, random_state=0)
    classifier.fit(X, Y)
    assert classifier.predict(X).shape == (120, 3)
    np.testing.assert_allclose(
        FeatureBackpropClassifier(mlp, trainer=GradientTrainer(max_epochs=0))
        .fit(X, Y)
        .predict_proba(X),
        mlp.predict_proba(X),
        atol=1e-9,
    )
    with pytest.raises(ValueError, match=r"class_weight must be None or 'balanced'"):
        clone(classifier).set_params(class_weight={0: 1}).fit(X, Y)


@pytest.mark.parametrize("head", [nn.Softmax(dim=1), nn.LogSoftmax(dim=1)])
def test_a_network_that_ends_in_probabilities(head):
    X, y = load_iris(return_X_y=True)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), head).double()
    classifier = FeatureBackpropClassifier(
        net, split="2", trainer=GradientTrainer(lr=1e-2, max_epochs=40), random_state=0
    ).fit(X, y)
    assert classifier.report_["repair_rate"] == 1.0
    assert classifier.report_["reached"] == 1.0
    assert classifier.score(X, y) > 0.9
    np.testing.assert_allclose(classifier.predict_proba(X).sum(axis=1), 1)
    expected = torch.softmax(classifier.module_[:3](torch.from_numpy(X)), 1).detach().numpy()
    np.testing.assert_allclose(classifier.predict_proba(X), expected, atol=1e-9)


def test_several_splits_train_independently_in_parallel(cnn, digits):
    X, _, y, _ = digits
    X, y = X[:150], y[:150]
    classifier = FeatureBackpropClassifier(
        cnn, split=["9", "4", "auto"], trainer=QUICK, random_state=0
    ).fit(X, y)
    assert classifier.split_ == ["4", "9", "11"]
    assert set(classifier.report_) == {"4", "9", "11", "seconds"}
    targets = classifier.feature_targets(X, y)
    assert {name: target.shape for name, target in targets.items()} == {
        "4": (150, 8, 4, 4),
        "9": (150, 24),
        "11": (150, 10),
    }
    parallel = clone(classifier).set_params(n_jobs=2).fit(X, y)
    assert states_equal(classifier.module_, parallel.module_)
    # the first component does not see the others' training: it ends as if trained alone
    alone = clone(classifier).set_params(split="4").fit(X, y)
    assert torch.equal(alone.module_[4].weight, classifier.module_[4].weight)


def test_partial_fit_goes_on_from_chunk_to_chunk(cnn, digits):
    X, X_test, y, y_test = digits
    classifier = FeatureBackpropClassifier(
        cnn, split="9", trainer=GradientTrainer(lr=3e-3), batch_size=64, random_state=0
    )
    before = snapshot(cnn)
    scores = []
    for _ in range(4):
        for rows in np.array_split(np.arange(len(X)), 3):
            classifier.partial_fit(X[rows], y[rows])
        scores.append(classifier.score(X_test, y_test))
    assert scores[-1] > clone(classifier).set_params(trainer=GradientTrainer(max_epochs=0)).fit(
        X, y
    ).score(X_test, y_test)
    assert classifier.n_iter_ == len(classifier.history_) == 12
    assert_unchanged(cnn, before)


def test_partial_fit_of_the_default_network_needs_the_classes():
    X, y = load_iris(return_X_y=True)
    classifier = FeatureBackpropClassifier(random_state=0)
    with pytest.raises(ValueError, match="classes must be passed to the first call"):
        classifier.partial_fit(X, y)
    classifier.partial_fit(X[:50], y[:50], classes=[0, 1, 2]).partial_fit(X, y)
    assert classifier.predict_proba(X).shape == (150, 3)
    with pytest.raises(ValueError, match="balanced"):
        classifier.set_params(class_weight="balanced").partial_fit(X, y)


def test_warm_start_goes_on(cnn, digits):
    X, _, y, _ = digits
    classifier = FeatureBackpropClassifier(cnn, trainer=QUICK, warm_start=True, random_state=0)
    first = classifier.fit(X, y).module_
    weight = first[0].weight.clone()
    second = classifier.fit(X, y).module_
    assert second is first
    assert not torch.equal(weight, second[0].weight)


def test_the_default_network_on_a_table():
    X, y = load_iris(return_X_y=True)
    classifier = FeatureBackpropClassifier(random_state=0).fit(X[::2], y[::2])
    plain = LogisticRegression(max_iter=1000).fit(X[::2], y[::2])
    assert classifier.score(X[1::2], y[1::2]) >= plain.score(X[1::2], y[1::2]) - 0.05
    assert classifier.module_[1].weight.dtype == torch.float64


def test_target_step_moves_the_targets_gradually(cnn, digits):
    X, _, y, _ = digits
    whole = FeatureBackpropClassifier(cnn, trainer=GradientTrainer(max_epochs=0), random_state=0)
    half = clone(whole).set_params(target_step=0.5)
    full_step = whole.fit(X[:80], y[:80]).report_["displacement"]
    half_step = half.fit(X[:80], y[:80]).report_["displacement"]
    assert half_step == pytest.approx(full_step / 2, rel=1e-4)


@pytest.mark.parametrize("rule", ["nearest", "max_assign", "one_hot"])
@pytest.mark.parametrize("propagation", ["layerwise", "layerwise_in_range"])
def test_every_rule_repairs_at_the_last_hidden_layer(cnn, digits, rule, propagation):
    X, _, y, _ = digits
    classifier = FeatureBackpropClassifier(
        cnn,
        split="9",
        output_target=rule,
        propagation=propagation,
        trainer=GradientTrainer(max_epochs=0),
        random_state=0,
    ).fit(X[:200], y[:200])
    assert classifier.report_["kept_rate"] > 0.9
    if propagation == "layerwise_in_range":
        assert classifier.feature_targets(X[:200], y[:200]).min() >= -1e-6


def test_feature_gap_is_a_table_over_every_split(cnn, digits):
    X, _, y, _ = digits
    classifier = FeatureBackpropClassifier(cnn, trainer=QUICK, random_state=0).fit(X, y)
    table = feature_gap(classifier, X[:200], y[:200])
    assert list(table.index) == split_points(cnn, X)
    assert list(table.columns) == [*REPORT, "residual"]
    assert table.loc["11", "residual"] < 1e-5
    assert (table["kept_rate"] <= 1).all()


class Sigmoids(nn.Module):
    """One probability, not at the very end of the forward."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x):
        return torch.sigmoid(self.linear(x)).squeeze(-1)


class OpaqueSigmoids(Sigmoids):
    def forward(self, x):
        return super().forward(x) if len(x) else x[:, 0]


@pytest.mark.parametrize(
    "net", [Sigmoids(), nn.Sequential(nn.Linear(4, 1), nn.Sigmoid(), nn.Flatten(0))]
)
def test_a_sigmoid_before_a_reshape_is_a_probability(net):
    X, y = load_iris(return_X_y=True)
    classifier = FeatureBackpropClassifier(net, trainer=GradientTrainer(max_epochs=0)).fit(X, y > 0)
    with torch.no_grad():
        expected = net(torch.tensor(X, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(classifier.predict_proba(X)[:, 1], expected, atol=1e-6)
    assert classifier.report_["reached"] == 1.0


def test_probabilities_that_cannot_be_told_from_logits_have_to_be_named():
    X, y = load_iris(return_X_y=True)
    classifier = FeatureBackpropClassifier(OpaqueSigmoids(), trainer=GradientTrainer(max_epochs=0))
    with pytest.raises(ValueError, match=r"Pass head='probabilities' or head='logits'"):
        classifier.fit(X, y > 0)
    named = classifier.set_params(head="probabilities").fit(X, y > 0)
    assert named.report_["reached"] == 1.0


def test_balanced_classes_count_weights_not_rows(mlp):
    X, y = load_iris(return_X_y=True)
    weights = np.random.default_rng(0).integers(0, 4, len(y))
    classifier = FeatureBackpropClassifier(
        mlp.double(), trainer=QUICK, class_weight="balanced", batch_size=1000,
        validation_fraction=0, random_state=0,
    )  # fmt: skip
    weighted = clone(classifier).fit(X, y, sample_weight=weights)
    repeated = clone(classifier).fit(np.repeat(X, weights, axis=0), np.repeat(y, weights))
    np.testing.assert_allclose(
        weighted.predict_proba(X), repeated.predict_proba(X), rtol=0, atol=1e-12
    )


def test_a_warm_start_follows_new_parameters_and_survives_wrong_input():
    X, y = load_iris(return_X_y=True)
    classifier = FeatureBackpropClassifier(warm_start=True, random_state=0).fit(X, y)
    assert classifier.set_params(split="hidden1", margin=3.0).fit(X, y).split_ == "hidden1"
    assert classifier._output_targets.margin == 3.0
    with pytest.raises(ValueError, match="expecting 4 features"):
        classifier.fit(X[:, :3], y)
    assert classifier.predict(X).shape == y.shape


def test_normalisations_that_the_user_froze_keep_their_statistics():
    X, y = load_iris(return_X_y=True)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    net[:2].requires_grad_(False)
    fitted = FeatureBackpropClassifier(net, trainer=QUICK, random_state=0).fit(X, y).module_
    assert torch.equal(fitted[1].running_mean, net[1].running_mean)
    assert split_points(net, X) == ["3"]


def test_a_network_frozen_for_inference_is_trained_all_the_same(mlp):
    X, y = load_iris(return_X_y=True)
    frozen = copy.deepcopy(mlp).requires_grad_(False)
    fitted = FeatureBackpropClassifier(frozen, trainer=QUICK, random_state=0).fit(X, y).module_
    free = FeatureBackpropClassifier(mlp, trainer=QUICK, random_state=0).fit(X, y).module_
    assert states_equal(fitted, free)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_a_parameter_shared_by_components_is_left_alone():
    X, y = load_iris(return_X_y=True)
    net = nn.Sequential(
        nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)
    ).double()
    net[2].weight = net[0].weight
    classifier = FeatureBackpropClassifier(net, split=[0, 2, 4], trainer=QUICK, random_state=0)
    fitted = classifier.fit(X, y).module_
    assert torch.equal(fitted[0].weight, net[0].weight)
    assert not torch.equal(fitted[2].bias, net[2].bias)


def test_reading_a_network_draws_no_random_numbers():
    X, y = load_iris(return_X_y=True)
    mlp = MLPClassifier((8,), max_iter=2000, solver="lbfgs", random_state=0).fit(X, y)
    before = torch.get_rng_state()
    FeatureBackpropClassifier(mlp, trainer=QUICK, random_state=0).fit(X, y)
    assert torch.equal(torch.get_rng_state(), before)


def test_functional_dropout_is_active_while_the_network_trains():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            dropped = nn.functional.dropout(x, 0.5, training=self.training)
            return self.linear(dropped)

    X, y = load_iris(return_X_y=True)
    trainer = GradientTrainer(lr=0.0, weight_decay=0.0, max_epochs=4)
    classifier = FeatureBackpropClassifier(Dropping(), trainer=trainer, random_state=0).fit(X, y)
    assert len({entry["task_loss"] for entry in classifier.history_}) == 4


def test_half_precision_networks_give_arrays(mlp):
    X, y = load_iris(return_X_y=True)
    net = copy.deepcopy(mlp).bfloat16()
    classifier = FeatureBackpropClassifier(net, split=0, trainer=QUICK, random_state=0).fit(X, y)
    assert classifier.feature_targets(X, y).dtype == np.float32
    assert classifier.predict_proba(torch.tensor(X, dtype=torch.bfloat16)).shape == (150, 3)


@pytest.mark.parametrize(("trainer", "shown"), [("auto", 1500), ("gradient", 3000)])
def test_a_report_on_many_rows_looks_at_some_unless_targets_are_trained_on(trainer, shown):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(3000, 4)).astype(np.float32), rng.integers(0, 3, 3000)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    fitted = FeatureBackpropClassifier(
        net, split="0", trainer=trainer, validation_fraction=0, random_state=0
    ).fit(X, y)
    assert sum(fitted.report_["status"].values()) == shown
    assert 0.9 <= fitted.report_["reached"] <= 1
