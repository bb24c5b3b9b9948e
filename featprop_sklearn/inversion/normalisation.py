"""Nearest preimages under layer, group, instance and root-mean-square normalisation."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Size, Tensor, nn

from featprop_sklearn.inversion.base import InversionOptions, Inverter
from featprop_sklearn.inversion.normalised_values import is_zero, nearest_group, reachable_values
from featprop_sklearn.least_squares import SolveResult

__all__ = ["INVERTERS", "NormalisationInverter"]

#: how far from the best reachable output a preimage may stay for the sake of nearness
_OUTPUT_TOLERANCE = 1e-5
#: singular values below this, times the size, times the largest, count as zero
_RANK_TOLERANCE = torch.finfo(torch.float64).eps


class NormalisationInverter(Inverter):
    """Nearest input whose normalised, weighted and shifted values are the wanted ones.

    Solves, group by group of the values that are normalised together::

        minimise ||x - x0||^2   over the minimisers of   ||f(x) - y||^2

    in two steps, both exact: y is projected onto the outputs that exist (mean 0 and mean
    square below 1 before weights and bias), then the nearest input with that output is
    found (mean and scale are lost by the layer, hence free). An output of mean square 1
    is only reached as the scale grows without end, therefore the output may deviate by
    1e-5 of the weighted values w·v. Outputs of zero weight are always the bias.

    The reference itself is returned, group by group, where its output is no farther from
    the wanted one.

    Parameters
    ----------
    layer, in_shape, options
        See :class:`~featprop_sklearn.inversion.base.Inverter`.

    Raises
    ------
    ValueError
        If the layer's ``eps`` is not positive: outputs are then all of one length, and a
        constant input has none.
    """

    layer: Any
    #: whether the layer subtracts the mean
    centred: ClassVar[bool] = True

    def __init__(self, layer: nn.Module, in_shape: Size, options: InversionOptions) -> None:
        super().__init__(layer, in_shape, options)
        self.eps = self._eps()
        if not self.eps > 0:
            raise ValueError(
                f"eps of {type(layer).__name__} must be > 0 for the layer to be inverted; got "
                f"{self.eps!r}. Build the layer with a small positive eps, such as 1e-5."
            )
        self.weight = self._per_group(getattr(layer, "weight", None), 1.0)
        self.bias = self._per_group(getattr(layer, "bias", None), 0.0)

    def invert(self, wanted: Tensor, reference: Tensor) -> SolveResult:  # noqa: D102
        weight, bias = self.weight.to(reference), self.bias.to(reference)
        y, x0 = self._groups(wanted), self._groups(reference)
        values = reachable_values(y - bias, weight, self.centred)
        x = nearest_group(values, is_zero(weight), x0, self.eps, self.centred, _OUTPUT_TOLERANCE)
        x = torch.where(self._is_closer(x, x0, y, reference.shape), x, x0)
        return SolveResult(x.reshape(reference.shape))

    def _is_closer(self, x: Tensor, other: Tensor, y: Tensor, shape: Size) -> Tensor:
        """Whether f(x) is nearer to y, per group, without cancelling two squares."""
        here = self._groups(self.layer(x.reshape(shape)))
        there = self._groups(self.layer(other.reshape(shape)))
        return ((here - there) * (here + there - 2 * y)).sum(-1, keepdim=True) < 0

    def _groups(self, batch: Tensor) -> Tensor:
        """View a batch as (n_samples, n_groups, size)."""
        return batch.reshape(len(batch), *self.weight.shape)

    def _per_group(self, parameter: Tensor | None, default: float) -> Tensor:
        """One entry of weight or bias per entry of the input, (n_groups, size)."""
        if parameter is None:
            parameter = torch.tensor(default, dtype=torch.float64)
        return self._per_entry(parameter).expand(self.in_shape).reshape(self._n_groups(), -1)

    def _per_entry(self, parameter: Tensor) -> Tensor:
        """Shape a parameter so that it broadcasts over one input."""
        return parameter

    def _n_groups(self) -> int:
        return self.in_shape[: -len(self.layer.normalized_shape)].numel()

    def _eps(self) -> float:
        return self.layer.eps


class RMSNormInverter(NormalisationInverter):
    """The same without a mean: values of mean square below 1 are the outputs that exist."""

    centred = False

    def _eps(self) -> float:
        # torch's default is the machine precision of the input, here always float64
        eps = self.layer.eps
        return torch.finfo(torch.float64).eps if eps is None else eps


class GroupNormInverter(NormalisationInverter):
    """The same for groups of channels, with one weight and one bias a channel."""

    def _per_entry(self, parameter: Tensor) -> Tensor:
        if parameter.dim() == 0:
            return parameter
        return parameter.reshape(-1, *[1] * (len(self.in_shape) - 1))

    def _n_groups(self) -> int:
        return self.layer.num_groups


class InstanceNormInverter(GroupNormInverter):
    """The same for single channels; with running statistics, a diagonal affine map.

    Then x = x0 + A⁺ (y − f(x0)), damped as any affine layer; channels of zero weight
    keep their reference.
    """

    def invert(self, wanted: Tensor, reference: Tensor) -> SolveResult:
        if not self.layer.track_running_stats:
            return super().invert(wanted, reference)
        weight = self.weight[:, 0].to(reference)
        slope = weight / (self.layer.running_var.to(reference) + self.eps).sqrt()
        usable = slope.abs() > _RANK_TOLERANCE * self.in_shape.numel() * slope.abs().max()
        damping = self._damping(slope[usable].abs())
        inverse = (slope / (slope.square() + damping**2)).where(usable, 0.0)
        missing = wanted - self.layer(reference)
        solution = reference + self._per_entry(inverse) * missing
        return SolveResult(solution, damping=damping)

    def _damping(self, singular_values: Tensor) -> float:
        """Damping of the diagonal map; "auto" is zero up to condition 1e3."""
        if self.options.damping != "auto":
            return float(self.options.damping)
        if singular_values.numel() == 0:
            return 0.0
        lowest, highest = singular_values.aminmax()
        return float(((highest / 1e3).square() - lowest.square()).clamp_min(0).sqrt())

    def _n_groups(self) -> int:
        return self.in_shape[0]


INVERTERS: dict[type[nn.Module], type[Inverter]] = {
    nn.LayerNorm: NormalisationInverter,
    nn.RMSNorm: RMSNormInverter,
    nn.GroupNorm: GroupNormInverter,
    nn.InstanceNorm1d: InstanceNormInverter,
    nn.InstanceNorm2d: InstanceNormInverter,
    nn.InstanceNorm3d: InstanceNormInverter,
}
