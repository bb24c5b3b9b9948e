"""Which modules are single layers, never opened when a network is read as a chain."""

from __future__ import annotations

from torch import nn

__all__ = ["extends_torch_layer", "is_layer", "treat_as_layer"]

_TREATED_AS_LAYERS: set[type[nn.Module]] = set()


def treat_as_layer(layer_type: type[nn.Module]) -> None:
    """Keep modules of this type (and its subclasses) whole in every chain."""
    _TREATED_AS_LAYERS.add(layer_type)


def is_layer(module: nn.Module) -> bool:
    """Return whether the module is one layer: torch's own, or one declared so."""
    if isinstance(module, tuple(_TREATED_AS_LAYERS)):
        return True
    return type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)


def extends_torch_layer(module: nn.Module) -> bool:
    """Return whether the module is one of torch's layers to which a subclass adds others."""
    kind = type(module)
    nearest = next((base for base in kind.__mro__ if base in _TREATED_AS_LAYERS), kind)
    is_torchs = nearest.__module__.startswith("torch.")
    return is_torchs and nearest is not kind and next(module.children(), None) is not None
