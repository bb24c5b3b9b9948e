"""The nearest features that the frozen rest of a network turns into the labels.

    min ‖e‖²  subject to  tail(feature + e) ∈ T(y)  and  feature + e in the split's own range

Only samples outside T(y) are worked on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from featprop_sklearn.least_squares.rows import as_rows
from featprop_sklearn.output_targets import Conditions, OutputTargets
from featprop_sklearn.propagation.downstream import Downstream, Tail
from featprop_sklearn.propagation.least_norm import Range
from featprop_sklearn.propagation.restarts import borrowed_start, scattered_start, smoothed
from featprop_sklearn.propagation.search import COMPETITORS, Moves, most_competitors, search

__all__ = ["Acceptable", "Tail", "nearest_acceptable"]

MAX_STEPS = 30
#: times that an acceptable feature is made nearer
REFINEMENTS = 4
#: asked beyond the margin, in units of the logits' size: a tenth of what counts as reached
AIM = 1e-4
#: sizes of the noise over which the network is smoothed, for a search that failed to begin again
SMOOTHINGS = (1.0, 2.0, 1.0, 4.0, 1.0, 0.5, 2.0)
SMOOTHED_STEPS = 8
#: sizes of random moves from which a search that failed begins again
SPREADS = (0.5, 1.0, 2.0, 4.0, 32.0)
#: how often as far away as the feature is from zero what was not reached is no target any more
FAR = 100.0
#: numbers of derivatives kept at a time
BUDGET = 1 << 25


@dataclass(frozen=True)
class Acceptable:
    """Feature targets of a batch, and what became of each sample.

    Attributes
    ----------
    targets : Tensor of shape (n_samples, ...)
        In the features' dtype.
    status : list of str
        "met" (nothing to do), "reached", "blocked" (a violated condition has no derivative:
        dead units), "stalled" (no step lowers the violation further) or "not_finite" (the
        output, which is left alone).
    worked_on : int
        Samples that took more than the forward pass of their output.
    """

    targets: Tensor
    status: list[str]
    worked_on: int


def nearest_acceptable(
    tail: Tail,
    feature: Tensor,
    output: Tensor,
    y: Tensor,
    output_targets: OutputTargets,
    *,
    allowed: tuple[float, float] | None = None,
    max_steps: int = MAX_STEPS,
    refinements: int = REFINEMENTS,
    competitors: int = COMPETITORS,
) -> Acceptable:
    """Find the nearest feature of each sample that the tail turns into its label.

    Parameters
    ----------
    tail : callable
        ``tail(features, rows)`` gives the network's outputs for these features of the samples
        ``rows`` (an index tensor, in which a sample may come more than once); differentiable,
        one sample's output independent of the others.
    feature : Tensor of shape (n_samples, ...)
        The features now.
    output : Tensor of shape (n_samples, n_outputs) or (n_samples,)
        The outputs now.
    y : Tensor
        Encoded labels or values.
    output_targets : OutputTargets
        Says what is acceptable.
    allowed : tuple of float, optional
        The closed range of the split's features, such as (0, inf) after a ReLU.
    max_steps : int
        Linearisations at most; 1 gives the first-order target, reached or not.
    refinements : int
        Times that a target is made shorter once it is reached, at most.
    competitors : int
        Competitors of a label that are looked at in the first linearisation; twice as many in
        each further one.

    Returns
    -------
    Acceptable
        Of this batch.
    """
    feature, output = feature.detach(), output.detach()
    conditions = output_targets.conditions(output, y)
    aim = _aim(conditions, output, output_targets)
    met = conditions.violation(conditions.slack(output)) <= (aim if conditions.equality else 0)
    status = ["met" if ok else "not_finite" for ok in met.tolist()]
    targets = feature.clone()
    finite = torch.isfinite(as_rows(output)).all(dim=1)
    rows = torch.nonzero(finite & ~met)[:, 0]
    known = feature[met], conditions[met]
    most = most_competitors(max_steps, competitors)
    for part in rows.split(_rows_at_a_time(feature, conditions, most)) if len(rows) else ():
        downstream = Downstream(tail, feature[part], part, conditions[part])
        found = _find(downstream, aim[part], allowed, known, max_steps, refinements, competitors)
        targets[part] = _within(allowed, feature[part], found.move)
        for row, name in zip(part.tolist(), _names(found), strict=True):
            status[row] = name
    return Acceptable(targets, status, len(rows))


def _find(
    downstream: Downstream,
    aim: Tensor,
    allowed: tuple[float, float] | None,
    known: tuple[Tensor, Conditions],
    max_steps: int,
    refinements: int,
    competitors: int,
) -> Moves:
    """Search from the features, and from elsewhere where that fails."""
    flat = as_rows(downstream.feature)
    limits = None
    if allowed is not None:
        # a feature that rounding puts outside its range may stay there
        limits = (allowed[0] - flat).clamp_max(0), (allowed[1] - flat).clamp_min(0)

    def within(rows: Tensor) -> Range | None:
        return limits and (limits[0][rows], limits[1][rows])

    def begin(rows: Tensor, start: Tensor) -> Moves:
        part = within(rows)
        if part:
            start = torch.minimum(torch.maximum(start, part[0]), part[1])
        return search(
            downstream[rows],
            start,
            aim[rows],
            part,
            max_steps=max_steps,
            refinements=refinements,
            competitors=competitors,
        )

    def smoothed_start(rows: Tensor, spread: float, seed: int) -> Tensor:
        here = downstream[rows]
        tail = smoothed(here.tail, here.feature, here.rows, spread, seed)
        found = search(
            replace(here, tail=tail),
            torch.zeros_like(flat[rows]),
            aim[rows],
            within(rows),
            max_steps=SMOOTHED_STEPS,
            refinements=0,
            competitors=competitors,
        )
        return found.move

    best = begin(torch.arange(len(flat), device=flat.device), torch.zeros_like(flat))
    if max_steps > 1 and not best.reached.all():
        lost = torch.nonzero(~best.reached)[:, 0]
        labels, features = downstream.conditions.labels, flat + best.move
        start = borrowed_start(
            flat[lost],
            labels[lost],
            torch.cat([known[0].flatten(1), features[best.reached]]),
            torch.cat([known[1].labels, labels[best.reached]]),
            exact=not downstream.conditions.equality,
        )
        found = (start != 0).any(dim=1)  # others would search from the feature itself again
        best.improve(lost[found], begin(lost[found], start[found]))
        helps = True
        for seed, spread in enumerate(SMOOTHINGS):
            lost = torch.nonzero(~best.reached & helps)[:, 0]
            if len(lost):
                again = begin(lost, smoothed_start(lost, spread, seed))
                # what none of many gains from is out of reach; what some do is a matter of luck
                helps = bool(again.reached.any()) or seed > 0
                best.improve(lost, again)
        helps = True
        for spread in SPREADS:
            # what has derivatives everywhere, and is not reached, can hardly be reached at all
            lost = torch.nonzero(~best.reached & (best.blocked | helps))[:, 0]
            if len(lost):
                again = begin(lost, scattered_start(flat[lost], spread))
                helps = bool(again.reached.any())
                best.improve(lost, again)
    if max_steps > 1:
        # where a network saturates, a little less violation is had for any distance
        lost = ~best.reached & (best.move.norm(dim=1) > FAR * flat.norm(dim=1))
        best.move[lost] = 0
    return best


def _within(allowed: tuple[float, float] | None, feature: Tensor, move: Tensor) -> Tensor:
    """Move features, and undo what rounding puts outside the range."""
    moved = feature + move.reshape(feature.shape)
    if allowed is None:
        return moved
    low, high = feature.clamp_max(allowed[0]), feature.clamp_min(allowed[1])
    return torch.minimum(torch.maximum(moved, low), high)


def _aim(conditions: Conditions, output: Tensor, output_targets: OutputTargets) -> Tensor:
    """Return the unit of precision of each sample: on the scale of its logits, or of y."""
    logits = conditions.to_logits(as_rows(output)).abs().amax(dim=1)
    precision = torch.finfo(logits.dtype)
    size = logits
    if conditions.equality:
        spread = output_targets.scale / conditions.bounds.shape[1] ** 0.5
        size = conditions.bounds.abs().amax(dim=1).clamp_min(spread)
    return torch.maximum(AIM * size, 4 * precision.eps * logits).clamp_min(precision.tiny)


def _rows_at_a_time(feature: Tensor, conditions: Conditions, competitors: int) -> int:
    n_conditions = conditions.bounds.shape[1]
    if conditions.kind == "lead":
        n_conditions = min(n_conditions, competitors)
    return max(1, BUDGET // max(1, n_conditions * feature[0].numel()))


def _names(found: Moves) -> list[str]:
    pairs = zip(found.reached.tolist(), found.blocked.tolist(), strict=True)
    return [
        "reached" if reached else "blocked" if blocked else "stalled" for reached, blocked in pairs
    ]
