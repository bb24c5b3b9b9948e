"""Guided gradients: of what comes back to a ReLU, only what is positive goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["VisibleInPlace", "guided", "relu_nodes"]

#: nodes of autograd's graph that are ReLUs if this attribute, the value below which they are
#: flat, is zero: ReLU6, hardtanh, clamp and threshold
_FLAT_BELOW = {
    "HardtanhBackward0": "_saved_min_val",
    "ClampBackward1": "_saved_min",
    "ClampMinBackward0": "_saved_min",
    "ThresholdBackward0": "_saved_threshold",
    "ThresholdBackward1": "_saved_threshold",
}
#: functions and methods that are ReLUs in place
_IN_PLACE = {
    *("relu_", "relu6_", "hardtanh_", "threshold_"),
    *("clamp_", "clip_", "clamp_min_"),
}


def relu_nodes(output: Tensor) -> list[Any]:
    """List the ReLUs that a tensor was computed by, as nodes of autograd's graph.

    It does not matter whether they are modules, functions or methods, work in place, or sit
    inside another layer. ReLU6 counts, and so do hardtanh, clamp and threshold where they are
    flat below zero.

    Parameters
    ----------
    output : Tensor
        Computed while gradients were recorded, under :class:`VisibleInPlace` where it may
        have been by operations in place.

    Returns
    -------
    list of torch.autograd.graph.Node
        In no particular order.
    """
    seen, pending = set(), [output.grad_fn]
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending += [before for before, _ in node.next_functions]
    return [node for node in seen if _is_relu(node)]


@contextmanager
def guided(nodes: list[Any]) -> Iterator[None]:
    """Within the block, let ReLUs hand on only what is positive of a gradient.

    With u a ReLU's input and g the gradient at its output, g·1[u > 0]·1[g > 0] goes on.

    Parameters
    ----------
    nodes : list of torch.autograd.graph.Node
        What :func:`relu_nodes` returned.

    References
    ----------
    Springenberg et al., "Striving for Simplicity: The All Convolutional Net", ICLR workshop
    2015, arXiv:1412.6806.
    """
    handles = [node.register_prehook(_positive) for node in nodes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class VisibleInPlace(TorchFunctionMode):
    """While active, views are overwritten by a copy of what an operation in place would give.

    Of an operation in place on a view, autograd's graph does not show what it computes; of a
    copy it does. Values, gradients and aliases are the same.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a function of torch."""
        kwargs = kwargs or {}
        x = args[0] if args else None
        if isinstance(x, Tensor) and x._is_view() and _is_in_place(func, kwargs):
            # of a copy: the graph keeps what the function was given
            return x.copy_(func(x.clone(), *args[1:], **kwargs))
        return func(*args, **kwargs)


def _is_relu(node: Any) -> bool:
    name = node.name()
    if name == "ReluBackward0":
        return True
    return name in _FLAT_BELOW and getattr(node, _FLAT_BELOW[name]) == 0


def _is_in_place(func: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get("inplace")) or getattr(func, "__name__", "") in _IN_PLACE


def _positive(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(g if g is None else g.clamp(min=0) for g in gradients)
