"""The features of all samples at one stage after another, without running every stage each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from featprop_sklearn.data import Inputs, batches

__all__ = ["CarriedFeatures"]

#: numbers that may be kept: features with more are computed anew, from the last ones kept
ROOM = 1 << 25


class CarriedFeatures:
    """Features on their way forward through stages that do not change any more behind them.

    Features are kept at a stage where they take little room, so that each stage runs about
    once however many stops there are.

    Parameters
    ----------
    stages : sequence of callables
        Run one after the other; none overwrites its input.
    inputs : Inputs of shape (n_samples, ...)
        At the input of the first.
    batch_size : int
        Rows a batch.
    """

    def __init__(
        self, stages: Sequence[Callable[[Tensor], Tensor]], inputs: Inputs, batch_size: int
    ) -> None:
        self.stages = stages
        self.batch_size = batch_size
        #: the stage before which features are kept
        self.stop = 0
        self.kept = inputs

    def before(self, stage: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows of each batch, and their features at the input of a stage."""
        for rows in batches(len(self.kept), self.batch_size):
            yield rows, self._run(self.kept[rows], stage)

    def advance(self, stage: int) -> None:
        """Keep the features at the input of a stage: no stage before it will change again."""
        if stage == self.stop:
            return
        one = self._run(self.kept[:1], stage)
        if one.numel() * len(self.kept) <= ROOM:
            self.kept = torch.cat([features for _, features in self.before(stage)])
            self.stop = stage

    @torch.no_grad()
    def _run(self, features: Tensor, stage: int) -> Tensor:
        for run in self.stages[self.stop : stage]:
            features = run(features)
        return features
