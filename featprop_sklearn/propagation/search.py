"""From features to the nearest acceptable ones: Gauss-Newton steps for many samples at once.

Each step is a least-norm problem with linearised conditions. Outside T(y) it goes to the nearest
point that meets them; inside, part of the way to the shortest move that meets them, which may
lead out again. Networks are piecewise smooth, and a step across a kink can do harm before it
does good: the violation must stay below the worst of the last few steps only (Grippo,
Lampariello, Lucidi, "A nonmonotone line search technique for Newton's method", 1986,
doi:10.1137/0723046).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from featprop_sklearn.least_squares.rows import row_products
from featprop_sklearn.propagation.downstream import Downstream
from featprop_sklearn.propagation.least_norm import Range, least_norm

__all__ = ["COMPETITORS", "Moves", "most_competitors", "search"]

#: the next step must stay below the worst violation of so many
MEMORY = 4
#: a step is halved down to this share
LEAST_SHARE = 1 / 16
#: share of the way to the shortest move that is gone inside T(y); halved when it brings nothing
BOLDNESS = 0.5
#: what a shorter move must save to be worth a step
SHORTER = 0.02
#: a first step that misses its aim by this share of the violation met no kink: nothing is shorter
STRAIGHT = 5e-3
#: competitors within this share of the first violation are looked at like the violating ones
NEAR = 0.02
#: competitors looked at in the first step; twice as many in each further one, up to the most
COMPETITORS = 6
MOST_COMPETITORS = 64


@dataclass
class Moves:
    """The best moves found.

    Attributes
    ----------
    move : Tensor of shape (n_samples, n_coordinates)
        The shortest acceptable one, or else the one that violates least.
    length : Tensor of shape (n_samples,)
        Of an acceptable move; infinite where none was found.
    violation : Tensor of shape (n_samples,)
        With the move.
    blocked : Tensor of shape (n_samples,), bool
        Whether at last a violated condition had no derivative.
    """

    move: Tensor
    length: Tensor
    violation: Tensor
    blocked: Tensor

    @property
    def reached(self) -> Tensor:
        """Whether the move is acceptable."""
        return torch.isfinite(self.length)

    def improve(self, rows: Tensor, other: Moves) -> None:
        """Take over what another search reached for some of the samples."""
        better = other.reached
        for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True):
            mine[rows[better]] = theirs[better]


def search(
    downstream: Downstream,
    start: Tensor,
    aim: Tensor,
    allowed: Range | None,
    *,
    max_steps: int,
    refinements: int,
    competitors: int = COMPETITORS,
) -> Moves:
    """Move features until their outputs are acceptable, by as little as possible.

    Parameters
    ----------
    downstream : Downstream
        The samples.
    start : Tensor of shape (n_samples, n_coordinates)
        Moves to begin with.
    aim : Tensor of shape (n_samples,)
        What is asked beyond each inequality, so that finitely many steps reach T(y), and by how
        much an equality may be missed.
    allowed : tuple of two Tensors of shape (n_samples, n_coordinates), optional
        Lower and upper limits of the moves.
    max_steps : int
        Linearisations at most.
    refinements : int
        Times that an acceptable move is shortened, at most.
    competitors : int
        Competitors of a label that are looked at in the first step; twice as many in each
        further one, up to 64.

    Returns
    -------
    Moves
        Of these samples.
    """
    nowhere = torch.full_like(aim, torch.inf)
    best = Moves(start.clone(), nowhere, nowhere.clone(), torch.zeros_like(aim, dtype=torch.bool))
    walk = _Walk(
        index=torch.arange(len(aim), device=aim.device),
        downstream=downstream,
        aim=aim,
        allowed=allowed,
        now=start,
        origin=start,
        way=torch.zeros_like(start),
        share=torch.zeros_like(aim),
        limit=nowhere.clone(),
        recent=aim.new_zeros(len(aim), MEMORY),
        first=torch.zeros_like(aim),
        binding=torch.zeros_like(downstream.conditions.bounds, dtype=torch.bool),
        boldness=torch.full_like(aim, BOLDNESS),
        steps=torch.full_like(downstream.rows, max_steps),
        refinements=torch.full_like(downstream.rows, refinements),
    )
    while len(walk.index):
        walk = walk.keep(~walk.advance(best, competitors))
        competitors = most_competitors(2, competitors)
    return best


def most_competitors(max_steps: int, first: int) -> int:
    """Return how many competitors a label has in the last of some steps, given the first one's."""
    return max(first, min(first << (max_steps - 1), MOST_COMPETITORS))


