"""The joint rule: each split's targets at once, through everything downstream of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor

from featprop_sklearn.networks import Chain, output_ranges
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.propagation.acceptable import Tail, nearest_acceptable

__all__ = ["JointRule"]


def _tail(after: Chain) -> Tail:
    return lambda value, rows: after(value)


class JointRule:
    """The nearest features that the frozen stages really turn into the labels.

    min ‖e‖² such that the network, given feature + e at the split, puts out something
    acceptable, in T(y), and feature + e stays within what the split's stage can produce.
    Samples whose output is acceptable keep their feature.
    """

    #: each split on its own: no target comes from another split's
    sweeps: ClassVar[bool] = False

    def fit(self, chain: Chain, features: Sequence[Tensor], splits: Collection[str]) -> Self:
        """Note the network and the splits.

        Parameters
        ----------
        chain : Chain
            The network.
        features : sequence of Tensor
            The feature at the output of each stage, on a few rows; not needed here.
        splits : collection of str
            Where targets will be wanted.
        """
        self.chain_ = chain
        self.ranges_ = output_ranges(chain)
        self.splits_ = [name for name in chain.names if name in set(splits)]
        return self

    def targets(
        self,
        features: Sequence[Tensor],
        wanted: Tensor,
        y: Tensor,
        output_targets: OutputTargets,
    ) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """Find the targets of a batch.

        Parameters
        ----------
        features : sequence of Tensor
            The feature at the output of each stage.
        wanted : Tensor of shape (n_samples, n_outputs)
            The wanted outputs: the targets where the split is the output.
        y : Tensor
            Encoded labels or values.
        output_targets : OutputTargets
            Says what is acceptable.

        Returns
        -------
        targets : dict of str to Tensor
            By split, in the features' dtype.
        status : dict of str to list of str
            What became of each sample, see :class:`Acceptable`.
        """
        targets: dict[str, Tensor] = {}
        status: dict[str, list[str]] = {}
        for split in self.splits_:
            at = self.chain_.names.index(split)
            after = self.chain_[at + 1 :]
            if not len(after):
                targets[split] = wanted
                continue
            found = nearest_acceptable(
                _tail(after),
                features[at],
                features[-1],
                y,
                output_targets,
                allowed=self.ranges_[at],
            )
            targets[split], status[split] = found.targets, found.status
        return targets, status

    def key(self, chain: Chain) -> tuple[Any, ...]:
        """Return all that decides the targets, besides network, data and output targets."""
        return (type(self),)
