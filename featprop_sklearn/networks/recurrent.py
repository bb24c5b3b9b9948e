"""Recurrent layers in eval mode, which cuDNN runs but does not differentiate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock

import torch
from torch import nn

__all__ = ["differentiable"]


class _Switch:
    """cuDNN's switch, one for all layers and threads: off while anybody wants it off."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = Lock(), 0, True

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = torch.backends.cudnn.enabled
            self._inside += 1
            torch.backends.cudnn.enabled = False

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                torch.backends.cudnn.enabled = self._before


_switch = _Switch()


@contextmanager
def differentiable(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Do without cuDNN inside, if there are recurrent layers: torch's own kernels take over.

    cuDNN keeps what a gradient needs in training mode only, and has no second derivatives.

    Parameters
    ----------
    modules : iterable of nn.Module
        What may be differentiated inside, on whatever device.
    """
    if any(isinstance(part, nn.RNNBase) for module in modules for part in module.modules()):
        with _switch:
            yield
    else:
        yield
