"""Where in a network relevance starts: at the output of a module, or of its last activation."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featprop_sklearn.inspection.relevance.activations import ends_feature_map
from featprop_sklearn.inspection.relevance.registry import call_name

__all__ = ["SeedPoint", "find_seed_point", "layer_path"]

Act = Callable[[Any], Any]
Watch = Callable[[Act], AbstractContextManager]

_NAME_IT = "Pass the module whose output is the feature map that relevance starts from as layer=."


class SeedPoint:
    """One of the outputs that are watched while a network runs.

    Parameters
    ----------
    watch : callable
        ``watch(act)`` returns a context in which each of them goes through ``act``, and is
        replaced by what that returns, unless it is None.
    number : int
        Which of them it is, from 0 on.
    """

    def __init__(self, watch: Watch, number: int) -> None:
        self.watch = watch
        self.number = number

    def replaced(self, act: Act) -> AbstractContextManager:
        """Return a context in which this output is replaced by what ``act`` makes of it."""
        count = itertools.count()
        return self.watch(lambda output: act(output) if next(count) == self.number else None)


def layer_path(model: nn.Module, layer: object) -> str | None:
    """Return the path of a module in a model; paths and None go through.

    Raises
    ------
    ValueError
        If the model has no such module.
    """
    paths = [path for path, _ in model.named_modules(remove_duplicate=False) if path]
    if layer is None or layer in paths:
        return layer  # type: ignore[return-value]
    found = next((path for path, module in model.named_modules() if module is layer), None)
    if found is None:
        near = difflib.get_close_matches(layer, paths) if isinstance(layer, str) else []
        hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else f"Paths: {paths}."
        what = repr(layer) if isinstance(layer, str) else type(layer).__name__
        raise ValueError(f"layer must be a module of the model, or its path; got {what}. {hint}")
    return found


def find_seed_point(
    network: nn.Module, inner: nn.Module, path: str | None, x: Tensor
) -> tuple[SeedPoint, Tensor]:
    """Find the feature map that relevance starts from.

    Parameters
    ----------
    network : nn.Module
        What is run; its parameters need no gradients.
    inner : nn.Module
        The copy of the user's network in it.
    path : str or None
        Of a module in that copy that runs once; None is the last activation of more than
        one position a channel, whether module or function.
    x : Tensor of shape (n_samples, ...)
        A few inputs.

    Returns
    -------
    point : SeedPoint
        The output of the module.
    outputs : Tensor
        Of the network.

    Raises
    ------
    ValueError
        If the module does not run just once, or gives no feature map; if there is no such
        activation, or the network passes it by.
    """
    watch = _Activations if path is None else _watch_module(inner.get_submodule(path))
    seen: list[tuple[int, ...]] = []
    with torch.no_grad(), watch(lambda output: seen.append(_shape(output))):
        outputs = network(x.clone())
    if path is not None:
        _check_module(path, seen)
        return SeedPoint(watch, 0), outputs
    maps = [number for number, shape in enumerate(seen) if math.prod(shape[2:]) > 1]
    if not maps:
        raise ValueError(
            f"The network has no activation of more than one position a channel. {_NAME_IT}"
        )
    point = SeedPoint(watch, maps[-1])
    _check_passed_by_none(network, point, x)
    return point, outputs


class _Activations(TorchFunctionMode):
    """Watch the outputs of activations, modules and functions alike."""

    def __init__(self, act: Act) -> None:
        super().__init__()
        self.act = act

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not ends_feature_map(call_name(func), func, args, kwargs):
            return output
        changed = self.act(output)
        return output if changed is None else changed


def _watch_module(module: nn.Module) -> Watch:
    return lambda act: module.register_forward_hook(lambda module, args, output: act(output))


def _shape(output: object) -> tuple[int, ...]:
    return tuple(output.shape) if isinstance(output, Tensor) else ()


def _check_module(path: str, seen: list[Any]) -> None:
    if len(seen) != 1:
        raise ValueError(
            f"layer={path!r} runs {len(seen)} times in one run of the network; relevance starts "
            "from a module that runs once. Pass the block that it is the last part of."
        )
    shape = ", ".join(map(str, seen[0][1:]))
    if len(seen[0]) < 3:
        raise ValueError(
            f"layer={path!r} must give one tensor of shape (n_samples, channels, positions...); "
            f"it gives {f'(n_samples, {shape})' if shape else 'something else'}. Pass a layer "
            "before the features are flattened, such as the last convolution's ReLU."
        )


def _check_passed_by_none(network: nn.Module, point: SeedPoint, x: Tensor) -> None:
    """Check that the outputs depend on the input through this one feature map alone."""
    with torch.enable_grad(), point.replaced(lambda output: output.detach()):
        passed_by = network(x.detach().clone().requires_grad_().clone()).requires_grad
    if passed_by:
        raise ValueError(
            "The last activation of the network lies on one of several branches. "
            f"{_NAME_IT} Where branches join it is the block that joins them."
        )
