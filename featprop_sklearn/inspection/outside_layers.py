"""What a network computes by itself, outside of its layers: what hooks on layers cannot see."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featprop_sklearn.inspection.relevance.registry import call_name

__all__ = ["Calls", "calls_outside_layers"]


@dataclass
class Calls:
    """Calls in one run of a network.

    Attributes
    ----------
    functions : dict of str to str
        Function of torch that is called outside of layers, on what depends on the input ->
        path of a module that calls it.
    runs : Counter of str
        Path of each layer with parameters -> how often it runs.
    """

    functions: dict[str, str] = field(default_factory=dict)
    runs: Counter[str] = field(default_factory=Counter)


def calls_outside_layers(model: nn.Module, inner: nn.Module, x: Tensor) -> Calls:
    """Run a network once, and note the functions that it calls outside of layers.

    Parameters
    ----------
    model : nn.Module
        What is run.
    inner : nn.Module
        The network in it that paths refer to; layers are its modules without children.
    x : Tensor of shape (n_samples, ...)
        A few inputs.

    Returns
    -------
    Calls
        By name, without the underscore of in-place functions.
    """
    watch, start = _Watch(), x.detach().clone().requires_grad_()
    with ExitStack() as stack:
        for path, module in inner.named_modules():
            stack.callback(module.register_forward_pre_hook(watch.enters(path, module)).remove)
            stack.callback(module.register_forward_hook(watch.leaves).remove)
        with torch.enable_grad(), watch:
            model(start)
    return watch.calls


class _Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = Calls()
        self._inside: list[tuple[str, bool]] = [("", False)]

    def enters(self, path: str, module: nn.Module) -> Any:
        is_layer = not list(module.children())

        def enter(*_: Any) -> None:
            self._inside.append((path, is_layer))
            if is_layer and list(module.parameters()):
                self.calls.runs[path] += 1

        return enter

    def leaves(self, *_: Any) -> None:
        self._inside.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch."""
        result = func(*args, **(kwargs or {}))
        path, is_layer = self._inside[-1]
        if not is_layer and isinstance(result, Tensor) and result.requires_grad:
            self.calls.functions.setdefault(call_name(func), path)
        return result
