"""One ``forward`` as a list of segments between its single-tensor points (torch.fx)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list

from featprop_sklearn.networks.functional import layer_of_call
from featprop_sklearn.networks.stand_in import unwrap

if TYPE_CHECKING:
    from featprop_sklearn.networks.watched import Part

__all__ = [
    "TRACED",
    "CannotOpenError",
    "Segment",
    "Values",
    "has_rows",
    "is_plain_call",
    "trace_segments",
]

#: under which a graph keeps the class of the module that it was read in
TRACED = "traced"

#: calls that often name the batch size
_SIZED = ("view", "reshape", torch.reshape)

#: characters of torch.fx's own reason that are worth repeating
REASON_LENGTH = 120


class CannotOpenError(Exception):
    """A module has to stay one stage; the message ends a sentence that begins with it."""


@dataclass(frozen=True)
class Segment:
    """What one ``forward`` computes between two single-tensor points.

    ``output`` is what it gave for the example. ``child`` is the path of the submodule when the
    segment is just one call of it; otherwise ``module`` computes the segment. ``ends`` are paths
    of modules whose output the segment's is, ``inside`` those of others that are at work in it,
    as far as they are known.
    """

    name: str
    module: nn.Module
    output: Tensor
    child: str | None = None
    ends: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()


class _OneLevel(fx.Tracer):
    """Trace one ``forward``; submodules stay calls, to be opened one by one later."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    return module(*args, **kwargs)


class Values(fx.Interpreter):
    """Run a graph and keep the value of every node; submodules are called by ``call``."""

    def __init__(
        self, module: fx.GraphModule, call: Callable[[nn.Module, Any, Any], object] = _call
    ) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[fx.Node, object] = {}
        self._call = call

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        """Return what a node is given; lists and dicts that the forward makes can be changed."""
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return _thawed(args), _thawed(kwargs)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> object:
        """Call a submodule."""
        return self._call(self.fetch_attr(target), args, kwargs)

    def run_node(self, n: fx.Node) -> object:
        """Run a node and keep a copy of its value."""
        value = super().run_node(n)
        self.values[n] = value.clone() if isinstance(value, Tensor) else value
        return value


def _thawed(value: Any) -> Any:
    """Copy the collections of a graph as those of Python; others keep who they are."""
    if isinstance(value, immutable_list):
        return [_thawed(item) for item in value]
    if isinstance(value, immutable_dict):
        return {key: _thawed(item) for key, item in value.items()}
    if type(value) is tuple:
        return tuple(_thawed(item) for item in value)
    return value


def has_rows(value: object, count: int) -> bool:
    """Return whether the value is a tensor of so many rows."""
    return isinstance(value, Tensor) and value.ndim >= 1 and value.shape[0] == count


def trace_segments(module: nn.Module, x: Tensor, part: Part | None = None) -> list[Segment]:
    """Cut a module's ``forward`` at its single-tensor points.

    Parameters
    ----------
    module : nn.Module
        In eval mode; one tensor in (what else its forward takes is optional), one tensor out.
    x : Tensor
        Example input, at least two rows.
    part : Part or None
        What the module was in a run that was watched: submodules are not run again.

    Returns
    -------
    list of Segment
        At least one.

    Raises
    ------
    CannotOpenError
        If ``torch.fx`` cannot follow the forward, or finds no such point inside.
    """
    try:
        with _rows_counted_by_len(type(module).forward):
            traced = _trace(_one_argument(module))
        several, alone = (part.watched.several, part.watched.alone) if part else (_call, _call)
        values, first = _values(traced, x, several), _values(traced, x[:1], alone)
    except Exception as error:  # torch.fx raises nearly anything on what it cannot follow
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if len(reason) > REASON_LENGTH:
            reason = reason[:REASON_LENGTH].rsplit(" ", 1)[0] + " ..."
        raise CannotOpenError(f"torch.fx cannot follow its forward ({reason})") from error
    # a dimension that follows the number of rows is the batch; one as long by chance is not
    points = {
        node for node in values if has_rows(values[node], len(x)) and has_rows(first[node], 1)
    }
    _free_reshapes_from_batch_size(traced, values, points)
    segments = _segments(traced, values, points)
    if not segments or (len(segments) == 1 and segments[0].child is None):
        raise CannotOpenError(
            "nowhere inside it is one tensor, one row a sample, all that is passed on"
        )
    return segments


def _trace(module: nn.Module) -> fx.GraphModule:
    tracer = _OneLevel()
    with _attributes_kept(module):
        graph = tracer.trace(module)
    # the root has got the tensors that the forward takes for fixed
    traced = fx.GraphModule(tracer.root, graph)
    traced.meta[TRACED] = type(unwrap(module)).__name__
    return traced


def _one_argument(module: nn.Module) -> nn.Module:
    """Copy a module, because some keep features; its forward takes the input alone.

    ``torch.fx`` would make an input of every optional argument as well.
    """
    twin = copy.copy(module)
    kind = type(twin)
    forward = kind.forward
    _, *taken = inspect.signature(forward).parameters.values()
    if len(taken) != 1 or taken[0].kind is inspect.Parameter.VAR_POSITIONAL:
        methods = {"forward": lambda self, x: forward(self, x)}
        twin.__class__ = type(kind.__name__, (kind,), methods)
    return twin


