"""Affine layers wherever they are in a network: their inputs, outputs, and what follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featprop_sklearn.networks.chain import Chain

__all__ = ["AFFINE_LAYERS", "Site", "affine_sites"]

AFFINE_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
PROBE_ROWS = 3


@dataclass(frozen=True)
class Site:
    """One affine layer of a chain.

    A layer that is a stage is run as such. A layer inside a composite stage is observed,
    and its output replaced, by a forward hook while the stage runs.

    Attributes
    ----------
    name : str
        Path of the layer in the network.
    stage : int
        Index of the stage that is or holds it.
    layer : nn.Module
        The layer.
    """

    name: str
    stage: int
    layer: nn.Module

    def read(self, chain: Chain, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the layer's input and output, given the input of its stage."""
        module = chain[self.stage].module
        if module is self.layer:
            return x, module(x)
        seen: list[tuple[Tensor, Tensor]] = []
        with self.layer.register_forward_hook(lambda _, args, out: seen.append((args[0], out))):
            module(x)
        return seen[0]

    def tail(self, chain: Chain, x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the way from the layer's output to the network's, for the rows of x."""
        module, after = chain[self.stage].module, chain[self.stage + 1 :]
        if module is self.layer:
            return lambda value, rows: after(value)

        def replay(value: Tensor, rows: Tensor) -> Tensor:
            with self.layer.register_forward_hook(lambda _, args, out: value):
                return after(module(x[rows]))

        return replay


@torch.no_grad()
def affine_sites(chain: Chain, x: Tensor) -> list[Site]:
    """List the layers whose weights can be refitted alone, in the order of their stages.

    Parameters
    ----------
    chain : Chain
        In eval mode.
    x : Tensor of shape (n_samples, ...)
        A few inputs of the chain.

    Returns
    -------
    list of Site
        Layers with weights of their own (neither frozen, nor tied, nor reparametrised) that
        run once, on one tensor with one row a sample.
    """
    x = x[torch.arange(PROBE_ROWS, device=x.device) % len(x)]
    owners: dict[int, int] = {}
    for stage in chain:
        for module in dict.fromkeys(stage.module.modules()):
            for parameter in module.parameters(recurse=False):
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    sites: list[Site] = []
    for index, stage in enumerate(chain):
        calls: dict[nn.Module, list[bool]] = {}
        inner = {
            module: f"{stage.name}.{path}" if path else stage.name
            for path, module in stage.module.named_modules()
            if isinstance(module, AFFINE_LAYERS)
        }
        hooks = [module.register_forward_hook(_note(calls)) for module in inner]
        x = stage.module(x)
        for hook in hooks:
            hook.remove()
        sites += [
            Site(inner[module], index, module)
            for module, by_row in calls.items()
            if by_row == [True] and _has_own_weights(module, owners)
        ]
    return sites


def _note(calls: dict[nn.Module, list[bool]]) -> Callable[[nn.Module, tuple, Tensor], None]:
    def hook(module: nn.Module, args: tuple, out: Tensor) -> None:
        by_row = len(args) == 1 and len(args[0]) == len(out) == PROBE_ROWS
        calls.setdefault(module, []).append(by_row and args[0].ndim > 1)

    return hook


def _has_own_weights(module: nn.Module, owners: dict[int, int]) -> bool:
    parameters = dict(module.named_parameters())
    return set(parameters) in ({"weight"}, {"weight", "bias"}) and all(
        parameter.requires_grad and owners[id(parameter)] == 1 for parameter in parameters.values()
    )
