"""Scenes of two handwritten digits: relevance lies on the one, and against the other."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from featprop_sklearn.inspection.relevance import RelativeSectionalPropagation
from tests.networks.zoo import BasicBlock

IMAGES, LABELS = load_digits(return_X_y=True)
IMAGES = torch.tensor(IMAGES, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
LABELS = torch.tensor(LABELS)
TRAIN, TEST = slice(0, 1400), slice(1400, None)


def scenes(part, count, generator):
    """Pairs of different digits side by side, twice as large."""
    images, labels = IMAGES[part], LABELS[part]
    pairs = torch.randint(len(images), (count, 2), generator=generator)
    pairs = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]]
    both = torch.cat([images[pairs[:, 0]], images[pairs[:, 1]]], dim=3)
    return F.interpolate(both, scale_factor=2, mode="bilinear"), labels[pairs]


def cnn():
    return nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU()),
        *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(48, 10)),
    )


def resnet():
    return nn.Sequential(
        *(nn.Conv2d(1, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU()),
        *(BasicBlock(12, 24, 2), BasicBlock(24, 48)),
        *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(48, 10)),
    )


def trained(network, steps):
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(steps):
        x, pair = scenes(TRAIN, 32, generator)
        present = torch.zeros(len(x), 10).scatter(1, pair, 1.0)
        loss = F.binary_cross_entropy_with_logits(network(x), present)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def peaks_on_the_left(maps):
    return float((maps.flatten(1).argmax(1) % 32 < 16).double().mean())


@pytest.mark.parametrize(("build", "steps"), [(cnn, 250), (resnet, 250)])
def test_target_and_hostile_digit(build, steps):
    torch.manual_seed(0)
    network = trained(build(), steps)
    x, pairs = scenes(TEST, 60, torch.Generator().manual_seed(1))
    top = network(x).topk(2).indices.sort(1).values
    known = (top == pairs.sort(1).values).all(1)
    assert known.float().mean() > 0.6  # chance is 1 in 45
    x, (left, right) = x[known], pairs[known].T
    rsp = RelativeSectionalPropagation(network)
    found = rsp.attribute(x, left, right[:, None])[:, 0]
    net = (found * (x[:, 0] > 0.2)).sum(1)  # of the strokes in each column
    assert (net[:, :16].sum(1) > 0).double().mean() > 0.95
    assert (net[:, 16:].sum(1) < 0).double().mean() > 0.95
    assert peaks_on_the_left(found) > 0.95
    assert peaks_on_the_left(rsp.attribute(x, right, left[:, None])[:, 0]) < 0.05
    # it is what the network has learnt that decides: without its last layer it cannot know
    network[-1].reset_parameters()
    assert 0.2 < peaks_on_the_left(rsp.attribute(x, left, right[:, None])[:, 0]) < 0.8
