"""The published rule: from the wanted output back through the layers, one at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Self

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from torch import Tensor

from featprop_sklearn.data import to_array
from featprop_sklearn.inversion import UnsupportedLayerError, keeps_bounds, pipeline_of_layers
from featprop_sklearn.networks import Chain, output_ranges

__all__ = ["LayerwiseRule"]


class LayerwiseRule:
    """Targets of every split in one sweep over the layers, last to first.

    Each layer is inverted for the target at its output, with the sample's own present
    input as the reference: the steps of :func:`make_inversion_pipeline` do it.

    Parameters
    ----------
    in_range : bool, default=False
        Keep every target inside what the layer before can produce (a feature after a
        ReLU stays non-negative), where the layer's inversion knows ranges.
    solver, damping
        As in :class:`LayerInverter`.

    References
    ----------
    Ding, He, Li, Li, arXiv:2506.07188.
    """

    def __init__(
        self, *, in_range: bool = False, solver: str = "auto", damping: str | float = "auto"
    ) -> None:
        self.in_range = in_range
        self.solver = solver
        self.damping = damping

    def fit(self, chain: Chain, features: Sequence[Tensor], splits: Collection[str]) -> Self:
        """Set up the inversions that lie after the first of the splits.

        Parameters
        ----------
        chain : Chain
            The network.
        features : sequence of Tensor
            The feature at the output of each stage, on a few rows.
        splits : collection of str
            Where targets will be wanted.
        """
        self.names_ = chain.names
        self.splits_ = set(splits)
        self.first_ = min(self.names_.index(split) for split in splits) + 1
        ranges = output_ranges(chain)
        bounds = [
            ranges[i - 1] if self.in_range and i and keeps_bounds(stage.module) else None
            for i, stage in enumerate(chain)
        ]
        pipeline: Pipeline = pipeline_of_layers(
            [(stage.name, stage.module) for stage in chain],
            solver=self.solver,
            damping=self.damping,
            bounds=bounds,
        )
        self.steps_ = [step for _, step in pipeline.steps]
        for index in range(self.first_, len(chain)):
            try:
                self.steps_[index].fit(to_array(features[index - 1]))
            except UnsupportedLayerError as error:
                raise UnsupportedLayerError(f"Stage {chain[index].name!r}: {error}") from error
        return self

    def targets(self, features: Sequence[Tensor], wanted: Tensor) -> dict[str, Tensor]:
        """Carry wanted outputs back.

        Parameters
        ----------
        features : sequence of Tensor
            The feature at the output of each stage, for a batch.
        wanted : Tensor of shape (n_samples, n_outputs)
            The wanted output of the network.

        Returns
        -------
        dict of str to Tensor
            The feature target at each split, in the features' dtype.
        """
        found: dict[str, Tensor] = {}
        target = to_array(wanted, np.float64)
        for index in range(len(self.names_) - 1, self.first_ - 2, -1):
            name = self.names_[index]
            if name in self.splits_:
                found[name] = torch.from_numpy(target).to(features[index])
            if index >= self.first_:
                reference = to_array(features[index - 1])
                target = self.steps_[index].inverse_transform(target, reference)
        return found
