"""The check of a layer's inversion: met, nearest, steady, finite, and the layer left alone."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from featprop_sklearn.inversion import InversionOptions, LayerInverter, prepare_inverter
from featprop_sklearn.networks import private_layer
from featprop_sklearn.testing.promises import Subject, norms

__all__ = ["check_inverter"]

N_SAMPLES = 6
#: how far candidates lie from the reference, relative to the preimage found
REACHES = (1e-3, 1e-2, 0.1, 0.5, 1.0, 2.0)
HUGE = 1e30
ROUNDING = 1e-12
#: an open range counts as ended 1e-6 before its end, per entry and relative to its width
OPEN_END = 2e-6
INPUT_TOLERANCE = 2e-6
SINGLE_PRECISION = 1e-5


def check_inverter(
    layer: nn.Module,
    in_shape: tuple[int, ...],
    *,
    meets_reachable: bool = True,
    nearest: bool = True,
    least_residual: bool = True,
    tolerance: float = 1e-9,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> None:
    """Check what every inversion of a layer f promises, on random samples.

    With wanted outputs y, references x0 and answers x, undamped:

    - reachable outputs are met: f(x) = y if y = f(of something);
    - the reference is kept where it does: x = x0 if f(x0) = y;
    - nothing moves twice: x as the reference gives x again;
    - the output is never farther from y than that of the reference;
    - x is the nearest preimage: of random candidates and preimages found from other
      references, none comes closer to y, and none as close is nearer to x0;
    - x is finite for outputs that are zero, all equal, random or huge;
    - with a range, x is in it;
    - the layer, y and x0 are what they were;
    - the same in float32, through :class:`~featprop_sklearn.LayerInverter`.

    Parameters
    ----------
    layer : nn.Module
        One tensor in, one tensor out, batch first.
    in_shape : tuple of int
        Shape of one input, without the batch dimension; small.
    meets_reachable, nearest : bool, default=True
        False leaves out what the inversion does not promise.
    least_residual : bool, default=True
        False leaves out comparisons of outputs with a y that is out of reach, for
        inversions that mean another norm there.
    tolerance : float, default=1e-9
        On outputs, relative to their norm.
    seed : int, default=0
        Of the samples.
    bounds : tuple of (low, high), default=None
        The range that inputs must stay in; samples are drawn from it.

    Raises
    ------
    AssertionError
        Saying which promise was broken, by how much and on what input.

    Examples
    --------
    >>> from torch import nn
    >>> from featprop_sklearn.testing import check_inverter
    >>> check_inverter(nn.Conv1d(2, 1, 3), (2, 7))
    """
    before = _state(layer)
    promised = _Promised(meets_reachable, nearest, least_residual, tolerance, bounds)
    check = _Check(layer, in_shape, promised, seed)
    check.reachable_outputs()
    check.kept_references()
    check.other_outputs()
    check.single_precision(layer)
    check.unchanged("the layer", _state(layer), before)
    copied = private_layer(layer).double().requires_grad_(False)
    check.unchanged("the private copy", _state(check.inverter.layer), _state(copied))


@dataclass(frozen=True)
class _Promised:
    """What is promised, as in the parameters of :func:`check_inverter`."""

    meets_reachable: bool
    nearest: bool
    least_residual: bool
    tolerance: float
    bounds: tuple[float, float] | None

    def within(self, x: Tensor) -> Tensor:
        return x if self.bounds is None else x.clamp(*self.bounds)


class _Check:
    """One layer under check: its samples, its inverter, and f itself in float64."""

    def __init__(
        self, layer: nn.Module, in_shape: tuple[int, ...], promised: _Promised, seed: int
    ) -> None:
        self.subject = Subject(f"The inversion of {layer} for inputs of shape {tuple(in_shape)}")
        self.promised = promised
        options = InversionOptions(damping=0.0, bounds=promised.bounds)
        self.inverter = prepare_inverter(layer, in_shape, options)
        self.layer = copy.deepcopy(self.inverter.layer)
        self.generator = torch.Generator().manual_seed(seed)
        references = self.draw(N_SAMPLES, *in_shape)
        references[0], references[1] = 0.0, 0.7  # no spread: the hard case of normalisations
        near = torch.tensor([1.0, 0.01] * (N_SAMPLES // 2)).reshape(-1, *[1] * len(in_shape))
        # half of them near to the references, so that a far preimage cannot pass as the nearest
        sources = torch.lerp(references, self.draw(N_SAMPLES, *in_shape), near.double())
        self.references, self.sources = promised.within(references), promised.within(sources)

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def reachable_outputs(self) -> None:
        y, x0 = self.layer(self.sources), self.references
        x = self.invert(y, x0)
        if self.promised.meets_reachable:
            limit = self.promised.tolerance * norms(y)
            promise = "a reachable wanted output y is met, ‖f(x) − y‖ ≤ tolerance·‖y‖"
            self.at_most(self.gap(x, y), limit, promise, y, x0, x)
            self.steady(y, x0, x)
        if self.promised.nearest:
            self.nearest(y, x0, x, [self.sources, *self.candidates(y, x0, x)])

    def kept_references(self) -> None:
        x0 = self.references
        y = self.layer(x0)
        x = self.invert(y, x0)
        limit = self.promised.tolerance * (1 + norms(x0))
        promise = "a reference whose output is y already is returned, x = x0"
        self.at_most(norms(x - x0), limit, promise, y, x0, x)

    def other_outputs(self) -> None:
        x0 = self.references
        shape = self.layer(x0).shape
        noise = self.draw(*shape)
        zeros = torch.zeros_like(noise)
        for y in (HUGE * noise.sign(), zeros, zeros + 0.3, 3 * noise):
            x = self.invert(y, x0)
            if self.promised.least_residual:
                promise = "the output is never farther from y than that of the reference"
                limit = self.gap(x0, y) + self.slack(y)
                self.at_most(self.gap(x, y), limit, promise, y, x0, x)
            if y.abs().max() == HUGE:  # there rounding makes any input as good as the next
                continue
            if self.promised.nearest:
                self.steady(y, x0, x)
            if self.promised.nearest and self.promised.least_residual:
                self.nearest(y, x0, x, self.candidates(y, x0, x))

    def steady(self, y: Tensor, x0: Tensor, x: Tensor) -> None:
        again = self.invert(y, x)
        promise = "x as the reference gives x again"
        self.at_most(norms(again - x), self.rounding(x0, x), promise, y, x0, x, again=again)

    def nearest(self, y: Tensor, x0: Tensor, x: Tensor, candidates: list[Tensor]) -> None:
        gap, distance = self.gap(x, y), norms(x - x0)
        for candidate in candidates:
            candidate_gap = self.gap(candidate, y)
            promise = "no other input has an output nearer to y"
            limit = candidate_gap + self.slack(y)
            self.at_most(gap, limit, promise, y, x0, x, candidate=candidate)
            as_good = candidate_gap <= gap + ROUNDING * norms(y)
            nearer = torch.where(as_good, distance - norms(candidate - x0), 0.0)
            promise = "no other input with an output as near to y lies nearer to the reference"
            self.at_most(nearer, self.rounding(x0, x), promise, y, x0, x, candidate=candidate)

    def candidates(self, y: Tensor, x0: Tensor, x: Tensor) -> list[Tensor]:
        """Return inputs around and between, and preimages found from other references."""
        spread = norms(x - x0).clamp(min=1e-3).reshape(-1, *[1] * (x0.ndim - 1))
        around = [
            self.promised.within(x0 + reach * spread * self.draw(*x0.shape) / x0[0].numel() ** 0.5)
            for reach in REACHES
        ]
        between = [torch.lerp(x0, x, share) for share in (0.0, 0.5, 0.9, 0.99)]
        return [*around, *between, *(self.invert(y, start) for start in around[::2])]

    def invert(self, y: Tensor, x0: Tensor) -> Tensor:
        """Return the preimages, after the checks that hold for every one."""
        wanted, reference = y.clone(), x0.clone()
        with torch.no_grad():
            x = self.inverter.invert(wanted, reference).solution
        self.subject.require(
            x.shape == x0.shape and x.dtype == torch.float64,
            f"solution is float64 in the shape of the reference, {tuple(x0.shape)}",
            f"{x.dtype} of shape {tuple(x.shape)}",
        )
        unchanged = torch.equal(wanted, y) and torch.equal(reference, x0)
        self.subject.require(unchanged, "y and x0 are left as they were", "they were overwritten")
        infinite = (~x.isfinite()).reshape(len(x), -1).sum(dim=1).double()
        self.at_most(infinite, 0.0, "x is finite", y, x0, x)
        if self.promised.bounds is not None:
            outside = norms(x - self.promised.within(x))
            self.at_most(outside, 0.0, f"x is within {self.promised.bounds}", y, x0, x)
        return x

    def single_precision(self, layer: nn.Module) -> None:
        single = copy.deepcopy(layer).float()
        x0, sources = self.references.float().numpy(), self.sources.float().numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # what is met is measured here
            inverter = LayerInverter(single, damping=0.0, bounds=self.promised.bounds).fit(x0)
            wanted, present = inverter.transform(sources), inverter.transform(x0)
            found = inverter.inverse_transform(wanted, reference=x0)
            kept = inverter.inverse_transform(present, reference=x0)
            reached = inverter.transform(found)
        promise = "LayerInverter returns the dtype of the wanted output, float32"
        self.subject.require(str(found.dtype) == "float32", promise, str(found.dtype))
        y, x = (torch.from_numpy(values).double() for values in (wanted, found))
        moved = norms(torch.from_numpy(kept - x0))
        promise = "in float32 too, a reference whose output is y already is returned"
        self.at_most(moved, 0.0, promise, torch.from_numpy(present), self.references, self.sources)
        if self.promised.meets_reachable:
            limit = max(self.promised.tolerance, SINGLE_PRECISION) * norms(y)
            promise = "in float32 too, a reachable wanted output is met"
            gap = norms(torch.from_numpy(reached).double() - y)
            self.at_most(gap, limit, promise, y, self.references, x)

    def unchanged(self, name: str, now: dict[str, object], before: dict[str, object]) -> None:
        changed = sorted(key for key in now.keys() | before if now.get(key) != before.get(key))
        self.subject.require(not changed, f"{name} is left as it was", f"{changed} changed")

    def at_most(
        self,
        amount: Tensor,
        limit: Tensor | float,
        promise: str,
        y: Tensor,
        x0: Tensor,
        x: Tensor,
        **more: Tensor,
    ) -> None:
        self.subject.require_at_most(amount, limit, promise, y=y, x0=x0, x=x, **more)

    def gap(self, x: Tensor, y: Tensor) -> Tensor:
        return norms(self.layer(x.clone()) - y)

    def slack(self, y: Tensor) -> Tensor:
        relative = self.promised.tolerance * (norms(y) + norms(self.layer(self.references)))
        return relative + OPEN_END * y[0].numel() ** 0.5

    def rounding(self, x0: Tensor, x: Tensor) -> Tensor:
        return INPUT_TOLERANCE * (1 + norms(x0) + norms(x))


def _state(layer: nn.Module) -> dict[str, object]:
    """Weights, modes, gradient flags and hooks, in a form that can be compared."""
    return dict(_state_items(layer))


def _state_items(layer: nn.Module) -> Iterator[tuple[str, object]]:
    for name, tensor in layer.state_dict().items():
        yield name, tensor.detach().cpu().numpy().tobytes()
    for name, parameter in layer.named_parameters():
        yield f"requires_grad of {name}", parameter.requires_grad
        yield f"grad of {name}", parameter.grad is None
    for path, module in layer.named_modules():
        yield f"mode of {path or 'the layer'}", module.training
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        yield f"hooks of {path or 'the layer'}", sum(map(len, hooks))
