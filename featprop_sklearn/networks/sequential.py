"""``nn.Sequential`` as a list of segments between its single-tensor points."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import Tensor, nn

from featprop_sklearn.networks.layers import is_layer
from featprop_sklearn.networks.tracing import CannotOpenError, Segment, has_rows

if TYPE_CHECKING:
    from featprop_sklearn.networks.watched import Part

__all__ = ["open_sequential", "sequential_segments"]


def sequential_segments(module: nn.Module, x: Tensor, part: Part | None = None) -> list[Segment]:
    """Cut an ``nn.Sequential`` between its children.

    Those that pass on a tuple, or time first, go with the next ones.

    Parameters
    ----------
    module : nn.Sequential
        In eval mode.
    x : Tensor
        Example input, at least two rows.
    part : Part or None
        What the module was in a run that was watched: children are not run again.

    Returns
    -------
    list of Segment
        At least one.

    Raises
    ------
    CannotOpenError
        If a child refuses a single row, or what the last one returns is not one row a sample.
    """
    segments: list[Segment] = []
    group: OrderedDict[str, nn.Module] = OrderedDict()
    value, first = x.clone(), x[:1].clone()
    for name, child in module._modules.items():
        assert child is not None  # torch could not have run it
        try:
            if part is None:
                value, first = child(value), child(first)
            else:
                value = part.watched.several(child, (value,))
                first = part.watched.alone(child, (first,))
        except Exception as error:  # whatever it raises, it refuses one row alone
            raise CannotOpenError(f"its part {name!r} refuses a single row") from error
        group[name] = child
        if has_rows(value, len(x)) and has_rows(first, 1):
            alone = len(group) == 1
            stage = child if alone else nn.Sequential(group)
            segments.append(Segment(name, stage, value.clone(), child=name if alone else None))
            group = OrderedDict()
    if not segments or group:
        raise CannotOpenError("its last part does not give one tensor with one row a sample")
    return segments


def open_sequential(module: nn.Module, path: str = "") -> list[tuple[str, nn.Module]]:
    """List names and layers of nested ``nn.Sequential``, for which no data is needed.

    Raises
    ------
    ValueError
        If a module on the way is neither a layer nor an ``nn.Sequential``.
    """
    if is_layer(module):
        return [(path or "network", module)]
    if type(module).forward is not nn.Sequential.forward:
        raise ValueError(
            f"{path or 'module'} ({type(module).__name__}) is neither a torch layer nor an "
            "nn.Sequential: its forward can be read only while it runs. "
            "Pass a few rows of data as X=, or register its inversion with register_inverter."
        )
    return [
        item
        for name, child in module._modules.items()
        if child is not None
        for item in open_sequential(child, f"{path}.{name}" if path else name)
    ]
