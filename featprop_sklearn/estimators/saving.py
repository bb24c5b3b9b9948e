"""Pickles that can be loaded on any machine."""

from __future__ import annotations

import copy
from typing import Any, Self

from sklearn.base import BaseEstimator
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from featprop_sklearn.data import module_device

__all__ = ["SavedOnCPU"]


class SavedOnCPU(BaseEstimator):
    """Put what lies on an accelerator on the CPU when it is pickled.

    Torch's own pickles of what lies on a GPU cannot be loaded where there is none. What is
    loaded works on the CPU, until it is fitted again.
    """

    def __getstate__(self) -> dict[str, Any]:
        """Return the state, on the CPU."""
        state = super().__getstate__()
        modules = [value for value in state.values() if isinstance(value, nn.Module)]
        if all(module_device(module).type == "cpu" for module in modules):
            return state
        with _CopiesOnCPU():
            return copy.deepcopy(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy to where it is."""
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(vars(self), memo))
        return twin


class _CopiesOnCPU(TorchFunctionMode):
    """Copies of tensors are made on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                copied = tensor.detach().cpu().clone()
                memo[id(tensor)] = copied.requires_grad_(tensor.requires_grad)
            return memo[id(tensor)]
        found = func(*args, **(kwargs or {}))
        # parameters copy themselves by a clone of what they hold
        return found.cpu() if func is Tensor.clone else found
