"""Whether a network suits feature backpropagation: what a few small runs tell, in words."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featprop_sklearn.networks.outputs import SingleOutput, find_output, pick
from featprop_sklearn.networks.stand_in import unwrap

__all__ = [
    "check_loaded",
    "probe_network",
    "random_state_kept",
    "with_single_output",
]

ROWS = 8
#: relative difference of outputs that rounding does not explain: in float32, in coarser formats
ROUNDING = {torch.float16: 3e-2, torch.bfloat16: 2e-1}
ROUNDING_ELSEWHERE = 1e-3

SHAPE_OF_X = (
    "Pass X in the shape that the network takes, or 2-D with input_shape=(...) naming the shape "
    "of one sample. It was tried on {} rows; it has to take any number of them."
)
BATCH_FIRST = (
    "It seems to read the batch in another dimension than the first: give its layers "
    "batch_first=True, or wrap it in a module that moves the batch there and back."
)
ANY_BATCH_SIZE = (
    "Its forward must take any number of rows, also {}, with the batch in the first dimension."
)
ONE_DTYPE = (
    "Numbers of two dtypes meet in its forward, while X comes in {}: leave numbers in the dtype "
    "that comes (no .float(), no autocast inside), and register constants as buffers."
)
OBSERVERS_OFF = (
    " Observers of a prepared quantisation keep ranges: module.apply("
    "torch.ao.quantization.disable_observer)."
)

_PACKED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
_OBSERVERS = "torch.ao.quantization"
_FLOATS = re.compile(r"\b(half|bfloat16|float(?:16|32|64)?|double)\b", re.IGNORECASE)
_WANTS_INTEGERS = re.compile(r"\bLong\b|LongTensor|tensors used as indices|index tensor")


def check_loaded(module: nn.Module) -> None:
    """Refuse networks without floating weights of their own, which nothing could train.

    Raises
    ------
    ValueError
        For layers that wait for their first input (``nn.Lazy...``), tensors on the meta
        device, and quantised layers.
    """
    name = type(module).__name__
    for path, tensor in (*module.named_parameters(), *module.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ValueError(
                f"module ({name}) is not initialised: {path} gets its shape at the first run "
                "(nn.Lazy...). Run it on a few rows, and load or train its weights, first."
            )
        if tensor.is_meta:
            raise ValueError(
                f"module ({name}) has no weights yet: {path} is on the meta device. Load them "
                "first, with load_state_dict(..., assign=True)."
            )
    for path, part in module.named_modules():
        if type(part).__module__.startswith(_PACKED):
            raise ValueError(
                f"module ({name}) is quantised: the weights of {path or name} "
                f"({type(part).__name__}) are packed integers, which cannot be trained. Pass the "
                "network that it was made from, and quantise the result."
            )


@contextmanager
def random_state_kept(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Leave torch's random state as it is, even if a network draws noise in eval mode.

    What is drawn inside starts at ``seed``, if given, on the CPU and on the device; any other
    device is left alone, which ``torch.manual_seed`` would not do.
    """
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices=devices, device_type=device.type):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            for other in devices:
                state = torch.Generator(other).manual_seed(seed).get_state()
                torch.get_device_module(other).set_rng_state(state, other)
        yield


@dataclass(frozen=True)
class _Runs:
    """What a network returned for several rows, and for the middle one of them alone.

    A network that refuses a single row got it twice.
    """

    rows: Tensor
    middle: int
    several: object
    alone: object
    pairs: bool = False

    @property
    def n_alone(self) -> int:
        return 2 if self.pairs else 1


def with_single_output(
    module: nn.Module, x: Tensor, returned: tuple[object, object] | None = None
) -> nn.Module:
    """Return the network, wrapped where what it returns is not one tensor of one row a sample.

    Parameters
    ----------
    module : nn.Module
        In eval mode.
    x : Tensor of shape (n_samples, ...)
        Example data, at least two rows.
    returned : (object, object), optional
        What the network returned for all rows, and for a single one, if it ran already.

    Returns
    -------
    nn.Module
        The module itself, or a :class:`SingleOutput`.

    Raises
    ------
    ValueError
        If the network refuses the data, or has no such output.
    """
    runs = _run(module, x) if returned is None else _Runs(x, 0, *returned)
    return _wrapped(module, runs, flat=False)


