"""Relevance back from a border that a layer of its own has put around its input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Size, Tensor

from featprop_sklearn.inspection.relevance.registry import Call, Rule

__all__ = ["RULES", "padded"]


def padded(call: Call, relevance: Tensor, x: Tensor) -> Tensor:
    """Hand what lies on a border to the entries that it repeats, or, of constants, to the nearest.

    Parameters
    ----------
    call : Call
        Of ``F.pad``.
    relevance : Tensor
        Of the padded input.
    x : Tensor of shape (n_samples, channels, ...)
        The input.

    Returns
    -------
    Tensor of the shape of ``x``
        Of the same sum.
    """
    args, kwargs = call.arguments(x)
    before, mode = _options(*args, **kwargs)
    if mode == "constant":
        return _to_nearest(relevance, before, x.shape)
    with torch.enable_grad():
        start = x.detach().requires_grad_()
        (found,) = torch.autograd.grad(call(start), start, relevance)
    return found


def _options(
    input: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> tuple[list[int], str]:
    """Return how much was put before each axis, and the mode, from the arguments of ``F.pad``."""
    padded_axes = list(pad[::2])[::-1]  # it takes the last axis first
    return [0] * (input.ndim - len(padded_axes)) + padded_axes, mode


def _to_nearest(relevance: Tensor, before: list[int], shape: Size) -> Tensor:
    for axis, (n_before, size) in enumerate(zip(before, shape, strict=True)):
        place = torch.arange(relevance.shape[axis], device=relevance.device) - n_before
        kept = list(relevance.shape)
        kept[axis] = size
        found = relevance.new_zeros(kept)
        relevance = found.index_add(axis, place.clamp(0, size - 1), relevance)
    return relevance


RULES: dict[str, Rule] = {"pad": padded}
