"""A regression network in units in which each value of y has mean 0 and spread 1.

What is learned must not depend on the unit of y; squared errors, steps of a fixed length and ridges
shared by several outputs do. So targets and training see (o − mean) / spread in place of each
output o, and the same of y. Where the network ends in an affine layer, that layer has trained
weights in these units, too: (Wa + b − mean) / spread is another such layer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featprop_sklearn.data import Inputs, RowStore, batches, to_array
from featprop_sklearn.networks import AFFINE_LAYERS, Chain, Permute, Rescale, Reshape, Stage
from featprop_sklearn.training.design_rows import add_to_weights, weight_rows

__all__ = ["StandardNetwork", "StandardUnits"]

#: layers that hand on each value as it is, in training too, perhaps at another place
_REARRANGING = (nn.Identity, nn.Flatten, nn.Unflatten, Reshape, Permute)


@dataclass(frozen=True)
class StandardUnits:
    """Standard value = (value − mean) / spread.

    Attributes
    ----------
    mean, spread : ndarray of shape (n_outputs,), float64
        Of each value of y; spreads are positive.
    """

    mean: NDArray
    spread: NDArray

    @classmethod
    def of(cls, y: NDArray, weights: NDArray, outputs: NDArray | None = None) -> Self:
        """Take the weighted mean and standard deviation of each column of y.

        Parameters
        ----------
        y : ndarray of shape (n_samples, n_outputs), float64
            Values.
        weights : ndarray of shape (n_samples,)
            Sample weights.
        outputs : ndarray of shape (n_samples, n_outputs), optional
            What a network says of the samples: where a column of y is constant, the size of both
            stands for its spread.
        """
        share = weights / weights.sum()
        first = y[0]  # from which a constant differs by no rounding
        mean = first + share @ (y - first)
        spread = np.sqrt(share @ np.square(y - mean))
        constant = spread <= 10 * np.finfo(np.float64).eps * np.abs(mean)
        said = 0.0 if outputs is None else share @ np.square(outputs.astype(np.float64))
        size = np.sqrt(np.square(mean) + said)
        return cls(mean, np.where(constant, np.where(size > 0, size, 1.0), spread))

    def fitting(self, chain: Chain) -> StandardUnits:
        """Return the nearest units that a last affine layer can be given, where there is one.

        A channel of a convolution has one unit for all its pixels, and without a bias no other
        zero.

        Parameters
        ----------
        chain : Chain
            The network.
        """
        end = _End(chain)
        if end.layer is None:
            return self
        rows = end.rows
        count = np.bincount(rows)
        mean = (np.bincount(rows, self.mean) / count)[rows]
        square = np.square(self.spread) + np.square(self.mean - mean)
        spread = np.sqrt(np.bincount(rows, square) / count)[rows]
        return StandardUnits(np.where(end.layer.bias is None, 0.0, mean), spread)

    def standard(self, values: NDArray) -> NDArray:
        """Return values of shape (n_samples, n_outputs) in standard units."""
        return (values - self.mean) / self.spread


class StandardNetwork:
    """A network that puts out standard units, made from one with units of its own.

    Parameters
    ----------
    chain : Chain
        The network. All but the last affine layer shares its parameters; that one is a copy, see
        :meth:`hand_over`.
    units : StandardUnits or None
        None leaves everything as it is.
    like : Tensor
        Whose dtype and device the outputs have.

    Attributes
    ----------
    chain : Chain
        In standard units; it has the splits of the other, under the same names.
    """

    def __init__(self, chain: Chain, units: StandardUnits | None, like: Tensor) -> None:
        self.chain = chain
        #: mean and spread of the features of the splits that have other units in the network
        self._own: dict[str, tuple[Tensor, Tensor]] = {}
        self._folded: _Folded | None = None
        if units is None:
            return
        end = _End(chain)
        mean, spread = end.of_values(units.mean), end.of_values(units.spread)
        if end.layer is not None and _same(units, units.fitting(chain)):
            self._folded = _Folded(end.layer, end.of_rows(units.mean), end.of_rows(units.spread))
            last = [replace(end.stage, module=self._folded.layer)]
        else:
            last = _rescaled(end.stage, Rescale((1 / spread).to(like), (-mean / spread).to(like)))
        self.chain = Chain([*end.before, *last, *end.after])
        names = [end.stage.name, *end.after.names]
        for name, *units_there in zip(names, end.along(mean), end.along(spread), strict=True):
            self._own[name] = units_there[0].to(like), units_there[1].to(like)

    def hand_over(self) -> None:
        """Give the network what its last affine layer has become, in the network's units."""
        if self._folded is not None:
            self._folded.hand_over()

    def in_own_units(self, split: str, features: Inputs, batch_size: int) -> Inputs:
        """Return features of a split as the network has them."""
        if split not in self._own:
            return features
        mean, spread = self._own[split]
        own = RowStore(features)
        for rows in batches(len(features), batch_size):
            own.append(features[rows] * spread + mean)
        return own.result()


