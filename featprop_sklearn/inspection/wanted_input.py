"""The input nearest to a sample that makes a network feel what it should have felt."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from featprop_sklearn.least_squares.rows import per_row

__all__ = ["Displaced"]

#: relative fall of the objective at which a search ends, and how many steps it may take
TOLERANCE, MAX_STEPS = 1e-5, 1000
#: points of an integral that are run at a time
STEPS_AT_A_TIME = 64


class Displaced:
    """One sample, the feature that it causes, and the feature that it should have caused.

    All tensors are float64, with a first dimension of length 1.

    Parameters
    ----------
    upstream : callable
        f, from inputs to features; no sample depends on another.
    x : Tensor of shape (1, ...)
        The sample.
    displacement : Tensor of shape (1, ...)
        e, what is to be added to f(x); not zero.
    """

    def __init__(
        self, upstream: Callable[[Tensor], Tensor], x: Tensor, displacement: Tensor
    ) -> None:
        self.upstream = upstream
        self.x = x
        self.displacement = displacement
        with torch.no_grad():
            self.target = self._feature(x) + displacement

    def wanted_input(self, damping: float, low: float, high: float) -> tuple[Tensor, bool]:
        """Minimise ‖f(x*) − target‖²/‖e‖² + damping² ‖x* − x‖²/‖x‖² within a range.

        By L-BFGS-B (Byrd, Lu, Nocedal and Zhu 1995) from x. f may have kinks, where the search
        can end a little early; the answer is never worse than x, moved into the range.

        Parameters
        ----------
        damping : float
            What a change of the input weighs.
        low, high : float
            The range, infinite for none.

        Returns
        -------
        wanted : Tensor of shape (1, ...)
            x*.
        finished : bool
            Whether the search came to rest.
        """
        size = float(self.displacement.norm())
        weight = damping / (float(self.x.norm()) or 1.0)

        def objective(flat: NDArray) -> tuple[float, NDArray]:
            at = torch.from_numpy(flat).to(self.x).reshape(self.x.shape).requires_grad_()
            with torch.enable_grad():
                missed = (self._feature(at) - self.target) / size
                value = missed.square().sum() + ((at - self.x) * weight).square().sum()
                (gradient,) = torch.autograd.grad(value, at)
            return value.item(), gradient.cpu().numpy().ravel()

        start = self.x.clamp(low, high).cpu().numpy().ravel()
        found = minimize(
            objective,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=None if np.isinf([low, high]).all() else [(low, high)] * len(start),
            options={"ftol": TOLERANCE, "gtol": 0, "maxiter": MAX_STEPS, "maxfun": 2 * MAX_STEPS},
        )
        return torch.from_numpy(found.x).to(self.x).reshape(self.x.shape), found.status != 1

    def shares(self, wanted: Tensor, n_steps: int) -> Tensor:
        """Share out among the inputs how much of the displacement a wanted input meets.

        The integral of the gradient of ⟨e, f⟩/‖e‖² along the straight way from x to x*, times
        x* − x: integrated gradients (Sundararajan, Taly and Yan 2017) between two inputs that
        both mean something. By the midpoint rule.

        Parameters
        ----------
        wanted : Tensor of shape (1, ...)
            x*.
        n_steps : int
            Points of the integral.

        Returns
        -------
        Tensor of shape (1, ...)
            Sums to ⟨e, f(x*) − f(x)⟩/‖e‖² but for the error of the rule.
        """
        move = wanted - self.x
        middles = (torch.arange(n_steps, dtype=move.dtype, device=move.device) + 0.5) / n_steps
        total = torch.zeros_like(move)
        for some in middles.split(STEPS_AT_A_TIME):
            at = (self.x + per_row(some, move) * move).requires_grad_()
            with torch.enable_grad():
                met = (self._feature(at) * self.displacement).sum()
                (gradient,) = torch.autograd.grad(met, at)
            total += gradient.sum(dim=0, keepdim=True)
        return move * total / n_steps / self.displacement.square().sum()

    def _feature(self, x: Tensor) -> Tensor:
        # a copy: the first layer may work in place, which torch forbids on what is differentiated
        return self.upstream(x.clone())
