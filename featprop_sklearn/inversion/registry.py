"""Which inverter serves which layer type: ordered by class ancestry, unknown types refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import isclass

from torch import Size, Tensor, nn

from featprop_sklearn.inversion.base import ClosedForm, InversionOptions, Inverter
from featprop_sklearn.networks import treat_as_layer

__all__ = [
    "find_inverter",
    "inversion_method",
    "keeps_bounds",
    "register_inverter",
    "registered_layers",
]

Function = Callable[[nn.Module, Tensor, Tensor], Tensor]
Factory = Callable[[nn.Module, Size, InversionOptions], Inverter]

_FACTORIES: dict[type[nn.Module], Factory] = {}


def register_inverter(layer_type: type[nn.Module], inverter: type[Inverter] | Function) -> None:
    """Say how a layer type is inverted.

    Subclasses of ``layer_type`` are served too, unless they have an entry of their
    own. A later registration of the same type replaces the earlier one.

    Parameters
    ----------
    layer_type : type
        Subclass of :class:`torch.nn.Module`, one tensor in and one tensor out.
    inverter : subclass of Inverter, or callable
        A callable ``(layer, wanted, reference) -> preimages`` is enough for a closed
        form: float64 tensors, batch first, no gradients.

    Raises
    ------
    TypeError
        If one of the two is not what is described above.
    """
    if not (isclass(layer_type) and issubclass(layer_type, nn.Module)):
        raise TypeError(
            f"layer_type must be a subclass of torch.nn.Module; got {layer_type!r}. "
            "Pass the class, not an instance."
        )
    if isclass(inverter) and issubclass(inverter, Inverter):
        _FACTORIES[layer_type] = inverter
    elif callable(inverter) and not isclass(inverter):
        _FACTORIES[layer_type] = partial(ClosedForm, function=inverter)
    else:
        raise TypeError(
            "inverter must be a subclass of featprop_sklearn.inversion.Inverter or a function "
            f"(layer, wanted, reference) -> preimages; got {inverter!r}."
        )
    treat_as_layer(layer_type)


def registered_layers() -> tuple[type[nn.Module], ...]:
    """Return the layer types that have an inverter of their own."""
    return tuple(_FACTORIES)


def find_inverter(layer_type: type[nn.Module]) -> Factory | None:
    """Return the factory of the nearest registered ancestor, or None.

    A subclass of one of torch's layers with a forward of its own computes something else.
    """
    for ancestor in layer_type.__mro__:
        if ancestor in _FACTORIES:
            is_torchs = ancestor.__module__.startswith("torch.")
            same = layer_type.forward is ancestor.forward
            return _FACTORIES[ancestor] if same or not is_torchs else None
    return None


def keeps_bounds(layer: nn.Module) -> bool:
    """Return whether the layer's inversion can keep its inputs in a range."""
    return bool(getattr(find_inverter(type(layer)), "supports_bounds", False))


def inversion_method(layer: nn.Module) -> str:
    """Return how the layer is inverted, in a word."""
    inverter = find_inverter(type(layer))
    return "Gauss-Newton" if inverter is None else getattr(inverter, "method", "closed form")
