"""Networks of the kinds that relevance passes through."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.networks.zoo import PreActResNet, ResNet

N_CLASSES = 10


def head(width):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, N_CLASSES))


def settled(network):
    """Give the BatchNorms statistics, so that they are not the identity."""
    for part in network.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(part.running_mean, -0.2, 0.2)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
            nn.init.uniform_(part.weight, 0.5, 1.5)
    return network.eval()


def vgg():
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
        *(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout()),
        *(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(32, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, N_CLASSES)),
    )


class Dense(nn.Module):
    """Concatenated features, channels shuffled, functions in place of layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4)
        self.grow = nn.ModuleList([nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(8, 4, 3, 1, 1)])
        self.grouped, self.fc = nn.Conv2d(12, 12, 3, 1, 1, groups=3), nn.Linear(12, N_CLASSES)

    def forward(self, x):
        x = self.norm(self.stem((x - 0.1) / 0.3))
        for conv in self.grow:
            x = torch.cat([x, torch.relu_(conv(x))], dim=1)
        n, c, h, w = x.shape
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = F.relu(self.grouped(x))
        return {"logits": self.fc(x.mean([2, 3])), "features": x}


class Inception(nn.Module):
    """Ends in branches that are concatenated."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect")
        self.mixed, self.head = Branches(), head(8)

    def forward(self, x):
        if x.shape[1] != 1:  # what torch.fx cannot follow
            raise ValueError("grey images only")
        return self.head(self.mixed(F.relu(self.stem(x))))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.three = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        return torch.cat([F.relu(self.one(pooled)), F.relu(self.three(x))], 1)


def series():
    return nn.Sequential(
        *(nn.Conv1d(2, 6, 5, padding="same"), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2)),
        *(nn.Conv1d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1)),
        *(nn.Flatten(), nn.Linear(8, N_CLASSES), nn.LogSoftmax(dim=1)),
    )


def volumes():
    return nn.Sequential(
        *(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool3d(2), nn.Conv3d(4, 6, 2)),
        *(nn.ReLU(), nn.AdaptiveMaxPool3d(1), nn.Flatten(), nn.Linear(6, N_CLASSES)),
    )


IMAGE = (1, 8, 8)
NETWORKS = [
    pytest.param(vgg, IMAGE, None, id="VGG"),
    pytest.param(ResNet, IMAGE, None, id="ResNet"),
    pytest.param(ResNet, IMAGE, "layer1", id="ResNet from an earlier layer"),
    pytest.param(PreActResNet, IMAGE, None, id="PreActResNet"),
    pytest.param(Dense, IMAGE, None, id="concatenation"),
    pytest.param(Inception, IMAGE, "mixed", id="branches"),
    pytest.param(series, (2, 12), None, id="1-D"),
    pytest.param(volumes, (1, 4, 6, 6), None, id="3-D"),
]
