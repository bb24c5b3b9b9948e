"""A network as an ordered chain of stages, verified against the network itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Size, Tensor, nn

from featprop_sklearn.networks.agreement import agrees, is_close
from featprop_sklearn.networks.cutting import replay_segments
from featprop_sklearn.networks.frozen import freeze_without_gradients
from featprop_sklearn.networks.functional import Permute, Reshape
from featprop_sklearn.networks.in_place import run_protected
from featprop_sklearn.networks.layers import is_layer
from featprop_sklearn.networks.module_paths import module_paths, run_watched
from featprop_sklearn.networks.probe import random_state_kept, with_single_output
from featprop_sklearn.networks.recurrent import differentiable
from featprop_sklearn.networks.replay import Outline, Replay
from featprop_sklearn.networks.sequential import sequential_segments
from featprop_sklearn.networks.tracing import CannotOpenError, Segment, trace_segments
from featprop_sklearn.networks.watched import DoubtError, Part, Watched

__all__ = ["Chain", "Stage", "build_chain", "last_layer_type", "outline_chain"]

_Way = Callable[[nn.Module, Tensor, Part | None], list[Segment]]

_BRANCHED = "more than one tensor is under way inside it"


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
    path : str
        Where in the network the names of the parts of ``module`` count from.
    """

    name: str
    module: nn.Module
    in_shape: Size
    out_shape: Size
    ends: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    closed: str = ""
    path: str = ""


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

    def modules(self) -> list[nn.Module]:
        """Return what computes each stage."""
        return [stage.module for stage in self._stages]

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of all stages, each once."""
        return list(dict.fromkeys(p for stage in self._stages for p in stage.module.parameters()))


def build_chain(module: nn.Module, x: Tensor) -> Chain:
    """Read a network as a chain of stages; the chain gives the network's output on ``x``.

    ``nn.Sequential`` is opened, other modules are traced (``torch.fx``) and cut at
    their single-tensor points; what cannot be traced is cut where a run of it shows such
    points. What cannot be opened, or does not reproduce the module's output when opened,
    stays one composite stage. A stage that overwrites its input is made to work on a copy,
    so that features can be kept. What a forward runs under ``torch.no_grad`` is frozen.

    Parameters
    ----------
    module : nn.Module
        In eval mode, already private (see :func:`~featprop_sklearn.networks.private_copy`).
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
    with torch.no_grad(), random_state_kept(x.device), differentiable([module]):
        network = with_single_output(module, x)
        freeze_without_gradients(network, x)
        stages = _open(network, "", x, run_protected(network, x))
        stages = _with_paths(stages, network, x)
    return Chain(_with_unique_names(stages))


def outline_chain(watched: Watched) -> Chain:
    """Read a network as :func:`build_chain` does, from what its modules were seen to return.

    Nothing of it is run again, but for functions between them.

    Parameters
    ----------
    watched : Watched
        The network.

    Returns
    -------
    Chain
        To look at: some of its stages cannot be run.

    Raises
    ------
    DoubtError
        If only :func:`build_chain` can tell.
    """
    stages = _open(watched.network, "", *watched.example, watched)
    return Chain(_with_unique_names(stages))


def _open(
    module: nn.Module, path: str, x: Tensor, output: Tensor, watched: Watched | None = None
) -> list[Stage]:
    """Stages of one module, from its input and output; one stage if it stays closed."""
    if is_layer(module):
        return [_stage(path, path, module, x, output, "it counts as one layer")]
    is_sequential = type(module).forward is nn.Sequential.forward
    ways = [sequential_segments if is_sequential else trace_segments, replay_segments]
    stages = _cut(module, path, path, x, output, ways, watched=watched)
    if path:
        stages[-1] = replace(stages[-1], ends=(*stages[-1].ends, path))
    return stages


def _cut(
    module: nn.Module,
    name: str,
    path: str,
    x: Tensor,
    output: Tensor,
    ways: Sequence[_Way],
    reason: str = "",
    watched: Watched | None = None,
) -> list[Stage]:
    """Cut a module at ``path`` in the first way in which the parts do what it does."""
    part = Part(watched, path, x, output) if watched else None
    for way in ways:
        try:
            segments = way(module, x, part)
        except CannotOpenError as error:
            reason = reason or str(error)
            continue
        if part is not None:
            _check_outline(segments, part)
        stages = _stages(segments, path, x, watched)
        if part is not None or agrees(Chain(stages), module, x, output):
            return stages
        reason = reason or "what torch.fx reads in its forward gives another output"
    return [_stage(name, path, module, x, output, reason)]


def _check_outline(segments: list[Segment], part: Part) -> None:
    """Check that segments compute, with what their submodules returned, what they did inside."""
    x = part.x
    for segment in segments:
        known = segment.child is not None or isinstance(segment.module, Replay | Outline)
        if not known and not is_close(
            part.watched.compute(segment.module, x.clone()), segment.output
        ):
            raise DoubtError
        x = segment.output
    if not is_close(x, part.output):
        raise DoubtError


def _stages(segments: list[Segment], path: str, x: Tensor, watched: Watched | None) -> list[Stage]:
    """Open the parts of a module as far as they can be."""
    stages: list[Stage] = []
    for segment in segments:
        name = f"{path}.{segment.name}" if path else segment.name
        part = segment.module
        output = segment.output if watched else run_protected(part, x)
        if segment.child is not None:
            new = _open(part, name, x, output, watched)
        elif isinstance(part, Replay | Outline):
            new = [_stage(name, path, part, x, output, _BRANCHED)]
        else:
            new = _cut(part, name, path, x, output, [replay_segments], _BRANCHED, watched)
        ends, inside = (
            tuple(f"{path}.{other}" if path else other for other in others)
            for others in (segment.ends, segment.inside)
        )
        last = replace(new[-1], ends=(*new[-1].ends, *ends), inside=(*new[-1].inside, *inside))
        stages += [*new[:-1], last]
        x = output
    return stages


def _stage(
    name: str, path: str, module: nn.Module, x: Tensor, output: Tensor, closed: str
) -> Stage:
    shapes = x.shape[1:], output.shape[1:]
    return Stage(name or "network", module, *shapes, closed=closed, path=path)


def _with_paths(stages: list[Stage], network: nn.Module, x: Tensor) -> list[Stage]:
    """Tell the stages which modules of the network end at them, and which lie inside."""
    paths = module_paths(network)
    found = []
    for stage in stages:
        x, ending, others = run_watched(stage.module, x)
        ending += [network.get_submodule(path) for path in stage.ends]
        ends = dict.fromkeys(path for module in ending for path in paths.get(module, ()))
        inside = [path for module in others for path in paths.get(module, ())]
        ends.update(dict.fromkeys(stage.ends))
        ends.pop(stage.name, None)
        inside += [path for path in stage.inside if path not in ends]
        found.append(replace(stage, ends=tuple(ends), inside=tuple(dict.fromkeys(inside))))
    return found


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


#: layers after which outputs still are what they were before
_TRANSPARENT = (nn.Identity, nn.Flatten, nn.Unflatten, Reshape, Permute, nn.Dropout)


def last_layer_type(chain: Chain) -> type[nn.Module] | None:
    """Return the type of the layer that decides what the outputs are; None if it is unknown."""
    for stage in reversed(chain):
        if not isinstance(stage.module, _TRANSPARENT):
            return type(stage.module) if is_layer(stage.module) else None
    return None
