"""Parts of a network that take their input in one piece alone."""

import numpy as np
import pytest
import torch
from torch import nn

from featprop_sklearn import FeatureBackpropClassifier
from featprop_sklearn.inspection import split_points


class Flat(nn.Module):
    def forward(self, x):
        return x.view(len(x), -1)


class Contiguous(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 6)
        self.head = nn.Sequential(nn.GELU(), Flat(), nn.Linear(48, 3))

    def forward(self, x):
        return self.head(self.embed(x).transpose(1, 2).contiguous())


class Copied(Contiguous):
    def forward(self, x):
        x = self.embed(x).transpose(1, 2)
        return self.head(torch.clone(x, memory_format=torch.contiguous_format))


@pytest.mark.parametrize("network", [Contiguous, Copied])
def test_they_can_be_fitted(network):
    torch.manual_seed(0)
    X = np.random.default_rng(0).normal(size=(60, 8, 8)).astype(np.float32)
    y = np.arange(60) % 3
    net = network()
    splits = split_points(net, X)
    classifier = FeatureBackpropClassifier(net, split=splits[0], random_state=0).fit(X, y)
    assert classifier.report_["reached"] == 1
    assert FeatureBackpropClassifier(net, random_state=0).fit(X, y).score(X, y) > 0.8
