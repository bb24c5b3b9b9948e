"""Feature targets of a whole data set, each computed once: propagation with a ``memory``.

A rule that sweeps gets the target of a stage from the target one stage later. Every batch keeps
the target of each stage that its sweep passes; a sweep that is wanted further up goes on from
the earliest one that is kept. So all the splits of a grid cost one sweep, in any order, and no
split costs a sweep further than itself. Other rules keep the targets of each split by itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featprop_sklearn.data import Inputs, batches, to_array, to_tensor
from featprop_sklearn.data.memory import ResultStore, open_store
from featprop_sklearn.networks import Chain
from featprop_sklearn.networks.fingerprint import fingerprint
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.propagation.propagate import Propagated, propagate
from featprop_sklearn.propagation.quality import TargetQuality, measure_targets

__all__ = ["cached_propagate"]


def cached_propagate(
    memory: Any,
    rule: Any,
    chain: Chain,
    x: Inputs,
    y: Tensor,
    output_targets: OutputTargets,
    splits: Sequence[str],
    batch_size: int,
    *,
    keep_targets: bool = True,
) -> Propagated:
    """Send labels back to the splits, or look up where they went before.

    Warnings of an inversion that did not converge come when it runs, not when its result is
    looked up.

    Parameters
    ----------
    memory : None, str, or object with the joblib.Memory interface
        Where results are kept; None keeps none. Those of samples that do not fit in memory are
        not kept.
    rule : JointRule or LayerwiseRule
        How targets go backwards. Its ``key(chain)`` holds all that decides the targets,
        besides network, data and output targets; its ``sweeps`` says whether it goes stage
        by stage, with ``invert_stage``.
    chain, x, y, output_targets, splits, batch_size, keep_targets
        As in :func:`propagate`.

    Returns
    -------
    Propagated
        Targets and quality at each split, bit by bit what :func:`propagate` returns.
    """
    store = open_store(memory)
    if store is None or not isinstance(x, Tensor):
        return propagate(
            rule, chain, x, y, output_targets, splits, batch_size, keep_targets=keep_targets
        )
    places = {split: chain.names.index(split) for split in splits}
    targets: dict[str, list[Tensor]] = {split: [] for split in splits}
    quality: dict[str, list[TargetQuality]] = {split: [] for split in splits}
    with torch.no_grad():
        like = list(chain.features(x[:2]))
        context = fingerprint(rule.key(chain), chain, output_targets)
        if rule.sweeps:
            rule.read(chain)
        part_type: type[_Part] = _SweptBatch if rule.sweeps else _EachSplit
        for rows in batches(len(x), batch_size) if rule.sweeps else [slice(None)]:
            part = part_type(
                store, context, rule, chain, x[rows], y[rows], output_targets, batch_size
            )
            for split, at in places.items():
                if keep_targets:
                    target = part.target(at)
                    targets[split].append(to_tensor(target, like[at].dtype, like[at].device))
                quality[split].append(part.quality(at))
    return Propagated(
        {split: torch.cat(parts) for split, parts in targets.items() if parts},
        {split: TargetQuality.concatenate(parts) for split, parts in quality.items()},
    )


class _Part(ABC):
    """Rows whose results are kept together; a split is the index of its stage."""

    def __init__(
        self,
        store: ResultStore,
        context: str,
        rule: Any,
        chain: Chain,
        x: Tensor,
        y: Tensor,
        output_targets: OutputTargets,
        batch_size: int,
    ) -> None:
        self.store = store
        self.rule = rule
        self.chain = chain
        self.x = x
        self.y = y
        self.output_targets = output_targets
        self.batch_size = batch_size
        # rounding differs with the rows that a batch holds
        self.key = fingerprint(context, x, y, list(batches(len(x), batch_size)))

    @abstractmethod
    def target(self, at: int) -> NDArray:
        """Return the targets at a split."""

    @abstractmethod
    def quality(self, at: int) -> TargetQuality:
        """Return their quality."""

    def get_target(self, at: int) -> NDArray | None:
        return self.store.get(self.key, self.chain[at].name, "target")

    def put_target(self, at: int, target: NDArray) -> NDArray:
        self.store.put(target, self.key, self.chain[at].name, "target")
        return target

    def get_quality(self, at: int) -> TargetQuality | None:
        found = self.store.get(self.key, self.chain[at].name, "quality")
        return None if found is None else TargetQuality(**found)

    def put_quality(self, at: int, quality: TargetQuality) -> TargetQuality:
        self.store.put(vars(quality), self.key, self.chain[at].name, "quality")
        return quality


class _SweptBatch(_Part):
    """One batch of a rule that goes stage by stage; targets in the float64 of its steps."""

    def target(self, at: int) -> NDArray:
        passed = at
        while (target := self.get_target(passed)) is None:
            if passed == len(self.chain) - 1:
                target = self.put_target(passed, to_array(self.wanted, np.float64))
                break
            passed += 1
        for index in range(passed, at, -1):
            target = self.rule.invert_stage(index, target, self.features[index - 1])
            self.put_target(index - 1, target)
        return target

    def quality(self, at: int) -> TargetQuality:
        found = self.get_quality(at)
        if found is not None:
            return found
        feature = self.features[at]
        measured = measure_targets(
            self.chain[at + 1 :],
            feature,
            to_tensor(self.target(at), feature.dtype, feature.device),
            self.features[-1],
            self.wanted,
            self.y,
            self.output_targets,
        )
        return self.put_quality(at, measured)

    @cached_property
    def features(self) -> list[Tensor]:
        return list(self.chain.features(self.x))

    @cached_property
    def wanted(self) -> Tensor:
        return self.output_targets.wanted(self.features[-1], self.y)


class _EachSplit(_Part):
    """All rows of a rule that finds the targets of each split by themselves."""

    def target(self, at: int) -> NDArray:
        found = self.get_target(at)
        return self._propagate(at)[0] if found is None else found

    def quality(self, at: int) -> TargetQuality:
        found = self.get_quality(at)
        return self._propagate(at)[1] if found is None else found

    def _propagate(self, at: int) -> tuple[NDArray, TargetQuality]:
        split = self.chain[at].name
        found = propagate(
            self.rule,
            self.chain,
            self.x,
            self.y,
            self.output_targets,
            [split],
            self.batch_size,
        )
        target = self.put_target(at, to_array(found.targets[split][:]))
        return target, self.put_quality(at, found.quality[split])
