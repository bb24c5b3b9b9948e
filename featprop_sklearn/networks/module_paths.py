"""Where the modules of a network end: at the output of a stage, or inside it."""

from __future__ import annotations

import threading
from contextlib import ExitStack

from torch import Tensor, nn

from featprop_sklearn.networks.layers import is_layer
from featprop_sklearn.networks.outputs import tensors_in

__all__ = ["module_paths", "modules_outside_layers", "run_watched"]


def module_paths(network: nn.Module) -> dict[nn.Module, list[str]]:
    """List the paths under which each module of a network is registered."""
    paths: dict[nn.Module, list[str]] = {}
    for path, module in network.named_modules(remove_duplicate=False):
        if path:
            paths.setdefault(module, []).append(path)
    return paths


def modules_outside_layers(module: nn.Module) -> dict[nn.Module, str]:
    """Return the paths of the modules, except those inside of layers."""
    found: dict[nn.Module, str] = {}
    pending = [("", module)]
    while pending:
        path, part = pending.pop()
        if part in found:
            continue
        found[part] = path
        is_container = type(part).forward is nn.Module.forward
        if path and is_layer(part) and not is_container:
            continue
        prefix = f"{path}." if path else ""
        pending += [(f"{prefix}{name}", child) for name, child in part.named_children()]
    return found


def run_watched(stage: nn.Module, x: Tensor) -> tuple[Tensor, list[nn.Module], list[nn.Module]]:
    """Run a stage and tell whose output its own is.

    Parameters
    ----------
    stage : nn.Module
        One tensor in, one tensor out.
    x : Tensor
        Its input.

    Returns
    -------
    output : Tensor
        The stage's.
    ending : list of nn.Module
        The stage and the modules inside that run once and whose output, or the first tensor
        in it, is this tensor.
    others : list of nn.Module
        The other modules inside.
    """
    inner = [module for module in stage.modules() if module is not stage]
    outputs: dict[nn.Module, list[tuple[Tensor, int]]] = {module: [] for module in inner}
    thread = threading.get_ident()  # others may be running the same modules

    def note(module: nn.Module, args: object, output: object) -> None:
        first = next(tensors_in(output), None)
        if threading.get_ident() == thread and first is not None:
            outputs[module].append((first.value, _version(first.value)))

    with ExitStack() as hooks:
        for module in inner:
            hooks.enter_context(module.register_forward_hook(note))
        output = stage(x)
    ending: list[nn.Module] = [stage]
    others: list[nn.Module] = []
    for module, seen in outputs.items():
        once = len(seen) == 1 and seen[0][0] is output and seen[0][1] == _version(output)
        (ending if once else others).append(module)
    return output, ending, others


def _version(tensor: Tensor) -> int:
    """Count how often it has been overwritten, as by ``out += x``."""
    return 0 if tensor.is_inference() else tensor._version
