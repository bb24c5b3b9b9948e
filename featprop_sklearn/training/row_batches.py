"""Feeding skorch whole batches of tensors, without a Python call per sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.utils.data import Dataset

from featprop_sklearn.data import Inputs, batches

__all__ = ["RowBatches", "RowDataset"]

#: batches whose rows are copied together
GATHERED = 8


class RowDataset(Dataset):
    """Inputs and a dict of what the loss needs, row by row or batch by batch."""

    def __init__(self, inputs: Inputs, truth: Mapping[str, Inputs]) -> None:
        self.inputs = inputs
        self.truth = truth

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: slice | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.inputs[rows], {name: values[rows] for name, values in self.truth.items()}


class RowBatches:
    """A skorch iterator over a :class:`RowDataset`: nearly equal batches, shuffled if asked.

    One full batch is never shuffled: the order of a sum would be all that changes.
    """

    def __init__(
        self, dataset: RowDataset, batch_size: int, generator: torch.Generator | None = None
    ) -> None:
        self.dataset = dataset
        self.batch_size = len(dataset) if batch_size == -1 else batch_size
        self.generator = generator

    def __iter__(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        n_samples = len(self.dataset)
        if self.generator is None or n_samples <= self.batch_size:
            for rows in batches(n_samples, self.batch_size):
                yield self.dataset[rows]
            return
        draw = self.generator
        order = torch.randperm(n_samples, generator=draw, device=draw.device)
        order = order.to(self.dataset.inputs.device)
        slices = list(batches(n_samples, self.batch_size))
        for i in range(0, len(slices), GATHERED):
            # rows of several batches at once: on a small network each time costs as much as a layer
            group = slices[i : i + GATHERED]
            first = group[0].start
            gathered = RowDataset(*self.dataset[order[first : group[-1].stop]])
            for rows in group:
                yield gathered[slice(rows.start - first, rows.stop - first)]

    def __len__(self) -> int:
        return max(1, -(-len(self.dataset) // self.batch_size))
