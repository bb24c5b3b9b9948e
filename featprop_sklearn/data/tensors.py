"""Arrays and tensors: dtype, device, batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

__all__ = [
    "batches",
    "module_device",
    "module_dtype",
    "plain_torch",
    "resolve_device",
    "spread_rows",
    "to_array",
    "to_tensor",
]

#: rows that a median, or a choice, is taken over at most
SPREAD = 50_000


def to_tensor(array: ArrayLike, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Copy an array into a tensor of its own memory (read-only arrays are common in joblib)."""
    return torch.from_numpy(np.array(np.asarray(array), order="C")).to(device=device, dtype=dtype)


def to_array(tensor: Tensor, dtype: np.dtype | type | None = None) -> NDArray:
    """Return a tensor's values as an array, in another dtype if asked."""
    values = tensor.detach().cpu()
    # numpy has no bfloat16
    array = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return array if dtype is None else array.astype(dtype, copy=False)


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
    """Turn the ``device`` parameter into a torch device; "auto" is CUDA where there is one.

    Raises
    ------
    ValueError
        If torch does not know the device, or it is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except Exception as error:  # torch raises RuntimeError, TypeError or AssertionError here
        raise ValueError(
            f"device={device!r} cannot be used here: {error}. Use 'auto', 'cpu' or a CUDA device."
        ) from error
    return found


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
    """Switch off what a caller may have on around us: automatic 16-bit, inference mode."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for device in devices:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def spread_rows(n_samples: int) -> slice:
    """Return which rows speak for all where a statistic need not see each: every k-th."""
    return slice(None, None, max(1, -(-n_samples // SPREAD)))
