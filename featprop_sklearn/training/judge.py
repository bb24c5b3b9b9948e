"""Whether held-out data is against a change of the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from featprop_sklearn.data import batches
from featprop_sklearn.networks import Chain
from featprop_sklearn.output_targets import OutputTargets
from featprop_sklearn.training.component import Labelled
from featprop_sklearn.training.losses import task_losses

__all__ = ["Judge"]

#: standard errors by which data must be against a state to refuse it: few rows are noisy
LENIENCY = 3.0


class Judge:
    """Errors of the best state of a network so far, sample by sample.

    Parameters
    ----------
    network : Chain
        Whose weights change between one question and the next.
    output_targets : OutputTargets
        Task and head.
    data : Labelled
        Samples at its input.
    batch_size : int
        Rows at a time; -1 takes all.
    """

    def __init__(
        self, network: Chain, output_targets: OutputTargets, data: Labelled, batch_size: int
    ) -> None:
        self.network = network
        self.output_targets = output_targets
        self.data = data
        self.weights = data.weights.double() / data.weights.double().sum()
        self.batch_size = len(data) if batch_size == -1 else batch_size
        self.best = self._errors()

    def accepts(self, *, clearly: bool = False) -> bool:
        """Return whether the state is no worse than the best so far, and remember it if so.

        Worse is a mean error greater by more than three standard errors of the difference,
        ``clearly`` better one less by more than one.
        """
        errors = self._errors()
        more = errors - self.best
        mean = self.weights @ more
        error = (self.weights.square() @ (more - mean).square()).sqrt()
        accepted = bool(mean < -error if clearly else mean <= LENIENCY * error)  # NaN is not
        if accepted:
            self.best = errors
        return accepted

    @torch.no_grad()
    def _errors(self) -> Tensor:
        """Error of each sample: 0 or 1 of a class, squared of a value."""
        targets, parts = self.output_targets, []
        for stage in self.network:
            stage.module.eval()
        for rows in batches(len(self.data), self.batch_size):
            output, y = self.network(self.data.inputs[rows]), self.data.y[rows]
            if targets.task == "regression":
                parts.append(task_losses(output, y, targets).double())
            else:
                parts.append((~targets.correct(output, y)).double())
        return torch.cat(parts).nan_to_num(nan=torch.inf)