def probe_network(module: nn.Module, x: Tensor) -> nn.Module:
    """Check that a network can be trained sample by sample; return it with one table of outputs.

    Three runs: some rows, one of them alone, the same rows again.

    Parameters
    ----------
    module : nn.Module
        In eval mode.
    x : Tensor of shape (n_samples, ...)
        Example data; a few rows are used.

    Returns
    -------
    nn.Module
        The module itself where its outputs are of shape (n_samples, n_outputs) or
        (n_samples,) for every batch size; otherwise a :class:`SingleOutput` of it.

    Raises
    ------
    ValueError
        If the network refuses the data, returns something else than outputs of one row a
        sample, gives other outputs the second time, or mixes the samples of a batch.
    """
    rows = x[:ROWS] if len(x) > 1 else torch.cat([x, x])
    with torch.no_grad(), random_state_kept(x.device):
        runs = _run(module, rows)
        network = _wrapped(module, runs, flat=True)
        outputs, alone = _read(network, module, runs.several), _read(network, module, runs.alone)
        _check_repeats(module, outputs, network(rows.clone()))
        if _difference(outputs[runs.middle], alone[0], outputs) > _rounding(outputs):
            # among copies of itself, so that shapes, and with them rounding, are the same
            copies = network(rows[[runs.middle] * len(rows)])
            _check_independent(module, outputs, copies, runs.middle)
    return network


def _name(module: nn.Module) -> str:
    """Return the class of the user's network, whatever reads its inputs or outputs."""
    return type(unwrap(module)).__name__


def _read(network: nn.Module, module: nn.Module, output: Any) -> Tensor:
    """Return the outputs among what the module returned, by the wrapper that it may have got."""
    if isinstance(network, SingleOutput) and network is not module:
        return network.pick(output)
    return output


def _run(module: nn.Module, x: Tensor) -> _Runs:
    try:
        several = module(x.clone())
    except Exception as error:  # whatever a user's forward may raise
        raise ValueError(
            f"The network ({_name(module)}) refused X of shape (n_samples, "
            f"{', '.join(map(str, x.shape[1:]))}) and dtype {x.dtype}: {error}. "
            f"{_advice(module, x, error, SHAPE_OF_X.format(len(x)))}"
        ) from error
    middle = len(x) // 2
    try:
        return _Runs(x, middle, several, module(x[[middle]]))
    except Exception as error:
        refusal = error
    try:
        return _Runs(x, middle, several, module(x[[middle, middle]]), pairs=True)
    except Exception:
        raise ValueError(
            f"The network ({_name(module)}) takes {len(x)} samples and refuses one: "
            f"{refusal}. {_advice(module, x, refusal, ANY_BATCH_SIZE.format('one or two'))}"
        ) from refusal


def _advice(module: nn.Module, x: Tensor, error: Exception, otherwise: str) -> str:
    """Say what to do about a refusal."""
    required = _required_arguments(module)
    if isinstance(error, TypeError) and len(required) > 1:
        return (
            f"Its forward takes {len(required)} inputs ({', '.join(required)}) and got one: pass X "
            "as a dict of arrays by these names, or wrap the network in a module of one input."
        )
    if x.is_floating_point() and _WANTS_INTEGERS.search(str(error)):
        return (
            "It takes integers, as nn.Embedding does: pass X as an integer array, or wrap the "
            "network in a module whose forward calls x.long()."
        )
    if re.search(r"Guard failed: .*size\(\)\[0\]", str(error)):
        return (
            "An exported program runs on the batch size that it was exported with: pass the module "
            "that it was made from, or export it with a torch.export.Dim for the batch."
        )
    dtypes = {name.lower() for name in _FLOATS.findall(str(error))}
    if len(dtypes) > 1 or "mixed dtype" in str(error):
        return ONE_DTYPE.format(x.dtype)
    return otherwise


def _required_arguments(module: nn.Module) -> list[str]:
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # a forward without a signature
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]


