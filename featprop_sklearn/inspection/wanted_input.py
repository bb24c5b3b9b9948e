"""The input near a sample that makes a network feel what it should have felt, and its parts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import Bounds, minimize
from torch import Tensor

from featprop_sklearn.least_squares.rows import per_row

__all__ = ["Upstream", "met_shares", "wanted_input"]

#: relative fall of the objective at which a search ends, and how many steps it may take
TOLERANCE, MAX_STEPS = 1e-5, 1000
#: points of an integral that are run at a time
STEPS_AT_A_TIME = 64

#: f, from inputs to features; no sample depends on another
Upstream = Callable[[Tensor], Tensor]


def wanted_input(
    upstream: Upstream,
    x: Tensor,
    displacement: Tensor,
    *,
    damping: float,
    low: Tensor,
    high: Tensor,
    unit: Tensor,
) -> tuple[Tensor, bool]:
    """Minimise ‖f(x*) − f(x) − e‖²/‖e‖² + damping² · mean ((x* − x)/unit)² within a range.

    By L-BFGS-B (Byrd, Lu, Nocedal and Zhu 1995) from x. f may have kinks, where the search can
    end a little early; the answer is never worse than x.

    Parameters
    ----------
    upstream : callable
        f.
    x : Tensor of shape (1, ...), float64
        The sample.
    displacement : Tensor of shape (1, ...), float64
        e, what is to be added to f(x); not zero.
    damping : float
        What a change of the input weighs.
    low, high, unit : Tensor of the shape of ``x``
        The range, infinite for none, and a change that counts as 1.

    Returns
    -------
    wanted : Tensor of the shape of ``x``
        x*.
    finished : bool
        Whether the search came to rest.
    """
    size = displacement.norm()
    with torch.no_grad():
        target = _features(upstream, x) + displacement

    def place(moves: NDArray) -> Tensor:
        return x + unit * torch.from_numpy(moves).to(x).reshape(x.shape)

    # in units, so that those of the inputs do not matter
    def objective(moves: NDArray) -> tuple[float, NDArray]:
        at = place(moves).requires_grad_()
        with torch.enable_grad():
            value = ((_features(upstream, at) - target) / size).square().sum()
            (gradient,) = torch.autograd.grad(value, at)
        price = damping**2 / moves.size
        slopes = (unit * gradient).cpu().numpy().ravel()
        return value.item() + price * moves @ moves, slopes + 2 * price * moves

    least, greatest = (((end - x) / unit).cpu().numpy().ravel() for end in (low, high))
    found = minimize(
        objective,
        np.zeros(x.numel()),
        jac=True,
        method="L-BFGS-B",
        bounds=Bounds(least, greatest),
        options={"ftol": TOLERANCE, "gtol": 0, "maxiter": MAX_STEPS, "maxfun": 2 * MAX_STEPS},
    )
    # what rounding makes of a bound
    return torch.minimum(torch.maximum(place(found.x), low), high), found.status != 1


def met_shares(
    upstream: Upstream, x: Tensor, wanted: Tensor, displacement: Tensor, n_steps: int
) -> Tensor:
    """Share out among the inputs how much of a displacement a wanted input meets.

    The integral of the gradient of ⟨e, f⟩/‖e‖² along the straight way from x to x*, times
    x* − x: integrated gradients (Sundararajan, Taly and Yan 2017) between two inputs that both
    mean something. By the midpoint rule.

    Parameters
    ----------
    upstream : callable
        f.
    x, wanted : Tensor of shape (1, ...), float64
        The sample, and x*.
    displacement : Tensor of shape (1, ...), float64
        e, not zero.
    n_steps : int
        Points of the integral.

    Returns
    -------
    Tensor of the shape of ``x``
        Sums to ⟨e, f(x*) − f(x)⟩/‖e‖² but for the error of the rule.
    """
    move = wanted - x
    middles = (torch.arange(n_steps, dtype=move.dtype, device=move.device) + 0.5) / n_steps
    total = torch.zeros_like(move)
    for some in middles.split(STEPS_AT_A_TIME):
        at = (x + per_row(some, move) * move).requires_grad_()
        with torch.enable_grad():
            met = (_features(upstream, at) * displacement).sum()
            (gradient,) = torch.autograd.grad(met, at)
        total += gradient.sum(dim=0, keepdim=True)
    return move * total / n_steps / displacement.square().sum()


def _features(upstream: Upstream, x: Tensor) -> Tensor:
    # a copy: the first layer may work in place, which torch forbids on what is differentiated
    return upstream(x.clone()).double()
