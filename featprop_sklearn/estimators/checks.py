"""Parameters that both estimators share, checked when a fit begins."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from featprop_sklearn.data import Inputs
from featprop_sklearn.networks import unwrap
from featprop_sklearn.propagation import PROPAGATIONS
from featprop_sklearn.training import (
    AutoTrainer,
    ClosedFormTrainer,
    GradientTrainer,
    Trainer,
)

__all__ = [
    "check_no_label_missing",
    "check_outputs",
    "checked_batch_size",
    "checked_fraction",
    "checked_trainer",
]

HOLD_OUT_ABOVE = 200
HOLD_OUT = 0.25
BATCH_SIZE = 256


TRAINERS: dict[str, type[Trainer]] = {
    "auto": AutoTrainer,
    "closed_form": ClosedFormTrainer,
    "gradient": GradientTrainer,
}


def checked_trainer(trainer: Any, alpha: Any, propagation: Any) -> Trainer:
    """Return the trainer that ``trainer`` and its shortcut ``alpha`` ask for.

    Raises
    ------
    TypeError, ValueError
        If there is no such trainer, both are given, or a parameter is out of range.
    """
    named = isinstance(trainer, str) and trainer in TRAINERS
    if not named and not isinstance(trainer, tuple(TRAINERS.values())):
        kind = ValueError if isinstance(trainer, str) else TypeError
        classes = ", ".join(kind.__name__ for kind in TRAINERS.values())
        raise kind(
            f"trainer must be one of {list(TRAINERS)} or an object of one of {classes}; got "
            f"{trainer!r}."
        )
    if alpha is not None:
        if trainer not in ("auto", "gradient"):
            raise ValueError(
                f"alpha={alpha!r} asks for the gradient trainer, but trainer is {trainer!r}. Leave "
                f"trainer out, or pass trainer=GradientTrainer(alpha={alpha!r})."
            )
        trainer = GradientTrainer(alpha=alpha)
    elif named:
        trainer = TRAINERS[trainer]()
    if propagation in PROPAGATIONS and propagation not in trainer.propagations:
        raise ValueError(
            f"propagation={propagation!r} cannot be used with {type(trainer).__name__}, which "
            f"sends labels to each layer by the joint rule. Use propagation='joint', or "
            "trainer='gradient'."
        )
    trainer.check()
    return trainer


def checked_fraction(fraction: Any, n_samples: int) -> float:
    """Return the share of rows to hold out.

    Raises
    ------
    ValueError
        If it is neither "auto" nor in [0, 1).
    """
    if fraction == "auto":
        return HOLD_OUT if n_samples > HOLD_OUT_ABOVE else 0.0
    real = isinstance(fraction, Real) and not isinstance(fraction, bool)
    if not (real and 0 <= float(fraction) < 1):
        raise ValueError(
            f"validation_fraction must be 'auto' or a number >= 0 and < 1; got {fraction!r}."
        )
    return float(fraction)


def checked_batch_size(batch_size: Any, n_samples: int, *, whole: bool) -> int:
    """Return the rows worked on at a time; "auto" is all of them if ``whole``, else 256.

    Raises
    ------
    ValueError
        If it is neither "auto" nor a positive integer.
    """
    if batch_size == "auto":
        return n_samples if whole else BATCH_SIZE
    if isinstance(batch_size, Integral) and batch_size is not True and int(batch_size) >= 1:
        return int(batch_size)
    raise ValueError(f"batch_size must be 'auto' or an integer >= 1; got {batch_size!r}.")


def check_no_label_missing(y: Any) -> None:
    """Refuse labels of None or NaN, which cannot be sorted among others.

    Raises
    ------
    ValueError
        With the first row that has one.
    """
    values = np.asarray(y, dtype=None if hasattr(y, "dtype") else object)
    missing = pd.isna(values) if values.dtype.kind in "fO" and values.ndim else np.zeros(1, bool)
    if missing.any():
        rows = np.flatnonzero(missing.reshape(len(missing), -1).any(axis=1))
        raise ValueError(
            f"Input y contains NaN or None: {len(rows)} of {len(values)} labels are missing, the "
            f"first in row {rows[0]}. Leave such rows out, or give them a label of their own."
        )


def check_outputs(module: nn.Module, inputs: Inputs, outputs: Tensor) -> None:
    """Refuse a network that does not put out numbers, and say why.

    Raises
    ------
    ValueError
        If an output is NaN or infinite: with the weights that are, the samples that are too
        large for the network's dtype, or the outputs concerned.
    """
    broken = ~torch.isfinite(outputs).reshape(len(outputs), -1)
    if not broken.any():
        return
    network = unwrap(module)
    returned = f"The network ({type(network).__name__}) returned NaN or infinite outputs"
    for path, weights in network.named_parameters():
        if not torch.isfinite(weights).all():
            raise ValueError(
                f"{returned}: its {path} holds such numbers. Its training must have diverged; pass "
                "its weights from before that."
            )
    rows = torch.nonzero(broken.any(dim=1))[:, 0].tolist()
    among = f"for {len(rows)} of {len(broken)} samples"
    first = inputs[rows[0] : rows[0] + 1]
    if not torch.isfinite(first).all():
        raise ValueError(
            f"{returned} {among}: their X is beyond the range of {first.dtype}, in which the "
            "network computes. Scale X, as it was when the network was trained."
        )
    always = torch.nonzero(broken.all(dim=0))[:, 0].tolist()
    if 0 < len(always) < broken.shape[1]:
        raise ValueError(
            f"{returned} for every sample, in columns {always}. If these are classes that are "
            "masked, return finite logits instead, such as -1e4, or the others alone."
        )
    raise ValueError(
        f"{returned} {among}. Scale X as it was when the network was trained, leave such samples "
        "out, or remove what divides by zero or overflows in the network."
    )
