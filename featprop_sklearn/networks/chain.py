"""A network as an ordered chain of stages, verified against the network itself."""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Size, Tensor, nn

from featprop_sklearn.networks.functional import Permute, Reshape
from featprop_sklearn.networks.layers import is_layer
from featprop_sklearn.networks.module_paths import module_paths, run_watched
from featprop_sklearn.networks.outputs import SingleOutput, tensors_in
from featprop_sklearn.networks.probe import random_state_kept, with_single_output
from featprop_sklearn.networks.tracing import CannotOpenError, has_rows, trace_segments

__all__ = ["Chain", "Stage", "build_chain", "private_copy", "private_layer"]


@dataclass(frozen=True)
class Stage:
    """One step of the network: one tensor in, one tensor out, batch first.

    Attributes
    ----------
    name : str
        Unique in the chain.
    module : nn.Module
        What computes it.
    in_shape, out_shape : Size
        Of one sample.
    ends : tuple of str
        Other paths of modules in the network whose output is the stage's.
    inside : tuple of str
        Paths of the modules inside of it whose output is not.
    closed : str
        Why a module with others inside stays one stage, to end a sentence.
    """

    name: str
    module: nn.Module
    in_shape: Size
    out_shape: Size
    ends: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    closed: str = ""


class Chain(Sequence[Stage]):
    """The ordered stages; run one after the other they give the network's output.

    The stages share the parameters of the module that the chain was built from.

    Parameters
    ----------
    stages : list of Stage
        In forward order, names unique.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = tuple(stages)

    def __len__(self) -> int:
        return len(self._stages)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        """Return a stage, or the part of the chain that a slice names."""
        return Chain(self._stages[index]) if isinstance(index, slice) else self._stages[index]

    @property
    def names(self) -> list[str]:
        """Names of the stages, in forward order."""
        return [stage.name for stage in self._stages]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the chain's output."""
        for stage in self._stages:
            x = stage.module(x)
        return x

    def features(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the feature at the output of each stage in turn."""
        for stage in self._stages:
            x = stage.module(x)
            yield x

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of all stages, each once."""
        return list(dict.fromkeys(p for stage in self._stages for p in stage.module.parameters()))


def private_copy(module: nn.Module) -> nn.Module:
    """Copy a user's network to work on, in eval mode.

    A network that is frozen as a whole is unfrozen; one that is frozen in parts is not. One
    of 16-bit numbers becomes float32: the steps of training are below their resolution.

    Raises
    ------
    ValueError
        If the network cannot be copied.
    """
    try:
        twin = copy.deepcopy(module, _without_history(module)).eval()
    except Exception as error:
        raise ValueError(
            f"module ({type(module).__name__}) cannot be copied with copy.deepcopy: {error}. "
            "The estimators never change the network that they are given, so they need a copy: "
            "remove what cannot be copied (open files, locks, tensors with a history in objects)."
        ) from error
    if not any(parameter.requires_grad for parameter in twin.parameters()):
        twin.requires_grad_(True)  # frozen as a whole: for inference, not against training
    dtypes = {t.dtype for t in (*twin.parameters(), *twin.buffers()) if t.is_floating_point()}
    if dtypes and dtypes <= {torch.float16, torch.bfloat16}:
        twin.float()
    return twin


def _without_history(module: nn.Module) -> dict[int, Any]:
    """Copy the tensors kept from an earlier run, for copy.deepcopy, which refuses them."""
    return {
        id(kept.value): kept.value.detach().clone()
        for part in module.modules()
        for kept in tensors_in(vars(part))
        if not kept.value.is_leaf
    }


def private_layer(layer: nn.Module) -> nn.Module:
    """Copy a layer to work on: eval mode, its input never overwritten.

    Raises
    ------
    ValueError
        If the layer cannot be copied.
    """
    twin = private_copy(layer)
    if any(getattr(part, "inplace", False) for part in twin.modules()):
        twin.register_forward_pre_hook(_copy_input)
    return twin


def build_chain(module: nn.Module, x: Tensor) -> Chain:
    """Read a network as a chain of stages; the chain gives the network's output on ``x``.

    ``nn.Sequential`` is opened, other modules are traced (``torch.fx``) and cut at
    their single-tensor points; what cannot be opened, or does not reproduce the
    module's output when opened, stays one composite stage. A stage that overwrites its
    input is made to work on a copy, so that features can be kept.

    Parameters
    ----------
    module : nn.Module
        In eval mode, already private (see :func:`private_copy`).
    x : Tensor of shape (n_samples, ...)
        Example data, a few rows.

    Returns
    -------
    Chain
        At least one stage.

    Raises
    ------
    ValueError
        If the network refuses the data or returns no tensor of one row a sample, or several.
    """
    if len(x) == 1:  # a second row tells a batch dimension from the others
        x = torch.cat([x, x])
    with torch.no_grad(), random_state_kept(x.device):
        network = with_single_output(module, x)
        stages = _with_paths(_open(network, "", x), network, x)
        if isinstance(network, SingleOutput):
            stages = _without_wrapper(stages)
    return Chain(_with_unique_names(stages))


def _without_wrapper(stages: list[Stage]) -> list[Stage]:
    """Name the stages of a :class:`SingleOutput` as those of the network that it wraps."""
    return [
        replace(
            stage,
            name=stage.name.removeprefix("module.").removeprefix("module_"),
            ends=tuple(path.removeprefix("module.") for path in stage.ends if path != "module"),
            inside=tuple(path.removeprefix("module.") for path in stage.inside),
        )
        for stage in stages
    ]


def _open(module: nn.Module, path: str, x: Tensor) -> list[Stage]:
    """Stages of one module on its own input ``x``; one stage if it stays closed."""
    output = _run_protected(module, x)
    whole = Stage(path or "network", module, x.shape[1:], output.shape[1:])
    if is_layer(module):
        return [replace(whole, closed="it counts as one layer")]
    try:
        parts = _parts(module, x)
    except CannotOpenError as reason:
        return [replace(whole, closed=str(reason))]
    stages: list[Stage] = []
    value = x
    for name, part, openable in parts:
        full = f"{path}.{name}" if path else name
        if openable:
            new = _open(part, full, value)
        else:
            shapes = value.shape[1:], _run_protected(part, value).shape[1:]
            new = [Stage(full, part, *shapes, closed="more than one tensor is under way inside it")]
        stages += new
        for stage in new:
            value = stage.module(value)
    if not _agrees(stages, module, x, output):
        return [replace(whole, closed="what torch.fx reads in its forward gives another output")]
    if path:
        stages[-1] = replace(stages[-1], ends=(*stages[-1].ends, path))
    return stages


def _with_paths(stages: list[Stage], network: nn.Module, x: Tensor) -> list[Stage]:
    """Tell the stages which modules of the network end at them, and which lie inside."""
    paths = module_paths(network)
    found = []
    for stage in stages:
        x, ending, others = run_watched(stage.module, x)
        ending += [network.get_submodule(path) for path in stage.ends]
        ends = dict.fromkeys(path for module in ending for path in paths.get(module, ()))
        inside = [path for module in others for path in paths.get(module, ())]
        ends.pop(stage.name, None)
        found.append(replace(stage, ends=tuple(ends), inside=tuple(inside)))
    return found


def _run_protected(module: nn.Module, x: Tensor) -> Tensor:
    """Run a module; if it overwrote its input, have it work on a copy from now on."""
    given = x.clone()
    version = given._version
    output = module(given)
    if given._version != version:
        module.register_forward_pre_hook(_copy_input)
    return output


def _copy_input(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0].clone(), *args[1:])


