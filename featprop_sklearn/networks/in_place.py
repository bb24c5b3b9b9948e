"""Modules that overwrite their input: made to work on a copy, so that features can be kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["copy_input", "needs_its_input_overwritten", "overwrites", "run_protected"]


def overwrites(module: nn.Module, x: Tensor) -> tuple[bool, Tensor]:
    """Run a module on a copy; return whether it overwrote that, and its output."""
    given = x.clone()
    version = given._version
    output = module(given)
    return given._version != version, output


def run_protected(module: nn.Module, x: Tensor) -> Tensor:
    """Run a module; if it overwrote its input, have it work on a copy from now on."""
    is_overwritten, output = overwrites(module, x)
    if is_overwritten:
        module.register_forward_pre_hook(copy_input)
    return output


def copy_input(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copy the first argument, as a pre-hook."""
    return (args[0].clone(), *args[1:])


def needs_its_input_overwritten(network: nn.Module, part: nn.Module, x: Tensor) -> bool:
    """Return whether a network's output changes where a part of it works on a copy."""
    expected = network(x.clone())
    with part.register_forward_pre_hook(copy_input):
        return not torch.equal(network(x.clone()), expected)
