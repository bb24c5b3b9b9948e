"""Modules that overwrite their input: made to work on a copy, so that features can be kept."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["copy_input", "run_protected"]


def run_protected(module: nn.Module, x: Tensor) -> Tensor:
    """Run a module on a copy; if it overwrote that, have it work on copies from now on."""
    given = x.clone()
    version = given._version
    output = module(given)
    if given._version != version:
        module.register_forward_pre_hook(copy_input)
    return output


def copy_input(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copy the first argument, as a pre-hook."""
    return (args[0].clone(), *args[1:])
