"""The nearest feature that the frozen rest of a network turns into the label.

    min ‖e‖²  subject to  tail(feature + e) ∈ T(y)  and  feature + e in the split's own range

Sequential quadratic programming with the least-norm objective (Gauss-Newton): each step is the
shortest e that meets the linearised conditions, for the competitors that violate the margin or
may do so. Only samples outside T(y) are worked on.

Networks are piecewise smooth: at a kink (a max-pooling that ties, a ReLU at zero) one
linearisation zigzags without end, which is what kept far-off targets from being reached. There
the linearisations of both sides are asked for together, as bundle methods do (Lemaréchal,
"Bundle methods in nonsmooth optimization", 1978).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from featprop_sklearn.output_targets import Conditions, OutputTargets
from featprop_sklearn.propagation.least_norm import Range, least_norm

__all__ = ["Acceptable", "Tail", "nearest_acceptable"]

#: from the features of some samples, and their row numbers, to the network's outputs
Tail = Callable[[Tensor, Tensor], Tensor]

MAX_STEPS = 30
MAX_HALVINGS = 5
#: steps that shorten e once the output is acceptable
REFINEMENTS = 3
#: most competitors at a time; others join when they violate after a step
MAX_ACTIVE = 12
#: competitors within this share of the violation are taken along
NEAR = 0.5
#: asked beyond the margin, so that finitely many steps reach T(y); a tenth of "reached"
AIM = 1e-4
#: linearisations joined at a kink, and how far towards the failed step the next one is taken
KINKS = 5
BISECTIONS = 6
#: random points whose derivatives are averaged, how far away, how far to go, how often
POINTS = 8
SPREADS = (0.5, 1.0, 2.0, 4.0)
LONG = 4.0
WANDERINGS = 3
KINK_STEP = 0.1
REFINEMENT_KINKS = 2
#: a refinement must shorten e by this share
SHORTER = 5e-3
#: share of the promised decrease of the violation that a step must bring
DECREASE = 0.1


@dataclass(frozen=True)
class Acceptable:
    """Feature targets of a batch, and what became of each sample.

    Attributes
    ----------
    targets : Tensor of shape (n_samples, ...)
        In the features' dtype.
    status : list of str
        "met" (nothing to do), "reached", "blocked" (no derivative of a violated condition
        moves the output: dead units), or "stalled" (no step lowers the violation further).
    worked_on : int
        Samples that took more than a forward pass.
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
) -> Acceptable:
    """Find the nearest feature of each sample that the tail turns into its label.

    Parameters
    ----------
    tail : callable
        ``tail(features, rows)`` gives the network's outputs for these features of the samples
        ``rows`` (an index tensor); differentiable, one sample's output independent of the
        others.
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
        Steps that shorten a target once it is reached.

    Returns
    -------
    Acceptable
        Of this batch.
    """
    conditions = output_targets.conditions(output, y, slack=AIM)
    scale = _scale(conditions, output)
    violation = conditions.violation(conditions.slack(output))
    rows = torch.nonzero(violation > AIM * scale)[:, 0]
    status = ["met"] * len(feature)
    targets = feature.detach().clone()
    if len(rows):
        search = _Search(
            tail, feature[rows], output[rows], rows, conditions[rows], AIM * scale[rows], allowed
        )
        search.run(max_steps, refinements)
        if max_steps > 1:
            met = torch.nonzero(violation <= AIM * scale)[:, 0]
            for _ in range(WANDERINGS):
                if search.reached.all():
                    break
                search.wander()
                search.run(max_steps // 2, refinements)
            search.borrow(feature[met], conditions[met])
            search.run(refinements, refinements)
        targets[rows] = search.target()
        for row, found in zip(rows.tolist(), search.status(), strict=True):
            status[row] = found
    return Acceptable(targets, status, len(rows))


def _scale(conditions: Conditions, output: Tensor) -> Tensor:
    """Return the unit of each sample's tolerance: the size of its logits, or of its y."""
    size = (
        conditions.bounds
        if conditions.equality
        else conditions.to_logits(output.reshape(len(output), -1))
    )
    return size.abs().amax(dim=1).clamp_min(torch.finfo(size.dtype).tiny)


@dataclass(frozen=True)
class _Linearised:
    """J e >= bound (or =) for the chosen conditions of some samples; −inf where unused."""

    chosen: Tensor
    used: Tensor
    jacobian: Tensor
    bound: Tensor

    def __getitem__(self, rows: Tensor) -> _Linearised:
        return _Linearised(
            self.chosen[rows], self.used[rows], self.jacobian[rows], self.bound[rows]
        )

    def join(self, other: _Linearised) -> _Linearised:
        """Ask for the conditions of both."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Linearised(*(torch.cat(pair, dim=1) for pair in pairs))


class _Search:
    """The samples worked on: where each stands, and one step at a time."""

    def __init__(
        self,
        tail: Tail,
        feature: Tensor,
        output: Tensor,
        rows: Tensor,
        conditions: Conditions,
        tolerance: Tensor,
        allowed: tuple[float, float] | None,
    ) -> None:
        self.tail = tail
        self.feature = feature.detach()
        self.rows = rows
        self.conditions = conditions
        self.tolerance = tolerance
        flat = self.feature.reshape(len(rows), -1)
        self.moved = torch.zeros_like(flat)
        self.allowed: Range | None = None
        if allowed is not None:
            # a feature that float32 puts outside its range may stay there
            self.allowed = (
                (allowed[0] - flat.double()).clamp_max(0),
                (allowed[1] - flat.double()).clamp_min(0),
            )
        self.slack = conditions.slack(output.detach())
        self.violation = conditions.violation(self.slack)
        self.near = NEAR * self.violation
        self.binding = torch.zeros_like(self.slack, dtype=torch.bool)
        self.blocked = torch.zeros(len(rows), dtype=torch.bool, device=flat.device)

    @property
    def reached(self) -> Tensor:
        return self.violation <= self.tolerance

    def run(self, max_steps: int, refinements: int) -> None:
        left = torch.full_like(self.violation, refinements, dtype=torch.int64)
        stalled = torch.zeros_like(self.blocked)
        for _ in range(max_steps):
            done = stalled | (self.reached & (left <= 0))
            live = torch.nonzero(~done)[:, 0]
            if not len(live):
                break
            left[live] -= self.reached[live].long()
            stalled[live] = ~self._step(live, KINKS if max_steps > 1 else 0)

    def wander(self) -> None:
        """Follow derivatives averaged over random points nearby, where no step helped.

        Units that are off have no derivative; at some of the points they are on (gradient
        sampling: Burke, Lewis, Overton 2005, doi:10.1137/030601296).
        """
        generator = torch.Generator(device=self.moved.device).manual_seed(0)
        flat = self.feature.flatten(1)
        for spread in SPREADS:
            lost = torch.nonzero(~self.reached)[:, 0]
            if not len(lost):
                return
            size = spread * flat[lost].square().mean(dim=1, keepdim=True).sqrt()
            chosen, used = self._choose(lost, self.slack[lost])
            jacobian = torch.zeros((), dtype=torch.float64, device=flat.device)
            for _ in range(POINTS):
                noise = torch.randn(
                    self.moved[lost].shape,
                    generator=generator,
                    dtype=self.moved.dtype,
                    device=flat.device,
                )
                point = self._linearise(lost, self.moved[lost] + size * noise, chosen)
                jacobian = jacobian + point.jacobian / POINTS
            now = self.moved[lost].double()
            slack = torch.where(used, -self.slack[lost].gather(1, chosen), -torch.inf)
            allowed = self._range(lost)
            step, _ = least_norm(
                jacobian,
                slack,
                equality=self.conditions.equality,
                allowed=None if allowed is None else (allowed[0] - now, allowed[1] - now),
            )
            self._search_line(lost, self._in_range(lost, now + LONG * step))

    def borrow(self, features: Tensor, conditions: Conditions) -> None:
        """Start afresh where nothing helped, from another sample's feature of the same label.

        Of the features known to be acceptable the nearest one, and of the way to it as little
        as is needed. A unit that is dead for a sample has no derivative to be woken by, but
        other samples show what it is good for.
        """
        lost = torch.nonzero(~self.reached)[:, 0]
        if self.conditions.equality or not len(lost):
            return
        known = torch.cat([features, self.target()[self.reached]])
        labels = torch.cat([conditions.y, self.conditions.y[self.reached]])
        if not len(labels):
            return
        known, labels = known.flatten(1), labels.reshape(len(labels), -1)
        own = self.conditions.y[lost].reshape(len(lost), -1)
        start = self.feature[lost].reshape(len(lost), -1)
        same = (own[:, None] == labels[None]).all(dim=2)
        distance = torch.cdist(start, known).masked_fill(~same, torch.inf)
        found = torch.nonzero(same.any(dim=1))[:, 0]
        if not len(found):
            return
        rows, start = lost[found], start[found]
        way = known[distance[found].argmin(dim=1)] - start
        low, high = torch.zeros(2, len(rows), 1, dtype=way.dtype, device=way.device)
        high += 1
        for share in (high, *[None] * BISECTIONS):
            share = (low + high) / 2 if share is None else share
            slack = self._slack(rows, share * way)
            violation = self.conditions[rows].violation(slack)
            good = violation <= self.tolerance[rows]
            self.moved[rows[good]] = (share * way)[good]
            self.slack[rows[good]] = slack[good]
            self.violation[rows[good]] = violation[good]
            high, low = (
                torch.where(good[:, None], share, high),
                torch.where(good[:, None], low, share),
            )

    def target(self) -> Tensor:
        """Return the features as far as they got; never worse than where they began."""
        return self.feature + self.moved.reshape(self.feature.shape)

    def status(self) -> list[str]:
        names = {(True, False): "reached", (True, True): "reached", (False, True): "blocked"}
        pairs = zip(self.reached.tolist(), self.blocked.tolist(), strict=True)
        return [names.get(pair, "stalled") for pair in pairs]

    def _step(self, live: Tensor, kinks: int) -> Tensor:
        """Go one linearisation on; return which of the samples moved."""
        here = self._linearise(live, self.moved[live])
        self.binding[live] = False
        self._note_blocked(live, here)
        step, multipliers = self._shortest(live, here)
        self.binding[live] = torch.zeros_like(self.slack[live], dtype=torch.bool).scatter(
            1, here.chosen, (multipliers > 0) & here.used
        )
        moved = self._search_line(live, step)
        # Straight to T(y), no longer as near to the reference as can be. Where that fails too,
        # the sample sits at a kink: what the other side asks for is asked as well.
        at = torch.nonzero(~moved & ~self.blocked[live])[:, 0]
        pieces = here[at]
        for attempt in range(kinks):
            if attempt == REFINEMENT_KINKS:
                still = ~self.reached[live[at]]
                at, pieces = at[still], pieces[still]
            if not len(at):
                break
            rows = live[at]
            step = torch.where(
                self.reached[rows, None],
                self._shortest(rows, pieces)[0],
                self._restoration(rows, pieces),
            )
            moved[at] = self._search_line(rows, step)
            left = ~moved[at]
            at, pieces, now = at[left], pieces[left], self.moved[rows[left]]
            if len(at):
                beyond = now + (KINK_STEP * (step[left] - now)).to(now)
                pieces = pieces.join(self._linearise(live[at], beyond))
        return moved

    def _shortest(self, live: Tensor, here: _Linearised) -> tuple[Tensor, Tensor]:
        """Find the e of least norm that meets the linearised conditions."""
        return least_norm(
            here.jacobian,
            here.bound,
            equality=self.conditions.equality,
            allowed=self._range(live),
        )

    def _restoration(self, live: Tensor, here: _Linearised) -> Tensor:
        """Find the e nearest to the present one that meets the linearised conditions."""
        now = self.moved[live].double()
        allowed = self._range(live)
        step, _ = least_norm(
            here.jacobian,
            here.bound - (here.jacobian @ now[..., None])[..., 0],
            equality=self.conditions.equality,
            allowed=None if allowed is None else (allowed[0] - now, allowed[1] - now),
        )
        return now + step

    def _note_blocked(self, live: Tensor, here: _Linearised) -> None:
        slack = self.slack[live].gather(1, here.chosen)
        missed = slack.abs() if self.conditions.equality else -slack
        violated = here.used & (missed > self.tolerance[live, None])
        dead = here.jacobian.norm(dim=2) == 0
        self.blocked[live] = (violated & dead).any(dim=1)

    def _linearise(self, live: Tensor, moved: Tensor, chosen: Tensor | None = None) -> _Linearised:
        """Take first-order conditions at a point: J e >= J e_point − slack_point."""
        with torch.enable_grad():
            point = self._features(live, moved).requires_grad_()
            values = self.conditions[live].slack(self.tail(point, self.rows[live]))
            if chosen is None:
                chosen, used = self._choose(live, values.detach())
            else:
                used = torch.ones_like(chosen, dtype=torch.bool)
            # what the outputs do not depend on, or hide from autograd, has derivative 0
            columns = values.gather(1, chosen) + 0 * point.flatten(1).sum(dim=1, keepdim=True)
            count = chosen.shape[1]
            rows = [
                torch.autograd.grad(columns[:, k].sum(), point, retain_graph=k + 1 < count)[0]
                for k in range(count)
            ]
        jacobian = torch.stack([row.reshape(len(live), -1) for row in rows], dim=1).double()
        bound = (jacobian @ moved.double()[..., None])[..., 0] - columns.detach()
        return _Linearised(chosen, used, jacobian, torch.where(used, bound, -torch.inf))

    def _choose(self, live: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
        """Pick the conditions to look at: those that bound the last step, violate or nearly do."""
        conditions = self.conditions[live]
        if conditions.equality:
            chosen = torch.arange(slack.shape[1], device=slack.device).expand_as(slack)
            return chosen, torch.ones_like(chosen, dtype=torch.bool)
        near = torch.maximum(self.near[live], NEAR * conditions.violation(slack))[:, None]
        wanted = self.binding[live] | (slack < near)
        wanted &= torch.isfinite(conditions.bounds)
        rank = torch.where(self.binding[live], -torch.inf, slack)
        rank = torch.where(wanted, rank, torch.inf)
        count = min(max(int(wanted.sum(dim=1).amax()), 1), MAX_ACTIVE)
        chosen = rank.argsort(dim=1, stable=True)[:, :count]
        return chosen, wanted.gather(1, chosen)

    def _search_line(self, live: Tensor, step: Tensor) -> Tensor:
        """Go towards a step by halves until it helps; return which samples moved."""
        moved = torch.zeros(len(live), dtype=torch.bool, device=live.device)
        start, share = self.moved[live], 1.0
        pending = torch.arange(len(live), device=live.device)
        for _ in range(MAX_HALVINGS):
            rows = live[pending]
            now = start[pending]
            trial = self._in_range(rows, now + (share * (step[pending] - now)).to(now))
            slack = self._slack(rows, trial)
            violation = self.conditions[rows].violation(slack)
            shorter = trial.norm(dim=1) < (1 - SHORTER) * now.norm(dim=1)
            helps = torch.where(
                self.reached[rows],
                shorter & (violation <= self.tolerance[rows]),
                violation < (1 - DECREASE * share) * self.violation[rows],
            )
            taken = rows[helps]
            self.moved[taken] = trial[helps]
            self.slack[taken] = slack[helps]
            self.violation[taken] = violation[helps]
            moved[pending[helps]] = True
            pending = pending[~helps]
            if not len(pending):
                break
            share /= 2
        return moved

    def _in_range(self, live: Tensor, moved: Tensor) -> Tensor:
        allowed = self._range(live)
        if allowed is None:
            return moved
        return torch.minimum(torch.maximum(moved, allowed[0].to(moved)), allowed[1].to(moved))

    def _range(self, live: Tensor) -> Range | None:
        return None if self.allowed is None else (self.allowed[0][live], self.allowed[1][live])

    def _features(self, live: Tensor, moved: Tensor) -> Tensor:
        feature = self.feature[live]
        return feature + moved.reshape(feature.shape)

    @torch.no_grad()
    def _slack(self, live: Tensor, moved: Tensor) -> Tensor:
        output = self.tail(self._features(live, moved), self.rows[live])
        return self.conditions[live].slack(output)
