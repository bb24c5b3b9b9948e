"""The part of a network that one target trains, and the data that it is trained on."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from featprop_sklearn.data import Inputs, join_rows, take_rows
from featprop_sklearn.networks import Chain
from featprop_sklearn.networks.replay import Replay
from featprop_sklearn.output_targets import OutputTargets

__all__ = ["Component", "Labelled", "SplitNetwork", "TrainingResult"]


@dataclass(frozen=True)
class Labelled:
    """Samples at the input of a component: features, encoded labels or values, weights."""

    inputs: Inputs
    y: Tensor
    weights: Tensor

    def __getitem__(self, rows: Any) -> Labelled:
        """Read rows."""
        return Labelled(self.inputs[rows], self.y[rows], self.weights[rows])

    def take(self, rows: slice | Tensor) -> Labelled:
        """Choose rows, without reading them where they are not in memory."""
        return Labelled(take_rows(self.inputs, rows), self.y[rows], self.weights[rows])

    def join(self, other: Labelled) -> Labelled:
        """Append rows of the same samples."""
        return Labelled(
            join_rows(self.inputs, other.inputs),
            torch.cat([self.y, other.y]),
            torch.cat([self.weights, other.weights]),
        )

    def __len__(self) -> int:
        return len(self.inputs)

    def __getstate__(self) -> dict[str, Any]:
        """Copy the rows to be pickled: of a view torch would send all that it is a view of."""
        return {
            name: part.clone() if isinstance(part, Tensor) else part
            for name, part in vars(self).items()
        }

    def __sizeof__(self) -> int:
        """Tell Dask how much there is to send: much goes to a worker, not to the scheduler."""
        return sum(part.nbytes for part in vars(self).values() if isinstance(part, Tensor))


@dataclass(frozen=True)
class Component:
    """The stages between two splits, to be trained towards the targets at the second.

    Attributes
    ----------
    split : str
        Name of the last trained stage.
    stages, after : Chain
        What is trained, and the frozen rest of the network downstream.
    data : Labelled
        Training samples.
    targets : Inputs of shape (n_samples, ...) or None
        Wanted features at the split; None trains on the task alone.
    output_targets : OutputTargets
        Task and head of the network.
    validation : Labelled or None
        Held-out samples that choose the epoch.
    before : Chain
        The stages upstream of the component, with whose parameters it must not meddle.
    """

    split: str
    stages: Chain
    after: Chain
    data: Labelled
    targets: Inputs | None
    output_targets: OutputTargets
    validation: Labelled | None = None
    before: Chain = field(default_factory=lambda: Chain(()))

    def private(self) -> Component:
        """Copy the stages (shared layers stay shared), so that training touches nothing else."""
        stages, after, before = copy.deepcopy((self.stages, self.after, self.before))
        return replace(self, stages=stages, after=after, before=before)

    def __sizeof__(self) -> int:
        """Tell Dask how much data there is to send."""
        targets = getattr(self.targets, "nbytes", 0)
        return sys.getsizeof(self.data) + sys.getsizeof(self.validation) + targets

    def network(self) -> SplitNetwork:
        """Return the component as a module, which freezes what is not to be trained."""
        return SplitNetwork(self.stages, self.after, self.before)


@dataclass(frozen=True)
class TrainingResult:
    """What training a component gave.

    Attributes
    ----------
    state : list of dict
        The state of each trained stage.
    history : list of dict
        One entry per epoch or sweep.
    interrupted : bool
        Whether Ctrl-C ended it early; the state is then that of the moment.
    """

    state: list[Mapping[str, Any]]
    history: list[dict[str, Any]]
    interrupted: bool = False

    def load_into(self, stages: Chain) -> None:
        """Give the stages of a network the trained state."""
        for stage, state in zip(stages, self.state, strict=True):
            stage.module.load_state_dict(state)


class SplitNetwork(nn.Module):
    """A component as a torch module: trainable up to the split, frozen after it.

    A parameter that also occurs outside the component is frozen, and so is one that the
    user has frozen (``requires_grad=False``). Frozen stages, and normalisations whose
    parameters are all frozen, stay in eval mode, so that their statistics do not move; so do
    replayed parts of a network that takes another way in training.

    Parameters
    ----------
    stages, after, before : Chain
        Private copies.

    Raises
    ------
    ValueError
        If nothing is left to train.
    """

    def __init__(self, stages: Chain, after: Chain, before: Chain | None = None) -> None:
        super().__init__()
        self._mode_set: bool | None = None  # walking over all layers twice a batch takes time
        self.upstream = nn.ModuleList(stages.modules())
        self.downstream = nn.ModuleList(after.modules())
        for parameter in (*after.parameters(), *(before.parameters() if before else ())):
            parameter.requires_grad_(False)
        if not any(p.requires_grad for p in self.upstream.parameters()):
            raise ValueError(
                f"No parameter up to split {stages[-1].name!r} can be trained: all have "
                "requires_grad=False in the network, or occur again outside this part of it. "
                "Choose another split, or unfreeze parameters of the network."
            )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's output and the feature at the split."""
        for stage in self.upstream:
            x = _run(stage, x)
        feature = x
        for stage in self.downstream:
            x = stage(x)
        return x, feature

    def train(self, mode: bool = True) -> SplitNetwork:
        """Set the mode of the trained stages; the frozen ones stay in eval mode."""
        if self.training == mode == self._mode_set:
            return self
        super().train(mode)
        self._mode_set = mode
        for layer in self.upstream.modules():
            own = list(layer.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                layer.training = False
        self.downstream.eval()
        return self

    def states(self) -> list[Mapping[str, Any]]:
        """Copy the state of each trained stage."""
        return [
            {name: value.detach().clone() for name, value in stage.state_dict().items()}
            for stage in self.upstream
        ]

    @torch.no_grad()
    def restore(self, states: list[Mapping[str, Any]]) -> None:
        """Load what :meth:`states` returned."""
        for stage, state in zip(self.upstream, states, strict=True):
            stage.load_state_dict(state)


def _run(stage: nn.Module, x: Tensor) -> Tensor:
    try:
        return stage(x)
    except RuntimeError:
        # what networks do in training alone, such as skipping layers by chance, may lead past the
        # part that is replayed; it then is trained as it will be used
        if not (isinstance(stage, Replay) and stage.training):
            raise
        return stage.eval()(x)
