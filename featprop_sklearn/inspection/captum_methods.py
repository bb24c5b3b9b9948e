"""Gradient-based, class-activation and occlusion methods, as captum computes them.

Each takes a model that returns logits, inputs and target classes, and returns values for the
inputs, with what its completeness axiom leaves over where it has one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featprop_sklearn.inspection.arguments import check_integer, check_number, is_integer
from featprop_sklearn.inspection.explained import ROWS, Explained
from featprop_sklearn.inspection.outside_layers import calls_outside_layers
from featprop_sklearn.inspection.relevance.seed_point import SeedPoint, find_seed_point
from featprop_sklearn.least_squares.rows import per_row

__all__ = [
    "grad_cam",
    "gradient",
    "guided_backprop",
    "guided_grad_cam",
    "integrated_gradients",
    "lrp",
    "occlusion",
]

_UPSAMPLING = {1: "linear", 2: "bilinear", 3: "trilinear"}
#: linear in their input, or piecewise, which is all that captum's epsilon rule takes
_LINEAR = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Flatten, nn.Unflatten, nn.Identity),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
#: handed through by captum's LRP, by exact type
_PASSED = (nn.ReLU, nn.Dropout, nn.Tanh)
#: functions that hand relevance on without a rule, because their gradient does
_HANDED_ON = {
    *("reshape", "view", "flatten", "squeeze", "unsqueeze", "permute", "transpose", "contiguous"),
    *("__get__", "__getitem__", "clone", "cat", "relu", "dropout"),
}


def gradient(model: Explained, x: Tensor, target: Tensor) -> Tensor:
    """Differentiate the target's logit."""
    return _captum().Saliency(model).attribute(_leaf(x), target, abs=False)


def guided_backprop(model: Explained, x: Tensor, target: Tensor) -> Tensor:
    """Guided backpropagation: of the gradient at each ReLU only what is positive goes on."""
    _check_relus(model, x)
    with _quiet():
        return _captum().GuidedBackprop(model).attribute(_leaf(x), target)


def grad_cam(model: Explained, x: Tensor, target: Tensor, *, layer: str | None = None) -> Tensor:
    """Grad-CAM: max(0, Σ_k α_k A_k), upsampled linearly; α_k the mean gradient of channel k."""
    captum, tapped = _captum(), _Tapped(model, x, layer)
    cam = captum.LayerGradCam(tapped, tapped.tap)
    found = cam.attribute(_leaf(x), target, relu_attributions=True)
    size, mode = tuple(x.shape[2:]), _UPSAMPLING[x.ndim - 2]
    return captum.LayerAttribution.interpolate(found.detach(), size, mode)


def guided_grad_cam(
    model: Explained, x: Tensor, target: Tensor, *, layer: str | None = None
) -> Tensor:
    """Guided backpropagation times Grad-CAM."""
    _check_relus(model, x)
    tapped = _Tapped(model, x, layer)
    with _quiet():
        method = _captum().GuidedGradCam(tapped, tapped.tap)
        return method.attribute(_leaf(x), target, interpolate_mode=_UPSAMPLING[x.ndim - 2])


def integrated_gradients(
    model: Explained, x: Tensor, target: Tensor, *, baseline: float = 0.0, n_steps: int = 50
) -> tuple[Tensor, Tensor]:
    """Integrated gradients from an input of ``baseline``; the residual is Σ − (y(x) − y(base))."""
    check_integer("n_steps", n_steps)
    check_number("baseline", baseline)
    return (
        _captum()
        .IntegratedGradients(model)
        .attribute(
            _leaf(x),
            torch.full_like(x, baseline),
            target,
            n_steps=n_steps,
            internal_batch_size=len(x),
            return_convergence_delta=True,
        )
    )


