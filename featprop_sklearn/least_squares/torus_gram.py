"""(AA' + λ²)⁻¹ and (A'A + λ²)⁻¹ of a convolution on its torus: what its two ways share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from math import prod

import torch
from torch import Tensor

from featprop_sklearn.least_squares.torus_embedding import TorusEmbedding

__all__ = ["TorusGram", "join"]

#: complex numbers worked on at a time: what fits into a cache
CHUNK = 1 << 18
#: complex numbers kept for a batch while what is real of it is solved together
BATCH = 1 << 22


class TorusGram(ABC):
    """The inverse of AA' + λ²I, or of A'A + λ²I.

    M is the symbol from the *other* side to the Gram matrix's *own* (K where that is the
    outputs', else K'), and P = (MM' + λ²)⁻¹.

    Parameters
    ----------
    torus : TorusEmbedding
        Of A.
    squared_damping : float
        λ²; large enough that P exists at each frequency.
    of_outputs : bool
        Whether AA' is meant, else A'A.

    Raises
    ------
    torch.linalg.LinAlgError
        If P, or the system that ends the torus where A ends, is singular.
    """

    def __init__(self, torus: TorusEmbedding, squared_damping: float, *, of_outputs: bool) -> None:
        self.torus = torus
        regions = (torus.outputs, torus.inputs)
        self.own, self.other = regions if of_outputs else regions[::-1]
        self.M = torus.symbol if of_outputs else torus.symbol.mH
        eye = torch.eye(self.M.shape[2], dtype=self.M.dtype, device=self.M.device)
        self.P = torch.linalg.inv(self.M @ self.M.mH + squared_damping * eye)

    def solve(self, values: Tensor, *, from_other: bool = False, to_other: bool = False) -> Tensor:
        """Multiply by the inverse; before that by A' or A, or after it, if asked.

        Parameters
        ----------
        values : Tensor of shape (n_samples, groups, channels, *size), float64
            Outputs of A where the inverse is that of AA', else inputs; the other way round
            with ``from_other``.
        from_other, to_other : bool
            Whether the values are, or the answer shall be, on the other side of A.

        Returns
        -------
        Tensor of shape (n_samples, groups, channels, *size)
        """
        transform = self.torus.transform
        given = self.other if from_other else self.own
        wanted = self.other if to_other else self.own
        size = sum(self.torus.channels) * prod(transform.half_size)
        found = []
        for batch in _parts(values, BATCH // size or 1):
            parts = (given.lay(part) for part in _parts(batch, CHUNK // size or 1))
            solved = self._solve(map(transform.transform, parts), from_other, to_other)
            found += [wanted.cut(transform.back(spectrum)) for spectrum in solved]
        return join(found)

    @abstractmethod
    def _solve(
        self, spectra: Iterable[Tensor], from_other: bool, to_other: bool
    ) -> Iterable[Tensor]:
        """Solve for the spectra of a batch, which come and go in parts."""


def _parts(values: Tensor, size: int) -> Sequence[Tensor]:
    # for a few samples the calls are what takes time
    return values.split(size) if len(values) > size else (values,)


def join(parts: list[Tensor], dim: int = 0) -> Tensor:
    """Put parts together; one alone is not copied."""
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]
