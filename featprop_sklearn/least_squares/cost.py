"""What a solver would take for a map: the figures by which ``solver="auto"`` chooses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

__all__ = ["FLOPS", "Cost", "readable_bytes"]

#: measured: float64 operations of a large matrix product in a second, on one core
FLOPS = 4e10


@dataclass(frozen=True)
class Cost:
    """Time on one core of a present-day processor, and memory, both estimated.

    Attributes
    ----------
    set_up : float
        Seconds for everything that all right-hand sides share.
    per_sample : float
        Seconds for one right-hand side among many.
    n_bytes : float
        Most memory held at a time by the set-up, without right-hand sides.
    """

    set_up: float = inf
    per_sample: float = inf
    n_bytes: float = inf

    def total(self, n_samples: int) -> float:
        """Return the seconds that this many right-hand sides take, set-up included."""
        return self.set_up + n_samples * self.per_sample

    def times(self, effort: float) -> Cost:
        """Return the cost of as many calls for each right-hand side."""
        return replace(self, per_sample=effort * self.per_sample)

    def __str__(self) -> str:
        return (
            f"{self.set_up:.2g} s once, {1000 * self.per_sample:.2g} ms a sample, "
            f"{readable_bytes(self.n_bytes)}"
        )


def readable_bytes(n_bytes: float) -> str:
    """Write a size for people."""
    if n_bytes >= 2**30:
        return f"{n_bytes / 2**30:.1f} GiB"
    return f"{n_bytes / 2**20:.3g} MiB"
