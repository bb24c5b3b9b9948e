"""What training does beside its usual way is the same on an accelerator."""

import numpy as np
import pytest
import torch
from torch import nn

from featprop_sklearn import ClosedFormTrainer, GradientTrainer
from featprop_sklearn.training import gram, head
from tests.accelerator.pairs import assert_near, network, on_both, rows


def assert_same(accelerator, X, y, trainer, make=lambda: network().double(), **parameters):
    here, there = on_both(accelerator, make, X, y, trainer=trainer, **parameters)
    assert_near(there.decision_function(X), here.decision_function(X), torch.float64)


@pytest.mark.parametrize(
    "trainer",
    [
        GradientTrainer(max_epochs=2, lr=1e-3, gradient_regularization="cosine"),
        GradientTrainer(max_epochs=2, lr=1e-3, feature_only=True),
        GradientTrainer(max_epochs=2, lr=1e-3, schedule="one_cycle", label_smoothing=0.1),
        ClosedFormTrainer(sweeps=1, max_layers=1),
    ],
    ids=["gradients", "features", "schedule", "few layers"],
)
def test_other_options(trainer, accelerator):
    assert_same(accelerator, *rows(), trainer, split="4", batch_size=8)


def test_last_layer_fitted_by_batches(accelerator, monkeypatch):
    monkeypatch.setattr(head, "AT_ONCE", 0)
    assert_same(accelerator, *rows(), "closed_form")


def test_class_without_samples(accelerator):
    X, y = rows()
    assert_same(accelerator, X, y % 9, "closed_form")


def test_wide_layer(accelerator, monkeypatch):
    monkeypatch.setattr(gram, "LARGE", 8)
    assert_same(accelerator, *rows(), "closed_form", split="4")


def test_dead_units(accelerator):
    def make():
        made = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
        made[1].bias.data[:6] = -100.0
        return made.double()

    assert_same(accelerator, *rows(), "closed_form", make, split="2")


def test_probabilities(accelerator):
    X, y = rows()
    parameters = {"make": lambda: nn.Sequential(network(), nn.Softmax(dim=1)).double()}
    assert_same(accelerator, X, y, "closed_form", **parameters)


def test_held_out_rows(accelerator):
    X, y = (np.concatenate([part] * 8) for part in rows())
    assert_same(accelerator, X, y, GradientTrainer(max_epochs=2, lr=1e-3), split="4")
