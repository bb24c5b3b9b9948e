"""One row per layer: each meets every test of ``test_every_layer.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from featprop_sklearn.networks import Exp, Permute, Rescale, Reshape


@dataclass(frozen=True)
class Case:
    """A layer under test and what design.md 3.2 promises for it."""

    layer: Callable[[], nn.Module]
    in_shape: tuple[int, ...]
    #: the wanted output is met whenever it is an output of the layer
    meets_reachable: bool = True
    #: no other input with the same residual is nearer to the reference
    nearest: bool = True
    #: tolerance on the output, relative to its size (1e-5 where the rule promises only that)
    tolerance: float = 1e-9
    #: outputs out of reach are approached in the Euclidean norm
    least_residual: bool = True
    label: str = ""

    @property
    def id(self) -> str:
        """Readable test id."""
        return self.label or type(self.layer()).__name__


def _rows(*cases: Case) -> list:
    return [pytest.param(case, id=case.id) for case in cases]


def _prelu_of_any_sign() -> nn.Module:
    layer = nn.PReLU(4)
    layer.weight.data = torch.tensor([0.3, 0.0, -0.7, 1.0])
    return layer


AFFINE = _rows(
    Case(lambda: nn.Linear(6, 4), (6,)),
    Case(lambda: nn.Linear(4, 6), (3, 4), label="Linear-expanding-rows"),
    Case(lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 7)),
    Case(lambda: nn.Conv2d(2, 3, 3, padding="same", dilation=2), (2, 5, 5)),
    Case(lambda: nn.Conv2d(2, 4, 2, groups=2, padding=1, padding_mode="reflect"), (2, 4, 4)),
    Case(lambda: nn.Conv3d(1, 2, 2), (1, 3, 3, 2)),
    Case(lambda: nn.ConvTranspose1d(3, 2, 3, stride=2, output_padding=1), (3, 4)),
    Case(lambda: nn.ConvTranspose2d(2, 1, 3, padding=1), (2, 4, 4)),
    Case(lambda: nn.ConvTranspose3d(1, 1, 2, stride=2), (1, 2, 2, 2)),
    Case(lambda: nn.BatchNorm1d(4), (4,)),
    Case(lambda: nn.BatchNorm2d(2), (2, 3, 3)),
    Case(lambda: nn.BatchNorm3d(2, affine=False), (2, 2, 2, 2)),
    Case(lambda: nn.AvgPool1d(2), (2, 6)),
    Case(lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (2, 6, 6)),
    Case(lambda: nn.AvgPool3d(2, divisor_override=3), (1, 4, 4, 2)),
    Case(lambda: nn.AdaptiveAvgPool1d(3), (2, 7)),
    Case(lambda: nn.AdaptiveAvgPool2d(1), (3, 4, 4)),
    Case(lambda: nn.AdaptiveAvgPool3d((2, None, 1)), (1, 3, 2, 2)),
    Case(lambda: nn.Upsample(scale_factor=2), (2, 3, 3), label="Upsample-nearest"),
    Case(lambda: nn.Upsample(size=7, mode="linear"), (2, 4), label="Upsample-linear"),
    Case(lambda: nn.Upsample(scale_factor=2, mode="bicubic"), (1, 4, 4), label="Upsample-bicubic"),
    Case(lambda: nn.UpsamplingBilinear2d(scale_factor=2), (2, 3, 3)),
    Case(lambda: nn.ZeroPad1d((1, -1)), (2, 4)),
    Case(lambda: nn.ZeroPad2d((1, 0, 2, 1)), (2, 3, 3)),
    Case(lambda: nn.ZeroPad3d(1), (1, 2, 1, 2)),
    Case(lambda: nn.ConstantPad1d(2, 0.7), (2, 4)),
    Case(lambda: nn.ConstantPad2d(1, -3.0), (1, 2, 3)),
    Case(lambda: nn.ConstantPad3d(1, 2.0), (1, 2, 1, 2)),
    Case(lambda: nn.ReflectionPad1d((2, 1)), (2, 4)),
    Case(lambda: nn.ReflectionPad2d(2), (1, 4, 4)),
    Case(lambda: nn.ReflectionPad3d(1), (1, 2, 3, 2)),
    Case(lambda: nn.ReplicationPad1d(2), (2, 3)),
    Case(lambda: nn.ReplicationPad2d(1), (2, 2, 3)),
    Case(lambda: nn.ReplicationPad3d(1), (1, 2, 2, 2)),
    Case(lambda: nn.CircularPad1d(2), (2, 3)),
    Case(lambda: nn.CircularPad2d((1, 1, 0, 2)), (1, 3, 3)),
    Case(lambda: nn.CircularPad3d(1), (1, 2, 2, 2)),
    Case(nn.Identity, (2, 3)),
    Case(nn.Flatten, (2, 3, 2)),
    Case(lambda: nn.Unflatten(1, (2, 3)), (6,)),
    Case(lambda: nn.PixelShuffle(2), (4, 2, 3)),
    Case(lambda: nn.PixelUnshuffle(2), (1, 4, 2)),
    Case(lambda: nn.ChannelShuffle(2), (4, 3)),
    Case(nn.Dropout, (5,)),
    Case(nn.Dropout1d, (2, 3)),
    Case(nn.Dropout2d, (2, 2, 3)),
    Case(nn.Dropout3d, (2, 1, 2, 2)),
    Case(nn.AlphaDropout, (5,)),
    Case(nn.FeatureAlphaDropout, (2, 3)),
)

ELEMENTWISE_AND_SOFTMAX = _rows(
    Case(nn.Tanh, (5,)),
    Case(nn.Sigmoid, (5,)),
    Case(nn.LogSigmoid, (5,)),
    Case(nn.Softsign, (5,)),
    Case(nn.Tanhshrink, (5,)),
    Case(Exp, (5,)),
    Case(nn.LeakyReLU, (2, 3)),
    Case(nn.PReLU, (2, 3, 2)),
    Case(_prelu_of_any_sign, (4, 2, 2), label="PReLU-per-channel"),
    Case(nn.RReLU, (5,)),
    Case(nn.ELU, (5,)),
    Case(lambda: nn.CELU(0.5), (5,)),
    Case(nn.SELU, (5,)),
    Case(lambda: nn.Softplus(beta=2.0), (5,)),
    Case(nn.ReLU, (2, 3)),
    Case(lambda: nn.ReLU(inplace=True), (5,), label="ReLU-inplace"),
    Case(nn.ReLU6, (5,)),
    Case(nn.Hardtanh, (5,)),
    Case(nn.Hardsigmoid, (5,)),
    Case(lambda: nn.Threshold(0.1, 0.0), (5,)),
    Case(nn.Hardshrink, (5,)),
    Case(nn.Softshrink, (5,)),
    Case(nn.GELU, (5,)),
    Case(lambda: nn.GELU("tanh"), (5,), label="GELU-tanh"),
    Case(nn.SiLU, (5,)),
    Case(nn.Mish, (5,)),
    Case(nn.Hardswish, (5,)),
    Case(lambda: nn.Softmax(dim=-1), (5,)),
    Case(lambda: nn.Softmin(dim=1), (4, 2)),
    Case(nn.Softmax2d, (3, 2, 2)),
    Case(lambda: nn.LogSoftmax(dim=-1), (5,), least_residual=False),
)

# Disjoint windows are exact and nearest, overlapping ones meet what can be met. The tolerance
# of the norms is 1e-5 of the weighted values; the bias may make the output itself smaller.
POOLS_AND_NORMS = _rows(
    Case(lambda: nn.MaxPool1d(2), (2, 7)),
    Case(lambda: nn.MaxPool2d(2), (2, 4, 6)),
    Case(lambda: nn.MaxPool3d(2), (1, 4, 2, 4)),
    Case(lambda: nn.MaxPool2d(2, ceil_mode=True), (1, 5, 5), label="MaxPool2d-ceil"),
    Case(lambda: nn.MaxPool2d(3, 2, 1), (2, 7, 7), nearest=False, label="MaxPool2d-overlapping"),
    Case(lambda: nn.MaxPool1d(3, 1, 1, 2), (2, 9), nearest=False, label="MaxPool1d-dilated"),
    Case(lambda: nn.AdaptiveMaxPool1d(3), (2, 9)),
    Case(lambda: nn.AdaptiveMaxPool2d((3, 2)), (2, 7, 4), nearest=False),
    Case(lambda: nn.AdaptiveMaxPool3d(2), (1, 3, 4, 5), nearest=False),
    Case(lambda: nn.LayerNorm(6), (6,), tolerance=2e-5),
    Case(lambda: nn.LayerNorm((3, 4)), (2, 3, 4), tolerance=2e-5, label="LayerNorm-2d"),
    Case(lambda: nn.RMSNorm(6), (2, 6), tolerance=2e-5),
    Case(lambda: nn.GroupNorm(2, 4), (4, 3, 2), tolerance=2e-5),
    Case(lambda: nn.InstanceNorm1d(3), (3, 6), tolerance=2e-5),
    Case(lambda: nn.InstanceNorm2d(2, affine=True), (2, 3, 3), tolerance=2e-5),
    Case(lambda: nn.InstanceNorm3d(2), (2, 3, 2, 2), tolerance=2e-5),
    Case(
        lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True),
        (3, 6),
        label="InstanceNorm1d-running",
    ),
)


class Residual(nn.Module):
    """x + part(x)."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.part(x)


