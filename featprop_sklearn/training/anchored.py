"""AdamW whose weight decay spares the parameters that lie outside of torch's layers."""

from __future__ import annotations

from collections.abc import Callable
from glob import escape
from typing import Any

import torch
from torch import nn

__all__ = ["AnchoredAdamW", "anchored_groups"]

#: what holds parameters without being a layer
_HOLDERS = (nn.Module, nn.ParameterList, nn.ParameterDict)


class AnchoredAdamW(torch.optim.AdamW):
    """AdamW with groups whose parameters decay to where they were, not to zero.

    Factors that are multiplied with each other, frequencies or tokens mean nothing less when
    they are small: decay to zero would not bound what they do, but take it away.

    Parameters
    ----------
    params : iterable
        Groups with a number ``anchor`` decay by it to where they are now.
    **options : Any
        Of AdamW.
    """

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        self._anchored = [
            (group, [parameter.detach().clone() for parameter in group["params"]])
            for group in self.param_groups
            if group.get("anchor")
        ]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step."""
        for group, starts in self._anchored:
            share = float(group["lr"]) * group["anchor"]
            for parameter, start in zip(group["params"], starts, strict=True):
                parameter.lerp_(start, share)
        return super().step(closure)


def anchored_groups(network: nn.Module, decay: float) -> list[tuple[str, dict[str, float]]]:
    """Group the parameters that are no weights of torch's layers, as skorch takes groups."""
    weights = {
        id(parameter)
        for module in network.modules()
        if _is_torchs(type(module))
        for parameter in module.parameters(recurse=False)
    }
    loose = [name for name, p in network.named_parameters() if id(p) not in weights]
    return [(escape(name), {"weight_decay": 0.0, "anchor": decay}) for name in loose]


def _is_torchs(kind: type) -> bool:
    return any(c.__module__.startswith("torch.nn.") for c in kind.__mro__ if c not in _HOLDERS)
