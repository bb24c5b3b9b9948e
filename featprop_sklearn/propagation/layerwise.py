"""The published rule: from the wanted output back through the layers, one at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline
from torch import Tensor

from featprop_sklearn.data import to_array
from featprop_sklearn.inversion import UnsupportedLayerError, keeps_bounds, pipeline_of_layers
from featprop_sklearn.inversion.registry import find_inverter
from featprop_sklearn.least_squares import SOLVERS, Solver
from featprop_sklearn.networks import Chain, output_ranges
from featprop_sklearn.output_targets import OutputTargets

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

    #: whether a target comes from the target one stage later, see :meth:`invert_stage`
    sweeps: ClassVar[bool] = True

    def __init__(
        self,
        *,
        in_range: bool = False,
        solver: str | Solver = "auto",
        damping: str | float = "auto",
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
        self.read(chain)
        self.splits_ = set(splits)
        self.first_ = min(self.names_.index(split) for split in splits) + 1
        for index in range(self.first_, len(chain)):
            self._fitted_step(index, features[index - 1])
        return self

    def read(self, chain: Chain) -> Self:
        """Make the inversions of a chain, to be set up when they are first used."""
        self.names_ = chain.names
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
        self.set_up_: set[int] = set()
        return self

    def targets(
        self,
        features: Sequence[Tensor],
        wanted: Tensor,
        y: Tensor | None = None,
        output_targets: OutputTargets | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """Carry wanted outputs back.

        Parameters
        ----------
        features : sequence of Tensor
            The feature at the output of each stage, for a batch.
        wanted : Tensor of shape (n_samples, n_outputs)
            The wanted output of the network.
        y, output_targets
            Not needed: the wanted outputs say it all.

        Returns
        -------
        targets : dict of str to Tensor
            The feature target at each split, in the features' dtype.
        status : dict of str to list of str
            Empty: what became of a sample shows when its target is pushed forward.
        """
        found: dict[str, Tensor] = {}
        target = to_array(wanted, np.float64)
        for index in range(len(self.names_) - 1, self.first_ - 2, -1):
            name = self.names_[index]
            if name in self.splits_:
                found[name] = torch.from_numpy(target).to(features[index])
            if index >= self.first_:
                target = self.invert_stage(index, target, features[index - 1])
        return found, {}

    def invert_stage(self, index: int, target: NDArray, reference: Tensor) -> NDArray:
        """Carry targets over one stage, from its output to its input.

        Parameters
        ----------
        index : int
            Of the stage.
        target : ndarray of float64
            Targets at the stage's output.
        reference : Tensor
            Features at the stage's input.

        Returns
        -------
        ndarray of float64
            Targets at the stage's input.

        Raises
        ------
        ValueError
            If a target is not finite.
        """
        step = self._fitted_step(index, reference)
        if not np.isfinite(target).all():
            raise ValueError(
                f"The wanted outputs of stage {self.names_[index]!r} are not finite, so they "
                "cannot be carried back through it. Use propagation='joint', or a split after "
                "this stage."
            )
        return step._nearest(target, to_array(reference))

    def key(self, chain: Chain) -> tuple[Any, ...]:
        """Return all that decides the targets, besides network, data and output targets."""
        inverters = [find_inverter(type(stage.module)) for stage in chain]
        return (
            type(self),
            self.in_range,
            self.solver,
            self.damping,
            inverters,
            sorted(SOLVERS.items()),
        )

    def _fitted_step(self, index: int, reference: Tensor) -> Any:
        step = self.steps_[index]
        self._check_invertible(index, reference)
        if index not in self.set_up_:
            try:
                step.fit(to_array(reference[:2]))
            except UnsupportedLayerError as error:
                raise UnsupportedLayerError(f"Stage {self.names_[index]!r}: {error}") from error
            self.set_up_.add(index)
        return step

    def _check_invertible(self, index: int, reference: Tensor) -> None:
        """Refuse features that no inverter takes."""
        what, instead = "", "use"
        if reference.is_complex():
            what = "complex numbers, and inverters real ones"
        elif reference.ndim == 1:
            what = "a number a sample, shape (n_samples,), and inverters rows"
            instead = "keep the axis in the network (keepdim=True, or x[:, None]), use"
        if what:
            raise UnsupportedLayerError(
                f"Stage {self.names_[index]!r} takes {what}: {instead} propagation='joint', or "
                "choose a split after this stage."
            )
