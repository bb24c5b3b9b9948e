"""Arrays and tensors: dtype, device, batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

__all__ = [
    "batches",
    "double_device",
    "module_device",
    "module_dtype",
    "plain_torch",
    "resolve_device",
    "spread_rows",
    "to_array",
    "to_double",
    "to_tensor",
]

#: rows that a median, or a choice, is taken over at most
SPREAD = 50_000


def to_tensor(array: ArrayLike, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Copy an array into a tensor of its own memory (read-only arrays are common in joblib).

    Numbers in an array of objects, as of a DataFrame with columns of several kinds, will do.
    """
    values = np.asarray(array)
    kind = np.float64 if values.dtype.kind == "O" else None
    return torch.from_numpy(np.array(values, kind, order="C")).to(device=device, dtype=dtype)


def to_array(tensor: Tensor, dtype: np.dtype | type | None = None) -> NDArray:
    """Return a tensor's values as an array, in another dtype if asked."""
    values = tensor.detach().cpu()
    # numpy has no bfloat16
    array = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return array if dtype is None else array.astype(dtype, copy=False)


def to_double(module: nn.Module, device: torch.device | str | None = None) -> nn.Module:
    """Turn a module's numbers to float64, or complex128, in place; on another device if asked.

    ``Module.to(torch.float64)`` cuts complex numbers down to their real parts.
    """

    def converted(tensor: Tensor) -> Tensor:
        dtype = tensor.dtype
        if tensor.is_floating_point() or tensor.is_complex():
            dtype = torch.complex128 if tensor.is_complex() else torch.float64
        return tensor.to(device=device, dtype=dtype)

    return module._apply(converted)


def module_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of a network's first floating parameter or buffer; float32 if none."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.float32


def module_device(module: nn.Module) -> torch.device:
    """Return the device of a network's first parameter or buffer; the CPU if none."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def resolve_device(device: Any) -> torch.device:
    """Turn the ``device`` parameter into a torch device.

    "auto" is the accelerator that torch finds, where it has float64, and else the CPU.

    Raises
    ------
    ValueError
        If torch does not know the device, it is not there, or it has no float64.
    """
    if device == "auto":
        return double_device(_accelerator() or torch.device("cpu"))
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except Exception as error:  # torch raises RuntimeError, TypeError or AssertionError here
        raise ValueError(
            f"device={device!r} cannot be used here: {error}. Use 'auto', 'cpu' or an accelerator "
            "of this machine, such as 'cuda'."
        ) from error
    if double_device(found) != found:
        raise ValueError(
            f"device={device!r} cannot be used here: it has no float64, in which feature targets "
            "and least-squares problems are solved. Use 'auto' or 'cpu'."
        )
    return found


def double_device(device: torch.device) -> torch.device:
    """Return where to compute in float64: there, or, since Apple's mps has none, on the CPU."""
    try:
        torch.ones(1, dtype=torch.float64, device=device).neg()
    except (TypeError, RuntimeError):
        return torch.device("cpu")
    return device


def _accelerator() -> torch.device | None:
    """Return the accelerator of this machine, if any: CUDA, ROCm, XPU, mps, ..."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


def batches(n_samples: int, batch_size: int) -> Iterator[slice]:
    """Yield slices that cover the rows in order, of nearly equal lengths.

    Equal lengths leave no short last batch, such as the one row that a BatchNorm in
    training refuses.
    """
    count = max(1, -(-n_samples // batch_size))
    edges = [n_samples * i // count for i in range(count + 1)]
    for start, stop in itertools.pairwise(edges):
        yield slice(start, stop)


@contextmanager
def plain_torch() -> Iterator[None]:
    """Switch off what a caller may have on around us: automatic 16-bit, inference mode.

    A network's own ``torch.autocast`` stays outermost: around another one it would keep its
    16-bit copies of the weights when it ends, and never see what training made of them.
    """
    devices = {"cpu", getattr(_accelerator(), "type", "cpu")}
    enabled = {device: torch.is_autocast_enabled(device) for device in devices}
    depth = torch.autocast_increment_nesting()
    try:
        for device in devices:
            torch.set_autocast_enabled(device, False)
        for _ in range(depth):
            torch.autocast_decrement_nesting()
        with torch.inference_mode(False):
            yield
    finally:
        for _ in range(depth - 1):
            torch.autocast_increment_nesting()
        for device in devices:
            torch.set_autocast_enabled(device, enabled[device])


def spread_rows(n_samples: int, most: int = SPREAD) -> slice:
    """Return which rows speak for all where a statistic need not see each: every k-th."""
    return slice(None, None, max(1, -(-n_samples // most)))
