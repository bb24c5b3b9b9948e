"""Networks as users write them: each with the shape of one sample and its stages' names."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


class FunctionalCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 3, 3)
        self.conv2 = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.dropout(F.relu(self.conv2(x), inplace=True), training=self.training)
        return F.softmax(self.fc(torch.flatten(x, 1)), dim=1)


class ViewByBatchSize(nn.Module):
    """Sizes are read at the top and used at the end."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.fc = nn.Linear(12, 3)

    def forward(self, x):
        b = x.shape[0]
        return self.fc(self.conv(x).view(b, -1))


class ViewBySize(ViewByBatchSize):
    def forward(self, x):
        x = self.conv(x)
        return self.fc(torch.reshape(x, (x.size(0), x.size(1) * 4)))


class ViewByConstant(ViewByBatchSize):
    def forward(self, x):
        return self.fc(self.conv(x).view(-1, 12))


class Permuted(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 3)
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        x = self.mix(x.permute(0, 2, 1)).transpose(-1, 1)
        return self.fc(x.mean(dim=2).repeat(1, 2))


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, 4), nn.Tanh(), nn.Linear(4, width))

    def forward(self, x):
        return x + self.inner(x)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.act = nn.ReLU(inplace=True)
        self.act_2 = nn.Sigmoid()

    def forward(self, x):
        return self.act_2(self.act(self.second(self.act(self.first(x)))))


