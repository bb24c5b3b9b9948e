"""What skorch does beside the steps: the rate's schedule, records of the loss, the best epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping, LRScheduler, PassthroughScoring

__all__ = ["best_epoch", "one_cycle", "recorded_terms"]

#: share of the steps in which "one_cycle" rises
WARM_UP = 0.1


def recorded_terms(names: Sequence[str]) -> list[tuple[str, Callback]]:
    """Write the named terms of the loss to the history, with their means over each epoch."""
    if not names:
        return []
    means = [(name, PassthroughScoring(name, on_train=True)) for name in names]
    return [("terms", _RecordTerms()), *means]


def one_cycle(lr: float, max_epochs: int, n_samples: int, batch_size: int) -> LRScheduler:
    """Raise the rate within the first tenth of the steps, and lower it to nothing."""
    steps = max_epochs * (-(-n_samples // batch_size) if batch_size > 0 else 1)
    return LRScheduler(
        torch.optim.lr_scheduler.OneCycleLR,
        max_lr=lr,
        # one more: the scheduler also steps after the last batch
        total_steps=max(steps, 1) + 1,
        pct_start=WARM_UP,
        cycle_momentum=False,
        step_every="batch",
        event_name=None,
    )


def best_epoch(max_epochs: int) -> EarlyStopping:
    """Return to the epoch with the least held-out loss, in the end."""
    return EarlyStopping(
        monitor="valid_loss",
        patience=max_epochs + 1,
        threshold=0,
        load_best=True,
        sink=_silent,
    )


class _RecordTerms(Callback):
    """Copy the terms of each batch's loss into skorch's history."""

    def on_batch_end(
        self, net: NeuralNet, batch: Any = None, training: bool = False, **_: Any
    ) -> None:
        if training:
            for name, value in net.criterion_.terms.items():
                net.history.record_batch(name, value)


def _silent(*_: object) -> None:
    """Take skorch's messages and drop them."""
