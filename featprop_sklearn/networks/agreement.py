"""Whether parts, one after the other, compute and learn what the whole does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from featprop_sklearn.networks.tracing import has_rows

__all__ = ["agrees", "is_close", "learns_alike"]

_Function = Callable[[Tensor], Tensor]


def is_close(got: object, expected: Tensor) -> bool:
    """Return whether a tensor is another one, up to rounding at the size of its numbers."""
    if not isinstance(got, Tensor) or (got.dtype, got.shape) != (expected.dtype, expected.shape):
        return False
    if torch.equal(got, expected):
        return True
    if not (expected.is_floating_point() or expected.is_complex()):
        return False
    sizes = expected.abs()
    scale = float(sizes.where(sizes.isfinite(), 0).max())
    tolerance = _rounding(expected.dtype)
    return torch.allclose(got, expected, rtol=tolerance, atol=tolerance * scale)


def agrees(parts: _Function, whole: _Function, x: Tensor, output: Tensor) -> bool:
    """Return whether the parts give the output of the whole, for any batch size."""
    try:
        return (
            has_rows(output, len(x))
            and is_close(parts(x.clone()), output)
            and is_close(parts(x[:1].clone()), whole(x[:1].clone()))
        )
    except Exception:  # a wrong trace may fail in any way
        return False


def learns_alike(parts: Sequence[nn.Module], whole: nn.Module, x: Tensor) -> bool:
    """Return whether every parameter gets the same gradient through the parts."""
    parameters = [p for p in whole.parameters() if p.requires_grad]
    if not parameters:
        return True
    try:
        expected = _gradients(whole, parameters, x)
    except Exception:  # some networks can only be run
        return True
    found = _gradients(nn.Sequential(*parts), parameters, x)
    scale = max((float(g.abs().max()) for g in expected if g is not None), default=0.0)
    tolerance = _rounding(x.dtype) * scale
    return all(
        a is b if a is None or b is None else bool(((a - b).abs() <= tolerance).all())
        for a, b in zip(found, expected, strict=True)
    )


def _rounding(dtype: torch.dtype) -> float:
    """Return how far sums in another order may differ, relative to the largest number."""
    return float(torch.finfo(dtype).eps) ** 0.75


def _gradients(
    function: _Function, parameters: Sequence[Tensor], x: Tensor
) -> Sequence[Tensor | None]:
    with torch.enable_grad():
        output = function(x.clone())
        if not output.requires_grad:
            return [None] * len(parameters)
        # no constant weights, or a softmax would have no gradient
        weights = torch.arange(output.numel(), dtype=output.dtype, device=output.device).cos()
        merit = output.flatten() @ weights
        return torch.autograd.grad(merit, parameters, allow_unused=True)
