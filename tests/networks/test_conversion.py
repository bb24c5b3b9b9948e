"""Fitted scikit-learn MLPs and skorch nets as torch modules, against their own answers."""

import warnings

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from sklearn.datasets import make_multilabel_classification
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier, NeuralNetRegressor
from torch import nn

from featprop_sklearn.networks import as_network

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4))
LABELS = np.array(["no", "perhaps", "yes"])[np.digitize(X[:, 0], [-0.4, 0.4])]
each_activation = pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])


def fitted(mlp, y, x=X):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mlp.set_params(max_iter=30, random_state=0).fit(x, y)


def outputs(network, x=X):
    with torch.no_grad():
        return network.module(torch.from_numpy(x)).numpy()


@each_activation
def test_multiclass_classifier(activation):
    mlp = fitted(MLPClassifier((8, 5), activation=activation), LABELS)
    network = as_network(mlp)
    np.testing.assert_allclose(
        softmax(outputs(network), axis=1), mlp.predict_proba(X), rtol=1e-12, atol=1e-14
    )
    np.testing.assert_array_equal(network.classes, ["no", "perhaps", "yes"])
    assert not network.per_logit


@each_activation
def test_binary_classifier(activation):
    mlp = fitted(MLPClassifier((6,), activation=activation), LABELS == "yes")
    network = as_network(mlp)
    logits = outputs(network)
    assert logits.shape == (60, 1)
    np.testing.assert_allclose(expit(logits[:, 0]), mlp.predict_proba(X)[:, 1], rtol=1e-12)
    np.testing.assert_array_equal(network.classes, [False, True])
    assert not network.per_logit


@each_activation
def test_multilabel_classifier(activation):
    x, y = make_multilabel_classification(60, 4, n_classes=3, random_state=0)
    mlp = fitted(MLPClassifier((6,), activation=activation), y, x)
    network = as_network(mlp)
    np.testing.assert_allclose(
        expit(outputs(network, x)), mlp.predict_proba(x), rtol=1e-12, atol=1e-14
    )
    assert network.per_logit


@each_activation
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_regressor(activation, n_outputs):
    y = X[:, :n_outputs] ** 2
    mlp = fitted(MLPRegressor(hidden_layer_sizes=(7, 5), activation=activation), y.squeeze())
    network = as_network(mlp)
    assert network.classes is None
    np.testing.assert_allclose(
        outputs(network), mlp.predict(X).reshape(60, -1), rtol=1e-12, atol=1e-12
    )


@pytest.mark.skipif("loss" not in MLPRegressor().get_params(), reason="scikit-learn before 1.7")
def test_poisson_regressor():
    mlp = fitted(
        MLPRegressor(hidden_layer_sizes=(7,), loss="poisson"), RNG.poisson(np.exp(X[:, 0]))
    )
    network = as_network(mlp)
    np.testing.assert_allclose(outputs(network)[:, 0], mlp.predict(X), rtol=1e-12)


def test_layers_are_named_and_in_float64():
    mlp = fitted(MLPClassifier((6, 5), activation="tanh"), LABELS, X.astype(np.float32))
    module = as_network(mlp).module
    assert list(module._modules) == ["hidden1", "tanh1", "hidden2", "tanh2", "output"]
    assert {p.dtype for p in module.parameters()} == {torch.float64}
    np.testing.assert_allclose(
        softmax(outputs(as_network(mlp)), axis=1),
        mlp.predict_proba(X.astype(np.float32)),
        atol=1e-6,
    )


def test_the_mlp_and_the_module_share_no_memory():
    mlp = fitted(MLPClassifier((6,)), LABELS)
    before = mlp.predict_proba(X)
    with torch.no_grad():
        for parameter in as_network(mlp).module.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(mlp.predict_proba(X), before)


def test_a_torch_module_is_taken_as_it_is():
    module = nn.Linear(2, 2)
    network = as_network(module)
    assert network.module is module
    assert network.classes is None


def test_skorch_classifier_brings_module_and_classes():
    net = NeuralNetClassifier(
        nn.Linear(4, 2), criterion=nn.CrossEntropyLoss, max_epochs=1, train_split=None, verbose=0
    )
    net.fit(X.astype(np.float32), (X[:, 0] > 0).astype(np.int64))
    network = as_network(net)
    assert network.module is net.module_
    np.testing.assert_array_equal(network.classes, [0, 1])


def test_skorch_nets_without_classes():
    regressor = NeuralNetRegressor(nn.Linear(4, 1), max_epochs=1, train_split=None, verbose=0)
    regressor.fit(X.astype(np.float32), X[:, :1].astype(np.float32))
    assert as_network(regressor).classes is None
    loaded = NeuralNetClassifier(nn.Linear(4, 3)).initialize()  # weights may come from a file
    assert as_network(loaded).classes is None


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (MLPClassifier(), "module is a MLPClassifier that has not been fitted. Call its fit first"),
        (MLPRegressor(), "module is a MLPRegressor that has not been fitted. Call its fit first"),
        (
            NeuralNetClassifier(nn.Linear(2, 2)),
            "module is a NeuralNetClassifier that has not been fitted. .*or pass its torch module",
        ),
    ],
    ids=["classifier", "regressor", "skorch"],
)
def test_unfitted(source, text):
    with pytest.raises(NotFittedError, match=text):
        as_network(source)


def test_other_types():
    expected = "a fitted skorch net, or a fitted MLPClassifier or "
    with pytest.raises(TypeError, match=expected + r"MLPRegressor; got LogisticRegr.*\)\.$"):
        as_network(LogisticRegression())
    with pytest.raises(TypeError, match=r"got <class .*Linear'>\. Pass an instance, not the class"):
        as_network(nn.Linear)


def test_torchscript():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch discourages TorchScript
        scripted = torch.jit.trace(torch.nn.Linear(2, 1), torch.zeros(1, 2))
    with pytest.raises(TypeError, match="TorchScript module, whose copies cannot be trained"):
        as_network(scripted)


def test_of_a_pipeline_the_last_step_is_the_network():
    with pytest.raises(TypeError, match="Of a Pipeline pass the last step, and X as the steps"):
        as_network(make_pipeline(StandardScaler(), MLPClassifier()))
