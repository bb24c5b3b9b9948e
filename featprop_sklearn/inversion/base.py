"""The contract of every layer inversion, and the options that it may read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Size, Tensor, nn

from featprop_sklearn.least_squares import Solver, SolveResult, check_damping, get_solver

__all__ = [
    "Bounds",
    "ClosedForm",
    "InversionOptions",
    "Inverter",
    "UnsupportedLayerError",
    "uneven",
]

Bounds = tuple[float, float]


class UnsupportedLayerError(ValueError):
    """A layer that has no inversion and of which none can be derived."""


@dataclass(frozen=True)
class InversionOptions:
    """How a layer is inverted, where there is a choice.

    Attributes
    ----------
    solver : str or Solver
        A least-squares solver or its name; read by affine layers.
    damping : "auto" or float
        λ of the damped problem; read by affine layers and composite stages.
    bounds : tuple of (low, high) or None
        Closed range that the preimages must stay in.
    """

    solver: str | Solver = "auto"
    damping: str | float = "auto"
    bounds: Bounds | None = None

    def __post_init__(self) -> None:
        """Refuse a solver or a damping that does not exist, whether it will be read or not."""
        get_solver(self.solver)
        check_damping(self.damping)


class Inverter(ABC):
    """Nearest preimages under one frozen layer, set up once and used for many batches.

    ``layer`` is a private copy in eval mode and float64, on the device of the data.

    Parameters
    ----------
    layer : nn.Module
        The layer, one tensor in and one tensor out, batch first.
    in_shape : Size
        Shape of one input, without the batch dimension.
    options : InversionOptions
        Solver, damping and range.
    """

    #: whether :meth:`invert` honours ``options.bounds``; where it does not, asking is an error
    supports_bounds: ClassVar[bool] = False
    #: how the inversion works, in a word; shown by ``describe``
    method: ClassVar[str] = "closed form"
    #: whether :meth:`invert` leaves the inverter as it is, so that one set-up may serve all
    #: layers of equal weights
    reusable: ClassVar[bool] = False
    #: whether each entry of the input has one entry of the output of its own
    elementwise: ClassVar[bool] = False

    def __init__(self, layer: nn.Module, in_shape: Size, options: InversionOptions) -> None:
        self.layer = layer
        self.in_shape = in_shape
        self.options = options

    @abstractmethod
    def invert(self, wanted: Tensor, reference: Tensor) -> SolveResult:
        """Find, per sample, the input nearest to the reference among the best ones.

        Parameters
        ----------
        wanted : Tensor of shape (n_samples, *out_shape), float64
            Wanted outputs of the layer, finite.
        reference : Tensor of shape (n_samples, *in_shape), float64
            Inputs to stay near to, finite.

        Returns
        -------
        SolveResult
            ``solution`` has the shape of ``reference``.
        """


class ClosedForm(Inverter):
    """An inverter made of one function of ``(layer, wanted, reference)``."""

    def __init__(
        self,
        layer: nn.Module,
        in_shape: Size,
        options: InversionOptions,
        function: Callable[[nn.Module, Tensor, Tensor], Tensor],
    ) -> None:
        super().__init__(layer, in_shape, options)
        self.function = function

    def invert(self, wanted: Tensor, reference: Tensor) -> SolveResult:  # noqa: D102
        return SolveResult(self.function(self.layer, wanted, reference))


def uneven(n_samples: int, shape: Size, device: torch.device) -> Tensor:
    """Make samples to try a layer on: nowhere constant, which normalisations turn to rounding."""
    steps = torch.arange(n_samples * prod(shape), dtype=torch.float64, device=device)
    return steps.cos().reshape(n_samples, *shape)