class _End:
    """The last stage that computes anything, and where in its output each value of y is."""

    def __init__(self, chain: Chain) -> None:
        index = len(chain) - 1
        while index and isinstance(chain[index].module, _REARRANGING):
            index -= 1
        self.before, self.stage, self.after = chain[:index], chain[index], chain[index + 1 :]
        others = {id(p) for p in (*self.before.parameters(), *self.after.parameters())}
        layer = self.stage.module
        shared = any(id(parameter) in others for parameter in layer.parameters())
        #: which, where it is affine, with weights of its own
        self.layer: Any = layer if _is_affine(layer) and not shared else None

    @property
    def places(self) -> Tensor:
        """Number of the element of the stage's output that each value is."""
        shape = self.stage.out_shape
        elements = torch.arange(shape.numel(), device="cpu").reshape(1, *shape)
        return self.after(elements).reshape(-1)

    @property
    def rows(self) -> NDArray:
        """Row of the layer's weights, or channel, that each value comes from."""
        shape = self.stage.out_shape
        first = len(shape) - 1 if isinstance(self.layer, nn.Linear) else 0
        rows = torch.arange(shape[first], device="cpu")
        rows = rows.reshape(-1, *[1] * (len(shape) - 1 - first)).expand(shape)
        return to_array(rows.reshape(-1)[self.places])

    def of_values(self, numbers: NDArray) -> Tensor:
        """Arrange one number a value as the stage's output of a sample."""
        shape = self.stage.out_shape
        arranged = torch.zeros(shape.numel(), dtype=torch.float64, device="cpu")
        arranged[self.places] = torch.from_numpy(numbers)
        return arranged.reshape(shape)

    def of_rows(self, numbers: NDArray) -> Tensor:
        """Arrange one number a value, the same for all of a row, by row."""
        rows = self.rows
        arranged = np.zeros(rows.max() + 1)
        arranged[rows] = numbers
        return torch.from_numpy(arranged)

    def along(self, arranged: Tensor) -> Iterator[Tensor]:
        """Yield numbers arranged as the stage's output, and as that of each one after it."""
        arranged = arranged[None]
        yield arranged
        yield from self.after.features(arranged)


class _Folded:
    """A copy of an affine layer for standard units, and the way back.

    Parameters
    ----------
    own : nn.Linear, nn.Conv*d or nn.ConvTranspose*d
        The layer; changed by :meth:`hand_over` alone.
    mean, spread : Tensor of shape (n_rows,), float64
        Of the standard units of its outputs.
    """

    def __init__(self, own: Any, mean: Tensor, spread: Tensor) -> None:
        self.own = own
        rows = _rows(own)
        self.mean, self.spread = (part.reshape(len(rows), 1, -1) for part in (mean, spread))
        self.layer = copy.deepcopy(own)
        if own.bias is not None:
            rows[:, -1:] -= self.mean
        _set_rows(self.layer, rows / self.spread)
        self.start = _rows(self.layer)

    def hand_over(self) -> None:
        """Give the layer the copy's weights; one that has not changed stays to the last bit."""
        now = _rows(self.layer)
        rows = now * self.spread
        if self.own.bias is not None:
            rows[:, -1:] += self.mean
        _set_rows(self.own, torch.where(now == self.start, _rows(self.own), rows))


def _rows(layer: Any) -> Tensor:
    # where float64 is sure to exist
    return weight_rows(copy.deepcopy(layer).cpu())


@torch.no_grad()
def _set_rows(layer: Any, rows: Tensor) -> None:
    new = copy.deepcopy(layer).cpu()
    for parameter in new.parameters():
        parameter.zero_()
    add_to_weights(new, rows)
    layer.load_state_dict(new.state_dict())


def _is_affine(layer: nn.Module) -> bool:
    """Return whether the layer is Wa + b, with real weights that are parameters, and no more."""
    forward = any(type(layer).forward is affine.forward for affine in AFFINE_LAYERS)
    if not forward or layer._forward_hooks or layer._forward_pre_hooks:
        return False
    parameters = dict(layer.named_parameters())
    own = set(parameters) in ({"weight"}, {"weight", "bias"})
    return own and not any(p.is_complex() for p in parameters.values())


def _same(one: StandardUnits, other: StandardUnits) -> bool:
    return np.allclose(one.mean / one.spread, other.mean / one.spread) and np.allclose(
        one.spread / other.spread, 1
    )


def _rescaled(last: Stage, units: Rescale) -> list[Stage]:
    """Append units to a stage; the last of the stages returned has its name."""
    if not last.out_shape:  # inverters of a stage take rows
        return [replace(last, module=nn.Sequential(last.module, units))]
    apart = replace(last, name=f"{last.name}, in its own units")
    return [apart, Stage(last.name, units, last.out_shape, last.out_shape)]