def _wrapped(module: nn.Module, runs: _Runs, *, flat: bool) -> nn.Module:
    """Wrap the network where needed; ``flat`` also drops axes of length 1 at the end."""
    name = _name(module)
    try:
        found = find_output(runs.several, runs.alone, len(runs.rows) / runs.n_alone)
    except ValueError as error:
        raise ValueError(f"The network ({name}) must return one tensor; {error}") from None
    value, alone = found.value, pick(runs.alone, found.place)
    _check_rows(name, runs, value, alone)
    if flat:
        _check_table(name, value)
    own = tuple(value.shape[1:])
    shape = (tuple(size for size in own if size > 1)[:1] or own[:1]) if flat else own
    as_it_is = shape == own and alone.shape == (runs.n_alone, *own)
    if as_it_is and not found.place and not runs.pairs:
        return module
    return SingleOutput(module, found.place, None if as_it_is else shape, pairs=runs.pairs)


def _check_rows(name: str, runs: _Runs, value: Tensor, alone: Tensor) -> None:
    """Check that there is one row of outputs a sample."""
    rows = len(runs.rows)
    if value.ndim == 0 or len(value) != rows:
        raise ValueError(
            f"The network ({name}) must return one row per sample; for {rows} samples it returned "
            f"shape {tuple(value.shape)}.{_other_dimension(runs.rows, value)}"
        )
    if alone.numel() * rows != value.numel() * runs.n_alone:
        raise ValueError(
            f"The network ({name}) must return one row per sample; for {rows} samples it returned "
            f"shape {tuple(value.shape)}, for {runs.n_alone} shape {tuple(alone.shape)}. "
            f"{BATCH_FIRST}"
        )


def _other_dimension(x: Tensor, value: Tensor) -> str:
    misplaced = len(x) in value.shape[1:] or (value.ndim > 0 and len(value) in x.shape[1:])
    return f" {BATCH_FIRST}" if misplaced else ""


def _check_table(name: str, value: Tensor) -> None:
    """Check that the outputs of a sample are numbers in a row."""
    if not value.is_floating_point():
        raise ValueError(
            f"The network ({name}) must return floating-point logits or values; it returned "
            f"{value.dtype}. Class numbers (argmax) cannot be trained: return what they are "
            "chosen from."
        )
    if sum(size > 1 for size in value.shape[1:]) > 1:
        raise ValueError(
            f"The network ({name}) must return one row of outputs per sample, shape (n_samples, "
            f"n_outputs); it returned shape (n_samples, {', '.join(map(str, value.shape[1:]))}). "
            "Pool or flatten them first; one label a pixel or a time step is not supported."
        )


def _check_repeats(module: nn.Module, outputs: Tensor, again: Tensor) -> None:
    difference = _difference(outputs, again, outputs)
    if difference > _rounding(outputs):
        observed = any(type(p).__module__.startswith(_OBSERVERS) for p in module.modules())
        advice = OBSERVERS_OFF if observed else ""
        raise ValueError(
            f"The network ({_name(module)}) gives other outputs when it runs on the same rows "
            f"again (relative difference {difference:.1g}). Make it deterministic in eval mode: "
            f"draw noise only if self.training, keep nothing from one run to the next.{advice}"
        )


def _check_independent(module: nn.Module, outputs: Tensor, copies: Tensor, row: int) -> None:
    """Compare the outputs of a row among others and among copies of itself."""
    difference = _difference(outputs[row], copies[row], outputs)
    if difference > _rounding(outputs):
        raise ValueError(
            f"The network ({_name(module)}) mixes the samples of a batch: the outputs of one "
            f"change with the others (relative difference {difference:.1g}). Targets are found "
            f"sample by sample. {_cause_of_mixing(module)}"
        )


def _cause_of_mixing(module: nn.Module) -> str:
    without = [
        path
        for path, part in module.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is None
    ]
    if without:
        return (
            f"BatchNorm without running statistics takes those of the batch ({', '.join(without)}):"
            " use track_running_stats=True."
        )
    return (
        "Look for means, maxima or normalisations over dimension 0, or for layers that take the "
        "batch in another dimension (batch_first=True)."
    )


def _rounding(outputs: Tensor) -> float:
    return ROUNDING.get(outputs.dtype, ROUNDING_ELSEWHERE)


def _difference(some: Tensor, others: Tensor, outputs: Tensor) -> float:
    """Return the largest difference, relative to the largest output; as it is if all are zero."""
    scale = float(outputs.double().abs().max())
    difference = float((some.double() - others.double()).abs().max())
    return difference / scale if scale > 0 else difference