@contextmanager
def _attributes_kept(module: nn.Module) -> Iterator[None]:
    """Take back what a forward sets on its submodules, such as masks: torch.fx sets proxies."""
    kept = {part: dict(vars(part)) for part in module.modules() if part is not module}
    try:
        yield
    finally:
        for part, attributes in kept.items():
            part.__dict__.clear()
            part.__dict__.update(attributes)


@contextmanager
def _rows_counted_by_len(forward: Any) -> Iterator[None]:
    """Let ``len(x)`` in a forward be followed, as ``x.size(0)`` is."""
    names = getattr(forward, "__globals__", {})
    missing = object()
    own = names.get("len", missing)
    plain = len if own is missing else own

    def rows(value: Any) -> Any:
        return value.size(0) if isinstance(value, fx.Proxy) else plain(value)

    names["len"] = rows
    try:
        yield
    finally:
        if own is missing:
            del names["len"]
        else:
            names["len"] = own


def _values(
    traced: fx.GraphModule, x: Tensor, call: Callable[[nn.Module, Any, Any], object]
) -> dict[fx.Node, object]:
    runner = Values(traced, call)
    runner.run(x.clone())
    return runner.values


def _free_reshapes_from_batch_size(
    traced: fx.GraphModule, values: dict[fx.Node, object], points: set[fx.Node]
) -> None:
    """Read ``y.view(x.size(0), ...)`` as ``y.view(-1, ...)``: no batch size crosses the graph."""
    for node in traced.graph.nodes:
        if node.target not in _SIZED or node not in points:
            continue
        source, value = node.args[0] if node.args else None, values[node]
        if source in points:
            assert isinstance(value, Tensor)
            node.args, node.kwargs = (source, (-1, *value.shape[1:])), {}
    traced.graph.eliminate_dead_code()
    traced.recompile()


def _segments(
    traced: fx.GraphModule, values: dict[fx.Node, object], points: set[fx.Node]
) -> list[Segment]:
    nodes = list(traced.graph.nodes)
    start, end = nodes[0], nodes[-1].args[0]
    if not isinstance(end, fx.Node) or end is start:
        return []
    steps = [n for n in nodes if n.op not in ("placeholder", "get_attr", "output")]
    last_use = {
        source: position for position, step in enumerate(steps) for source in step.all_input_nodes
    }
    segments: list[Segment] = []
    since: list[fx.Node] = []
    previous = start
    needed_until = last_use.get(start, 0)  # how far what came before this node is still read
    for position, node in enumerate(steps):
        since.append(node)
        alone = needed_until <= position
        needed_until = max(needed_until, last_use.get(node, 0))
        if (node is end) or (node in points and alone):
            segments.append(_segment(traced, values, previous, since))
            previous, since = node, []
        if node is end:
            break
    return segments


def _segment(
    traced: fx.GraphModule, values: dict[fx.Node, object], source: fx.Node, nodes: list[fx.Node]
) -> Segment:
    last = nodes[-1]
    value, result = values[source], values[last]
    assert isinstance(value, Tensor)
    assert isinstance(result, Tensor)
    if len(nodes) == 1 and last.all_input_nodes == [source]:
        if last.op == "call_module":
            path = str(last.target)
            child = traced.get_submodule(path)
            if is_plain_call(child, source, last.args, last.kwargs):
                return Segment(path, child, result, child=path)
        if last.op in ("call_function", "call_method") and last.args[:1] == (source,):
            layer = layer_of_call(last, value, result)
            if layer is not None:
                return Segment(last.name, layer.eval(), result)
    return Segment(last.name, _composite(traced, source, nodes), result)


def is_plain_call(
    module: nn.Module, source: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Return whether a module gets the one tensor first, and its defaults for all else."""
    if not kwargs and len(args) == 1:
        return args[0] is source
    try:
        signature = inspect.signature(module.forward)
        first, *others = signature.bind(*args, **kwargs).arguments.items()
    except (TypeError, ValueError):  # compiled forwards have no signature
        return False
    parameters = signature.parameters
    return (
        first[0] == next(iter(parameters))
        and first[1] is source
        and all(value is parameters[name].default for name, value in others)
    )


def _composite(traced: fx.GraphModule, source: fx.Node, nodes: list[fx.Node]) -> fx.GraphModule:
    """Several nodes as one module that shares the network's own parameters."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {source: graph.placeholder("x")}
    for node in nodes:
        for needed in node.all_input_nodes:
            if needed.op == "get_attr" and needed not in copies:
                copies[needed] = graph.node_copy(needed, copies.__getitem__)
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[nodes[-1]])
    composite = fx.GraphModule(traced, graph, class_name="Composite").eval()
    composite.meta[TRACED] = traced.meta[TRACED]
    return composite