class Arithmetic(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return (self.fc((x - 0.5) / 0.25) * 2).exp()


class OwnParameters(nn.Module):
    """Parameters on a module that also has children."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.scale = nn.Parameter(torch.linspace(0.5, 2.0, 4))
        self.register_buffer("shift", torch.linspace(-1.0, 1.0, 4))

    def forward(self, x):
        return torch.tanh(self.fc(x)) * self.scale + self.shift


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(5, 6)
        self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 4)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        a, b = self.stem(x).chunk(2, dim=1)
        return self.head(torch.cat([self.left(a), self.right(b)], dim=1))


class Fuse(nn.Module):
    """Overwrites the list that it is given."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, branches):
        branches[0] = self.a(branches[0])
        return [branches[0] + self.b(branches[1]), branches[1]]


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.fuse, self.head = nn.Linear(3, 3), Fuse(), nn.Linear(3, 2)

    def forward(self, x):
        x = self.stem(x)
        a, b = self.fuse([x, x * 2])
        return self.head(torch.relu(a + b))


class Sized(nn.Module):
    """Takes the sizes of an image as well, whose pixels come in a row."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x, sizes):
        return x + self.fc(self.norm(x)) / len(sizes)


class PixelRows(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = Sized(width), Sized(width)

    def forward(self, x):
        x = self.norm(x.permute(0, 2, 3, 1))
        n, h, w, c = x.shape
        x = self.first(x.reshape(n, -1, c), (h, w)).reshape(n, h, w, c)
        x = self.second(x.reshape(n, h * w, c), (h, w))
        return x.reshape(n, h, w, c).permute(0, 3, 1, 2)


class InPlaceFunctions(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(self.a(x.clamp_(min=-0.5)).relu_().mul_(2.0))


class InPlaceClosed(nn.Module):
    """Overwrites its input, and torch.fx cannot follow it."""

    def forward(self, x):
        x *= 2
        return -x if x.sum() > 1e9 else x


class Last(nn.Module):
    def forward(self, outputs):
        return outputs[0][:, -1]


class TimeFirst(nn.Module):
    def forward(self, x):
        return x.transpose(0, 1)


class TimeFirstInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(9, 2)

    def forward(self, x):
        x = self.norm(self.a(x).transpose(0, 1)).transpose(0, 1)
        return self.b(x.flatten(1))


class TimeDistributed(nn.Module):
    """The batch dimension takes up another one and gives it back."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(12, 2)

    def forward(self, x):
        x = torch.relu(self.a(x))
        b, t = x.size(0), x.size(1)
        x = self.b(x.view(b * t, 4)).view(b, 12)
        return self.c(torch.sigmoid(x))


class SequentialWithForward(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + 1.0


class DependsOnData(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(x * (1.0 if x.sum() > 0 else -1.0))


class WrongTrace(nn.Module):
    """torch.fx takes the Python number for a constant."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(x) * (1.0 if type(x) is torch.Tensor else 2.0)


class WrongTraceByBatchSize(nn.Module):
    """What torch.fx records is right for as many rows as the last call had, and no others."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.rows = 0

    def forward(self, x):
        if type(x) is torch.Tensor:
            self.rows = len(x)
        return self.fc(x) + torch.zeros(self.rows, 1, dtype=torch.float64)


class RefusesOneRow(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return torch.relu(self.fc(x).squeeze()[:, :])


def shared_positions():
    shared = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    return nn.Sequential(shared, nn.Linear(4, 4), shared)


@dataclass(frozen=True)
class Case:
    make: object
    shape: tuple
    names: list
    batch_sizes: tuple = (1, 5)


CASES = {
    "layer": Case(lambda: nn.Linear(3, 2), (3,), ["network"]),
    "nested Sequential": Case(
        lambda: nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True)),
            nn.Flatten(),
            nn.Sequential(nn.Sequential(nn.Linear(8, 3))),
        ),
        (1, 4, 4),
        ["0.0", "0.1", "1", "2.0.0"],
    ),
    "functional CNN": Case(
        FunctionalCNN,
        (1, 8, 8),
        ["conv1", "relu", "max_pool2d", "conv2", "relu_1", "dropout", "flatten", "fc", "softmax"],
    ),
    "view by batch size": Case(ViewByBatchSize, (2, 4, 4), ["conv", "view", "fc"]),
    "view by size": Case(ViewBySize, (2, 4, 4), ["conv", "reshape", "fc"]),
    "view by constant": Case(ViewByConstant, (2, 4, 4), ["conv", "view", "fc"]),
    "permuted": Case(Permuted, (4, 5), ["permute", "mix", "transpose", "mean", "repeat", "fc"]),
    "residual blocks": Case(
        lambda: nn.Sequential(nn.Linear(3, 6), Residual(6), nn.ReLU(inplace=True), Residual(6)),
        (3,),
        ["0", "1", "2", "3"],
    ),
    "a layer twice": Case(Twice, (4,), ["first", "act", "second", "act_3", "act_2"]),
    "shared positions": Case(shared_positions, (4,), ["0.0", "0.1", "1", "2.0", "2.1"]),
    "arithmetic": Case(Arithmetic, (3,), ["sub", "truediv", "fc", "mul", "exp"]),
    "own parameters": Case(OwnParameters, (3,), ["fc", "tanh", "mul", "add"]),
    "branches": Case(Branches, (5,), ["stem", "cat", "head"]),
    "a list overwritten": Case(Fused, (3,), ["stem", "add", "relu", "head"]),
    "pixels in a row": Case(
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), PixelRows(4)),
        (1, 5, 4),
        [
            *("0", "1.permute", "1.norm", "1.reshape", "1.first"),
            *("1.reshape_2", "1.second", "1.reshape_3", "1.permute_1"),
        ],
    ),
    "in-place functions": Case(InPlaceFunctions, (3,), ["clamp_", "a", "relu_", "mul_", "b"]),
    "in-place, closed": Case(
        lambda: nn.Sequential(nn.Linear(3, 3), InPlaceClosed(), nn.Linear(3, 2)),
        (3,),
        ["0", "1", "2"],
    ),
    "tuple inside Sequential": Case(
        lambda: nn.Sequential(nn.LSTM(3, 4, batch_first=True), Last(), nn.Linear(4, 2)),
        (5, 3),
        ["0", "1", "2"],
    ),
    "time first in Sequential": Case(
        lambda: nn.Sequential(
            nn.Linear(3, 3), TimeFirst(), nn.LayerNorm(3), TimeFirst(), nn.Flatten()
        ),
        (8, 3),
        ["0", "3", "4"],
    ),
    "time first inside": Case(TimeFirstInside, (3, 3), ["a", "transpose_1", "flatten", "b"]),
    "time distributed": Case(TimeDistributed, (3, 3), ["a", "relu", "view_1", "sigmoid", "c"]),
    "Sequential with its own forward": Case(
        lambda: nn.Sequential(SequentialWithForward(nn.Linear(3, 3)), nn.ReLU()),
        (3,),
        ["0.0", "0.add", "1"],
    ),
    "depends on data": Case(DependsOnData, (3,), ["mul", "fc"]),
    "wrong trace": Case(WrongTrace, (3,), ["fc", "mul"]),
    "wrong trace, by batch size": Case(WrongTraceByBatchSize, (3,), ["fc", "add"]),
    "refuses one row": Case(
        lambda: nn.Sequential(nn.Linear(3, 3), RefusesOneRow()), (3,), ["network"], (2, 5)
    ),
}
