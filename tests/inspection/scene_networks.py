"""Small networks that learn which digits are in a scene, and how they do."""

import torch
from torch import nn
from torch.nn import functional as F

from featprop_sklearn.inspection import make_digit_scenes
from tests.networks.zoo import BasicBlock


def cnn():
    return nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)),
    )


def resnet():
    return nn.Sequential(
        *(nn.Conv2d(1, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU()),
        *(BasicBlock(12, 24, 2), BasicBlock(24, 48)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)),
    )


def trained(network, steps):
    """Train on scenes of the first 1000 digits: the logits say which ones are there."""
    scenes = make_digit_scenes(2000, subset="train", random_state=0)
    x, labels = torch.tensor(scenes.images), torch.tensor(scenes.labels)
    present = torch.zeros(len(x), 10).scatter(1, labels, 1.0)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (32,))
        loss = F.binary_cross_entropy_with_logits(network(x[rows]), present[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()
