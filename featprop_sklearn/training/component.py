"""The part of a network that one target trains, and the data that it is trained on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from featprop_sklearn.networks import Chain
from featprop_sklearn.output_targets import OutputTargets

__all__ = ["Component", "Labelled", "SplitNetwork", "TrainingResult"]


@dataclass(frozen=True)
class Labelled:
    """Samples at the input of a component: features, encoded labels or values, weights."""

    inputs: Tensor
    y: Tensor
    weights: Tensor

    def __getitem__(self, rows: Any) -> Labelled:
        """Select rows."""
        return Labelled(self.inputs[rows], self.y[rows], self.weights[rows])

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Component:
    """The stages between two splits, to be trained towards the targets at the second.

    Attributes
    ----------
    split : str
        Name of the last trained stage.
    stages, after : Chain
        What is trained, and the frozen rest of the network.
    data : Labelled
        Training samples.
    targets : Tensor of shape (n_samples, ...) or None
        Wanted features at the split; None trains on the task alone.
    output_targets : OutputTargets
        Task and head of the network.
    validation : Labelled or None
        Held-out samples that choose the epoch.
    """

    split: str
    stages: Chain
    after: Chain
    data: Labelled
    targets: Tensor | None
    output_targets: OutputTargets
    validation: Labelled | None = None

    def private(self) -> Component:
        """Copy the stages (shared layers stay shared), so that training touches nothing else."""
        stages, after = copy.deepcopy((self.stages, self.after))
        return replace(self, stages=stages, after=after)


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

    A parameter that occurs on both sides of the split is frozen, and so is one that the
    user has frozen (``requires_grad=False``). Frozen stages stay in eval mode, so that
    their BatchNorm statistics do not move.

    Parameters
    ----------
    stages, after : Chain
        Private copies.

    Raises
    ------
    ValueError
        If nothing is left to train.
    """

    def __init__(self, stages: Chain, after: Chain) -> None:
        super().__init__()
        self.upstream = nn.ModuleList([stage.module for stage in stages])
        self.downstream = nn.ModuleList([stage.module for stage in after])
        for parameter in self.downstream.parameters():
            parameter.requires_grad_(False)
        if not any(p.requires_grad for p in self.upstream.parameters()):
            raise ValueError(
                f"No parameter up to split {stages[-1].name!r} can be trained: all have "
                "requires_grad=False in the network, or occur again after the split. "
                "Choose another split, or unfreeze parameters of the network."
            )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's output and the feature at the split."""
        for stage in self.upstream:
            x = stage(x)
        feature = x
        for stage in self.downstream:
            x = stage(x)
        return x, feature

    def train(self, mode: bool = True) -> SplitNetwork:
        """Set the mode of the trained stages; the frozen ones stay in eval mode."""
        super().train(mode)
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
