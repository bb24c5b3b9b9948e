"""What follows a feature: the conditions on the outputs, and their derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from featprop_sklearn.least_squares.rows import as_rows
from featprop_sklearn.output_targets import Conditions

__all__ = ["Downstream", "Tail"]

#: from the features of some samples, and their row numbers, to the network's outputs
Tail = Callable[[Tensor, Tensor], Tensor]

#: a condition that this share of the samples looks at is differentiated for all of them at once
COMMON = 0.5


@dataclass(frozen=True)
class Downstream:
    """Samples, the way from their features to the outputs, and what is asked of these.

    Attributes
    ----------
    tail : callable
        The way.
    feature : Tensor of shape (n_samples, ...)
        The features now. Moves are flat: one row a sample, added to its feature.
    rows : Tensor of shape (n_samples,), int64
        The samples' numbers in the tail.
    conditions : Conditions
        Of these samples.
    """

    tail: Tail
    feature: Tensor
    rows: Tensor
    conditions: Conditions

    def __getitem__(self, chosen: Tensor) -> Downstream:
        """Select samples."""
        return Downstream(
            self.tail, self.feature[chosen], self.rows[chosen], self.conditions[chosen]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def slack(self, move: Tensor, *, graph: bool = False) -> tuple[Tensor, Tensor]:
        """Run the samples from moved features.

        Parameters
        ----------
        move : Tensor of shape (n_samples, n_coordinates)
            The moves.
        graph : bool
            Whether derivatives will be asked for.

        Returns
        -------
        point : Tensor of shape (n_samples, ...)
            The moved features.
        slack : Tensor of shape (n_samples, n_conditions)
            Of each condition.
        """
        with torch.set_grad_enabled(graph):
            point = (self.feature + move.reshape(self.feature.shape)).requires_grad_(graph)
            # a copy: the tail may work in place, which torch forbids on what is differentiated
            output = self.tail(point.clone() if graph else point, self.rows)
            return point, self.conditions.slack(output)

    @torch.enable_grad()
    def jacobian(
        self, move: Tensor, chosen: Tensor, used: Tensor, point: Tensor, slack: Tensor
    ) -> Tensor:
        """Differentiate chosen conditions: one vector-Jacobian product for each that is used.

        Parameters
        ----------
        move : Tensor of shape (n_samples, n_coordinates)
            Where the samples are.
        chosen : Tensor of shape (n_samples, k), int64
            Numbers of conditions.
        used : Tensor of shape (n_samples, k), bool
            Which of the chosen are wanted.
        point, slack : Tensor
            What :meth:`slack` returned for these moves, with a graph.

        Returns
        -------
        Tensor of shape (n_samples, k, n_coordinates)
            Zero where not used.
        """
        found = move.new_empty(*chosen.shape, move.shape[1])
        common = used.sum(dim=0) >= COMMON * len(self)
        found[:, ~common] = 0
        for k in torch.nonzero(common)[:, 0].tolist():
            found[:, k] = _gradient(slack.gather(1, chosen[:, k : k + 1])[used[:, k]], point)
        # the others in a run of their own, with one row for each sample and condition
        pairs = torch.nonzero(used & ~common)
        for i in range(0, len(pairs), len(self)):
            sample, k = pairs[i : i + len(self)].T
            point, slack = self[sample].slack(move[sample], graph=True)
            found[sample, k] = _gradient(slack.gather(1, chosen[sample, k][:, None]), point)
        return found


def _gradient(values: Tensor, point: Tensor) -> Tensor:
    """Differentiate the sum; zero where nothing depends on the point. The graph is kept."""
    if not values.requires_grad:
        return torch.zeros_like(as_rows(point))
    (gradient,) = torch.autograd.grad(
        values.sum(), point, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return as_rows(gradient)
