"""Modules that a forward runs under ``torch.no_grad``: frozen, as they were in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

__all__ = ["freeze_without_gradients"]


def freeze_without_gradients(network: nn.Module, x: Tensor) -> None:
    """Freeze the parameters of modules that run without gradients whenever they run.

    ``torch.fx`` reads a forward without the ``torch.no_grad`` in it. Where that is around all
    that can learn, it is for inference, and nothing is frozen.

    Parameters
    ----------
    network : nn.Module
        In eval mode, already private.
    x : Tensor of shape (n_samples, ...)
        A few inputs.
    """
    learns: dict[nn.Module, bool] = {}

    def note(module: nn.Module, args: object) -> None:
        learns[module] = learns.get(module, False) or torch.is_grad_enabled()

    with ExitStack() as hooks, _no_graph(network), torch.enable_grad():
        for module in network.modules():
            hooks.enter_context(module.register_forward_pre_hook(note))
        network(x.clone())
    frozen = {
        p for module, does in learns.items() if not does for p in module.parameters(recurse=False)
    }
    others = (module for module in network.modules() if learns.get(module, True))
    frozen -= {p for module in others for p in module.parameters(recurse=False)}
    if any(p.requires_grad and p not in frozen for p in network.parameters()):
        for parameter in frozen:
            parameter.requires_grad_(False)


@contextmanager
def _no_graph(network: nn.Module) -> Iterator[None]:
    """Let runs with gradients keep nothing for them: networks may hold on to what they compute."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
