"""The two problems behind the inversion of a normalisation, per group of values.

With m the mean (0 for root-mean-square norms) and σ² = mean((x − m)²) + eps, a group
x has the normalised values v = (x − m) / σ, and the layer returns w·v + b. These are
exactly the v of mean 0 and mean square below 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["nearest_group", "reachable_values"]

#: weights below this share of the largest of their group are treated as zero
_ZERO_WEIGHT = 1e-15
#: stands for the square of a zero weight, relative to the largest: small enough not to
#: matter, large enough for its inverse to leave the other digits alone
_ZERO_SQUARE = 1e-20
_TINY = torch.finfo(torch.float64).tiny


def reachable_values(wanted: Tensor, weight: Tensor, centred: bool) -> Tensor:
    """Project a wanted output onto what a normalisation can give.

    Solves, for w the weights and t the wanted output less the bias::

        minimise ||w v - t||^2   subject to   mean(v) = 0 (if centred),  mean(v^2) <= 1

    Stationary are v = (w t − μ) / (w² + λ), with μ from the mean and λ ≥ 0 the root of
    the secular equation 1 / rms(v(λ)) = 1, found by Newton's method: the left side is
    concave and increasing, so that λ rises to the root without safeguards. One step is
    exact when the weights are equal. Where weights are zero, λ = 0 means the limit
    λ → 0, the shortest of the many answers.

    Parameters
    ----------
    wanted : Tensor of shape (n_samples, n_groups, size)
        Wanted outputs less the bias.
    weight : Tensor of shape (n_groups, size)
        Weights of the layer; those that :func:`is_zero` finds count as zero.
    centred : bool
        Whether the layer subtracts the mean.

    Returns
    -------
    Tensor of shape (n_samples, n_groups, size)
        The minimisers v.
    """
    zero = is_zero(weight)
    squares = weight.square().where(~zero, _ZERO_SQUARE * weight.square().amax(-1, keepdim=True))
    squares = squares.where(squares > 0, 1.0)
    right = wanted * weight.where(~zero, 0.0)
    multiplier = torch.zeros_like(wanted[..., :1])
    for _ in range(100):
        diagonal = squares + multiplier
        values = _stationary(right, diagonal, centred)
        size = _rms(values)
        slope = _relative_slope(values / size.clamp_min(_TINY), diagonal, centred)
        step = (size - 1).clamp_min(0) / slope.clamp_min(_TINY)
        multiplier = multiplier + step
        if (step <= 1e-15 * multiplier).all():
            break
    return values / _rms(values).clamp_min(1)


def _stationary(right: Tensor, diagonal: Tensor, centred: bool) -> Tensor:
    """Solve (diagonal) v + μ = right, with μ such that mean(v) = 0, or μ = 0."""
    if centred:
        shift = (right / diagonal).sum(-1, keepdim=True) / (1 / diagonal).sum(-1, keepdim=True)
        right = right - shift
    return right / diagonal


def _relative_slope(unit: Tensor, diagonal: Tensor, centred: bool) -> Tensor:
    """Differentiate −log rms(v(λ)) with respect to λ, for unit = v / rms(v)."""
    if centred:
        inverse = 1 / diagonal
        unit = unit - (unit * inverse).sum(-1, keepdim=True) / inverse.sum(-1, keepdim=True)
    return (unit.square() / diagonal).mean(-1, keepdim=True)


def is_zero(weight: Tensor) -> Tensor:
    """Mark the weights that are zero, or too small beside the others to be inverted."""
    return weight.abs() <= _ZERO_WEIGHT * weight.abs().amax(dim=-1, keepdim=True)


def _rms(values: Tensor) -> Tensor:
    """Root mean square over the last dimension, safe from overflow."""
    peak = values.abs().amax(dim=-1, keepdim=True).clamp_min(_TINY)
    return peak * (values / peak).square().mean(dim=-1, keepdim=True).sqrt()


def nearest_group(
    values: Tensor, free: Tensor, reference: Tensor, eps: float, centred: bool, tolerance: float
) -> Tensor:
    """Find the input with given normalised values that is nearest to a reference.

    Solves, for v the values, F the free entries (those of zero weight, whose normalised
    values do not matter) and n the size of a group::

        minimise ||x - x0||^2   subject to   x = m + g v + f,   f zero outside F,
                                             g / σ(x) in [1 - tolerance, 1 + tolerance]

    with f of mean 0 on F where the layer subtracts the mean. The best m is the mean of x0
    and the best f points along x0 on F, which leaves the scale g and ρ = rms(f). By
    σ² = g² q + ρ² + eps with q = mean(v²), the ratio g/σ = k is the hyperbola
    ρ² = (1/k² − q) g² − eps, and the feasible pairs lie between two of them. Values with
    q < 1 therefore fix the scale (to the tolerance); q = 1 only bounds it from below,
    since σ² = g² + eps makes eps shrink the output of small inputs.

    Parameters
    ----------
    values : Tensor of shape (n_samples, n_groups, size)
        Normalised values, from :func:`reachable_values`.
    free : Tensor of bool, shape (n_groups, size)
        Entries of zero weight.
    reference : Tensor of shape (n_samples, n_groups, size)
        Inputs to stay near to.
    eps : float
        Positive; the layer's.
    centred : bool
        Whether the layer subtracts the mean.
    tolerance : float
        Relative deviation of the output that is allowed for the sake of nearness.

    Returns
    -------
    Tensor of shape (n_samples, n_groups, size)
        The nearest inputs; exact.
    """
    mean = reference.mean(-1, keepdim=True) if centred else torch.zeros_like(reference[..., :1])
    offset = reference - mean
    along = (values * offset).mean(-1, keepdim=True)
    square = values.square().mean(-1, keepdim=True)
    upper = (1 - tolerance) ** -2 - square
    lower = (1 + tolerance) ** -2 - square
    scale = along / square.clamp_min(_TINY)
    most = (eps / lower.clamp_min(_TINY)).sqrt().where(lower > 0, torch.inf)
    fixed = mean + scale.clamp_min((eps / upper).sqrt()).minimum(most) * values

    n_free = free.sum(-1)[:, None]
    has_freedom = n_free > (1 if centred else 0)
    if not has_freedom.any():
        return fixed
    inside = _along_free(offset, free, n_free, centred)
    spread = inside.square().mean(-1, keepdim=True).sqrt()
    new_scale, new_spread = _between_hyperbolas(along, square, spread, upper, lower, eps)
    direction = inside / spread.clamp_min(_TINY)
    return torch.where(has_freedom, mean + new_scale * values + new_spread * direction, fixed)


def _along_free(offset: Tensor, free: Tensor, n_free: Tensor, centred: bool) -> Tensor:
    """Part of the offset that moves in F alone; any direction of length 0 where it is 0."""
    part = offset * free
    if centred:
        part = (part - part.sum(-1, keepdim=True) / n_free.clamp_min(1)) * free
    return part


def _between_hyperbolas(
    along: Tensor, square: Tensor, spread: Tensor, upper: Tensor, lower: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Minimise q g² − 2 g·along + (ρ − spread)², lower·g² − eps <= ρ² <= upper·g² − eps."""
    scale = along / square.clamp_min(_TINY)
    above = (scale <= 0) | (spread.square() > upper * scale.square() - eps)
    below = ~above & (spread.square() < lower * scale.square() - eps)
    factor = torch.where(above, upper, lower)
    factor = factor.where(above | below, 1.0)
    on_curve = _on_hyperbola(along, square, spread, factor, eps)
    moved = above | below
    return torch.where(moved, on_curve[0], scale), torch.where(moved, on_curve[1], spread)


def _on_hyperbola(
    along: Tensor, square: Tensor, spread: Tensor, factor: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Minimise the same on ρ² = factor·g² − eps.

    There the objective is convex in g: with g = √(eps/factor)·cosh t, ρ = √eps·sinh t,
    its derivative changes sign once, and t ≥ 0 is found by bisection.
    """
    total = square + factor
    root = eps**0.5
    farthest = torch.maximum(
        (2 * eps / factor).sqrt(), (along.abs() + spread * (2 * factor).sqrt()) / total
    )
    low = torch.zeros_like(along)
    high = torch.asinh((factor * farthest.square() - eps).clamp_min(0).sqrt() / root)
    for _ in range(80):
        middle = (low + high) / 2
        scale, height = root / factor.sqrt() * middle.cosh(), root * middle.sinh()
        rising = height * (total * scale - along) >= spread * factor * scale
        low, high = low.where(rising, middle), high.where(~rising, middle)
    return root / factor.sqrt() * low.cosh(), root * low.sinh()
