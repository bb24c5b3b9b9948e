"""Feature targets of a whole data set, batch by batch, with their quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featprop_sklearn.data import Inputs, RowStore, batches
from featprop_sklearn.inversion import InversionOptions
from featprop_sklearn.least_squares import Solver
from featprop_sklearn.networks import Chain, differentiable
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.propagation.joint import JointRule
from featprop_sklearn.propagation.layerwise import LayerwiseRule
from featprop_sklearn.propagation.quality import TargetQuality, measure_targets

__all__ = ["PROPAGATIONS", "Propagated", "make_rule", "propagate"]

Rule = JointRule | LayerwiseRule
PROPAGATIONS = ("joint", "layerwise", "layerwise_in_range")


@dataclass(frozen=True)
class Propagated:
    """Feature targets and how good they are, by split.

    Attributes
    ----------
    targets : dict of str to Inputs of shape (n_samples, ...)
        In the network's dtype, on its device.
    quality : dict of str to TargetQuality
        Per-sample measures.
    """

    targets: dict[str, Inputs]
    quality: dict[str, TargetQuality]


def make_rule(propagation: str, *, solver: str | Solver, damping: str | float) -> Rule:
    """Return the propagation rule of that name.

    Raises
    ------
    ValueError
        If there is no rule of that name.
    """
    InversionOptions(solver, damping)  # refuses what is unknown, also where no layer asks for it
    if propagation not in PROPAGATIONS:
        raise ValueError(f"propagation must be one of {list(PROPAGATIONS)}; got {propagation!r}.")
    if propagation == "joint":
        return JointRule()
    return LayerwiseRule(
        in_range=propagation == "layerwise_in_range", solver=solver, damping=damping
    )


def propagate(
    rule: Rule,
    chain: Chain,
    x: Inputs,
    y: Tensor,
    output_targets: OutputTargets,
    splits: Sequence[str],
    batch_size: int,
    *,
    keep_targets: bool = True,
) -> Propagated:
    """Send labels back to the splits.

    Parameters
    ----------
    rule : JointRule or LayerwiseRule
        How targets go backwards.
    chain : Chain
        The network.
    x : Inputs of shape (n_samples, ...)
        Inputs of the network, in its dtype, on its device.
    y : Tensor of n_samples rows
        Encoded labels or values.
    output_targets : OutputTargets
        From labels to wanted outputs.
    splits : sequence of str
        Where targets are wanted.
    batch_size : int
        Rows worked on at a time.
    keep_targets : bool
        False drops the targets once they are measured: those of every split take room.

    Returns
    -------
    Propagated
        Targets and quality at each split.
    """
    positions = {split: chain.names.index(split) for split in splits}
    targets = {split: RowStore(x) for split in splits}
    quality: dict[str, list[TargetQuality]] = {split: [] for split in splits}
    with torch.no_grad(), differentiable(chain.modules()):
        rule.fit(chain, list(chain.features(x[:2])), splits)
        for rows in batches(len(x), batch_size):
            features = list(chain.features(x[rows]))
            output = features[-1]
            wanted = output_targets.wanted(output, y[rows])
            found, status = rule.targets(features, wanted, y[rows], output_targets)
            for split, at in positions.items():
                if keep_targets:
                    targets[split].append(found[split])
                quality[split].append(
                    measure_targets(
                        chain[at + 1 :],
                        features[at],
                        found[split],
                        output,
                        wanted,
                        y[rows],
                        output_targets,
                        status.get(split),
                    )
                )
    return Propagated(
        {split: store.result() for split, store in targets.items() if keep_targets},
        {split: TargetQuality.concatenate(parts) for split, parts in quality.items()},
    )