def _parts(module: nn.Module, x: Tensor) -> list[tuple[str, nn.Module, bool]]:
    """Name, module, whether to open it further; CannotOpenError if there is nothing to open."""
    if type(module).forward is nn.Sequential.forward:
        return _sequential_parts(module, x)
    return [(s.name, s.module, s.child is not None) for s in trace_segments(module, x)]


def _sequential_parts(module: nn.Module, x: Tensor) -> list[tuple[str, nn.Module, bool]]:
    """Children one by one; those that pass on a tuple, or time first, go with the next ones."""
    parts: list[tuple[str, nn.Module, bool]] = []
    group: OrderedDict[str, nn.Module] = OrderedDict()
    value, first = x.clone(), x[:1].clone()
    for name, child in module._modules.items():
        assert child is not None  # torch could not have run it
        try:
            value, first = child(value), child(first)
        except Exception as error:  # whatever it raises, it refuses one row alone
            raise CannotOpenError(f"its part {name!r} refuses a single row") from error
        group[name] = child
        if has_rows(value, len(x)) and has_rows(first, 1):
            alone = len(group) == 1
            parts.append((name, child if alone else nn.Sequential(group), alone))
            group = OrderedDict()
    if not parts or group:
        raise CannotOpenError("its last part does not give one tensor with one row a sample")
    return parts


def _agrees(stages: list[Stage], module: nn.Module, x: Tensor, output: Tensor) -> bool:
    """Return whether the stages compute what the module does, for any batch size."""
    chain = Chain(stages)
    rtol, atol = (1e-12, 1e-12) if x.dtype == torch.float64 else (1e-5, 1e-6)
    try:
        return all(
            has_rows(got := chain(rows.clone()), len(rows))  # or allclose would broadcast
            and torch.allclose(got, expected, rtol=rtol, atol=atol)
            for rows, expected in ((x, output), (x[:1], module(x[:1].clone())))
        )
    except Exception:  # a wrong trace may fail in any way
        return False


def _with_unique_names(stages: list[Stage]) -> list[Stage]:
    """Add numbers for the uses of a layer that occurs twice: ``act`` and ``act_2``."""
    taken = {stage.name for stage in stages}
    seen: set[str] = set()
    named = []
    for stage in stages:
        name = stage.name
        if name in seen:
            numbered = (f"{stage.name}_{number}" for number in itertools.count(2))
            name = next(candidate for candidate in numbered if candidate not in taken)
        seen.add(name)
        taken.add(name)
        named.append(replace(stage, name=name))
    return named


def open_sequential(module: nn.Module, path: str = "") -> list[tuple[str, nn.Module]]:
    """List names and layers of nested ``nn.Sequential``, for which no data is needed.

    Raises
    ------
    ValueError
        If a module on the way is neither a layer nor an ``nn.Sequential``.
    """
    if is_layer(module):
        return [(path or "network", module)]
    if type(module).forward is not nn.Sequential.forward:
        raise ValueError(
            f"{path or 'module'} ({type(module).__name__}) is neither a torch layer nor an "
            "nn.Sequential: its forward can be read only while it runs. "
            "Pass a few rows of data as X=, or register its inversion with register_inverter."
        )
    return [
        item
        for name, child in module._modules.items()
        if child is not None
        for item in open_sequential(child, f"{path}.{name}" if path else name)
    ]


#: layers after which outputs still are what they were before
_TRANSPARENT = (nn.Identity, nn.Flatten, nn.Unflatten, Reshape, Permute, nn.Dropout)


def last_layer_type(chain: Chain) -> type[nn.Module] | None:
    """Return the type of the layer that decides what the outputs are; None if it is unknown."""
    for stage in reversed(chain):
        if not isinstance(stage.module, _TRANSPARENT):
            return type(stage.module) if is_layer(stage.module) else None
    return None
