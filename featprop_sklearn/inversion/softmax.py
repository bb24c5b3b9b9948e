"""Softmax and log-softmax: probabilities say the logits up to one shift per distribution."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Size, Tensor, nn

from featprop_sklearn.inversion.base import InversionOptions, Inverter
from featprop_sklearn.inversion.elementwise import by_chunks
from featprop_sklearn.inversion.monotone import INSIDE
from featprop_sklearn.least_squares import SolveResult

__all__ = ["INVERTERS", "LogSoftmax", "Softmax", "project_simplex"]

#: below it a logarithm would be that of an underflow
_TINY = 1e-300
#: the temporaries of so many entries stay in the processor's cache
_ENTRIES_AT_ONCE = 2**15


class _OverOneDim(Inverter):
    """What the two have in common: the dimension over which they normalise."""

    def __init__(self, layer: nn.Module, in_shape: Size, options: InversionOptions) -> None:
        super().__init__(layer, in_shape, options)
        dim = -3 if isinstance(layer, nn.Softmax2d) else layer.dim
        n_dims = len(in_shape) + 1
        if not isinstance(dim, int) or dim % n_dims == 0:
            raise ValueError(
                f"dim of {type(layer).__name__} must be given and not be the batch dimension 0; "
                f"got {dim} for batches of {n_dims} dimensions. Use dim=1 for the first "
                "dimension after the batch, dim=-1 for the last."
            )
        self.dim = dim

    @torch.no_grad()
    def invert(self, wanted: Tensor, reference: Tensor) -> SolveResult:
        return SolveResult(by_chunks(self._nearest, wanted, reference, _ENTRIES_AT_ONCE))

    @abstractmethod
    def _nearest(self, wanted: Tensor, reference: Tensor) -> Tensor:
        """Return the preimages of a few rows."""


class Softmax(_OverOneDim):
    """Solve min ‖x − x0‖² over argmin ‖softmax(x) − y‖².

    y is projected onto the probabilities p with p_i ≥ min(1e-6, softmax(x0)_i); then
    x = log p + c with c = mean(x0 − log p), as a shift changes no probability.
    Softmin is the same with x mirrored.
    """

    def _nearest(self, wanted: Tensor, reference: Tensor) -> Tensor:
        present = self.layer(reference)
        # 0.1 / n leaves room for n floors in a sum of 1
        floor = present.clamp(_TINY, min(INSIDE, 0.1 / wanted.shape[self.dim]))
        p = project_simplex(wanted, floor, self.dim)
        sign = -1.0 if isinstance(self.layer, nn.Softmin) else 1.0
        x = sign * _nearest_shift(p.log(), sign * reference, self.dim)
        gap, present_gap = ((output - wanted).abs() for output in (p, present))
        keep = _norm(present_gap, self.dim) <= _norm(gap, self.dim)
        return torch.where(keep, reference, x)


class LogSoftmax(_OverOneDim):
    """Solve min ‖x − x0‖² over the x whose log-probabilities differ as those of y do.

    A log-probability vector has Σ exp = 1. Wanted ones that miss it are brought there by a
    shift of all entries alike, log_softmax(y): it keeps every difference and therefore
    every margin between classes, and is the distribution nearest to exp(y) in
    Kullback-Leibler divergence. (The point nearest in the Euclidean norm changes the
    differences, and is not unique.) Then x = y + c with c = mean(x0 − y).
    """

    def _nearest(self, wanted: Tensor, reference: Tensor) -> Tensor:
        x = _nearest_shift(wanted, reference, self.dim)
        before, after = (self.layer(point) - wanted for point in (reference, x))
        # the shift is not the Euclidean projection: never be worse than the reference by it
        better = _norm(after.abs(), self.dim) < _norm(before.abs(), self.dim)
        return torch.where(better, x, reference)


def project_simplex(y: Tensor, floor: Tensor, dim: int) -> Tensor:
    """Solve min ‖p − y‖² subject to Σ p = 1, p ≥ floor, along one dimension.

    Parameters
    ----------
    y : Tensor of shape (...)
        Any finite values.
    floor : Tensor of the same shape
        Positive, with a sum below 1 along ``dim``.
    dim : int
        The dimension that holds one distribution.

    Returns
    -------
    Tensor of the same shape
        p = floor + max(y − floor − θ, 0), θ found from below by dropping the entries that
        get nothing until none is left to drop (Michelot 1986, doi:10.1007/BF00938486).
    """
    mass = 1 - floor.sum(dim, keepdim=True)
    excess = y - floor
    # a shift changes nothing, and what is a whole unit below the largest gets no mass
    excess = (excess - excess.amax(dim, keepdim=True)).clamp_(min=-2)
    # the largest, now 0, gets no more than all the mass
    theta = ((excess.sum(dim, keepdim=True) - mass) / y.shape[dim]).maximum(-mass)
    for _ in range(y.shape[dim]):
        kept = (excess > theta).to(y.dtype)
        level = ((excess * kept).sum(dim, keepdim=True) - mass) / kept.sum(dim, keepdim=True)
        if not (level > theta).any():
            break
        theta = theta.maximum(level)
    return (excess - theta).clamp_(min=0).add_(floor)


def _nearest_shift(x: Tensor, reference: Tensor, dim: int) -> Tensor:
    """Shift x as a whole to where it is nearest to the reference."""
    return x + (reference - x).mean(dim, keepdim=True)


def _norm(x: Tensor, dim: int) -> Tensor:
    """Euclidean norm that squares nothing large: huge wanted outputs do not overflow."""
    largest = x.amax(dim, keepdim=True).clamp(min=_TINY)
    return largest * (x / largest).square().sum(dim, keepdim=True).sqrt()


INVERTERS: dict[type[nn.Module], type[Inverter]] = {
    nn.Softmax: Softmax,
    nn.Softmax2d: Softmax,
    nn.Softmin: Softmax,
    nn.LogSoftmax: LogSoftmax,
}
