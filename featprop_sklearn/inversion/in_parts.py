"""BatchNorm layers to which a subclass adds activations: inverted part by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter

import torch
from torch import Size, Tensor, fx, nn
from torch.nn import functional as F

from featprop_sklearn.data import module_device
from featprop_sklearn.inversion.affine import AffineInverter, RearrangementInverter
from featprop_sklearn.inversion.base import InversionOptions, Inverter, uneven
from featprop_sklearn.least_squares import DiagonalMap, SolveResult
from featprop_sklearn.networks.agreement import agrees
from featprop_sklearn.networks.tracing import CannotOpenError, trace_segments

__all__ = ["InParts", "keeps_entries_apart", "parts_of"]

_BATCH_NORMS = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


class InParts(Inverter):
    """Solve min ‖x − x0‖² over argmin ‖f(x) − y‖² for an f of several parts, last to first.

    Each part is inverted for what the part after it wants, near its own present input. That
    is the nearest preimage where all parts keep the entries apart.

    Parameters
    ----------
    layer, in_shape, options
        See :class:`~featprop_sklearn.inversion.base.Inverter`.
    parts : sequence of Inverter
        Of what the layer computes, first to last.
    """

    def __init__(
        self,
        layer: nn.Module,
        in_shape: Size,
        options: InversionOptions,
        parts: Sequence[Inverter],
    ) -> None:
        super().__init__(layer, in_shape, options)
        self.parts = parts

    @torch.no_grad()
    def invert(self, wanted: Tensor, reference: Tensor) -> SolveResult:  # noqa: D102
        references = [reference]
        for part in self.parts[:-1]:
            references.append(part.layer(references[-1]))
        results = []
        for part, present in zip(reversed(self.parts), reversed(references), strict=True):
            results.append(part.invert(wanted, present))
            wanted = results[-1].solution
        worst = max(results, key=lambda result: (not result.converged, result.residual))
        return replace(worst, solution=wanted)


def keeps_entries_apart(part: Inverter) -> bool:
    """Return whether each entry of the output comes from one entry of the input."""
    diagonal = isinstance(part, AffineInverter) and isinstance(part.linear_map, DiagonalMap)
    return part.elementwise or diagonal or isinstance(part, RearrangementInverter)


def parts_of(layer: nn.Module, in_shape: Size) -> list[tuple[nn.Module, Size]]:
    """Read what a layer computes as layers one after the other, each with its input's shape.

    Parameters
    ----------
    layer : nn.Module
        Private, in eval mode and float64.
    in_shape : Size
        Shape of one input.

    Returns
    -------
    list of (nn.Module, Size)
        Empty where the layer does not fall into parts.
    """
    x = uneven(2, in_shape, module_device(layer))
    try:
        segments = trace_segments(layer, x)
    except CannotOpenError:
        return []
    inputs = [x, *(segment.output for segment in segments[:-1])]
    parts = [_named(segment.module, y) for segment, y in zip(segments, inputs, strict=True)]
    if not agrees(nn.Sequential(*parts), layer, x, layer(x.clone())):
        return []
    return [(part, y.shape[1:]) for part, y in zip(parts, inputs, strict=True)]


def _named(part: nn.Module, x: Tensor) -> nn.Module:
    """Return the BatchNorm layer that a call of ``F.batch_norm`` is, or the part itself."""
    if not isinstance(part, fx.GraphModule):
        return part
    call = next(node for node in part.graph.nodes if node.op == "output").args[0]
    if call.target is not F.batch_norm:
        return part
    given = call.normalized_arguments(part, normalize_to_only_use_kwargs=True).kwargs
    if given["training"]:
        return part
    tensors = {
        name: attrgetter(str(value.target))(part)
        for name, value in given.items()
        if isinstance(value, fx.Node) and value.op == "get_attr"
    }
    layer = _BATCH_NORMS.get(x.ndim, nn.BatchNorm1d)(x.shape[1], given["eps"]).to(x).eval()
    layer.load_state_dict(tensors, strict=False)  # without weights it has ones and zeros
    return layer