class SelfAttention(nn.Module):
    """nn.MultiheadAttention of a sequence with itself, as a layer of one tensor."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Gate(nn.Module):
    """value(x) * sigmoid(gate(x)), as in gated linear units."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(width, out), nn.Linear(width, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.value(x) * self.gate(x).sigmoid()


def _composite(layer: Callable[[], nn.Module], in_shape: tuple[int, ...], label: str) -> Case:
    """Gauss-Newton meets what can be met; it does not promise the nearest preimage."""
    return Case(layer, in_shape, nearest=False, tolerance=1e-6, label=label)


COMPOSITE = _rows(
    Case(lambda: Reshape((3, 2)), (2, 3)),
    Case(lambda: Permute((0, 3, 1, 2)), (2, 3, 2)),
    Case(lambda: Rescale(torch.tensor([2.0, -0.5, 1e-3]), torch.tensor([0.1, 3.0, -2.0])), (3,)),
    _composite(
        lambda: Residual(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 5))),
        (5,),
        "residual-MLP",
    ),
    _composite(
        lambda: Residual(
            nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1))
        ),
        (2, 4, 4),
        "residual-convolutions",
    ),
    _composite(lambda: Residual(SelfAttention(2, 1)), (2, 2), "residual-attention"),
    _composite(lambda: Gate(5, 3), (5,), "gate"),
    _composite(nn.GLU, (6,), "GLU"),
)

CASES = AFFINE + ELEMENTWISE_AND_SOFTMAX + POOLS_AND_NORMS + COMPOSITE