def occlusion(
    model: Explained,
    x: Tensor,
    target: Tensor,
    *,
    window: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    baseline: float = 0.0,
) -> Tensor:
    """Mean fall of the logit over the windows that cover a pixel, all channels at once.

    Windows have a quarter of each side, and move by half of that, unless given; the last ones
    are cut off at the border.
    """
    check_number("baseline", baseline)
    axes = x.shape[2:] or x.shape[1:]
    sides = _sizes("window", window, [max(1, n // 4) for n in axes], axes)
    steps = _sizes("stride", stride, [max(1, n // 2) for n in sides], sides)
    channels = x.shape[1:2] if x.ndim > 2 else ()
    with torch.no_grad():
        found = (
            _captum()
            .Occlusion(model)
            .attribute(
                x,
                sliding_window_shapes=(*channels, *sides),
                strides=(*(1 for _ in channels), *steps),
                baselines=float(baseline),
                target=target,
            )
        )
    return found[:, :1] if channels else found


def lrp(model: Explained, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Layer-wise relevance propagation by the epsilon rule; the residual is y − Σ."""
    captum = _captum()
    if model.two_sided:  # captum would lose the sign of −z, which no layer computes
        found, residual = lrp(model.positive(x), x, torch.zeros_like(target))
        side = 2 * target - 1
        return per_row(side, found) * found, side * residual
    _check_lrp_layers(model, x)
    return captum.LRP(model).attribute(_leaf(x), target, return_convergence_delta=True)


class _Tapped(nn.Module):
    """A model with a module whose output is the feature map that class activation looks at."""

    def __init__(self, model: Explained, x: Tensor, layer: str | None) -> None:
        super().__init__()
        if x.ndim - 2 not in _UPSAMPLING:
            raise ValueError(
                "Class-activation maps need inputs of shape (n_samples, channels, positions...) "
                f"with 1 to 3 axes of positions; X has shape {tuple(x.shape)}. Use "
                "method='integrated_gradients' or 'gradient'."
            )
        self.model, self.tap = model, nn.Identity()
        self._point: SeedPoint
        self._point, _ = find_seed_point(model, model.original, layer, x[:ROWS])

    def forward(self, x: Tensor) -> Tensor:
        with self._point.replaced(self.tap):
            return self.model(x)


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError as error:
        raise ImportError(
            "This attribution method is captum's, which is not installed. Run pip install "
            "'featprop_sklearn[attribution]', or use method='rsp'."
        ) from error
    return captum.attr


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def _quiet() -> warnings.catch_warnings:
    """Say nothing of hooks: they are set on a copy."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def _sizes(
    name: str, given: int | Sequence[int] | None, default: list[int], most: Sequence[int]
) -> tuple[int, ...]:
    if given is None:
        return tuple(default)
    sizes = tuple(given) if isinstance(given, Iterable) else (given,) * len(most)
    if len(sizes) != len(most) or not all(
        is_integer(n) and 1 <= n <= m for n, m in zip(sizes, most, strict=True)
    ):
        raise ValueError(
            f"{name} must be an integer, or one for each axis, between 1 and {tuple(most)}; "
            f"got {given!r}."
        )
    return tuple(int(n) for n in sizes)


def _check_relus(model: Explained, x: Tensor) -> None:
    """Refuse what captum would leave as it is without a word."""
    found = calls_outside_layers(model, model.original, x[:ROWS]).functions.get("relu")
    if found is not None:
        raise ValueError(
            f"Module {found!r} calls relu as a function; captum's guided backpropagation changes "
            "the gradient of nn.ReLU modules only. Make it an nn.ReLU."
        )
    if not any(isinstance(part, nn.ReLU) for part in model.modules()):
        raise ValueError(
            "Captum's guided backpropagation changes the gradient of nn.ReLU modules only, and "
            "this network has none: other activations, ReLU6 among them, stay as they are. "
            "Use method='gradient'."
        )


def _check_lrp_layers(model: Explained, x: Tensor) -> None:
    """Refuse what captum would propagate wrongly; give linear layers its epsilon rule."""
    from captum.attr._utils.custom_modules import Addition_Module
    from captum.attr._utils.lrp_rules import EpsilonRule

    for path, part in model.original.named_modules():
        if hasattr(part, "rule") or type(part) in _PASSED or list(part.children()):
            continue
        if not isinstance(part, (*_LINEAR, Addition_Module)):
            raise ValueError(
                f"captum's LRP has no rule for module {path!r}, {type(part).__name__}. Give the "
                "module a captum rule as its attribute `rule`, or use another method."
            )
        part.rule = EpsilonRule()
    calls = calls_outside_layers(model, model.original, x[:ROWS])
    wrong = next((name for name in calls.functions if name not in _HANDED_ON), None)
    if wrong is not None:
        raise ValueError(
            f"Module {calls.functions[wrong]!r} calls {wrong} outside of a layer, and captum's LRP "
            "reads layers only: relevance would not be kept. Use layers (such as captum's "
            "Addition_Module for a sum), or another method."
        )
    repeated = next((path for path, runs in calls.runs.items() if runs > 1), None)
    if repeated is not None:
        raise ValueError(
            f"Module {repeated!r} runs {calls.runs[repeated]} times, and captum's LRP takes one "
            "run a module. Use one module for each place, or another method."
        )
