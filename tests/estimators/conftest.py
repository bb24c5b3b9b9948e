"""Real data and a network pretrained on it, made once."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from skorch import NeuralNetClassifier
from torch import nn


def make_cnn():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 24),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(24, 10),
    )


@pytest.fixture(scope="session")
def digits():
    """Train images, test images, train labels, test labels; the first 400 are for pretraining."""
    data = load_digits()
    images = data.images[:, None].astype(np.float32) / 16
    return train_test_split(images, data.target, test_size=0.4, random_state=0)


@pytest.fixture(scope="session")
def skorch_net(digits):
    X, _, y, _ = digits
    torch.manual_seed(0)
    return NeuralNetClassifier(
        make_cnn(),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=3e-3,
        max_epochs=12,
        train_split=None,
        verbose=0,
    ).fit(X[:400], y[:400])


@pytest.fixture(scope="session")
def cnn(skorch_net):
    """The pretrained network, left in training mode as users leave it."""
    return skorch_net.module_.train()


@pytest.fixture
def mlp():
    """A small untrained network for tables of 4 features and 3 classes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
