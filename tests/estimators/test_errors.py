"""Wrong input: each raise of the estimators, with its text."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from featprop_sklearn import (
    AutoTrainer,
    ClosedFormTrainer,
    FeatureBackpropClassifier,
    FeatureBackpropRegressor,
    GradientTrainer,
    feature_gap,
)
from featprop_sklearn.inversion import UnsupportedLayerError

X, Y = load_iris(return_X_y=True)


class Detached(nn.Module):
    """Not differentiable: targets cannot pass."""

    def forward(self, x):
        return x.detach().sign() * x.detach()


@pytest.mark.parametrize(
    ("parameters", "error", "text"),
    [
        ({"split": "22"}, ValueError, r"split='22' is not a split point .*Did you mean '2'"),
        ({"split": 7}, ValueError, r"split=7 is out of range: the network has 3 split points"),
        ({"split": np.array(["x", "y"])}, ValueError, r"split='x' is not a split point"),
        ({"split": []}, TypeError, r"split must be a name, an index, a non-empty list"),
        (
            {"propagation": "newton"},
            ValueError,
            r"propagation must be one of \['joint', 'layerwise'",
        ),
        ({"output_target": "far"}, ValueError, r"output_target must be one of .*'far'"),
        ({"margin": -1.0}, ValueError, r"margin must be .*-1"),
        ({"target_step": 0}, ValueError, r"target_step must be a number in \(0, 1\]"),
        (
            {"trainer": "adam"},
            ValueError,
            r"trainer must be one of \['auto', 'closed_form', .*got 'adam'",
        ),
        ({"trainer": 3}, TypeError, r"an object of one of AutoTrainer, .*; got 3\."),
        ({"alpha": -0.1}, ValueError, r"alpha must be a number >= 0; got -0.1"),
        (
            {"trainer": GradientTrainer(), "alpha": 0.1},
            ValueError,
            r"alpha=0.1 asks for the gradient trainer, but trainer is GradientTrainer",
        ),
        (
            {"trainer": "closed_form", "alpha": 0.1},
            ValueError,
            r"alpha=0.1 asks for the gradient trainer, but trainer is 'closed_form'",
        ),
        (
            {"propagation": "layerwise"},
            ValueError,
            r"propagation='layerwise' cannot be used with AutoTrainer",
        ),
        ({"trainer": ClosedFormTrainer(sweeps=-1)}, ValueError, r"sweeps must be .* got -1"),
        ({"trainer": ClosedFormTrainer(ridge="gcv")}, ValueError, r"ridge must be 'auto' or .*gcv"),
        ({"trainer": ClosedFormTrainer(C=0)}, ValueError, r"C must be a number > 0; got 0"),
        ({"trainer": ClosedFormTrainer(multiples=())}, ValueError, r"multiples must hold at least"),
        ({"trainer": ClosedFormTrainer(multiples=3)}, ValueError, r"multiples must be a seq"),
        ({"trainer": ClosedFormTrainer(tol=-1)}, ValueError, r"tol must be a number >= 0; got -1"),
        (
            {"trainer": AutoTrainer(closed_form=3)},
            TypeError,
            r"closed_form must be None or .*got 3",
        ),
        (
            {"trainer": AutoTrainer(polish="adam")},
            TypeError,
            r"polish must be None or .*got 'adam'",
        ),
        ({"trainer": AutoTrainer(trial_epochs=0)}, ValueError, r"trial_epochs must be .* got 0"),
        (
            {"trainer": AutoTrainer(polish=GradientTrainer(alpha=0.1))},
            ValueError,
            r"polish trains on the labels alone: its alpha must be 0",
        ),
        (
            {"trainer": GradientTrainer(schedule="cosine")},
            ValueError,
            r"schedule must be one of \['constant', 'one_cycle'\]; got 'cosine'",
        ),
        (
            {"trainer": GradientTrainer(label_smoothing=1)},
            ValueError,
            r"label_smoothing must be .* < 1; got 1",
        ),
        ({"trainer": GradientTrainer(lr=-1)}, ValueError, r"lr must be a number >= 0; got -1"),
        ({"trainer": GradientTrainer(ema_decay=1)}, ValueError, r"ema_decay must be .* < 1; got 1"),
        (
            {"trainer": GradientTrainer(max_epochs=1.5)},
            ValueError,
            r"max_epochs must be an integer >= 0; got 1.5",
        ),
        ({"solver": "lsq", "split": 0}, ValueError, r"solver must be one of .*'lsqr'.*got 'lsq'"),
        ({"solver": "lsq"}, ValueError, r"solver must be one of"),
        ({"damping": "x"}, ValueError, r"damping must be .*'x'"),
        ({"class_weight": "foo"}, ValueError, r"class_weight must be a dict .* got 'foo'"),
        ({"batch_size": True}, ValueError, r"batch_size must be 'auto' or an integer >= 1"),
        (
            {"trainer": GradientTrainer(feature_only="no")},
            ValueError,
            r"feature_only must be True or False; got 'no'",
        ),
        (
            {
                "module": nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)),
                "batch_size": 1,
                "trainer": GradientTrainer(),
            },
            ValueError,
            r"BatchNorm1d cannot be trained on batches of one row: batch_size is 1",
        ),
        ({"damping": -1, "split": 0}, ValueError, r"damping must be .*-1"),
        ({"classes": ["a"]}, ValueError, r"classes must be 3 labels"),
        ({"head": "probs"}, ValueError, r"head must be one of"),
        ({"head": "probabilities"}, ValueError, r"head='probabilities'"),
        ({"input_shape": (5,)}, ValueError, r"input_shape=\(5,\) holds 5 values .* X has 4"),
        ({"input_shape": "flat"}, ValueError, r"input_shape must be a tuple of positive integers"),
        ({"validation_fraction": 1}, ValueError, r"validation_fraction must be 'auto' or a number"),
        ({"batch_size": 0}, ValueError, r"batch_size must be 'auto' or an integer >= 1; got 0"),
        ({"device": "gpu"}, ValueError, r"device='gpu' cannot be used here"),
        ({"module": nn.Linear}, TypeError, r"module must be a torch.nn.Module.*not the class"),
        ({"module": MLPClassifier()}, NotFittedError, r"MLPClassifier that has not been fitted"),
        ({"module": nn.Linear(5, 3)}, ValueError, r"refused X of shape \(n_samples, 4\)"),
        ({"module": nn.Linear(4, 2)}, ValueError, r"y holds 3 classes .* 2 outputs"),
        ({"module": nn.ReLU()}, ValueError, r"module has no parameters"),
        (
            {"module": nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Linear(2, 3))},
            ValueError,
            r"must return one row of outputs per sample.*\(n_samples, 2, 3\)",
        ),
        (
            {
                "module": nn.Sequential(nn.Linear(4, 3), Detached(), nn.Linear(3, 3)),
                "split": "0",
                "propagation": "layerwise",
                "trainer": "gradient",
            },
            UnsupportedLayerError,
            r"Stage '1': Detached cannot be inverted.*register_inverter\(Detached",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_wrong_parameters(mlp, parameters, error, text):
    classifier = FeatureBackpropClassifier(**{"module": mlp, **parameters})
    with pytest.raises(error, match=text):
        classifier.fit(X, Y)


@pytest.mark.parametrize(
    ("samples", "labels", "error", "text"),
    [
        (np.where(X[0] == X, np.nan, X), Y, ValueError, "NaN"),
        (np.where(X[0] == X, np.inf, X), Y, ValueError, "infinity"),
        (X, Y[:-1], ValueError, "150 samples and y 149"),
        (X[:0], Y[:0], ValueError, "0 sample"),
        (X, None, ValueError, "requires y to be passed"),
        (X, np.linspace(0, 1, 150), ValueError, "Unknown label type"),
        (X, np.eye(4)[Y], ValueError, "one column an output, 3 of them"),
        (X, np.where(Y == 0, None, "a"), ValueError, r"50 of 150 labels are missing, .* row 0\."),
        (X, np.where(Y == 2, np.nan, Y), ValueError, r"y contains NaN .* first in row 100\."),
        (1e60 * X, Y, ValueError, r"150 of 150 samples: their X is beyond the range of .*float32"),
        (TensorDataset(torch.zeros(3, 4)), None, ValueError, "items of X .* are samples alone"),
        (TensorDataset(torch.zeros(3, 4)), Y[:4], ValueError, "3 samples and y 4"),
        (DataLoader(TensorDataset(torch.zeros(3, 4))), Y[:3], TypeError, r"Pass its dataset"),
    ],
)
def test_wrong_data(mlp, samples, labels, error, text):
    with pytest.raises(error, match=text):
        FeatureBackpropClassifier(mlp).fit(samples, labels)


class Finished(nn.Module):
    """Three logits, finished by a function."""

    def __init__(self, finish, weight=1.0):
        super().__init__()
        self.linear, self.finish = nn.Linear(4, 3), finish
        nn.init.constant_(self.linear.weight, weight)

    def forward(self, x):
        return self.finish(self.linear(x))


@pytest.mark.parametrize(
    ("network", "text"),
    [
        (Finished(nn.Identity(), np.nan), r"its linear.weight holds such numbers.* before that"),
        (
            Finished(lambda z: z.masked_fill(torch.arange(3) == 1, -torch.inf)),
            r"for every sample, in columns \[1\]\. If these are classes that are masked",
        ),
        (Finished(lambda z: z / (z > 12)), r"for \d+ of 150 samples\. Scale X .* divides by zero"),
    ],
    ids=["weights", "masked", "divided"],
)
def test_outputs_that_are_not_finite(network, text):
    estimator = FeatureBackpropClassifier(network, validation_fraction=0)
    with pytest.raises(ValueError, match=r"^The network \(Finished\) returned NaN .*" + text):
        estimator.fit(X, Y)
    with pytest.raises(ValueError, match=text):
        FeatureBackpropRegressor(network).fit(X, np.eye(3)[Y])


def test_wrong_data_after_fit(mlp):
    classifier = FeatureBackpropClassifier(mlp, trainer=GradientTrainer(max_epochs=0)).fit(X, Y)
    with pytest.raises(ValueError, match=r"X has 3 features, but .* is expecting 4"):
        classifier.predict(X[:, :3])
    with pytest.raises(ValueError, match="unknown label 7"):
        classifier.feature_targets(X, np.full(150, 7))
    with pytest.raises(ValueError, match="150 samples and y 10"):
        feature_gap(classifier, X, Y[:10])
    with pytest.raises(ValueError, match="Negative values in data passed to `sample_weight`"):
        classifier.fit(X, Y, sample_weight=np.full(150, -1.0))
    with pytest.raises(ValueError, match="zero for every sample"):
        classifier.set_params(class_weight={0: 0.0, 1: 0.0, 2: 0.0}).fit(X, Y)


def test_images_of_another_size_after_fit():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    images = np.random.default_rng(0).normal(size=(20, 1, 4, 4))
    classifier = FeatureBackpropClassifier(net, trainer=GradientTrainer(max_epochs=0))
    classifier.fit(images, np.arange(20) % 2)
    with pytest.raises(ValueError, match=r"samples of shape \(1, 5, 5\).*fitted on .*\(1, 4, 4\)"):
        classifier.predict(np.zeros((2, 1, 5, 5)))


def test_before_fit(mlp):
    for call in ("predict", "predict_proba", "decision_function"):
        with pytest.raises(NotFittedError):
            getattr(FeatureBackpropClassifier(mlp), call)(X)
    with pytest.raises(NotFittedError):
        FeatureBackpropClassifier(mlp).feature_targets(X, Y)
    with pytest.raises(NotFittedError):
        feature_gap(FeatureBackpropClassifier(mlp), X, Y)


def test_the_default_network_takes_tables_only():
    with pytest.raises(ValueError, match=r"module=None trains a small network on a table"):
        FeatureBackpropClassifier().fit(np.zeros((6, 1, 2, 2)), [0, 1] * 3)


def test_parameters_of_the_network_cannot_be_set():
    mlp = MLPClassifier((3,), max_iter=2000, random_state=0, solver="lbfgs").fit(X, Y)
    classifier = FeatureBackpropClassifier(mlp)
    assert not any(name.startswith("module__") for name in classifier.get_params())
    with pytest.raises(ValueError, match="module__alpha cannot be set"):
        classifier.set_params(module__alpha=1)


def test_outputs_that_do_not_fit_the_values():
    samples, values = load_diabetes(return_X_y=True)
    with pytest.raises(ValueError, match="y holds 1 value per sample, but the network has 2"):
        FeatureBackpropRegressor(nn.Linear(10, 2)).fit(samples, values)
    with pytest.raises(ValueError, match="Found array with dim 3"):
        FeatureBackpropRegressor(nn.Linear(10, 2)).fit(samples, np.zeros((442, 1, 2)))
    with pytest.raises(ValueError, match="requires y to be passed"):
        FeatureBackpropRegressor().fit(samples, None)
    with pytest.raises(ValueError, match="442 samples and y 3"):
        FeatureBackpropRegressor().fit(samples, values[:3])


def test_values_that_are_not_numbers_in_feature_targets():
    samples, values = load_diabetes(return_X_y=True)
    regressor = FeatureBackpropRegressor(
        nn.Linear(10, 1), trainer=GradientTrainer(max_epochs=0)
    ).fit(samples, values)
    with pytest.raises(ValueError, match="y contains NaN"):
        regressor.feature_targets(samples, np.full(442, np.nan))


def test_the_trainer_has_to_be_an_object_before_its_parameters_are_set(mlp):
    classifier = FeatureBackpropClassifier(mlp)
    with pytest.raises(ValueError, match=r"trainer__lr cannot be set .*Pass an object first: Grad"):
        classifier.set_params(trainer__lr=0.1)
    classifier.set_params(trainer=GradientTrainer(), trainer__lr=0.1)
    assert classifier.trainer.lr == 0.1


def test_a_pipeline_is_no_estimator_for_feature_gap(mlp):
    pipeline = make_pipeline(FeatureBackpropClassifier(mlp))
    with pytest.raises(TypeError, match=r"got Pipeline\. Of a Pipeline pass the last step"):
        feature_gap(pipeline, X, Y)


def test_one_hot_labels_are_said_to_be_several_labels(mlp):
    classifier = FeatureBackpropClassifier(mlp, trainer=GradientTrainer(max_epochs=0))
    with pytest.warns(UserWarning, match=r"taken as 3 labels, .* pass y\.argmax\(axis=1\)") as seen:
        classifier.fit(X, np.eye(3, dtype=int)[Y])
    assert seen[0].filename == __file__
    classifier.fit(X, np.eye(3, dtype=int)[Y] | (Y == 0)[:, None])  # a warning would be an error


def test_labels_for_a_network_of_several_labels():
    mlp = MLPClassifier((3,), max_iter=2000, random_state=0, solver="lbfgs").fit(X, np.eye(3)[Y])
    with pytest.raises(ValueError, match=r"fitted on several labels a sample \(3 of them\)"):
        FeatureBackpropClassifier(mlp).fit(X, Y)


def test_training_that_diverges_is_said_and_undone(mlp):
    classifier = FeatureBackpropClassifier(mlp, trainer=GradientTrainer(lr=1e30), random_state=0)
    with pytest.warns(ConvergenceWarning, match=r"diverged: .* Lower lr \(now 1e\+30\)"):
        classifier.fit(X, Y)
    assert torch.equal(classifier.module_[0].weight, mlp[0].weight)


@pytest.mark.parametrize("trainer", ["auto", "closed_form", "gradient"])
def test_a_split_that_nothing_depends_on_is_told(trainer):
    X, y = load_iris(return_X_y=True)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    nn.init.zeros_(net[2].weight)
    classifier = FeatureBackpropClassifier(net, split="1", trainer=trainer, random_state=0)
    with pytest.warns(UserWarning, match=r"No output depends on the feature at split '1'.* later"):
        classifier.fit(X, y)
    assert set(classifier.report_["status"]) <= {"met", "blocked"}
