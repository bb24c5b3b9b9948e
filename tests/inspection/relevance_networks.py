"""Networks of the kinds that relevance passes through, and that nothing happens to them."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from featprop_sklearn.inspection.relevance import convolution
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


class Bottleneck(nn.Module):
    """The block of MobileNet-V2; ReLU6 in three of its forms."""

    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(n_in, 2 * n_in, 1), nn.ReLU6(inplace=True))
        self.each = nn.Conv2d(2 * n_in, 2 * n_in, 3, stride, 1, groups=2 * n_in)
        self.narrow, self.norm = nn.Conv2d(2 * n_in, n_out, 1), nn.BatchNorm2d(n_out)

    def forward(self, x):
        y = self.norm(self.narrow(self.each(self.wide(x)).clamp(0, 6)))
        return x + y if x.shape == y.shape else y


def mobile():
    return nn.Sequential(
        *(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Hardtanh(0, 6)),
        *(Bottleneck(8, 8, 1), Bottleneck(8, 12, 2), nn.Conv2d(12, 16, 1), nn.ReLU6(), head(16)),
    )


def totals(relevance):
    return relevance.flatten(1).sum(1)


@contextmanager
def lost_relevance():
    """Note what lies on windows of hidden convolutions without any activation: they lose it."""
    lost = []

    def through(windows, relevance, x):
        patches = windows.patches(windows.pad(x.clamp_min(0)))
        signed = relevance.reshape(len(x), windows.groups, -1, patches.shape[-1])
        lost.append((signed * (patches.amax(dim=2, keepdim=True) == 0)).sum().item())
        return carry(windows, relevance, x)

    carry = convolution.through_hidden_convolution
    convolution.through_hidden_convolution = through
    try:
        yield lost
    finally:
        convolution.through_hidden_convolution = carry


@contextmanager
def left_alone(network):
    """Check that a network is afterwards as it was before, also if there is an error."""
    before = state(network)
    try:
        yield
    finally:
        after = state(network)
        old, new = before.pop("tensors"), after.pop("tensors")
        assert all(one is other for one, other in zip(old, new, strict=True))
        old, new = before.pop("values"), after.pop("values")
        assert all(torch.equal(one, other) for one, other in zip(old, new, strict=True))
        assert before == after


def state(network):
    tensors = [*network.state_dict(keep_vars=True).values()]
    gradients = [one.grad for one in tensors if one.grad is not None]
    return {
        "tensors": tensors + gradients,
        "values": [one.detach().clone() for one in tensors + gradients],
        "mode": [part.training for part in network.modules()],
        "hooks": [
            (*part._forward_hooks, *part._forward_pre_hooks, *part._backward_hooks)
            for part in network.modules()
        ],
        "attributes": [sorted(vars(part)) for part in network.modules()],
        "frozen": [parameter.requires_grad for parameter in network.parameters()],
    }


IMAGE = (1, 8, 8)
NETWORKS = [
    pytest.param(vgg, IMAGE, None, id="VGG"),
    pytest.param(ResNet, IMAGE, None, id="ResNet"),
    pytest.param(ResNet, IMAGE, "layer1", id="ResNet from an earlier layer"),
    pytest.param(PreActResNet, IMAGE, None, id="PreActResNet"),
    pytest.param(Dense, IMAGE, None, id="concatenation"),
    pytest.param(Inception, IMAGE, "mixed", id="branches"),
    pytest.param(series, (2, 12), None, id="1-D"),
    pytest.param(mobile, IMAGE, None, id="MobileNet"),
    pytest.param(volumes, (1, 4, 6, 6), None, id="3-D"),
]
