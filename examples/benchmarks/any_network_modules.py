"""Small networks in the ways that people write them: residual, attention, mixing, and habits."""

# ruff: noqa: D102  # what forward does is torch's convention

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

N_CLASSES = 10
WIDTH = 16

# convolutional -------------------------------------------------------------------------------


def convolution(
    n_in: int, n_out: int, size: int = 3, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Without a bias: BatchNorm comes after it."""
    return nn.Conv2d(n_in, n_out, size, stride, size // 2, groups=groups, bias=False)


class BasicBlock(nn.Module):
    """Residual block; a strided 1 × 1 convolution where shapes change, as in torchvision."""

    def __init__(self, n_in: int, n_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(n_in, n_out, 3, stride), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = convolution(n_out, n_out), nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1:
            shortcut = convolution(n_in, n_out, 1, stride)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu(out)


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(convolution(1, 8), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        BasicBlock(8, 8),
        BasicBlock(8, 16, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, N_CLASSES),
    )


class PreActivationBlock(nn.Module):
    """Normalised and activated before each convolution; the sum is left as it is."""

    def __init__(self, n_in: int, n_out: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(n_in), convolution(n_in, n_out, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(n_out), convolution(n_out, n_out)
        if stride != 1:
            self.shortcut = convolution(n_in, n_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut


class PreActivationResNet(nn.Module):
    """Blocks in a ModuleList, the rest in functions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(1, 8)
        self.blocks = nn.ModuleList([PreActivationBlock(8, 8), PreActivationBlock(8, 16, 2)])
        self.bn, self.fc = nn.BatchNorm2d(16), nn.Linear(16, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(F.relu(self.bn(x)).mean(dim=(2, 3)))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, then an MLP over the channels of each pixel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm, self.act = nn.LayerNorm(width, eps=1e-6), nn.GELU()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(0.1 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.down(self.act(self.up(y)))).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, WIDTH, 2, 2),
        ChannelNorm(WIDTH),
        ConvNeXtBlock(WIDTH),
        ChannelNorm(WIDTH),
        nn.Conv2d(WIDTH, 24, 2, 2),
        ConvNeXtBlock(24),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(24),
        nn.Linear(24, N_CLASSES),
    )


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pool, self.act, self.gate = nn.AdaptiveAvgPool2d(1), nn.ReLU(), nn.Hardsigmoid()
        self.fc1, self.fc2 = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(self.act(self.fc1(self.pool(x)))))


class InvertedResidual(nn.Module):
    """Wide in the middle, where the convolution is depthwise."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        width = 2 * n_in
        self.skip = stride == 1 and n_in == n_out
        self.block = nn.Sequential(
            convolution(n_in, width, 1),
            nn.BatchNorm2d(width),
            nn.Hardswish(inplace=True),
            convolution(width, width, 3, stride, groups=width),
            nn.BatchNorm2d(width),
            nn.Hardswish(inplace=True),
            Gate(width),
            convolution(width, n_out, 1),
            nn.BatchNorm2d(n_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.skip else self.block(x)


def mobilenet() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(convolution(1, 8), nn.BatchNorm2d(8), nn.Hardswish(inplace=True)),
        InvertedResidual(8, 16, 2),
        InvertedResidual(16, 16, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 32),
        nn.Hardswish(inplace=True),
        nn.Dropout(0.2, inplace=True),
        nn.Linear(32, N_CLASSES),
    )


# attention, mixing, recurrence ---------------------------------------------------------------


class Patches(nn.Sequential):
    """Images to one token per 2 × 2 pixels."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, WIDTH, 2, 2), nn.Flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention with two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class TransformerBlock(nn.Module):
    """Attention and an MLP, each beside a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = (
            nn.LayerNorm(WIDTH),
            nn.LayerNorm(WIDTH),
            Attention(),
        )
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Class token, learned positions, normalised before each part, as in timm."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.patches = Patches()
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, WIDTH))
        self.position = nn.Parameter(0.02 * torch.randn(1, 17, WIDTH))
        self.blocks = nn.Sequential(*(TransformerBlock() for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.patches(x)], dim=1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class MixerBlock(nn.Module):
    """An MLP over the tokens, then one over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.tokens = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.channels = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """MLP-Mixer."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Patches(), MixerBlock(), MixerBlock(), nn.LayerNorm(WIDTH))
        self.head = nn.Linear(WIDTH, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean(dim=1))


class LSTM(nn.Module):
    """Reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 24, batch_first=True)
        self.hidden, self.fc = nn.Linear(24, 24), nn.Linear(24, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.hidden(self.rnn(x)[0][:, -1])))


# habits --------------------------------------------------------------------------------------


def dropout_in_place() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 48),
        nn.ReLU(inplace=True),
        nn.Dropout(0.3),
        nn.Linear(48, 32),
        nn.ReLU(inplace=True),
        nn.Dropout(0.3),
        nn.Linear(32, N_CLASSES),
    )


class Reused(nn.Module):
    """One activation and one linear layer, each used several times."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.loop = nn.Linear(64, 32), nn.Linear(32, 32)
        self.act, self.fc = nn.ReLU(inplace=True), nn.Linear(32, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        for _ in range(3):
            x = self.act(self.loop(x))
        return self.fc(x)


class Tied(nn.Module):
    """The decoder's weight is the encoder's, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.bias = nn.Linear(64, 24), nn.Parameter(torch.zeros(64))
        self.fc = nn.Linear(64, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.encode(x))
        return self.fc(torch.relu(F.linear(x, self.encode.weight.t(), self.bias)))


class TwoInputs(nn.Module):
    """The upper and the lower half of an image come as two arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.above, self.below = nn.Linear(32, 16), nn.Linear(32, 16)
        self.mix, self.fc = nn.Linear(32, 24), nn.Linear(24, N_CLASSES)

    def forward(self, upper: Tensor, lower: Tensor) -> Tensor:
        x = torch.cat([torch.relu(self.above(upper)), torch.relu(self.below(lower))], dim=1)
        return self.fc(torch.relu(self.mix(x)))


class Headed(nn.Module):
    """Two hidden layers; what is returned of the features and the logits is ``finish``'s."""

    def __init__(self, finish: Callable[[Tensor, Tensor], Any], n_outputs: int = N_CLASSES) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 32), nn.Linear(32, 24), nn.Linear(24, n_outputs)
        self.finish = finish

    def forward(self, x: Tensor) -> Any:
        features = torch.relu(self.b(torch.relu(self.a(x))))
        return self.finish(features, self.c(features))
