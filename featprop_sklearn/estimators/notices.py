"""What a fit has to tell its user, beside its results."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from featprop_sklearn.propagation import TargetQuality

__all__ = ["tell_of_dead_ends", "tell_of_parts_left_out", "tell_of_sweeps_in_vain"]

#: from here past the estimator's methods to the line that called one of them
CALLER = 6


def tell_of_dead_ends(quality: Mapping[str, TargetQuality]) -> None:
    """Say where no sample's output can be changed from a split."""
    for split, found in quality.items():
        counts = found.counts()
        moved = sum(counts.get(name, 0) for name in ("reached", "stalled", "blocked"))
        if moved and counts.get("blocked") == moved:
            warnings.warn(
                f"No output depends on the feature at split {split!r}, for any sample that is to "
                "be answered otherwise: what follows has weights of zero, or units that are off. "
                "No feature target can be set there. Choose a later split, or train the output "
                "first.",
                UserWarning,
                stacklevel=CALLER,
            )


def tell_of_parts_left_out(left_out: Sequence[str]) -> None:
    """Say which parts of the network are as they were, where there are several."""
    if left_out:
        warnings.warn(
            f"The parts trained for the splits {', '.join(map(repr, left_out))} make the whole "
            "network worse together with those before them, and are left out: parts are "
            "trained independently of each other. Use fewer splits, or one.",
            UserWarning,
            stacklevel=CALLER,
        )


def tell_of_sweeps_in_vain(history: Sequence[Mapping[str, Any]], splits: Sequence[str]) -> None:
    """Say where sweeps found no layer to refit."""
    for split in splits:
        entries = [entry for entry in history if entry["split"] == split]
        sweeps = [entry for entry in entries if entry["sweep"] > 0]
        if sweeps and not any(entry["refitted"] for entry in sweeps):
            reasons = [*entries[0].get("not_refitted", {}).items()][:3]
            warnings.warn(
                f"No layer up to split {split!r} could be refitted in closed form"
                f"{''.join(f'; {name}: {reason}' for name, reason in reasons)}. Choose a later "
                "split, or trainer='auto' or 'gradient'.",
                UserWarning,
                stacklevel=CALLER,
            )