@dataclass
class _Walk:
    """Where the samples that are not done stand: at now = origin + share · way."""

    index: Tensor
    downstream: Downstream
    aim: Tensor
    allowed: Range | None
    now: Tensor
    origin: Tensor
    way: Tensor
    share: Tensor
    limit: Tensor
    recent: Tensor
    first: Tensor
    binding: Tensor
    boldness: Tensor
    steps: Tensor
    refinements: Tensor

    def keep(self, rows: Tensor) -> _Walk:
        if rows.all():
            return self
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        allowed = values.pop("allowed")
        allowed = None if allowed is None else (allowed[0][rows], allowed[1][rows])
        return _Walk(allowed=allowed, **{name: value[rows] for name, value in values.items()})

    def advance(self, best: Moves, competitors: int) -> Tensor:
        """Look at where the samples are, and set where they go next; return which are done."""
        conditions = self.downstream.conditions
        point, slack = self.downstream.slack(self.now, graph=bool((self.steps > 0).any()))
        values = slack.detach()
        violation = conditions.violation(values)
        inside = violation <= (self.aim if conditions.equality else 0)
        back = ~inside & (violation >= self.limit)
        over = self.note(best, values, violation, inside) & ~back
        on = ~back & ~over
        if on.any():
            chosen, used = self.choose(values, competitors)
            used &= on[:, None]
            jacobian = self.downstream.jacobian(self.now, chosen, used, point, slack)
            linear = _Linear(chosen, used, values.gather(1, chosen), jacobian)
            dead = self.dead(linear)
            best.blocked[self.index[on]] = dead[on]
            back |= dead & (self.share > 0)
            over |= self.step(on & ~back, linear, violation, inside)
        self.share = torch.where(back, self.share / 2, self.share)
        self.now = self.origin + (self.share[:, None] * self.way).to(self.way)
        return over | (back & (self.share < LEAST_SHARE))

    def note(self, best: Moves, slack: Tensor, violation: Tensor, inside: Tensor) -> Tensor:
        """Keep what is better than before; return where that is enough."""
        index, length = self.index, self.now.norm(dim=1).to(self.aim)
        vain = inside & (length >= (1 - SHORTER) * best.length[index])
        self.boldness = torch.where(vain, self.boldness / 2, self.boldness)
        lower = ~best.reached[index] & (violation < best.violation[index])
        better = torch.where(inside, length < best.length[index], lower)
        best.move[index[better]] = self.now[better]
        best.violation[index[better]] = violation[better]
        best.length[index[better & inside]] = length[better & inside]
        # from no move at all, straight to the shortest
        missed = torch.where(self.binding, slack - self.beyond, 0).abs().amax(dim=1)
        straight = (self.share == 1) & (self.origin == 0).all(dim=1)
        straight &= missed <= STRAIGHT * self.first
        self.first = torch.where(self.share == 0, violation, self.first)
        enough = straight | (self.refinements == 0)
        self.refinements -= inside.long()
        return (inside & enough) | (self.steps == 0)

    def choose(self, slack: Tensor, competitors: int) -> tuple[Tensor, Tensor]:
        """Pick the conditions that are violated, nearly so, or bound the last step."""
        conditions = self.downstream.conditions
        near = self.beyond + NEAR * self.first[:, None]
        wanted = self.binding | (slack < near) | conditions.equality
        wanted &= torch.isfinite(conditions.bounds)
        count = max(int(wanted.sum(dim=1).amax()), 1)
        if conditions.kind == "lead":
            count = min(count, competitors)
        # what binds may not be let go: the next step would undo this one
        order = torch.where(self.binding, -torch.inf, slack).where(wanted, torch.inf)
        worst = order.topk(count, dim=1, largest=False).indices
        return worst, wanted.gather(1, worst)

    def dead(self, linear: _Linear) -> Tensor:
        """Whether no move would change a violated condition: units that are off."""
        missed = linear.slack.abs() if self.downstream.conditions.equality else -linear.slack
        violated = linear.used & (missed > self.aim[:, None])
        return (violated & (linear.jacobian.abs().amax(dim=2) == 0)).any(dim=1)

    def step(self, on: Tensor, linear: _Linear, violation: Tensor, inside: Tensor) -> Tensor:
        """Set the next step of some samples; return which of them have none."""
        base = torch.where(inside[:, None], 0, self.now)
        bound = self.beyond - linear.slack + row_products(linear.jacobian, self.now - base)
        step, multipliers = least_norm(
            linear.jacobian,
            torch.where(linear.used, bound, -torch.inf),
            equality=self.downstream.conditions.equality,
            allowed=self.allowed and (self.allowed[0] - base, self.allowed[1] - base),
        )
        goal = base + step
        pace = torch.where(inside, self.boldness, 1)[:, None]
        way = (pace * (goal - self.now)).to(goal)
        recent = torch.cat([violation[:, None], self.recent[:, :-1]], dim=1)
        recent = torch.where(inside[:, None], 0, recent)
        binding = torch.zeros_like(self.binding).scatter(1, linear.chosen, multipliers != 0)
        self.origin = torch.where(on[:, None], self.now, self.origin)
        self.way = torch.where(on[:, None], way, self.way)
        self.share = torch.where(on, 1, self.share)
        self.recent = torch.where(on[:, None], recent, self.recent)
        # once inside, the next step may lead out by any amount
        limit = torch.where(inside, torch.inf, recent.amax(dim=1))
        self.limit = torch.where(on, limit, self.limit)
        self.binding = torch.where(on[:, None], binding, self.binding)
        self.steps -= on.long()
        shortest = inside & (goal.norm(dim=1) >= (1 - SHORTER) * self.now.norm(dim=1))
        return on & (shortest | (way == 0).all(dim=1))

    @property
    def beyond(self) -> Tensor:
        """What is asked beyond each condition."""
        return self.aim[:, None] * (not self.downstream.conditions.equality)


@dataclass(frozen=True)
class _Linear:
    """Chosen conditions of each sample, to first order: slack + J · step, where used."""

    chosen: Tensor
    used: Tensor
    slack: Tensor
    jacobian: Tensor
