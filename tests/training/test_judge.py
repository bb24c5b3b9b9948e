"""Held-out data against a change of weights, and parts that do not fit together."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from featprop_sklearn import FeatureBackpropClassifier, GradientTrainer
from featprop_sklearn.networks import build_chain
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.training.component import Labelled
from featprop_sklearn.training.judge import Judge


def judged(weights=None, n_samples=400):
    """A linear classifier that is right on the first half, and its judge."""
    torch.manual_seed(0)
    layer = nn.Linear(2, 2).double().requires_grad_(False)
    layer.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    layer.bias.zero_()
    x = torch.randn(n_samples, 2).double()
    y = (x[:, 0] < 0).long()
    y[n_samples // 2 :] = 1 - y[n_samples // 2 :]
    weights = torch.ones(n_samples) if weights is None else weights
    chain = build_chain(layer, x[:2])
    data = Labelled(x, y, weights.double())
    return layer, Judge(chain, OutputTargets("multiclass"), data, 64)


def test_the_same_state_is_no_worse_and_not_clearly_better():
    _, judge = judged()
    assert judge.accepts()
    assert not judge.accepts(clearly=True)


def test_a_clearly_worse_state_is_refused_and_a_better_one_remembered():
    first_half = torch.cat([torch.ones(200), torch.zeros(200)])
    layer, judge = judged(first_half)
    layer.weight.neg_()  # wrong wherever it was right
    assert not judge.accepts()
    layer.weight.neg_()
    assert judge.accepts()
    second_half = 1 - first_half
    layer, judge = judged(second_half)
    layer.weight.neg_()
    assert judge.accepts(clearly=True)
    layer.weight.neg_()
    assert not judge.accepts()


def test_what_is_not_finite_is_refused():
    layer, judge = judged()
    layer.weight.fill_(torch.nan)
    assert not judge.accepts()


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_what_is_worse_and_no_better_than_one_answer_is_ruined(task):
    torch.manual_seed(0)
    layer = nn.Linear(3, 3).double().requires_grad_(False)
    x = torch.randn(200, 3).double()
    y = {"multiclass": layer(x).argmax(1), "multilabel": (layer(x) > 0).long()}.get(task, layer(x))
    data = Labelled(x, y, torch.ones(200).double())
    judge = Judge(build_chain(layer, x[:2]), OutputTargets(task), data, 64)
    weight, bias = layer.weight.clone(), layer.bias.clone()
    assert not judge.calls_ruined()
    layer.weight[0] = weight[0] + (0.3 if task == "regression" else 0.7)  # worse, and of use
    assert not judge.accepts()
    assert not judge.calls_ruined()
    layer.weight.zero_()
    layer.bias.copy_(y.double().mean(0) if task == "regression" else bias)
    assert judge.calls_ruined()
    layer.weight.fill_(torch.nan)
    assert judge.calls_ruined()


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return train_test_split((X / 16).astype("float32"), y, test_size=0.4, random_state=0)


@pytest.fixture(scope="module")
def network(digits):
    X, _, y, _ = digits
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 10)
    )
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(100):
        loss = nn.functional.cross_entropy(net(torch.from_numpy(X)), torch.from_numpy(y))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


def rotated(X):
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(X.shape[1], X.shape[1])))
    return (X @ turn).astype(np.float32)


@pytest.mark.parametrize("validation_fraction", ["auto", 0])
def test_parts_that_do_not_fit_together_are_left_out(digits, network, validation_fraction):
    X, X_test, y, y_test = digits
    X, X_test = rotated(X), rotated(X_test)
    trainer = GradientTrainer(max_epochs=20, lr=3e-3)
    several = FeatureBackpropClassifier(
        network,
        split=["1", "4"],
        trainer=trainer,
        validation_fraction=validation_fraction,
        random_state=0,
    )
    with pytest.warns(UserWarning, match="The parts trained for the splits '4' make the whole"):
        several.fit(X, y)
    assert {split: several.report_[split]["used"] for split in ("1", "4")} == {
        "1": True,
        "4": False,
    }
    for index in (2, 4):
        assert torch.equal(several.module_[index].weight, network[index].weight)
    before = (network(torch.from_numpy(X_test)).argmax(1).numpy() == y_test).mean()
    assert several.score(X_test, y_test) > before + 0.3
