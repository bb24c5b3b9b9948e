"""Affine layers wherever they are in a network: their inputs, outputs, and what follows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from featprop_sklearn.networks.chain import Chain

__all__ = ["AFFINE_LAYERS", "Site", "affine_sites", "reasons_against"]

AFFINE_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
#: two sizes of a batch tell its dimension from one that happens to be as long
PROBE_ROWS = (2, 3)


@dataclass(frozen=True)
class Site:
    """One affine layer of a chain.

    A layer that is a stage is run as such. A layer inside a composite stage is observed,
    and its output replaced, by a forward hook while the stage runs.

    Attributes
    ----------
    name : str
        Its path in the network; the stage's name, if it is one.
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
        # copies: what follows in the stage may overwrite either in place
        with self._hook(lambda given, out: seen.append((given.clone(), out.clone()))):
            module(x)
        return seen[0]

    def tail(self, chain: Chain, x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the way from the layer's output to the network's, for the rows of x."""
        module, after = chain[self.stage].module, chain[self.stage + 1 :]
        if module is self.layer:
            return lambda value, rows: after(value)

        def replay(value: Tensor, rows: Tensor) -> Tensor:
            with self._hook(lambda given, out: value.clone()):
                return after(module(x[rows]))

        return replay

    def _hook(self, hook: Callable[[Tensor, Tensor], Tensor | None]) -> RemovableHandle:
        """Register a hook for this thread alone: others may be running the layer too."""
        thread = threading.get_ident()
        return self.layer.register_forward_hook(
            lambda _, args, out: hook(args[0], out) if threading.get_ident() == thread else None
        )


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
    return [site for site, reason in _judged(chain, x) if not reason]


def reasons_against(chain: Chain, x: Tensor) -> dict[str, str]:
    """Tell why other layers that can learn are none of the :func:`affine_sites`.

    Parameters
    ----------
    chain : Chain
        In eval mode.
    x : Tensor of shape (n_samples, ...)
        A few inputs of the chain.

    Returns
    -------
    dict
        Name of the layer -> reason.
    """
    return {site.name: reason for site, reason in _judged(chain, x) if reason}


@torch.no_grad()
def _judged(chain: Chain, x: Tensor) -> list[tuple[Site, str]]:
    """Layers that can learn; with each, what speaks against a refit of it alone, if anything."""
    x = x[torch.arange(max(PROBE_ROWS), device=x.device) % len(x)]
    owners = _owners(chain)
    judged: list[tuple[Site, str]] = []
    for index, stage in enumerate(chain):
        paths = dict(_learners(stage.module))
        reasons = {module: _reason_of_weights(module, owners) for module in paths}
        calls = _calls(stage.module, [module for module in paths if not reasons[module]], x)
        for module in dict.fromkeys((*calls, *paths)):  # in the order in which they run
            path = paths[module]
            name = f"{stage.path}.{path}".strip(".") if path else stage.name
            site = Site(name, index, module)
            judged.append((site, reasons[module] or _reason_of_calls(calls.get(module, []))))
        x = stage.module(x)
    return judged


def _learners(stage: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Layers with something to train, and their paths in the stage."""
    parts: set[nn.Module] = set()
    for path, module in stage.named_modules():
        affine = _is_affine(module)
        own = module.parameters(recurse=affine)
        if module not in parts and any(parameter.requires_grad for parameter in own):
            yield module, path
        if affine:  # what its weights are computed from
            parts.update(module.modules())


def _owners(chain: Chain) -> dict[int, int]:
    """Count the places where each parameter occurs."""
    owners: dict[int, int] = {}
    for stage in chain:
        for module in dict.fromkeys(stage.module.modules()):
            for parameter in module.parameters(recurse=False):
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return owners


def _is_affine(module: nn.Module) -> bool:
    """Return whether it is one of the layers, and no subclass that computes something else."""
    return any(type(module).forward is layer.forward for layer in AFFINE_LAYERS)


def _reason_of_weights(module: nn.Module, owners: dict[int, int]) -> str:
    if not _is_affine(module):
        return f"{type(module).__name__} is none of torch's affine layers"
    parameters = dict(module.named_parameters())
    if set(parameters) not in ({"weight"}, {"weight", "bias"}):
        return "its weights are computed from other parameters"
    if any(owners[id(parameter)] > 1 for parameter in parameters.values()):
        return "its weights are used elsewhere, too"
    if any(parameter.is_complex() for parameter in parameters.values()):
        return "its weights are complex numbers"
    if not all(parameter.requires_grad for parameter in parameters.values()):
        return "it is frozen in part"
    return ""


def _reason_of_calls(by_row: list[bool]) -> str:
    if not by_row:
        return "its weights are used without a call of it"
    if len(by_row) != len(PROBE_ROWS):
        return "it does not run just once"
    return "" if all(by_row) else "it does not take one tensor with one row a sample"


def _calls(stage: nn.Module, inner: Iterable[nn.Module], x: Tensor) -> dict[nn.Module, list[bool]]:
    """Run a stage; for each call of an inner layer tell whether it was on one row a sample."""
    calls: dict[nn.Module, list[bool]] = {}
    for size in PROBE_ROWS:
        with ExitStack() as hooks:
            for module in inner:
                note = _note(calls, size)
                hooks.enter_context(module.register_forward_hook(note, with_kwargs=True))
            stage(x[:size])
    return calls


def _note(calls: dict[nn.Module, list[bool]], size: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> None:
        alone = len(args) == 1 and not kwargs
        by_row = alone and args[0].ndim > 1 and len(args[0]) == len(out) == size
        calls.setdefault(module, []).append(by_row)

    return hook
